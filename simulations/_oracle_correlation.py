"""What the correlation study measures: the truth of every unit, scores, their price, votes."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from _study import spread, train
from numpy.typing import NDArray
from rich.progress import Progress
from scipy.stats import kendalltau, pearsonr, spearmanr
from torch import Tensor, nn

from fedprune import data, models, pruning
from fedprune.errors import FedpruneError
from fedprune.privacy import ThresholdResponse
from fedprune.randomness import SimulationRandomness

Vector = NDArray[np.float64]
Flags = NDArray[np.bool_]
Row = dict[str, Any]

MINIBATCH = 50
EPSILONS = (1.0, 4.0, 8.0)
FEDERATED_CRITERIA = ("taylor", "linear_logits")
NORMALISED = ("magnitude_l2", "taylor", "linear_logits")
MEASURES: dict[str, Callable[[Vector, Vector], Any]] = {
    "pearson": pearsonr, "spearman": spearmanr, "kendall": kendalltau,
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """How much is measured.

    Attributes:
        draws: sets of training images.
        images: in each.
        cost_images: that a criterion's price is measured on.
        cost_repeats: interleaved repeats of that.
        clients: of the federated part.
        client_images: of each of them, on average.
        private_repeats: draws of the private reports.
        epochs: of training, where no weights are given.
    """

    draws: int = 3
    images: int = 1000
    cost_images: int = 200
    cost_repeats: int = 5
    clients: int = 1000
    client_images: int = 5
    private_repeats: int = 10
    epochs: int = 20


SMALL = Setting(draws=2, images=200, cost_images=100, cost_repeats=3, clients=100, epochs=4)


@dataclass(frozen=True)
class Task:
    """A trained network with its data and what is removed from it."""

    dataset: data.Dataset
    model: nn.Module
    layout: pruning.UnitLayout
    kind: str

    def images(self, seed: int, draw: int, count: int) -> tuple[Tensor, Tensor]:
        """A draw of training images, the same for every network."""
        random = SimulationRandomness(seed, "oracle study", draw).generator
        places = np.sort(random.permutation(len(self.dataset.train))[:count])
        return self.dataset.train.inputs(places), self.dataset.train.targets(places)

    def parts(self) -> dict[str, Flags]:
        """All units; those that one layer alone makes; all gates but the first layer's."""
        everything = np.ones(len(self.layout), dtype=bool)
        if isinstance(self.layout, pruning.GateLayout):
            return {"all": everything, "blocks": self.layout.group_of.numpy() > 0}
        makers = np.zeros(len(self.layout), dtype=int)
        for layer in self.layout.layers:
            if layer.kind in ("conv", "depthwise", "linear") and not layer.is_selection:
                makers[np.unique(layer.out_units[layer.out_units >= 0])] += 1
        return {"all": everything, "inner": makers == 1}


def tasks(arguments: argparse.Namespace, setting: Setting) -> Iterator[Task]:
    """The network with its units, and with its separate gates."""
    dataset = data.load(arguments.dataset, arguments.root, seed=arguments.seed)
    options: dict[str, Any] = {
        "num_classes": dataset.num_classes, "input_shape": dataset.input_shape,
    }  # fmt: skip
    model = models.load(
        arguments.network, weights=arguments.weights, seed=arguments.seed, **options
    )
    rows = np.arange(len(dataset.train))
    if not arguments.weights:
        inputs, labels = dataset.train.inputs(rows), dataset.train.targets(rows)
        model = train(model, inputs, labels, epochs=setting.epochs, seed=arguments.seed, rate=0.05)
    layout = pruning.UnitLayout.of(model, dataset.train.inputs(rows[:2]))
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    for kind in arguments.kinds:
        units = layout if kind == "units" else pruning.separate_gates(layout)
        yield Task(dataset, model, units, kind)


# The truth and the criteria on the same images.


def changes_of(task: Task, arguments: argparse.Namespace, setting: Setting, draw: int) -> Vector:
    """The change of the loss without each unit, [num_units]; kept in `--work`."""
    name = f"{arguments.network}-{task.kind}-{setting.images}-seed{arguments.seed}-draw{draw}"
    state = None if arguments.work is None else arguments.work / f"{name}.safetensors"
    with Progress(transient=True) as bar:
        shown = bar.add_task(f"{task.kind}, draw {draw + 1} of {setting.draws}", total=None)
        found = pruning.oracle(
            task.model,
            task.layout,
            *task.images(arguments.seed, draw, setting.images),
            state=state,
            progress=lambda done, of: bar.update(shown, completed=done, total=of),
        )
    return np.asarray(found.numpy())


