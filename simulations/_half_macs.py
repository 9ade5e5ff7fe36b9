"""What a study of half of the operations has to tell: a result file and its picture."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from _central import Recipe
from matplotlib.figure import Figure
from torch import Tensor

from fedprune import pruning


def result(
    question: str,
    options: argparse.Namespace,
    told: Mapping[str, Any],
    layout: pruning.UnitLayout,
    mask: Tensor,
    recipe: Recipe,
    device: torch.device,
) -> dict[str, Any]:
    """Everything that there is to tell.

    Args:
        question: What was asked, a line.
        options: As the script took them.
        told: The account that was kept on the way.
        layout: Units of the dense network.
        mask: Which of them are left, [num_units].
        recipe: Of training.
        device: Where it ran.
    """
    whole = layout.total_macs
    named = ("torch", "torchvision", "numpy", "fedprune")
    return {
        "question": question,
        "command": f"python simulations/resnet_half_macs.py --root DATA --network "
        f"{options.network} --weights {Path(options.weights).name} --epochs {options.epochs} "
        f"--keep-macs {options.keep_macs} --criterion {options.criterion} --fill {options.fill} "
        f"--rate {options.rate} --weight-decay {options.weight_decay} --views {options.views} "
        f"--distill {options.distill} --mixed {options.mixed} --statistics {options.statistics} "
        f"--seed {options.seed}"
        f"{named_teacher(options)}{' --bfloat16' if options.bfloat16 else ''}"
        f"{' --restart ' if options.restart else ''}{' '.join(map(str, options.restart))}",
        "date": date.today().isoformat(),
        "seed": options.seed,
        "config": told["asked"]
        | {
            "weights": Path(options.weights).name,
            "teacher_weights": Path(options.teacher_weights or options.weights).name,
            "recipe": asdict(recipe),
        },
        "versions": {name: metadata.version(name) for name in named},
        "machine": {
            "device": str(device),
            "cpu": platform.processor(),
            "cores": os.cpu_count(),
            "threads": options.threads,
        },
        "macs": {
            "dense": whole,
            "pruned": layout.macs(mask),
            "times_fewer": round(whole / layout.macs(mask), 3),
        },
        "params": {"dense": layout.total_params, "pruned": layout.params(mask)},
        "accuracy": {
            "dense": told["dense"],
            "pruned": told["final"],
            "each_cycle": told.get("cycles", [told["final"]]),
        },
        "steps": told["steps"],
        "epochs": told["epochs"],
    }


def named_teacher(options: argparse.Namespace) -> str:
    """The part of the command that names a teacher of its own."""
    if options.teacher is None:
        return ""
    return f" --teacher {options.teacher} --teacher-weights {Path(options.teacher_weights).name}"


def draw(found: dict[str, Any], path: Path) -> None:
    """Accuracy over the steps of pruning and the epochs of training."""
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    steps = [one["accuracy"] for one in found["steps"]]
    axes.plot(range(-len(steps) + 1, 1), steps, "o-", color="tab:grey", label="pruning steps")
    epochs = range(1, len(found["epochs"]) + 1)
    axes.plot(epochs, [one["accuracy"] for one in found["epochs"]], lw=1, label="weights")
    averaged = [one["averaged"] for one in found["epochs"]]
    axes.plot(epochs, averaged, lw=2, label="average of the weights")
    axes.plot(len(epochs), found["accuracy"]["pruned"], "*", ms=12, color="tab:red", label="result")
    axes.axhline(found["accuracy"]["dense"], color="black", ls=":", label="dense")
    axes.set(
        xlabel="epoch (steps of pruning before 1)",
        ylabel="test accuracy",
        title=f"{found['macs']['times_fewer']} times fewer multiply-accumulates",
    )
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)
