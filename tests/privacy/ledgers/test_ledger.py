"""The ledger: nothing is spent twice, nothing past the budget, nothing changed unseen."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from fedprune.errors import BudgetExceededError, LedgerError, PrivacyError, QuestionChangedError
from fedprune.privacy import Budget, Entry, Granted, Ledger, Memoised
from fedprune.privacy.budgets.events import (
    ADD_REMOVE_RECORD,
    NO_CHARGE,
    REPLACEMENT,
    UNPROTECTED,
    PureEvent,
    SubsampledGaussianEvent,
)
from fedprune.privacy.budgets.filters import filter_of
from fedprune.privacy.ledgers.chain import SENT, to_row


def entry(client: int = 0, round_: str = "r1", epsilon: float = 4.0, question: str = "q") -> Entry:
    return Entry.charged(
        client=str(client),
        run="run",
        round=round_,
        kind="mask-report",
        question=question,
        relation=REPLACEMENT,
        event=PureEvent(epsilon),
    )


STEPS = SubsampledGaussianEvent(noise_multiplier=1.2, sampling_rate=0.1, steps=10)
BOTH = [Budget(4.0), Budget.renyi(8.0, 1e-5, ADD_REMOVE_RECORD, [STEPS] * 4)]


def tuning(round_: str, client: int = 0) -> Entry:
    return Entry.charged(
        client=str(client),
        run="run",
        round=round_,
        kind="dp-update",
        question="q",
        relation=ADD_REMOVE_RECORD,
        event=STEPS,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def test_the_same_question_gets_the_same_bytes_and_costs_once(path: Path) -> None:
    with Ledger.open(path, budget=Budget(4.0)) as ledger:
        assert ledger.reserve(entry()) == Granted()
        ledger.store(entry(), b"first")
        assert ledger.reserve(entry()) == Memoised(b"first")
        assert ledger.spent("0") == 4
        with pytest.raises(LedgerError, match="stored once"):
            ledger.store(entry(), b"second")
        assert list(ledger.verify()) == []


def test_a_reservation_that_a_crash_left_open_is_completed_at_no_new_charge(path: Path) -> None:
    with Ledger.open(path, budget=Budget(4.0)) as ledger:
        ledger.reserve(entry())
    with Ledger.open(path) as ledger:
        assert ledger.reserve(entry()) == Granted(resumed=True)
        assert ledger.spent("0") == 4
        ledger.store(entry(), b"late")
        assert ledger.reserve(entry()) == Memoised(b"late")


def test_past_the_budget_and_a_changed_question_are_refused_by_name(path: Path) -> None:
    with Ledger.open(path, budget=Budget(4.0)) as ledger:
        ledger.reserve(entry(epsilon=2.5))
        before = ledger.head
        with pytest.raises(BudgetExceededError, match=r"spent epsilon = 2\.5 of its budget of 4"):
            ledger.reserve(entry(round_="r2", epsilon=1.6))
        with pytest.raises(QuestionChangedError, match="another question in round r1"):
            ledger.reserve(entry(epsilon=2.5, question="other"))
        assert ledger.head == before
        assert ledger.reserve(entry(round_="r2", epsilon=1.5)) == Granted()


def test_one_reservation_is_stored_once_even_within_one_batch(path: Path) -> None:
    with Ledger.open(path, budget=Budget(4.0)) as ledger:
        ledger.reserve(entry())
        with pytest.raises(LedgerError, match="can be stored once"):
            ledger.store_many([(entry(), b"a"), (entry(), b"b")])
        assert ledger.reserve(entry()) == Granted(resumed=True)  # the batch was rolled back


def test_a_reservation_cannot_be_used_for_a_larger_epsilon(path: Path) -> None:
    with Ledger.open(path, budget=Budget(64.0)) as ledger:
        ledger.reserve(entry(epsilon=1.0))
        with pytest.raises(QuestionChangedError):
            ledger.reserve(entry(epsilon=64.0))
        with pytest.raises(LedgerError, match="its own reservation"):
            ledger.store(entry(epsilon=64.0), b"x")


def test_an_auditor_reads_without_writing(path: Path) -> None:
    filled(path)
    path.chmod(0o400)
    path.parent.chmod(0o500)
    before = sorted(p.name for p in path.parent.iterdir())
    with Ledger.open(path, read_only=True) as ledger:
        assert list(ledger.verify()) == []
    assert sorted(p.name for p in path.parent.iterdir()) == before
    path.parent.chmod(0o700)


def test_a_client_level_report_counts_under_both_budgets_and_a_record_level_one_under_its_own(
    path: Path,
) -> None:
    with Ledger.open(path, budget=BOTH) as ledger:
        ledger.reserve(entry(epsilon=2.0))
        assert ledger.spent("0") == 2
        first = ledger.spent("0", ADD_REMOVE_RECORD)
        assert first == filter_of(BOTH[1]).charge(PureEvent(2.0))
        ledger.reserve(tuning("t1"))
        assert ledger.spent("0") == 2
        assert ledger.spent("0", ADD_REMOVE_RECORD) - first == filter_of(BOTH[1]).charge(STEPS)
        assert ledger.epsilon_spent("0") == 2.0
        assert 0 < ledger.epsilon_spent("0", ADD_REMOVE_RECORD) <= BOTH[1].epsilon
        assert ledger.epsilon_left("0") == 2.0
        assert 0 < ledger.epsilon_left("0", ADD_REMOVE_RECORD) < BOTH[1].epsilon
        assert ledger.epsilon_left("1", ADD_REMOVE_RECORD) == pytest.approx(BOTH[1].epsilon)
        assert ledger.epsilon_spent("1", ADD_REMOVE_RECORD) == 0.0
        assert list(ledger.verify()) == []


def test_an_event_is_granted_only_if_it_fits_every_budget_that_it_counts_under(path: Path) -> None:
    tight = [Budget(100.0), Budget.zcdp(1.0, 1e-6, ADD_REMOVE_RECORD)]
    with Ledger.open(path, budget=tight) as ledger:
        before = ledger.head
        with pytest.raises(
            BudgetExceededError,
            match=r"client 0 has spent epsilon = 0 of its budget of 1, delta = 1e-06 \(unit: one "
            r"record; relation: add-remove-record\); another .* is refused",
        ):
            ledger.reserve(entry(epsilon=4.0))
        assert (ledger.head, ledger.spent("0")) == (before, 0)
        ledger.reserve(entry(epsilon=0.1))
        assert ledger.spent("0") == Fraction(0.1)


def test_a_filter_refuses_what_would_pass_its_capacity_and_nothing_before(path: Path) -> None:
    kept = filter_of(BOTH[1])
    fits = int(kept.capacity / kept.charge(STEPS))
    with Ledger.open(path, budget=BOTH) as ledger:
        for number in range(fits):
            ledger.reserve(tuning(f"t{number}"))
        with pytest.raises(BudgetExceededError, match="add-remove-record"):
            ledger.reserve(tuning("one more"))
        assert ledger.spent("0", ADD_REMOVE_RECORD) == fits * kept.charge(STEPS)


def test_a_ledger_without_a_budget_of_the_events_own_relation_refuses_it(path: Path) -> None:
    with Ledger.open(path, budget=BOTH[1]) as ledger:
        with pytest.raises(
            BudgetExceededError, match=r"no budget under replacement \(unit: one client\)"
        ):
            ledger.reserve(entry())
        assert (ledger.spent("0"), ledger.epsilon_left("0")) == (0, 0.0)
        assert ledger.budgets == {ADD_REMOVE_RECORD: BOTH[1]}
        ledger.reserve(tuning("t"))
        with pytest.raises(PrivacyError, match="must be one of replacement"):
            ledger.spent("0", "neighbours")


def test_a_currency_that_cannot_express_an_event_refuses_it(path: Path) -> None:
    with Ledger.open(path, budget=Budget(4.0)) as ledger:
        gaussian = replace(tuning("t"), relation=REPLACEMENT)
        with pytest.raises(PrivacyError, match="counts pure events only"):
            ledger.reserve(gaussian)
        assert ledger.head[0] == 0


def test_an_answer_at_no_charge_is_memoised_like_a_report(path: Path) -> None:
    keys = Entry("0", "run", "keys-1", "secure-sum-keys", "q", NO_CHARGE)
    with Ledger.open(path, budget=Budget(4.0)) as ledger:
        assert ledger.reserve(keys) == Granted()
        ledger.store(keys, b"public key")
        assert ledger.reserve(keys) == Memoised(b"public key")
        with pytest.raises(QuestionChangedError):
            ledger.reserve(replace(keys, question="other"))
        with pytest.raises(QuestionChangedError):
            ledger.reserve(entry(round_="keys-1"))
        assert ledger.spent("0") == 0
        totals = ledger.totals()
        assert (totals.reserved, totals.stored, totals.clients) == (0, 0, 1)
        assert list(ledger.verify()) == []


def test_totals_say_what_the_entries_add_up_to(path: Path) -> None:
    filled(path)
    with Ledger.open(path) as ledger:
        totals = ledger.totals()
    assert totals.kinds == {"mask-report", "model-update"}
    assert (totals.clients, totals.reserved, totals.stored) == (4, 3, 3)
    assert totals.largest == {REPLACEMENT: 4}


def test_the_budget_is_an_exact_sum(path: Path) -> None:
    with Ledger.open(path, budget=Budget(0.3)) as ledger:
        for number in range(2):
            ledger.reserve(entry(round_=f"r{number}", epsilon=0.1))
        # 0.1 + 0.1 + 0.1 exceeds 0.3 by one part in 10^17 of the stored binary numbers.
        with pytest.raises(BudgetExceededError):
            ledger.reserve(entry(round_="r3", epsilon=0.1))


def test_a_cohort_mixes_grants_refusals_and_memos(path: Path) -> None:
    with Ledger.open(path, budget=Budget(4.0)) as ledger:
        ledger.reserve(entry(1))
        ledger.store(entry(1), b"one")
        asked = [entry(1), entry(2), entry(1, "r2"), entry(2), entry(1, question="z")]
        expected = [Memoised(b"one"), Granted()]
        answers = ledger.reserve_many(asked)
        assert answers[:2] == expected[:2]
        assert isinstance(answers[2], BudgetExceededError)
        assert answers[3] == Granted(resumed=True)
        assert isinstance(answers[4], QuestionChangedError)
        assert ledger.spent("2") == 4


@pytest.mark.parametrize(
    "change",
    [
        {"relation": "unprotected"},
        {"relation": "unheard of"},
        {"relation": "add-remove-record"},
        {"relation": "no-charge"},
        {"delta": 1e-5},
        {"epsilon": 0.0},
        {"epsilon": -1.0},
        {"epsilon": 2.0},
        {"epsilon": float("nan")},
        {"event": "4"},
        {"event": ""},
        {"stage": "stored"},
        {"report": b"x"},
        {"content_hash": "ab" * 32},
        {"client": ""},
    ],
)
def test_events_that_this_budget_cannot_count_are_refused(path: Path, change: dict) -> None:
    with Ledger.open(path, budget=Budget(4.0)) as ledger:
        if change == {"event": ""}:  # an epsilon alone is that of a pure event
            assert replace(entry(), **change) == entry()
            return
        before = ledger.head
        with pytest.raises(PrivacyError):
            ledger.reserve(replace(entry(), **change))
        assert ledger.head == before


def filled(path: Path) -> None:
    with Ledger.open(path, budget=Budget(4.0)) as ledger:
        for client in range(3):
            ledger.reserve(entry(client))
            ledger.store(entry(client), b"report of %d" % client)
        update = Entry("7", "run", "t1", "model-update", "q", UNPROTECTED, stage=SENT)
        ledger.record_unprotected([replace(update, content_hash="ab" * 32)])
        assert list(ledger.verify()) == []


COLUMNS = [
    "seq", "client", "run", "round", "kind", "stage", "question", "relation", "epsilon", "delta",
    "event", "report_hash", "previous", "hash", "clients", "report",
]  # fmt: skip


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("row", [1, 4, 7])
def test_every_changed_column_is_found_and_named_by_its_row(
    path: Path, column: str, row: int
) -> None:
    filled(path)
    value = {"seq": 99, "report": b"forged", "clients": b"\x01\0\0\0"}.get(column, "forged")
    with sqlite3.connect(path) as raw:
        raw.execute(f"UPDATE entries SET {column} = ? WHERE seq = ?", (value, row))
    raw.close()
    with Ledger.open(path) as ledger:
        flaws = list(ledger.verify())
    named = 99 if column == "seq" else row
    assert any(flaw.startswith(f"ledger row {named}:") for flaw in flaws), flaws


def test_changed_terms_and_removed_rows_are_found(path: Path) -> None:
    filled(path)
    with Ledger.open(path) as ledger:
        head = ledger.head
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE terms SET value = 'private' WHERE name = 'privacy'")
    raw.close()
    with Ledger.open(path) as ledger:
        assert any("row 1" in flaw for flaw in ledger.verify())
    with sqlite3.connect(path) as raw:
        raw.execute("DELETE FROM entries WHERE seq = 7")
    raw.close()
    with Ledger.open(path) as ledger:  # a cut-off end shows only against a head kept elsewhere
        assert ledger.head != head
        assert ledger.hash_at(7) is None


def test_a_forged_chain_that_overspends_is_still_found(path: Path) -> None:
    filled(path)
    with Ledger.open(path) as ledger:
        rows, head = ledger.head
    forged = to_row(rows + 1, head, entry(0, "r9"))  # a valid link, past the budget
    with sqlite3.connect(path) as raw:
        raw.execute(f"INSERT INTO entries VALUES ({','.join('?' * len(forged))})", forged)
    raw.close()
    with Ledger.open(path) as ledger:
        (flaw,) = ledger.verify()
        assert "ledger row 8: client 0 reserved epsilon = 8, past its budget of 4" in flaw
        with pytest.raises(LedgerError, match="is damaged: ledger row 8"):
            ledger.reserve(entry(5))


def test_other_terms_other_owner_missing_and_damaged_files_are_refused(
    path: Path, tmp_path: Path
) -> None:
    filled(path)
    with pytest.raises(LedgerError, match="cannot be opened for"):
        Ledger.open(path, budget=Budget(8.0))
    with pytest.raises(LedgerError, match=r"8, delta = 1e-05 under add-remove-record \(renyi of"):
        Ledger.open(path, budget=BOTH)
    with pytest.raises(PrivacyError, match="one budget under each relation"):
        Ledger.open(path, budget=[Budget(4.0), Budget(4.0)])
    with pytest.raises(PrivacyError, match="at least one relation"):
        Ledger.open(path, budget=[])
    with pytest.raises(LedgerError, match="ledger of 'simulation'"):
        Ledger.open(path, budget=Budget(4.0), owner="somebody else")
    with pytest.raises(LedgerError, match="there is no ledger"):
        Ledger.open(tmp_path / "none")
    (tmp_path / "text").write_text("not a database, but long enough to be looked at" * 40)
    with pytest.raises(LedgerError, match="cannot be used"):
        Ledger.open(tmp_path / "text")
    content = path.read_bytes()
    (tmp_path / "cut").write_bytes(content[: len(content) // 2])
    with pytest.raises(LedgerError), Ledger.open(tmp_path / "cut") as cut:
        list(cut.verify())


def test_the_orders_and_compositions_of_budgets_are_terms(path: Path) -> None:
    Ledger.open(path, budget=BOTH).close()
    other = replace(BOTH[1], order=BOTH[1].order + 1)
    with pytest.raises(LedgerError, match="cannot be opened for"):
        Ledger.open(path, budget=[BOTH[0], other])
    with Ledger.open(path, budget=BOTH[::-1]) as ledger:
        assert set(ledger.budgets.values()) == set(BOTH)
        ledger.reserve(entry(epsilon=1.0))
    with sqlite3.connect(path) as raw:
        raw.execute(
            "UPDATE terms SET value = ? WHERE name = 'budget of replacement'",
            (Budget(400.0).to_text(),),
        )
    raw.close()
    with Ledger.open(path) as ledger:
        with pytest.raises(LedgerError, match="row 1: its link does not match"):
            ledger.reserve(entry(round_="r2", epsilon=300.0))
        assert "link" in next(ledger.verify())


def test_a_ledger_of_the_first_schema_is_refused_in_one_sentence(path: Path) -> None:
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE terms (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT")
        raw.execute("CREATE TABLE entries (seq INTEGER PRIMARY KEY) STRICT")
        raw.execute("INSERT INTO terms VALUES ('schema', '1'), ('epsilon', '0x1.0p+2')")
    raw.close()
    before = path.read_bytes()
    for budget in (None, Budget(4.0)):
        with pytest.raises(LedgerError, match="has ledger schema '1', this reads schema 2 only"):
            Ledger.open(path, budget=budget)
    with pytest.raises(LedgerError, match="schema"):
        Ledger.open(path, read_only=True)
    assert path.read_bytes()[100:] == before[100:]


def test_bytes_that_are_no_text_are_found_and_named_by_their_row(path: Path) -> None:
    filled(path)
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE entries SET client = CAST(x'30ff' AS TEXT) WHERE seq = 4")
    raw.close()
    with Ledger.open(path) as ledger:
        flaws = list(ledger.verify())
    assert any(flaw.startswith("ledger row 4: its content does not match") for flaw in flaws)
    assert all(flaw.isprintable() for flaw in flaws)
