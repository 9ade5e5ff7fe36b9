"""Why does removing weights one by one not make a network fast? The roofline of dense, CSR, shrunk.

A survey of magnitude pruning warns that weights removed one by one need indices: a layer with k
times fewer operations then runs only a little faster than the dense one, or slower. Here this
machine's memory bandwidth (a triad) and peak rate (matrix products) are measured, and single
layers are timed in turns as they are (dense), with a share of their weights as a compressed sparse
matrix (CSR, with and without the unfolding of its input), and shrunk to as few operations. Each
stands in the roofline of Williams et al. 2009: rate over operations a byte.

    python simulations/roofline.py --out simulations/results/roofline.json
    python simulations/roofline.py --small --out /tmp/roofline.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _study as study
import numpy as np
import torch
from _arguments import at_least, fraction, results_file
from matplotlib.figure import Figure
from torch import nn

from fedprune import hardware, models
from fedprune.errors import FedpruneError

# Layers as ResNets have them: channels in and out, kernel, pixels; and two fully connected ones.
CONVOLUTIONS = ((16, 16, 3, 32), (64, 64, 3, 8), (64, 64, 3, 56), (256, 256, 3, 14),
                (512, 512, 3, 7), (256, 64, 1, 56), (1024, 256, 1, 14))  # fmt: skip
LINEARS = ((512, 1000), (4096, 4096))
COLOURS = {"dense": "#0072b2", "csr": "#d55e00", "csr_product": "#e69f00", "shrunk": "#009e73",
           "unfolded": "#999999"}  # fmt: skip


def layers(small: bool) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Layers by name, with the shape of one example."""
    found: dict[str, tuple[nn.Module, tuple[int, ...]]] = {}
    for n_in, n_out, kernel, side in CONVOLUTIONS[:2] if small else CONVOLUTIONS:
        layer = nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2, bias=False)
        found[f"conv {kernel}x{kernel} {n_in}-{n_out} at {side}"] = layer, (n_in, side, side)
    for n_in, n_out in LINEARS[:1] if small else LINEARS:
        found[f"linear {n_in}-{n_out}"] = nn.Linear(n_in, n_out), (n_in,)
    return found


def row(name: str, work: hardware.Work, limits: hardware.Roofline) -> dict[str, Any]:
    """One piece of work beside what the machine allows."""
    return {
        "layer": name,
        "form": work.name,
        "flops": work.flops,
        "bytes": work.bytes,
        "intensity": work.intensity,
        "median_ms": work.median_ms,
        "low_ms": work.low_ms,
        "high_ms": work.high_ms,
        "gigaflops": work.gigaflops,
        "attainable": limits.attainable(work.intensity),
    }


def forms(arguments: argparse.Namespace, limits: hardware.Roofline) -> list[dict[str, Any]]:
    """Every layer dense, in CSR and shrunk, at every share of weights."""
    rows = []
    for name, (layer, shape) in layers(arguments.small).items():
        draw = torch.Generator().manual_seed(arguments.seed)
        inputs = torch.randn(arguments.batch_size, *shape, generator=draw)
        for keep in arguments.keep:
            works = hardware.measure_forms(
                layer, inputs, keep, repeats=arguments.repeats, threads=arguments.threads
            )
            dense = works[0].median_ms
            rows += [
                row(name, one, limits) | {"keep": keep, "speedup": dense / one.median_ms}
                for one in works
            ]
    return rows


