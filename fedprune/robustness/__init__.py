"""Rigorous Lipschitz bounds, certificates that follow from them, and attacks that test them."""

from fedprune.robustness.attack import AttackResult, direct_search, pgd
from fedprune.robustness.certificates import (
    Certifier,
    certified_accuracy,
    certified_interval,
    certified_radii,
)
from fedprune.robustness.lipschitz import LipschitzBound, OpNorm, lipschitz

__all__ = [
    "AttackResult",
    "Certifier",
    "LipschitzBound",
    "OpNorm",
    "certified_accuracy",
    "certified_interval",
    "certified_radii",
    "direct_search",
    "lipschitz",
    "pgd",
]
