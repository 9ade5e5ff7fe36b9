"""Should a budget of operations be filled by rank or by value?

A budget of multiply-accumulates makes units of different price compete. `prune.fill = "ranking"`
keeps the best units in the order of their scores as long as they fit; `"value"` keeps the set
whose scores have the largest sum, a knapsack. Both are applied to the same scores, the network is
made physically smaller and its test accuracy measured, without fine-tuning.

Why it should matter: where scores are in units of loss (`linear_logits`), their sum estimates the
loss that is lost, so the knapsack should keep more accuracy; magnitudes are in no such unit. What
is told is the difference on the same networks with its 95 % interval; in the small setting on
digits the interval contains zero for most shares, so there it is a tendency and not shown.

    python simulations/filling_budgets.py --small --out OUT.json
    python simulations/filling_budgets.py --out simulations/results/filling_budgets.json
    python simulations/filling_budgets.py --dataset cifar10 --root DATA --model resnet20 \\
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

CRITERIA = ("linear_logits", "taylor", "magnitude_l2")


@dataclass(frozen=True)
class Setting:
    """Sizes of the study.

    Attributes:
        seeds: networks that are trained, with a 95 % interval over them; with the weights of a
            file: draws of the rows that scores see.
        epochs: of training.
        score_rows: training rows that scores are of, in minibatches of 50.
        keep_macs: shares of the operations that stay.
    """

    seeds: int = 5
    epochs: float = 15
    score_rows: int = 1000
    keep_macs: tuple[float, ...] = (0.9, 0.8, 0.65, 0.5, 0.35, 0.2)


SMALL = Setting(seeds=4, epochs=8, score_rows=300, keep_macs=(0.65, 0.5, 0.35))


def accuracies(
    setting: Setting, task: study.Problem, seed: int, criteria: Sequence[str]
) -> tuple[dict[tuple[str, float, str], float], dict[str, str]]:
    """Test accuracy of one network by criterion, share and way of filling."""
    model = study.trained_network(task, seed, setting.epochs)
    order = np.random.default_rng(seed).permutation(len(task.inputs))[: setting.score_rows]
    batches = study.minibatches(task.inputs[order], task.labels[order])
    scores, refused = study.scores_by(criteria, model, task.layout, batches, seed)
    found = {}
    for name, values in scores.items():
        for share in setting.keep_macs:
            for fill in ("ranking", "value"):
                mask = pruning.select(values, task.layout, keep_macs=share, fill=fill)
                small = pruning.shrink(model, task.layout, mask)
                found[name, share, fill] = study.accuracy(small, task.test_inputs, task.test_labels)
    return found, refused


def run(
    setting: Setting, task: study.Problem, seed: int, criteria: Sequence[str]
) -> dict[str, Any]:
    """Measure several networks."""
    every: dict[tuple[str, float, str], list[float]] = {}
    refused: dict[str, str] = {}
    for number in range(seed, seed + setting.seeds):
        found, reasons = accuracies(setting, task, number, criteria)
        refused |= reasons
        for key, accuracy in found.items():
            every.setdefault(key, []).append(accuracy)
    names = dict.fromkeys(name for name, _, _ in every)
    rows = []
    for name in names:
        for share in setting.keep_macs:
            by_rank, by_value = (every[name, share, fill] for fill in ("ranking", "value"))
            rows.append(
                {
                    "criterion": name,
                    "keep_macs": share,
                    "ranking": study.spread(by_rank),
                    "value": study.spread(by_value),
                    "gain": study.spread(np.subtract(by_value, by_rank)),
                }
            )
    return {"units": len(task.layout), "rows": rows, "refused": refused}


def draw(result: dict[str, Any], path: Path) -> None:
    """Accuracy against operations: dashed by rank, solid by value."""
    figure, (left, right) = study.panels(2, width=5.5)
    for number, name in enumerate(dict.fromkeys(row["criterion"] for row in result["rows"])):
        rows = [row for row in result["rows"] if row["criterion"] == name]
        shares = [row["keep_macs"] for row in rows]
        for fill, line in (("ranking", "--s"), ("value", "-o")):
            told = [row[fill] for row in rows]
            study.curve(left, shares, told, f"{name}, by {fill}", number, line)
        study.curve(right, shares, [row["gain"] for row in rows], name, number)
    right.axhline(0, color="black", lw=0.8)
    study.label(left, "without fine-tuning", "share of the operations kept", "test accuracy")
    study.label(right, "value minus ranking", "share of the operations kept", "accuracy gained")
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write JSON and picture."""
    parser = study.add_criteria(study.add_problem(study.parser(__doc__)))
    parser.set_defaults(criteria=list(CRITERIA))
    arguments = parser.parse_args(argv)
    begun = time.perf_counter()
    setting = SMALL if arguments.small else Setting()
    task = study.asked_problem(arguments)
    found = run(setting, task, arguments.seed, arguments.criteria)
    result = study.finish(__doc__, arguments, setting, begun, found, draw)
    for row in result["rows"]:
        print(
            f"{row['criterion']:<18} keep {row['keep_macs']:<5g} by ranking "
            f"{study.interval(row['ranking'])}  by value {study.interval(row['value'])}  "
            f"gain {study.interval(row['gain'])}"
        )
    for name, reason in result["refused"].items():
        print(f"left out: {name}: {reason}")


if __name__ == "__main__":
    main()
