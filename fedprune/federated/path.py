"""One way through the pruning schedule: rank, select, shrink, fine-tune, step after step.

The private votes and every baseline go through the same function; they differ in the ranking.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedprune import pruning
from fedprune.errors import PruningError
from fedprune.federated.averaging import train_rounds
from fedprune.federated.evaluation import accuracy_of
from fedprune.federated.experiment import Experiment, Held, JsonDict, file_name
from fedprune.federated.recalibrating import recalibrate_rounds
from fedprune.federated.regrowing import Asked, asked_about, exchange
from fedprune.federated.scoring_precision import precision_of
from fedprune.federated.steps import Step, schedule
from fedprune.federated.voting import Ranker, Ranking
from fedprune.pruning import UnitLayout
from fedprune.runs import Architecture, prefer_units, select_units, weights_vector


@dataclass(frozen=True)
class Outcome:
    """Where a path ended.

    Attributes:
        held: the pruned and fine-tuned model.
        accuracy: after fine-tuning, and before the last step's fine-tuning; None if evaluation
            is switched off.
    """

    held: Held
    accuracy: float | None
    accuracy_before_fine_tuning: float | None


def follow(experiment: Experiment, dense: Held, name: str, rank: Ranker) -> Outcome:
    """Go through the schedule with one ranking; `name` is "private" or a baseline's."""
    prefix = "" if name == "private" else f"{name}/"
    counterfactual = name != "private"
    held, before = dense, None
    for step, fraction in schedule(experiment):
        held = _prune(experiment, held, dense, step, fraction, rank, prefix, counterfactual)
        held = recalibrate_rounds(
            experiment, held, prefix=prefix, step=step.number, counterfactual=counterfactual
        )
        before = accuracy_of(
            experiment, held, dense, f"{prefix}evaluate-{step.number}-before", counterfactual
        )
        held = train_rounds(
            experiment,
            held,
            prefix=prefix,
            stage=f"tune-{step.number}",
            rounds=experiment.config.train.fine_tune_rounds,
            learning_rate=experiment.config.train.fine_tune_learning_rate,
            counterfactual=counterfactual,
            compared=dense,
        )
    after = accuracy_of(experiment, held, dense, f"{prefix}evaluate-after", counterfactual)
    return Outcome(held, after, before)


def _prune(
    experiment: Experiment,
    held: Held,
    dense: Held,
    step: Step,
    fraction: float,
    rank: Ranker,
    prefix: str,
    counterfactual: bool,
) -> Held:
    config = experiment.config
    about = asked_about(experiment, held, dense, step, prefix)

    def action() -> tuple[Architecture, Tensor, JsonDict]:
        layout = about.held.layout()
        budget = relative_budget(experiment, dense.layout(), layout, fraction)
        keep = client_fraction(experiment, layout, budget)
        precision = precision_of(experiment, about.held, keep)
        asked = replace(step, keep_units=keep, precision=precision.used)
        ranking = rank(experiment, about.held, asked, counterfactual)
        mask = choose(experiment, ranking.score, layout, budget, about.kept)
        mask, preferred = _preferred(experiment, about, ranking, layout, mask)
        mask, returned = exchange(experiment, about, ranking, layout, mask)
        result = _describe(experiment, about, ranking, layout, budget, mask)
        result |= returned | preferred
        if ranking.answers is not None:
            result |= {"asked": len(step.clients), "reports": ranking.answers}
            if precision.sentence:
                result["precision"] = precision.sentence
        if ranking.collected is not None:
            result |= ranking.collected.facts
        if not counterfactual:
            _save_votes(experiment, step.number, ranking, mask)
        if config.prune.rewind is not None:
            result["rewound_to"] = config.prune.rewind
        return (*_shrunk(about.held, layout, mask, rewound(experiment)), result)

    name = f"{prefix}vote-{step.number}"
    say = "" if counterfactual else f"step {step.number}: kept {{units}} of {{of}} units"
    return experiment.model_phase(name, action, say)[0]


def relative_budget(
    experiment: Experiment, dense: UnitLayout, current: UnitLayout, fraction: float
) -> Mapping[str, float]:
    """Translate a fraction of the dense network into one of the current network."""
    name, _ = experiment.config.prune.budget
    if name == "keep_latency" and experiment.latency is not None:
        target, total = (
            share * experiment.latency.predict(layout, torch.ones(len(layout), dtype=torch.bool))
            for share, layout in ((fraction, dense), (1.0, current))
        )
    elif name == "keep_units":
        target, total = float(np.floor(fraction * len(dense) + 1e-9)), float(len(current))
    elif name == "keep_macs":
        target, total = fraction * dense.total_macs, float(current.total_macs)
    else:
        target, total = fraction * dense.total_params, float(current.total_params)
    if target <= 0:
        raise PruningError(f"prune.{name} = {fraction:g} keeps nothing of {len(dense)} units")
    return {name: min(1.0, target / total)}


