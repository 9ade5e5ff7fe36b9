"""A client's ledger shown and verified: exact sums, qualified figures, receipts confirmed."""

from __future__ import annotations

import json
import shutil
import sqlite3
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from deployed_run import Deployed
from hypothesis import given
from hypothesis import strategies as st

from fedprune.audit.client_ledger import describe, verify
from fedprune.audit.ledger_report import exact_decimal
from fedprune.errors import LedgerError, PrivacyError
from fedprune.privacy import Budget, Entry, Ledger, Receipt, SigningKey, key_path
from fedprune.privacy.budgets.events import (
    ADD_REMOVE_RECORD,
    NO_CHARGE,
    REPLACEMENT,
    UNPROTECTED,
    PureEvent,
    SubsampledGaussianEvent,
    event_to_text,
)
from fedprune.privacy.ledgers.chain import SENT

TENTH = "0.1000000000000000055511151231257827021181583404541015625"  # what 0.1 is


@pytest.fixture
def run(deployed: Deployed, tmp_path: Path) -> Deployed:
    shutil.copytree(deployed.path, tmp_path / "run")
    shutil.copytree(deployed.own, tmp_path / "own")
    return replace(deployed, path=tmp_path / "run", own=tmp_path / "own")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.sqlite"
    key = SigningKey.open(key_path(path))
    with Ledger.open(
        path, budget=Budget(1.0), owner="client 3", private=True, signing_key=key.public
    ) as ledger:
        for round_ in ("report-1", "report-2"):
            entry = Entry("3", "run-1", round_, "mask-report", "q", REPLACEMENT, 0.1)
            ledger.reserve(entry)
            ledger.store(entry, b"\x01\x02\x03")
        update = Entry("3", "run-1", "train-1", "model-update", "q", UNPROTECTED, stage=SENT)
        ledger.record_unprotected([replace(update, content_hash="ab" * 32)])
    return path


def broken(path: Path, receipts: Path | None = None) -> str:
    return " ".join(f.detail for f in verify(path, receipts).findings if not f.holds)


def test_a_ledger_is_told_with_every_qualifier_and_exact_sums(small: Path) -> None:
    found = describe(small)
    (account,) = found.accounts
    assert Fraction(account.spent) == 2 * Fraction(0.1)
    assert Fraction(account.spent) + Fraction(account.remaining) == 1
    (budget,) = found.budgets
    assert (found.owner, found.private, found.rows) == ("client 3", True, 5)
    assert (budget.epsilon, budget.delta, budget.unit, budget.composition) == (
        "1", 0.0, "client", "pure",
    )  # fmt: skip
    text = "\n".join(found.lines())
    for words in (
        "epsilon = 1, delta = 0 for the mask reports alone",
        "unit of protection: one client; neighbouring relation: replacement",
        "must be trusted: nobody",
        f"epsilon = {account.spent} spent",
        "protects one client; replacement; nobody need be trusted",
        "not covered by any epsilon: model updates",
        SigningKey.open(key_path(small)).public,
    ):
        assert words in text
    assert "client 3" in text.splitlines()[0]
    assert len([line for line in text.splitlines() if "run-1" in line]) == 5


def test_the_json_holds_every_row_but_no_report(small: Path) -> None:
    content = json.loads(json.dumps(describe(small).to_json()))
    stages = [(e["seq"], e["stage"], e["epsilon"], e["report_bytes"]) for e in content["events"]]
    assert stages == [
        (1, "reserved", 0.1, 0),
        (2, "stored", 0.1, 3),
        (3, "reserved", 0.1, 0),
        (4, "stored", 0.1, 3),
        (5, "sent", 0.0, 0),
    ]
    hashed = "039058c6f2c0cb492c533b0a4d14ef77cc0f78abccced5287d84a1a2011cfb81"
    assert content["events"][1]["report_sha256"] == hashed
    assert content["events"][0]["report_sha256"] == ""
    assert content["events"][0]["released"] == event_to_text(PureEvent(0.1))
    assert content["events"][4]["report_sha256"] == "ab" * 32


