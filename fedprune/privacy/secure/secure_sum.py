"""Secure aggregation: a server learns the sum of its clients' vectors and nothing else.

The protocol of K. Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving
machine learning" (CCS), on the sparse graph of Bell et al. 2020 (`secure_graph`). Client i adds to
its vector x_i its own mask PRG(b_i) and, for each neighbour j, a pairwise mask that j subtracts:

    y_i = x_i + PRG(b_i) + sum_{j > i} PRG(s_ij) - sum_{j < i} PRG(s_ij)    (modulo 2^m).

Stages, each a function from bytes to bytes:

1. `advertise`: each client announces two public keys and a commitment to b_i.
2. `share_secrets`: each shares b_i and the private key behind its s_ij among its neighbours, sealed
   for each of them; the server passes these on.
3. `mask_input`: each sends y_i. Who answers is a survivor.
4. `consent` (where clients have signing keys): each signs the set of survivors.
5. `reveal`: for each neighbour, a client reveals its share of b_j if j is a survivor, or of j's
   mask key if j was lost; never both. `secure_unmask` takes the masks off.

The lost may be lost at any stage; too few of them left at any stage ends the sum without a result.

What it guarantees, under the assumptions of the primitives:

- Against an honest-but-curious server together with up to `colluding` of the clients: it learns
  the sum over the survivors, at least `min_survivors` of them, and so at least the sum of
  `min_survivors - colluding` inputs that it does not know. With up to 100 participants without
  exception, with more except with the probability that `secure_graph` bounds.
- A server that tells clients different things still never gets both of a client's secrets
  (`secure_graph`, 2), and every client counts the survivors itself. An answer is given once: a
  client's ledger keeps it and refuses the stage for anything else, above all a second `reveal`
  with other survivors. The caller must see to that; these functions keep no state.
- A server that forges keys or invents clients is stopped by a `roster`: public signing keys that
  operators exchanged outside fedprune. Then participants must be in it, announced keys must bear
  their signatures, and `reveal` needs the consent of a threshold of the client's holders to the
  very same survivors. With up to 100 participants (a complete graph) that is Bonawitz et al.'s
  protocol against active servers (their Section 6.2, t > (n + c) / 2): the server learns sums over
  at least `min_survivors` clients.

What it does not: without a roster, an active server can invent all of a client's neighbours and
learn its input (which still bears its own share of the noise, and no more). With more than 100
participants an active server can choose names until colluding clients surround a victim, roster
or not; only an honest-but-curious one is claimed for. Any client can spoil a sum, by a wrong input
or wrong shares: secure aggregation hides inputs, it does not check them, and what is lost then is
the round. A client whose ledger was rolled back can be asked twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

import numpy as np
from numpy.typing import ArrayLike

from fedprune.errors import ReportError
from fedprune.privacy.ledgers.chain import framed
from fedprune.privacy.ledgers.keys import signature_holds
from fedprune.privacy.mechanisms.aggregate import Vector
from fedprune.privacy.secure.secure_keys import (
    ADVERT_BYTES,
    SEALED_BYTES,
    SIGNATURE_BYTES,
    Advert,
    ClientSecrets,
    Signer,
    commitment_of,
    pair_mask,
    seal,
    self_mask,
    unseal,
)
from fedprune.privacy.secure.secure_terms import SumTerms, join_slots, split_slots
from fedprune.privacy.secure.shamir import SHARE_BYTES, Sharing

Roster = Mapping[int, str]  # public signing key of every client that may take part

_SEED, _MASK_KEY = "self mask seed", "mask key"


def advertise(secrets: ClientSecrets, run: str, name: str, signer: Signer | None = None) -> bytes:
    """Announce a client's public keys: ADVERT_BYTES."""
    advert = Advert(
        secrets.channel.public_key().public_bytes_raw(),
        secrets.mask.public_key().public_bytes_raw(),
        commitment_of(secrets.seed),
    )
    if signer is None:
        return advert.to_bytes()
    signature = signer(advert.signed_text(run, name, secrets.client))
    return Advert(advert.channel, advert.mask, advert.commitment, signature).to_bytes()


