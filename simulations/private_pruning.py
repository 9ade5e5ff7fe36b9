"""Does a private vote choose better units than magnitude does?

Question: ten thousand clients with five CIFAR-10 images each vote, at a client-level epsilon of 4,
on which half of a pretrained ResNet-20's units to keep. Does the private mask find what the same
clients would have chosen without noise, and does it help the pruned network's accuracy?

    python simulations/private_pruning.py configs/cifar10_resnet20.toml --set data.root=DATA \
        --run runs/cifar --out simulations/results/cifar10_resnet20.json

The run is made, resumed or, if it is finished, only read. Besides the JSON a picture is written.
"""

from __future__ import annotations

import argparse
import json
import statistics
from datetime import date
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fedprune import config as configuration
from fedprune.federated.simulate import resume, simulate
from fedprune.progress import Terminal
from fedprune.runs import RunFolder

METHODS = ("votes_without_noise", "private", "pooled", "magnitude", "random")


def main() -> None:
    """Make or continue the run, then write the table and the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--run", type=Path, required=True, help="run folder")
    parser.add_argument("--out", type=Path, required=True, help="results JSON to write")
    arguments = parser.parse_args()
    if arguments.run.exists():
        resume(arguments.run, Terminal())
    else:
        settings = configuration.load(arguments.config, arguments.overrides)
        simulate(settings, arguments.run, Terminal())
    result = collect(arguments.run, arguments.config)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(result, arguments.out.with_suffix(".png"))
    print(table(result))


def collect(run: Path, config: Path) -> dict[str, Any]:
    """Read the summaries of all seeds."""
    folders = [run, *sorted((run / "seeds").glob("seed-*"))]
    summaries = [RunFolder.open(folder).read_json("summary.json") for folder in folders]
    first = summaries[0]
    settings = first["config"] | {"out": "", "data": first["config"]["data"] | {"root": ""}}
    return {
        "question": (__doc__ or "").splitlines()[0],
        "command": f"python simulations/private_pruning.py {config} --set data.root=DATA "
        f"--run RUN --out simulations/results/{config.stem}.json",
        "date": date.today().isoformat(),
        "config": settings,
        "versions": first["versions"],
        "privacy": first["privacy"],
        "paired_difference": first["paired_difference"],
        "seeds": [seed_row(summary) for summary in summaries],
    }


def seed_row(summary: dict[str, Any]) -> dict[str, Any]:
    """The figures of one seed."""
    accuracy = summary["accuracy"]
    before = {"private": accuracy["pruned_before_fine_tuning"]}
    after, recall = {"private": accuracy["pruned"]}, {"private": summary["mask_recall"]}
    recall["private_without_prior"] = summary["mask_recall_without_prior"]
    for name, parts in summary["baselines"].items():
        before[name] = parts["accuracy_before_fine_tuning"]
        after[name], recall[name] = parts["accuracy"], parts["mask_recall"]
    return {
        "seed": summary["seed"],
        "dense_accuracy": accuracy["dense"],
        "mask_recall": recall,
        "accuracy_before_fine_tuning": before,
        "accuracy": after,
        "cost": summary["cost"],
        "fairness": {k: summary["fairness"][k] for k in ("gap_dense", "gap_pruned", "pair")},
        "robustness": summary["robustness"],
        "seconds": round(sum(summary["seconds"].values()), 1),
    }


def table(result: dict[str, Any]) -> str:
    """Mean over seeds, with the range."""
    rows = ["method                 recall            pruned            fine-tuned"]
    for name in METHODS:
        cells = [
            spread([seed[part][name] for seed in result["seeds"]])
            for part in ("mask_recall", "accuracy_before_fine_tuning", "accuracy")
        ]
        rows.append(f"{name:<22} " + "  ".join(cells))
    free = spread([seed["mask_recall"]["private_without_prior"] for seed in result["seeds"]])
    rows.append(f"{'private without prior':<22} {free}")
    rows.append(f"{'dense':<22} {spread([seed['dense_accuracy'] for seed in result['seeds']])}")
    difference = result["paired_difference"]
    rows.append(
        f"{difference['name']}: {difference['mean']:+.4f} "
        f"[{difference['low']:+.4f}, {difference['high']:+.4f}]"
    )
    return "\n".join(rows)


def spread(values: list[float]) -> str:
    """Mean and range."""
    return f"{statistics.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def draw(result: dict[str, Any], path: Path) -> None:
    """Recall and fine-tuned accuracy of every method, one dot a seed."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    parts = (("mask_recall", "share of the noise-free mask found"), ("accuracy", "accuracy"))
    for panel, (part, label) in zip(panels, parts, strict=True):
        for height, name in enumerate(reversed(METHODS)):
            values = [seed[part][name] for seed in result["seeds"]]
            panel.plot(values, [height] * len(values), "o", color="#0072b2", alpha=0.7)
        panel.set_xlabel(label)
        panel.set_xlim(0, 1.02)
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(METHODS)), [n.replace("_", " ") for n in reversed(METHODS)])
    dense = statistics.mean(seed["dense_accuracy"] for seed in result["seeds"])
    panels[1].axvline(dense, linestyle="--", color="grey")
    epsilon = result["privacy"]["epsilon"]
    figure.suptitle(f"half of the units, epsilon = {epsilon:g} per client (mask reports)", size=10)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