def test_a_simulations_ledger_says_that_it_protects_nobody(finished_run: Path) -> None:
    found = describe(finished_run / "ledger.sqlite")
    assert not found.private
    assert all("NOT PRIVATE" in budget.statement for budget in found.budgets)
    assert "nobody need be trusted" not in "\n".join(found.lines())
    assert len(found.accounts) == 40
    assert verify(finished_run / "ledger.sqlite").holds


def test_an_empty_ledger_has_its_whole_budget_left(tmp_path: Path) -> None:
    Ledger.open(tmp_path / "l", budget=Budget(0.1), owner="me", private=True).close()
    text = "\n".join(describe(tmp_path / "l").lines())
    assert f"nothing was charged: epsilon = {TENTH} is left under replacement" in text


def test_every_budget_is_told_with_what_every_client_spent_of_it(tmp_path: Path) -> None:
    steps = SubsampledGaussianEvent(1.2, 0.1, 10)
    record = Budget.renyi(8.0, 1e-5, ADD_REMOVE_RECORD, [steps])
    with Ledger.open(tmp_path / "l", budget=[Budget(4.0), record]) as ledger:
        tuned = Entry.charged(
            client="1", run="r", round="t", kind="dp-update", question="q",
            relation=ADD_REMOVE_RECORD, event=steps,
        )  # fmt: skip
        asked = Entry("2", "r", "report-1", "mask-report", "q", REPLACEMENT, 0.5)
        ledger.reserve_cohort(asked, [1, 2])
        ledger.reserve(tuned)
        ledger.reserve(Entry("2", "r", "keys", "secure-sum-keys", "q", NO_CHARGE))
        epsilon = ledger.epsilon_spent("1", ADD_REMOVE_RECORD)
        assert epsilon > ledger.epsilon_spent("2", ADD_REMOVE_RECORD)
    found = describe(tmp_path / "l")
    told = {(account.client, account.relation): account for account in found.accounts}
    assert sorted(told) == [
        ("1", ADD_REMOVE_RECORD), ("1", REPLACEMENT), ("2", ADD_REMOVE_RECORD), ("2", REPLACEMENT),
    ]  # fmt: skip
    assert (told["1", REPLACEMENT].spent, told["1", REPLACEMENT].remaining) == ("0.5", "3.5")
    assert float(told["1", ADD_REMOVE_RECORD].spent) == pytest.approx(epsilon, rel=1e-5)
    text = "\n".join(found.lines())
    assert "at delta = 1e-05 spent" in text
    assert "protects one record; add-remove-record; NOT PRIVATE" in text
    assert text.count("NOT PRIVATE, whoever knows the seed") == 2
    assert verify(tmp_path / "l").holds


