"""What a vote can be expected to find, before any budget is spent.

Model of the clients (stated wherever a prediction is shown): unit j has a true importance s_j,
standard normal over units; a client sees s_j plus its own standard normal deviation (lognormal
scores that differ by a factor of e) and keeps its own top fraction k. A unit's vote is then
p_j = Phi(s_j - t) with t = sqrt(2) * Phi^-1(1 - k); for k = 1/2, p is uniform on [0, 1].
More generally a client's deviation may have another spread w: p_j = Phi((s_j - t) / w), with
t = sqrt(1 + w^2) * Phi^-1(1 - k). The spread is a guess, so predictions are shown for half and for
twice of it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm

from fedprune.errors import PrivacyError
from fedprune.privacy.budgets.renyi import rho_capacity

USEFUL_RECALL = 0.6
CLIENT_MODEL = (
    "units' importances lognormal, each client's deviation from them lognormal of the same spread"
)
SPREADS = (0.5, 1.0, 2.0)  # of clients' deviations, over that of the units' importances
RECORD_AGREEMENT = 0.5
_GRID = 2001
_SMALLEST_KEEP = 0.01
_SIMULATED_UNITS, _SIMULATIONS, _SEED = 2048, 600, 20210707

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RecallPrediction:
    """What a vote of a given variance finds, with what is not known beforehand.

    Attributes:
        expected: recall under the stated client model, averaged over networks of any size.
        low, high: in which a single vote about this many units falls with the confidence asked
            for, under the same model.
        confidence: of that interval.
        model_low, model_high: expected recall if clients differ half as much or twice as much.
    """

    expected: float
    low: float
    high: float
    confidence: float
    model_low: float
    model_high: float


def recall_interval(
    variance: float, num_units: int, keep_units: float = 0.5, confidence: float = 0.95
) -> RecallPrediction:
    """Predict the recall of one noisy vote about finitely many units, with an interval.

    Which units exist and how the noise falls are drawn from the stated model, with a fixed seed.
    For more units than are drawn, quantiles move towards the mean as 1/sqrt(units).

    Args:
        variance: of one unit's vote, at least 0.
        num_units: d, at least 1.
        keep_units: fraction of the units that is kept, in (0, 1].
        confidence: of the interval, in (0, 1).

    Raises:
        PrivacyError: if a value is out of range.
    """
    if isinstance(num_units, bool) or num_units != int(num_units) or num_units < 1:
        raise PrivacyError(f"num_units must be a whole number of at least 1, got {num_units!r}")
    if not 0 < confidence < 1:
        raise PrivacyError(f"confidence must be in (0, 1), got {confidence!r}")
    expected = predict_recall(variance, keep_units)
    over_models = [predict_recall(variance, keep_units, spread) for spread in SPREADS]
    found = _simulated_recalls(float(variance), int(min(num_units, _SIMULATED_UNITS)), keep_units)
    mean = float(found.mean())
    quantiles = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    shrink = np.sqrt(min(1.0, _SIMULATED_UNITS / num_units))
    center = mean if num_units <= _SIMULATED_UNITS else expected
    low, high = np.clip(center + shrink * (quantiles - mean), 0.0, 1.0)
    return RecallPrediction(
        expected,
        float(min(low, expected)),
        float(max(high, expected)),
        confidence,
        min(over_models),
        max(over_models),
    )


@lru_cache(maxsize=256)
def _simulated_recalls(variance: float, num_units: int, keep_units: float) -> Floats:
    """Draw networks and noise from the model: recalls [simulations]."""
    rng = np.random.default_rng(_SEED)
    kept = min(num_units, max(1, round(keep_units * num_units)))
    recalls = np.empty(_SIMULATIONS)
    for index in range(_SIMULATIONS):
        importance = rng.standard_normal(num_units)
        votes = norm.cdf(importance - np.sqrt(2) * norm.isf(min(keep_units, 1 - 1e-9)))
        noisy = votes + np.sqrt(variance) * rng.standard_normal(num_units)
        chosen = np.argpartition(-noisy, kept - 1)[:kept]
        cut = np.partition(importance, num_units - kept)[num_units - kept]
        recalls[index] = np.mean(importance[chosen] >= cut)
    recalls.setflags(write=False)
    return recalls


def aggregate_variance(
    epsilon: float,
    delta: float,
    num_units: int,
    num_reports: int,
    *,
    min_reports: int | None = None,
    keep_count: int | None = None,
) -> float:
    """Predict the variance of a unit's vote under a secure sum with discrete Gaussian noise.

    The noise of the fewest clients that a sum may hold makes it rho-zCDP, rho the most that
    (epsilon, delta) allows: their summed variance is s^2 / (2 rho), s^2 the squared l2 sensitivity
    of a sum of masks (d bits, or 2 min(k, d - k) where exactly k ones are enforced).

    Args:
        epsilon: of one sum, per client.
        delta: of one sum, per client.
        num_units: d.
        num_reports: clients in the sum.
        min_reports: clients whose noise alone must do; all of them if None.
        keep_count: k, if every mask has exactly k ones.

    Raises:
        PrivacyError: if a value is out of range.
    """
    least = num_reports if min_reports is None else min_reports
    if not 1 <= least <= num_reports:
        raise PrivacyError(f"min_reports must be in [1, {num_reports}], got {min_reports!r}")
    if keep_count is not None and not 0 < keep_count < num_units:
        raise PrivacyError(f"keep_count must be in [1, {num_units - 1}], got {keep_count!r}")
    squared = num_units if keep_count is None else 2 * min(keep_count, num_units - keep_count)
    noise = squared / (2 * _rho(epsilon, delta))
    return noise * (num_reports / least) / num_reports**2


def record_variance(
    epsilon: float,
    delta: float,
    num_units: int,
    num_clients: int,
    records_per_client: float,
    agreement: float = RECORD_AGREEMENT,
) -> float:
    """Predict the variance of a unit's vote when clients send sums of bounded per-record scores.

    A record adds a vector of length 1 to its client's sum; along the direction that all clients
    share it has length `agreement`. Over d units the shared part of the clients' mean therefore
    has spread (records x agreement) / sqrt(d), and its noise has variance 1 / (2 rho clients). That
    is scaled to the range of votes, whose spread is 1 / sqrt(12) when half is kept.

    Args:
        epsilon: of one report, per record.
        delta: of one report, per record.
        num_units: d.
        num_clients: how many clients report.
        records_per_client: how many records each sums over.
        agreement: mean cosine of a record's centred scores with the mean over all clients, in
            (0, 1]; depends on the data and the network (0.56 for the Taylor scores of a trained
            ResNet-20 on CIFAR-10, 0.80 before training).

    Raises:
        PrivacyError: if a value is out of range.
    """
    if not 0 < agreement <= 1 or num_units < 1 or num_clients < 1 or not records_per_client > 0:
        raise PrivacyError(
            "agreement must be in (0, 1], units, clients and records above 0, got "
            f"{agreement!r}, {num_units!r}, {num_clients!r} and {records_per_client!r}"
        )
    noise = 1 / (2 * _rho(epsilon, delta) * num_clients)
    signal = (records_per_client * agreement) ** 2 / num_units
    return noise / signal / 12


def _rho(epsilon: float, delta: float) -> float:
    rho = rho_capacity(epsilon, delta)
    if rho <= 0:
        raise PrivacyError(f"epsilon = {epsilon!r} with delta = {delta!r} leaves nothing to spend")
    return rho


def predict_recall(variance: float, keep_units: float = 0.5, spread: float = 1.0) -> float:
    """Predict which share of the noise-free vote's kept units a noisy vote finds too.

    Args:
        variance: of one unit's vote (v in the text), at least 0.
        keep_units: fraction of the units that is kept, in (0, 1]; below 0.01 the prediction is
            the one for 0.01, which the grid still resolves.
        spread: of a client's deviations, over that of the units' importances, above 0.

    Returns:
        Expected recall in [keep_units, 1], without the magnitude prior's help.
    """
    if not 0 <= variance < np.inf or not 0 < keep_units <= 1 or not 0 < spread < np.inf:
        raise PrivacyError(
            f"variance must be at least 0, keep_units in (0, 1] and spread above 0, got "
            f"{variance!r}, {keep_units!r} and {spread!r}"
        )
    if keep_units == 1 or variance == 0:
        return 1.0
    keep_units = max(keep_units, _SMALLEST_KEEP)
    importance = norm.ppf((np.arange(_GRID) + 0.5) / _GRID)
    votes = norm.cdf((importance - np.hypot(1, spread) * norm.isf(keep_units)) / spread)
    noise = np.sqrt(variance)

    def kept(cut: float) -> Floats:
        return np.asarray(norm.sf(cut, loc=votes, scale=noise))

    cut = brentq(lambda c: float(kept(c).mean()) - keep_units, -1 - 9 * noise, 2 + 9 * noise)
    truly_kept = np.arange(_GRID) >= (1 - keep_units) * _GRID
    return float(kept(cut)[truly_kept].mean())


def variance_for_recall(recall: float, keep_units: float = 0.5) -> float:
    """Invert `predict_recall`: the largest variance per vote that still gives this recall."""
    if not keep_units < recall < 1:
        raise PrivacyError(f"recall must be in (keep_units = {keep_units}, 1), got {recall!r}")
    return float(
        np.exp(brentq(lambda v: predict_recall(float(np.exp(v)), keep_units) - recall, -20.0, 20.0))
    )
