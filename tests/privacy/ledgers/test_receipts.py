"""Receipts: bound to every field, repeated byte by byte, and in contradiction after a rollback."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.errors import LedgerError, PrivacyError
from fedprune.privacy import (
    Budget,
    Entry,
    Ledger,
    Memoised,
    Receipt,
    SigningKey,
    key_path,
    verify_receipts,
)
from fedprune.privacy.budgets.events import (
    ADD_REMOVE_RECORD,
    NO_CHARGE,
    REPLACEMENT,
    UNPROTECTED,
    SubsampledGaussianEvent,
    ZeroConcentratedEvent,
    event_from_text,
    event_to_text,
)
from fedprune.privacy.budgets.filters import filter_of
from fedprune.privacy.ledgers.chain import SENT, STORED
from fedprune.privacy.ledgers.receipt_checks import charged_to, epsilon_of


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.open(key_path(tmp_path / "ledger.sqlite"))


@pytest.fixture
def ledger(tmp_path: Path, key: SigningKey) -> Iterator[Ledger]:
    with open_ledger(tmp_path / "ledger.sqlite", key) as opened:
        yield opened


def open_ledger(path: Path, key: SigningKey, epsilon: float = 10.0) -> Ledger:
    return Ledger.open(
        path, budget=Budget(epsilon), owner="client 3", private=True, signing_key=key.public
    )


def charge(round_: str = "report-1", epsilon: float = 4.0, client: str = "3") -> Entry:
    return Entry(client, "run-1", round_, "mask-report", "q", REPLACEMENT, epsilon)


def update(round_: str = "train-1", client: str = "3", question: str = "q") -> Entry:
    content = hashlib.sha256(f"weights of {round_}".encode()).hexdigest()
    entry = Entry(client, "run-1", round_, "model-update", question, UNPROTECTED, stage=SENT)
    return replace(entry, content_hash=content)


def report(ledger: Ledger, key: SigningKey, entry: Entry, payload: bytes = b"\x01\xff") -> Receipt:
    ledger.reserve(entry)
    ledger.store(entry, payload)
    return ledger.receipt(entry, key)


def send(ledger: Ledger, key: SigningKey, entry: Entry) -> Receipt:
    ledger.record_unprotected([entry])
    return ledger.receipt(entry, key)


def flaws(*receipts: Receipt, **known: object) -> str:
    return "; ".join(verify_receipts([r.to_line() for r in receipts], **known))


# One receipt.


def test_a_receipt_repeats_its_row_and_its_signature_is_that_of_the_ledgers_key(
    ledger: Ledger, key: SigningKey
) -> None:
    receipt = report(ledger, key, charge())
    assert receipt.entry == replace(charge(), stage=STORED, report=b"\x01\xff")
    assert (receipt.ledger_rows, receipt.ledger_head) == ledger.head == (2, ledger.hash_at(2))
    assert receipt.ledger_previous == ledger.hash_at(1)
    assert receipt.flaw() is None
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.public))
    public.verify(bytes.fromhex(receipt.signature), receipt.message)
    assert ledger.confirms(receipt) is None


def test_a_repeated_report_has_the_same_receipt_byte_by_byte(
    ledger: Ledger, key: SigningKey
) -> None:
    first = report(ledger, key, charge())
    send(ledger, key, update())
    assert ledger.reserve(charge()) == Memoised(b"\x01\xff")
    assert ledger.receipt(charge(), key).to_line() == first.to_line()
    assert ledger.receipt_head(charge()) == (first.ledger_rows, first.ledger_head)
    assert flaws(first, ledger.receipt(update(), key), first, run="run-1", budget=4.0) == ""


def test_an_unprotected_message_gets_the_receipt_of_its_latest_row(
    ledger: Ledger, key: SigningKey
) -> None:
    first = send(ledger, key, update())
    second = send(ledger, key, update())
    assert (first.ledger_rows, second.ledger_rows) == (1, 2)
    assert second.ledger_previous == first.ledger_head
    assert (first.report, first.epsilon, first.charged) == (b"", 0.0, False)
    assert flaws(first, second) == ""


def test_a_receipt_binds_the_content_of_a_message_that_is_not_charged(
    ledger: Ledger, key: SigningKey
) -> None:
    receipt = send(ledger, key, update())
    assert (receipt.report, receipt.report_hash) == (b"", update().content_hash)
    receipt.check_answers(update())
    with pytest.raises(LedgerError, match="its content_hash is"):
        receipt.check_answers(replace(update(), content_hash="0" * 64))
    with pytest.raises(LedgerError, match="so no receipt is given"):
        ledger.receipt(replace(update(), content_hash="0" * 64), key)
    ledger.record_unprotected([replace(update("train-2"), content_hash="")])
    with pytest.raises(LedgerError, match="was recorded without its content's hash"):
        ledger.receipt(replace(update("train-2"), content_hash=""), key)
    for content_hash in ("ab", "x" * 64, "AB" * 32):
        with pytest.raises(PrivacyError, match="has a content hash of 64"):
            ledger.record_unprotected([replace(update(), content_hash=content_hash)])


def test_a_large_report_is_bound_by_its_hash_alone(ledger: Ledger, key: SigningKey) -> None:
    payload = bytes(range(256)) * 1025
    receipt = report(ledger, key, charge(), payload)
    assert receipt.report == b""
    assert receipt.report_hash == hashlib.sha256(payload).hexdigest()
    assert len(receipt.to_line()) < 2000
    assert Receipt.from_line(receipt.to_line()) == receipt
    receipt.verify()
    receipt.check_answers(charge(), payload)
    for other in (payload[:-1], payload + b"x", b""):
        with pytest.raises(LedgerError, match="its report is other bytes"):
            receipt.check_answers(charge(), other)
    assert ledger.confirms(receipt) is None
    small = report(ledger, key, charge("report-2"), b"small")
    without = replace(small, report=b"")
    signed = replace(without, signature=key.sign(without.message).hex())
    assert signed.flaw() is None  # it hides nothing that it states, but it is not what is due
    with pytest.raises(LedgerError, match="its report is other bytes"):
        signed.check_answers(charge("report-2"), b"small")


def test_answers_at_no_charge_are_signed_whether_stored_or_only_recorded(
    ledger: Ledger, key: SigningKey
) -> None:
    asked = replace(charge("keys-1"), relation=NO_CHARGE, epsilon=0.0, event="", kind="secure-sum")
    stored = report(ledger, key, asked)
    sent = send(ledger, key, replace(update("shares-1"), relation=NO_CHARGE))
    assert (stored.stage, sent.stage) == ("stored", "sent")
    stored.check_answers(asked, b"\x01\xff")
    for receipt in (stored, sent):
        assert Receipt.from_line(receipt.to_line()) == receipt
        assert not receipt.charged
        assert ledger.confirms(receipt) is None
    assert flaws(stored, sent, budget=1e-9) == ""
    assert ledger.spent("3") == 0


def test_an_event_that_is_not_pure_is_signed_with_its_guarantee_at_the_budgets_delta(
    tmp_path: Path, key: SigningKey
) -> None:
    budgets = [
        Budget.zcdp(2.0, 1e-6),
        Budget.renyi(8.0, 1e-5, ADD_REMOVE_RECORD, [ZeroConcentratedEvent(0.05)]),
    ]
    steps = SubsampledGaussianEvent(1.1, 0.1, 20)
    with Ledger.open(
        tmp_path / "both", budget=budgets, owner="c", private=True, signing_key=key.public
    ) as ledger:
        share = Entry.charged(
            client="3", run="run-1", round="sum-1", kind="aggregate-share", question="q",
            relation=REPLACEMENT, event=ZeroConcentratedEvent(0.01),
        )  # fmt: skip
        tuned = Entry.charged(
            client="3", run="run-1", round="tune-1", kind="dp-update", question="q",
            relation=ADD_REMOVE_RECORD, event=steps,
        )  # fmt: skip
        receipts = [report(ledger, key, share), report(ledger, key, tuned)]
        for receipt, asked, budget in zip(receipts, (share, tuned), budgets, strict=True):
            assert (asked.epsilon, asked.delta) == (0.0, 0.0)  # the server knows no budget
            receipt.check_answers(asked, b"\x01\xff")
            kept = filter_of(budget)
            charged = kept.charge(event_from_text(asked.event))
            assert (receipt.epsilon, receipt.delta) == (kept.epsilon_of(charged), budget.delta)
        with pytest.raises(LedgerError, match="its event is"):
            receipts[1].check_answers(
                replace(tuned, event=event_to_text(replace(steps, steps=21))), b"\x01\xff"
            )
        assert flaws(*receipts, budget=budgets) == ""
        small = [Budget.zcdp(2.0, 1e-6), replace(budgets[1], epsilon=receipts[1].epsilon)]
        assert "client 3 signed for epsilon" in flaws(*receipts, budget=small)
        assert epsilon_of(receipts) == {"3": Fraction(receipts[0].epsilon)}
        record = epsilon_of(receipts, ADD_REMOVE_RECORD)
        assert record == {"3": sum(Fraction(r.epsilon) for r in receipts)}
        assert charged_to(receipts, budgets[1]) == {"3": ledger.spent("3", ADD_REMOVE_RECORD)}


def test_a_guarantee_that_is_not_that_of_its_event_is_found_even_if_signed(key: SigningKey) -> None:
    entry = replace(charge(), epsilon=1.0, stage=STORED)  # the event says 4
    forged = Receipt.sign(entry, row=2, previous="0" * 64, key=key)
    assert forged.flaw() == "it states epsilon = 1, its event has 4"
    unknown = Receipt.sign(replace(entry, event="{}"), row=2, previous="0" * 64, key=key)
    assert "not an event" in str(unknown.flaw())


def test_nothing_is_signed_that_the_ledger_does_not_hold(
    ledger: Ledger, key: SigningKey, tmp_path: Path
) -> None:
    ledger.reserve(charge())
    for entry in (charge(), update(), charge(round_="report-2"), charge(epsilon=1.0)):
        with pytest.raises(LedgerError, match="so no receipt is given"):
            ledger.receipt(entry, key)
    ledger.store(charge(), b"x")
    with pytest.raises(LedgerError, match="no receipt under key"):
        ledger.receipt(charge(), SigningKey.open(tmp_path / "other.key"))
    with pytest.raises(LedgerError, match="so no receipt is given"):
        ledger.receipt(replace(charge(), question="another"), key)
    with pytest.raises(LedgerError, match="got stage 'reserved'"):
        Receipt.sign(charge(), row=1, previous="0" * 64, key=key)


def test_a_damaged_row_gets_no_receipt(ledger: Ledger, key: SigningKey) -> None:
    report(ledger, key, charge())
    with sqlite3.connect(ledger.path) as raw:
        raw.execute("UPDATE entries SET report = x'00' WHERE seq = 2")
    raw.close()
    with pytest.raises(LedgerError, match=r"row 2 of the ledger .* does not match its hash"):
        ledger.receipt(charge(), key)


@pytest.mark.parametrize("name", [f.name for f in fields(Receipt)])
def test_no_field_can_be_changed(ledger: Ledger, key: SigningKey, name: str) -> None:
    receipt = report(ledger, key, charge())
    value = getattr(receipt, name)
    other = {str: "ab" * 32, int: 7, float: 0.5, bytes: b"\x00"}[type(value)]
    other = "ab" * 64 if name == "signature" else other
    changed = replace(receipt, **{name: other})
    assert "its signature is not that of its key" in str(changed.flaw())
    with pytest.raises(LedgerError, match="refused: its signature"):
        changed.verify()
    assert "signature" in str(ledger.confirms(changed))
    assert (f"a receipt's {name} must be" if name in ("stage", "relation") else "signature") in (
        flaws(changed)
    )


@pytest.mark.parametrize("name", ["client", "epsilon", "report", "ledger_rows", "ledger_previous"])
def test_even_the_keys_holder_cannot_sign_a_head_that_is_not_of_this_content(
    ledger: Ledger, key: SigningKey, name: str
) -> None:
    receipt = report(ledger, key, charge())
    other = {"client": "4", "epsilon": 1.0, "report": b"\x00", "ledger_rows": 9}
    forged = replace(receipt, **{name: other.get(name, "0" * 64)})
    if name == "report":
        assert "signature" in str(forged.flaw())
        signed = replace(forged, signature=key.sign(forged.message).hex())
        assert "does not match the report's hash" in str(signed.flaw())
        return
    signed = replace(forged, signature=key.sign(forged.message).hex())
    assert "its ledger hash is not that of a row with this content" in str(signed.flaw())


def test_a_receipt_for_another_answer_is_refused_by_the_field_that_differs(
    ledger: Ledger, key: SigningKey
) -> None:
    receipt = report(ledger, key, charge())
    receipt.check_answers(charge(), b"\x01\xff")
    for asked, sent, word in (
        (charge(), b"\x02\xff", "its report is other bytes"),
        (charge(epsilon=2.0), b"\x01\xff", "its epsilon is 4.0, not 2.0"),
        (charge(client="4"), b"\x01\xff", "its client is '3', not '4'"),
        (replace(charge(), question="other"), b"\x01\xff", "its question is"),
        (update(), b"", "its round is"),
    ):
        with pytest.raises(LedgerError, match=word):
            receipt.check_answers(asked, sent)


# On the wire.

texts = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=200)


@settings(max_examples=60)
@given(texts, texts, texts, st.binary(max_size=300), st.floats(1e-6, 64), st.integers(1, 2**63 - 1))
def test_a_line_gives_the_receipt_back(
    tmp_path_factory: pytest.TempPathFactory,
    client: str,
    run: str,
    round_: str,
    payload: bytes,
    epsilon: float,
    row: int,
) -> None:
    key = SigningKey.open(tmp_path_factory.getbasetemp() / "one.key")
    entry = Entry(
        client, run, round_, "mask-report", "q", REPLACEMENT, epsilon, stage=STORED, report=payload
    )
    receipt = Receipt.sign(entry, row=row, previous="0" * 64, key=key)
    line = receipt.to_line()
    assert "\n" not in line
    assert line.isascii()
    again = Receipt.from_line(line)
    assert (again, again.to_line(), again.flaw()) == (receipt, line, None)


def broken_lines(line: str) -> dict[str, str]:
    content = json.loads(line)

    def with_(**changed: object) -> str:
        return json.dumps(content | changed)

    return {
        "empty": "",
        "cut off": line[:-1],
        "nothing": "null",
        "list": "[]",
        "deep": "[" * 100_000,
        "long": line + " " * (1 << 20),
        "spaces": line.replace(", ", ",\n"),
        "another order": json.dumps(dict(reversed(content.items()))),
        "whole epsilon": with_(epsilon=4),
        "twice": line[:-1] + ', "client": "4"}',
        "missing field": json.dumps({k: v for k, v in content.items() if k != "question"}),
        "field too many": with_(more=1),
        "another schema": with_(schema=1),
        "no event": with_(event=""),
        "another stage": with_(stage="reserved"),
        "sent with a report": with_(stage="sent"),
        "unknown relation": with_(relation="neighbours"),
        "unprotected stored": with_(relation="unprotected", epsilon=0.0, event=""),
        "number for text": with_(client=3),
        "empty text": with_(run=""),
        "long text": with_(round="x" * 201),
        "line break": with_(kind="a\nb"),
        "escape": with_(kind="\x1b[31m"),
        "half a character": line.replace('"client": "3"', '"client": "\\ud800"'),
        "short hash": with_(ledger_head="ab"),
        "upper case": with_(ledger_head="AB" * 32),
        "odd report": with_(report="abc"),
        "text report": with_(report="xy"),
        "row 0": with_(ledger_rows=0),
        "row true": with_(ledger_rows=True),
        "row 1.0": with_(ledger_rows=1.0),
        "row too large": with_(ledger_rows=2**63),
        "negative epsilon": with_(epsilon=-1.0),
        "no epsilon": with_(epsilon=0.0),
        "epsilon NaN": with_(epsilon=float("nan")),
        "epsilon infinite": with_(epsilon=float("inf")),
        "epsilon text": with_(epsilon="4"),
        "epsilon huge": line.replace('"epsilon": 4.0', '"epsilon": ' + "9" * 5000),
        "unprotected epsilon": with_(relation="unprotected"),
    }


def test_whatever_is_not_a_receipt_is_refused_in_one_short_sentence(
    ledger: Ledger, key: SigningKey
) -> None:
    line = report(ledger, key, charge()).to_line()
    for name, broken in broken_lines(line).items():
        with pytest.raises(LedgerError, match=r"^(a receipt|the receipt)") as refused:
            Receipt.from_line(broken)
        assert len(str(refused.value)) < 300, name
        assert str(refused.value).isprintable(), name
        assert len(list(verify_receipts([broken]))) == 1, name


# Several receipts.


def test_an_honest_history_has_no_flaw(ledger: Ledger, key: SigningKey) -> None:
    history = [
        send(ledger, key, update("train-1")),
        report(ledger, key, charge()),
        send(ledger, key, update("tune-1-1")),
    ]
    assert flaws(*history, run="run-1", budget=4.0) == ""
    assert epsilon_of([*history, *history]) == {"3": 4}


def test_a_ledger_that_was_rolled_back_contradicts_its_receipts(
    tmp_path: Path, key: SigningKey
) -> None:
    path, copy = tmp_path / "ledger.sqlite", tmp_path / "copy.sqlite"
    with open_ledger(path, key) as ledger:
        before = send(ledger, key, update("train-1"))
    shutil.copy(path, copy)
    with open_ledger(path, key) as ledger:
        lost = report(ledger, key, charge("report-1"))
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    shutil.copy(copy, path)
    with open_ledger(path, key) as ledger:
        assert ledger.confirms(before) is None
        assert "row 3 is not in the ledger, which has 1: it was rolled back" in str(
            ledger.confirms(lost)
        )
        again = report(ledger, key, charge("report-1"), b"another draw")
        assert "another hash: it was rewritten" in str(ledger.confirms(lost))
        assert list(ledger.verify()) == []  # by itself the new history is fine
    assert "ledger row 3 had another content before: the ledger was rolled back" in flaws(
        before, lost, again
    )
    assert "answered before with another report" in flaws(before, lost, again)


def test_a_fork_that_no_row_number_shows_shows_in_the_links(key: SigningKey) -> None:
    first = Receipt.sign(replace(update("a"), stage=SENT), row=1, previous="0" * 64, key=key)
    second = Receipt.sign(replace(update("b"), stage=SENT), row=2, previous="1" * 64, key=key)
    assert "ledger row 2 does not follow the row 1 of an earlier receipt" in flaws(first, second)
    found = flaws(second, first)
    assert "the row 2 of an earlier receipt does not follow ledger row 1" in found
    assert "its ledger row 1 comes after row 2" in found


def test_rows_that_go_backwards_are_told_but_repeats_are_not(
    ledger: Ledger, key: SigningKey
) -> None:
    one, two, three = (send(ledger, key, update(f"train-{i}")) for i in range(3))
    assert flaws(one, two, three, one, two) == ""
    assert "row 2 comes after row 3" in flaws(one, three, two)


def test_one_client_has_one_key_and_one_key_has_one_client(tmp_path: Path) -> None:
    keys = [SigningKey.open(tmp_path / f"{i}.key") for i in range(2)]
    a, b = (replace(update(f"train-{i}"), stage=SENT) for i in range(2))
    first = Receipt.sign(a, row=1, previous="0" * 64, key=keys[0])
    other_key = Receipt.sign(b, row=2, previous=first.ledger_head, key=keys[1])
    other_client = Receipt.sign(
        replace(b, client="4"), row=2, previous=first.ledger_head, key=keys[0]
    )
    assert "the client signed with another key before" in flaws(first, other_key)
    assert "its key is that of client 3" in flaws(first, other_client)


def test_sums_are_exact_and_repeats_count_once(ledger: Ledger, key: SigningKey) -> None:
    receipts = [report(ledger, key, charge(f"r{i}", 0.1), bytes([i])) for i in range(3)]
    assert flaws(*receipts, budget=0.1 + 0.2) == ""  # 0.30000000000000004
    assert "client 3 signed for epsilon = 0.3, past the budget of 0.3" in flaws(
        *receipts, receipts[0], budget=0.3
    )
    assert flaws(*receipts, receipts[0], budget=0.1 + 0.2) == ""


def test_another_run_and_a_line_that_is_no_receipt_are_named_by_number(
    ledger: Ledger, key: SigningKey
) -> None:
    receipt = report(ledger, key, charge())
    found = list(verify_receipts(["{}", receipt.to_line()], run="run-2"))
    assert found[0].startswith("receipt 1: a receipt has schema None")
    assert found[1] == "receipt 2 of client 3 for round report-1: it is of run run-1, not of run-2"


def test_a_forged_receipt_does_not_taint_those_that_follow(ledger: Ledger, key: SigningKey) -> None:
    honest = report(ledger, key, charge())
    forged = replace(honest, public_key="ab" * 32)
    found = list(verify_receipts([forged.to_line(), honest.to_line()]))
    assert len(found) == 1
    assert found[0].startswith("receipt 1 of client 3")


# The ledger's key.


def test_a_ledger_is_tied_to_its_key(tmp_path: Path, key: SigningKey) -> None:
    path = tmp_path / "ledger.sqlite"
    with open_ledger(path, key) as ledger:
        assert ledger.signing_key == ledger.terms["signing_key"] == key.public
    other = SigningKey.open(tmp_path / "other.key")
    with pytest.raises(LedgerError, match=r"is tied to signing key .* restore the key file"):
        open_ledger(path, other)
    with pytest.raises(LedgerError, match="none was given"):
        Ledger.open(path, budget=Budget(10.0), owner="client 3", private=True)
    with pytest.raises(LedgerError, match="is tied to signing key"):
        Ledger.open(path, private=True, signing_key=other.public)
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE terms SET value = ? WHERE name = 'signing_key'", (other.public,))
    raw.close()
    with open_ledger(path, other) as ledger:
        ledger.record_unprotected([update()])
        assert list(ledger.verify()) == []  # nothing was written under the old key
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE terms SET value = ? WHERE name = 'signing_key'", (key.public,))
    raw.close()
    with open_ledger(path, key) as ledger:
        assert "link does not match" in next(ledger.verify())


def test_simulations_have_no_key_and_no_receipts(tmp_path: Path, key: SigningKey) -> None:
    path = tmp_path / "simulated.sqlite"
    with pytest.raises(LedgerError, match="a simulation gives no receipts"):
        Ledger.open(path, budget=Budget(4.0), signing_key=key.public)
    assert not path.exists()
    with Ledger.open(path, budget=Budget(4.0)) as ledger:
        ledger.record_unprotected([update()])
        assert ledger.signing_key is None
        assert "signing_key" not in ledger.terms
        with pytest.raises(LedgerError, match="tied to no signing key"):
            ledger.receipt(update(), key)
    with pytest.raises(LedgerError, match="has no signing key"):
        Ledger.open(path, private=True, signing_key=key.public)
    with pytest.raises(LedgerError, match="NOT PRIVATE"):
        Ledger.open(path, budget=Budget(4.0), private=True)
