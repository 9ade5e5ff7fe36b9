"""How much can go before training has to go on, and by which criterion?

Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", figure 4: units are
removed over the whole network in the order of a criterion's scores, without fine-tuning, and loss
and accuracy are drawn against the units removed. The source's claim, on ImageNet networks: Taylor
scores keep the loss low far longer than magnitude, batch norm scales or chance do. On the digits'
small network, which has no batch norm, all but chance and the l1 norm, whose sums grow with a
layer's inputs, lie close together.

Every criterion of `pruning.CRITERIA` takes part; one that does not know the network (batch norm
scales where there are none) is left out and named in the results.

    python simulations/prune_without_tuning.py --small --out OUT.json
    python simulations/prune_without_tuning.py --out simulations/results/prune_without_tuning.json
    python simulations/prune_without_tuning.py --dataset cifar10 --root DATA --model resnet20 \\
        --weights resnet20-12fca82f.th --rows 2000 --out OUT.json
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _study as study
import numpy as np

from fedprune import pruning


@dataclass(frozen=True)
class Setting:
    """Sizes of the study.

    Attributes:
        seeds: networks that are trained, with a 95 % interval over them; with the weights of a
            file: draws of the rows that scores see.
        epochs: of training.
        score_rows: training rows that scores are of, in minibatches of 50.
        keep_units: fractions that stay.
    """

    seeds: int = 5
    epochs: float = 15
    score_rows: int = 1000
    keep_units: tuple[float, ...] = (
        1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.4, 0.3, 0.2, 0.1,
    )  # fmt: skip


SMALL = Setting(seeds=4, epochs=8, score_rows=300, keep_units=(1.0, 0.9, 0.8, 0.6, 0.4, 0.2))


def one_network(
    setting: Setting, task: study.Problem, seed: int, criteria: Sequence[str]
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, str]]:
    """Test loss and accuracy of one network at every keep fraction, by criterion."""
    model = study.trained_network(task, seed, setting.epochs)
    order = np.random.default_rng(seed).permutation(len(task.inputs))[: setting.score_rows]
    batches = study.minibatches(task.inputs[order], task.labels[order])
    scores, refused = study.scores_by(criteria, model, task.layout, batches, seed)
    found = {}
    for name, values in scores.items():
        found[name] = []
        for fraction in setting.keep_units:
            mask = pruning.select(values, task.layout, keep_units=fraction)
            small = pruning.shrink(model, task.layout, mask)
            measured = [
                measure(small, task.test_inputs, task.test_labels)
                for measure in (study.loss, study.accuracy)
            ]
            found[name].append((measured[0], measured[1]))
    return found, refused


def run(
    setting: Setting, task: study.Problem, seed: int, criteria: Sequence[str]
) -> dict[str, Any]:
    """Measure several networks."""
    every: dict[str, list[list[tuple[float, float]]]] = {}
    refused: dict[str, str] = {}
    for number in range(seed, seed + setting.seeds):
        found, refused = one_network(setting, task, number, criteria)
        for name, pairs in found.items():
            every.setdefault(name, []).append(pairs)
    rows = []
    for name, runs in every.items():
        for place, fraction in enumerate(setting.keep_units):
            kept = int(fraction * len(task.layout) + 1e-9)
            rows.append(
                {
                    "criterion": name,
                    "keep_units": fraction,
                    "removed": len(task.layout) - kept,
                    "loss": study.spread([pairs[place][0] for pairs in runs]),
                    "accuracy": study.spread([pairs[place][1] for pairs in runs]),
                }
            )
    return {"units": len(task.layout), "rows": rows, "refused": refused}


def draw(result: dict[str, Any], path: Path) -> None:
    """Loss and accuracy against units removed."""
    figure, (left, right) = study.panels(2, width=5.5)
    for number, name in enumerate(dict.fromkeys(row["criterion"] for row in result["rows"])):
        rows = [row for row in result["rows"] if row["criterion"] == name]
        removed = [row["removed"] for row in rows]
        line = "-o" if number < len(study.COLOURS) else "--s"
        for panel, what in ((left, "loss"), (right, "accuracy")):
            told = [row[what] for row in rows]
            study.curve(panel, removed, told, name, number, line, bars=False)
    left.set_yscale("log")
    study.label(left, "without fine-tuning", "units removed", "test loss, nats")
    left.get_legend().remove()
    study.label(right, "without fine-tuning", "units removed", "test accuracy", beside=True)
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write JSON and picture."""
    parser = study.add_criteria(study.add_problem(study.parser(__doc__)))
    arguments = parser.parse_args(argv)
    begun = time.perf_counter()
    setting = SMALL if arguments.small else Setting()
    task = study.asked_problem(arguments)
    found = run(setting, task, arguments.seed, arguments.criteria)
    result = study.finish(__doc__, arguments, setting, begun, found, draw)
    for row in result["rows"]:
        print(
            f"{row['criterion']:<18} keep {row['keep_units']:<5g} loss "
            f"{study.interval(row['loss'])}  accuracy {study.interval(row['accuracy'])}"
        )
    for name, reason in result["refused"].items():
        print(f"left out: {name}: {reason}")


if __name__ == "__main__":
    main()
