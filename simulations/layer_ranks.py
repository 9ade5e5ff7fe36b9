"""Which layers do the important units sit in, before and after pruning and fine-tuning?

Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", figure 5: the ranks of
all units in one list, told layer by layer, in the dense network and in the pruned one. What to see:
layers differ much before pruning, so one threshold over the whole network takes very different
shares of them; what stays has been evened out, and is ranked anew after fine-tuning.

Ranks are 0 for the most important unit and 1 for the least, so that networks of different sizes
compare.

    python simulations/layer_ranks.py --small --out OUT.json
    python simulations/layer_ranks.py --out simulations/results/layer_ranks.json
    python simulations/layer_ranks.py --dataset cifar10 --root DATA --model resnet20 \\
        --weights resnet20-12fca82f.th --rows 5000 --out OUT.json
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _study as study
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor, nn

from fedprune import pruning

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """Sizes of the study.

    Attributes:
        seeds: networks, with a 95 % interval over them; with a file's weights: fine-tunings.
        epochs: of training.
        tune_epochs: of fine-tuning after each step.
        tune_rate: its learning rate.
        steps: of the geometric schedule.
        keep_units: fraction that stays.
        score_rows: training rows that scores are of.
    """

    seeds: int = 5
    epochs: float = 15
    tune_epochs: float = 3
    tune_rate: float = 0.02
    steps: int = 4
    keep_units: float = 0.4
    score_rows: int = 1000


SMALL = Setting(seeds=4, epochs=8, tune_epochs=1, steps=3, score_rows=300)


def ranks(scores: Tensor) -> Vector:
    """0 for the highest score, 1 for the lowest, ties in the middle of theirs."""
    order = rankdata(-scores.double().numpy())
    return np.asarray((order - 1) / max(1, len(order) - 1))


def prune(
    setting: Setting, task: study.Problem, model: nn.Module, criterion: str, seed: int
) -> tuple[nn.Module, Tensor]:
    """Prune step by step with fine-tuning after each: the shrunk network and its mask."""
    batches = study.minibatches(task.inputs, task.labels, rows=setting.score_rows)
    mask = torch.ones(len(task.layout), dtype=torch.bool)
    small = model
    for step, fraction in enumerate(
        pruning.keep_fractions("geometric", setting.steps, setting.keep_units)
    ):
        layout = pruning.UnitLayout.of(small, task.inputs[:2])
        scores = pruning.score(small, layout, batches, criterion, seed=seed)
        whole = torch.full((len(task.layout),), -torch.inf)
        whole[mask] = scores
        before, mask = mask, pruning.select(whole, task.layout, keep_units=fraction)
        small = study.train(
            pruning.shrink(small, layout, mask[before]), task.inputs, task.labels,
            epochs=setting.tune_epochs, rate=setting.tune_rate, seed=seed + step,
        )  # fmt: skip
    return small, mask


def one_network(
    setting: Setting, task: study.Problem, criterion: str, seed: int
) -> list[dict[str, float]]:
    """Ranks of every layer before and after, and the share of its units that stay."""
    model = study.trained_network(task, seed, setting.epochs)
    batches = study.minibatches(task.inputs, task.labels, rows=setting.score_rows)
    before = ranks(pruning.score(model, task.layout, batches, criterion, seed=seed))
    small, mask = prune(setting, task, model, criterion, seed)
    layout = pruning.UnitLayout.of(small, task.inputs[:2])
    after = np.full(len(task.layout), np.nan)
    after[mask.numpy()] = ranks(pruning.score(small, layout, batches, criterion, seed=seed))
    rows = []
    for group in task.layout.groups:
        stays = mask[group.units].numpy()
        dense, kept = before[group.units], after[group.units][stays]
        rows.append(
            {
                "before": float(dense.mean()), "before_deviation": float(dense.std()),
                "after": float(kept.mean()), "after_deviation": float(kept.std()),
                "kept_before": float(dense[stays].mean()), "kept_share": float(stays.mean()),
            }
        )  # fmt: skip
    return rows


def run(
    setting: Setting, task: study.Problem, seed: int, criterion: str = "taylor"
) -> dict[str, Any]:
    """Ranks over several networks."""
    runs = [
        one_network(setting, task, criterion, number)
        for number in range(seed, seed + setting.seeds)
    ]
    rows = []
    for place, group in enumerate(task.layout.groups):
        columns = [found[place] for found in runs]
        spreads = {key: study.spread([row[key] for row in columns]) for key in columns[0]}
        rows.append({"layer": group.name, "units": len(group), **spreads})
    uneven = {
        when: float(np.std([row[when]["mean"] for row in rows])) for when in ("before", "after")
    }
    return {"criterion": criterion, "rows": rows, "deviation_between_layers": uneven}


def draw(result: dict[str, Any], path: Path) -> None:
    """Mean ranks with the deviation within each layer, and the share that stays."""
    rows = result["rows"]
    figure, (left, right) = study.panels(2, width=max(4.6, 0.25 * len(rows)))
    places = np.arange(len(rows))
    for number, when in enumerate(("before", "after")):
        means = [row[when]["mean"] for row in rows]
        bars = [row[f"{when}_deviation"]["mean"] for row in rows]
        left.errorbar(places + 0.15 * number, means, yerr=bars, fmt="o", ms=4, capsize=2,
                      color=study.COLOURS[number], label=f"{when} pruning")  # fmt: skip
    right.bar(places, [row["kept_share"]["mean"] for row in rows], color=study.COLOURS[2])
    for panel in (left, right):
        panel.set_xticks(places, [row["layer"] for row in rows], rotation=90, fontsize=6)
    study.label(left, "ranks: 0 most important", "layer", "mean and deviation in the layer")
    study.label(right, "units that stay", "layer", "share")
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write JSON and picture."""
    parser = study.add_problem(study.parser(__doc__))
    parser.add_argument("--criterion", default="taylor", choices=list(pruning.CRITERIA))
    arguments = parser.parse_args(argv)
    begun = time.perf_counter()
    setting = SMALL if arguments.small else Setting()
    task = study.asked_problem(arguments)
    found = run(setting, task, arguments.seed, arguments.criterion)
    result = study.finish(__doc__, arguments, setting, begun, found, draw)
    print(
        "layer                units  rank before            rank after             share that stays"
    )
    for row in result["rows"]:
        print(
            f"{row['layer']:<20} {row['units']:>5}  {study.interval(row['before']):<22} "
            f"{study.interval(row['after']):<22} {study.interval(row['kept_share'], 2)}"
        )


if __name__ == "__main__":
    main()
