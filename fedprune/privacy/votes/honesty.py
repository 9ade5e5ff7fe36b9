"""Are these reports ones that honest clients could have sent? Tests that hold for any masks.

Nothing is assumed about the clients' masks, so a small p-value says that some clients do not
follow the mechanism, not that they are unusual. The reverse does not hold: liars who stay within
what the noise allows are not found, and `influence` says how much they can do.

- Patterns: whatever its mask, an honest client sends a given pattern of a block with probability
  between the mechanism's smallest and its largest. Counts are then stochastically between two
  binomials, whose exact tails are p-values.
- Votes: the same for a single bit, between (1 - c) / 2 and (1 + c) / 2; from the sums alone, for
  every mechanism and block size.
- Pairs: two honest reports about one block agree in t places or more with probability at most
  2^m p_max P[Bin(m, 1/2) >= t], since no pattern is likelier than p_max whatever the mask. It finds
  copies, reused randomness, and liars who send nearly the same; for blocks too large to count
  patterns.
- Weights: where a report speaks about all units and every mask keeps exactly k, how many bits a
  report sets has one known distribution, the same for all masks.
- Blocks: clients who draw their blocks draw them uniformly.

p-values are adjusted by Holm (1979) over everything that a test looks at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, hypergeom

from fedprune.errors import PrivacyError
from fedprune.privacy.mechanisms.estimation import VoteSums
from fedprune.privacy.mechanisms.mechanism import Mechanism
from fedprune.privacy.mechanisms.reports import Report, Rows, in_parts
from fedprune.privacy.mechanisms.threshold_response import ThresholdResponse

Vector = NDArray[np.float64]

MAX_PATTERN_UNITS = 16
_MAX_PATTERNS = 1 << 22
_PART = 1 << 16
_MAX_PAIRED = 2000
_MIN_PAIRED_UNITS = 24
_REPORTED = 5


@dataclass(frozen=True)
class HonestyTest:
    """The outcome of one test.

    Attributes:
        name: of the test.
        applies: False where it can say nothing about this mechanism; then `findings` says why.
        num_tests: how many counts were looked at.
        p_value: the smallest one after Holm's adjustment; 1 where the test does not apply.
        findings: the most unlikely counts in words, the worst first.
    """

    name: str
    applies: bool
    num_tests: int
    p_value: float
    findings: tuple[str, ...]

    def suspicious(self, alpha: float = 0.001) -> bool:
        """Whether honest clients would show this with probability of at most alpha only."""
        return self.applies and self.p_value <= alpha

    def sentence(self, alpha: float = 0.001) -> str:
        """Say the outcome in words."""
        if not self.applies:
            return f"{self.name}: does not apply ({self.findings[0]})"
        if not self.suspicious(alpha):
            return (
                f"{self.name}: nothing that honest clients could not send (p = {self.p_value:.2g})"
            )
        return (
            f"{self.name}: not all clients are honest (p = {self.p_value:.2g}): {self.findings[0]}"
        )


def pattern_counts(mechanism: Mechanism, reports: Iterable[Report] | Rows) -> NDArray[np.int64]:
    """Count every pattern of every block, reading in parts: [num_blocks, 2^m], most significant
    bit first.

    Raises:
        PrivacyError: if there are too many patterns to count.
    """
    if not _countable(mechanism):
        raise PrivacyError(f"blocks of {mechanism.block_units} units have too many patterns")
    m, blocks = mechanism.block_units, mechanism.num_blocks
    powers = 1 << np.arange(m - 1, -1, -1)
    counts = np.zeros(blocks << m, dtype=np.int64)
    first = 0
    for part in in_parts(reports, _PART):
        spoken, bits = mechanism.format.decode(part, first=first)
        counts += np.bincount((spoken << m) | (bits @ powers), minlength=len(counts))
        first += len(spoken)
    return counts.reshape(blocks, 1 << m)


def check_patterns(mechanism: Mechanism, counts: NDArray[np.int64] | None) -> HonestyTest:
    """Test the counts of `pattern_counts` against the smallest and largest probability."""
    name = "pattern frequencies"
    if not isinstance(mechanism, ThresholdResponse) or counts is None or not _countable(mechanism):
        return _does_not_apply(name, f"blocks of {mechanism.block_units} units are too large")
    least = float(mechanism.block_probability(0))
    most = float(mechanism.block_probability(mechanism.block_units))
    received = np.broadcast_to(counts.sum(axis=1, keepdims=True), counts.shape)

    def say(place: int) -> str:
        block, pattern = divmod(place, counts.shape[1])
        n = received[block, pattern]
        return (
            f"pattern {pattern:0{mechanism.block_units}b} of block {block} came "
            f"{counts[block, pattern]} times in {n}; honest clients send it {n * least:.1f} to "
            f"{n * most:.1f} times on average"
        )

    return _two_sided(name, counts.ravel(), received.ravel(), least, most, say)


def check_votes(mechanism: Mechanism, sums: VoteSums) -> HonestyTest:
    """Test every unit's bits against what any share of keeping clients can give."""
    gain = float(mechanism.agreement_gain)
    tally = sums.tally(gain)
    least, most = (1.0 - gain) / 2.0, (1.0 + gain) / 2.0

    def say(unit: int) -> str:
        n = tally.received[unit]
        return (
            f"unit {unit} was kept by {tally.keeps[unit]} of {n} bits; honest clients give "
            f"{n * least:.1f} to {n * most:.1f} on average"
        )

    return _two_sided("votes", tally.keeps, tally.received, least, most, say)


