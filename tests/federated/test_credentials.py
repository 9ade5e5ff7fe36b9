from __future__ import annotations

import socket
import ssl
import stat
import subprocess
import threading
from datetime import UTC, datetime
from pathlib import Path
from shutil import which

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedprune.errors import FederationError
from fedprune.federated.credentials import Certificates, make_certificates, make_node_keys


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"), ["link.example.org", "10.1.2.3"])


def handshake(server: Certificates, ca: Path, name: str) -> None:
    """Let Python's TLS, which shares no code with the maker, judge the certificate."""
    ours, theirs = socket.socketpair()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(server.certificate, server.key)
    asking = ssl.create_default_context(cafile=str(ca))
    asking.verify_flags |= ssl.VERIFY_X509_STRICT

    def serve() -> None:
        try:
            with serving.wrap_socket(theirs, server_side=True) as channel:
                channel.recv(1)
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with asking.wrap_socket(ours, server_hostname=name) as channel:
            channel.send(b"x")
    finally:
        ours.close()
        thread.join()


@pytest.mark.parametrize("name", ["link.example.org", "10.1.2.3", "127.0.0.1", "localhost"])
def test_a_client_that_knows_the_authority_trusts_the_named_hosts_and_loopback(
    made: Certificates, name: str
) -> None:
    handshake(made, made.ca, name)


@pytest.mark.parametrize("name", ["other.example.org", "10.1.2.4", "example.org"])
def test_another_host_is_not_trusted(made: Certificates, name: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for|mismatch"):
        handshake(made, made.ca, name)


def test_another_authority_does_not_vouch(made: Certificates, tmp_path: Path) -> None:
    other = make_certificates(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(made, other.ca, "localhost")


def test_the_servers_certificate_cannot_sign_others_and_the_authoritys_key_is_not_kept(
    made: Certificates,
) -> None:
    certificate = x509.load_pem_x509_certificate(made.certificate.read_bytes())
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    keys = [path for path in made.ca.parent.iterdir() if b"PRIVATE KEY" in path.read_bytes()]
    assert keys == [made.key]


def test_certificates_are_valid_now_and_for_as_long_as_was_asked(tmp_path: Path) -> None:
    made = make_certificates(tmp_path, days=30)
    for path in (made.ca, made.certificate):
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        left = certificate.not_valid_after_utc - datetime.now(UTC)
        assert certificate.not_valid_before_utc < datetime.now(UTC)
        assert 29 < left.total_seconds() / 86400 <= 30


def test_private_keys_are_their_owners_only(made: Certificates, tmp_path: Path) -> None:
    keys = make_node_keys(tmp_path, "north")
    for path in (made.key, keys.private):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    made, keys = make_certificates(tmp_path), make_node_keys(tmp_path, "north")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    keys.private.unlink()  # one of a pair is enough to refuse
    made.ca.unlink()
    with pytest.raises(FederationError, match=r"north.pub exists and is not overwritten"):
        make_node_keys(tmp_path, "north")
    with pytest.raises(FederationError, match=r"superlink.pem exists and is not overwritten"):
        make_certificates(tmp_path)
    assert all(path.read_bytes() == before[path] for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    "host", ["", "a b", "http://x", "x:9092", "ünïcode.org", "a..b", "x" * 254]
)
def test_a_host_that_is_none_is_named(tmp_path: Path, host: str) -> None:
    with pytest.raises(FederationError, match="a host must be a name or an IP address"):
        make_certificates(tmp_path / "tls", [host])
    assert not (tmp_path / "tls").exists()


@pytest.mark.parametrize("days", [0, -1, 3651])
def test_an_absurd_validity_is_refused(tmp_path: Path, days: int) -> None:
    with pytest.raises(FederationError, match=f"got {days}"):
        make_certificates(tmp_path, days=days)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "-rf", "a/../b"])
def test_a_node_cannot_be_named_like_another_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(FederationError, match="plain file name"):
        make_node_keys(tmp_path, name)


def test_node_keys_are_a_pair_of_the_kind_that_flower_reads(tmp_path: Path) -> None:
    from flwr.cli.supernode.register import try_load_public_key

    keys = make_node_keys(tmp_path, "north")
    private = serialization.load_ssh_private_key(keys.private.read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(private.curve, ec.SECP384R1)
    assert try_load_public_key(keys.public)
    public = serialization.load_ssh_public_key(keys.public.read_bytes())
    assert public == private.public_key()


@pytest.mark.skipif(which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_ssh_keygen_reads_the_same_public_key_from_the_private_one(tmp_path: Path) -> None:
    keys = make_node_keys(tmp_path, "north")
    shown = subprocess.run(
        ["ssh-keygen", "-y", "-f", str(keys.private)], capture_output=True, text=True, check=True
    )
    assert shown.stdout.split()[:2] == keys.public.read_text().split()[:2]
