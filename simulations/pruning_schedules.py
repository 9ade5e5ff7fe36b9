"""At equal work of fine-tuning: is it better to prune at once, step by step, or continuously?

Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", figure 6 and section 4:
pruning a few units every few minibatches, with scores averaged and smoothed by 0.9, against all at
once. Every schedule gets the same number of minibatches; those with steps spread them over the
first part of the work and let the rest heal. The same schedules are run under learning rates that
fall smoothly, smoothly with a warm restart after each step, abruptly, or not at all.

The claim: at a small keep fraction schedules with several steps end above one-shot, and smooth
learning rates above abrupt and constant ones.

    python simulations/pruning_schedules.py --small --out OUT.json
    python simulations/pruning_schedules.py --out simulations/results/pruning_schedules.json
    python simulations/pruning_schedules.py --dataset cifar10 --root DATA --model resnet20 \\
        --weights resnet20-12fca82f.th --rows 10000 --rate 0.02 --keep-units 0.4 --out OUT.json
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import _study as study
import numpy as np
import torch
from torch import Tensor, nn

from fedprune import pruning
from fedprune.pruning import weights

BATCH = 32


@dataclass(frozen=True)
class Setting:
    """Sizes of the study.

    Attributes:
        seeds: networks, with a 95 % interval over them; with a file's weights: fine-tunings.
        epochs: of training before pruning.
        tune_epochs: of fine-tuning in all, the same for every schedule.
        pruning_share: part of the fine-tuning over which steps are spread.
        steps: of the geometric and cubic schedules.
        units_per_step: of the continuous one, more only where minibatches are too few.
        keep_units: fraction that stays.
        rate: learning rate of fine-tuning.
        rates: pairs (shape, whether it restarts after each pruning step).
        score_rows: training rows that a step's scores are of; continuous steps see minibatches.
    """

    seeds: int = 5
    epochs: float = 15
    tune_epochs: float = 8
    pruning_share: float = 0.5
    steps: int = 5
    units_per_step: int = 2
    keep_units: float = 0.12
    rate: float = 0.05
    rates: tuple[tuple[str, bool], ...] = (
        ("cosine", False), ("cosine", True), ("linear", False), ("step", False),
        ("constant", False),
    )  # fmt: skip
    score_rows: int = 1000


SMALL = Setting(seeds=4, epochs=8, tune_epochs=4, steps=4, units_per_step=4, score_rows=300,
                rates=(("cosine", False), ("cosine", True), ("step", False)))  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Fraction that stays after the step that is due when so many minibatches are trained."""

    keep_after: dict[int, float]

    @property
    def restarts(self) -> tuple[int, ...]:
        """Pruning steps after the first minibatch."""
        return tuple(minibatch for minibatch in self.keep_after if minibatch > 0)


def plans(setting: Setting, num_units: int, minibatches: int) -> dict[str, Plan]:
    """When each schedule prunes, within the same number of minibatches."""
    spread = int(setting.pruning_share * minibatches)
    found = {"one-shot": Plan({0: setting.keep_units})}
    for name in ("geometric", "cubic"):
        fractions = pruning.keep_fractions(name, setting.steps, setting.keep_units)
        places = np.linspace(0, spread, setting.steps, endpoint=False).astype(int).tolist()
        found[name] = Plan(dict(zip(places, fractions, strict=True)))
    every = continuous(setting, num_units, spread)
    fractions = every.keep_fractions()
    places = [step * every.minibatches_per_step for step in range(1, every.steps + 1)]
    found["continuous"] = Plan(dict(zip(places, fractions, strict=True)))
    return found


