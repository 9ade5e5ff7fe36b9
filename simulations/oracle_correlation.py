"""How well does each criterion foretell what a unit's removal does to the loss?

Molchanov et al. 2019 ("Importance Estimation for Neural Network Pruning") report a correlation
above 93 % between their Taylor scores and the true change of the loss, on ImageNet networks. Here
the truth is computed for every unit of a network: L without it minus L, on draws of training
images. Beside it stands every criterion on the same images: Pearson, Spearman and Kendall over all
units, within layers, and among units that one layer alone makes (the inner units of residual
blocks); means with 95 % intervals over draws, and each criterion's price in Taylor passes.

Claim: the loss of linearised logits (`linear_logits`) has a Spearman correlation of at least 0.97
with the truth over the 448 units of CIFAR ResNet-20 and 0.95 among its 336 inner ones, for at most
2 Taylor passes; 0.95 and 0.93 on ResNet-56, which it was not developed on.

    python simulations/oracle_correlation.py --small --out RESULTS.json
    python simulations/oracle_correlation.py --dataset cifar10 --root DATA --network resnet20 \
        --weights DATA/weights/resnet20-12fca82f.th --work WORK --federated --out RESULTS.json
    python simulations/oracle_correlation.py --dataset cifar10 --root DATA --network resnet56 \
        --weights DATA/weights/resnet56-4bfd9763.th --work WORK --out RESULTS.json

Scores are compared with the size of the change, |L' - L|, as `pruning.score` gives them; a score
with a sign (`linear_logits_signed`) also by its size, and with the change and its sign.
`--kinds gates` puts a gate behind every batch norm by itself, as the paper does (672 in ResNet-20's
blocks, 688 with its stem). `--federated` asks 1,000 clients of about 5 images, alike (iid) and not
(Dirichlet 0.3): the mean of their scores, their votes (the share that has a unit in its top half)
and the votes under threshold randomised response. What is done is kept in `--work` after every
batch; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _oracle_correlation import (
    EPSILONS,
    FEDERATED_CRITERIA,
    SMALL,
    Row,
    Setting,
    compare,
    federated,
    prices,
    scores_of,
    tasks,
)
from _study import COLOURS, finish, interval, label, panels, parser

from fedprune import pruning
from fedprune.errors import FedpruneError


def report(result: Row) -> str:
    """Everything as text."""
    lines = []
    for table in result["networks"]:
        parts = list(table["parts"])
        shown = " | ".join(f"{part} ({count})" for part, count in table["parts"].items())
        lines.append(
            f"{result['network']}, {table['units']} {table['kind']}; Spearman with |L' - L| over "
            f"{shown} | within layers; cost in taylor passes"
        )
        for row in sorted(table["criteria"], key=lambda row: -row["all spearman"]["mean"]):
            found = " | ".join(
                interval(row[f"{part} spearman"], 4) for part in [*parts, "within layers"]
                if f"{part} spearman" in row
            )  # fmt: skip
            price = result["prices"].get(row["criterion"], {}).get("median")
            lines.append(
                f"  {row['criterion']:<38}{found}" + (f"  {price:.2f}" if price is not None else "")
            )
        lines += [f"  {name}: {reason}" for name, reason in table["refused"].items()]
    for row in result["federated"]:
        what = row["what"] + (f", epsilon {row['epsilon']:g}" if "epsilon" in row else "")
        lines.append(
            f"  {row['partition']:<10}{row['criterion']:<15}{what:<27} Spearman "
            f"{row['spearman']:.3f}, recall {row['recall']:.3f}"
        )
    return "\n".join(lines)


def draw(result: Row, path: Path) -> None:
    """Bars of the correlations; scores against the truth; what votes know."""
    figure, found = panels(2 + bool(result["federated"]), width=5.2, height=4.6)
    table = result["networks"][0]
    rows = sorted(table["criteria"], key=lambda row: row["all spearman"]["mean"])
    for number, part in enumerate(table["parts"]):
        kept = [row for row in rows if f"{part} spearman" in row]
        means = [row[f"{part} spearman"]["mean"] for row in kept]
        bars = [np.nan_to_num(row[f"{part} spearman"]["high"]) for row in kept]
        errors = np.maximum(np.array(bars) - np.array(means), 0)
        places = np.arange(len(kept)) + 0.4 * number - 0.2
        found[0].barh(places, means, 0.4, xerr=errors, color=COLOURS[number],
                      label=f"{part} ({table['parts'][part]})", error_kw={"lw": 0.8})  # fmt: skip
    found[0].set_yticks(range(len(rows)), [row["criterion"] for row in rows], size=6)
    label(found[0], f"{result['network']}, {table['kind']}", "Spearman with |L' - L|", "")
    scatter(found[1], result["scatter"])
    if result["federated"]:
        votes(found[2], result["federated"])
    figure.savefig(path, dpi=150)


def scatter(panel: Any, shown: Row) -> None:
    """Ranks by two criteria against ranks by the truth."""
    truth = np.argsort(np.argsort(np.abs(shown["truth"])))
    for number, name in enumerate(key for key in shown if key != "truth"):
        ranks = np.argsort(np.argsort(shown[name]))
        panel.plot(truth, ranks, ".", ms=3, color=COLOURS[number], label=name, alpha=0.6)
    label(panel, "ranks of units, first draw", "by |L' - L|", "by the criterion")


def votes(panel: Any, rows: Sequence[Row]) -> None:
    """Spearman of what clients say, by criterion and partition."""
    groups = [(c, p) for c in FEDERATED_CRITERIA for p in ("iid", "dirichlet")]
    names = ["mean score", "votes", *(f"epsilon {epsilon:g}" for epsilon in EPSILONS)]
    for number, (criterion, partition) in enumerate(groups):
        values = [
            row["spearman"] for row in rows
            if (row["criterion"], row["partition"]) == (criterion, partition)
        ]  # fmt: skip
        panel.plot(names, values, "-o" if partition == "iid" else "--s", ms=4,
                   color=COLOURS[number // 2], label=f"{criterion}, {partition}")  # fmt: skip
    label(panel, "clients together", "", "Spearman with |L' - L|")


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--network", default="lenet", help="its name (default: lenet)")
    made.add_argument("--weights", default="", help="its trained weights; none: trained here first")
    made.add_argument("--dataset", default="digits", help="one of data.DATASETS (default: digits)")
    made.add_argument("--root", default="", help="folder of the data set's files; digits need none")
    made.add_argument("--work", type=Path, help="folder where what is done is kept")
    made.add_argument("--draws", type=int, help="sets of training images (default: 3)")
    made.add_argument("--images", type=int, help="in each (default: 1000)")
    made.add_argument("--kinds", nargs="+", default=["units", "gates"], choices=["units", "gates"])
    made.add_argument("--federated", action="store_true", help="ask clients too")
    known = [name for name in pruning.CRITERIA if name not in ("oracle", "magnitude")]
    made.add_argument("--criteria", nargs="+", default=known, choices=known, metavar="NAME",
                      help="of pruning.CRITERIA (default: all)")  # fmt: skip
    return made


def asked(arguments: argparse.Namespace) -> Setting:
    """The sizes that the command line names."""
    setting = SMALL if arguments.small else Setting()
    given = {key: getattr(arguments, key) for key in ("draws", "images")}
    named = {key: value for key, value in given.items() if value is not None}
    if any(value < 1 for value in named.values()):
        raise SystemExit(f"--draws and --images must be at least 1, got {named}")
    return replace(setting, **named)


def run(arguments: argparse.Namespace, setting: Setting) -> Row:
    """Measure everything."""
    result: Row = {"network": arguments.network, "networks": [], "federated": []}
    for task in tasks(arguments, setting):
        table, truths = compare(task, arguments, setting)
        result["networks"].append(table)
        if "prices" not in result:
            result["prices"] = {"taylor": {"median": 1.0}} | prices(task, arguments, setting)
            images = task.images(arguments.seed, 0, setting.images)
            shown = [name for name in ("taylor", "linear_logits") if name in arguments.criteria]
            scores, _ = scores_of(task, shown, *images, arguments.seed)
            result["scatter"] = {"truth": truths[0].tolist()} | {
                name: scores[name].tolist() for name in shown
            }
        if arguments.federated and task.kind == "units":
            truth = np.mean(truths, axis=0)
            result["federated"] = federated(task, arguments, setting, truth)
    return result


def main() -> None:
    """Measure, print, write JSON and picture."""
    arguments = options().parse_args()
    setting, begun = asked(arguments), time.perf_counter()
    arguments.federated |= arguments.small
    try:
        found = run(arguments, setting)
    except FedpruneError as error:
        raise SystemExit(str(error)) from None
    print(report(finish(__doc__, arguments, setting, begun, found, draw)))


if __name__ == "__main__":
    main()
