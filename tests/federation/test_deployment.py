"""The deployment example: its keys are what TLS and Flower ask for, and processes train within its budget."""

import importlib.util
import ipaddress
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from accounting.report.record import Report

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "examples" / "deployment"


def keys() -> ModuleType:
    spec = importlib.util.spec_from_file_location("keys", HERE / "keys.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_the_servers_certificate_is_trusted_under_its_authority_and_for_its_address_alone(tmp_path: Path) -> None:
    keys().main(tmp_path, "127.0.0.1", 2)
    authority, server = (
        x509.load_pem_x509_certificate((tmp_path / f"{one}.crt").read_bytes()) for one in ("ca", "server")
    )
    policy = PolicyBuilder().store(Store([authority]))
    policy.build_server_verifier(x509.IPAddress(ipaddress.ip_address("127.0.0.1"))).verify(server, [])
    with pytest.raises(VerificationError):
        policy.build_server_verifier(x509.IPAddress(ipaddress.ip_address("127.0.0.2"))).verify(server, [])


def test_the_nodes_keys_are_pairs_on_p384_that_only_their_owner_reads(tmp_path: Path) -> None:
    keys().main(tmp_path, "server.example.org", 2)
    publics = set()
    for number in (0, 1):
        private = load_ssh_private_key((tmp_path / f"node-{number}.key").read_bytes(), None)
        public = load_ssh_public_key((tmp_path / f"node-{number}.pub").read_bytes())
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        assert isinstance(private.curve, ec.SECP384R1)
        assert private.public_key() == public
        publics.add((tmp_path / f"node-{number}.pub").read_bytes())
    assert len(publics) == 2
    assert all(stat.S_IMODE(one.stat().st_mode) == 0o600 for one in tmp_path.iterdir())


@pytest.mark.slow
def test_the_example_trains_between_processes_with_tls_and_registered_nodes(tmp_path: Path) -> None:
    pytest.importorskip("flwr", reason="federation over Flower needs flwr: pip install 'privads[federation]'")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    folder = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, str(HERE / "loopback.py"), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = Report.from_json((folder / "result" / "report.json").read_text(encoding="utf-8"))
    assert report.guarantee is not None
    assert report.headline in done.stdout
    assert 0 < report.guarantee.epsilon <= 4.0
    assert report.run.config["backend"] == "Flower, 2 nodes"
    assert report.budget is not None
    assert report.budget.this_run_epsilon == pytest.approx(report.guarantee.epsilon)
    assert (folder / "result" / "model.safetensors").is_file()
