"""Keys of a secure sum: derived anew whenever they are needed, so that a client stores none.

Everything comes from one secret of the client by HKDF-SHA256 (RFC 5869) with labels that name the
run, the sum, the client and the purpose. Pairs of clients agree on keys by X25519 (RFC 7748), what
one sends to another is sealed with ChaCha20-Poly1305 (RFC 8439), and masks are ChaCha20's stream.
All of it is the `cryptography` package's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedprune.errors import PrivacyError, ReportError
from fedprune.privacy.ledgers.chain import framed
from fedprune.privacy.ledgers.keys import SigningKey, signature_holds
from fedprune.privacy.mechanisms.aggregate import Vector
from fedprune.privacy.secure.secure_terms import SumTerms
from fedprune.privacy.secure.shamir import SHARE_BYTES, Stream

KEY_BYTES = 32
SIGNATURE_BYTES = 64
ADVERT_BYTES = 3 * KEY_BYTES + SIGNATURE_BYTES
TAG_BYTES = 16
SEALED_BYTES = 2 * SHARE_BYTES + TAG_BYTES

_DOMAIN = "fedprune secure sum 1"
_ONE_USE = bytes(12)  # nonce: every key seals one message only
_UNSIGNED = bytes(SIGNATURE_BYTES)

Signer = Callable[[bytes], bytes]


def derive(secret: bytes, *labels: str | int | bytes) -> bytes:
    """Derive 32 bytes for the purpose that the labels name: HKDF-SHA256."""
    info = framed((_DOMAIN, *labels))
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)


def secret_of(key: SigningKey) -> bytes:
    """A deployed client's secret: 32 bytes from its signing key's private half.

    Ed25519 is deterministic (RFC 8032), and nobody without the private key can make the signature
    of a text that was never signed for others; hashed, it is a secret that needs no storing.
    Receipts and announcements, all that the key signs for others, are never this text.
    """
    return derive(key.sign(framed((_DOMAIN, "secret"))), "secret")


@dataclass(frozen=True)
class Advert:
    """What a client announces at the start of a sum.

    Attributes:
        channel: X25519 public key under which neighbours send it shares.
        mask: X25519 public key from which pairwise masks come.
        commitment: to the seed of its own mask, so that a wrong reconstruction shows.
        signature: Ed25519, of all of it with run, sum and client; zeros where there is no key.
    """

    channel: bytes
    mask: bytes
    commitment: bytes
    signature: bytes = _UNSIGNED

    def to_bytes(self) -> bytes:
        """Write in ADVERT_BYTES."""
        return self.channel + self.mask + self.commitment + self.signature

    @staticmethod
    def from_bytes(raw: bytes) -> Advert:
        """Read what `to_bytes` wrote.

        Raises:
            ReportError: if it has another length.
        """
        if len(raw) != ADVERT_BYTES:
            raise ReportError(f"announced keys must have {ADVERT_BYTES} bytes, got {len(raw)}")
        cuts = [raw[start : start + KEY_BYTES] for start in range(0, 3 * KEY_BYTES, KEY_BYTES)]
        return Advert(cuts[0], cuts[1], cuts[2], raw[3 * KEY_BYTES :])

    def signed_text(self, run: str, name: str, client: int) -> bytes:
        """What the signature is of."""
        keys = (self.channel, self.mask, self.commitment)
        return framed((_DOMAIN, "keys", run, name, client, *keys))

    def check_signature(self, run: str, name: str, client: int, public_key: str) -> None:
        """Refuse keys that the client's signing key did not sign.

        Raises:
            ReportError: naming the client.
        """
        text = self.signed_text(run, name, client)
        if not signature_holds(public_key, text, self.signature.hex()):
            raise ReportError(
                f"the keys announced for client {client} in {name} are not signed by the key that "
                f"it is known by, {public_key[:12]}"
            )


class ClientSecrets:
    """All that one client needs to keep to itself in one sum."""

    def __init__(self, secret: bytes, run: str, name: str, client: int) -> None:
        """Derive everything from the client's secret of 32 bytes."""
        if len(secret) != KEY_BYTES:
            raise PrivacyError(f"a client's secret must have {KEY_BYTES} bytes, got {len(secret)}")
        self.client = client
        self._root = derive(secret, "sum", run, name, client)

    @cached_property
    def channel(self) -> X25519PrivateKey:
        """Private key that opens what neighbours sealed; it never leaves the client."""
        return X25519PrivateKey.from_private_bytes(derive(self._root, "channel key"))

    @cached_property
    def mask_key(self) -> bytes:
        """Private key of the pairwise masks: shared among neighbours, revealed if it is lost."""
        return derive(self._root, "mask key")

    @cached_property
    def mask(self) -> X25519PrivateKey:
        """The same, ready for use."""
        return X25519PrivateKey.from_private_bytes(self.mask_key)

    @cached_property
    def seed(self) -> bytes:
        """Seed of its own mask: shared among neighbours, revealed if its input is summed."""
        return derive(self._root, "self mask seed")

    def coefficients(self, purpose: str, terms: SumTerms) -> Stream:
        """A stream of uniform bytes for sharing one secret under these terms, and no others."""
        key = derive(self._root, "coefficients", purpose, terms.digest)
        return lambda count: stream(key, count)