def check_blocks(mechanism: Mechanism, sums: VoteSums) -> HonestyTest:
    """Test the number of reports about each block against clients' uniform draws."""
    share, reports = 1.0 / mechanism.num_blocks, sums.num_reports
    if mechanism.num_blocks == 1:
        return _does_not_apply("block counts", "there is one block only")
    every = np.full(mechanism.num_blocks, reports)

    def say(block: int) -> str:
        return f"block {block} has {sums.received[block]} reports of {reports * share:.1f} expected"

    return _two_sided("block counts", sums.received, every, share, share, say)


def check_pairs(mechanism: Mechanism, reports: Iterable[Report] | Rows) -> HonestyTest:
    """Test whether two reports are too much alike; at most 2,000 reports, evenly spaced."""
    name, m = "pairs of reports", mechanism.block_units
    if not isinstance(mechanism, ThresholdResponse) or m < _MIN_PAIRED_UNITS:
        return _does_not_apply(name, f"honest reports about {m} units are often the same")
    rows = reports if isinstance(reports, np.ndarray) else list(reports)
    places = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _MAX_PAIRED)).astype(int))
    chosen = rows[places] if isinstance(rows, np.ndarray) else [rows[i] for i in places]
    blocks, bits = mechanism.format.decode(chosen)
    signs = np.where(bits, np.float32(1), np.float32(-1))
    agreement = (signs @ signs.T + m) / 2
    agreement[blocks[:, None] != blocks[None]] = -1
    agreement[np.tril_indices(len(places))] = -1
    pairs = int((agreement >= 0).sum())
    if not pairs:
        return _does_not_apply(name, "no two reports are about one block")
    first, second = np.unravel_index(int(agreement.argmax()), agreement.shape)
    most = float(agreement[first, second])
    log_ratio = _log(mechanism.block_probability(m)) + m * math.log(2)
    p_value = pairs * math.exp(min(0.0, log_ratio + float(binom.logsf(most - 1, m, 0.5))))
    finding = f"reports {places[first]} and {places[second]} agree in {most:.0f} of {m} bits"
    return HonestyTest(name, True, pairs, min(1.0, p_value), (finding,))


