"""Signatures of a run folder: Ed25519 (RFC 8032), detached, in the file `report.json.sig` beside the report.

What is signed is one text, the *manifest*: the names and the SHA-256 of the folder's files, with the key's id. It is
the ASCII of this JSON, its keys sorted, no space and no line break in it:

    {"files":{"model.safetensors":"HEX","report.html":"HEX","report.json":"HEX"},"format":"privads-signature-1","key":"ID"}

HEX is the SHA-256 of the file's bytes, in 64 lower-case digits; ID is the SHA-256 of the public key's
SubjectPublicKeyInfo in DER, which `openssl pkey -pubin -in key.pub.pem -outform DER | sha256sum` prints as well.
`report.json` is signed in its canonical form only: keys sorted, indented by two spaces, UTF-8, one line break at the
end. `anchor` says whether the ledger knows the run.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from pydantic import Field, StringConstraints, ValidationError

from accounting.report.fields import Record, Sha256, canonical
from accounting.report.reading import REPORT, read_report

SIGNATURE = "report.json.sig"

_FILE_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"
_FileName = Annotated[str, StringConstraints(pattern=_FILE_NAME)]


class NotVerified(Exception):  # noqa: N818 - named for what is the case
    """A report does not pass. ``check``: which check it was; the message is one line that begins with it."""

    def __init__(self, check: str, why: str) -> None:
        super().__init__(f"{check}: {why}")
        self.check = check


class Signature(Record):
    """What `report.json.sig` holds. ``key``: the public key's id; ``public_key``: its 32 bytes, to check with."""

    format: Literal["privads-signature-1"] = "privads-signature-1"
    key: Sha256
    public_key: Sha256
    files: Annotated[dict[_FileName, Sha256], Field(min_length=1)]
    signature: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]

    @property
    def manifest(self) -> bytes:
        """What was signed."""
        return _manifest(self.files, self.key)


def make_key(file: Path) -> tuple[Path, str]:
    """Returns (file of the public key, its id) of a new pair of keys; the private one is in ``file``, for its owner.

    PEM: PKCS #8 without a password, of mode 0600, and SubjectPublicKeyInfo. A file that exists is never overwritten.
    """
    private = Ed25519PrivateKey.generate()
    public = file.with_name(f"{file.stem}.pub{file.suffix or '.pem'}")
    if file.exists() or public.exists():
        raise ValueError(f"{file if file.exists() else public} exists already: a key is never overwritten")
    _write_new(file, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)
    key = private.public_key()
    _write_new(public, key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), mode=0o644)
    return public, key_id(key)


def sign(folder: Path, key: Path) -> Signature:
    """Returns the signature of all files of a run folder, after writing it beside them.

    Refused: a folder without a report, a report that is not canonical or contradicts itself, a folder that is signed.
    """
    report = folder / REPORT
    if not report.is_file():
        raise ValueError(f"{folder} is not a run folder: it has no {REPORT}")
    private = _private_key(key)
    _check_canonical(report)
    public = private.public_key()
    signed, identity = _hashes(folder), key_id(public)
    for name in signed:
        if not re.fullmatch(_FILE_NAME, name):
            raise ValueError(f"{folder / name} cannot be signed: a name there is of letters, digits and . _ - only")
    made = Signature(
        key=identity,
        public_key=public.public_bytes(Encoding.Raw, PublicFormat.Raw).hex(),
        files=signed,
        signature=private.sign(_manifest(signed, identity)).hex(),
    )
    text = json.dumps(made.model_dump(mode="json"), sort_keys=True, indent=2) + "\n"
    try:
        _write_new(folder / SIGNATURE, text.encode(), mode=0o644)
    except FileExistsError:
        raise ValueError(f"{folder} is signed already: remove {SIGNATURE} to sign it anew") from None
    return made


def verify(folder: Path, *, public_key: Path | None = None) -> tuple[Signature, tuple[str, ...]]:
    """Returns the signature of a run folder and which of the signed files are not there; raises `NotVerified`.

    Checked: the signature itself; that it is by ``public_key``, without which it shows only that nothing was changed
    since *somebody* signed; that every file that is there holds the bytes that were signed; that nothing called
    report.* is there that was not.
    """
    stated = _public_key(public_key) if public_key is not None else None
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a run folder")
    found = _signature_of(folder)
    own = Ed25519PublicKey.from_public_bytes(bytes.fromhex(found.public_key))
    if key_id(own) != found.key:
        raise NotVerified("key", f"{SIGNATURE} names key {found.key}, but holds another one")
    if stated is not None and key_id(stated) != found.key:
        raise NotVerified("key", f"{folder} was signed by key {found.key}, not by {public_key} ({key_id(stated)})")
    try:
        own.verify(bytes.fromhex(found.signature), found.manifest)
    except InvalidSignature:
        raise NotVerified("signature", f"the list of files in {folder / SIGNATURE} is not what was signed") from None
    _check_files(folder, found.files)
    return found, tuple(name for name in sorted(found.files) if not (folder / name).exists())


def key_id(key: Ed25519PublicKey) -> str:
    """Returns the SHA-256 of a public key in DER, as hexadecimal digits."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _manifest(files: Mapping[str, str], key: str) -> bytes:
    said = {"files": dict(files), "format": "privads-signature-1", "key": key}
    return json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def _check_files(folder: Path, signed: Mapping[str, str]) -> None:
    here = _hashes(folder)
    if REPORT not in here or REPORT not in signed:
        raise NotVerified("files", f"{folder} has no signed {REPORT}")
    for name, sha256 in sorted(here.items()):
        if name in signed and sha256 != signed[name]:
            raise NotVerified("files", f"{folder / name} was changed after it was signed")
        if name not in signed and name.startswith("report."):
            raise NotVerified("files", f"{folder / name} was not there when the run was signed")


def _hashes(folder: Path) -> dict[str, str]:
    """Returns {name: SHA-256} of the files of a run folder, all but hidden ones and the signature."""
    found = {}
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name != SIGNATURE and not file.name.startswith("."):
            with file.open("rb") as content:
                found[file.name] = hashlib.file_digest(content, "sha256").hexdigest()
    return found


def _check_canonical(file: Path) -> None:
    read_report(file)
    text = file.read_text(encoding="utf-8")
    if text != canonical(json.loads(text)):
        raise ValueError(f"{file} is not in the form in which privads writes it: it was changed, and is not signed")


def _signature_of(folder: Path) -> Signature:
    file = folder / SIGNATURE
    if not file.is_file():
        raise NotVerified("signature", f"{folder} is not signed: it has no {SIGNATURE}")
    try:
        return Signature.model_validate_json(file.read_bytes(), strict=True)
    except ValidationError as error:
        what = error.errors()[0]
        where = ".".join(map(str, what["loc"])) or "it"
        raise NotVerified("signature", f"{file} cannot be read: {where}: {what['msg']}") from None


def _private_key(file: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(file.read_bytes(), password=None)
    except TypeError:
        raise ValueError(f"{file} is protected by a password: sign with a copy without one") from None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"{file} is not a private Ed25519 key in PEM, as `privads report key` makes one")
    return key


def _public_key(file: Path) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(file.read_bytes())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError(f"{file} is not a public Ed25519 key in PEM, as `privads report key` makes one")
    return key


def _write_new(file: Path, content: bytes, *, mode: int) -> None:
    """Writes a file that must not exist, and that nobody else could read meanwhile."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as made:
        made.write(content)
