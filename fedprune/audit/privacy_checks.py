"""Privacy claims of a run: against its ledger in simulation, against receipts in deployment."""

from __future__ import annotations

from collections.abc import Iterator

from fedprune import runs
from fedprune.audit import ledger_claims, receipt_claims
from fedprune.audit.availability_checks import check_availability
from fedprune.audit.empirical_checks import check_empirical
from fedprune.audit.evidence import Evidence
from fedprune.audit.findings import Finding, check, same
from fedprune.audit.vote_checks import selection_flaw, votes_flaw


def check_privacy(evidence: Evidence) -> Iterator[Finding]:
    """Ledger or receipts, memoised bytes, budgets, totals, and the votes recomputed from reports.

    Where the ledger or the receipts are missing or forged, nothing is computed from them.
    """
    source = ledger_claims if evidence.simulated else receipt_claims
    grounds = list(source.grounds(evidence))
    yield from grounds
    if not all(finding.holds for finding in grounds):
        return
    yield from source.claims(evidence)
    yield from check_availability(evidence)
    yield check(
        "privacy",
        "epsilon, reports, noise and what is not covered are as the summary says",
        lambda: _figures(evidence),
        runs.privacy_figures(evidence.folder, evidence.config, evidence.simulated)["statement"],
    )
    if evidence.config.privacy.trust != "none":
        yield check(
            "privacy",
            "every report has the mechanism's size and the votes follow from the reports",
            lambda: votes_flaw(evidence, source.reports(evidence)),
            "recomputed from the stored bytes",
        )
        yield check(
            "privacy",
            "the first step's units follow from its votes",
            lambda: selection_flaw(evidence),
            "posterior and selection redone",
        )
    yield from check_empirical(evidence)


def _figures(evidence: Evidence) -> str | None:
    votes = evidence.folder.read_tensors("votes.safetensors")
    found = {
        "mechanism": evidence.results()["plan"]["mechanism"],
        "variance_per_vote": float(votes["step1.variance"].double().mean()),
        **runs.privacy_figures(evidence.folder, evidence.config, evidence.simulated),
    }
    return same("privacy", evidence.summary["privacy"], found)
