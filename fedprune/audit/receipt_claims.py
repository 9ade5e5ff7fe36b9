"""What a deployed run's receipts must say, as far as a run folder can show it."""

from __future__ import annotations

from collections.abc import Iterator

from fedprune import runs
from fedprune.audit.charge_checks import KIND_OF_TRUST, charge_flaw
from fedprune.audit.evidence import Evidence
from fedprune.audit.findings import Finding, check
from fedprune.audit.ledger_claims import LEDGER
from fedprune.privacy import Receipt, Report, verify_receipts
from fedprune.runs.receipts import RECEIPTS

UNCHARGED = ("model-update", "count-table", "norm-statistics")
UNSEEN = (
    "whether a client's own ledger holds what its receipts say, and what it spent elsewhere: "
    f"`fedprune ledger verify LEDGER --receipts {RECEIPTS}` shows it at the client",
    "who holds a key: the keys are those that the nodes introduced themselves with",
    "what a missing client spent on an answer that never arrived or was not used",
    "what a model update, a count table or statistics contained: its receipt binds it by its hash "
    "alone, which the server compared when it came",
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


def reports(evidence: Evidence) -> dict[str, list[tuple[int, Report]]]:
    """The answers of every round, from the receipts of the clients that were not missing."""
    return {
        name: [(int(r.client), Report(r.report)) for r in evidence.used_receipts(name)]
        for name in _answer_rounds(evidence)
    }


def _answer_rounds(evidence: Evidence) -> list[str]:
    config = evidence.config
    return [
        runs.phase_round(step, phase)
        for step in range(1, config.prune.steps + 1)
        for phase in range(1, config.privacy.phases + 1)
    ]


def _absent(evidence: Evidence) -> str | None:
    if evidence.folder.has(LEDGER):
        return f"a deployed run has no {LEDGER}, its clients keep their own; this folder has one"
    if evidence.config.privacy.trust in ("none", "shuffle"):
        return f"privacy.trust is {evidence.config.privacy.trust!r}, which no deployed client obeys"
    return None if runs.receipt_lines(evidence.folder) else f"{RECEIPTS} has no line"


def _forged(evidence: Evidence) -> str | None:
    if not runs.is_run_of(evidence.run, evidence.config, simulated=False):
        return f"run {evidence.run} is not a deployed run of this configuration"
    lines = runs.receipt_lines(evidence.folder)
    allowed = runs.budgets(evidence.config, evidence.num_units)
    flaws = verify_receipts(lines, run=evidence.run, budget=allowed)
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
    charged_in: dict[str, str] = {}
    answer = KIND_OF_TRUST[evidence.config.privacy.trust]
    for receipt in evidence.receipts:
        wrong = _odd(receipt, evidence)
        if wrong:
            return f"the receipt of {receipt.subject} {wrong}"
        first = receipt.round
        if receipt.kind == answer:
            first = charged_in.setdefault(receipt.client, receipt.round)
        if first != receipt.round:
            return (
                f"client {receipt.client} reported in {first} and in {receipt.round}; every "
                "client is asked once"
            )
    return None


def _odd(receipt: Receipt, evidence: Evidence) -> str | None:
    """Say what a sound receipt has that no client of this run can have signed."""
    clients = evidence.config.data.clients
    if receipt.client not in {str(client) for client in range(clients)}:
        return f"is of none of the {clients} clients"
    if not receipt.charged:
        known = receipt.kind in UNCHARGED
        return None if known else f"is for an unprotected {receipt.kind!r}, which is never asked"
    if receipt.kind == KIND_OF_TRUST[evidence.config.privacy.trust] and not receipt.report:
        return "holds no report"
    return charge_flaw(evidence.config, evidence.num_units, receipt.entry)


def _uncounted(evidence: Evidence) -> str | None:
    asked = 0
    for step in range(1, evidence.config.prune.steps + 1):
        for phase in evidence.results()[f"vote-{step}"]["phases"]:
            name = phase["round"]
            used = evidence.used_receipts(name)
            missing = len(evidence.missing.get(name, []))
            asked += int(phase["asked"])
            if len(used) != phase["reports"]:
                return f"round {name} used {phase['reports']} reports, receipts show {len(used)}"
            if len(used) + missing != phase["asked"]:
                return (
                    f"round {name} asked {phase['asked']} clients: {len(used)} reported and "
                    f"{missing} are named as missing"
                )
            one_question = evidence.config.privacy.trust != "aggregate"
            if one_question and len({receipt.question for receipt in used}) > 1:
                return f"the clients of round {name} were asked different questions"
    clients = evidence.config.data.clients
    return None if asked == clients else f"{asked} of {clients} clients were asked to report"