def neighbours(
    terms: SumTerms, client: int, adverts: bytes, roster: Roster | None = None
) -> dict[int, Advert]:
    """Read what the neighbours announced: k + 1 slots of ADVERT_BYTES, the client's own included.

    Raises:
        ReportError: if the row has another length, two neighbours have one key, or with a roster
            a participant is not in it or a signature does not hold.
    """
    holders = terms.holders(client)
    rows = split_slots(adverts, ADVERT_BYTES, len(holders), "the neighbours' keys")
    found = {holder: Advert.from_bytes(row) for holder, row in zip(holders, rows, strict=True)}
    if len({key for advert in found.values() for key in (advert.channel, advert.mask)}) < 2 * len(
        found
    ):
        raise ReportError(f"two clients announced the same key in {terms.name}")
    if roster is not None:
        strangers = [number for number in terms.participants if number not in roster]
        if strangers:
            raise ReportError(f"client {strangers[0]} of {terms.name} is not in this node's roster")
        for holder, advert in found.items():
            advert.check_signature(terms.run, terms.name, holder, roster[holder])
    return found


def share_secrets(terms: SumTerms, secrets: ClientSecrets, others: Mapping[int, Advert]) -> bytes:
    """Share a client's two secrets: k + 1 slots of SEALED_BYTES, its own slot empty.

    Args:
        terms: of the sum.
        secrets: the client's.
        others: what `neighbours` read.
    """
    holders = terms.holders(secrets.client)
    seed = _sharing(terms, secrets, _SEED)
    key = _sharing(terms, secrets, _MASK_KEY)
    return join_slots(
        (
            None
            if holder == secrets.client
            else seal(
                secrets.channel,
                secrets.client,
                holder,
                others[holder].channel,
                terms,
                seed.at(slot + 1) + key.at(slot + 1),
            )
            for slot, holder in enumerate(holders)
        ),
        SEALED_BYTES,
    )


def mask_of(
    terms: SumTerms, secrets: ClientSecrets, others: Mapping[int, Advert], sharers: Set[int]
) -> Vector:
    """Add up a client's masks, its own and those with each neighbour that shared its secrets.

    Returns:
        [entries] unsigned; it says nothing about any data.

    Raises:
        ReportError: if the sharers are too few, unknown, or without this client.
    """
    terms.check_members(sharers, "the clients that shared secrets")
    client = secrets.client
    _check_among(terms, client, sharers, "that shared secrets")
    total = self_mask(secrets.seed, terms).copy()
    for holder, advert in others.items():
        if holder != client and holder in sharers:
            total += pair_mask(secrets.mask, client, holder, advert.mask, terms)
    return total


def mask_input(terms: SumTerms, mask: Vector, vector: ArrayLike) -> bytes:
    """Hide a client's vector under its masks: what is sent.

    Raises:
        ReportError: if the vector has another shape or type than the terms say.
    """
    array = np.asarray(vector)
    if array.shape != (terms.entries,) or array.dtype != terms.dtype:
        raise ReportError(
            f"an input must be [{terms.entries}] {terms.dtype}, got {array.shape} {array.dtype}"
        )
    return bytes((array + mask).tobytes())


def consent_text(terms: SumTerms, client: int, sharers: Set[int], survivors: Set[int]) -> bytes:
    """What a client signs before anything is revealed."""
    sets = (" ".join(map(str, sorted(clients))) for clients in (sharers, survivors))
    return framed(("fedprune secure sum 1", "consent", terms.digest, client, *sets))


def consent(
    terms: SumTerms, client: int, sharers: Set[int], survivors: Set[int], signer: Signer
) -> bytes:
    """Agree to a set of survivors: a signature.

    Raises:
        ReportError: if the sets are not ones that a sum may be revealed for.
    """
    check_survivors(terms, client, sharers, survivors)
    return signer(consent_text(terms, client, sharers, survivors))


