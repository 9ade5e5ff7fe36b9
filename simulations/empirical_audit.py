"""Does the code that runs keep the epsilon that is claimed, and would an audit see it if not?

Lower bounds on epsilon from draws of the mechanism (20 runs at each of the claimed 1, 4 and 8,
10^5 draws in each of two worlds, alpha = 0.05, seeds 0 to 19 fixed beforehand), of deployed
clients with the operating system's randomness, and of single runs with canaries; and 20 runs of
every planted fault against the test meant for it, beside the honest implementation.

    python simulations/empirical_audit.py --out simulations/results/empirical_audit.json

Besides the JSON a picture is written. `--quick` takes a twentieth of the client's draws.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from audit_canaries import audit_dp_sgd, audits
from audit_client import audit_client
from audit_faults import FAULTS, HONEST, LEVEL, UNITS, WORLD_DRAWS, Experiment
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedprune import __version__
from fedprune.privacy import ThresholdResponse
from fedprune.privacy.budgets.events import REPLACEMENT
from fedprune.privacy.empirical import (
    EmpiricalAudit,
    analytic_epsilon,
    audit_two_worlds,
    lower_limit,
    table,
    upper_limit,
)
from fedprune.randomness import SecureRandomness, SimulationRandomness

JsonDict = dict[str, Any]

RUNS, ALPHA, SEED = 20, 0.05, 4
TARGETS: Mapping[float, float] = {1.0: 0.97, 4.0: 3.85, 8.0: 7.3}
NEEDED = 19


def main() -> None:
    """Run everything, print the tables, write the JSON and the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="results JSON to write")
    parser.add_argument("--quick", action="store_true", help="fewer draws of deployed clients")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = collect(100_000 // (20 if arguments.quick else 1))
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(result, arguments.out.with_suffix(".png"))
    print(summary(result))


def collect(client_draws: int) -> JsonDict:
    """Run all audits."""
    started = time.perf_counter()
    claims = [claimed_epsilon(epsilon, target) for epsilon, target in TARGETS.items()]
    say("the mechanism's runs are done", started)
    clients = [audit_client(epsilon, client_draws, nodes=100) for epsilon in TARGETS]
    say("deployed clients are done", started)
    side_by_side = [
        *(secure_audit(epsilon) for epsilon in TARGETS),
        *(audit for audit, _ in clients),
        *audits(seed=SEED + 1),
    ]
    say("canaries are done", started)
    planted = [rates(name, experiment) for name, experiment in FAULTS.items()]
    planted.append(noiseless_training())
    say("planted faults are done", started)
    return {
        "question": (__doc__ or "").splitlines()[0],
        "command": "python simulations/empirical_audit.py "
        "--out simulations/results/empirical_audit.json",
        "date": date.today().isoformat(),
        "config": {
            "units": UNITS,
            "runs": RUNS,
            "draws_per_world": WORLD_DRAWS,
            "draws_per_world_of_deployed_clients": client_draws,
            "alpha": ALPHA,
            "level_of_tests": LEVEL,
            "seed": SEED,
        },
        "versions": {
            "fedprune": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "torch": torch.__version__,
        },
        "claims": claims,
        "audits": [audit.to_json() for audit in side_by_side],
        "table": table(side_by_side).splitlines(),
        "retries_of_deployed_clients": [retries for _, retries in clients],
        "faults": planted,
        "honest": [rates(name, experiment) for name, experiment in HONEST.items()],
        "seconds": round(time.perf_counter() - started, 1),
        "processor_seconds": round(time.process_time(), 1),
    }


def say(what: str, started: float) -> None:
    """Tell how far it is, with the processor's seconds."""
    print(f"{what}: {time.perf_counter() - started:.0f} s, processor {time.process_time():.0f} s")


# Claims.


def claimed_epsilon(epsilon: float, target: float) -> JsonDict:
    """Bound epsilon from below in RUNS runs of the mechanism's own sampler."""
    mechanism = ThresholdResponse(epsilon, UNITS)
    bounds = [
        audit_two_worlds(
            mechanism, SimulationRandomness(SEED, "claim", str(epsilon), run), draws=WORLD_DRAWS
        ).epsilon_lower(alpha=ALPHA)
        for run in range(RUNS)
    ]
    return {
        "claimed": epsilon,
        "analytic": analytic_epsilon(mechanism),
        "mechanism": repr(mechanism),
        "target": target,
        "bounds": bounds,
        "median": float(np.median(bounds)),
        "reached": sum(bound >= target for bound in bounds),
        "above_claim": sum(bound > epsilon for bound in bounds),
        "runs": RUNS,
    }


def secure_audit(epsilon: float) -> EmpiricalAudit:
    """One audit of the sampler with the operating system's randomness, which knows no seed."""
    mechanism = ThresholdResponse(epsilon, UNITS)
    counts = audit_two_worlds(mechanism, SecureRandomness(), draws=WORLD_DRAWS)
    return EmpiricalAudit.of(
        counts,
        subject=f"sampler, {UNITS} units, {mechanism.num_blocks} blocks",
        claimed=epsilon,
        analytic=analytic_epsilon(mechanism),
        alpha=ALPHA,
        relation=REPLACEMENT,
        trust="local",
    )


# Faults.


def rates(name: str, experiment: Experiment) -> JsonDict:
    """Count alarms over RUNS runs at every claimed epsilon."""
    by_epsilon = []
    for epsilon in TARGETS:
        outcomes = [
            experiment(epsilon, SimulationRandomness(SEED, name, str(epsilon), run))
            for run in range(RUNS)
        ]
        alarms = sum(outcome.alarms(LEVEL) for outcome in outcomes)
        by_epsilon.append(
            {
                "claimed_epsilon": epsilon,
                **alarm_rate(alarms),
                "largest_p_value": max(outcome.p_value for outcome in outcomes),
                "first": outcomes[0].to_json(),
            }
        )
    return {"name": name, "by_epsilon": by_epsilon}


def noiseless_training() -> JsonDict:
    """Count alarms over RUNS runs of DP-SGD that leaves its noise out and claims epsilon = 1."""
    found = [
        audit_dp_sgd(1.0, steps=5, sample_rate=0.5, seed=run, noiseless=True) for run in range(RUNS)
    ]
    alarms = sum(not audit.holds for audit in found)
    entry = {"claimed_epsilon": 1.0, **alarm_rate(alarms), "first": found[0].to_json()}
    return {"name": "DP-SGD without its noise (one run)", "by_epsilon": [entry]}


def alarm_rate(alarms: int) -> JsonDict:
    """An alarm's rate with its exact interval."""
    return {
        "alarms": alarms,
        "runs": RUNS,
        "interval": [lower_limit(alarms, RUNS, 0.025), upper_limit(alarms, RUNS, 0.025)],
    }


# What is shown.


def summary(result: JsonDict) -> str:
    """Say it in lines."""
    lines = [
        f"claimed {c['claimed']:g} ({c['mechanism']}): median {c['median']:.3f}, lowest "
        f"{min(c['bounds']):.3f}, at least {c['target']:g} in {c['reached']} of {c['runs']} runs, "
        f"above the claim in {c['above_claim']}"
        for c in result["claims"]
    ]
    lines += ["", *result["table"], ""]
    for part in ("faults", "honest"):
        for row in result[part]:
            cells = [
                f"{e['claimed_epsilon']:g}: {e['alarms']}/{e['runs']}" for e in row["by_epsilon"]
            ]
            lines.append(f"{part:<7} {row['name']:<52} alarms at epsilon {', '.join(cells)}")
    for epsilon, again in zip(TARGETS, result["retries_of_deployed_clients"], strict=True):
        lines.append(
            f"deployed clients asked twice at {epsilon:g}: both answers show at least "
            f"{again['retry_epsilon_lower']:.3f}; {again['nodes_with_other_bytes']} of "
            f"{again['nodes']} nodes sent other bytes"
        )
    lines.append(f"{result['seconds']:.0f} s, processor {result['processor_seconds']:.0f} s")
    return "\n".join(lines)


def draw(result: JsonDict, path: Path) -> None:
    """Bounds of all runs beside the claims, and every fault's rate of alarms."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.25])
    draw_claims(left, result)
    draw_alarms(right, result)
    figure.savefig(path, dpi=150)


def draw_claims(panel: Axes, result: JsonDict) -> None:
    """Share of the claimed epsilon that every run's lower bound reaches."""
    for place, claim in enumerate(result["claims"]):
        bounds = np.array(claim["bounds"]) / claim["claimed"]
        spread = place + np.linspace(-0.25, 0.25, len(bounds))
        panel.plot(spread, bounds, "o", color="#0072b2", alpha=0.7, markersize=4)
        wanted = claim["target"] / claim["claimed"]
        panel.plot([place - 0.35, place + 0.35], [wanted, wanted], "-", color="#d55e00")
    panel.axhline(1.0, color="black", linewidth=1)
    ticks = [f"{c['claimed']:g}\n({c['reached']} of {c['runs']})" for c in result["claims"]]
    panel.set_xticks(range(len(ticks)), ticks)
    panel.set_xlabel("claimed epsilon per client (runs that reach the orange target)")
    panel.set_ylabel("lower bound / claimed epsilon")
    panel.set_title(f"two worlds, {WORLD_DRAWS:,} draws each, alpha = {ALPHA:g}", size=10)
    panel.grid(axis="y", alpha=0.3)


def draw_alarms(panel: Axes, result: JsonDict) -> None:
    """Alarms of all epsilons together, with the exact interval."""
    rows = [*result["faults"], *result["honest"]]
    colours = ["#009e73"] * len(result["faults"]) + ["#666666"] * len(result["honest"])
    for height, (row, colour) in enumerate(zip(reversed(rows), reversed(colours), strict=True)):
        alarms = sum(e["alarms"] for e in row["by_epsilon"])
        runs = sum(e["runs"] for e in row["by_epsilon"])
        low, high = lower_limit(alarms, runs, 0.025), upper_limit(alarms, runs, 0.025)
        panel.plot([low, high], [height, height], "-", color=colour)
        panel.plot([alarms / runs], [height], "o", color=colour)
    names = [row["name"] for row in result["faults"]]
    names += [f"honest ({row['name']})" for row in result["honest"]]
    panel.set_yticks(range(len(rows)), reversed(names))
    panel.tick_params(axis="y", labelsize=8)
    panel.set_xlim(-0.03, 1.03)
    panel.set_xlabel(f"share of runs with an alarm (level {LEVEL:g}), exact 95 % interval")
    panel.set_title("planted faults, and the honest implementation", size=10)
    panel.grid(axis="x", alpha=0.3)


if __name__ == "__main__":
    main()