def scores_of(
    task: Task, criteria: Sequence[str], inputs: Tensor, labels: Tensor, seed: int
) -> tuple[dict[str, Vector], dict[str, str]]:
    """Scores [num_units] by every criterion and its variants, and why others are missing."""
    whole = [(inputs, labels)]
    small = list(zip(inputs.split(MINIBATCH), labels.split(MINIBATCH), strict=True))
    found: dict[str, Vector] = {}
    refused: dict[str, str] = {}
    for name in criteria:
        try:
            scores = pruning.score(task.model, task.layout, whole, name, seed=seed)
        except FedpruneError as reason:
            refused[name] = str(reason)
            continue
        found[name] = scores.double().numpy()
        if name.startswith("taylor"):
            by_batch = pruning.score(task.model, task.layout, small, name, seed=seed)
            found[f"{name}, minibatches of {MINIBATCH}"] = by_batch.double().numpy()
        if name in NORMALISED:
            scaled = pruning.normalize(scores, task.layout, "layer_l2")
            found[f"{name}, layer_l2"] = scaled.double().numpy()
    return found, refused


def correlations(task: Task, scores: Vector, changes: Vector) -> dict[str, float]:
    """Every measure on every part, by "part measure"."""
    sizes, found = np.abs(changes), {}
    for part, chosen in task.parts().items():
        if chosen.sum() < 3:
            continue
        for measure in MEASURES:
            found[f"{part} {measure}"] = correlation(measure, scores[chosen], sizes[chosen])
        found[f"{part} spearman, sizes"] = correlation(
            "spearman", np.abs(scores[chosen]), sizes[chosen]
        )
        found[f"{part} spearman, signs"] = correlation("spearman", scores[chosen], changes[chosen])
    for measure in MEASURES:
        by_group = [
            correlation(measure, scores[group.units], sizes[group.units])
            for group in task.layout.groups
            if len(group) > 2
        ]
        found[f"within layers {measure}"] = float(np.mean(by_group)) if by_group else np.nan
    return found


def correlation(measure: str, first: Vector, second: Vector) -> float:
    """One coefficient; 0 where a side is the same everywhere and says nothing."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(MEASURES[measure](first, second)[0])


def compare(
    task: Task, arguments: argparse.Namespace, setting: Setting
) -> tuple[Row, list[Vector]]:
    """Correlations of every criterion over draws, and the truth of each."""
    by_name: dict[str, list[dict[str, float]]] = {}
    truths, refused = [], {}
    for draw in range(setting.draws):
        changes = changes_of(task, arguments, setting, draw)
        inputs, labels = task.images(arguments.seed, draw, setting.images)
        found, refused = scores_of(task, arguments.criteria, inputs, labels, arguments.seed + draw)
        for name, scores in found.items():
            by_name.setdefault(name, []).append(correlations(task, scores, changes))
        truths.append(changes)
    again = [  # how far draws agree bounds what any score on other images can reach
        correlation("spearman", np.abs(a), np.abs(b))
        for place, a in enumerate(truths)
        for b in truths[:place]
    ]
    rows: list[Row] = [
        {"criterion": name} | {key: over_draws([one[key] for one in drawn]) for key in drawn[0]}
        for name, drawn in by_name.items()
    ]
    return {
        "kind": task.kind,
        "units": len(task.layout),
        "parts": {part: int(chosen.sum()) for part, chosen in task.parts().items()},
        "units_that_the_loss_is_better_without": [int((truth < 0).sum()) for truth in truths],
        "spearman_between_draws": again,
        "criteria": rows,
        "refused": refused,
    }, truths


def over_draws(found: Sequence[float]) -> Row:
    """Mean of correlations, with a 95 % interval that Fisher's z keeps within [-1, 1]."""
    shown = {"draws": list(found), "repeats": len(found), "mean": float(np.mean(found))}
    bounded = np.clip(found, -1 + 1e-9, 1 - 1e-9)
    on_z = spread(np.arctanh(bounded).tolist())
    return shown | {end: float(np.tanh(on_z[end])) for end in ("low", "high")}


