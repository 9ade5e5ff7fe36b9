"""Empirical audit: does the code that runs keep the epsilon that is claimed for it?

Lower bounds on epsilon from draws (two worlds; one run with canaries), tests that see planted
faults (unbiasedness, agreement, independence, retries), and a report that sets claimed, analytic
and empirical epsilon side by side.
"""

from fedprune.privacy.empirical.independence import independence_test
from fedprune.privacy.empirical.limits import lower_limit, upper_limit
from fedprune.privacy.empirical.mechanism_worlds import (
    analytic_epsilon,
    audit_retries,
    audit_two_worlds,
    log_ratios,
)
from fedprune.privacy.empirical.noise import Noise
from fedprune.privacy.empirical.one_run import CanaryGuesses, guess_at_both_ends, guess_by_sign
from fedprune.privacy.empirical.outcome import TestOutcome
from fedprune.privacy.empirical.report import EmpiricalAudit, table
from fedprune.privacy.empirical.unbiasedness import agreement_test, unbiasedness_test
from fedprune.privacy.empirical.worlds import (
    EventCounts,
    Sampler,
    best_threshold,
    count_event,
    two_worlds,
)

__all__ = [
    "CanaryGuesses",
    "EmpiricalAudit",
    "EventCounts",
    "Noise",
    "Sampler",
    "TestOutcome",
    "agreement_test",
    "analytic_epsilon",
    "audit_retries",
    "audit_two_worlds",
    "best_threshold",
    "count_event",
    "guess_at_both_ends",
    "guess_by_sign",
    "independence_test",
    "log_ratios",
    "lower_limit",
    "table",
    "two_worlds",
    "unbiasedness_test",
    "upper_limit",
]
