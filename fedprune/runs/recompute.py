"""Figures that follow from a run folder alone: the run writes them, an auditor repeats them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fedprune import config as configuration
from fedprune import fairness, robustness
from fedprune.config import Config
from fedprune.errors import FairnessError, UnsupportedOpError
from fedprune.privacy import Ledger
from fedprune.randomness import SimulationRandomness
from fedprune.runs.availability import TRACE
from fedprune.runs.folder import RunFolder
from fedprune.runs.receipts import RECEIPTS, receipts_contradiction
from fedprune.runs.spending import LEDGER

JsonDict = dict[str, Any]

SEALED = (
    "config.toml",
    "dense.safetensors",
    "model.safetensors",
    "architecture.json",
    "layout.json",
    "votes.safetensors",
    "tables.json",
    "margins.safetensors",
    TRACE,
    RECEIPTS,
)


CURVE = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # radii of a curve, in the configured one

_NONCE = re.compile("-[0-9a-f]{8}")


def run_id(config: Config) -> str:
    """Name a run in ledgers: a digest of its configuration, wherever its folder lies.

    A deployed run adds "-" and a nonce of eight hexadecimal digits, since its clients' randomness
    is their own and no two runs are the same.
    """
    text = configuration.to_toml(config.model_copy(update={"out": ""}))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_run_of(name: object, config: Config, simulated: bool) -> bool:
    """Whether a run's name is one that this configuration gives."""
    stem = run_id(config)
    if simulated:
        return name == stem
    return isinstance(name, str) and name[:16] == stem and bool(_NONCE.fullmatch(name[16:]))


def seal(folder: RunFolder) -> dict[str, str]:
    """SHA-256 of every file of the run that its figures are computed from."""
    present = [name for name in SEALED if folder.has(name)]
    return {name: hashlib.sha256((folder.path / name).read_bytes()).hexdigest() for name in present}


def mask_recalls(results: Mapping[str, JsonDict], steps: int) -> dict[str, float]:
    """Recall of every mask against the one that the same clients would choose without noise.

    Args:
        results: of the run's finished phases, by name.
        steps: of the pruning schedule; masks are compared after the last one.

    Returns:
        The share of the noise-free mask's kept units that each mask keeps too; empty where there
        were no baselines.
    """
    last = f"vote-{steps}"
    masks = {
        name.removesuffix(f"/{last}"): result["mask"]
        for name, result in results.items()
        if name.endswith(f"/{last}")
    }
    if "votes_without_noise" not in masks:
        return {}
    masks["private"] = results[last]["mask"]
    if steps == 1:  # later steps start from models that the prior shaped
        own = results[last]
        masks["votes_without_prior"] = own.get("mask_without_prior", own["mask"])
    wanted = [i for i, bit in enumerate(masks["votes_without_noise"]) if bit == "1"]
    return {name: sum(mask[i] == "1" for i in wanted) / len(wanted) for name, mask in masks.items()}


def ledger_contradiction(folder: RunFolder) -> str | None:
    """Say where the ledger lacks a row that a finished phase ended with: a rollback.

    Of a deployed run it is the file of receipts that must begin as every phase left it.

    Returns:
        None where the ledger passed every point that the run's events name.
    """
    if not folder.has(LEDGER):
        broken = receipts_contradiction(folder)
        if broken:
            return broken
    named = [event for event in folder.events() if "ledger_rows" in event]
    if not named:
        return None
    with Ledger.open(folder.path / LEDGER, read_only=True) as ledger:
        for event in named:
            row = int(event["ledger_rows"])
            if ledger.hash_at(row) != event["ledger_head"]:
                return f"ledger row {row} is not the one that phase {event['phase']} ended with"
    return None


def fairness_of_tables(stored: JsonDict) -> JsonDict:
    """Compute the fairness summary from the content of tables.json.

    Where clients' noise hides even how many rows there are, there is no figure, and
    `no_figure_because` says so.
    """
    try:
        return _fairness_of_tables(stored)
    except FairnessError as error:
        if "noise" not in stored:
            raise
        return {"no_figure_because": str(error), "accuracy": {}, "noise": stored["noise"]}


def _fairness_of_tables(stored: JsonDict) -> JsonDict:
    return fairness.summarize(
        np.array(stored["test"], dtype=np.int64),
        stored["names"],
        SimulationRandomness(int(stored["seed"]), "fairness"),
        other=np.array([stored["train_total"]], dtype=np.int64),
        other_name="training rows",
        group=str(stored["group"]),
        confidence=float(stored["confidence"]),
        resamples=int(stored["resamples"]),
        noise=_noise(stored, "noise"),
        other_noise=_noise(stored, "train_noise"),
    ).to_json()


def _noise(stored: JsonDict, name: str) -> fairness.TableNoise | None:
    return fairness.TableNoise.from_json(stored[name]) if name in stored else None


def lipschitz_bounds(folder: RunFolder, input_std: Sequence[float] | None) -> JsonDict:
    """Bound both stored models: upper and lower, dense and pruned, and the method.

    Where an operation of the network has no rigorous rule, all of them are None and
    `no_bound_because` names it.
    """
    names = [f"{side}_{model}" for model in ("dense", "pruned") for side in ("upper", "lower")]
    found: JsonDict = dict.fromkeys([*names, "method", "no_bound_because"])
    try:
        for name, (model, architecture) in _models(folder):
            bound = robustness.lipschitz(model, architecture.example_input, input_std=input_std)
            found[f"upper_{name}"], found[f"lower_{name}"] = bound.upper, bound.lower
            found["method"] = bound.method
    except UnsupportedOpError as error:
        return dict.fromkeys(found) | {"no_bound_because": str(error)}
    return found


def certified_accuracies(
    folder: RunFolder, radius: float, input_std: Sequence[float] | None
) -> JsonDict:
    """Compute both models' certified accuracy from stored margins and recomputed bounds.

    Args:
        folder: with both models and margins.safetensors.
        radius: l2, in the unit of the unnormalised input.
        input_std: [channels] of the normalisation, or None.

    Returns:
        Share of the rows with margins that is certified at `radius`, for "dense" and "pruned",
        each with its exact 95 % interval, the number of rows, and the same along `CURVE`. A row
        counts that either the global bound certifies or one of its own ball; `local_dense` and
        `local_pruned` are the shares of the latter where they were asked for.
    """
    margins = folder.read_tensors("margins.safetensors")
    at = [factor * radius for factor in CURVE]
    found: JsonDict = {"curve": {"radii": at}}
    for name, (model, architecture) in _models(folder):
        certifier = robustness.Certifier.of(model, architecture.example_input, input_std=input_std)
        radii = robustness.certified_radii(margins[name].numpy(), certifier.body_upper)
        if f"{name}_local" in margins:
            local = margins[f"{name}_local"].numpy()
            found[f"local_{name}"] = float(np.mean(local > 0))
            # Certified in the closed ball, which is to be certified beyond what lies below it.
            radii = np.maximum(radii, np.where(local > 0, np.nextafter(local, np.inf), 0.0))
        found[name] = float(robustness.certified_accuracy(radii, radius))
        found[f"interval_{name}"] = list(robustness.certified_interval(radii, radius))
        found["rows"] = len(radii)
        curve = robustness.certified_curve(radii, at)
        found["curve"][name] = {
            "certified": list(curve.certified), "low": list(curve.low), "high": list(curve.high)
        }  # fmt: skip
    return found


def _models(folder: RunFolder) -> Iterable[tuple[str, tuple[Any, Any]]]:
    return (("dense", folder.load_dense()), ("pruned", folder.load_pruned()))
