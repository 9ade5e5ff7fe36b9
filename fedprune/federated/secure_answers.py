"""A client's answers at the stages of a secure sum (`fedprune.privacy.secure.secure_sum`).

A client keeps nothing between stages: its secrets are derived anew each time, and everything else
comes with the question. What makes that safe is its ledger, which gives each round one answer: the
same question gets the same bytes, another one in the same round is refused, above all a second
`reveal` with other survivors. Only the masked input is charged; it alone depends on data.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fedprune.config import Scalar
from fedprune.errors import FederationError, FedpruneError, LedgerError, PrivacyError
from fedprune.federated.answering import (
    Answerer,
    Outcome,
    check_scorable,
    receipt_line,
    refusal,
)
from fedprune.federated.messages import Question, answer_content
from fedprune.federated.report_answers import selector
from fedprune.federated.secure_questions import (
    CONSENT,
    INPUT,
    KEYS,
    REVEAL,
    SHARES,
    check_terms,
    clients_of,
    mechanism_of,
    name_of,
    own_bytes,
    sum_entry,
    terms_of,
)
from fedprune.federated.station import Station
from fedprune.privacy import Entry, Granted, Memoised
from fedprune.privacy.ledgers.chain import STORED
from fedprune.privacy.mechanisms.aggregate import AggregateMechanism, Vector
from fedprune.privacy.secure import secure_sum
from fedprune.privacy.secure.roster import read_roster
from fedprune.privacy.secure.secure_keys import Advert, ClientSecrets, secret_of
from fedprune.privacy.secure.secure_terms import SumTerms

_LOG = logging.getLogger(__name__)

T = TypeVar("T")


def answer_sum_keys(station: Station, question: Question, clients: Sequence[int]) -> list[Outcome]:
    """Announce each client's keys for one sum."""
    name = name_of(question, KEYS)
    signer = None if station.signing_key is None else station.signing_key.sign

    def announce(client: int) -> bytes:
        secrets = _secrets(station, question, name, client)
        return secure_sum.advertise(secrets, question.run, name, signer)

    return _answer_once(station, question, KEYS, _each(clients, announce))


def answer_sum_shares(
    station: Station, question: Question, clients: Sequence[int]
) -> list[Outcome]:
    """Share each client's secrets among its neighbours."""
    terms, roster = _terms(station, question, SHARES), _roster(station)

    def share(client: int) -> bytes:
        others = _neighbours(question, terms, roster, client)
        return secure_sum.share_secrets(
            terms, _secrets(station, question, terms.name, client), others
        )

    return _answer_once(station, question, SHARES, _each(clients, share))


def answer_sum_input(station: Station, question: Question, clients: Sequence[int]) -> list[Outcome]:
    """Send each client's mask with its share of the noise, hidden in the sum.

    The masks of the sum, which know nothing of the data, come first; then the reservation, and
    only then the data. A deployed client whose scores fail still spends and answers, with a mask
    that says nothing: an error would be an answer about its data that no budget covers.
    """
    mechanism, terms = mechanism_of(question), _terms(station, question, INPUT)
    check_terms(terms, mechanism)
    selector(question)
    check_scorable(station, question, question.text("criterion"))
    hidden = _each(clients, _hiding(station, question, terms))
    entries = {
        client: sum_entry(INPUT, question, client, mechanism.event)
        for client, mask in hidden.items()
        if not isinstance(mask, FedpruneError)
    }
    answers = dict(zip(entries, station.ledger.reserve_many(list(entries.values())), strict=True))
    todo = [client for client, answer in answers.items() if isinstance(answer, Granted)]
    if todo:
        vectors = _vectors(station, question, todo, mechanism)
        sent = {
            client: secure_sum.mask_input(terms, _value(hidden[client]), vector)
            for client, vector in zip(todo, vectors, strict=True)
        }
        station.ledger.store_many([(entries[client], sent[client]) for client in todo])
        answers.update({client: Memoised(report) for client, report in sent.items()})
    return [
        _input_answer(station, question, entries[client], answers[client])
        if client in answers
        else refusal(mask)
        for client, mask in hidden.items()
    ]


def answer_sum_consent(
    station: Station, question: Question, clients: Sequence[int]
) -> list[Outcome]:
    """Sign the survivors, once, before anything is revealed: for clients with signing keys."""
    terms = _terms(station, question, CONSENT)
    sharers, survivors = clients_of(question, "sharers"), clients_of(question, "survivors")
    key = station.signing_key
    if key is None:
        raise FederationError("only a client with a signing key can consent to survivors")

    def agree(client: int) -> bytes:
        return secure_sum.consent(terms, client, sharers, survivors, key.sign)

    return _answer_once(station, question, CONSENT, _each(clients, agree))


def answer_sum_reveal(
    station: Station, question: Question, clients: Sequence[int]
) -> list[Outcome]:
    """Reveal each client's shares: of survivors' own masks, and of lost clients' keys."""
    terms, roster = _terms(station, question, REVEAL), _roster(station)
    sharers, survivors = clients_of(question, "sharers"), clients_of(question, "survivors")

    def reveal(client: int) -> bytes:
        others = _neighbours(question, terms, roster, client)
        if roster is not None:
            consents = own_bytes(question, client, "consents")
            secure_sum.check_consents(terms, client, sharers, survivors, consents, roster)
        secrets = _secrets(station, question, terms.name, client)
        sealed = own_bytes(question, client, "sealed")
        return secure_sum.reveal(terms, secrets, others, sealed, sharers, survivors)

    return _answer_once(station, question, REVEAL, _each(clients, reveal))