def test_a_copy_of_the_head_shows_that_a_ledger_was_cut(small: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    Ledger.open(small, head_copy=copy).close()
    assert verify(small, head_copy=copy).holds
    assert "there is no head copy" in broken_by(small, tmp_path / "nowhere")
    with sqlite3.connect(small) as raw:
        raw.execute("DELETE FROM entries WHERE seq = 5")
    raw.close()
    assert verify(small).holds
    assert "row 5 is not in the ledger, which has 4: it was rolled back" in broken_by(small, copy)
    copy.write_text("{}")
    assert "is damaged" in broken_by(small, copy)


def broken_by(path: Path, copy: Path) -> str:
    return " ".join(f.detail for f in verify(path, head_copy=copy).findings if not f.holds)


def test_showing_and_verifying_change_nothing(small: Path) -> None:
    small.chmod(0o444)
    before = small.read_bytes()
    names = sorted(path.name for path in small.parent.iterdir())
    describe(small)
    assert verify(small).holds
    assert small.read_bytes() == before
    assert sorted(path.name for path in small.parent.iterdir()) == names


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello " * 1000)
    for name in ("text", "nowhere"):
        with pytest.raises(LedgerError):
            describe(tmp_path / name)
        with pytest.raises(LedgerError):
            verify(tmp_path / name)


def test_a_changed_row_is_found(small: Path) -> None:
    with sqlite3.connect(small) as raw:
        raw.execute("UPDATE entries SET epsilon = ? WHERE seq = 1", ((0.01).hex(),))
    raw.close()
    assert "ledger row 1: its content does not match its hash" in broken(small)
    with sqlite3.connect(small) as raw:
        raw.execute("UPDATE entries SET epsilon = 'many' WHERE seq = 1")
    raw.close()
    assert "ledger row 1" in broken(small)
    with pytest.raises(LedgerError, match=r"row 1 of the ledger .* is damaged"):
        describe(small)


def test_every_client_of_a_deployed_run_can_confirm_its_receipts(run: Deployed) -> None:
    for client in range(40):
        found = verify(run.ledger_path(client), run.path / "receipts.jsonl")
        assert found.holds, list(found.lines())
    own = [receipt for receipt in run.receipts() if receipt.client == "39"]
    assert any(f"{len(own)} receipts of this ledger's key" in f.detail for f in found.findings)


def test_a_ledger_that_was_rolled_back_is_found_by_its_receipts_alone(run: Deployed) -> None:
    path = run.ledger_path(3)
    with sqlite3.connect(path) as raw:
        raw.execute("DELETE FROM entries WHERE seq = (SELECT max(seq) FROM entries)")
    raw.close()
    assert verify(path).holds
    assert "it was rolled back" in broken(path, run.path / "receipts.jsonl")


def test_a_ledger_that_was_begun_anew_has_no_receipt(run: Deployed) -> None:
    path = run.ledger_path(3)
    path.unlink()
    key_path(path).unlink()
    key = SigningKey.open(key_path(path))
    Ledger.open(
        path, budget=Budget(4.0), owner="client 3", private=True, signing_key=key.public
    ).close()
    assert "no receipt is signed with this ledger's key" in broken(
        path, run.path / "receipts.jsonl"
    )


def test_a_receipt_that_somebody_else_signed_as_this_client_is_found(run: Deployed) -> None:
    mine = next(receipt for receipt in run.receipts() if receipt.client == "3" and receipt.charged)
    forged = Receipt.sign(mine.entry, row=2, previous="0" * 64, key=run.keys["5"])
    run.write_lines([*run.lines(), forged.to_line()])
    assert "is another's" in broken(run.ledger_path(3), run.path / "receipts.jsonl")


def test_a_receipt_for_a_row_that_was_never_written_is_found(run: Deployed) -> None:
    entry = Entry("3", run.run, "tune-9-9", "model-update", "q", UNPROTECTED, stage=SENT)
    entry = replace(entry, content_hash="ab" * 32)
    run.write_lines([*run.lines(), run.sign(entry, row=99).to_line()])
    assert "row 99 is not in the ledger" in broken(run.ledger_path(3), run.path / "receipts.jsonl")


def test_a_simulations_ledger_has_no_receipts_to_confirm(run: Deployed, finished_run: Path) -> None:
    assert "has no signing key" in broken(
        finished_run / "ledger.sqlite", run.path / "receipts.jsonl"
    )


def test_receipts_that_cannot_be_read_are_refused_or_named(run: Deployed, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot read the receipts"):
        verify(run.ledger_path(3), tmp_path / "nowhere")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(LedgerError, match=r"the receipts .* are damaged"):
        verify(run.ledger_path(3), tmp_path / "binary")
    (tmp_path / "empty").write_text("")
    assert "no receipt is signed" in broken(run.ledger_path(3), tmp_path / "empty")
    (tmp_path / "torn").write_text("\n".join(run.lines())[:-5])
    assert "a receipt is not a line of JSON" in broken(run.ledger_path(3), tmp_path / "torn")


@given(st.lists(st.floats(1e-9, 1e9), max_size=5), st.floats(1e-9, 1e9))
def test_decimals_are_exact(charges: list[float], budget: float) -> None:
    left = Fraction(budget) - sum(map(Fraction, charges), Fraction(0))
    assert Fraction(exact_decimal(left)) == left


def test_only_sums_of_floats_are_written_as_decimals() -> None:
    assert (exact_decimal(Fraction(4)), exact_decimal(Fraction(-1, 2))) == ("4", "-0.5")
    with pytest.raises(PrivacyError, match="1/3"):
        exact_decimal(Fraction(1, 3))
