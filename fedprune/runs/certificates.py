"""Bounds and certificates of a run's two models, computed again from what its folder holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedprune import robustness
from fedprune.errors import UnsupportedOpError
from fedprune.runs.folder import RunFolder

Floats = NDArray[np.float64]
JsonDict = dict[str, Any]

CURVE = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
"""Radii of a curve, in the configured one."""

ATTACKED = (1.0, 3.0)
"""Radii of the balls that rows are attacked in, likewise; what breaks a row is shortened then."""

ATTACK_STEPS = 10
"""Gradient steps in each: a pass through the network forward and back for every row."""

SIDES = ("dense", "pruned")


def lipschitz_bounds(folder: RunFolder, input_std: Sequence[float] | None) -> JsonDict:
    """Bound both stored models: upper, lower and by which method, dense and pruned.

    Where an operation of the network has no rigorous rule, all of them are None and
    `no_bound_because` names it.
    """
    keys = [f"{key}_{model}" for model in SIDES for key in ("upper", "lower", "method")]
    found: JsonDict = dict.fromkeys([*keys, "no_bound_because"])
    try:
        for name, (model, architecture) in _models(folder):
            bound = robustness.lipschitz(model, architecture.example_input, input_std=input_std)
            found[f"upper_{name}"], found[f"lower_{name}"] = bound.upper, bound.lower
            found[f"method_{name}"] = bound.method
    except UnsupportedOpError as error:
        return dict.fromkeys(found) | {"no_bound_because": str(error)}
    return found


def certified_accuracies(
    folder: RunFolder, radius: float, input_std: Sequence[float] | None, confidence: float
) -> JsonDict:
    """Compute both models' certified accuracy from stored margins and recomputed bounds.

    Args:
        folder: with both models and margins.safetensors.
        radius: l2, in the unit of the unnormalised input.
        input_std: [channels] of the normalisation, or None.
        confidence: of every interval.

    Returns:
        Share of the rows with margins that is certified at `radius`, for "dense" and "pruned",
        each with its exact interval, the number of rows, and the same along `CURVE`. A row
        counts that either the global bound certifies or one of its own ball; `local_dense` and
        `local_pruned` are the shares of the latter where they were asked for. "attacked" has the
        same of the rows that were attacked, beside the share that no attack broke.
    """
    told = folder.read_tensors("margins.safetensors")
    at = [factor * radius for factor in CURVE]
    found: JsonDict = {"curve": {"radii": at}}
    attacked: JsonDict = {"radii": at}
    for name, (model, architecture) in _models(folder):
        certifier = robustness.Certifier.of(model, architecture.example_input, input_std=input_std)
        radii = _radii(told, name, certifier.body_upper)
        if f"{name}_local" in told:
            found[f"local_{name}"] = float((told[f"{name}_local"] > 0).double().mean())
        found[name] = float(robustness.certified_accuracy(radii, radius))
        found[f"interval_{name}"] = list(
            robustness.certified_interval(radii, radius, confidence=confidence)
        )
        found["rows"] = len(radii)
        curve = robustness.certified_curve(radii, at, confidence=confidence)
        found["curve"][name] = {
            "certified": list(curve.certified), "low": list(curve.low), "high": list(curve.high)
        }  # fmt: skip
        if f"{name}_attacked" in told:
            radii = _radii(told, f"{name}_attacked", certifier.body_upper)
            distances = told[f"{name}_attacked_distances"].numpy()
            attacked |= _attacked(name, radii, distances, at, confidence)
            found["attacked"] = attacked
    return found


def _radii(told: Mapping[str, Tensor], name: str, body_upper: float) -> Floats:
    """Certified radii of rows, [n]: by the bound of all inputs or by one of their own ball."""
    radii = robustness.certified_radii(told[name].numpy(), body_upper)
    if f"{name}_local" not in told:
        return radii
    local = told[f"{name}_local"].numpy()
    # Certified in the closed ball, which is to be certified beyond what lies below it.
    return np.maximum(radii, np.where(local > 0, np.nextafter(local, np.inf), 0.0))


def _attacked(
    name: str, radii: Floats, distances: Floats, at: Sequence[float], confidence: float
) -> JsonDict:
    """What attacks left standing of their rows, and how many certificates they broke."""
    curve = robustness.certified_curve(radii, at)
    standing = [
        robustness.certified_interval(distances, radius, confidence=confidence) for radius in at
    ]
    return {
        "rows": len(radii),
        name: {
            "certified": list(curve.certified),
            "standing": [float(np.mean(distances > radius)) for radius in at],
            "low": [low for low, _ in standing],
            "high": [high for _, high in standing],
        },
        f"broken_{name}": int(np.count_nonzero(radii > distances)),
    }


def _models(folder: RunFolder) -> Iterable[tuple[str, tuple[Any, Any]]]:
    return zip(SIDES, (folder.load_dense(), folder.load_pruned()), strict=True)
