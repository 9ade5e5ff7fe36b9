"""The server's side of a secure sum: it drives the stages and takes the masks off the sum.

Who gives no usable answer at a stage is left out of the later ones. A stage goes on under the
federation's own rules (deadline and quorum), and the sum is given up as soon as fewer than
`min_reports` clients are left. Asked again after a crash of the server, clients give the answers
that they gave; that ends well where every stage hears the same clients as before, and in a named
refusal elsewhere, since another set of clients would be another question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from flwr.app import RecordDict

from fedprune.config import Scalar
from fedprune.errors import FederationError, LayoutMismatchError, ReportError
from fedprune.federated.experiment import Experiment, Held
from fedprune.federated.messages import Question, answer_bytes
from fedprune.federated.secure_questions import (
    CONSENT,
    INPUT,
    KEYS,
    REVEAL,
    SHARES,
    clients_to_text,
    mechanism_settings,
    round_of,
    terms_settings,
)
from fedprune.privacy.ledgers.keys import signature_holds
from fedprune.privacy.mechanisms.aggregate import AggregateMechanism, Vector
from fedprune.privacy.secure import secure_unmask
from fedprune.privacy.secure.secure_keys import SIGNATURE_BYTES, Advert
from fedprune.privacy.secure.secure_sum import consent_text
from fedprune.privacy.secure.secure_terms import SumTerms

Own = Callable[[int], Mapping[str, bytes]]
Check = Callable[[int, bytes], bytes]


@dataclass(frozen=True)
class RevealedSum:
    """What a secure sum ends with.

    Attributes:
        total: [entries] unsigned, the sum of the survivors' inputs modulo 2^modulus_bits.
        survivors: whose inputs are in it, rising.
        terms: of the sum.
    """

    total: Vector
    survivors: tuple[int, ...]
    terms: SumTerms


def secure_sum(
    experiment: Experiment,
    held: Held,
    task: Mapping[str, Scalar],
    name: str,
    clients: Sequence[int],
    mechanism: AggregateMechanism,
    *,
    masked: bool = True,
) -> RevealedSum:
    """Sum clients' masks with their shares of the noise; nothing but the sum becomes known.

    Args:
        experiment: the run.
        held: the model whose units are voted on.
        task: what clients need to find their masks.
        name: of the sum; unique in the run.
        clients: who is asked, rising.
        mechanism: of the noise.
        masked: False leaves the protocol out and adds the same numbers up in plain sight: in a
            simulation only, where the sum comes out the same and takes a hundredth of the time.

    Raises:
        FedpruneError: if fewer than `mechanism.min_reports` clients stay to the end, or too few
            for the federation's quorum.
    """
    told = {**task, **mechanism_settings(mechanism)}
    stages = _Stages(experiment, held, name, mechanism)
    if not masked:
        early = [round_of(name, kind) for kind in (KEYS, SHARES)]
        there = experiment.pass_stages(early, clients)
        stages.check_left(there, SHARES)
        found = stages.inputs(stages.terms_among(there), told, there, {}, masked=False)
        experiment.pass_stages([round_of(name, REVEAL)], found.survivors)
        return found
    adverts = stages.keys(clients)
    terms = stages.terms_among(adverts)
    bundles = stages.shares(terms, adverts)
    hidden = stages.inputs(terms, told, list(bundles), adverts, masked=True)
    revealed = stages.reveal(terms, adverts, bundles, hidden.survivors)
    total = secure_unmask.unmask(
        terms, adverts, hidden.total, frozenset(bundles), frozenset(hidden.survivors), revealed
    )
    return replace(hidden, total=total)


@dataclass(frozen=True)
class _Stages:
    """The questions of one sum."""

    experiment: Experiment
    held: Held
    name: str
    mechanism: AggregateMechanism

    def terms_among(self, clients: Sequence[int] | Mapping[int, bytes]) -> SumTerms:
        """The terms of the sum once it is known who takes part."""
        return SumTerms(
            self.experiment.run_id,
            self.name,
            tuple(clients),
            self.mechanism.min_reports,
            self.mechanism.colluding,
            self.mechanism.num_units,
            self.mechanism.modulus_bits,
        )

    def keys(self, clients: Sequence[int]) -> dict[int, bytes]:
        """Collect announced keys."""

        def check(client: int, raw: bytes) -> bytes:
            advert = Advert.from_bytes(raw)
            if not self.experiment.simulated:
                advert.check_signature(
                    self.experiment.run_id, self.name, client, self._public_key(client)
                )
            return raw

        return self._collect(self._question(KEYS, {}), KEYS, clients, check)

    def shares(self, terms: SumTerms, adverts: Mapping[int, bytes]) -> dict[int, bytes]:
        """Collect sealed shares."""

        def own(client: int) -> Mapping[str, bytes]:
            return {"adverts": secure_unmask.adverts_for(terms, client, adverts)}

        question = self._question(SHARES, terms_settings(terms), adverts, own)
        return self._collect(
            question, SHARES, list(adverts), lambda _, raw: secure_unmask.read_bundle(terms, raw)
        )

    def inputs(
        self,
        terms: SumTerms,
        told: Mapping[str, Scalar],
        clients: Sequence[int],
        adverts: Mapping[int, bytes],
        *,
        masked: bool,
    ) -> RevealedSum:
        """Add up masked inputs as they come."""
        settings = {
            **told,
            **terms_settings(terms),
            "sharers": clients_to_text(clients),
            "masked": masked,
        }

        def own(client: int) -> Mapping[str, bytes]:
            return {"adverts": secure_unmask.adverts_for(terms, client, adverts)}

        def read(client: int, answer: RecordDict) -> Vector:
            if answer.config_records["answer"].get("fingerprint") != told["fingerprint"]:
                raise LayoutMismatchError(f"client {client} answers about another layout")
            return secure_unmask.read_masked(terms, answer_bytes(answer, "report", "masked input"))

        question = self.experiment.question(self.name, self.held, settings)
        if masked:
            question = replace(question, own=_Own(clients, own))
        total, survivors = np.zeros(terms.entries, dtype=terms.dtype), []
        label = f"{self.name}: masked inputs"
        for client, vector in self.experiment.ask(INPUT, question, clients, label, read):
            total += vector
            survivors.append(client)
        self.check_left(survivors, INPUT)
        return RevealedSum(total, tuple(survivors), terms)

    def reveal(
        self,
        terms: SumTerms,
        adverts: Mapping[int, bytes],
        bundles: Mapping[int, bytes],
        survivors: Sequence[int],
    ) -> dict[int, bytes]:
        """Collect revealed shares; clients with signing keys agree on the survivors first."""
        settings = {
            **terms_settings(terms),
            "sharers": clients_to_text(bundles),
            "survivors": clients_to_text(survivors),
        }
        consents = self._consents(terms, settings, frozenset(bundles), survivors)

        def own(client: int) -> Mapping[str, bytes]:
            parts = {
                "adverts": secure_unmask.adverts_for(terms, client, adverts),
                "sealed": secure_unmask.sealed_for(terms, client, bundles),
            }
            if consents:
                parts["consents"] = secure_unmask.consents_for(terms, client, consents)
            return parts

        question = self._question(REVEAL, settings, survivors, own)
        return self._collect(
            question, REVEAL, survivors, lambda _, raw: secure_unmask.read_revealed(terms, raw)
        )

    def _consents(
        self,
        terms: SumTerms,
        settings: Mapping[str, Scalar],
        sharers: frozenset[int],
        survivors: Sequence[int],
    ) -> dict[int, bytes]:
        if self.experiment.simulated:  # no keys, and nobody to be kept from lying
            return {}

        def check(client: int, raw: bytes) -> bytes:
            text = consent_text(terms, client, sharers, frozenset(survivors))
            holds = signature_holds(self._public_key(client), text, raw.hex())
            if len(raw) != SIGNATURE_BYTES or not holds:
                raise ReportError(f"client {client} did not sign the survivors of {self.name}")
            return raw

        return self._collect(self._question(CONSENT, settings), CONSENT, survivors, check)

    def _question(
        self,
        kind: str,
        settings: Mapping[str, Scalar],
        clients: Sequence[int] | Mapping[int, bytes] = (),
        own: Own | None = None,
    ) -> Question:
        """A question about keys and sets alone: it carries no weights."""
        question = self.experiment.question(round_of(self.name, kind), self.held, settings)
        parts: Mapping[int, Mapping[str, bytes]] = {} if own is None else _Own(clients, own)
        return replace(question, weights=torch.zeros(0), own=parts)

    def _collect(
        self, question: Question, kind: str, clients: Sequence[int], check: Check
    ) -> dict[int, bytes]:
        def read(client: int, answer: RecordDict) -> bytes:
            raw = answer_bytes(answer, "report", f"answer to {kind}")
            try:
                return check(client, raw)
            except ReportError as error:
                raise ReportError(f"client {client}: {error}") from None

        label = question.round.replace("/", ": ")
        found = dict(self.experiment.ask(kind, question, clients, label, read))
        self.check_left(found, kind)
        return found

    def check_left(self, left: Sequence[int] | Mapping[int, bytes], kind: str) -> None:
        """Give the sum up where fewer clients are left than it is made for."""
        if len(left) < self.mechanism.min_reports:
            raise FederationError(
                f"{len(left)} clients are left in {round_of(self.name, kind)}, min_reports = "
                f"{self.mechanism.min_reports} are needed: the sum is given up"
            )

    def _public_key(self, client: int) -> str:
        return self.experiment.conversation.introductions[client].public_key


class _Own(Mapping[int, Mapping[str, bytes]]):
    """Parts of a question for one client each, put together only when that client is asked."""

    def __init__(self, clients: Sequence[int] | Mapping[int, bytes], make: Own) -> None:
        self._clients, self._make = frozenset(clients), make

    def __getitem__(self, client: int) -> Mapping[str, bytes]:
        if client not in self._clients:
            raise KeyError(client)
        return self._make(client)

    def __contains__(self, client: object) -> bool:
        return client in self._clients

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._clients))

    def __len__(self) -> int:
        return len(self._clients)
