"""Is a certified bound ever below the truth, and is a certificate ever broken?

    python simulations/certified_soundness.py --out simulations/results/certified_soundness.json
    python simulations/certified_soundness.py --small --out OUT       # under two minutes

Claim: never. Three searches for a counterexample, in networks that nobody chose:

1. Linear networks (convolutions and transposed convolutions of every stride, padding, padding
   mode, dilation and group, batch norm, average pools, residual additions, concatenations): the
   norm of the explicit matrix, column by column, must not exceed the upper bound.
2. Networks with activations and max-pools: nor may the steepest pair of points that a long search
   finds (ascent of |f(a) - f(b)| / |a - b| from many starts) or the largest Jacobian.
3. Classifiers (random ones of the second kind, and networks trained on scikit-learn's digits):
   every certified ball is attacked at its full radius with PGD (100 steps, 10 restarts) and a
   direct search. No label may change. To show that the attacks can: linear classifiers, whose
   certificates are exact, are also attacked at 1.001 times the radius, where most must fall.

The full study draws 240 networks and attacks more than 10,000 points. It writes the results file
after every network and goes on from there when it is started again with the same options.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _certified_networks import DIGITS, Draw, Shape, trained_digits
from matplotlib.figure import Figure
from torch import Tensor, nn

from fedprune import __version__
from fedprune.errors import UnsupportedOpError
from fedprune.randomness import SimulationRandomness
from fedprune.robustness import Certifier, direct_search, lipschitz, pgd

Row = dict[str, Any]
ROUNDING = 1e-12
"""The norm of an explicit matrix is itself computed in floating point, to this relative error."""


@dataclass(frozen=True)
class Setting:
    """How much is drawn, searched and attacked."""

    linear: int = 120
    nonlinear: int = 120
    pairs: int = 64
    ascent_steps: int = 300
    classifiers: int = 50
    points: int = 100
    digits_points: int = 1797
    pgd_steps: int = 100
    restarts: int = 10
    direct_steps: int = 100


SMALL = Setting(
    linear=12, nonlinear=8, pairs=16, ascent_steps=40, classifiers=4, points=25,
    digits_points=150, pgd_steps=20, restarts=2, direct_steps=20,
)  # fmt: skip


def explicit_norm(model: nn.Module, shape: Shape) -> float:
    """The norm of a linear network's matrix, written column by column in float64."""
    double = copy.deepcopy(model).double()
    basis = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        images = double(basis) - double(torch.zeros_like(basis[:1]))
    return float(np.linalg.svd(images.flatten(1).numpy(), compute_uv=False)[0])


def steepest_pair(model: nn.Module, shape: Shape, setting: Setting) -> float:
    """Ascend |f(a) - f(b)| / |a - b| over many pairs at once; the best ratio met."""
    double = copy.deepcopy(model).double().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    size = (setting.pairs, *shape)
    spread = 10 ** (3 * torch.rand(setting.pairs, *[1] * len(shape), generator=generator) - 1.5)
    start = (spread * torch.randn(size, generator=generator)).double().requires_grad_(True)
    step = (0.1 * spread * torch.randn(size, generator=generator)).double().requires_grad_(True)
    optimiser = torch.optim.Adam([start, step], lr=0.03)
    best = 0.0
    for _ in range(setting.ascent_steps):
        moved = (double(start + step) - double(start)).flatten(1).norm(dim=1)
        ratio = moved / step.flatten(1).norm(dim=1).clamp_min(1e-9)
        far = step.flatten(1).norm(dim=1) > 1e-4  # shorter steps measure rounding
        best = max(best, float(torch.where(far, ratio, 0.0).max().detach()))
        optimiser.zero_grad()
        (-ratio.clamp_min(1e-12).log().sum()).backward()
        optimiser.step()
    return best


