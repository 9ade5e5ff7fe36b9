"""Do weight decay and dropout before pruning make a network easier to prune?

A claim of the pruning literature: decay pulls weights that do little towards zero, dropout teaches
units not to depend on each other, so both leave a network from which more can be removed at once.
It is tested here, not assumed: on the digits' small network decay does so, while dropout, which
such a network has no capacity to spare for, makes it harder to prune.

Networks are trained with several decays and dropout rates, then pruned without fine-tuning: single
weights by magnitude, units by Taylor scores. Told are the accuracy at every keep fraction, and the
smallest fraction (of a fine grid) down to which accuracy stays within 2 points of the same
network's own: smaller is easier to prune.

    python simulations/decay_and_dropout.py --small --out OUT.json
    python simulations/decay_and_dropout.py --out simulations/results/decay_and_dropout.json
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _study as study
import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from fedprune import pruning
from fedprune.pruning import weights

TOLERATED = 0.02


@dataclass(frozen=True)
class Setting:
    """Sizes of the study.

    Attributes:
        seeds: networks for each way to train.
        epochs: of training.
        ways: pairs (weight decay, dropout rate).
        grid: number of keep fractions, geometric from 1 to `least`.
        least: smallest keep fraction.
    """

    seeds: int = 5
    epochs: float = 30
    ways: tuple[tuple[float, float], ...] = (
        (0.0, 0.0), (1e-4, 0.0), (1e-3, 0.0), (5e-3, 0.0), (0.0, 0.2), (0.0, 0.5), (1e-3, 0.2),
    )  # fmt: skip
    grid: int = 40
    least: float = 0.02


SMALL = Setting(seeds=4, epochs=15, ways=((0.0, 0.0), (1e-3, 0.0), (5e-3, 0.0), (0.0, 0.3)),
                grid=20)  # fmt: skip


@contextmanager
def dropout(model: nn.Module, rate: float) -> Iterator[nn.Module]:
    """Drop outputs of every ReLU in training, as dropout layers behind them would."""

    def drop(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return functional.dropout(output, rate, training=module.training)

    hooks = [
        module.register_forward_hook(drop)
        for module in model.modules()
        if isinstance(module, nn.ReLU)
    ]
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()


def trained(
    setting: Setting, task: study.Problem, decay: float, rate: float, seed: int
) -> nn.Module:
    """A network trained with this decay and dropout; it has no trace of the dropout left."""
    model = task.fresh(seed)
    with dropout(model, rate):
        learned = study.train(
            model, task.inputs, task.labels, epochs=setting.epochs, seed=seed, weight_decay=decay
        )
    return pruning.with_state(task.fresh(seed), learned.state_dict())


def accuracies(
    task: study.Problem, model: nn.Module, fractions: list[float]
) -> dict[str, list[float]]:
    """Test accuracy at every keep fraction, of weights by magnitude and of units by Taylor."""
    batches = study.minibatches(task.inputs, task.labels, rows=1000)
    scores = pruning.score(model, task.layout, batches, "taylor")
    found: dict[str, list[float]] = {"weights": [], "units": []}
    for fraction in fractions:
        single = weights.apply_masks(model, weights.magnitude_masks(model, fraction))
        mask = pruning.select(scores, task.layout, keep_units=fraction)
        whole = pruning.mask_model(model, task.layout, mask)
        found["weights"].append(study.accuracy(single, task.test_inputs, task.test_labels))
        found["units"].append(study.accuracy(whole, task.test_inputs, task.test_labels))
    return found


def least_fraction(fractions: list[float], reached: list[float]) -> float:
    """The smallest fraction down to which accuracy stays within the tolerance of the first."""
    good = [accuracy >= reached[0] - TOLERATED for accuracy in reached]
    return fractions[(good.index(False) if False in good else len(good)) - 1]


def run(setting: Setting, task: study.Problem, seed: int) -> dict[str, Any]:
    """Train in every way, prune, tell the smallest fractions."""
    fractions = np.geomspace(1.0, setting.least, setting.grid).tolist()
    rows = []
    for decay, rate in setting.ways:
        runs = [
            accuracies(task, trained(setting, task, decay, rate, number), fractions)
            for number in range(seed, seed + setting.seeds)
        ]
        row: dict[str, Any] = {"weight_decay": decay, "dropout": rate}
        row["dense"] = study.spread([one["weights"][0] for one in runs])
        for what in ("weights", "units"):
            least = [least_fraction(fractions, one[what]) for one in runs]
            columns = zip(*(one[what] for one in runs), strict=True)
            row[f"least_{what}"] = study.spread(least)
            row[f"accuracy_{what}"] = [study.spread(column) for column in columns]
        rows.append(row)
    return {"keep_fractions": fractions, "rows": rows}


def named(row: dict[str, Any]) -> str:
    """A way to train in words."""
    parts = [f"decay {row['weight_decay']:g}"] if row["weight_decay"] else []
    parts += [f"dropout {row['dropout']:g}"] if row["dropout"] else []
    return ", ".join(parts) or "plain"


def draw(result: dict[str, Any], path: Path) -> None:
    """Accuracy against the fraction kept."""
    figure, both = study.panels(2)
    for panel, what in zip(both, ("weights", "units"), strict=True):
        for number, row in enumerate(result["rows"]):
            study.curve(
                panel, result["keep_fractions"], row[f"accuracy_{what}"], named(row), number
            )
        panel.set_xscale("log")
        study.label(panel, f"{what}, without fine-tuning", f"{what} kept", "test accuracy")
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write JSON and picture."""
    arguments = study.add_problem(study.parser(__doc__)).parse_args(argv)
    begun = time.perf_counter()
    setting = SMALL if arguments.small else Setting()
    found = run(setting, study.asked_problem(arguments), arguments.seed)
    result = study.finish(__doc__, arguments, setting, begun, found, draw)
    print("trained with            accuracy               least weights          least units")
    for row in result["rows"]:
        print(
            f"{named(row):<22}  {study.interval(row['dense']):<22} "
            f"{study.interval(row['least_weights']):<22} {study.interval(row['least_units'])}"
        )


if __name__ == "__main__":
    main()
