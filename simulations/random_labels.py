"""No free lunch: does a pruned network know anything where there is nothing to know?

The control of every study of pruning. Labels of training and test rows are drawn uniformly at
random. Whatever a network of any size learned from the training rows, its hits on n test rows are
then Binomial(n, 1/classes), exactly: pruning may lose what was memorised, but a test accuracy off
1/classes by more than this law allows would mean that test labels leak into the method.

The claim: all networks, dense and pruned by every criterion, fall inside the binomial interval, the
error over all of them together being 0.001 (Bonferroni), though they fit the training labels far
better than chance.

    python simulations/random_labels.py --small --out OUT.json
    python simulations/random_labels.py --out simulations/results/random_labels.json
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import _study as study
import torch
from scipy.stats import binom

from fedprune import pruning
from fedprune.randomness import SimulationRandomness

ERROR = 0.001


@dataclass(frozen=True)
class Setting:
    """Sizes of the study.

    Attributes:
        seeds: draws of the labels, each with a network of its own.
        memorised: training rows that are drawn from all, few enough to be learnt by heart.
        epochs: of training on random labels.
        tune_epochs: of fine-tuning after pruning.
        keep_units: fractions that stay.
    """

    seeds: int = 10
    memorised: int = 300
    epochs: float = 200
    tune_epochs: float = 40
    keep_units: tuple[float, ...] = (0.7, 0.4, 0.2)


SMALL = Setting(seeds=2, epochs=120, tune_epochs=20, keep_units=(0.6, 0.3))


def with_random_labels(task: study.Problem, rows: int, seed: int) -> study.Problem:
    """Some of the training rows and all test rows, with labels drawn uniformly."""
    draws = SimulationRandomness(seed, "random labels").generator
    chosen = torch.from_numpy(draws.permutation(len(task.inputs))[:rows])

    def drawn(count: int) -> torch.Tensor:
        return torch.from_numpy(draws.integers(0, task.num_classes, size=count))

    return replace(
        task, inputs=task.inputs[chosen], labels=drawn(len(chosen)),
        test_labels=drawn(len(task.test_labels)),
    )  # fmt: skip


def allowed_hits(rows: int, classes: int, tests: int) -> tuple[int, int]:
    """Hits outside this range have a chance of at most ERROR over all tests together."""
    tail = ERROR / tests / 2
    return int(binom.ppf(tail, rows, 1 / classes)), int(binom.isf(tail, rows, 1 / classes))


def one_network(
    setting: Setting, task: study.Problem, criteria: Sequence[str], seed: int
) -> list[dict[str, Any]]:
    """Train on random labels, prune, fine-tune: accuracies of every network on the way."""
    drawn = with_random_labels(task, setting.memorised, seed)
    model = study.train(
        task.fresh(seed), drawn.inputs, drawn.labels, epochs=setting.epochs, seed=seed, rate=0.05
    )
    batches = study.minibatches(drawn.inputs, drawn.labels)
    scores, _ = study.scores_by(criteria, model, task.layout, batches, seed)
    networks = [("dense", 1.0, model)]
    for name, values in scores.items():
        for fraction in setting.keep_units:
            mask = pruning.select(values, task.layout, keep_units=fraction)
            small = pruning.shrink(model, task.layout, mask)
            tuned = study.train(
                small, drawn.inputs, drawn.labels, epochs=setting.tune_epochs, seed=seed, rate=0.02
            )
            networks += [(name, fraction, small), (f"{name}, fine-tuned", fraction, tuned)]
    return [
        {
            "seed": seed, "network": name, "keep_units": fraction,
            "train_accuracy": study.accuracy(network, drawn.inputs, drawn.labels),
            "hits": round(
                study.accuracy(network, drawn.test_inputs, drawn.test_labels)
                * len(drawn.test_labels)
            ),
        }
        for name, fraction, network in networks
    ]  # fmt: skip


def run(
    setting: Setting, task: study.Problem, seed: int, criteria: Sequence[str]
) -> dict[str, Any]:
    """Count hits on test rows, and how many networks fall outside the binomial range."""
    networks = [
        row
        for number in range(seed, seed + setting.seeds)
        for row in one_network(setting, task, criteria, number)
    ]
    rows = len(task.test_labels)
    low, high = allowed_hits(rows, task.num_classes, len(networks))
    for row in networks:
        row["test_accuracy"] = row["hits"] / rows
        row["inside"] = low <= row["hits"] <= high
    return {
        "chance": 1 / task.num_classes, "test_rows": rows, "low": low / rows, "high": high / rows,
        "outside": sum(not row["inside"] for row in networks), "networks": networks,
    }  # fmt: skip


def draw(result: dict[str, Any], path: Path) -> None:
    """Training and test accuracy of every network, with the binomial range."""
    figure, (panel,) = study.panels(1, width=5.5)
    rows = result["networks"]
    for number, (key, name) in enumerate(
        (("test_accuracy", "test"), ("train_accuracy", "training"))
    ):
        places = [row["keep_units"] + 0.006 * number for row in rows]
        panel.plot(places, [row[key] for row in rows], "o", ms=3, alpha=0.6,
                   color=study.COLOURS[number], label=name)  # fmt: skip
    panel.axhspan(result["low"], result["high"], color="#999999", alpha=0.3, label="binomial range")
    panel.axhline(result["chance"], color="#444444", lw=0.8)
    study.label(panel, "labels assigned at random", "fraction of units kept", "accuracy")
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write JSON and picture."""
    parser = study.add_criteria(study.add_problem(study.parser(__doc__)))
    parser.set_defaults(criteria=["taylor", "magnitude", "random"])
    arguments = parser.parse_args(argv)
    begun = time.perf_counter()
    setting = SMALL if arguments.small else Setting()
    found = run(setting, study.asked_problem(arguments), arguments.seed, arguments.criteria)
    result = study.finish(__doc__, arguments, setting, begun, found, draw)
    for row in result["networks"]:
        print(
            f"seed {row['seed']} {row['network']:<24} keep {row['keep_units']:<4g} training "
            f"{row['train_accuracy']:.3f}  test {row['test_accuracy']:.3f}"
        )
    print(
        f"{result['outside']} of {len(result['networks'])} networks outside "
        f"[{result['low']:.3f}, {result['high']:.3f}] around {result['chance']:g}"
    )


if __name__ == "__main__":
    main()
