"""Do the 95 % intervals of fairness figures cover the truth in 95 % of repetitions?

Clients are drawn from a population whose true group accuracies are known exactly (a mixture of 64
kinds of clients that differ in size, in their shares of the groups and in what pruning costs
them), they send count tables, exact or noisy, and `fairness.summarize` gives its intervals. A
trial covers where the truth lies inside. The claim: 93 to 97 % at a nominal 95 %, with and without
noise; intervals that hold for all groups at once, and those of the gap whichever groups are best
and worst, may cover more. Noise decides which groups are shown; figures that are shown in fewer
than nine trials of ten are those of groups on the border, whose noise was lucky. They are counted
apart and not part of the claim.

Regimes: many clients with few rows; few clients (records are resampled and the truth is that of
these clients); a small group; ten intersections as skewed as Adult's sex x race; exact tables,
record-level noise (discrete Laplace, epsilon = 1, add-or-remove and replacement) and client-level
noise on tables cut down to 20 rows.

    python simulations/fairness_coverage.py --out simulations/results/fairness_coverage.json
    python simulations/fairness_coverage.py --small --out coverage.json    # a rough look
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from _fairness_population import KINDS, Population, Regime, Truth, tables_of
from matplotlib.figure import Figure

from fedprune import __version__
from fedprune.errors import FairnessError
from fedprune.fairness import (
    FairnessSummary,
    Interval,
    TableNoise,
    clopper_pearson,
    summarize,
    table_sensitivity,
)
from fedprune.randomness import SimulationRandomness

NOMINAL = (0.93, 0.97)
CONSERVATIVE = ("gap dense", "gap pruned", "all excess losses at once")
ADULT_SHARES = (0.26, 0.05, 0.01, 0.004, 0.003, 0.58, 0.05, 0.025, 0.01, 0.008)


REGIMES = {
    "many clients, few rows": Regime(
        600, 10, (0.5, 0.3, 0.2), (0.95, 0.9, 0.8), (0.03, 0.1, 0.2), 0.8
    ),
    "few clients": Regime(8, 250, (0.5, 0.3, 0.2), (0.95, 0.9, 0.8), (0.03, 0.1, 0.2), 0.8),
    "a small group": Regime(60, 60, (0.7, 0.28, 0.02), (0.9, 0.85, 0.7), (0.05, 0.1, 0.3), 0.5),
    "ten intersections": Regime(
        150,
        60,
        ADULT_SHARES,
        tuple(np.linspace(0.94, 0.79, 10).round(3).tolist()),
        tuple(np.linspace(0.04, 0.2, 10).round(3).tolist()),
        0.5,
    ),
    "two thousand clients": Regime(
        2000, 30, (0.5, 0.3, 0.2), (0.95, 0.9, 0.8), (0.03, 0.1, 0.2), 0.5
    ),
    "thirty clients": Regime(30, 150, (0.6, 0.4), (0.9, 0.8), (0.05, 0.15), 0.8),
}


def record_noise(relation: str, epsilon: float = 1.0) -> TableNoise:
    """Noise at record level."""
    return TableNoise("discrete-laplace", table_sensitivity("record", relation) / epsilon)


def client_noise(most_rows: int, epsilon: float) -> TableNoise:
    """Noise at client level, for tables cut down to `most_rows`."""
    sensitivity = table_sensitivity("client", "add-or-remove", most_rows)
    return TableNoise("discrete-laplace", sensitivity / epsilon, clipped_to=most_rows)


NOISES: dict[str, TableNoise | None] = {
    "exact": None,
    "record, add-or-remove": record_noise("add-or-remove"),
    "record, replacement": record_noise("replacement"),
    "client, 20 rows, eps 8": client_noise(20, 8.0),
}


def inside(interval: Interval | None, value: float) -> bool:
    """Whether an interval covers a value, both ends included and rounding forgiven."""
    assert interval is not None
    return interval.low - 1e-12 <= value <= interval.high + 1e-12


def judged(found: FairnessSummary, truth: Truth) -> list[tuple[str, str, bool]]:
    """Every interval of one trial: what it is of, of which group, and whether it covers."""
    names = [group.name for group in found.groups]
    shown = [code for code, group in enumerate(found.groups) if not group.too_small]
    change = float(np.diff(truth.overall)[0])
    verdicts = [("overall change", "", inside(found.accuracy.change_interval, change))]
    together = []
    for code in shown:
        group = found.groups[code]
        excess = truth.excess(code)
        verdicts += [
            (what, group.name, inside(interval, value))
            for what, interval, value in (
                ("dense accuracy of a group", group.interval_dense, truth.groups[code, 0]),
                ("pruned accuracy of a group", group.interval_pruned, truth.groups[code, 1]),
                ("excess loss", group.excess_interval, excess),
            )
        ]
        together.append(inside(group.excess_simultaneous, excess))
    if found.pair is not None:
        best, worst = names.index(found.pair.best), names.index(found.pair.worst)
        of_pair = np.diff(truth.groups[best])[0] - np.diff(truth.groups[worst])[0]
        among = f"{len(shown)} groups"
        verdicts += [
            ("change of the pair", found.pair.best + found.pair.worst,
             inside(found.pair.interval, float(of_pair))),
            ("gap dense", among, inside(found.gap_dense_interval, truth.gap(0, shown))),
            ("gap pruned", among, inside(found.gap_pruned_interval, truth.gap(1, shown))),
            ("all excess losses at once", among, all(together)),
        ]  # fmt: skip
    return verdicts


def run_cell(
    regime: Regime, noise: TableNoise | None, trials: int, resamples: int, seed: int
) -> dict[str, Any]:
    """Coverage of one regime under one noise."""
    rng = SimulationRandomness(seed, "coverage")
    population = Population.of(regime, rng.stream("population").generator)
    generator = rng.stream("trials").generator
    names = [f"group {code}" for code in range(len(regime.shares))]
    every = np.arange(KINDS)
    these = generator.permutation(KINDS)[: regime.clients]  # the clients themselves, where few
    clip = None if noise is None else noise.clipped_to
    few = regime.clients < 30
    truth = Truth.of(population.expected(these if few else every, clip))
    other = np.rint(population.expected(every, clip) * 1e4 / KINDS).astype(np.int64)
    verdicts: dict[tuple[str, str], list[bool]] = {}
    shown, refused, resampled, widths = 0, 0, "nothing", []
    for trial in range(trials):
        kinds = these if few else generator.integers(0, KINDS, regime.clients)
        tables = tables_of(population, kinds, noise, generator)
        stream = rng.stream("resamples", trial)
        try:
            found = summarize(tables, names, stream, other=other, resamples=resamples, noise=noise)
        except FairnessError:  # noise hides even how many rows there are
            refused += 1
            continue
        resampled = found.resampled
        for what, which, covers in judged(found, truth):
            verdicts.setdefault((what, which), []).append(covers)
        shown += sum(not group.too_small for group in found.groups)
        if found.pair is not None:
            widths.append(found.pair.interval.high - found.pair.interval.low)
    return {
        "resampled": resampled,
        "refused": refused / trials,
        "groups_shown": shown / trials,
        "median_width_of_change": float(np.median(widths)) if widths else None,
        "coverage": pooled(verdicts, trials, always=True),
        "on_the_border": pooled(verdicts, trials, always=False),
    }


def pooled(
    verdicts: dict[tuple[str, str], list[bool]], trials: int, always: bool
) -> dict[str, dict[str, Any]]:
    """Add the groups up: those shown in nine trials of ten, or the others."""
    found: dict[str, list[bool]] = {}
    for (what, _), covers in verdicts.items():
        if (len(covers) >= 0.9 * trials) == always:
            found.setdefault(what, []).extend(covers)
    return {what: covered(covers, what, trials) for what, covers in found.items()}


def covered(verdicts: list[bool], what: str, trials: int) -> dict[str, Any]:
    """A share with its exact interval; `inside` where it is 93 to 97 % (or at least 93 %)."""
    count, share = len(verdicts), sum(verdicts) / len(verdicts)
    # Groups of one trial resemble each other: trials, not groups, are independent.
    independent = min(count, trials)
    low, high = clopper_pearson(round(share * independent), independent)
    upper = 1.0 if what in CONSERVATIVE else NOMINAL[1]
    return {
        "covered": share,
        "low": low,
        "high": high,
        "intervals": count,
        "inside": bool(NOMINAL[0] <= share <= upper),
    }


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every regime under every noise."""
    rows = []
    for name, regime in REGIMES.items():
        for noise_name, noise in NOISES.items():
            if options.only and options.only not in f"{name}; {noise_name}":
                continue
            cell = run_cell(regime, noise, options.trials, options.resamples, options.seed)
            rows.append({"regime": name, "noise": noise_name, **cell})
            print(line(rows[-1]), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """One regime as text."""
    cells = [
        f"{what} {100 * found['covered']:.1f}{'' if found['inside'] else ' !'}"
        for what, found in row["coverage"].items()
    ]
    width = row["median_width_of_change"]
    return (
        f"{row['regime']}; {row['noise']}; {row['resampled']}; {row['groups_shown']:.1f} groups, "
        f"width {'-' if width is None else f'{width:.3f}'}: {', '.join(cells)}"
    )


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Coverage of every interval in every regime, with its own interval."""
    figure = Figure(figsize=(9, 0.42 * len(rows) + 1.6), layout="constrained")
    panel = figure.subplots()
    panel.axvspan(*NOMINAL, color="#dddddd", label="93 to 97 %")
    kinds = list(dict.fromkeys(what for row in rows for what in row["coverage"]))
    colours = (
        "#000000",
        "#0072b2",
        "#009e73",
        "#d55e00",
        "#cc79a7",
        "#e69f00",
        "#56b4e9",
        "#999933",
    )
    for place, what in enumerate(kinds):
        held = [(i, row["coverage"][what]) for i, row in enumerate(rows) if what in row["coverage"]]
        shares = np.array([found["covered"] for _, found in held])
        ends = np.array([[found["low"], found["high"]] for _, found in held]).T
        panel.errorbar(
            shares,
            [i + 0.1 * (place - len(kinds) / 2) for i, _ in held],
            xerr=np.abs(ends - shares),
            fmt="o",
            ms=3,
            lw=0.8,
            color=colours[place % len(colours)],
            label=what,
        )
    panel.set_yticks(range(len(rows)), [f"{r['regime']}; {r['noise']}" for r in rows], fontsize=7)
    panel.set(xlabel="share of trials whose 95 % interval covers the truth", xlim=(0.85, 1.005))
    panel.invert_yaxis()
    panel.grid(alpha=0.3, axis="x")
    figure.legend(fontsize=7, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure coverage, print it, write JSON and picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trials", type=int, default=2000, help="repetitions of every setting")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap")
    parser.add_argument("--only", default="", help="settings whose name contains this")
    parser.add_argument("--small", action="store_true", help="100 trials, under two minutes")
    parser.add_argument("--out", type=Path, required=True, help="results JSON to write")
    options = parser.parse_args()
    if options.small:
        options.trials, options.resamples = 100, 400
    if options.trials < 1:
        parser.error("--trials must be at least 1")
    begun = time.perf_counter()
    rows = run(options)
    if not rows:
        parser.error(f"--only {options.only!r} names no setting")
    checked = [found for row in rows for found in row["coverage"].values()]
    result = {
        "question": (__doc__ or "").splitlines()[0],
        "command": "python simulations/fairness_coverage.py"
        f" --seed {options.seed} --trials {options.trials} --resamples {options.resamples}"
        " --out OUT",
        "date": date.today().isoformat(),
        "seed": options.seed,
        "config": {
            "trials": options.trials,
            "resamples": options.resamples,
            "nominal": 0.95,
            "standard_error": math.sqrt(0.95 * 0.05 / options.trials),
            "regimes": {name: vars(regime) for name, regime in REGIMES.items()},
            "noises": {name: None if n is None else n.to_json() for name, n in NOISES.items()},
        },
        "versions": {
            "fedprune": __version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "python": platform.python_version(),
        },
        "machine": {"system": platform.system(), "processor": platform.machine()},
        "rows": rows,
        "intervals_checked": len(checked),
        "intervals_inside": sum(found["inside"] for found in checked),
        "seconds": round(time.perf_counter() - begun, 1),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(rows, options.out.with_suffix(".png"))
    print(f"{result['intervals_inside']} of {len(checked)} coverages are inside")


if __name__ == "__main__":
    main()