def prices(task: Task, arguments: argparse.Namespace, setting: Setting) -> dict[str, Row]:
    """Processor seconds of each criterion in those of taylor: interleaved, ratio by repeat."""
    inputs, labels = task.images(arguments.seed, 0, setting.cost_images)
    names = [name for name in arguments.criteria if name not in ("oracle", "taylor")]
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(setting.cost_repeats + 1):
        one = seconds(task, "taylor", inputs, labels)
        for name in names:
            try:
                ratio = seconds(task, name, inputs, labels) / one
            except FedpruneError:
                continue
            if repeat:  # the first one warms up
                ratios[name].append(ratio)
    return {
        name: {"median": float(np.median(found)), "least": min(found), "most": max(found)}
        for name, found in ratios.items()
        if found
    }


def seconds(task: Task, criterion: str, inputs: Tensor, labels: Tensor) -> float:
    """Processor time of scoring once, of all threads; on an accelerator the time that passes."""
    clock = time.process_time if next(task.model.parameters()).is_cpu else time.perf_counter
    begun = clock()
    pruning.score(task.model, task.layout, [(inputs, labels)], criterion, seed=1)
    return clock() - begun


# Clients, and what their votes know of the truth.


def federated(
    task: Task, arguments: argparse.Namespace, setting: Setting, truth: Vector
) -> list[Row]:
    """Clean scores, votes and private votes of many clients against the truth."""
    rows = []
    for partition in ("iid", "dirichlet"):
        inputs, labels, owners = clients_of(task.dataset, arguments.seed, partition, setting)
        for criterion in FEDERATED_CRITERIA:
            scores = pruning.score_clients(
                task.model, task.layout, inputs, labels, owners, criterion, seed=arguments.seed
            )
            masks = pruning.select_many(scores, task.layout, 0.5)
            known = {"partition": partition, "criterion": criterion, "clients": len(scores)}
            rows.append(known | {"what": "mean score"} | agreement(scores.mean(0).numpy(), truth))
            rows.append(known | {"what": "votes"} | agreement(masks.float().mean(0).numpy(), truth))
            rows += [
                known | {"what": "private votes", "epsilon": epsilon, **row}
                for epsilon in EPSILONS
                for row in [private(masks, epsilon, truth, arguments.seed, setting)]
            ]
    return rows


def clients_of(
    dataset: data.Dataset, seed: int, partition: str, setting: Setting
) -> tuple[Tensor, Tensor, Tensor]:
    """All clients' images and labels, and whose each is."""
    random = SimulationRandomness(seed, "oracle study", "clients").generator
    count = min(setting.clients * setting.client_images, len(dataset.train))
    chosen = np.sort(random.permutation(len(dataset.train))[:count])
    some = replace(dataset, train=dataset.train.take(chosen))
    divided = data.partition(some, partition, clients=setting.clients, seed=seed, alpha=0.3)
    order, owners = divided.row_order("train"), divided.client_ids("train")
    return some.train.inputs(order), some.train.targets(order), torch.from_numpy(owners)


def private(masks: Tensor, epsilon: float, truth: Vector, seed: int, setting: Setting) -> Row:
    """Votes under threshold randomised response, drawn again and again."""
    mechanism = ThresholdResponse(epsilon, masks.shape[1], num_reports=len(masks))
    found = []
    for repeat in range(setting.private_repeats):
        stream = SimulationRandomness(seed, "oracle study", "reports", f"{epsilon}", repeat)
        rngs = [stream.stream(client) for client in range(len(masks))]
        reports = mechanism.randomize_rows(masks.numpy(), rngs)
        found.append(agreement(np.asarray(mechanism.estimate(reports).mean), truth))
    return {key: spread([one[key] for one in found])["mean"] for key in found[0]} | {
        "intervals": {key: spread([one[key] for one in found]) for key in found[0]}
    }


def agreement(scores: Vector, truth: Vector) -> dict[str, float]:
    """Spearman with the size of the truth, and the share of its top half that is found."""
    sizes, half = np.abs(truth), len(truth) // 2
    best = [np.argsort(-one, kind="stable")[:half] for one in (scores, sizes)]
    return {
        "spearman": correlation("spearman", np.asarray(scores, dtype=np.float64), sizes),
        "recall": float(np.isin(best[0], best[1]).mean()),
    }
