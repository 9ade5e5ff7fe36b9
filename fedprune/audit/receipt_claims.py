"""What a deployed run's receipts must say, as far as a run folder can show it."""

from __future__ import annotations

from collections.abc import Iterator

from fedprune import runs
from fedprune.audit.evidence import Evidence
from fedprune.audit.findings import Finding, check
from fedprune.audit.ledger_claims import LEDGER
from fedprune.privacy import Receipt, Report, verify_receipts
from fedprune.privacy.accounting import REPLACEMENT
from fedprune.runs.receipts import RECEIPTS

CHARGED, UNCHARGED = "mask-report", ("model-update", "count-table")
UNSEEN = (
    "whether a client's own ledger holds what its receipts say, and what it spent elsewhere: "
    f"`fedprune ledger verify LEDGER --receipts {RECEIPTS}` shows it at the client",
    "who holds a key: the keys are those that the nodes introduced themselves with",
    "what a missing client spent on an answer that never arrived or was not used",
    "what a model update or a count table contained: its receipt does not bind it",
)


def grounds(evidence: Evidence) -> Iterator[Finding]:
    """The receipts are there, signed and free of contradiction."""
    there = check("privacy", "the clients' receipts are there", lambda: _absent(evidence), RECEIPTS)
    yield there
    if there.holds:
        yield check(
            "privacy",
            "every receipt is signed by its client's one key, is of this run and contradicts none "
            "before it; nobody is past the configuration's epsilon",
            lambda: _forged(evidence),
            _counted(evidence),
        )


def claims(evidence: Evidence) -> Iterator[Finding]:
    """The receipts are those that the run was made from, one for every report that was used."""
    yield check(
        "privacy",
        "the receipts end where the run's events say they end, and passed every point they name",
        lambda: _cut(evidence),
        "none was cut off or added",
    )
    yield check(
        "privacy",
        "every mask report was charged the configuration's epsilon, once for each client",
        lambda: _other_charges(evidence),
        "every receipt",
    )
    yield check(
        "privacy",
        "every report that was used has its receipt, and whoever gave none is named as missing",
        lambda: _uncounted(evidence),
        "every step",
    )


def reports(evidence: Evidence) -> dict[str, list[Report]]:
    """The reports of every round, from the receipts of the clients that were not missing."""
    rounds = [f"report-{step}" for step in range(1, evidence.config.prune.steps + 1)]
    return {name: [Report(r.report) for r in evidence.used_receipts(name)] for name in rounds}


def _absent(evidence: Evidence) -> str | None:
    if evidence.folder.has(LEDGER):
        return f"a deployed run has no {LEDGER}, its clients keep their own; this folder has one"
    if evidence.config.privacy.trust != "local":
        return f"privacy.trust is {evidence.config.privacy.trust!r}, which no deployed client obeys"
    return None if runs.receipt_lines(evidence.folder) else f"{RECEIPTS} has no line"


def _forged(evidence: Evidence) -> str | None:
    if not runs.is_run_of(evidence.run, evidence.config, simulated=False):
        return f"run {evidence.run} is not a deployed run of this configuration"
    lines = runs.receipt_lines(evidence.folder)
    flaws = verify_receipts(lines, run=evidence.run, budget=evidence.config.privacy.epsilon)
    return next(flaws, None)


def _counted(evidence: Evidence) -> str:
    lines = runs.receipt_lines(evidence.folder)
    return f"{len(lines)} receipts"


def _cut(evidence: Evidence) -> str | None:
    broken = runs.ledger_contradiction(evidence.folder)
    if broken:
        return broken
    named = [e["receipt_lines"] for e in evidence.folder.events() if "receipt_lines" in e]
    lines, last = len(runs.receipt_lines(evidence.folder)), (named or [0])[-1]
    return None if lines == last else f"{RECEIPTS} has {lines} lines, the run ended with {last}"


def _other_charges(evidence: Evidence) -> str | None:
    rounds = {f"report-{step}" for step in range(1, evidence.config.prune.steps + 1)}
    charged_in: dict[str, str] = {}
    for receipt in evidence.receipts:
        wrong = _odd(receipt, evidence, rounds)
        if wrong:
            return f"the receipt of {receipt.subject} {wrong}"
        if receipt.charged and charged_in.setdefault(receipt.client, receipt.round) != (
            receipt.round
        ):
            return (
                f"client {receipt.client} reported in {charged_in[receipt.client]} and in "
                f"{receipt.round}; every client is asked once"
            )
    return None


def _odd(receipt: Receipt, evidence: Evidence, rounds: set[str]) -> str | None:
    """Say what a sound receipt has that no client of this run can have signed."""
    clients, stated = evidence.config.data.clients, evidence.config.privacy.epsilon
    if receipt.client not in {str(client) for client in range(clients)}:
        return f"is of none of the {clients} clients"
    if not receipt.charged:
        known = receipt.kind in UNCHARGED
        return None if known else f"is for an unprotected {receipt.kind!r}, which is never asked"
    if receipt.kind != CHARGED or receipt.round not in rounds:
        return f"charges a {receipt.kind!r}, which was not asked in this round"
    if (receipt.epsilon, receipt.delta, receipt.relation) != (stated, 0.0, REPLACEMENT):
        return f"charges epsilon = {receipt.epsilon:g} under {receipt.relation}, not {stated:g}"
    return None


def _uncounted(evidence: Evidence) -> str | None:
    asked = 0
    for step in range(1, evidence.config.prune.steps + 1):
        result, name = evidence.results()[f"vote-{step}"], f"report-{step}"
        used = evidence.used_receipts(name)
        missing = len(evidence.missing.get(name, []))
        asked += int(result["asked"])
        if len(used) != result["reports"]:
            return f"step {step} used {result['reports']} reports, receipts show {len(used)}"
        if len(used) + missing != result["asked"]:
            return (
                f"step {step} asked {result['asked']} clients: {len(used)} reported and {missing} "
                "are named as missing"
            )
        if len({receipt.question for receipt in used}) > 1:
            return f"the clients of step {step} were asked different questions"
    clients = evidence.config.data.clients
    return None if asked == clients else f"{asked} of {clients} clients were asked to report"