def check_weights(
    mechanism: Mechanism, reports: Iterable[Report] | Rows, kept_units: int | None
) -> HonestyTest:
    """Test how many bits reports set, where every mask keeps exactly `kept_units` of all units."""
    name, m = "report weights", mechanism.block_units
    if not isinstance(mechanism, ThresholdResponse) or mechanism.num_blocks > 1:
        return _does_not_apply(name, "a report speaks about some of the units only")
    if kept_units is None:
        return _does_not_apply(name, "masks may keep any number of units")
    law = weight_law(mechanism, kept_units)
    counts = np.zeros(m + 1, dtype=np.int64)
    first = 0
    for part in in_parts(reports, _PART):
        _, bits = mechanism.format.decode(part, first=first)
        counts += np.bincount(bits.sum(axis=1), minlength=m + 1)
        first += len(bits)
    every = np.full(m + 1, counts.sum())

    def say(weight: int) -> str:
        expected = every[weight] * law[weight]
        return f"{counts[weight]} reports set {weight} bits, {expected:.1f} expected"

    return _two_sided(name, counts, every, law, law, say)


def weight_law(mechanism: ThresholdResponse, kept_units: int) -> Vector:
    """P[a report sets w bits], w = 0..m, for a mask that keeps exactly so many of the m units.

    Of a agreements h fall on kept units, hypergeometric; the report then sets those h and the
    m - k - (a - h) removed units on which it disagrees.
    """
    m, k = mechanism.block_units, kept_units
    if not 0 <= k <= m:
        raise PrivacyError(f"kept_units must be in [0, {m}], got {kept_units!r}")
    law = np.zeros(m + 1)
    kept = np.arange(k + 1)
    for a, probability in enumerate(mechanism.agreement_probabilities):
        weights = m - k - a + 2 * kept
        possible = (weights >= 0) & (weights <= m)
        chances = hypergeom.pmf(kept[possible], m, k, a)
        np.add.at(law, weights[possible], float(probability) * chances)
    return law


def check_reports(
    mechanism: Mechanism,
    reports: list[Report] | Rows,
    *,
    assigned: bool,
    kept_units: int | None = None,
) -> list[HonestyTest]:
    """Run every test.

    Args:
        mechanism: that the reports should follow.
        reports: all of them; the tests of votes and blocks alone need the sums only.
        assigned: whether blocks were assigned, so that their counts say nothing.
        kept_units: how many units every mask keeps, where that is exact.
    """
    sums = mechanism.add(mechanism.new_sums(), reports)
    counts = pattern_counts(mechanism, reports) if _countable(mechanism) else None
    blocks = (
        _does_not_apply("block counts", "blocks were assigned")
        if assigned
        else check_blocks(mechanism, sums)
    )
    return [
        check_patterns(mechanism, counts),
        check_votes(mechanism, sums),
        check_pairs(mechanism, reports),
        check_weights(mechanism, reports, kept_units),
        blocks,
    ]


def _countable(mechanism: Mechanism) -> bool:
    m = mechanism.block_units
    return m <= MAX_PATTERN_UNITS and mechanism.num_blocks << m <= _MAX_PATTERNS


def _two_sided(
    name: str,
    counts: NDArray[np.int64],
    trials: NDArray[np.int64],
    least: Vector | float,
    most: Vector | float,
    say: Callable[[int], str],
) -> HonestyTest:
    """Take binomial tails below the least and above the most that is possible."""
    if not trials.any():
        return _does_not_apply(name, "there is no report")
    tails = np.minimum(binom.cdf(counts, trials, least), binom.sf(counts - 1, trials, most))
    looked_at = 2 * int((trials > 0).sum())
    tails = np.where(trials > 0, tails, 1.0)
    worst = np.argsort(tails, kind="stable")[:_REPORTED]
    p_value = min(1.0, looked_at * float(tails[worst[0]]))  # Holm's factor for the smallest
    return HonestyTest(name, True, looked_at, p_value, tuple(say(int(i)) for i in worst))


def _does_not_apply(name: str, why: str) -> HonestyTest:
    return HonestyTest(name, False, 0, 1.0, (why,))


def _log(fraction: Fraction) -> float:
    return math.log(fraction.numerator) - math.log(fraction.denominator)