SUM_ANSWERERS: Mapping[str, Answerer] = {
    KEYS: answer_sum_keys,
    SHARES: answer_sum_shares,
    INPUT: answer_sum_input,
    CONSENT: answer_sum_consent,
    REVEAL: answer_sum_reveal,
}


# Parts of the answers.


def _each(clients: Sequence[int], make: Callable[[int], T]) -> dict[int, T | FedpruneError]:
    """Make something for every client; one client's refusal is not another's."""

    def attempt(client: int) -> T | FedpruneError:
        try:
            return make(client)
        except FedpruneError as error:
            return error

    return {client: attempt(client) for client in clients}


def _answer_once(
    station: Station,
    question: Question,
    kind: str,
    made: Mapping[int, bytes | FedpruneError],
) -> list[Outcome]:
    """Give what was made, if this round was not answered before or with the very same.

    Nothing that was made depends on data, so it may be made before the ledger is asked: a question
    that is refused leaves no trace. It follows from the client's secret and the question alone, so
    the ledger keeps its SHA-256 and not the bytes.
    """
    ready = {client: raw for client, raw in made.items() if isinstance(raw, bytes)}
    hashes = {client: hashlib.sha256(raw).digest() for client, raw in ready.items()}
    entries = {client: sum_entry(kind, question, client) for client in ready}
    answers = dict(zip(entries, station.ledger.reserve_many(list(entries.values())), strict=True))
    new = [client for client, answer in answers.items() if isinstance(answer, Granted)]
    if new:
        station.ledger.store_many([(entries[client], hashes[client]) for client in new])

    def outcome(client: int) -> Outcome:
        answer = answers.get(client, made[client])
        if isinstance(answer, Granted) or answer == Memoised(hashes.get(client, b"")):
            return answer_content(client, {"report": ready[client]})
        if isinstance(answer, Memoised):
            return LedgerError(
                f"client {client} answered round {question.round} with other bytes than it would "
                "give now: its key is another, or its ledger was exchanged"
            )
        return refusal(answer)

    return [outcome(client) for client in made]


def _input_answer(station: Station, question: Question, entry: Entry, answer: object) -> Outcome:
    if not isinstance(answer, Memoised):
        return refusal(answer)
    fields: dict[str, Scalar | bytes] = {
        "report": answer.report,
        "epsilon": question.number("epsilon"),
        "delta": question.number("delta"),
        "fingerprint": question.text("fingerprint"),
        "receipt": receipt_line(station, replace(entry, stage=STORED, report=answer.report)),
    }
    return answer_content(int(entry.client), fields)


def _terms(station: Station, question: Question, kind: str) -> SumTerms:
    """Read a sum's terms; a deployed client's operator says how many may collude at the least."""
    terms = terms_of(question, kind)
    least = 0 if station.node is None else station.node.least_colluding
    if terms.colluding < least:
        raise PrivacyError(
            f"{terms.name} counts on {terms.colluding} colluding clients, this node's "
            f"least-colluding is {least}; nothing was spent"
        )
    return terms


def _hiding(station: Station, question: Question, terms: SumTerms) -> Callable[[int], Vector]:
    """How a client's masks of the sum are made.

    In a simulation alone a question may ask for inputs without them: the server adds up the very
    same numbers without the cost of the protocol.
    """
    if question.settings.get("masked") is not True:
        station.simulation_only("to send its vector without the masks of a secure sum")
        return lambda _: np.zeros(terms.entries, dtype=terms.dtype)
    roster, sharers = _roster(station), clients_of(question, "sharers")

    def hide(client: int) -> Vector:
        others = _neighbours(question, terms, roster, client)
        secrets = _secrets(station, question, terms.name, client)
        return secure_sum.mask_of(terms, secrets, others, sharers)

    return hide


def _vectors(
    station: Station, question: Question, clients: Sequence[int], mechanism: AggregateMechanism
) -> Vector:
    """Score, select and add noise: [len(clients), num_units] unsigned."""
    masks = _masks_or_nothing(station, question, clients, mechanism)
    sources = [station.randomness(question, "aggregate", question.round, c) for c in clients]
    return mechanism.randomize_many(masks, sources)


def _masks_or_nothing(
    station: Station, question: Question, clients: Sequence[int], mechanism: AggregateMechanism
) -> NDArray[np.bool_]:
    try:
        masks = selector(question)(station.scores(question, clients))
        if mechanism.keep is not None and (masks.sum(axis=1) != mechanism.keep).any():
            raise FederationError(f"a mask does not keep {mechanism.keep} units")
        return masks
    except Exception as error:
        if station.simulated:  # nobody's data are at stake: say what is wrong
            raise
        _LOG.error("scoring failed; the sum gets a mask that says nothing", exc_info=error)
        return np.tile(mechanism.blank(), (len(clients), 1))


def _secrets(station: Station, question: Question, name: str, client: int) -> ClientSecrets:
    """Derive a client's secrets: from its key file, or in simulation from its stream."""
    if station.signing_key is not None:
        secret = secret_of(station.signing_key)
    else:
        station.simulation_only("to take part in a secure sum without a signing key")
        secret = station.randomness(question, "secure sum", client).words(4).tobytes()
    return ClientSecrets(secret, question.run, name, client)


def _neighbours(
    question: Question, terms: SumTerms, roster: secure_sum.Roster | None, client: int
) -> dict[int, Advert]:
    return secure_sum.neighbours(terms, client, own_bytes(question, client, "adverts"), roster)


def _roster(station: Station) -> secure_sum.Roster | None:
    """The public keys that the node's operator named, if it did."""
    if station.node is None or station.node.roster is None:
        return None
    return read_roster(station.node.roster)


def _value(made: T | FedpruneError) -> T:
    if isinstance(made, FedpruneError):
        raise made
    return made
