"""The ledger: nothing is spent twice, nothing past the budget, nothing changed unseen."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from fedprune.errors import BudgetExceededError, LedgerError, PrivacyError, QuestionChangedError
from fedprune.privacy import Budget, Entry, Granted, Ledger, Memoised
from fedprune.privacy.accounting import REPLACEMENT


def entry(client: int = 0, round_: str = "r1", epsilon: float = 4.0, question: str = "q") -> Entry:
    return Entry(
        client=str(client),
        run="run",
        round=round_,
        kind="mask-report",
        question=question,
        relation=REPLACEMENT,
        epsilon=epsilon,
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
    "change", [{"relation": "unprotected"}, {"delta": 1e-5}, {"epsilon": 0.0}, {"epsilon": -1.0}]
)
def test_events_that_this_budget_cannot_count_are_refused(path: Path, change: dict) -> None:
    with Ledger.open(path, budget=Budget(4.0)) as ledger, pytest.raises(PrivacyError):
        ledger.reserve(replace(entry(), **change))


def filled(path: Path) -> None:
    with Ledger.open(path, budget=Budget(4.0)) as ledger:
        for client in range(3):
            ledger.reserve(entry(client))
            ledger.store(entry(client), b"report of %d" % client)
        ledger.record_unprotected([replace(entry(7, "t1"), kind="model-update")])
        assert list(ledger.verify()) == []


COLUMNS = [
    "seq", "client", "run", "round", "kind", "stage", "question", "relation", "epsilon", "delta",
    "report", "report_hash", "previous", "hash",
]  # fmt: skip


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("row", [1, 4, 7])
def test_every_changed_column_is_found_and_named_by_its_row(
    path: Path, column: str, row: int
) -> None:
    filled(path)
    value = {"seq": 99, "report": b"forged"}.get(column, "forged")
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
        ledger._connection.execute("BEGIN IMMEDIATE")
        ledger._append([entry(0, "r9")])  # a valid link, past the budget
        ledger._connection.execute("COMMIT")
        assert any("past its budget" in flaw for flaw in ledger.verify())


def test_other_terms_other_owner_missing_and_damaged_files_are_refused(
    path: Path, tmp_path: Path
) -> None:
    filled(path)
    with pytest.raises(LedgerError, match="cannot be opened for"):
        Ledger.open(path, budget=Budget(8.0))
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


def test_two_processes_cannot_spend_one_budget_twice(path: Path) -> None:
    Ledger.open(path, budget=Budget(40.0)).close()
    script = textwrap.dedent(
        """
        import sys
        from fedprune.errors import BudgetExceededError
        from fedprune.privacy import Entry, Ledger
        granted = 0
        with Ledger.open(sys.argv[1]) as ledger:
            for i in range(30):
                try:
                    ledger.reserve(Entry("0", "run", f"{sys.argv[2]}-{i}", "mask-report", "q",
                                         "replacement", 1.0))
                    granted += 1
                except BudgetExceededError:
                    pass
        print(granted)
        """
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(path), name], stdout=subprocess.PIPE, text=True
        )
        for name in ("a", "b")
    ]
    granted = [int(process.communicate()[0]) for process in processes]
    assert sum(granted) == 40
    with Ledger.open(path) as ledger:
        assert ledger.spent("0") == 40
        assert list(ledger.verify()) == []


def test_a_killed_process_leaves_a_ledger_that_counts_what_was_reserved(path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys
        from fedprune.privacy import Budget, Entry, Ledger
        ledger = Ledger.open(sys.argv[1], budget=Budget(1000.0))
        for i in range(10000):
            e = Entry("0", "run", str(i), "mask-report", "q", "replacement", 0.5)
            ledger.reserve(e)
            print(i, flush=True)
            ledger.store(e, b"x")
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(25):
        announced = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with Ledger.open(path) as ledger:
        assert list(ledger.verify()) == []
        assert ledger.spent("0") >= (announced + 1) * 0.5
