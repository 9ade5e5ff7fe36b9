"""Cohorts: many clients at once are answered, charged and told as each would be by itself."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedprune.errors import BudgetExceededError, LedgerError, PrivacyError, QuestionChangedError
from fedprune.privacy import Budget, Entry, Ledger, SigningKey
from fedprune.privacy.budgets.events import (
    ADD_REMOVE_RECORD,
    NO_CHARGE,
    REPLACEMENT,
    UNPROTECTED,
    PureEvent,
    ZeroConcentratedEvent,
)
from fedprune.privacy.budgets.filters import filter_of
from fedprune.privacy.ledgers.chain import RESERVED, SENT, STORED, to_cohort_row


def template(round_: str = "r1", epsilon: float = 4.0, question: str = "q") -> Entry:
    return Entry.charged(
        client="everybody",
        run="run",
        round=round_,
        kind="mask-report",
        question=question,
        relation=REPLACEMENT,
        event=PureEvent(epsilon),
    )


def of(client: int, shared: Entry) -> Entry:
    return replace(shared, client=str(client))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def reports(clients: np.ndarray, size: int = 5) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (len(clients), size)).astype(np.uint8)


def test_a_cohort_is_one_row_a_stage_and_its_entries_are_those_of_its_clients(path: Path) -> None:
    clients = np.random.default_rng(0).permutation(5000)[:1000]
    packed = reports(clients)
    with Ledger.open(path, budget=Budget(4.0)) as ledger:
        answer = ledger.reserve_cohort(template(), clients)
        assert answer.granted.tolist() == list(range(1000))
        assert not answer.resumed.any()
        assert (len(answer.memoised), answer.reports, answer.refused) == (0, (), {})
        ledger.store_cohort(template(), clients, packed)
        assert ledger.head[0] == 2
        assert list(ledger.verify()) == []
        told = list(ledger.numbered_entries())
        assert told[:1000] == [(1, of(c, template())) for c in clients.tolist()]
        assert told[1000:] == [
            (2, replace(of(c, template()), stage=STORED, report=packed[i].tobytes()))
            for i, c in enumerate(clients.tolist())
        ]
        again = ledger.reserve_cohort(template(), np.sort(clients))
        order = np.argsort(clients)
        assert again.reports == tuple(packed[i].tobytes() for i in order)
        assert (len(again.granted), ledger.head[0]) == (0, 2)
        assert ledger.spent(str(clients[17])) == 4
        totals = ledger.totals()
        assert (totals.clients, totals.reserved, totals.stored) == (1000, 1000, 1000)


def test_a_cohort_mixes_new_resumed_stored_changed_and_spent(path: Path) -> None:
    with Ledger.open(path, budget=Budget(4.0)) as ledger:
        ledger.reserve(of(1, template()))  # left open
        ledger.reserve(of(2, template()))
        ledger.store(of(2, template()), b"two")
        ledger.reserve_cohort(template(), [3, 4])
        ledger.store_cohort(template(), [4], [b"44444"])
        ledger.reserve_cohort(template(question="other"), [5])
        ledger.reserve_cohort(template("r0", epsilon=1.0), [6, 7])
        before = ledger.head
        answer = ledger.reserve_cohort(template(), [9, 4, 6, 1, 5, 2, 3, 8])
        assert answer.clients[answer.granted].tolist() == [9, 1, 3, 8]
        assert answer.resumed.tolist() == [False, True, True, False]
        assert answer.clients[answer.memoised].tolist() == [4, 2]
        assert answer.reports == (b"44444", b"two")
        assert sorted(answer.refused) == [2, 4]
        assert isinstance(answer.refused[2], BudgetExceededError)
        assert "client 6 has spent epsilon = 1 of its budget of 4" in str(answer.refused[2])
        assert isinstance(answer.refused[4], QuestionChangedError)
        assert ledger.head[0] == before[0] + 1
        assert [e.client for s, e in ledger.numbered_entries() if s == ledger.head[0]] == ["9", "8"]
        assert list(ledger.verify()) == []
        ledger.store_cohort(template(), [8, 1, 9, 3], [b"8", b"1", b"9", b"3"])
        assert ledger.reserve_cohort(template(), [1, 8]).reports == (b"1", b"8")
        assert list(ledger.verify()) == []


def test_whoever_was_refused_or_answered_is_not_charged(path: Path) -> None:
    with Ledger.open(path, budget=Budget(4.0)) as ledger:
        ledger.reserve_cohort(template(epsilon=3.0), range(100))
        head = ledger.head
        again = ledger.reserve_cohort(template("r2", epsilon=2.0), range(100))
        assert len(again.refused) == 100
        ledger.reserve_cohort(template(epsilon=3.0), range(100))
        assert ledger.head == head
        assert {ledger.spent(str(client)) for client in range(100)} == {3}


def test_a_report_is_stored_once_and_only_after_its_reservation(path: Path) -> None:
    with Ledger.open(path, budget=Budget(4.0)) as ledger:
        ledger.reserve_cohort(template(), [1, 2, 3])
        ledger.store_cohort(template(), [1], [b"x"])
        for bad, clients in (
            (template(), [2, 1]),
            (template(), [2, 4]),
            (template("r2"), [2]),
            (template(epsilon=2.0), [2]),
            (template(question="z"), [2]),
        ):
            with pytest.raises(LedgerError, match="can be stored once, after its own"):
                ledger.store_cohort(bad, clients, [b"y"] * len(clients))
        with pytest.raises(LedgerError, match="client 1 in round r1 can be stored once"):
            ledger.store(of(1, template()), b"y")
        answer = ledger.reserve_cohort(template(), [1, 2, 3])
        assert (answer.reports, answer.resumed.tolist()) == ((b"x",), [True, True])


def test_a_cohort_counts_under_every_budget_it_must(path: Path) -> None:
    budgets = [Budget(4.0), Budget.zcdp(1.0, 1e-6, ADD_REMOVE_RECORD)]
    with Ledger.open(path, budget=budgets) as ledger:
        nearly_all = ZeroConcentratedEvent(0.99 * float(filter_of(budgets[1]).capacity))
        scores = Entry.charged(
            client="x", run="run", round="s", kind="record-scores", question="q",
            relation=ADD_REMOVE_RECORD, event=nearly_all,
        )  # fmt: skip
        first = ledger.reserve_cohort(scores, range(50))
        ledger.store_cohort(scores, first.clients, reports(first.clients))
        answer = ledger.reserve_cohort(template(epsilon=0.1), range(100))
        assert answer.clients[answer.granted].tolist() == list(range(50, 100))
        assert "of its budget of 1, delta = 1e-06 (unit: one record" in str(answer.refused[0])
        assert (ledger.spent("7"), ledger.spent("70")) == (0, pytest.approx(0.1))
        assert ledger.reserve_cohort(scores, [7]).reports == (reports(first.clients)[7].tobytes(),)
        assert list(ledger.verify()) == []
        told = next(ledger.entries())
        assert (told.delta, told.epsilon > 0) == (1e-6, True)


def test_answers_at_no_charge_and_records_of_what_was_sent_come_in_cohorts_too(path: Path) -> None:
    keys = replace(template("keys"), relation=NO_CHARGE, epsilon=0.0, event="", kind="keys")
    tables = replace(template("t"), relation=UNPROTECTED, epsilon=0.0, event="", kind="count-table")
    hashes = [f"{i:064x}" for i in range(3)]
    with Ledger.open(path, budget=Budget(4.0)) as ledger:
        ledger.reserve_cohort(keys, range(3))
        ledger.store_cohort(keys, range(3), [b"a", b"b", b"c"])
        ledger.record_unprotected_cohort(tables, range(3), hashes)
        ledger.record_unprotected_cohort(tables, range(3))
        ledger.record_unprotected([replace(of(1, tables), content_hash=hashes[1])])
        assert list(ledger.verify()) == []
        sent = [e for e in ledger.entries() if e.stage == SENT]
        assert [e.content_hash for e in sent] == [*hashes, "", "", "", hashes[1]]
        assert sent[1] == sent[-1]
        assert (ledger.totals().reserved, ledger.totals().stored) == (0, 0)
        assert {e.stage for e in ledger.entries()} == {RESERVED, STORED, SENT}


@pytest.mark.parametrize(
    ("clients", "words"),
    [
        ([1, 2, 1], "occurs twice"),
        ([-1], r"must be in \[0, 4294967296\)"),
        ([2**32], "must be in"),
        ([1.5], "whole numbers"),
        ([True, False], "whole numbers"),
        (["1"], "whole numbers"),
        ([[1, 2]], "whole numbers"),
    ],
)
def test_what_is_no_cohort_is_refused(path: Path, clients: list, words: str) -> None:
    with Ledger.open(path, budget=Budget(4.0)) as ledger:
        with pytest.raises(PrivacyError, match=words):
            ledger.reserve_cohort(template(), clients)
        assert ledger.head[0] == 0


def test_reports_of_a_cohort_have_one_size(path: Path) -> None:
    with Ledger.open(path, budget=Budget(4.0)) as ledger:
        ledger.reserve_cohort(template(), [1, 2])
        for wrong in ([b"a"], [b"a", b"bc"], [], np.zeros((2, 3)), np.zeros(2, dtype=np.uint8)):
            with pytest.raises(PrivacyError, match="reports must be"):
                ledger.store_cohort(template(), [1, 2], wrong)
        ledger.store_cohort(template(), [], [])
        ledger.reserve_cohort(template(), [])
        assert ledger.head[0] == 1


def test_a_deployed_clients_own_ledger_answers_no_cohorts(path: Path, tmp_path: Path) -> None:
    key = SigningKey.open(tmp_path / "key")
    options = {"budget": Budget(4.0), "owner": "c", "private": True, "signing_key": key.public}
    with Ledger.open(path, **options) as ledger:
        for call in (
            lambda: ledger.reserve_cohort(template(), [1]),
            lambda: ledger.store_cohort(template(), [1], [b"x"]),
            lambda: ledger.record_unprotected_cohort(template(), [1]),
        ):
            with pytest.raises(PrivacyError, match="one client's own ledger"):
                call()


def test_very_large_reports_are_spread_over_rows(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedprune.privacy.ledgers.cohorts._MOST_ROW_BYTES", 1000)
    clients = np.arange(10)
    with Ledger.open(path, budget=Budget(4.0)) as ledger:
        ledger.reserve_cohort(template(), clients)
        ledger.store_cohort(template(), clients, reports(clients, 300))
        assert ledger.head[0] == 1 + 4
        answer = ledger.reserve_cohort(template(), clients)
        assert answer.reports == tuple(map(bytes, reports(clients, 300)))
        assert list(ledger.verify()) == []


COLUMNS = [
    "seq", "client", "run", "round", "kind", "stage", "question", "relation", "epsilon", "delta",
    "event", "report_hash", "previous", "hash", "clients", "report",
]  # fmt: skip


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("row", [1, 2, 3])
def test_every_changed_bit_of_a_cohorts_row_is_found_and_named_by_its_row(
    path: Path, column: str, row: int
) -> None:
    clients = np.arange(20)
    with Ledger.open(path, budget=Budget(4.0)) as ledger:
        ledger.reserve_cohort(template(), clients)
        ledger.store_cohort(template(), clients, reports(clients))
        sent = replace(template("t"), relation=UNPROTECTED, epsilon=0.0, event="")
        ledger.record_unprotected_cohort(sent, clients, ["ab" * 32] * 20)
    with sqlite3.connect(path) as raw:
        (value,) = raw.execute(f"SELECT {column} FROM entries WHERE seq = ?", (row,)).fetchone()
        raw.execute(f"UPDATE entries SET {column} = ? WHERE seq = ?", (flipped(value), row))
    raw.close()
    with Ledger.open(path) as ledger:
        flaws = list(ledger.verify())
        named = 99 if column == "seq" else row
        assert any(flaw.startswith(f"ledger row {named}:") for flaw in flaws), flaws
        with pytest.raises(LedgerError, match="is damaged: ledger row"):
            ledger.reserve_cohort(template("r2"), [50])


def flipped(value: object) -> object:
    if isinstance(value, int):
        return 99
    if isinstance(value, str):
        return chr(ord(value[0]) ^ 1) + value[1:] if value else "a"
    assert isinstance(value, bytes)
    return bytes([value[0] ^ 1]) + value[1:] if value else b"\x01"


def test_a_client_that_was_added_to_a_sound_chain_by_hand_is_still_found(path: Path) -> None:
    with Ledger.open(path, budget=Budget(4.0)) as ledger:
        ledger.reserve_cohort(template(), [1, 2])
        rows, head = ledger.head
    shared = replace(template(), stage=STORED)
    everybody = template()
    cases = [
        (everybody, [5, 2], b"", "client 2 reserved round"),
        (template("r2"), [5, 2], b"", "past its budget of 4"),
        (shared, [1, 5], b"ab", "client 5 stored a report"),
        (shared, [1, 2], b"abc", "do not divide evenly"),
        (template("r3"), [7, 7], b"", "occurs twice"),
        (everybody, [7], b"x", "a reservation has no report"),
        (replace(everybody, stage=SENT), [1], b"", "what is charged must be reserved"),
        (replace(everybody, stage="sold"), [1], b"", "stage 'sold' is unknown"),
    ]
    for entry, clients, packed, words in cases:
        row = to_cohort_row(rows + 1, head, entry, np.array(clients), packed)
        with sqlite3.connect(path) as raw:
            raw.execute("DELETE FROM entries WHERE seq > ?", (rows,))
            raw.execute(f"INSERT INTO entries VALUES ({','.join('?' * len(row))})", row)
        raw.close()
        with Ledger.open(path) as ledger:
            assert any(words in flaw for flaw in ledger.verify()), words
