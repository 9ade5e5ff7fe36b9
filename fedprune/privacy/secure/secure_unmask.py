"""The server's end of a secure sum: it passes messages on, and takes the masks off the sum."""

from __future__ import annotations

from collections.abc import Mapping, Set

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedprune.errors import ReportError
from fedprune.privacy.mechanisms.aggregate import Vector
from fedprune.privacy.secure.secure_keys import (
    SEALED_BYTES,
    SIGNATURE_BYTES,
    Advert,
    commitment_of,
    pair_mask,
    self_mask,
)
from fedprune.privacy.secure.secure_terms import SumTerms, join_slots, split_slots
from fedprune.privacy.secure.shamir import SHARE_BYTES, combine


def adverts_for(terms: SumTerms, client: int, adverts: Mapping[int, bytes]) -> bytes:
    """Collect what a client's neighbours announced, its own included: k + 1 slots."""
    return b"".join(adverts[holder] for holder in terms.holders(client))


def sealed_for(terms: SumTerms, client: int, bundles: Mapping[int, bytes]) -> bytes:
    """Collect what a client's neighbours sealed for it; slots of those that shared nothing empty.

    Args:
        terms: of the sum.
        client: the receiver.
        bundles: what each sharer sent, all of one size.
    """

    def part(sender: int) -> bytes | None:
        if sender == client or sender not in bundles:
            return None
        start = terms.slot(sender, client) * SEALED_BYTES
        return bundles[sender][start : start + SEALED_BYTES]

    return join_slots((part(sender) for sender in terms.holders(client)), SEALED_BYTES)


def consents_for(terms: SumTerms, client: int, consents: Mapping[int, bytes]) -> bytes:
    """Collect the signatures of a client's holders; empty slots for those that gave none."""
    return join_slots((consents.get(h) for h in terms.holders(client)), SIGNATURE_BYTES)


def read_bundle(terms: SumTerms, bundle: bytes) -> bytes:
    """Check the size of what one client shared.

    Raises:
        ReportError: if it has another.
    """
    split_slots(bundle, SEALED_BYTES, terms.plan.holders, "a client's shares")
    return bundle


def read_revealed(terms: SumTerms, row: bytes) -> bytes:
    """Check the size of what one client revealed.

    Raises:
        ReportError: if it has another.
    """
    split_slots(row, SHARE_BYTES, terms.plan.holders, "revealed shares")
    return row


def read_masked(terms: SumTerms, raw: bytes) -> Vector:
    """Read one masked input: [entries] unsigned.

    Raises:
        ReportError: if it has another length.
    """
    if len(raw) != terms.vector_bytes:
        raise ReportError(f"a masked input must have {terms.vector_bytes} bytes, got {len(raw)}")
    return np.frombuffer(raw, dtype=terms.dtype)


def unmask(
    terms: SumTerms,
    adverts: Mapping[int, bytes],
    total: Vector,
    sharers: Set[int],
    survivors: Set[int],
    revealed: Mapping[int, bytes],
) -> Vector:
    """Take the masks off the sum of masked inputs.

    Args:
        terms: of the sum.
        adverts: what every participant announced.
        total: [entries] unsigned, the sum of the survivors' masked inputs.
        sharers: clients that shared their secrets.
        survivors: clients whose masked inputs are in `total`.
        revealed: what each client that still answered revealed.

    Returns:
        [entries] unsigned: the sum of the survivors' inputs.

    Raises:
        ReportError: if too few shares of a secret were revealed, or wrong ones.
    """
    result = total.copy()
    for client in sorted(survivors):
        seed = _recover(terms, client, revealed, survivors)
        if commitment_of(seed) != Advert.from_bytes(adverts[client]).commitment:
            raise ReportError(f"the shares of client {client}'s seed are not those it made")
        result -= self_mask(seed, terms)
    for client in sorted(sharers - survivors):
        secret = _recover(terms, client, revealed, survivors)
        key = X25519PrivateKey.from_private_bytes(secret)
        if key.public_key().public_bytes_raw() != Advert.from_bytes(adverts[client]).mask:
            raise ReportError(f"the shares of client {client}'s mask key are not those it made")
        for holder in terms.holders(client):
            if holder in survivors:
                public = Advert.from_bytes(adverts[holder]).mask
                result += pair_mask(key, client, holder, public, terms)
    return result


def _recover(
    terms: SumTerms, owner: int, revealed: Mapping[int, bytes], survivors: Set[int]
) -> bytes:
    """Put a secret together from the first shares of it, as many as it takes."""
    shares: dict[int, bytes] = {}
    for slot, holder in enumerate(terms.holders(owner)):
        own = holder == owner and owner not in survivors  # nobody reveals its own mask key
        if holder in revealed and not own:
            start = terms.slot(holder, owner) * SHARE_BYTES
            shares[slot + 1] = revealed[holder][start : start + SHARE_BYTES]
        if len(shares) == terms.plan.threshold:
            return combine(shares, terms.plan.threshold)
    raise ReportError(
        f"{len(shares)} clients revealed shares of client {owner}'s secret in {terms.name}, "
        f"{terms.plan.threshold} are needed"
    )
