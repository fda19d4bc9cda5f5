"""`privads report key`, `sign` and `verify`: from a training run to a reviewer who trusts nobody's word."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from accounting.budget import Budget
from accounting.ledger import Ledger
from tests.privads.test_cli import ADS_TOML, RUN_TOML, Done, init, privads, refused
from tests.privads.training.helpers import write_log

LEDGER = ("--ledger", "sqlite:///budget.db")
WITH_KEY = ("--public-key", "key.pub.pem")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was trained, charged and signed."""
    folder = tmp_path_factory.mktemp("signed")
    write_log(folder)
    (folder / "ads.toml").write_text(ADS_TOML.format(public="false"))
    (folder / "run.toml").write_text(RUN_TOML)
    init(folder)
    assert privads(folder, "train", "run.toml", "--out", "run", "--quiet").returncode == 0
    assert privads(folder, "report", "key", "--out", "key.pem").returncode == 0
    done = privads(folder, "report", "sign", "run", "--key", "key.pem")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy, to be tampered with."""
    for file in trained.rglob("*"):
        if file.is_file():
            copy = tmp_path / file.relative_to(trained)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(file.read_bytes())
    return tmp_path


def failed(done: Done, check: str, *words: str) -> None:
    refused(done, 4, f"privads: not verified: {check}: ", *words)


def test_a_signed_run_is_verified_against_its_ledger(trained: Path) -> None:
    done = privads(trained, "report", "verify", "run", *WITH_KEY, *LEDGER)
    assert done.returncode == 0, done.stderr
    signature, files, ledger, headline = done.stdout.splitlines()
    assert signature.startswith("signature: good, by key.pub.pem; key id ")
    assert "model.json, model.safetensors, report.html, report.json are as they were signed" in files
    assert "holds the run as entry 2 (committed), with its event and figures; the report's head is its row 4" in ledger
    assert headline.startswith("epsilon <= 3.00 (delta 1e-05, user, add/remove, final model)")


def test_what_was_not_checked_is_said(trained: Path) -> None:
    lines = privads(trained, "report", "verify", "run").stdout.splitlines()
    assert "whose key that is was not checked: give --public-key" in lines[0]
    assert lines[2] == "ledger:    not checked: give --ledger"


def test_json_says_what_was_checked(trained: Path) -> None:
    found = json.loads(privads(trained, "report", "verify", "run", *WITH_KEY, *LEDGER, "--json").stdout)
    assert (found["key_checked"], found["missing"]) == (True, [])
    assert found["ledger"] == {"url": LEDGER[1], "entry": 2, "state": "committed", "head_row": 4, "rows": 4}
    assert json.loads((trained / "run/report.json.sig").read_text())["key"] == found["key"]


def test_a_byte_changed_in_the_report_fails(folder: Path) -> None:
    file = folder / "run/report.json"
    file.write_bytes(file.read_bytes().replace(b"poisson", b"Poisson", 1))
    failed(privads(folder, "report", "verify", "run"), "files", "run/report.json was changed after it was signed")


def test_a_signature_by_another_key_fails(folder: Path) -> None:
    privads(folder, "report", "key", "--out", "other.pem")
    done = privads(folder, "report", "verify", "run", "--public-key", "other.pub.pem")
    failed(done, "key", "not by other.pub.pem")
    (folder / "run/report.json.sig").unlink()
    failed(privads(folder, "report", "verify", "run", *WITH_KEY), "signature", "is not signed")


def test_a_ledger_without_the_run_fails(folder: Path) -> None:
    budget = Budget(epsilon=7.0, delta=9e-5, unit="user")
    Ledger.init(f"sqlite:///{folder / 'other.db'}", dataset="small", budget=budget)
    done = privads(folder, "report", "verify", "run", "--ledger", "sqlite:///other.db")
    failed(done, "ledger", "no row of sqlite:///other.db has the hash")


def test_a_ledger_whose_tail_was_cut_or_changed_fails(folder: Path) -> None:
    def tamper(statement: str) -> None:
        with closing(sqlite3.connect(folder / "budget.db")) as connection:
            for action in ("update", "delete"):
                connection.execute(f"DROP TRIGGER IF EXISTS log_refuses_{action}")
            connection.execute(statement)
            connection.commit()

    tamper("DELETE FROM log WHERE seq = 4")
    failed(privads(folder, "report", "verify", "run", *LEDGER), "ledger", "no row of", "has the hash")
    tamper("UPDATE log SET dataset = 'other' WHERE seq = 2")
    failed(privads(folder, "report", "verify", "run", *LEDGER), "ledger", "broken at row 2")


def test_bad_input_is_refused_and_nothing_is_overwritten(folder: Path) -> None:
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    refused(privads(folder, "report", "key", "--out", "key.pem"), 2, "key.pem exists already")
    refused(privads(folder, "report", "key", "--out", "no/where/key.pem"), 2, "no/where/key.pem")
    refused(privads(folder, "report", "sign", "run", "--key", "key.pem"), 2, "is signed already")
    refused(privads(folder, "report", "sign", "run", "--key", "none.pem"), 2, "none.pem")
    refused(privads(folder, "report", "sign", ".", "--key", "key.pem"), 2, "not a run folder")
    refused(privads(folder, "report", "verify", "run", "--public-key", "key.pem"), 2, "not a public Ed25519 key")
    refused(privads(folder, "report", "verify", "run", "--public-key", "none.pem"), 2, "none.pem")
    refused(privads(folder, "report", "verify", "run", "--ledger", "sqlite:///none.db"), 2, "there is no ledger")
    refused(privads(folder, "report", "verify", "nowhere"), 2, "nowhere is not a run folder")
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