def bound_row(kind: str, number: int, seed: int, setting: Setting) -> Row:
    """One random network: its upper bounds, and the largest norm or slope found."""
    stream = SimulationRandomness(seed, kind, number)
    draw = Draw(stream, linear=kind == "linear")
    model = draw.network(depth=draw.pick(1, 2, 3, 4, 5, 6))
    example = torch.zeros(1, *draw.first)
    bound = lipschitz(
        model, example, samples=16 if kind == "linear" else 48, iterations=25, seed=number
    )
    row: Row = {
        "kind": kind, "number": number, "upper": bound.upper, "jacobian": bound.lower,
        "layers": [type(layer).__name__ for layer in model],
    }  # fmt: skip
    if kind == "linear":
        row["exact"] = explicit_norm(model, draw.first)
        row["found"] = max(row["exact"] * (1 - ROUNDING), bound.lower * (1 - 1e-6))
    else:
        row["pair"] = steepest_pair(model, draw.first, setting)
        row["found"] = max(row["pair"] * (1 - 1e-6), bound.lower * (1 - 1e-6))
    row["holds"] = row["found"] <= bound.upper
    return row


def attack(
    name: str, model: nn.Module, inputs: Tensor, setting: Setting, *, exact: bool = False
) -> Row:
    """Attack every certified ball of a classifier at its radius."""
    with torch.no_grad():
        labels = copy.deepcopy(model).double()(inputs.double()).argmax(1)
    certifier = Certifier.of(model, inputs[:1])
    radii = torch.from_numpy(certifier.certified_radii(certifier.margins(inputs, labels)))
    safe = radii > 0
    row: Row = {"kind": "attack", "name": name, "inputs": len(inputs), "attacked": int(safe.sum())}
    row |= {"median_radius": 0.0, "broken_by_pgd": 0, "broken_by_direct_search": 0, "outside": 0}
    if not bool(safe.any()):
        return row
    row["median_radius"] = float(radii[safe].median())
    for part in torch.split(safe.nonzero()[:, 0], 500):
        ball = (inputs[part], labels[part], radii[part])
        ascent = pgd(model, *ball, steps=setting.pgd_steps, restarts=setting.restarts)
        search = direct_search(model, *ball, steps=setting.direct_steps)
        row["broken_by_pgd"] += int(ascent.success.sum())
        row["broken_by_direct_search"] += int(search.success.sum())
        for found in (ascent, search):
            row["outside"] += int((found.distance > ball[2]).sum())
    if exact:
        ball = (inputs[safe], labels[safe], 1.001 * radii[safe])
        fallen = pgd(model, *ball, steps=60, restarts=1).success
        fallen |= direct_search(model, *ball, steps=60).success
        row["fallen_just_outside"] = float(fallen.double().mean())
    return row


def random_classifier(number: int, seed: int, setting: Setting) -> Row:
    """Attack a random network with a linear head."""
    stream = SimulationRandomness(seed, "classifier", number)
    draw = Draw(stream, linear=False)
    body = draw.network(depth=draw.pick(2, 3, 4))
    head = nn.Linear(math.prod(draw.shape), draw.pick(2, 3, 10))
    model = nn.Sequential(body, nn.Flatten(), head).eval()
    inputs = torch.from_numpy(stream.generator.normal(size=(setting.points, *draw.first))).float()
    return attack(f"random {number}", model, inputs, setting)


def digits_classifier(name: str, seed: int, setting: Setting) -> Row:
    """Attack a network trained on scikit-learn's digits."""
    model, inputs = trained_digits(name, seed)
    chosen = inputs[: setting.digits_points]
    return attack(name, model, chosen, setting, exact=name == "digits, linear")


def tasks(setting: Setting, seed: int) -> dict[str, Callable[[], Row]]:
    """Everything that the study consists of, by name."""
    found: dict[str, Callable[[], Row]] = {}
    for kind, count in (("linear", setting.linear), ("nonlinear", setting.nonlinear)):
        for number in range(count):
            found[f"{kind} {number}"] = lambda k=kind, n=number: bound_row(k, n, seed, setting)
    for name in DIGITS:
        found[name] = lambda n=name: digits_classifier(n, seed, setting)
    for number in range(setting.classifiers):
        found[f"classifier {number}"] = lambda n=number: random_classifier(n, seed, setting)
    return found


