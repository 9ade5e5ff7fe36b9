"""The magnitude prior: the server already knows the weights, so using them costs no privacy.

Empirical Bayes (Efron & Morris 1973): a unit's vote is modelled as a line in its log-magnitude,
with an intercept and a slope that may differ between layers, plus the unit's own deviation. How
much layers and units deviate is learnt from the votes by maximum marginal likelihood; the
posterior mean then weighs each vote by how much more it knows than the line.

Over several steps or rounds of a run, what an earlier posterior said about the units that are
still there is one more feature of the line. Its slope is learnt like the others, so an earlier
step that asked a different question, or was mostly noise, gets the weight it deserves, down to
none. The earlier step's clients must be others (disjoint cohorts): their noise is then independent
of the new votes', and nothing is counted twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from fedprune.errors import PrivacyError

Vector = NDArray[np.float64]

_WIDE = 1e4  # prior variance of the common intercept and slopes: nearly flat
_STARTS = (-1.0, -3.0, -5.0)


@dataclass(frozen=True)
class Posterior:
    """Votes after shrinking towards the magnitude line.

    Attributes:
        mean: [num_units] posterior mean of each unit's vote.
        variance: [num_units] posterior variance.
        prior_mean: [num_units] what magnitude and layer alone predict.
        unit_variance: tau^2, how far units deviate from the line.
    """

    mean: Vector
    variance: Vector
    prior_mean: Vector
    unit_variance: float


def magnitude_posterior(
    vote: Vector,
    variance: Vector,
    magnitude: Vector,
    groups: NDArray[np.int64] | None = None,
    *,
    earlier: Vector | None = None,
) -> Posterior:
    """Shrink unbiased votes towards a line in log-magnitude.

    Args:
        vote: [num_units] unbiased votes.
        variance: [num_units] their variances.
        magnitude: [num_units] non-negative norms of the units' weights.
        groups: [num_units] layer of each unit, or None for one line for all.
        earlier: [num_units] posterior means of the same units in an earlier step, asked of other
            clients; None where there was none.

    Raises:
        PrivacyError: if the lengths differ or an input is not finite.
    """
    given = (vote, variance, magnitude) if earlier is None else (vote, variance, magnitude, earlier)
    parts = [np.asarray(part, dtype=np.float64) for part in given]
    if len({part.shape for part in parts}) != 1 or parts[0].ndim != 1:
        shapes = [part.shape for part in parts]
        raise PrivacyError(f"vote, variance, magnitude and earlier must be equally long: {shapes}")
    if not all(np.isfinite(part).all() for part in parts) or (parts[1] <= 0).any():
        raise PrivacyError("vote, magnitude and earlier must be finite and variance positive")
    vote, variance, magnitude = parts[:3]
    codes = (
        np.zeros(len(vote), dtype=np.int64)
        if groups is None
        else np.unique(groups, return_inverse=True)[1]
    )
    features, kinds = _features(np.log(magnitude + _smallest_positive(magnitude)), codes)
    if earlier is not None:
        features = np.column_stack([features, _standard(parts[3])])
        kinds = np.append(kinds, 0)
    best = min(
        (_fit(start, vote, variance, features, kinds) for start in _STARTS), key=lambda fit: fit[0]
    )
    return _posterior(best[1], vote, variance, features, kinds)


def _smallest_positive(magnitude: Vector) -> float:
    positive = magnitude[magnitude > 0]
    return float(positive.min()) * 1e-3 if positive.size else 1.0


def _features(line: Vector, codes: NDArray[np.int64]) -> tuple[Vector, NDArray[np.int64]]:
    """Build [num_units, k] features and each one's kind: 0 common, 1 intercept, 2 slope."""
    one_hot = np.eye(int(codes.max()) + 1)[codes]
    sizes = one_hot.sum(axis=0)
    centre = (one_hot.T @ line / sizes)[codes]
    spread = np.sqrt(one_hot.T @ (line - centre) ** 2 / sizes)[codes]
    within = np.divide(line - centre, spread, out=np.zeros_like(line), where=spread > 1e-12)
    common = np.stack([np.ones_like(line), _standard(line)], axis=1)
    features = np.concatenate([common, one_hot, one_hot * within[:, None]], axis=1)
    groups = one_hot.shape[1]
    return features, np.repeat([0, 1, 2], [2, groups, groups])


def _standard(values: Vector) -> Vector:
    return np.asarray((values - values.mean()) / max(float(values.std()), 1e-12))


def _prior_variances(log_scales: Vector, kinds: NDArray[np.int64]) -> Vector:
    return np.array([_WIDE, *np.exp(np.clip(log_scales[:2], -18, 4))])[kinds]


def _solve(
    log_scales: Vector, vote: Vector, variance: Vector, features: Vector, kinds: NDArray[np.int64]
) -> tuple[float, Vector, Vector]:
    """Negative log marginal likelihood, coefficients' mean and covariance (Woodbury form)."""
    noise = variance + np.exp(np.clip(log_scales[2], -18, 4))
    scaled = features / noise[:, None]
    prior = _prior_variances(log_scales, kinds)
    precision = features.T @ scaled + np.diag(1.0 / prior)
    factor = np.linalg.cholesky(precision)
    projected = np.linalg.solve(factor, scaled.T @ (vote - 0.5))
    fit = float(((vote - 0.5) ** 2 / noise).sum() - projected @ projected)
    log_determinant = (
        np.log(noise).sum() + np.log(prior).sum() + 2 * np.log(factor.diagonal()).sum()
    )
    coefficients = np.linalg.solve(factor.T, projected)
    inverse = np.linalg.inv(factor)
    return 0.5 * (fit + float(log_determinant)), coefficients, inverse.T @ inverse


def _fit(
    start: float, vote: Vector, variance: Vector, features: Vector, kinds: NDArray[np.int64]
) -> tuple[float, Vector]:
    found = minimize(
        lambda scales: _solve(scales, vote, variance, features, kinds)[0],
        np.array([start - 1.0, start - 1.0, start]),
        method="L-BFGS-B",
        bounds=[(-18.0, 4.0)] * 3,
    )
    return float(found.fun), np.asarray(found.x)


def _posterior(
    log_scales: Vector, vote: Vector, variance: Vector, features: Vector, kinds: NDArray[np.int64]
) -> Posterior:
    _, coefficients, covariance = _solve(log_scales, vote, variance, features, kinds)
    own = float(np.exp(np.clip(log_scales[2], -18, 4)))
    line = 0.5 + features @ coefficients
    trusted = own / (own + variance)  # how much of the residual is the unit's own
    line_variance = np.einsum("ij,jk,ik->i", features, covariance, features)
    mean = trusted * vote + (1 - trusted) * line
    return Posterior(mean, trusted * variance + (1 - trusted) ** 2 * line_variance, line, own)
