"""Mechanisms by name: the classical ones as settings of threshold randomised response.

Each is `ThresholdResponse` with (m, tau) fixed, so that its privacy, its exact sampling and its
estimator are those of the one implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedprune.errors import PrivacyError
from fedprune.privacy.mechanisms.bitwise_response import BitwiseResponse
from fedprune.privacy.mechanisms.mechanism import Mechanism, check_parameters
from fedprune.privacy.mechanisms.threshold_response import ThresholdResponse

_MAX_PATTERN_UNITS = 64


def warner(epsilon: float, num_units: int) -> ThresholdResponse:
    """Randomised response on one bit that the client draws or is assigned (Warner 1965): m = 1.

    Not to be confused with `BitwiseResponse`, which divides epsilon over all bits.
    """
    return ThresholdResponse(epsilon, num_units, block_units=1, threshold=1)


def k_ary(epsilon: float, num_units: int, *, block_units: int | None = None) -> ThresholdResponse:
    """Randomised response over the 2^m patterns of a block: tau = m.

    A report is the block's true pattern with probability e^eps / (e^eps + 2^m - 1) and any other
    one with equal probability (Kairouz, Bonawitz & Ramage 2016).

    Args:
        epsilon: of one report.
        num_units: d.
        block_units: m; None chooses the one with the smallest variance.
    """
    if block_units is None:
        sizes = range(1, min(num_units, _MAX_PATTERN_UNITS) + 1)
        return min(
            (k_ary(epsilon, num_units, block_units=m) for m in sizes),
            key=lambda mechanism: mechanism.variance_per_vote(1),
        )
    return ThresholdResponse(epsilon, num_units, block_units=block_units, threshold=block_units)


def duchi(epsilon: float, num_units: int) -> ThresholdResponse:
    """The l-infinity mechanism of Duchi, Jordan & Wainwright (2018): the majority of all d bits.

    For odd d, m = d and tau = (d + 1) / 2: the half of all patterns that agrees more than it
    disagrees is e^eps times as likely. For even d there are ties; the published construction puts
    them into both halves, which makes a tie 1 + e^eps times as likely as a pattern of the worse
    half and breaks eps (Nguyen et al. 2016). Here tau = d / 2 + 1, ties with the worse half: pure
    eps again, and with a larger gain than tau = d / 2, since a tie carries no information.
    """
    return ThresholdResponse(
        epsilon, num_units, block_units=num_units, threshold=num_units // 2 + 1
    )


PURE_MECHANISMS: Mapping[str, Callable[[float, int], Mechanism]] = {
    "threshold": ThresholdResponse,
    "warner": warner,
    "k-ary": k_ary,
    "duchi": duchi,
}
MECHANISMS = (*PURE_MECHANISMS, BitwiseResponse.name)


def make_mechanism(
    name: str,
    epsilon: float,
    num_units: int,
    delta: float = 0.0,
    *,
    num_reports: int | None = None,
) -> Mechanism:
    """Make a mechanism by its configured name.

    Args:
        name: "threshold" (the best block and threshold), "warner", "k-ary", "duchi", or "bitwise"
            (every bit on its own, for comparisons).
        epsilon: of one report, for the client, under replacement.
        num_units: d.
        delta: only "bitwise" has a use for it; all others guarantee epsilon with delta = 0.
        num_reports: how many reports are expected, if known; "threshold" suits its blocks to it.

    Raises:
        PrivacyError: for an unknown name or a parameter out of range.
    """
    if name == BitwiseResponse.name:
        return BitwiseResponse(epsilon, num_units, delta=delta)
    if name not in PURE_MECHANISMS:
        raise PrivacyError(f"mechanism must be one of {', '.join(MECHANISMS)}, got {name!r}")
    check_parameters(epsilon, num_units, delta)
    if name == ThresholdResponse.name:
        return ThresholdResponse(epsilon, num_units, num_reports=num_reports)
    return PURE_MECHANISMS[name](epsilon, num_units)
