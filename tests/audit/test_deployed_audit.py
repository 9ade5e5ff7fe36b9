"""A deployed run is audited from its receipts, and every tampering with them is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from deployed_run import Deployed, deploy
from safetensors.torch import load_file, save_file

from fedprune.audit import audit, headlines, write_report
from fedprune.errors import RunError
from fedprune.privacy import Entry, Receipt, SigningKey
from fedprune.privacy.budgets.accounting import REPLACEMENT, UNPROTECTED
from fedprune.privacy.ledgers.chain import SENT, STORED
from fedprune.runs import RunFolder, privacy_figures


def broken_claims(run: Deployed, part: str = "all") -> list[str]:
    return [f"{f.claim}: {f.detail}" for f in audit(run.path, part).findings if not f.holds]


def mask_receipts(run: Deployed) -> list[tuple[int, Receipt]]:
    return [(i, receipt) for i, receipt in enumerate(run.receipts()) if receipt.charged]


def test_a_clean_deployed_run_holds_and_says_what_it_cannot_see(run: Deployed) -> None:
    found = audit(run.path)
    assert broken_claims(run) == []
    claims = " ".join(finding.claim for finding in found.findings)
    for words in ("every receipt is signed", "has its receipt", "votes follow", "no gap is stated"):
        assert words in claims
    unseen = " ".join(found.unseen)
    assert "fedprune ledger verify LEDGER --receipts receipts.jsonl" in unseen
    assert "not signed by anybody" not in unseen


def test_a_run_with_clients_that_never_answered_holds_and_names_them(
    thinned: Deployed, tmp_path: Path
) -> None:
    run = replace(thinned, path=tmp_path / "run")
    shutil.copytree(thinned.path, run.path)
    assert broken_claims(run) == []
    details = " ".join(finding.detail for finding in audit(run.path).findings)
    assert "report-1: clients 40, 41" in details
    page = write_report(run.path).read_text()
    assert "Clients 40, 41 gave no answer in some of the rounds." in page
    assert "client 41 gave no answer in report-1" in page
    summary = json.loads((run.path / "summary.json").read_text())
    assert any("client 40 gave no answer in report-1" in line for line in headlines(summary))


def test_a_run_with_unprotected_tables_holds_and_says_that_nothing_covers_them(
    finished_run: Path, tmp_path: Path
) -> None:
    run = deploy(finished_run, tmp_path / "run", tables=True)
    assert broken_claims(run) == []
    summary = json.loads((run.path / "summary.json").read_text())
    assert any("count tables" in words for words in summary["privacy"]["not_covered"])
    assert summary["privacy"]["overall_client_epsilon"] is None
    run.change_summary(lambda s: s["accuracy"].update(pruned=0.99))
    assert len(broken_claims(run, "fairness")) == 2
    run.write_lines([r.to_line() for r in run.receipts() if (r.client, r.round) != ("3", "tables")])
    assert "40 count tables came, 39 have a receipt" in " ".join(broken_claims(run, "fairness"))


def test_a_report_that_came_in_an_attempt_that_was_given_up_is_no_vote(
    thinned: Deployed, tmp_path: Path
) -> None:
    run = replace(thinned, path=tmp_path / "run", keys=dict(thinned.keys))
    shutil.copytree(thinned.path, run.path)
    entry = replace(mask_receipts(run)[0][1].entry, client="40")
    late = run.sign(entry, row=1000)
    run.write_lines([*run.lines(), late.to_line()])
    found = broken_claims(run, "privacy")
    assert len(found) == 1  # its epsilon is spent, so the summary has to count it
    assert "privacy.reports is stated as 40, recomputed as 41" in found[0]
    run.change_summary(lambda s: s["privacy"].update(reports=41, basis=basis(run)))
    assert broken_claims(run) == []


def basis(run: Deployed) -> str:
    folder = RunFolder.open(run.path)
    return str(privacy_figures(folder, folder.config, False)["basis"])


def flip_a_report_byte(run: Deployed) -> str:
    place, receipt = mask_receipts(run)[5]
    changed = bytes([receipt.report[0] ^ 1]) + receipt.report[1:]
    lines = run.lines()
    lines[place] = replace(receipt, report=changed).to_line()
    run.write_lines(lines)
    return f"receipt {place + 1} of client {receipt.client} for round report-1: its signature"


def lower_an_epsilon(run: Deployed) -> str:
    place, receipt = mask_receipts(run)[0]
    lines = run.lines()
    lines[place] = replace(receipt, epsilon=1.0).to_line()
    run.write_lines(lines)
    return "its signature"


def change_a_signature(run: Deployed) -> str:
    place, receipt = mask_receipts(run)[0]
    other = mask_receipts(run)[1][1]
    lines = run.lines()
    lines[place] = replace(receipt, signature=other.signature).to_line()
    run.write_lines(lines)
    return "its signature"


def drop_a_receipt(run: Deployed) -> str:
    place, _ = mask_receipts(run)[7]
    lines = run.lines()
    del lines[place]
    run.write_lines(lines)
    return "round report-1 used 40 reports, receipts show 39"


def drop_a_receipt_and_name_its_client_missing(run: Deployed) -> str:
    place, receipt = mask_receipts(run)[7]
    lines = run.lines()
    del lines[place]
    run.write_lines(lines)
    gone = {"report-1": [int(receipt.client)]}

    def change(event: dict) -> None:
        if event["phase"] == "vote-1":
            event["missing"] = gone
            event["result"]["reports"] -= 1
            event["result"]["phases"][0]["reports"] -= 1

    run.change_events(change)
    run.change_summary(lambda s: s.update(missing=gone))
    run.change_summary(lambda s: s["privacy"].update(reports=39))
    return "does not follow from the reports"


def add_a_fork(run: Deployed) -> str:
    receipt = run.receipts()[-1]
    entry = replace(receipt.entry, round="another")
    fork = run.sign(entry, row=receipt.ledger_rows, previous=receipt.ledger_previous)
    run.write_lines([*run.lines(), fork.to_line()])
    return "had another content before: the ledger was rolled back"


def add_a_second_key(run: Deployed) -> str:
    receipt = run.receipts()[-1]
    other = "1" if receipt.client == "0" else "0"
    entry = replace(receipt.entry, round="another")
    forged = run.sign(entry, row=receipt.ledger_rows + 1, key=other)
    run.write_lines([*run.lines(), forged.to_line()])
    return "the client signed with another key before"


def add_another_run(run: Deployed) -> str:
    receipt = run.receipts()[-1]
    entry = replace(receipt.entry, run="another")
    added = run.sign(entry, row=receipt.ledger_rows + 7)
    run.write_lines([*run.lines(), added.to_line()])
    return "it is of run another"


def overspend(run: Deployed) -> str:
    receipt = run.receipts()[-1]
    entry = Entry(
        receipt.client, run.run, "report-9", "mask-report", "q", REPLACEMENT, 4.0, stage=STORED
    )
    added = run.sign(entry, row=receipt.ledger_rows + 2)
    run.write_lines([*run.lines(), added.to_line()])
    return f"client {receipt.client} signed for epsilon = 8, past the budget of 4"


def add_an_unknown_message(run: Deployed) -> str:
    receipt = run.receipts()[-1]
    entry = Entry(receipt.client, run.run, "x", "raw-mask", "q", UNPROTECTED, stage=SENT)
    entry = replace(entry, content_hash="ab" * 32)
    run.write_lines([*run.lines(), run.sign(entry, row=receipt.ledger_rows + 2).to_line()])
    return "is for an unprotected 'raw-mask', which is never asked"


def add_an_unknown_client(run: Deployed) -> str:
    run.keys["40"] = SigningKey.open(run.path / "a.key")
    (run.path / "a.key").unlink()
    entry = replace(mask_receipts(run)[0][1].entry, client="40")
    run.write_lines([*run.lines(), run.sign(entry, row=2).to_line()])
    return "is of none of the 40 clients"


def change_the_votes(run: Deployed) -> str:
    votes = load_file(run.path / "votes.safetensors")
    mean = votes["step1.mean"].clone()
    mean[3] += 0.01
    save_file({**votes, "step1.mean": mean}, run.path / "votes.safetensors")
    run.seal_again()
    return "the vote of unit 3 in step 1 does not follow from the reports"


def plant_a_ledger(run: Deployed) -> str:
    shutil.copy(run.ledger_path(0), run.path / "ledger.sqlite")
    return "its clients keep their own; this folder has one"


def empty_the_receipts(run: Deployed) -> str:
    run.write_lines([])
    return "receipts.jsonl has no line"


def remove_the_receipts(run: Deployed) -> str:
    (run.path / "receipts.jsonl").unlink()
    return "receipts.jsonl is missing"


def garble_a_line(run: Deployed) -> str:
    lines = run.lines()
    lines[4] = lines[4][:-9]
    run.write_lines(lines)
    return "receipt 5: a receipt is not a line of JSON"


def name_another_run(run: Deployed) -> str:
    run.change_events(lambda e: e["result"].update(run=run.run[:-9]) if "run" in e["result"] else 0)
    return "is not a deployed run of this configuration"


def call_it_a_simulation(run: Deployed) -> str:
    run.change_summary(lambda s: s.update(simulated=True))
    return "ledger.sqlite is missing"


TAMPERINGS = [
    flip_a_report_byte, lower_an_epsilon, change_a_signature, drop_a_receipt,
    drop_a_receipt_and_name_its_client_missing, add_a_fork, add_a_second_key, add_another_run,
    overspend, add_an_unknown_message, add_an_unknown_client, change_the_votes, plant_a_ledger,
    empty_the_receipts, remove_the_receipts, garble_a_line, name_another_run, call_it_a_simulation,
]  # fmt: skip


@pytest.mark.parametrize("tamper", TAMPERINGS, ids=lambda tamper: tamper.__name__)
def test_tampering_is_found_even_if_all_hashes_of_the_folder_are_made_to_fit(
    run: Deployed, tamper: Callable[[Deployed], str]
) -> None:
    words = tamper(run)
    assert words in " ".join(broken_claims(run, "privacy"))


def test_receipts_that_were_cut_after_the_run_are_found_by_its_events(run: Deployed) -> None:
    path = run.path / "receipts.jsonl"
    path.write_text("".join(line + "\n" for line in run.lines()[:-1]))
    assert "is not the one that phase" in " ".join(broken_claims(run, "privacy"))
    assert "receipts.jsonl" in " ".join(broken_claims(run, "record"))


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        (("privacy", "basis"), "the clients' word", "privacy"),
        (("privacy", "reports"), 41, "privacy"),
        (("privacy", "not_covered"), [], "privacy"),
        (("privacy", "max_epsilon_spent"), 1.0, "privacy"),
        (("accuracy", "pruned"), 0.99, "fairness"),
        (("fairness",), {"gap_dense": 0.0}, "fairness"),
        (("certified_accuracy", "pruned"), 0.5, "robustness"),
        (("mask_recall",), 0.99, "record"),
        (("missing",), {"report-1": [3]}, "privacy"),
        (("missing",), {"tune-1-1": [3]}, "record"),
        (("missing",), {"tune-1-1": [99]}, "record"),
    ],
)
def test_figures_that_the_folder_does_not_carry_are_found(
    run: Deployed, key: tuple[str, ...], value: object, part: str
) -> None:
    def change(summary: dict) -> None:
        for name in key[:-1]:
            summary = summary[name]
        summary[key[-1]] = value

    run.change_summary(change)
    assert broken_claims(run, part)


def test_a_summary_whose_missing_clients_cannot_be_read_is_refused(run: Deployed) -> None:
    run.change_summary(lambda s: s.update(missing=[1, 2]))
    with pytest.raises(RunError, match="missing must list client numbers by round"):
        audit(run.path)


def test_the_page_says_how_many_clients_signed_and_that_receipts_hold(run: Deployed) -> None:
    page = write_report(run.path).read_text()
    assert "deployed: 40 clients, receipts verified" in page
    assert "What is known rests on signed receipts of 40 clients" in page
    assert run.keys["7"].public in page
    assert "exist only in simulation" in page


@pytest.mark.parametrize("tamper", [flip_a_report_byte, remove_the_receipts, garble_a_line])
def test_the_page_warns_where_receipts_do_not_hold(
    run: Deployed, tamper: Callable[[Deployed], str]
) -> None:
    tamper(run)
    page = write_report(run.path).read_text()
    assert "receipts NOT in order" in page
    assert "The clients&#39; receipts do not hold" in page