def summary(rows: dict[str, Row]) -> dict[str, Any]:
    """Counts over all networks and points, and whether every claim holds."""
    bounds = [row for row in rows.values() if row["kind"] != "attack"]
    attacks = [row for row in rows.values() if row["kind"] == "attack"]
    found: dict[str, Any] = {
        "networks_bounded": len(bounds),
        "bounds_below_what_was_found": sum(not row["holds"] for row in bounds),
        "attacked_points": sum(row["attacked"] for row in attacks),
        "certificates_broken": sum(
            row["broken_by_pgd"] + row["broken_by_direct_search"] for row in attacks
        ),
        "attacks_outside_their_ball": sum(row["outside"] for row in attacks),
    }
    for kind in ("linear", "nonlinear"):
        ratios = [r["upper"] / r["found"] for r in bounds if r["kind"] == kind and r["found"] > 0]
        if ratios:
            low, middle, high = np.quantile(ratios, (0.0, 0.5, 1.0))
            found[f"upper_over_found_{kind}"] = {"min": low, "median": middle, "max": high}
    fallen = [row["fallen_just_outside"] for row in attacks if "fallen_just_outside" in row]
    found["fallen_just_outside_exact_balls"] = min(fallen, default=None)
    found["holds"] = (
        found["bounds_below_what_was_found"] == 0
        and found["certificates_broken"] == 0
        and found["attacks_outside_their_ball"] == 0
        and all(share > 0.9 for share in fallen)
    )
    return found


def draw_picture(rows: dict[str, Row], path: Path) -> None:
    """Upper bound over the truth or the best found, network by network."""
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    panel = figure.subplots()
    for kind, colour in (("linear", "#0072b2"), ("nonlinear", "#d55e00")):
        ratios = sorted(
            row["upper"] / row["found"]
            for row in rows.values()
            if row["kind"] == kind and row["found"] > 0
        )
        panel.plot(ratios, ".", color=colour, label=f"{kind} networks", ms=4)
    panel.axhline(1.0, color="black", lw=0.8)
    panel.set(yscale="log", xlabel="networks, sorted", ylabel="upper bound / found")
    panel.grid(alpha=0.3)
    panel.legend()
    figure.savefig(path, dpi=150)


def load(path: Path | None, config: dict[str, Any]) -> dict[str, Row]:
    """Rows of an earlier start with the same options, if there are any."""
    if path is None or not path.is_file():
        return {}
    earlier = json.loads(path.read_text(encoding="utf-8"))
    return dict(earlier["rows"]) if earlier.get("config") == config else {}


def write(path: Path | None, result: dict[str, Any]) -> None:
    """Write the results under a temporary name and rename them."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def main() -> None:
    """Run what is not done yet, count, and write JSON and picture; exit 1 if a claim fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a few networks and points")
    parser.add_argument("--out", type=Path, help="results JSON to write and to go on from")
    arguments = parser.parse_args()
    setting = SMALL if arguments.small else Setting()
    config = {"seed": arguments.seed, **vars(setting)}
    rows = load(arguments.out, config)
    result: dict[str, Any] = {
        "question": (__doc__ or "").splitlines()[0],
        "command": f"python simulations/certified_soundness.py --seed {arguments.seed}"
        + (" --small" if arguments.small else "") + " --out OUT",
        "date": date.today().isoformat(),
        "seed": arguments.seed,
        "config": config,
        "versions": {
            "fedprune": __version__, "numpy": np.__version__, "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": {"cores": os.cpu_count(), "threads": torch.get_num_threads()},
    }  # fmt: skip
    for name, run in tasks(setting, arguments.seed).items():
        if name in rows:
            continue
        begun = time.perf_counter()
        try:
            row = run()
        except UnsupportedOpError as error:
            raise SystemExit(f"{name}: {error}") from error
        rows[name] = row | {"seconds": round(time.perf_counter() - begun, 2)}
        print(name, {k: v for k, v in rows[name].items() if k != "layers"}, file=sys.stderr)
        write(arguments.out, result | {"summary": summary(rows), "rows": rows})
    result["summary"] = summary(rows)
    print(json.dumps(result["summary"], indent=1))
    write(arguments.out, result | {"rows": rows})
    if arguments.out is not None:
        draw_picture(rows, arguments.out.with_suffix(".png"))
    if not result["summary"]["holds"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
