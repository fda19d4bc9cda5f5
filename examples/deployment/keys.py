"""Makes what a loopback deployment needs to trust each other: an authority, the server's certificate, the nodes' keys.

    python keys.py FOLDER --host 127.0.0.1 --nodes 2

A real deployment takes the certificate from its own authority; each node makes its key itself and sends the public half
to the server's operator, who registers it.
"""

import argparse
import datetime
import ipaddress
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAYS = 30


def write(path: Path, content: bytes) -> None:
    """Write for the owner alone."""
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(content)


def private(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: str, by: ec.EllipticCurvePrivateKey, host: str | None
) -> bytes:
    """Returns a certificate of ``key`` signed ``by`` the issuer: of a server at ``host``, or of an authority."""
    now = datetime.datetime.now(datetime.UTC)
    common = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one)]) for one in (name, issuer)]
    made = (
        x509.CertificateBuilder()
        .subject_name(common[0])
        .issuer_name(common[1])
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.BasicConstraints(ca=host is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
    )
    if host is None:
        usage = {one: one in ("key_cert_sign", "crl_sign") for one in KEY_USES}
        made = made.add_extension(x509.KeyUsage(**usage), critical=True)
    else:
        try:
            at: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            at = x509.DNSName(host)
        made = made.add_extension(x509.SubjectAlternativeName([at]), critical=False)
    return made.sign(by, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


KEY_USES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


def main(folder: Path, host: str, nodes: int) -> None:
    """Write ca.crt, server.crt, server.key, and node-K.key and node-K.pub; the authority's key is thrown away."""
    folder.mkdir(parents=True, exist_ok=True)
    authority, server = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    write(folder / "ca.crt", certificate("loopback authority", authority, "loopback authority", authority, None))
    write(folder / "server.crt", certificate("loopback server", server, "loopback authority", authority, host))
    write(folder / "server.key", private(server, serialization.PrivateFormat.PKCS8))
    for number in range(nodes):
        key = ec.generate_private_key(ec.SECP384R1())
        write(folder / f"node-{number}.key", private(key, serialization.PrivateFormat.OpenSSH))
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        write(folder / f"node-{number}.pub", public)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Makes an authority, a server's certificate and keys of nodes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--nodes", type=int, default=2)
    given = parser.parse_args()
    main(given.folder, given.host, given.nodes)
