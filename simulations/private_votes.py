"""How much does a private vote find, and what finds more at the same epsilon?

The kappa table and the recall table of the mechanisms, measured by drawing real reports; then
questions in phases and the magnitude prior, at an unchanged budget of every client.

Model of the clients: 784 units with lognormal importances (standard deviation 1 of the logarithm);
a client's score is the importance times a lognormal factor of the same spread, and its mask keeps
exactly its own top half. Recall is the share of the true top half by importance that is found;
chance is 0.5. The magnitude prior sees log-magnitudes with a correlation of 0.6 to log-importance.
"Trusted aggregate" adds Gaussian noise to the sum of the masks, delta = 1e-5, sensitivity
sqrt(2 * 392) under replacement of a client.

    python simulations/private_votes.py --out simulations/results/private_votes.json
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm
from scipy.stats import t as student

from fedprune import __version__
from fedprune.privacy import (
    BitwiseResponse,
    Mechanism,
    PhaseVotes,
    ThresholdResponse,
    assigned_blocks,
    choose_undecided,
    combine,
    magnitude_posterior,
    phase_cohorts,
    phase_plan,
    predict_recall,
    units_to_ask,
)
from fedprune.randomness import SimulationRandomness

Vector = NDArray[np.float64]
Masks = NDArray[np.bool_]

UNITS, DELTA, CORRELATION = 784, 1e-5, 0.6
KEPT = UNITS // 2
CHUNK = 2500
EPSILONS = (1.0, 4.0, 8.0)
REPEATS = {100: 60, 1000: 40, 10_000: 16, 100_000: 5}
PHASES = (1, 2, 3, 4, 8)
PHASE_SETTINGS = ((100, 4.0, 60), (1000, 4.0, 60), (10_000, 4.0, 40), (1000, 8.0, 40))
KAPPA_EPSILONS = (1.0, 2.0, 4.0, 8.0, 16.0)
PUBLISHED_KAPPA = {
    "every bit at eps/d": (3140, 784, 196, 49, 12.3),
    "every bit, exact (eps, 1e-5)": (55.5, 15.9, 4.66, 1.43, 0.47),
    "best m bits at eps/m": (4.68, 1.72, 0.86, 0.43, 0.215),
    "threshold": (4.68, 1.32, 0.422, 0.133, 0.048),
}
PUBLISHED_RECALL = {
    "bitwise": ((0.51, 0.53, 0.56), (0.52, 0.60, 0.68), (0.60, 0.77, 0.87), (0.73, 0.91, 0.96)),
    "threshold": ((0.51, 0.58, 0.68), (0.60, 0.79, 0.87), (0.78, 0.93, 0.96), (0.92, 0.98, 0.99)),
    "trusted": ((0.60, 0.77, 0.86), (0.91, 0.97, 0.98), (0.99, 0.995, 0.996), (1, 1, 1)),
}


class World:
    """Units with true importances, and as many clients as are asked for."""

    def __init__(self, stream: SimulationRandomness) -> None:
        """Draw importances and magnitudes."""
        self._draw = stream.stream("world").generator
        self.importance = self._draw.normal(size=UNITS)
        rest = self._draw.normal(size=UNITS)
        self.magnitude = np.exp(
            CORRELATION * self.importance + math.sqrt(1 - CORRELATION**2) * rest
        )
        self.reports = stream.stream("reports")

    def clients(self, count: int) -> Iterator[Masks]:
        """Masks of `count` new clients, a part at a time: [part, 784]."""
        for start in range(0, count, CHUNK):
            size = (min(CHUNK, count - start), UNITS)
            scores = self._draw.standard_normal(size, dtype=np.float32)
            scores += self.importance.astype(np.float32)
            masks = np.zeros(size, dtype=bool)
            best = np.argpartition(scores, KEPT, axis=1)[:, UNITS - KEPT :]
            np.put_along_axis(masks, best, True, axis=1)
            yield masks

    def recall(self, ranking: Vector) -> float:
        """Share of the true top half that a ranking's top half holds."""
        found = np.argsort(-ranking, kind="stable")[:KEPT]
        return float(np.isin(found, np.argsort(-self.importance)[:KEPT]).mean())


