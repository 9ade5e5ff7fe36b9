"""Key files: private, whole or absent, one key however many processes ask for it."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from fedprune.errors import LedgerError
from fedprune.privacy import SigningKey, key_path
from fedprune.privacy.ledgers.keys import signature_holds

# RFC 8032, section 7.1, test 2.
SEED = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"
PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
SIGNATURE = (
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def pem(key: object, password: bytes | None = None) -> bytes:
    hidden = serialization.NoEncryption()
    if password is not None:
        hidden = serialization.BestAvailableEncryption(password)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden)


def test_a_key_is_made_once_and_only_its_owner_may_use_the_file(tmp_path: Path) -> None:
    path = key_path(tmp_path / "ledger.sqlite")
    assert path.name == "ledger.sqlite.key"
    first = SigningKey.open(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.open(path).public == first.public
    assert SigningKey.open(tmp_path / "other.key").public != first.public
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ledger.sqlite.key", "other.key"]
    assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")


def test_signatures_are_those_of_the_standard(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(pem(ed25519.Ed25519PrivateKey.from_private_bytes(bytes.fromhex(SEED))))
    path.chmod(0o600)
    key = SigningKey.open(path)
    assert (key.public, key.sign(b"\x72").hex()) == (PUBLIC, SIGNATURE)
    assert signature_holds(PUBLIC, b"\x72", SIGNATURE)
    assert not signature_holds(PUBLIC, b"\x73", SIGNATURE)
    assert not signature_holds("00" * 31, b"\x72", SIGNATURE)
    assert not signature_holds(PUBLIC, b"\x72", SIGNATURE[:-2])
    assert SEED not in repr(key)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o777])
def test_a_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    SigningKey.open(path)
    path.chmod(mode)
    with pytest.raises(LedgerError, match=rf"mode {mode:04o}, so others .*chmod 600"):
        SigningKey.open(path)


ELSE = {
    "empty": b"",
    "text": b"not a key at all",
    "cut off": pem(ed25519.Ed25519PrivateKey.generate())[:60],
    "too long": b"x" * 20_000,
    "with a password": pem(ed25519.Ed25519PrivateKey.generate(), b"secret"),
    "of another kind": pem(ec.generate_private_key(ec.SECP384R1())),
}


@pytest.mark.parametrize("content", ELSE.values(), ids=ELSE.keys())
def test_a_file_without_an_ed25519_key_is_refused_and_left_as_it_is(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(LedgerError, match="the key file"):
        SigningKey.open(path)
    assert path.read_bytes() == content


def test_places_where_no_file_can_be_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot use the key file"):
        SigningKey.open(tmp_path / "missing" / "key")
    with pytest.raises(LedgerError, match="cannot use the key file"):
        SigningKey.open(tmp_path)


def test_processes_that_begin_at_once_get_one_key(tmp_path: Path) -> None:
    script = (
        "import sys; from fedprune.privacy import SigningKey; print('ready', flush=True); "
        "sys.stdin.readline(); print(SigningKey.open(sys.argv[1]).public)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "key")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    found = {process.communicate()[0].strip() for process in processes}
    assert found == {SigningKey.open(tmp_path / "key").public}
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
