"""Certificates and keys for a deployment: who the SuperLink is, and who each SuperNode is.

One certificate authority signs the SuperLink's certificate; SuperNodes get the authority's
certificate and check the SuperLink with it. Each SuperNode has an ECDSA key of its own, of the kind
that `ssh-keygen -t ecdsa -b 384` makes; its public half is registered at the SuperLink. Private
keys are readable by their owner only, and nothing that exists is overwritten.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedprune.errors import FederationError

LOOPBACK_HOSTS = ("127.0.0.1", "localhost")
DAYS = 365
_CLOCK_SKEW = timedelta(minutes=5)


@dataclass(frozen=True)
class Certificates:
    """Files in PEM: the authority's certificate, the SuperLink's certificate and its key."""

    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True)
class NodeKeys:
    """Files in OpenSSH's formats: one SuperNode's private and public key."""

    private: Path
    public: Path


def make_certificates(
    folder: Path, hosts: Sequence[str] = LOOPBACK_HOSTS, days: int = DAYS
) -> Certificates:
    """Make a certificate authority and a certificate for a SuperLink.

    The authority's own key is used once and never stored, so nobody can sign another certificate
    with it; for a new one, make a new authority.

    Args:
        folder: where ca.pem, superlink.pem and superlink.key go.
        hosts: the names and IP addresses under which SuperNodes reach the SuperLink; loopback is
            always added, since Flower's own helpers connect there.
        days: how long they are valid.

    Raises:
        FederationError: if a file exists already, or a host is no name or address.
    """
    files = Certificates(folder / "ca.pem", folder / "superlink.pem", folder / "superlink.key")
    _require_absent(files.ca, files.certificate, files.key)
    if not 1 <= days <= 3650:
        raise FederationError(f"certificates must be valid for 1 to 3650 days, got {days}")
    names = [_alternative_name(host) for host in dict.fromkeys([*hosts, *LOOPBACK_HOSTS])]
    ca_key, key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    authority = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, "fedprune certificate authority")]
    )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedprune SuperLink")])
    ca = _sign_authority(authority, ca_key, days)
    certificate = _sign_server(subject, key, authority, ca_key, names, days)
    folder.mkdir(parents=True, exist_ok=True)
    _write_new(files.key, _private_pem(key), 0o600)
    _write_new(files.certificate, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    _write_new(files.ca, ca.public_bytes(serialization.Encoding.PEM), 0o644)
    return files


def make_node_keys(folder: Path, name: str) -> NodeKeys:
    """Make one SuperNode's key pair: NAME (private) and NAME.pub.

    Raises:
        FederationError: if a file exists already or the name is no plain file name.
    """
    if not name or name != Path(name).name or name.startswith((".", "-")):
        raise FederationError(f"a node's name must be a plain file name, got {name!r}")
    files = NodeKeys(folder / name, folder / f"{name}.pub")
    _require_absent(files.private, files.public)
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    folder.mkdir(parents=True, exist_ok=True)
    _write_new(files.private, private, 0o600)
    _write_new(files.public, public + f" {name}\n".encode(), 0o644)
    return files


def _sign_authority(
    name: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.Certificate:
    builder = _dated(days).subject_name(name).issuer_name(name).public_key(key.public_key())
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA384())
    )


def _sign_server(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    authority: x509.Name,
    authority_key: ec.EllipticCurvePrivateKey,
    names: Sequence[x509.GeneralName],
    days: int,
) -> x509.Certificate:
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = _dated(days).subject_name(subject).issuer_name(authority)
    return (
        builder.public_key(key.public_key())
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(purpose, critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(issuer, critical=False)
        .sign(authority_key, hashes.SHA384())
    )


def _dated(days: int) -> x509.CertificateBuilder:
    start = datetime.now(UTC) - _CLOCK_SKEW
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
    )


def _usage(*, key_cert_sign: bool = False, digital_signature: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.removeprefix("*.").split(".")
    plain = all(label and label.replace("-", "").isalnum() and label.isascii() for label in labels)
    if not plain or len(host) > 253:
        raise FederationError(f"a host must be a name or an IP address, got {host!r}")
    return x509.DNSName(host)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _require_absent(*paths: Path) -> None:
    for path in paths:
        if path.exists() or path.is_symlink():
            raise FederationError(
                f"{path} exists and is not overwritten; remove it or choose another folder"
            )


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Create a file with its final permissions from the first byte on."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise FederationError(f"{path} exists and is not overwritten") from None
    except OSError as error:
        raise FederationError(f"cannot write {path}: {error.strerror}") from None
    with os.fdopen(handle, "wb") as file:
        os.fchmod(handle, mode)
        file.write(content)
