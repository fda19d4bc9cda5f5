"""Signatures of a run folder: what a signature covers, and that nothing that was changed passes."""

import json
import os
import stat
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from accounting.report.sign import SIGNATURE, NotVerified, make_key, sign, verify
from tests.accounting.report.sample import report

FILES = ("model.json", "model.safetensors", "report.html", "report.json")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A signed run folder, with its keys `key.pem` and `key.pub.pem` beside it."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_text(f"what {name} holds")
    (folder / "report.json").write_text(report().to_json(), encoding="utf-8")
    make_key(tmp_path / "key.pem")
    sign(folder, tmp_path / "key.pem")
    return folder


def failed(run: Path, **how: Path) -> str:
    with pytest.raises(NotVerified) as caught:
        verify(run, **how)
    message = str(caught.value)
    assert message.startswith(f"{caught.value.check}: ")
    assert "\n" not in message
    return message


def test_what_was_signed_and_left_alone_passes(run: Path) -> None:
    found, missing = verify(run, public_key=run.parent / "key.pub.pem")
    assert tuple(found.files) == FILES
    assert missing == ()
    assert verify(run)[0] == found


def test_the_signature_is_over_the_text_that_the_module_states(run: Path) -> None:
    """Checked with nothing of ours: the manifest is put together here by hand, from the bytes in the folder."""
    stated = json.loads((run / SIGNATURE).read_text())
    hashes = ",".join(f'"{name}":"{sha256((run / name).read_bytes()).hexdigest()}"' for name in sorted(FILES))
    pem = (run.parent / "key.pem").read_bytes()
    public = load_pem_private_key(pem, None).public_key()
    key = sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
    manifest = f'{{"files":{{{hashes}}},"format":"privads-signature-1","key":"{key}"}}'
    assert isinstance(public, Ed25519PublicKey)
    public.verify(bytes.fromhex(stated["signature"]), manifest.encode())  # raises, if it is not


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", ["first", "last"])
def test_a_changed_bit_of_any_file_is_named(run: Path, name: str, where: str) -> None:
    content = bytearray((run / name).read_bytes())
    content[0 if where == "first" else -1] ^= 1
    (run / name).write_bytes(content)
    assert failed(run) == f"files: {run / name} was changed after it was signed"


def test_a_report_written_anew_does_not_pass_though_its_facts_agree(run: Path) -> None:
    (run / "report.json").write_text(report(assumptions=[]).to_json(), encoding="utf-8")
    assert "report.json was changed" in failed(run)


def test_a_key_of_another_pair_does_not_pass(run: Path) -> None:
    make_key(run.parent / "other.pem")
    said = failed(run, public_key=run.parent / "other.pub.pem")
    assert said.startswith("key: ")
    assert json.loads((run / SIGNATURE).read_text())["key"] in said


def test_whoever_signs_a_forgery_with_a_key_of_their_own_is_found_by_the_public_key(run: Path) -> None:
    (run / "report.json").write_text(report(assumptions=[]).to_json(), encoding="utf-8")
    (run / SIGNATURE).unlink()
    make_key(run.parent / "forger.pem")
    sign(run, run.parent / "forger.pem")
    verify(run)
    assert failed(run, public_key=run.parent / "key.pub.pem").startswith("key: ")


def test_a_forger_who_names_the_true_key_is_found_too(run: Path) -> None:
    """The id is the true key's, the signature another's: with and without the public key it does not pass."""
    true = json.loads((run / SIGNATURE).read_text())
    (run / SIGNATURE).unlink()
    make_key(run.parent / "forger.pem")
    sign(run, run.parent / "forger.pem")
    forged = json.loads((run / SIGNATURE).read_text())
    (run / SIGNATURE).write_text(json.dumps({**forged, "key": true["key"]}))
    assert failed(run).startswith("key: ")
    (run / SIGNATURE).write_text(json.dumps({**forged, "key": true["key"], "public_key": true["public_key"]}))
    assert failed(run).startswith("signature: ")
    assert failed(run, public_key=run.parent / "key.pub.pem").startswith("signature: ")


