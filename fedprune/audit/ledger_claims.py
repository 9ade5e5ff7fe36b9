"""What a simulated run's ledger must say."""

from __future__ import annotations

from collections.abc import Iterator

from fedprune import runs
from fedprune.audit.availability_checks import lost_answers
from fedprune.audit.charge_checks import charge_flaw
from fedprune.audit.evidence import Evidence
from fedprune.audit.findings import Finding, check
from fedprune.privacy import Ledger, Report
from fedprune.privacy.ledgers.chain import STORED

LEDGER = "ledger.sqlite"


def grounds(evidence: Evidence) -> Iterator[Finding]:
    """The ledger is there and whole."""
    there = evidence.folder.has(LEDGER)
    yield check(
        "privacy",
        "the ledger is there",
        lambda: None if there else f"{LEDGER} is missing from the run folder",
    )
    if there:
        yield check(
            "privacy",
            "the ledger's chain, report bytes, charges and budgets are intact",
            lambda: _broken(evidence),
            "every row",
        )


def claims(evidence: Evidence) -> Iterator[Finding]:
    """The ledger is that of this run, up to its end."""
    yield check(
        "privacy",
        "the ledger ends where the run's events say it ends, and passed every point they name",
        lambda: _cut(evidence),
        "no row was cut off or added",
    )
    yield check(
        "privacy",
        "the ledger's budget and run are those of the configuration, nobody past it",
        lambda: _other_terms(evidence),
        "every row",
    )


def reports(evidence: Evidence) -> dict[str, list[tuple[int, Report]]]:
    """The stored answers of every round that arrived, each with its client."""
    by_round: dict[str, list[tuple[int, Report]]] = {}
    lost = lost_answers(evidence)
    with _ledger(evidence) as ledger:
        for entry in ledger.entries():
            if entry.stage == STORED and int(entry.client) not in lost.get(entry.round, ()):
                answer = int(entry.client), Report(entry.report)
                by_round.setdefault(entry.round, []).append(answer)
    return by_round


def _ledger(evidence: Evidence) -> Ledger:
    return Ledger.open(evidence.folder.path / LEDGER, read_only=True)


def _broken(evidence: Evidence) -> str | None:
    with _ledger(evidence) as ledger:
        return next(ledger.verify(), None)


def _cut(evidence: Evidence) -> str | None:
    broken = runs.ledger_contradiction(evidence.folder)
    if broken:
        return broken
    named = [e["ledger_rows"] for e in evidence.folder.events() if "ledger_rows" in e]
    with _ledger(evidence) as ledger:
        rows, last = ledger.head[0], (named or [0])[-1]
    return None if rows == last else f"the ledger has {rows} rows, the run ended with {last}"


def _other_terms(evidence: Evidence) -> str | None:
    name, config = runs.run_id(evidence.config), evidence.config
    wanted = {budget.relation: budget for budget in runs.budgets(config, evidence.num_units)}
    with _ledger(evidence) as ledger:
        if dict(ledger.budgets) != wanted:
            return (
                f"the ledger's budgets are {list(ledger.budgets.values())}, the configuration's "
                f"{list(wanted.values())}"
            )
        for number, entry in ledger.numbered_entries():
            if entry.run != name:
                return f"ledger row {number} is of run {entry.run}, this is run {name}"
            flaw = charge_flaw(config, evidence.num_units, entry)
            if flaw:
                return f"ledger row {number} {flaw}"
    return None
