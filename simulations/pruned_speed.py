"""Do shrunk networks run faster, and by how much less than their operations promise?

Users of pruning tools complain most of "fewer MACs but no speed-up". Here every network is shrunk
for good to a share of each group's channels and timed beside the dense one, pass by pass in turns,
on a stated number of threads; the speed-up is the median over turns of dense time over shrunk
time, with a distribution-free 95 % interval. Beside it stands what the operations alone promise,
and what other ways of running the shrunk network add: channels last, batch norms folded, a frozen
TorchScript, an exported program, torch.compile. A way that does not work here is named with the
reason. Freed memory stays in the process meanwhile (`fedprune.allocator`), as with allocators made
for such work; beside it stands the speed-up of a process that leaves that to the system, where the
dense network's larger tensors may cost fresh pages in every pass. Published yardstick: ResNet-20
at half the channels has 3.92 times fewer operations and runs 1.7 times (batch 1) and 2.3-2.7 times
(batch 64) faster, torch-pruning on one thread; claimed here: at least 1.6 and 2.3.

    python simulations/pruned_speed.py --out simulations/results/pruned_speed.json
    python simulations/pruned_speed.py --small --out /tmp/speed.json   # ResNet-20, few repeats
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _study as study
import torch
from _arguments import at_least, fraction, results_file
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from torch import nn

from fedprune import hardware, models, pruning
from fedprune.errors import FedpruneError

SIDES = {"resnet20": 32, "resnet56": 32}  # others are torchvision's, at --side pixels
MODELS = ("resnet20", "resnet56", "mobilenet_v2")  # any other network takes part by its name
CLAIMED = {("resnet20", 64): 2.3, ("resnet20", 1): 1.6}
SMALL_WAYS = ("channels_last", "folded", "frozen")


def shrunk(
    model: nn.Module, example: torch.Tensor, arguments: argparse.Namespace
) -> tuple[nn.Module, dict[str, float]]:
    """The network with a share of every group's channels, the largest by magnitude."""
    layout = pruning.UnitLayout.of(model, example)
    scores = pruning.score(model, layout, [], criterion="magnitude_l2")
    mask = pruning.select(
        scores,
        layout,
        keep_units=arguments.keep,
        scope="layer",
        round_to=arguments.round_to,
    )
    kept = {
        "units": float(mask.float().mean()),
        "params": layout.params(mask) / layout.total_params,
        "macs": layout.macs(mask) / layout.total_macs,
    }
    return pruning.shrink(model, layout, mask), kept


def both(
    name: str, batch_size: int, arguments: argparse.Namespace
) -> tuple[nn.Module, nn.Module, dict[str, float], torch.Tensor]:
    """A network, its shrunk self, what that keeps, and a batch for them."""
    side = SIDES.get(name, arguments.side)
    model = models.load(name, num_classes=10, input_shape=(3, side, side), seed=arguments.seed)
    draw = torch.Generator().manual_seed(arguments.seed)
    batch = torch.randn(batch_size, 3, side, side, generator=draw)
    small, kept = shrunk(model, batch[:1], arguments)
    return model, small, kept, batch


