"""Any sequence of requests, retries, crashes and cohorts: the ledger equals a plain model of it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fedprune.errors import BudgetExceededError, LedgerError, QuestionChangedError
from fedprune.privacy import Budget, Entry, Granted, Ledger, Memoised
from fedprune.privacy.budgets.events import (
    ADD_REMOVE_RECORD,
    NO_CHARGE,
    REPLACEMENT,
    UNPROTECTED,
    Event,
    PureEvent,
    SubsampledGaussianEvent,
    ZeroConcentratedEvent,
    event_from_text,
)
from fedprune.privacy.budgets.filters import filter_of
from fedprune.privacy.ledgers.chain import RESERVED, SENT, STORED

CLIENTS, ROUNDS, QUESTIONS = range(6), ("r1", "r2", "r3", "r4"), ("q", "z")
STEPS = SubsampledGaussianEvent(1.5, 0.2, 5)
CHARGES: tuple[tuple[str, Event | None], ...] = (
    (REPLACEMENT, PureEvent(0.1)),
    (REPLACEMENT, PureEvent(1.0)),
    (ADD_REMOVE_RECORD, ZeroConcentratedEvent(0.02)),
    (ADD_REMOVE_RECORD, STEPS),
    (NO_CHARGE, None),
)
BUDGETS = (
    Budget(2.1),
    Budget.renyi(3.0, 1e-5, ADD_REMOVE_RECORD, [STEPS, STEPS, PureEvent(1.0)]),
)
UNDER = {  # written out again, not taken from the code
    REPLACEMENT: (REPLACEMENT, ADD_REMOVE_RECORD),
    ADD_REMOVE_RECORD: (ADD_REMOVE_RECORD,),
    NO_CHARGE: (),
}

clients = st.sampled_from(CLIENTS)
asked = st.tuples(st.sampled_from(ROUNDS), st.sampled_from(QUESTIONS), st.sampled_from(CHARGES))
Asked = tuple[str, str, tuple[str, Event | None]]


def entry(client: int, question: Asked) -> Entry:
    round_, text, (relation, event) = question
    if event is None:
        return Entry(str(client), "run", round_, "keys", text, relation)
    return Entry.charged(
        client=str(client), run="run", round=round_, kind="report", question=text,
        relation=relation, event=event,
    )  # fmt: skip


@dataclass
class Answered:
    """What the model knows of one client and round."""

    question: Asked
    report: bytes | None = None


class Model:
    """The promises in plain Python."""

    def __init__(self) -> None:
        self.answers: dict[tuple[int, str], Answered] = {}
        self.spent: dict[tuple[int, str], Fraction] = {}
        self.sent = 0

    def reserve(self, client: int, question: Asked) -> object:
        known = self.answers.get((client, question[0]))
        if known is not None:
            if known.question != question:
                return QuestionChangedError
            return Granted(resumed=True) if known.report is None else Memoised(known.report)
        relation, event = question[2]
        charges = {}
        for budget in BUDGETS:
            if budget.relation in UNDER[relation] and event is not None:
                kept, key = filter_of(budget), (client, budget.relation)
                charges[key] = self.spent.get(key, Fraction(0)) + kept.charge(event)
                if charges[key] > kept.capacity:
                    return BudgetExceededError
        self.spent |= charges
        self.answers[client, question[0]] = Answered(question)
        return Granted()

    def can_store(self, client: int, question: Asked) -> bool:
        known = self.answers.get((client, question[0]))
        return known is not None and known.question == question and known.report is None


def kind_of(answer: object) -> object:
    return type(answer) if isinstance(answer, Exception) else answer


class LedgerMachine(RuleBasedStateMachine):
    """Drives a real file; a crash is an open connection that is dropped without closing."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="fedprune-machine-"))
        self.path, self.copy = self.folder / "ledger.sqlite", self.folder / "head"
        self.model = Model()
        self.draws = 0

    @initialize()
    def open(self) -> None:
        self.ledgers = [
            Ledger.open(self.path, budget=BUDGETS, head_copy=self.copy),
            Ledger.open(self.path, budget=BUDGETS),  # another process would do the same
        ]

    def draw(self) -> bytes:
        self.draws += 1
        return self.draws.to_bytes(4, "big")

    def refused(self, call: Callable[[], None]) -> bool:
        try:
            call()
        except LedgerError:
            return True
        return False

    @rule(which=st.integers(0, 1), client=clients, question=asked)
    def ask(self, which: int, client: int, question: Asked) -> None:
        answers = self.ledgers[which].reserve_many([entry(client, question)])
        assert [kind_of(a) for a in answers] == [self.model.reserve(client, question)]

    @rule(which=st.integers(0, 1), wanted=st.lists(st.tuples(clients, asked), max_size=5))
    def ask_many(self, which: int, wanted: list[tuple[int, Asked]]) -> None:
        answers = self.ledgers[which].reserve_many([entry(*one) for one in wanted])
        assert [kind_of(a) for a in answers] == [self.model.reserve(*one) for one in wanted]

    @rule(which=st.integers(0, 1), client=clients, question=asked)
    def store(self, which: int, client: int, question: Asked) -> None:
        report, fits = self.draw(), self.model.can_store(client, question)
        ledger = self.ledgers[which]
        assert self.refused(lambda: ledger.store(entry(client, question), report)) != fits
        if fits:
            self.model.answers[client, question[0]].report = report

    @rule(which=st.integers(0, 1), client=clients, question=asked)
    def answer(self, which: int, client: int, question: Asked) -> None:
        """What a client does: reserve, draw, store; or a memo, or a refusal."""
        wanted = self.model.reserve(client, question)
        (found,) = self.ledgers[which].reserve_many([entry(client, question)])
        assert kind_of(found) == wanted
        if isinstance(wanted, Granted):
            report = self.draw()
            self.ledgers[which].store(entry(client, question), report)
            self.model.answers[client, question[0]].report = report

    @rule(which=st.integers(0, 1), many=st.lists(clients, unique=True), question=asked)
    def ask_cohort(self, which: int, many: list[int], question: Asked) -> None:
        found = self.ledgers[which].reserve_cohort(entry(99, question), many)
        memos = dict(zip(found.memoised.tolist(), found.reports, strict=True))
        resumed = dict(zip(found.granted.tolist(), found.resumed.tolist(), strict=True))
        for place, client in enumerate(many):
            wanted = self.model.reserve(client, question)
            if isinstance(wanted, Granted):
                assert resumed.pop(place) == wanted.resumed
            elif isinstance(wanted, Memoised):
                assert memos.pop(place) == wanted.report
            else:
                assert type(found.refused[place]) is wanted
        assert not memos
        assert not resumed

    @rule(which=st.integers(0, 1), many=st.lists(clients, unique=True), question=asked)
    def store_cohort(self, which: int, many: list[int], question: Asked) -> None:
        reports = [self.draw() for _ in many]
        fits = all(self.model.can_store(client, question) for client in many)
        ledger = self.ledgers[which]
        packed = np.frombuffer(b"".join(reports), dtype=np.uint8).reshape(len(many), 4)
        call = lambda: ledger.store_cohort(entry(99, question), many, packed)  # noqa: E731
        assert self.refused(call) != fits
        if fits:
            for client, report in zip(many, reports, strict=True):
                self.model.answers[client, question[0]].report = report

    @rule(which=st.integers(0, 1), client=clients, question=asked)
    def send_unprotected(self, which: int, client: int, question: Asked) -> None:
        sent = replace(entry(client, question), relation=UNPROTECTED, content_hash="ab" * 32)
        self.ledgers[which].record_unprotected([sent])
        self.model.sent += 1

    @rule(which=st.integers(0, 1))
    def crash_and_open_again(self, which: int) -> None:
        copy = self.copy if which == 0 else None
        abandoned = self.ledgers[which]._connection
        self.ledgers[which] = Ledger.open(self.path, budget=BUDGETS, head_copy=copy)
        abandoned.close()

    @invariant()
    def both_say_what_the_model_says(self) -> None:
        for ledger in getattr(self, "ledgers", ()):
            for client in CLIENTS:
                for budget in BUDGETS:
                    wanted = self.model.spent.get((client, budget.relation), Fraction(0))
                    assert ledger.spent(str(client), budget.relation) == wanted
                    assert wanted <= filter_of(budget).capacity

    @invariant()
    def the_file_verifies_and_holds_every_answer_once(self) -> None:
        if not hasattr(self, "ledgers"):
            return
        ledger = self.ledgers[1]
        assert list(ledger.verify()) == []
        entries = list(ledger.entries())
        keys = {(int(e.client), e.round): e for e in entries if e.stage == RESERVED}
        stored = {(int(e.client), e.round): e.report for e in entries if e.stage == STORED}
        assert len(keys) == sum(e.stage == RESERVED for e in entries) == len(self.model.answers)
        assert len(stored) == sum(e.stage == STORED for e in entries)
        assert sum(e.stage == SENT for e in entries) == self.model.sent
        for key, known in self.model.answers.items():
            relation, event = known.question[2]
            assert (keys[key].question, keys[key].relation) == (known.question[1], relation)
            assert event == (event_from_text(keys[key].event) if keys[key].event else None)
            assert stored.get(key) == known.report

    def teardown(self) -> None:
        for ledger in getattr(self, "ledgers", ()):
            ledger.close()
        if hasattr(self, "ledgers"):
            Ledger.open(self.path, budget=BUDGETS, head_copy=self.copy).close()
        shutil.rmtree(self.folder)
        assert not os.path.exists(self.folder)


LedgerMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25)
TestLedgerMachine = LedgerMachine.TestCase