def continuous(setting: Setting, num_units: int, spread: int) -> pruning.ContinuousPlan:
    """Small steps that are over after `spread` minibatches, larger ones where these are few."""
    whole = pruning.ContinuousPlan.to_fraction(num_units, setting.keep_units, num_units, 1)
    fewest = -(-(num_units - whole.final_units) // max(1, spread))
    units = max(1, fewest, setting.units_per_step)
    plan = replace(whole, units_per_step=units)
    return replace(plan, minibatches_per_step=max(1, spread // max(1, plan.steps)))


class Pruner:
    """Prunes a network in training when its plan says so; removed units are held at zero."""

    def __init__(self, setting: Setting, task: study.Problem, plan: Plan, smooth: bool, seed: int):
        """Take the rows that scores see; `smooth`: scores of minibatches, averaged over time."""
        self._setting, self._task, self._plan, self._smooth = setting, task, plan, smooth
        self._draw = np.random.default_rng(seed)
        self.mask = torch.ones(len(task.layout), dtype=torch.bool)
        self._scores = pruning.SmoothedScores(len(task.layout))

    def __call__(self, done: int, model: nn.Module) -> weights.StudyMasks | None:
        """After so many minibatches: the masks of a step that is due."""
        if self._smooth and done <= max(self._plan.keep_after):
            self._scores.add(self._score(model, BATCH))
        if done not in self._plan.keep_after:
            return None
        scores = self._scores.step() if self._smooth else self._score(model)
        return self._prune(model, scores, self._plan.keep_after[done])

    def _score(self, model: nn.Module, rows: int = 0) -> Tensor:
        count = rows or self._setting.score_rows
        order = self._draw.permutation(len(self._task.inputs))[:count]
        batches = study.minibatches(self._task.inputs[order], self._task.labels[order])
        training = model.training
        found = pruning.score(model.eval(), self._task.layout, batches)
        model.train(training)
        return found

    def _prune(self, model: nn.Module, scores: Tensor, fraction: float) -> weights.StudyMasks:
        left = pruning.removed_last(scores, self.mask)
        self.mask = pruning.select(left, self._task.layout, keep_units=fraction)
        return weights.masks_of_units(model, self._task.layout, self.mask)


def tune(
    setting: Setting, task: study.Problem, model: nn.Module, name: str, shape: str, restart: bool,
    seed: int,
) -> float:  # fmt: skip
    """Prune and fine-tune by one schedule and learning rate: test accuracy of the shrunk model."""
    minibatches = round(setting.tune_epochs * math.ceil(len(task.inputs) / BATCH))
    plan = plans(setting, len(task.layout), minibatches)[name]
    pruner = Pruner(setting, task, plan, name == "continuous", seed)
    first = pruner(0, model) if 0 in plan.keep_after else None
    tuned = study.train(
        model if first is None else weights.apply_masks(model, first), task.inputs, task.labels,
        epochs=setting.tune_epochs, seed=seed, rate=setting.rate, shape=shape, batch_size=BATCH,
        restarts=plan.restarts if restart else (), masks=first, after_step=pruner,
    )  # fmt: skip
    small = pruning.shrink(tuned, task.layout, pruner.mask)
    return study.accuracy(small, task.test_inputs, task.test_labels)


def run(setting: Setting, task: study.Problem, seed: int) -> dict[str, Any]:
    """Every schedule under every learning rate, on the same networks."""
    found: dict[tuple[str, str], list[float]] = {}
    dense = []
    for number in range(seed, seed + setting.seeds):
        model = study.trained_network(task, number, setting.epochs)
        dense.append(study.accuracy(model, task.test_inputs, task.test_labels))
        for shape, restart in setting.rates:
            rate = f"{shape}, restarts" if restart else shape
            for name in ("one-shot", "geometric", "cubic", "continuous"):
                reached = tune(setting, task, model, name, shape, restart, number)
                found.setdefault((name, rate), []).append(reached)
    rows = [
        {"schedule": name, "rate": rate, "accuracy": study.spread(values), "values": values}
        for (name, rate), values in found.items()
    ]
    return {"dense": study.spread(dense), "rows": rows}


def draw(result: dict[str, Any], path: Path) -> None:
    """Accuracy of every schedule, grouped by learning rate."""
    figure, (panel,) = study.panels(1, width=7)
    rates = list(dict.fromkeys(row["rate"] for row in result["rows"]))
    names = list(dict.fromkeys(row["schedule"] for row in result["rows"]))
    for number, name in enumerate(names):
        rows = [row["accuracy"] for row in result["rows"] if row["schedule"] == name]
        places = [place + 0.15 * (number - 1.5) for place in range(len(rates))]
        study.curve(panel, places, rows, name, number, "o")
    panel.axhline(result["dense"]["mean"], color="#999999", lw=0.8, label="dense")
    panel.set_xticks(range(len(rates)), rates)
    study.label(
        panel, f"keep {result['config']['keep_units']:g} of the units, equal fine-tuning",
        "learning rate", "test accuracy",
    )  # fmt: skip
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write JSON and picture."""
    parser = study.add_problem(study.parser(__doc__))
    parser.add_argument("--keep-units", type=float, help="fraction that stays")
    parser.add_argument("--rate", type=float, help="learning rate of fine-tuning")
    parser.add_argument("--tune-epochs", type=float, help="of fine-tuning in all")
    arguments = parser.parse_args(argv)
    begun = time.perf_counter()
    asked = {name: getattr(arguments, name) for name in ("keep_units", "rate", "tune_epochs")}
    setting = replace(
        SMALL if arguments.small else Setting(),
        **{name: value for name, value in asked.items() if value is not None},
    )
    found = run(setting, study.asked_problem(arguments), arguments.seed)
    result = study.finish(__doc__, arguments, setting, begun, found, draw)
    print(f"dense {study.interval(result['dense'])}")
    for row in result["rows"]:
        print(f"{row['schedule']:<12}{row['rate']:<18}{study.interval(row['accuracy'])}")


if __name__ == "__main__":
    main()
