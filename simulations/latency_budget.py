"""Does a budget of measured time hold, where one of operations promises too much?

A share of the multiply-accumulates is not a share of the time: narrow layers use a processor
badly, and what lies between the layers costs time of its own. Here a table of layer times is
measured (`pruning.LatencyTable`; the idea of a platform's lookup table is that of NetAdapt, Yang
et al. 2018), masks are selected once to a share of the operations and once to the same share of
the predicted time, both with the largest sum of scores, and the shrunk networks are timed beside
the dense one, pass by pass in turns: the median share of the dense time, with a distribution-free
95 % interval. A share of the time below what the narrowest network still costs cannot be had by
removing channels: it is reported with its reason, not measured.

    python simulations/latency_budget.py --out simulations/results/latency_budget.json
    python simulations/latency_budget.py --small --out /tmp/latency.json   # ResNet-20 alone
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _study as study
import torch
from _arguments import at_least, fraction
from matplotlib.figure import Figure
from torch import Tensor

from fedprune import hardware, models, pruning
from fedprune.errors import FedpruneError, PruningError

SIDES = {"resnet20": 32, "resnet56": 32}  # others are torchvision's, at --side pixels
BUDGETS = ("keep_macs", "keep_latency")


def measure(name: str, batch_size: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One network at one batch size: the table, then every share under both budgets."""
    side = SIDES.get(name, arguments.side)
    model = models.load(name, num_classes=10, input_shape=(3, side, side), seed=arguments.seed)
    example = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(arguments.seed))
    layout = pruning.UnitLayout.of(model, example)
    table = pruning.LatencyTable.measure(
        model, layout, example, batch_size=batch_size, threads=arguments.threads
    )
    scores = pruning.score(model, layout, [], criterion="magnitude_l2")
    whole = table.predict(layout, torch.ones(len(layout), dtype=torch.bool))
    masks: dict[tuple[str, float], Tensor] = {}
    unmet: list[dict[str, Any]] = []
    for budget, keep in itertools.product(BUDGETS, arguments.keeps):
        timed = budget == "keep_latency"
        asked = {"keep_latency": keep, "latency": table} if timed else {"keep_macs": keep}
        try:
            masks[budget, keep] = pruning.select(scores, layout, fill="value", **asked)
        except PruningError as error:
            unmet.append({"budget": budget, "asked": keep, "reason": str(error)})
    networks = {"dense": model} | {
        f"{budget} {keep:g}": pruning.shrink(model, layout, mask)
        for (budget, keep), mask in masks.items()
    }
    speeds = hardware.compare(
        networks,
        example,
        batch_size=batch_size,
        repeats=arguments.repeats if batch_size == 1 else max(6, arguments.repeats // 4),
        warmup=3,
        threads=arguments.threads,
    )
    rows = []
    for (budget, keep), mask in masks.items():
        speed = speeds[f"{budget} {keep:g}"]
        rows.append(
            {
                "budget": budget,
                "asked": keep,
                "macs": layout.macs(mask) / layout.total_macs,
                "predicted": table.predict(layout, mask) / whole,
                "measured": 1 / speed.speedup,
                "low": 1 / speed.speedup_high,
                "high": 1 / speed.speedup_low,
                "kept_score": float(scores[mask].sum() / scores.sum()),
            }
        )
    return {"model": name, "batch_size": batch_size, "side": side, "shares": rows, "unmet": unmet}


def report(found: list[dict[str, Any]]) -> str:
    """Everything as text."""
    lines = []
    for one in found:
        lines += [f"{one['model']}, batch {one['batch_size']}:", *map(_line, one["shares"])]
        lines += [f"  out of reach: {row['reason']}" for row in one["unmet"]]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    return (
        f"  {row['budget']:12} {row['asked']:.2f}: operations {row['macs']:.3f}, time "
        f"{row['measured']:.3f} [{row['low']:.3f}, {row['high']:.3f}], predicted "
        f"{row['predicted']:.3f}, score kept {row['kept_score']:.3f}"
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """Measured share of the time over the share that was asked for."""
    measured = result["networks"]
    figure = Figure(figsize=(3.4 * len(measured) + 0.6, 3.8), layout="constrained")
    axes = figure.subplots(1, len(measured), squeeze=False, sharey=True)[0]
    for panel, one in zip(axes, measured, strict=True):
        for budget, colour in zip(BUDGETS, ("#d55e00", "#0072b2"), strict=True):
            rows = [row for row in one["shares"] if row["budget"] == budget]
            middle = [row["measured"] for row in rows]
            below = [row["measured"] - row["low"] for row in rows]
            above = [row["high"] - row["measured"] for row in rows]
            asked = [row["asked"] for row in rows]
            panel.errorbar(asked, middle, [below, above], fmt="o-", color=colour, label=budget)
        panel.axline((0.5, 0.5), slope=1, color="black", ls=":", lw=1)
        panel.set(title=f"{one['model']}, batch {one['batch_size']}", xlabel="share asked for")
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("share of the dense time, measured")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = study.parser(__doc__)
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet56", "mobilenet_v2"])
    parser.add_argument("--batch-sizes", nargs="+", type=at_least(1), default=[1, 64])
    parser.add_argument("--keeps", nargs="+", type=fraction, default=[0.8, 0.65, 0.5])
    parser.add_argument(
        "--side", type=at_least(1), default=64, help="pixels of torchvision's networks"
    )
    parser.add_argument("--threads", type=at_least(1), default=1)
    parser.add_argument(
        "--repeats", type=at_least(6), default=200, help="turns at batch 1; a quarter else"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every network at every batch size; write JSON and picture."""
    arguments = options().parse_args(argv)
    if arguments.small:
        arguments.models, arguments.repeats = ["resnet20"], min(arguments.repeats, 40)
    try:
        found = [
            measure(name, batch_size, arguments)
            for name in arguments.models
            for batch_size in arguments.batch_sizes
        ]
    except FedpruneError as error:
        raise SystemExit(str(error)) from None
    names = ("models", "batch_sizes", "keeps", "side", "threads", "repeats")
    config = {name: getattr(arguments, name) for name in names}
    study.tell(__doc__, arguments, config, {"networks": found}, draw)
    print(report(found))


if __name__ == "__main__":
    main()