def bits_alone(epsilon: float) -> tuple[int, float]:
    """The best m, and its kappa, for m bits of a block by randomised response at eps/m each."""
    sizes = range(1, 65)
    return min(
        ((m, 1 / (m * math.tanh(epsilon / (2 * m)) ** 2)) for m in sizes), key=lambda p: p[1]
    )


def gaussian_noise(epsilon: float) -> float:
    """Standard deviation of the exact Gaussian mechanism (Balle & Wang 2018, Theorem 8)."""
    sensitivity = math.sqrt(2 * min(KEPT, UNITS - KEPT))

    def excess(sigma: float) -> float:
        half, far = sensitivity / (2 * sigma), epsilon * sigma / sensitivity
        return float(norm.cdf(half - far) - math.exp(epsilon) * norm.cdf(-half - far)) - DELTA

    return float(brentq(excess, 0.1, 1e5))


def measured_kappa(mechanism: Mechanism, stream: SimulationRandomness) -> tuple[float, float]:
    """Kappa from the squared errors of votes over drawn reports, and its standard error."""
    masks = stream.generator.random((1000, mechanism.num_units)) < 0.5
    found = []
    repeats = min(3000, max(20, 15_000 // mechanism.num_units))
    for repeat in range(repeats):
        rows = mechanism.randomize_rows(masks, [stream.stream(repeat)] * len(masks))
        errors = mechanism.estimate(rows).mean - masks.mean(axis=0)
        second = (4 * len(masks) * float((errors**2).mean()) + 1) / mechanism.num_blocks
        found.append(second / mechanism.block_units)
    return float(np.mean(found)), float(np.std(found, ddof=1) / math.sqrt(len(found)))


def kappa_table(seed: int) -> list[dict[str, Any]]:
    """Exact and measured kappa of four ways to report 784 bits."""
    rows = []
    for place, epsilon in enumerate(KAPPA_EPSILONS):
        ways: dict[str, Mechanism] = {
            "every bit at eps/d": BitwiseResponse(epsilon, UNITS),
            "every bit, exact (eps, 1e-5)": BitwiseResponse(epsilon, UNITS, delta=DELTA),
            "best m bits at eps/m": BitwiseResponse(epsilon, bits_alone(epsilon)[0]),
            "threshold": ThresholdResponse(epsilon, UNITS),
        }
        for name, mechanism in ways.items():
            mean, error = measured_kappa(
                mechanism, SimulationRandomness(seed, "kappa", name, place)
            )
            rows.append(
                {
                    "epsilon": epsilon,
                    "way": name,
                    "mechanism": repr(mechanism),
                    "exact": mechanism.kappa,
                    "measured": mean,
                    "standard_error": error,
                    "published": PUBLISHED_KAPPA[name][place],
                }
            )
    return rows


def one_question(
    world: World, clients: int, mechanisms: list[Mechanism]
) -> tuple[list[float], Vector]:
    """Recall of each mechanism on the same clients, and the clients' votes without noise."""
    sums = [mechanism.new_sums() for mechanism in mechanisms]
    votes = np.zeros(UNITS)
    for masks in world.clients(clients):
        votes += masks.sum(axis=0)
        rngs = [world.reports] * len(masks)
        for i, mechanism in enumerate(mechanisms):
            sums[i] = mechanism.add(sums[i], mechanism.randomize_rows(masks, rngs))
    found = [m.estimate_sums(s).mean for m, s in zip(mechanisms, sums, strict=True)]
    return [world.recall(mean) for mean in found], votes


def recall_table(seed: int) -> list[dict[str, Any]]:
    """Recall of a single question, by number of clients, epsilon and whom they trust."""
    bitwise: list[Mechanism] = [BitwiseResponse(e, UNITS, delta=DELTA) for e in EPSILONS]
    threshold: list[Mechanism] = [ThresholdResponse(e, UNITS) for e in EPSILONS]
    rows = []
    for line, (clients, repeats) in enumerate(REPEATS.items()):
        found: list[list[float]] = []
        for repeat in range(repeats):
            world = World(SimulationRandomness(seed, "recall", clients, repeat))
            recalls, votes = one_question(world, clients, bitwise + threshold)
            noise = world.reports.generator.normal(size=(len(EPSILONS), UNITS))
            noisy = [votes + gaussian_noise(e) * noise[i] for i, e in enumerate(EPSILONS)]
            found.append([*recalls, *(world.recall(sums) for sums in noisy), world.recall(votes)])
        columns = np.array(found).T
        names = [(way, e) for way in ("bitwise", "threshold", "trusted") for e in EPSILONS]
        for (way, epsilon), column in zip(names, columns[:-1], strict=True):
            row = {"clients": clients, "way": way, "epsilon": epsilon, **spread(column)}
            row["published"] = PUBLISHED_RECALL[way][line][EPSILONS.index(epsilon)]
            if way != "trusted":
                mechanism = (bitwise if way == "bitwise" else threshold)[EPSILONS.index(epsilon)]
                row["predicted"] = predict_recall(mechanism.variance_per_vote(clients))
            rows.append(row)
        rows.append({"clients": clients, "way": "no noise", **spread(columns[-1])})
    return rows


def in_phases(world: World, clients: int, epsilon: float, phases: int, prior: bool) -> float:
    """Recall after asking disjoint cohorts, later ones about what is undecided."""
    one = ThresholdResponse(epsilon, UNITS).variance_per_vote(clients)
    plan = phase_plan(phases, UNITS, variance=one)
    asked: list[PhaseVotes] = []
    mean = variance = np.zeros(UNITS)
    for cohort, (_, share) in zip(phase_cohorts(clients, plan), plan, strict=True):
        units = np.arange(UNITS)
        if asked:
            units = choose_undecided(mean, variance, KEPT, units_to_ask(share, UNITS))
        mechanism = ThresholdResponse(epsilon, len(units), num_reports=len(cohort))
        sums, first = mechanism.new_sums(), 0
        for masks in world.clients(len(cohort)):  # clients are alike: their order is their rank
            blocks = assigned_blocks(first + np.arange(len(masks)), mechanism.num_blocks)
            rngs = [world.reports] * len(masks)
            rows = mechanism.randomize_rows(masks[:, units], rngs, blocks)
            sums, first = mechanism.add(sums, rows, blocks), first + len(masks)
        estimate = mechanism.estimate_sums(sums, counts="assigned", population=math.inf)
        asked.append(PhaseVotes(units, estimate))
        pooled = combine(asked, UNITS)
        magnitude = world.magnitude if prior else np.ones(UNITS)
        posterior = magnitude_posterior(pooled.mean, pooled.variance, magnitude)
        mean, variance = posterior.mean, posterior.variance
    return world.recall(mean)


def worlds(seed: int, clients: int, repeats: int) -> Iterator[World]:
    """The same worlds whenever they are asked for."""
    return (World(SimulationRandomness(seed, "phases", clients, r)) for r in range(repeats))


def phase_table(seed: int) -> list[dict[str, Any]]:
    """Recall by number of phases, with and without the magnitude prior; the same worlds for all."""
    rows = []
    for clients, epsilon, repeats in PHASE_SETTINGS:
        for phases in PHASES:
            for prior in (False, True):
                found = [
                    in_phases(world, clients, epsilon, phases, prior)
                    for world in worlds(seed, clients, repeats)
                ]
                row = {"clients": clients, "epsilon": epsilon, "phases": phases, "prior": prior}
                rows.append(row | spread(np.array(found)))
    return rows


def spread(values: Vector) -> dict[str, float | int]:
    """Mean with a 95 % interval over repetitions (Student's t)."""
    half = student.isf(0.025, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    mean = float(values.mean())
    return {"recall": mean, "low": mean - half, "high": mean + half, "repeats": len(values)}


def report(result: dict[str, Any]) -> str:
    """Everything as text."""
    lines = ["kappa: way, epsilon, exact, measured (standard error), published"]
    lines += [
        f"{r['way']:<30}{r['epsilon']:>5g} {r['exact']:>9.4g} {r['measured']:>9.4g} "
        f"({r['standard_error']:.2g}) {r['published']:>8g}"
        for r in result["kappa"]
    ]
    lines.append("recall of one question: clients, way, epsilon, recall [95 %], published")
    lines += [
        f"{r['clients']:>7} {r['way']:<10}{r.get('epsilon', math.nan):>4g} {interval(r)} "
        f"{r.get('published', math.nan):>6g}"
        for r in result["recall"]
    ]
    lines.append("recall in phases: clients, epsilon, phases, prior, recall [95 %]")
    lines += [
        f"{r['clients']:>7} {r['epsilon']:>4g} {r['phases']:>2} {'prior' if r['prior'] else '-':<6}"
        f"{interval(r)}"
        for r in result["phases"]
    ]
    return "\n".join(lines)


def interval(row: dict[str, Any]) -> str:
    """A mean and its interval."""
    return f"{row['recall']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"


def draw(result: dict[str, Any], path: Path) -> None:
    """Recall over clients at epsilon = 4, and over the number of phases."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    ways = (("bitwise", "every bit, exact composition", "#999999"),
            ("threshold", "threshold response", "#0072b2"),
            ("trusted", "trusted aggregate", "#009e73"))  # fmt: skip
    for way, label, colour in ways:
        rows = [r for r in result["recall"] if r["way"] == way and r["epsilon"] == 4]
        plot(left, [r["clients"] for r in rows], rows, label, colour, "-o")
    best = [r for r in result["phases"] if r["epsilon"] == 4 and r["phases"] == 4 and r["prior"]]
    plot(left, [r["clients"] for r in best], best, "four phases and prior", "#d55e00", "s")
    left.set(
        xscale="log", xlabel="clients", ylabel="recall of the true top half", ylim=(0.48, 1.01)
    )
    colours = ("#cc79a7", "#0072b2", "#d55e00", "#009e73")
    for (clients, epsilon, _), colour in zip(PHASE_SETTINGS, colours, strict=True):
        for prior, line in ((False, "--o"), (True, "-s")):
            rows = [r for r in result["phases"] if (r["clients"], r["epsilon"], r["prior"])
                    == (clients, epsilon, prior)]  # fmt: skip
            label = f"n = {clients:,}, eps = {epsilon:g}" + (", prior" if prior else "")
            plot(right, [r["phases"] for r in rows], rows, label, colour, line)
    right.set(xlabel="phases", xticks=PHASES, ylim=(0.42, 0.98))
    for panel, title in ((left, "epsilon = 4, one report a client"), (right, "asking in phases")):
        panel.set_title(title, size=10)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7, loc="lower right", ncols=1 if panel is left else 2)
    figure.savefig(path, dpi=150)


def plot(
    panel: Any, places: list[int], rows: list[dict[str, Any]], label: str, colour: str, line: str
) -> None:
    """One curve with 95 % bars."""
    values = [r["recall"] for r in rows]
    bars = [r["high"] - r["recall"] for r in rows]
    panel.errorbar(places, values, yerr=bars, fmt=line, color=colour, label=label, ms=4, lw=1.2)


def main() -> None:
    """Measure all three tables, print them, write JSON and picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="results JSON to write")
    arguments = parser.parse_args()
    begun = time.perf_counter()
    result: dict[str, Any] = {
        "question": (__doc__ or "").splitlines()[0],
        "command": f"python simulations/private_votes.py --seed {arguments.seed} --out OUT",
        "date": date.today().isoformat(),
        "seed": arguments.seed,
        "config": {
            "units": UNITS, "keep_units": 0.5, "delta": DELTA, "repeats": REPEATS,
            "client_deviation": 1.0, "magnitude_correlation": CORRELATION,
            "privacy": "one report a client at the epsilon stated: unit of protection one client, "
            "replacement of its whole data, nobody trusted; delta = 0 for threshold response; "
            "'trusted' trusts whoever sums",
        },
        "versions": {
            "fedprune": __version__, "numpy": np.__version__, "scipy": scipy.__version__,
            "python": platform.python_version(),
        },
        "kappa": kappa_table(arguments.seed),
        "recall": recall_table(arguments.seed),
        "phases": phase_table(arguments.seed),
    }  # fmt: skip
    result["seconds"] = round(time.perf_counter() - begun, 1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(result, arguments.out.with_suffix(".png"))
    print(report(result))


if __name__ == "__main__":
    main()
