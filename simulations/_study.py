"""What the small studies share: data and networks, short training, results, pictures.

Not a study itself. A study has a docstring with its question first, a frozen `Setting` with a full
and a small choice of sizes, `run(setting, ...) -> dict` and `draw(result, path)`; `finish` writes
the results JSON and the picture.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from _arguments import results_file
from _study_pictures import COLOURS, curve, label, panels
from _study_results import finish, interval, machine, spread, tell, versions
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fedprune import data, models, pruning
from fedprune.errors import FedpruneError
from fedprune.pruning import weights
from fedprune.randomness import SimulationRandomness

__all__ = [
    "COLOURS",
    "Problem",
    "accuracy",
    "add_criteria",
    "add_problem",
    "asked_problem",
    "curve",
    "finish",
    "interval",
    "label",
    "logits",
    "loss",
    "machine",
    "minibatches",
    "panels",
    "parser",
    "problem",
    "scores_by",
    "spread",
    "tell",
    "train",
    "trained_network",
    "versions",
]

EVALUATED_AT_ONCE = 1000
ALIASES = ("magnitude",)  # of magnitude_l2


@dataclass(frozen=True)
class Problem:
    """A data set in memory with its network and that network's units.

    Attributes:
        inputs, labels: training rows, [n, ...] float32 and [n] int64.
        test_inputs, test_labels: the rows that accuracy is told on.
        num_classes: labels are 0 to num_classes - 1.
        layout: the units of `fresh(...)`.
        name: the network's.
        weights: file of its trained weights, or "".
    """

    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    num_classes: int
    layout: pruning.UnitLayout
    name: str
    weights: str

    def fresh(self, seed: int) -> nn.Module:
        """The network with initial weights of a seed."""
        shape = tuple(self.inputs.shape[1:])
        return models.load(self.name, num_classes=self.num_classes, input_shape=shape, seed=seed)

    def pretrained(self) -> nn.Module | None:
        """The network with the weights of the file, None where no file was named."""
        if not self.weights:
            return None
        shape = tuple(self.inputs.shape[1:])
        return models.load(
            self.name, weights=self.weights, num_classes=self.num_classes, input_shape=shape
        )


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Options that every study has."""
    made = argparse.ArgumentParser(
        description=(doc or "").strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--small", action="store_true", help="under two minutes on one core")
    made.add_argument("--seed", type=int, default=1, help="of the first repetition")
    made.add_argument(
        "--out", type=results_file, required=True, help="results JSON; a .png comes beside"
    )
    return made


def add_problem(made: argparse.ArgumentParser, model: str = "lenet") -> argparse.ArgumentParser:
    """Options of a study that needs data and a network."""
    made.add_argument("--dataset", default="digits", help="one of data.DATASETS (default: digits)")
    made.add_argument("--root", default="", help="folder of the data set's files; digits need none")
    made.add_argument("--model", default=model, help=f"the network's name (default: {model})")
    made.add_argument("--weights", default="", help="its trained weights; none: trained here first")
    made.add_argument("--rows", type=int, default=0, help="training rows at most, 0 for all")
    made.add_argument("--test-rows", type=int, default=0, help="test rows at most, 0 for all")
    return made


def problem(
    dataset: str = "digits",
    model: str = "lenet",
    *,
    seed: int,
    root: str = "",
    weights_file: str = "",
    rows: int = 0,
    test_rows: int = 0,
) -> Problem:
    """Load a data set, or some of its rows, and find the units of a network for it."""
    loaded = data.load(dataset, root, seed=seed)
    chosen = _some(len(loaded.train), rows, SimulationRandomness(seed, "study", "rows"))
    tested = _some(len(loaded.test), test_rows, SimulationRandomness(seed, "study", "test rows"))
    inputs = loaded.train.inputs(chosen)
    network = models.load(
        model, num_classes=loaded.num_classes, input_shape=loaded.input_shape, seed=0
    )
    return Problem(
        inputs=inputs,
        labels=loaded.train.targets(chosen),
        test_inputs=loaded.test.inputs(tested),
        test_labels=loaded.test.targets(tested),
        num_classes=loaded.num_classes,
        layout=pruning.UnitLayout.of(network, inputs[:2]),
        name=model,
        weights=weights_file,
    )


def _some(count: int, most: int, stream: SimulationRandomness) -> NDArray[np.int64]:
    """All of so many rows, or at most `most` of them drawn at random, in their order."""
    if not most:
        return np.arange(count)
    return np.asarray(np.sort(stream.generator.permutation(count)[:most]))


def asked_problem(arguments: argparse.Namespace) -> Problem:
    """The problem that the options of `add_problem` name."""
    return problem(
        arguments.dataset,
        arguments.model,
        seed=arguments.seed,
        root=arguments.root,
        weights_file=arguments.weights,
        rows=arguments.rows,
        test_rows=arguments.test_rows,
    )


def train(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    epochs: float,
    seed: int,
    rate: float = 0.1,
    shape: str = "cosine",
    batch_size: int = 32,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    restarts: Sequence[int] = (),
    masks: weights.StudyMasks | None = None,
    after_step: Callable[[int, nn.Module], weights.StudyMasks | None] | None = None,
) -> nn.Module:
    """Train a copy by stochastic gradient descent, removed weights held at zero.

    Args:
        model: where training begins; it is not changed.
        inputs: the rows, [n, ...].
        labels: their classes, [n].
        epochs: passes over the rows; may be a fraction.
        seed: of the rows' order and of what the network draws itself.
        rate: the largest learning rate.
        shape: of `pruning.learning_rate`, a minibatch being a step.
        batch_size: rows in a minibatch.
        momentum: of the descent.
        weight_decay: of the descent.
        restarts: of `pruning.learning_rate`.
        masks: weights that stay.
        after_step: called with the number of steps done and the model in training; masks that it
            gives back replace the present ones.
    """
    trained = copy.deepcopy(model).train()
    trainable = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    descent = torch.optim.SGD(trainable, lr=rate, momentum=momentum, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    steps = max(0, round(epochs * math.ceil(len(inputs) / batch_size)))
    order = torch.zeros(0, dtype=torch.int64)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for step in range(steps):
            if len(order) == 0:
                order = torch.randperm(len(inputs), generator=generator)
            rows, order = order[:batch_size], order[batch_size:]
            for settings in descent.param_groups:
                settings["lr"] = pruning.learning_rate(shape, step, steps, rate, restarts=restarts)
            loss = functional.cross_entropy(trained(inputs[rows]), labels[rows])
            descent.zero_grad()
            loss.backward()
            descent.step()
            if masks is not None:
                weights.hold_at_zero_(trained, masks)
            found = None if after_step is None else after_step(step + 1, trained)
            if found is not None:
                masks = found
                weights.hold_at_zero_(trained, masks)
    return trained.eval()


def trained_network(task: Problem, seed: int, epochs: float, rate: float = 0.1) -> nn.Module:
    """The network with its file's weights, else trained here from initial ones."""
    known = task.pretrained()
    if known is not None:
        return known
    return train(task.fresh(seed), task.inputs, task.labels, epochs=epochs, seed=seed, rate=rate)


def logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """A model's outputs, [rows, classes], in evaluation mode."""
    training = model.training
    model.eval()
    with torch.inference_mode():
        found = torch.cat([model(part) for part in inputs.split(EVALUATED_AT_ONCE)])
    model.train(training)
    return found


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """The share of rows whose largest output is the label's."""
    return float((logits(model, inputs).argmax(1) == labels).double().mean())


def loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy in nats."""
    return float(functional.cross_entropy(logits(model, inputs).double(), labels))


def minibatches(
    inputs: Tensor, labels: Tensor, batch_size: int = 50, rows: int = 0
) -> list[tuple[Tensor, Tensor]]:
    """Cut rows, or the first of them, into minibatches."""
    count = min(rows, len(inputs)) if rows else len(inputs)
    parts = (inputs[:count].split(batch_size), labels[:count].split(batch_size))
    return list(zip(*parts, strict=True))


def add_criteria(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The option of a study that compares criteria."""
    made.add_argument(
        "--criteria", nargs="+", default=[name for name in pruning.CRITERIA if name not in ALIASES],
        choices=list(pruning.CRITERIA), metavar="NAME",
        help=f"of {', '.join(pruning.CRITERIA)} (default: all)",
    )  # fmt: skip
    return made


def scores_by(
    criteria: Sequence[str],
    model: nn.Module,
    layout: pruning.UnitLayout,
    batches: Sequence[tuple[Tensor, Tensor]],
    seed: int,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Scores [num_units] by every criterion that this network knows, and why the others do not."""
    scores, refused = {}, {}
    for name in criteria:
        try:
            scores[name] = pruning.score(model, layout, batches, name, seed=seed)
        except FedpruneError as reason:  # such as a criterion of batch norms where there are none
            refused[name] = str(reason)
    return scores, refused
