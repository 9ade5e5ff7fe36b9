"""Can ResNet-101 lose 30 % of its parameters and 40 % of its operations, exactly, in 30 seconds?

Molchanov et al. 2019 ("Importance Estimation for Neural Network Pruning", abstract) remove 30 % of
ResNet-101's parameters and 40 % of its FLOPs. Here torchvision's ResNet-101 with random weights is
scored by magnitude, a selection that meets both budgets at once is made and the network is really
shrunk. Checked: both budgets hold; the shrunk network says what the masked one says; parameters
and multiply-accumulates are those that torch's own FlopCounterMode and the parameters themselves
give, to 0.1 %; finding the units, selecting and shrinking take less than 30 s together.

    python simulations/resnet101_budget.py --out simulations/results/resnet101_budget.json
    python simulations/resnet101_budget.py --small --out /tmp/resnet50.json   # ResNet-50, 64 pixels
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _study as study
import torch
from _arguments import at_least, fraction, results_file
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedprune import hardware, models, pruning
from fedprune.errors import FedpruneError

SECONDS_ALLOWED, TOLERANCE, COUNTERS_AGREE = 30.0, 1e-5, 1e-3


class Stopwatch:
    """Seconds of each part, by name."""

    def __init__(self) -> None:
        """Nothing is timed yet."""
        self.seconds: dict[str, float] = {}

    def time(self, part: str, work: Callable[[], Any]) -> Any:
        """Do the work and write its seconds down."""
        begun = time.perf_counter()
        result = work()
        self.seconds[part] = time.perf_counter() - begun
        return result


def independent_cost(model: nn.Module, image: Tensor) -> dict[str, float]:
    """Parameters counted one by one, and half of the FLOPs that torch's own counter sees."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(image)
    return {
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "macs": counter.get_total_flops() / 2,
    }


def difference(masked: nn.Module, small: nn.Module, image: Tensor) -> float:
    """Largest difference of the outputs, over the largest output."""
    with torch.no_grad():
        expected, found = masked(image), small(image)
    return float((found - expected).abs().max() / expected.abs().max())


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do it once, part by part."""
    side = arguments.side
    model = models.load(
        arguments.model, num_classes=1000, input_shape=(3, side, side), seed=arguments.seed
    )
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(arguments.seed))
    watch = Stopwatch()
    layout = watch.time("layout", lambda: pruning.UnitLayout.of(model, image))
    scores = watch.time(
        "scores", lambda: pruning.score(model, layout, [], criterion="magnitude_l2")
    )
    mask = watch.time(
        "select",
        lambda: pruning.select(
            scores,
            layout,
            keep_macs=arguments.keep_macs,
            keep_params=arguments.keep_params,
            scope=arguments.scope,
            round_to=arguments.round_to,
        ),
    )
    small = watch.time("shrink", lambda: pruning.shrink(model, layout, mask))
    masked = pruning.mask_model(model, layout, mask)
    dense_cost, small_cost = independent_cost(model, image), independent_cost(small, image)
    said = {"params": layout.params(mask), "macs": layout.macs(mask)}
    whole = {"params": layout.total_params, "macs": layout.total_macs}
    speed = hardware.compare(
        {"dense": model, "shrunk": small}, image, repeats=arguments.repeats, warmup=2
    )["shrunk"]
    return {
        "units": len(layout),
        "units_kept": int(mask.sum()),
        "groups": [[g.name, int(mask[g.units].sum()), len(g)] for g in layout.groups],
        "seconds": watch.seconds,
        "kept": {key: said[key] / whole[key] for key in said},
        "said": {"dense": whole, "shrunk": said},
        "counted": {"dense": dense_cost, "shrunk": small_cost},
        "counters_differ_by": max(
            abs(ours[key] / theirs[key] - 1)
            for ours, theirs in ((whole, dense_cost), (said, small_cost))
            for key in said
        ),
        "outputs_differ_by": difference(masked, small, image),
        "speedup": [speed.speedup, speed.speedup_low, speed.speedup_high],
    }


def check(found: dict[str, Any], arguments: argparse.Namespace) -> dict[str, bool]:
    """The claims, each true or not."""
    return {
        "params budget held": found["kept"]["params"] <= arguments.keep_params,
        "macs budget held": found["kept"]["macs"] <= arguments.keep_macs,
        "counters agree to 0.1 %": found["counters_differ_by"] <= COUNTERS_AGREE,
        "shrunk equals masked to 1e-5": found["outputs_differ_by"] <= TOLERANCE,
        "under 30 s": sum(found["seconds"].values()) < SECONDS_ALLOWED,
    }


def draw(result: dict[str, Any], path: Path) -> None:
    """Share of every group that stays."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    panel = figure.subplots()
    groups = result["found"]["groups"]
    panel.bar(range(len(groups)), [100 * kept / units for _, kept, units in groups])
    panel.set(xlabel="group of units, in forward order", ylabel="units kept, %", ylim=(0, 100))
    panel.set_title(f"{result['config']['model']}: what stays", size=10)
    figure.savefig(path, dpi=150)


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="resnet101")
    parser.add_argument("--side", type=at_least(1), default=224)
    parser.add_argument("--small", action="store_true", help="resnet50 on 64 pixels")
    parser.add_argument("--keep-params", type=fraction, default=0.7)
    parser.add_argument("--keep-macs", type=fraction, default=0.6)
    parser.add_argument("--scope", default="isomorphic", choices=list(pruning.SCOPES))
    parser.add_argument("--round-to", type=at_least(1), default=8)
    parser.add_argument("--repeats", type=at_least(6), default=10)
    parser.add_argument("--threads", type=at_least(1), default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=results_file, required=True, help="results JSON to write")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, check, write JSON and picture; the exit code is 1 if a claim does not hold."""
    arguments = options().parse_args(argv)
    if arguments.small:
        arguments.model, arguments.side = "resnet50", 64
    torch.set_num_threads(arguments.threads)
    try:
        found = measure(arguments)
    except FedpruneError as error:
        raise SystemExit(str(error)) from None
    claims = check(found, arguments)
    names = ("model", "side", "keep_params", "keep_macs", "scope", "round_to", "repeats", "threads")
    config = {name: getattr(arguments, name) for name in names}
    told = {
        "claims": claims,
        "found": found,
    }
    study.tell(__doc__, arguments, config, told, draw)
    seconds = ", ".join(f"{part} {time:.2f} s" for part, time in found["seconds"].items())
    print(f"kept {found['kept']}; {seconds}; outputs differ by {found['outputs_differ_by']:.1e}")
    print("\n".join(f"{'yes' if held else 'NO '} {claim}" for claim, held in claims.items()))
    raise SystemExit(0 if all(claims.values()) else 1)


if __name__ == "__main__":
    main()
