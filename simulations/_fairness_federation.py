"""The federations of the fairness study: rows in memory, who holds them, rounds of averaging."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fedprune import data, fairness, models, pruning
from fedprune.randomness import SimulationRandomness

Counts = NDArray[np.int64]

HELD_OUT = 0.2
WEIGHTS = "weights/resnet20-12fca82f.th"


@dataclass(frozen=True)
class Settings:
    """How one data set is pruned.

    Attributes:
        dataset: name of the data set.
        groupings: what gaps are measured by.
        clients: how many, by a Dirichlet partition of concentration `alpha`.
        train_rows, test_rows: rows used, drawn at random; 0 for all.
        rounds: of fine-tuning, one local epoch each.
        tolerance: excess loss (duals) and growth of the gap (choice of keep) allowed.
        dual_step: of the dual variables.
        resamples: of the bootstrap.
    """

    dataset: str
    groupings: tuple[str, ...]
    clients: int
    alpha: float
    train_rows: int
    test_rows: int
    rounds: int
    batch_size: int
    learning_rate: float
    dense_epochs: int
    tolerance: float
    dual_step: float
    resamples: int = 2000


@dataclass(frozen=True)
class Part:
    """Rows in memory with who holds them; groups are columns by name."""

    inputs: Tensor
    labels: Tensor
    clients: Counts
    groups: dict[str, Counts]

    def take(self, places: Counts) -> Part:
        """Copy some rows."""
        index = torch.from_numpy(places)
        return Part(
            self.inputs[index],
            self.labels[index],
            self.clients[places],
            {name: codes[places] for name, codes in self.groups.items()},
        )


@dataclass(frozen=True)
class Problem:
    """One federation: rows to train on, held out and to test on, and the dense network."""

    settings: Settings
    train: Part
    held_out: Part
    test: Part
    names: dict[str, tuple[str, ...]]
    dense: nn.Module
    layout: pruning.UnitLayout
    seed: int
    predictions: WeakKeyDictionary[nn.Module, dict[int, Counts]]

    def known(self, model: nn.Module, part: Part) -> Counts:
        """What a finished network predicts, worked out once."""
        own = self.predictions.setdefault(model, {})
        if id(part) not in own:
            own[id(part)] = predicted(model, part)
        return own[id(part)]


def problem(settings: Settings, root: Path, seed: int) -> Problem:
    """Load, divide over clients, hold rows out and get the dense network."""
    dataset = data.load(settings.dataset, root, seed=seed)
    federation = data.partition(
        dataset, "dirichlet", clients=settings.clients, seed=seed, alpha=settings.alpha
    )
    generator = SimulationRandomness(seed, "rows").generator
    parts = {}
    for split, rows, most in (
        ("train", dataset.train, settings.train_rows),
        ("test", dataset.test, settings.test_rows),
    ):
        order, owners = federation.row_order(split), federation.client_ids(split)
        chosen = generator.permutation(len(order))[: most or len(order)]
        index = order[chosen]
        columns = {name: rows.group(name) for name in settings.groupings}
        groups = {name: column.codes[index] for name, column in columns.items()}
        parts[split] = Part(rows.inputs(index), rows.targets(index), owners[chosen], groups)
    cut = int(HELD_OUT * len(parts["train"].labels))  # rows are in random order already
    places = np.arange(len(parts["train"].labels))
    held_out, train = parts["train"].take(places[:cut]), parts["train"].take(places[cut:])
    names = {name: column.names for name, column in columns.items()}
    for name in settings.groupings:
        fairness.check_groups(
            parts["test"].groups[name], names[name], parts["test"].clients, group=name
        )
    dense = dense_network(settings, dataset, train, root, seed)
    layout = pruning.UnitLayout.of(dense, train.inputs[:1])
    known: WeakKeyDictionary[nn.Module, dict[int, Counts]] = WeakKeyDictionary()
    return Problem(settings, train, held_out, parts["test"], names, dense, layout, seed, known)


def dense_network(
    settings: Settings, dataset: data.Dataset, train: Part, root: Path, seed: int
) -> nn.Module:
    """CIFAR-10's from a file, Adult's trained on all training rows together."""
    if settings.dataset == "cifar10":
        return models.load("resnet20", weights=root / WEIGHTS)
    model = models.load(
        "mlp", num_classes=dataset.num_classes, input_shape=dataset.input_shape, seed=seed
    )
    generator = SimulationRandomness(seed, "dense").generator
    rows = np.arange(len(train.labels))
    for epoch in range(settings.dense_epochs):
        rate = 0.2 * (1 - epoch / settings.dense_epochs)
        local_epoch(model, train, rows, None, rate, settings.batch_size, generator)
    return model.eval()


def local_epoch(
    model: nn.Module,
    part: Part,
    places: Counts,
    weights: Tensor | None,
    learning_rate: float,
    batch_size: int,
    generator: np.random.Generator,
) -> None:
    """One epoch of SGD on some rows, each example's loss times its weight."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    shuffled = torch.from_numpy(generator.permutation(places))
    for batch in shuffled.split(batch_size):
        if len(batch) < 2:  # batch norm has no variance of one row
            continue
        losses = functional.cross_entropy(
            model(part.inputs[batch]), part.labels[batch], reduction="none"
        )
        loss = losses.mean() if weights is None else (losses * weights[batch]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    model.eval()


def average_round(
    model: nn.Module, one: Problem, weights: Tensor | None, rate: float, seed: int
) -> None:
    """One round of federated averaging: a local epoch a client, a mean by rows."""
    total: dict[str, Tensor] = {}
    rows = 0
    for client in range(one.settings.clients):
        places = np.flatnonzero(one.train.clients == client)
        if len(places) < 2:
            continue
        local = copy.deepcopy(model)
        generator = SimulationRandomness(one.seed, "round", seed, client).generator
        size = one.settings.batch_size
        local_epoch(local, one.train, places, weights, rate, size, generator)
        for name, value in local.state_dict().items():
            total[name] = (
                total.get(name, torch.zeros_like(value, dtype=torch.float64))
                + len(places) * value.double()
            )
        rows += len(places)
    model.load_state_dict({name: value / rows for name, value in total.items()})


def right(model: nn.Module, part: Part) -> NDArray[np.bool_]:
    """Which rows a network gets right."""
    return predicted(model, part) == part.labels.numpy()


def predicted(model: nn.Module, part: Part) -> Counts:
    """The class that a network predicts for every row."""
    with torch.inference_mode():
        found = [model.eval()(batch).argmax(dim=1) for batch in part.inputs.split(500)]
    return torch.cat(found).numpy()
