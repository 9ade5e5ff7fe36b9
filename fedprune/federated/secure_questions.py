"""What the questions of a secure sum say, as both sides read them.

A sum named `report-3` is asked in five rounds: `report-3/keys`, `report-3/shares`, `report-3`
itself (the masked inputs, the only one that is charged), `report-3/consent` and `report-3/reveal`.
A client's ledger answers each of them once. Sets of clients travel as bitmaps over their numbers,
in hexadecimal, the same for everybody; what is for one client alone is the question's `own` part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

import numpy as np
import torch

from fedprune.config import Scalar
from fedprune.errors import FederationError, PrivacyError
from fedprune.federated.answering import check_layout
from fedprune.federated.messages import Question
from fedprune.federated.report_answers import selector
from fedprune.privacy.budgets.events import NO_CHARGE, REPLACEMENT, Event
from fedprune.privacy.ledgers.entry import Entry
from fedprune.privacy.mechanisms.aggregate import AggregateMechanism
from fedprune.privacy.secure.secure_terms import SumTerms

KEYS, SHARES, INPUT = "query.sum_keys", "query.sum_shares", "query.sum_input"
CONSENT, REVEAL = "query.sum_consent", "query.sum_reveal"

SUFFIXES: Mapping[str, str] = {
    KEYS: "/keys",
    SHARES: "/shares",
    INPUT: "",
    CONSENT: "/consent",
    REVEAL: "/reveal",
}
# What a client's ledger calls its answer at each stage.
SUM_KINDS: Mapping[str, str] = {
    KEYS: "secure-sum-keys",
    SHARES: "secure-sum-shares",
    INPUT: "aggregate-share",
    CONSENT: "secure-sum-consent",
    REVEAL: "secure-sum-unmask",
}
_MOST_CLIENTS = 2**20


def round_of(name: str, kind: str) -> str:
    """Name the round in which a stage of a sum is asked."""
    return name + SUFFIXES[kind]


def name_of(question: Question, kind: str) -> str:
    """Read the sum's name off a stage's round.

    Raises:
        FederationError: if the round is not one of that stage.
    """
    name = question.round.removesuffix(SUFFIXES[kind])
    if not name or round_of(name, kind) != question.round or "/" in name:
        raise FederationError(f"round {question.round!r} is not one of {kind}")
    return name


def clients_to_text(clients: Iterable[int]) -> str:
    """Write a set of client numbers as a bitmap."""
    numbers = np.fromiter(clients, dtype=np.int64)
    bits = np.zeros(int(numbers.max(initial=-1)) + 1, dtype=np.bool_)
    bits[numbers] = True
    return np.packbits(bits).tobytes().hex()


@lru_cache(maxsize=64)
def text_to_clients(text: str) -> tuple[int, ...]:
    """Read what `clients_to_text` wrote: rising numbers.

    Raises:
        FederationError: if it is no bitmap, or one of more than 2^20 clients.
    """
    try:
        packed = np.frombuffer(bytes.fromhex(text), dtype=np.uint8)
    except ValueError:
        raise FederationError("the server's clients are not hexadecimal digits") from None
    if 8 * len(packed) > _MOST_CLIENTS:
        raise FederationError(f"a secure sum has at most {_MOST_CLIENTS} clients")
    return tuple(np.flatnonzero(np.unpackbits(packed)).tolist())


def terms_settings(terms: SumTerms) -> dict[str, Scalar]:
    """Write terms as a question carries them; run and name are the question's own."""
    return {
        "participants": clients_to_text(terms.participants),
        "min_reports": terms.min_survivors,
        "colluding": terms.colluding,
        "entries": terms.entries,
        "modulus_bits": terms.modulus_bits,
    }


def terms_of(question: Question, kind: str) -> SumTerms:
    """Read a question's terms; nothing of them is trusted, all of it is checked.

    Raises:
        FedpruneError: if something is missing, malformed or not allowed.
    """
    return _terms(
        question.run,
        name_of(question, kind),
        question.text("participants"),
        question.whole("min_reports", 2),
        question.whole("colluding", 0),
        question.whole("entries", 1),
        question.whole("modulus_bits", 1),
    )


@lru_cache(maxsize=16)
def _terms(
    run: str, name: str, participants: str, least: int, colluding: int, entries: int, bits: int
) -> SumTerms:
    return SumTerms(run, name, text_to_clients(participants), least, colluding, entries, bits)


def clients_of(question: Question, setting: str) -> frozenset[int]:
    """Read a set of clients."""
    return frozenset(text_to_clients(question.text(setting)))


def own_bytes(question: Question, client: int, part: str) -> bytes:
    """Read what the server sent to one client alone.

    Raises:
        FederationError: if it sent none.
    """
    value = question.own.get(client, {}).get(part)
    if not isinstance(value, bytes):
        raise FederationError(f"the server sent client {client} no {part}")
    return value


def mechanism_settings(mechanism: AggregateMechanism) -> dict[str, Scalar]:
    """Write a mechanism as the question for masked inputs carries it."""
    return {"epsilon": mechanism.epsilon, "delta": mechanism.delta}


def mechanism_of(question: Question) -> AggregateMechanism:
    """Make the mechanism that was asked for; how many units a mask keeps follows from the task.

    Raises:
        FedpruneError: if its parameters or the layout are not allowed here.
    """
    check_layout(question)
    _, layout = question.architecture.build()
    return AggregateMechanism(
        question.number("epsilon"),
        question.number("delta"),
        len(layout),
        question.whole("min_reports", 2),
        _kept(question, len(layout)),
        question.whole("colluding", 0),
    )


def _kept(question: Question, num_units: int) -> int | None:
    """How many units every client keeps, whatever its scores; None where all are kept."""
    kept = int(selector(question)(torch.zeros(1, num_units)).sum())
    return kept if 0 < kept < num_units else None


def check_terms(terms: SumTerms, mechanism: AggregateMechanism) -> None:
    """Refuse a sum that is not the one the mechanism's noise was made for.

    Raises:
        PrivacyError: naming both.
    """
    found = (terms.min_survivors, terms.colluding, terms.entries, terms.modulus_bits)
    wanted = (
        mechanism.min_reports,
        mechanism.colluding,
        mechanism.num_units,
        mechanism.modulus_bits,
    )
    if found != wanted:
        raise PrivacyError(
            f"{terms.name} sums (min_reports, colluding, entries, modulus_bits) = {found}, the "
            f"noise is made for {wanted}"
        )


def sum_entry(kind: str, question: Question, client: int, event: Event | None = None) -> Entry:
    """The ledger row that a client reserves for its answer at a stage of a sum.

    Args:
        kind: of the stage.
        question: what was asked.
        client: who is asked.
        event: of the mechanism that a masked input is made with, if it is known already.
    """
    told, digest = SUM_KINDS[kind], question.digest_for(client)
    if kind != INPUT:
        return Entry(str(client), question.run, question.round, told, digest, NO_CHARGE)
    return Entry.charged(
        client=str(client),
        run=question.run,
        round=question.round,
        kind=told,
        question=digest,
        relation=REPLACEMENT,
        event=event or mechanism_of(question).event,
    )