def client_fraction(
    experiment: Experiment, layout: UnitLayout, budget: Mapping[str, float]
) -> float:
    """The fraction of units that clients vote to keep under a budget."""
    if "keep_units" in budget:
        return budget["keep_units"]
    return pruning.expected_keep_units(
        layout,
        keep_macs=budget.get("keep_macs"),
        keep_params=budget.get("keep_params"),
        keep_latency=budget.get("keep_latency"),
        latency=experiment.latency,
    )


def choose(
    experiment: Experiment,
    ranking: np.ndarray,
    layout: UnitLayout,
    budget: Mapping[str, float],
    kept: Tensor | None = None,
) -> Tensor:
    """Select units, only `kept` ones if given, as configured."""
    scores = torch.from_numpy(np.array(ranking, dtype=np.float64))
    scores = scores if kept is None else pruning.removed_last(scores, kept)
    return select_units(experiment.config, scores, layout, budget, experiment.latency)


def _preferred(
    experiment: Experiment, about: Asked, ranking: Ranking, layout: UnitLayout, mask: Tensor
) -> tuple[Tensor, JsonDict]:
    """Among equal masks the one with the smaller Lipschitz bound, and what it took."""
    if not experiment.config.prune.bound_slack or ranking.score_variance is None:
        return mask, {}
    found = prefer_units(
        experiment.config,
        mask,
        ranking.score,
        ranking.score_variance,
        layout,
        about.held.model(),
        experiment.schema.input_std,
    )
    told = {
        "bound_before": found.bound_before,
        "bound": found.bound,
        "exchanges": found.exchanges,
        "votes_lost": found.value_lost,
        "evaluations": found.evaluations,
    }
    return torch.from_numpy(found.mask), {"preferred": told}


def rewound(experiment: Experiment) -> Held | None:
    """The dense model whose weights the kept units go back to, if they do."""
    rewind = experiment.config.prune.rewind
    if rewind is None:
        return None
    return Held(experiment.folder, file_name(f"train-{rewind}" if rewind else "start"))


def _shrunk(
    held: Held, layout: UnitLayout, mask: Tensor, reference: Held | None
) -> tuple[Architecture, Tensor]:
    kept = pruning.compose_masks(held.architecture.mask, mask)
    if reference is None:
        small = pruning.shrink(held.model(), layout, mask)
    else:
        small = pruning.shrink(reference.model(), reference.layout(), kept)
    return held.architecture.with_mask(kept), weights_vector(small)


def _describe(
    experiment: Experiment,
    about: Asked,
    ranking: Ranking,
    layout: UnitLayout,
    budget: Mapping[str, float],
    mask: Tensor,
) -> JsonDict:
    outer = about.held.architecture.mask
    result: JsonDict = {
        "units": int(mask.sum()),
        "of": len(layout),
        "budget": dict(budget),
        "mask": bits(pruning.compose_masks(outer, mask)),
    }
    if experiment.latency is not None:
        result["predicted_ms"] = experiment.latency.predict(layout, mask)
    if ranking.prior_free is not None:
        free = choose(experiment, ranking.prior_free, layout, budget, about.kept)
        result["mask_without_prior"] = bits(pruning.compose_masks(outer, free))
    if ranking.variance is not None:
        result["variance_per_vote"] = float(ranking.variance.mean())
    return result


def _save_votes(experiment: Experiment, number: int, ranking: Ranking, mask: Tensor) -> None:
    """Add a step's votes to votes.safetensors."""
    known = {}
    if experiment.folder.has("votes.safetensors"):
        known = experiment.folder.read_tensors("votes.safetensors")
    parts: dict[str, np.ndarray | None] = {
        "mean": ranking.mean,
        "variance": ranking.variance,
        "posterior": ranking.score,
    }
    for part, values in parts.items():
        if values is not None:
            known[f"step{number}.{part}"] = torch.from_numpy(np.array(values, dtype=np.float64))
    if ranking.collected is not None:
        for name, array in ranking.collected.arrays.items():
            known[f"step{number}.{name}"] = torch.from_numpy(np.array(array))
    known[f"step{number}.mask"] = mask
    experiment.folder.write_tensors("votes.safetensors", known)


def bits(mask: Tensor) -> str:
    """Write a mask as "0" and "1"."""
    return "".join("1" if keep else "0" for keep in mask.tolist())
