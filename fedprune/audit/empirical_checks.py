"""Does this installation's mechanism, with a run's own parameters, keep the run's epsilon?

The auditor draws from the mechanism's code itself, in two worlds, and computes the largest
log-ratio of its probabilities. Both speak of the code that is installed here; that clients ran
this code is among what an audit cannot see.
"""

from __future__ import annotations

from collections.abc import Iterator

from fedprune import runs
from fedprune.audit.evidence import Evidence
from fedprune.audit.findings import Finding, check
from fedprune.errors import PrivacyError
from fedprune.privacy import ThresholdResponse
from fedprune.privacy.budgets.events import REPLACEMENT
from fedprune.privacy.empirical import EmpiricalAudit, analytic_epsilon, audit_two_worlds
from fedprune.randomness import SimulationRandomness

DRAWS = 20_000  # in each world
ALPHA = 1e-6  # so small that an honest run never fails by chance
_WORDS = 1 << 23  # of random bits' words in each world: bounds the time for large blocks


def check_empirical(evidence: Evidence) -> Iterator[Finding]:
    """Set claimed, analytic and empirical epsilon of a run's first question side by side."""
    if evidence.config.privacy.trust not in ("local", "shuffle"):
        return
    found: list[EmpiricalAudit] = []

    def look() -> str | None:
        found.append(empirical_audit(evidence))
        return None if found[0].holds else found[0].sentence()

    finding = check("privacy", "the mechanism's own draws do not exceed its epsilon", look)
    detail = found[0].sentence() if finding.holds else finding.detail
    yield Finding(finding.part, finding.claim, finding.holds, detail)


def empirical_audit(evidence: Evidence) -> EmpiricalAudit:
    """Audit the mechanism with the parameters of a run's first question.

    The draws are seeded, so that an audit says the same each time.

    Raises:
        FedpruneError: if the run's files cannot be read.
    """
    config = evidence.config
    votes = evidence.folder.read_tensors("votes.safetensors")
    num_units, ranked = len(votes["step1.mean"]), runs.ranked_clients(config)[0]
    cohort, _ = runs.step_phases(config, num_units, ranked)[0]
    mechanism = runs.report_mechanism(config, num_units, len(cohort))
    if not isinstance(mechanism, ThresholdResponse):
        raise PrivacyError(f"the draws of {mechanism!r} are not audited here")
    draws = max(1000, min(DRAWS, _WORDS // mechanism.block_units))
    rng = SimulationRandomness(config.seed, "empirical audit")
    counts = audit_two_worlds(mechanism, rng, draws=draws)
    return EmpiricalAudit.of(
        counts,
        subject=f"one report about {mechanism.num_units} units",
        claimed=mechanism.epsilon,
        analytic=analytic_epsilon(mechanism),
        alpha=ALPHA,
        relation=REPLACEMENT,
        trust="local",  # one report by itself, whatever a shuffler adds
    )