def reveal(
    terms: SumTerms,
    secrets: ClientSecrets,
    others: Mapping[int, Advert],
    sealed: bytes,
    sharers: Set[int],
    survivors: Set[int],
) -> bytes:
    """Reveal one share a neighbour: k + 1 slots of SHARE_BYTES.

    A survivor's slot holds a share of its seed, a lost sharer's one of its mask key; the slots of
    clients that never shared are empty, and so is the client's own if it is not a survivor.

    Args:
        terms: of the sum.
        secrets: the client's.
        others: what `neighbours` read.
        sealed: k + 1 slots of SEALED_BYTES: what each neighbour sealed for this client.
        sharers: clients that shared their secrets.
        survivors: clients whose inputs are summed.

    Raises:
        ReportError: if the sets are not allowed, or a neighbour's message was changed or is not
            of this sum.
    """
    client = secrets.client
    check_survivors(terms, client, sharers, survivors)
    holders = terms.holders(client)
    rows = split_slots(sealed, SEALED_BYTES, len(holders), "the neighbours' shares")

    def slot(number: int, holder: int, row: bytes) -> bytes | None:
        if holder == client:
            own = _sharing(terms, secrets, _SEED)
            return own.at(number + 1) if client in survivors else None
        if holder not in sharers:
            return None
        text = unseal(secrets.channel, holder, client, others[holder].channel, terms, row)
        return text[:SHARE_BYTES] if holder in survivors else text[SHARE_BYTES:]

    parts = [slot(i, h, row) for i, (h, row) in enumerate(zip(holders, rows, strict=True))]
    return join_slots(parts, SHARE_BYTES)


def check_survivors(terms: SumTerms, client: int, sharers: Set[int], survivors: Set[int]) -> None:
    """Refuse survivors for which a client must not reveal anything.

    Raises:
        ReportError: if they are too few, unknown or never shared, or too few of this client's own
            holders are among them.
    """
    terms.check_members(sharers, "the clients that shared secrets")
    terms.check_members(survivors, "the survivors")
    if not survivors <= sharers:
        stranger = min(survivors - sharers)
        raise ReportError(f"client {stranger} is a survivor of {terms.name} but shared no secrets")
    if client not in sharers:
        raise ReportError(f"client {client} shared no secrets in {terms.name}")
    _check_holders(terms, client, survivors, "that survived")


def check_consents(
    terms: SumTerms,
    client: int,
    sharers: Set[int],
    survivors: Set[int],
    consents: bytes,
    roster: Roster,
) -> None:
    """Require that enough of a client's holders agreed to the very same survivors.

    Args:
        terms: of the sum.
        client: who asks; its own consent counts.
        sharers: clients that shared their secrets.
        survivors: clients whose inputs are to be summed.
        consents: k + 1 slots of SIGNATURE_BYTES, empty where there is none.
        roster: public signing keys.

    Raises:
        ReportError: if fewer than the threshold's signatures hold.
    """
    holders = terms.holders(client)
    rows = split_slots(consents, SIGNATURE_BYTES, len(holders), "the neighbours' consents")
    agreed = sum(
        holder == client
        or signature_holds(
            roster[holder], consent_text(terms, holder, sharers, survivors), row.hex()
        )
        for holder, row in zip(holders, rows, strict=True)
    )
    if agreed < terms.plan.threshold:
        raise ReportError(
            f"{agreed} of client {client}'s holders agreed to these survivors of {terms.name}, "
            f"{terms.plan.threshold} must"
        )


def _sharing(terms: SumTerms, secrets: ClientSecrets, which: str) -> Sharing:
    secret = secrets.seed if which == _SEED else secrets.mask_key
    return Sharing(secret, terms.plan.threshold, secrets.coefficients(which, terms))


def _check_among(terms: SumTerms, client: int, clients: Set[int], which: str) -> None:
    if client not in clients:
        raise ReportError(f"client {client} is not among those {which} in {terms.name}")
    _check_holders(terms, client, clients, which)


def _check_holders(terms: SumTerms, client: int, clients: Set[int], which: str) -> None:
    left = sum(holder in clients for holder in terms.holders(client))
    if left < terms.plan.threshold:
        raise ReportError(
            f"client {client} has {left} holders {which} in {terms.name}, "
            f"{terms.plan.threshold} are needed"
        )