Change = Callable[[dict[str, object]], object]
CHANGES: dict[str, Change] = {
    "a hash": lambda one: one | {"files": {**one["files"], "model.json": "0" * 64}},  # type: ignore[dict-item]
    "a file left out": lambda one: one | {"files": {"report.json": one["files"]["report.json"]}},  # type: ignore[index]
    "a file more": lambda one: one | {"files": {**one["files"], "more.txt": "0" * 64}},  # type: ignore[dict-item]
    "a file elsewhere": lambda one: one | {"files": {**one["files"], "../key.pem": "0" * 64}},  # type: ignore[dict-item]
    "no files": lambda one: one | {"files": {}},
    "the signature": lambda one: one | {"signature": "0" * 128},
    "a short signature": lambda one: one | {"signature": "00"},
    "another format": lambda one: one | {"format": "privads-signature-2"},
    "an unknown word": lambda one: one | {"note": "checked by the board"},
    "no JSON": lambda one: "signed",
    "a list": lambda one: [one],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_signature_file_does_not_pass(run: Path, change: Change) -> None:
    changed = change(json.loads((run / SIGNATURE).read_text()))
    (run / SIGNATURE).write_text(changed if isinstance(changed, str) else json.dumps(changed))
    assert failed(run).startswith("signature: ")


def test_a_report_without_a_signature_does_not_pass(run: Path) -> None:
    (run / SIGNATURE).unlink()
    assert failed(run) == f"signature: {run} is not signed: it has no {SIGNATURE}"


def test_a_page_that_was_put_beside_a_signed_report_does_not_pass(run: Path) -> None:
    """A reader opens the page, not the JSON: one that was not signed would be believed."""
    (run / "report.md").write_text("epsilon <= 0.01")
    assert failed(run) == f"files: {run / 'report.md'} was not there when the run was signed"


def test_what_was_not_handed_on_is_named_and_the_report_itself_must_be_there(run: Path) -> None:
    (run / "model.safetensors").unlink()
    assert verify(run)[1] == ("model.safetensors",)
    (run / "report.json").unlink()
    assert failed(run).startswith("files: ")


def test_keys_are_for_their_owner_and_never_overwritten(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        public, key = make_key(tmp_path / "key.pem")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
    assert public == tmp_path / "key.pub.pem"
    before = (tmp_path / "key.pem").read_bytes()
    with pytest.raises(ValueError, match=r"key\.pem exists already"):
        make_key(tmp_path / "key.pem")
    (tmp_path / "key.pem").unlink()
    with pytest.raises(ValueError, match=r"key\.pub\.pem exists already"):
        make_key(tmp_path / "key.pem")
    public.unlink()
    assert make_key(tmp_path / "key.pem")[1] != key
    assert (tmp_path / "key.pem").read_bytes() != before


def test_a_folder_that_cannot_be_vouched_for_is_not_signed(run: Path) -> None:
    key = run.parent / "key.pem"
    with pytest.raises(ValueError, match="is signed already"):
        sign(run, key)
    (run / SIGNATURE).unlink()
    text = (run / "report.json").read_text(encoding="utf-8")
    for changed, why in {
        text.replace("\n", " "): "not in the form",
        text.replace('"report_version": "1"', '"report_version": "1", "report_version": "1"'): "not in the form",
        text.replace('"headline": "', '"headline": "almost '): "the headline says",
        "": "not a report",
        "[]": "not a report",
    }.items():
        (run / "report.json").write_text(changed, encoding="utf-8")
        with pytest.raises(ValueError, match=why):
            sign(run, key)
    (run / "report.json").write_text(text, encoding="utf-8")
    (run / "my notes.txt").write_text("a name with a space")
    with pytest.raises(ValueError, match=r"my notes\.txt cannot be signed"):
        sign(run, key)
    with pytest.raises(ValueError, match="is not a run folder"):
        sign(run.parent, key)
    assert not (run / SIGNATURE).exists()


def test_what_is_no_key_is_refused_in_one_line(run: Path) -> None:
    (run / SIGNATURE).unlink()
    key, public = run.parent / "key.pem", run.parent / "key.pub.pem"
    private = load_pem_private_key(key.read_bytes(), None)
    locked, other = run.parent / "locked.pem", run.parent / "other.pem"
    locked.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")))
    curve = ec.generate_private_key(ec.SECP256R1())
    other.write_bytes(curve.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    for file, why in {public: "not a private", other: "not a private", locked: "a password"}.items():
        with pytest.raises(ValueError, match=why):
            sign(run, file)
    sign(run, key)
    for file in (key, other, run / "report.json"):
        with pytest.raises(ValueError, match="not a public Ed25519 key"):
            verify(run, public_key=file)