def timed(
    runs: dict[str, nn.Module],
    batch: torch.Tensor,
    arguments: argparse.Namespace,
    *,
    keep_memory: bool = True,
) -> dict[str, hardware.Speed]:
    """Every network beside the first one."""
    return hardware.compare(
        runs,
        batch,
        batch_size=len(batch),
        repeats=arguments.repeats if len(batch) == 1 else max(6, arguments.repeats // 4),
        warmup=3,
        threads=arguments.threads,
        keep_memory=keep_memory,
    )


def left_to_the_system(
    name: str, batch_size: int, arguments: argparse.Namespace
) -> dict[str, float]:
    """The speed-up where the C library decides which freed memory it gives back."""
    model, small, _, batch = both(name, batch_size, arguments)
    runs = {"dense": model, "shrunk": small}
    speed = timed(runs, batch, arguments, keep_memory=False)["shrunk"]
    return {"speedup": speed.speedup, "low": speed.speedup_low, "high": speed.speedup_high}


def measure(name: str, batch_size: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time one network, its shrunk self and both in every way, at one batch size."""
    model, small, kept, batch = both(name, batch_size, arguments)
    ways = [way for way in arguments.ways if way != "eager"]
    runs: dict[str, nn.Module] = {"dense": model, "shrunk": small}
    skipped: dict[str, str] = {}
    for label, network in (("dense", model), ("shrunk", small)):
        built = hardware.variants(network, batch, ways, threads=arguments.threads)
        runs |= {f"{label} {way}": one for way, one in built.models.items()}
        skipped |= {f"{label} {way}": reason for way, reason in built.skipped.items()}
    speeds = timed(runs, batch, arguments)
    rows = {
        run: {
            "median_ms": speed.latency.median_ms,
            "speedup": speed.speedup,
            "low": speed.speedup_low,
            "high": speed.speedup_high,
        }
        for run, speed in speeds.items()
    }
    claimed = CLAIMED.get((name, batch_size)) if arguments.keep == 0.5 else None
    return {
        "model": name,
        "batch_size": batch_size,
        "side": batch.shape[-1],
        "kept": kept,
        "promised": 1 / kept["macs"],
        "runs": rows,
        "skipped": skipped,
        "says": sentence(name, batch_size, kept["macs"], speeds["shrunk"]),
        "claim": None if claimed is None else {"at_least": claimed,
                                               "held": speeds["shrunk"].speedup >= claimed},
    }  # fmt: skip


def sentence(name: str, batch_size: int, macs: float, speed: hardware.Speed) -> str:
    """What the shrunk network brings, in words."""
    what = f"{name}, batch {batch_size}: {1 / macs:.2f} times fewer operations"
    if speed.brings_nothing():
        return (
            f"{what} bring nothing that could be measured: {speed.speedup:.2f} times as fast "
            f"[{speed.speedup_low:.2f}, {speed.speedup_high:.2f}]"
        )
    share = (speed.speedup - 1) * macs / (1 - macs) if macs < 1 else 0.0
    return (
        f"{what} run {speed.speedup:.2f} times as fast [{speed.speedup_low:.2f}, "
        f"{speed.speedup_high:.2f}], {share:.0%} of what they promise"
    )


def report(rows: list[dict[str, Any]]) -> str:
    """Everything as text."""
    lines = []
    for row in rows:
        lines.append(row["says"])
        for run, found in row["runs"].items():
            lines.append(
                f"    {run:<32}{found['median_ms']:>9.3f} ms {found['speedup']:>6.2f} "
                f"[{found['low']:.2f}, {found['high']:.2f}]"
            )
        lines += [f"    {run:<32} skipped: {why}" for run, why in row["skipped"].items()]
        left = row["left_to_the_system"]
        lines.append(
            f"    {'shrunk, freed memory left to the system':<44} {left['speedup']:>6.2f} "
            f"[{left['low']:.2f}, {left['high']:.2f}]"
        )
        if row["claim"]:
            word = "holds" if row["claim"]["held"] else "DOES NOT HOLD"
            lines.append(f"    claimed at least {row['claim']['at_least']}: {word}")
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """Speed-ups beside what the operations promise."""
    rows = result["rows"]
    figure = Figure(figsize=(max(6.0, 1.1 * len(rows)), 4), layout="constrained")
    panel = figure.subplots()
    for place, row in enumerate(rows):
        ways = {k: v for k, v in row["runs"].items() if k.startswith("shrunk")}
        best = max(ways, key=lambda way: ways[way]["speedup"])
        panel.plot(place, row["promised"], "_", color="#999999", ms=22, mew=2,
                   label="" if place else "fewer operations")  # fmt: skip
        for one, colour, face, label, shift in (
            (ways["shrunk"], "#0072b2", "#0072b2", "shrunk", -0.2),
            (row["left_to_the_system"], "#0072b2", "white", "freed memory left to the system", 0),
            (ways[best], "#d55e00", "#d55e00", "shrunk, best way", 0.2),
        ):
            bars = [[one["speedup"] - one["low"]], [one["high"] - one["speedup"]]]
            panel.errorbar(place + shift, one["speedup"], yerr=bars, fmt="o", color=colour, ms=4,
                           mfc=face, label="" if place else label)  # fmt: skip
        name = best.removeprefix("shrunk").strip().replace("_", "\n", 1)
        panel.annotate(name, (place + 0.2, ways[best]["low"]), (0, -5), size=7, ha="center",
                       va="top", textcoords="offset points", color="#d55e00")  # fmt: skip
    panel.axhline(1, color="black", lw=0.8)
    labels = [f"{row['model']}\nbatch {row['batch_size']}" for row in rows]
    panel.set_xticks(range(len(rows)), labels, size=8)
    panel.set_yscale("log", base=2)
    panel.yaxis.set_major_formatter(ScalarFormatter())
    panel.set(ylabel="times as fast as dense")
    panel.margins(y=0.12)
    panel.legend(fontsize=8)
    panel.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--batch-sizes", nargs="+", type=at_least(1), default=[1, 64])
    parser.add_argument("--side", type=at_least(1), default=96, help="pixels of torchvision's")
    parser.add_argument("--keep", type=fraction, default=0.5, help="share of each group's channels")
    parser.add_argument("--round-to", type=at_least(1), default=1)
    parser.add_argument("--ways", nargs="*", default=list(hardware.VARIANTS))
    parser.add_argument(
        "--repeats", type=at_least(6), default=80, help="turns at batch 1; a quarter else"
    )
    parser.add_argument("--threads", type=at_least(1), default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="ResNet-20, few repeats, no compiler")
    parser.add_argument("--out", type=results_file, required=True, help="results JSON to write")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every network at every batch size; write JSON and picture."""
    arguments = options().parse_args(argv)
    if arguments.small:
        arguments.models, arguments.repeats, arguments.ways = ["resnet20"], 24, list(SMALL_WAYS)
    try:
        pairs = list(itertools.product(arguments.models, arguments.batch_sizes))
        # First, while the allocator is as the process found it.
        left = [left_to_the_system(*pair, arguments) for pair in pairs]
        rows = [
            measure(*pair, arguments) | {"left_to_the_system": one}
            for pair, one in zip(pairs, left, strict=True)
        ]
    except FedpruneError as error:
        raise SystemExit(str(error)) from None
    names = ("models", "batch_sizes", "side", "keep", "round_to", "ways", "repeats", "threads")
    config = {name: getattr(arguments, name) for name in names}
    told = {
        "rows": rows,
    }
    study.tell(__doc__, arguments, config, told, draw)
    print(report(rows))


if __name__ == "__main__":
    main()