def stream(key: bytes, count: int) -> bytes:
    """ChaCha20's key stream; every key is used for one stream only."""
    return Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(count))


def commitment_of(seed: bytes) -> bytes:
    """Commit to a uniform seed of 32 bytes."""
    return derive(seed, "commitment")


def self_mask(seed: bytes, terms: SumTerms) -> Vector:
    """Expand a client's own mask: [entries] unsigned."""
    key = derive(seed, "self mask", terms.digest)
    return np.frombuffer(stream(key, terms.vector_bytes), dtype=terms.dtype)


def pair_mask(
    own: X25519PrivateKey, client: int, other: int, public: bytes, terms: SumTerms
) -> Vector:
    """Expand what a client adds because of a neighbour, which adds the negative of the same.

    Args:
        own: the client's mask key.
        client: its number.
        other: the neighbour's number.
        public: the neighbour's announced mask key.
        terms: of the sum.

    Returns:
        [entries] unsigned: the lower number adds the stream, the higher one subtracts it.

    Raises:
        ReportError: if the neighbour's key is no usable one.
    """
    shared = _agree(own, public, other)
    key = derive(shared, "pair mask", terms.digest, min(client, other), max(client, other))
    expanded: Vector = np.frombuffer(stream(key, terms.vector_bytes), dtype=terms.dtype)
    return expanded if client < other else -expanded


def seal(
    own: X25519PrivateKey, sender: int, receiver: int, public: bytes, terms: SumTerms, text: bytes
) -> bytes:
    """Encrypt for one receiver, bound to sender, receiver and terms."""
    key, bound = _channel(own, sender, receiver, public, receiver, terms)
    return ChaCha20Poly1305(key).encrypt(_ONE_USE, text, bound)


def unseal(
    own: X25519PrivateKey, sender: int, receiver: int, public: bytes, terms: SumTerms, text: bytes
) -> bytes:
    """Decrypt what a sender sealed.

    Raises:
        ReportError: if it was changed, or meant for another client, sum or set of participants.
    """
    key, bound = _channel(own, sender, receiver, public, sender, terms)
    try:
        return ChaCha20Poly1305(key).decrypt(_ONE_USE, text, bound)
    except InvalidTag:
        raise ReportError(
            f"what client {sender} sent to client {receiver} in {terms.name} was changed on its "
            "way, or was made for another sum"
        ) from None


def _channel(
    own: X25519PrivateKey, sender: int, receiver: int, public: bytes, other: int, terms: SumTerms
) -> tuple[bytes, bytes]:
    """One key a direction, and the associated data."""
    shared = _agree(own, public, other)
    key = derive(shared, "channel", terms.digest, sender, receiver)
    return key, framed((_DOMAIN, "shares", terms.digest, sender, receiver))


def _agree(own: X25519PrivateKey, public: bytes, other: int) -> bytes:
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:  # a point of small order: the shared secret would be zero
        raise ReportError(f"the key announced for client {other} is no usable one") from None
