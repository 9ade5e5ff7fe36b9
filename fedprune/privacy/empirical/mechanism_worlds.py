"""Two worlds for the mask mechanism, driven through the code that a client runs.

One client has the mask b, its neighbour any other mask b'. The logarithm of the ratio between the
two probabilities of a report is epsilon * k with k in {-1, 0, 1}: k is how much more the report
agrees with b than with b', where agreeing is having tau matches in its block. With b' = -b, the
event {k = 1} is {A >= tau}, whose ratio is exactly e^epsilon. The block is drawn independently of
the mask and is part of the report, so the event may look at it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import ROUND_CEILING, Context, Decimal
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from fedprune.privacy.empirical.noise import Bits, Noise
from fedprune.privacy.empirical.worlds import EventCounts, Sampler, Statistics, two_worlds
from fedprune.privacy.mechanisms.reports import Report
from fedprune.privacy.mechanisms.threshold_response import ThresholdResponse
from fedprune.randomness import Randomness

Randomizer: TypeAlias = Callable[[Bits, Sequence[Randomness]], Sequence[Report]]
Answerer: TypeAlias = Callable[
    [Bits, Sequence[Randomness]], tuple[Sequence[Report], Sequence[Report]]
]

_PRECISION = 120  # the ratio in use is e^epsilon less 2^-128: it must stay below


def analytic_epsilon(mechanism: ThresholdResponse) -> float:
    """Largest log-ratio between two masks' probabilities of one report, rounded up.

    It is computed exactly, from the law of agreements that the sampler draws from: the block is
    uniform whatever the mask, and given how many bits agree, every choice of them is equally
    likely.
    """
    size = mechanism.block_units
    chances = enumerate(mechanism.agreement_probabilities)
    patterns = [chance / math.comb(size, agreements) for agreements, chance in chances]
    ratio = max(patterns) / min(patterns)
    context = Context(prec=_PRECISION, rounding=ROUND_CEILING)
    quotient = context.divide(Decimal(ratio.numerator), Decimal(ratio.denominator))
    above = context.next_plus(context.ln(quotient))
    nearest = float(above)
    return nearest if Decimal(nearest) >= above else math.nextafter(nearest, math.inf)


def log_ratios(
    mechanism: ThresholdResponse, reports: Sequence[Report], mask: ArrayLike, other: ArrayLike
) -> Statistics:
    """Say, in units of epsilon, how much each report speaks for `mask` against `other`.

    Returns:
        [n] float64 of -1, 0 and 1.
    """
    ours, theirs = (Noise.of(mechanism, bits, reports).agreements for bits in (mask, other))
    reached = (counts >= mechanism.threshold for counts in (ours, theirs))
    first, second = (part.astype(np.float64) for part in reached)
    return first - second


def audit_two_worlds(
    mechanism: ThresholdResponse,
    rng: Randomness,
    *,
    draws: int,
    randomize: Randomizer | None = None,
    mask: ArrayLike | None = None,
) -> EventCounts:
    """Count {a report speaks for b} in the worlds b and -b, and the mirror image.

    Args:
        mechanism: whose claim is audited.
        rng: what all draws are made from, one after another.
        draws: in each world.
        randomize: the implementation in question; by default the mechanism's own.
        mask: b, [num_units] bool; by default every second unit is kept.
    """
    bits, draw = _mask_of(mechanism, mask), randomize or mechanism.randomize_many

    def sampler(own: Bits) -> Sampler:
        def sample(count: int) -> Statistics:
            reports = draw(np.broadcast_to(own, (count, len(own))), [rng] * count)
            return log_ratios(mechanism, reports, bits, ~bits)

        return sample

    return two_worlds(sampler(bits), sampler(~bits), draws=draws, threshold=1.0, mirrored=True)


def audit_retries(
    mechanism: ThresholdResponse,
    rng: Randomness,
    answer: Answerer,
    *,
    draws: int,
    mask: ArrayLike | None = None,
) -> EventCounts:
    """Count {both answers to one question speak for b} in the worlds b and -b, and its mirror.

    A client that repeats its stored bytes gives away epsilon however often it is asked; one that
    draws afresh gives away 2 epsilon, and this event's ratio is e^(2 epsilon).

    Args:
        mechanism: whose claim is audited.
        rng: what all draws are made from, one after another.
        answer: from masks [n, num_units] and n sources, the reports that n clients send when
            first asked, and those that they send when asked again.
        draws: clients in each world.
        mask: b, [num_units] bool; by default every second unit is kept.
    """
    bits = _mask_of(mechanism, mask)

    def sampler(own: Bits) -> Sampler:
        def sample(count: int) -> Statistics:
            answers = answer(np.broadcast_to(own, (count, len(own))), [rng] * count)
            first, second = (log_ratios(mechanism, sent, bits, ~bits) for sent in answers)
            return first + second

        return sample

    return two_worlds(sampler(bits), sampler(~bits), draws=draws, threshold=2.0, mirrored=True)


def _mask_of(mechanism: ThresholdResponse, mask: ArrayLike | None) -> Bits:
    if mask is None:
        return np.asarray(np.arange(mechanism.num_units) % 2 == 0, dtype=np.bool_)
    return np.asarray(mask, dtype=np.bool_)