def network(arguments: argparse.Namespace, limits: hardware.Roofline) -> list[dict[str, Any]]:
    """Every layer of one whole network."""
    shape = models.default_input_shape(arguments.model)
    model = models.load(arguments.model, num_classes=10, seed=arguments.seed)
    works = hardware.measure_layers(
        model,
        torch.zeros(arguments.batch_size, *shape),
        repeats=arguments.repeats,
        threads=arguments.threads,
    )
    return [row(work.name, work, limits) for work in works]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The machine's limits, the layers in every form, and a network's layers."""
    limits = hardware.roofline(threads=arguments.threads)
    return {
        "roofline": {
            "gigabytes_per_second": limits.gigabytes_per_second,
            "gigaflops": limits.gigaflops,
            "ridge": limits.ridge,
            "threads": limits.threads,
        },
        "forms": forms(arguments, limits),
        "network": network(arguments, limits),
    }


def report(result: dict[str, Any]) -> str:
    """Everything as text."""
    limits = result["roofline"]
    lines = [
        f"{limits['gigabytes_per_second']:.1f} GB/s, {limits['gigaflops']:.1f} Gflop/s, ridge at "
        f"{limits['ridge']:.1f} operations a byte"
    ]
    lines += [
        f"{one['layer']:<28} keep {one['keep']:<5g}{one['form']:<12}{one['median_ms']:>9.3f} ms"
        f"{one['speedup']:>7.2f} times dense {one['gigaflops']:>7.1f} of "
        f"{one['attainable']:.1f} Gflop/s"
        for one in result["forms"]
    ]
    slower = [o for o in result["forms"] if o["form"] == "csr" and o["speedup"] <= 1]
    all_csr = [o for o in result["forms"] if o["form"] == "csr"]
    lines.append(f"CSR is no faster than dense in {len(slower)} of {len(all_csr)} cases")
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """The roofline with every form of every layer, and speed over operations left."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    limits = result["roofline"]
    places = np.geomspace(0.1, 1000, 200)
    roof = np.minimum(limits["gigaflops"], places * limits["gigabytes_per_second"])
    left.plot(places, roof, color="black", lw=1)
    shown: set[str] = set()
    for one in result["forms"]:
        label = "" if one["form"] in shown else one["form"]
        shown.add(one["form"])
        left.plot(one["intensity"], one["gigaflops"], "o", ms=4, color=COLOURS[one["form"]],
                  label=label, alpha=0.7)  # fmt: skip
        if one["form"] in ("csr", "csr_product", "shrunk"):
            right.plot(1 / one["keep"], one["speedup"], "o", ms=4, color=COLOURS[one["form"]],
                       alpha=0.7)  # fmt: skip
    for one in result["network"]:
        left.plot(one["intensity"], one["gigaflops"], ".", ms=3, color="black", alpha=0.4)
    left.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="Gflop/s")
    left.legend(fontsize=8)
    most = max(1 / one["keep"] for one in result["forms"])
    right.plot([1, most], [1, most], color="#999999", lw=1, ls="--")
    right.axhline(1, color="black", lw=0.8)
    right.set(xscale="log", yscale="log", xlabel="times fewer operations",
              ylabel="times as fast as dense")  # fmt: skip
    for panel in (left, right):
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="resnet20", help="network for the black dots")
    parser.add_argument("--keep", nargs="+", type=fraction, default=[0.5, 0.25, 0.1, 0.05, 0.02])
    parser.add_argument("--batch-size", type=at_least(1), default=8)
    parser.add_argument("--repeats", type=at_least(6), default=20)
    parser.add_argument("--threads", type=at_least(1), default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="three layers, two shares")
    parser.add_argument("--out", type=results_file, required=True, help="results JSON to write")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the machine, the layers and a network; write JSON and picture."""
    arguments = options().parse_args(argv)
    if arguments.small:
        arguments.keep, arguments.repeats = [0.25, 0.05], 8
    torch.manual_seed(arguments.seed)
    names = ("model", "keep", "batch_size", "repeats", "threads")
    config = {name: getattr(arguments, name) for name in names}
    try:
        models.default_input_shape(arguments.model)  # an unknown network is refused at once
        told = measure(arguments)
    except FedpruneError as error:
        raise SystemExit(str(error)) from None
    result = study.tell(__doc__, arguments, config, told, draw)
    print(report(result))


if __name__ == "__main__":
    main()
