"""A client's signing key: one Ed25519 key pair in a file that only its owner can read.

The key signs receipts (see `fedprune.privacy.ledgers.receipts`). It says nothing about who
somebody is: that a key belongs to a certain client is known from where the server first met it,
or from a list that was agreed on outside fedprune.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from fedprune.errors import LedgerError

_MOST_BYTES = 10_000  # a PEM file of an Ed25519 key has about 120


class SigningKey:
    """An Ed25519 private key (RFC 8032): the same bytes always get the same signature."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        """Wrap a key; use `SigningKey.open`."""
        self._private = private

    @classmethod
    def open(cls, path: str | Path) -> SigningKey:
        """Load the key in a file, or make the file with a new key where there is none.

        The file is PEM (PKCS #8, not encrypted), mode 0600. It appears whole and flushed to disk
        or not at all; of several processes that make it at once all get the same key.

        Raises:
            LedgerError: if others may read the file, if it holds no Ed25519 key, or if it cannot
                be read or written.
        """
        path = Path(path)
        try:
            if not path.exists():
                _create(path)
            return cls(_load(path))
        except OSError as error:
            raise LedgerError(f"cannot use the key file {path}: {error.strerror}") from None

    @property
    def public(self) -> str:
        """The public key: 32 bytes as 64 hexadecimal digits."""
        key = self._private.public_key()
        return key.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()

    def sign(self, message: bytes) -> bytes:
        """Sign a message: 64 bytes."""
        return self._private.sign(message)

    def __repr__(self) -> str:
        """Name the public half only."""
        return f"SigningKey(public={self.public!r})"


def signature_holds(public_key: str, message: bytes, signature: str) -> bool:
    """Whether a signature (128 hexadecimal digits) of a message is that of a public key."""
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        key.verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def key_path(ledger_path: str | Path) -> Path:
    """Where a ledger's key lies unless its owner named another place: beside it, as NAME.key."""
    path = Path(ledger_path)
    return path.with_name(f"{path.name}.key")


def _load(path: Path) -> Ed25519PrivateKey:
    with open(path, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise LedgerError(f"the key file {path} is not a file")
        if mode & 0o077:
            raise LedgerError(
                f"the key file {path} has mode {stat.S_IMODE(mode):04o}, so others than its owner "
                f"may use it; it must be 0600 (chmod 600 {path})"
            )
        content = file.read(_MOST_BYTES + 1)
    try:
        if len(content) > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES} bytes")
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LedgerError(f"the key file {path} holds no readable key: {reason}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise LedgerError(f"the key file {path} holds a {type(key).__name__}, not an Ed25519 key")
    return key


def _create(path: Path) -> None:
    """Write a new key under a temporary name, then link it to its own, unless one is there."""
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(handle, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another process was faster: its key is the key
            os.link(temporary, path)
    finally:
        os.unlink(temporary)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
