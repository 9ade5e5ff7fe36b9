"""How often does magnitude find a planted support at initialisation?

Weights of n connections, k of which matter: w_i = μ + s z_i on the k planted ones and s z_i on the
others, z_i standard normal (a signal of size μ planted in an initialisation of deviation s).
Magnitude keeps the k largest |w_i|. It finds exactly the planted support when the smallest planted
magnitude is above the largest other one:

    P = ∫ k f(x) [1 - F(x)]^(k-1) G(x)^(n-k) dx,

with G(x) = 2Φ(x/s) - 1 the law of |s z| and F(x) = Φ((x-μ)/s) - Φ((-x-μ)/s), f = F' that of
|μ + s z|. The expected share of the support that is found is

    R = ∫ f(x) P[Bin(k-1, 1-F(x)) + Bin(n-k, 1-G(x)) <= k-1] dx.

Without a signal P = 1/C(n,k) and R = k/n: pruning at initialisation by magnitude is a lottery.
With growing n the change from never to always happens around μ/s = sqrt(2 ln(n-k)) + sqrt(2 ln k).

The claim: both closed forms, integrated to 1e-8, agree with simulation within its interval.

    python simulations/support_recovery.py --small --out OUT.json
    python simulations/support_recovery.py --out simulations/results/support_recovery.json
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _study as study
import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, gammaln, ndtr, xlog1py, xlogy
from scipy.stats import beta

from fedprune.randomness import SimulationRandomness

Vector = NDArray[np.float64]

PANELS, NODES = 400, 20
REACH = 40.0  # deviations beyond which a normal density is zero in double precision


@dataclass(frozen=True)
class Setting:
    """Sizes of the study.

    Attributes:
        sizes: pairs (n, k).
        signals: μ/s.
        draws: simulated weight vectors for each.
    """

    sizes: tuple[tuple[int, int], ...] = ((20, 4), (100, 10), (1000, 20))
    signals: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
    draws: int = 40_000


SMALL = Setting(draws=4_000)


def recovery_probability(n: int, k: int, signal: float, deviation: float = 1.0) -> float:
    """P[the k largest magnitudes are the planted ones], exact up to 1e-8."""
    if k == n:
        return 1.0
    x, step = _grid(signal / deviation)
    inside = k * _density(x, signal / deviation)
    inside *= _tail(x, signal / deviation) ** (k - 1)
    return float(np.sum(step * inside * (1 - 2 * ndtr(-x)) ** (n - k)))


def expected_recall(n: int, k: int, signal: float, deviation: float = 1.0) -> float:
    """The expected share of the planted support among the k largest magnitudes, exact."""
    x, step = _grid(signal / deviation)
    planted, others = np.minimum(_tail(x, signal / deviation), 1), 2 * ndtr(-x)
    chance = np.zeros_like(x)
    for above in range(k):  # so many of the other planted ones are larger
        rest = bdtr(k - 1 - above, n - k, others) if above + n - k >= k else 1.0
        chance += _binomial(above, k - 1, planted) * rest
    return float(np.sum(step * _density(x, signal / deviation) * chance))


def _binomial(successes: int, trials: int, chance: Vector) -> Vector:
    """P[Bin(trials, chance) = successes], without overflow at the smallest chances."""
    ways = gammaln(trials + 1) - gammaln(successes + 1) - gammaln(trials - successes + 1)
    logs = ways + xlogy(successes, chance) + xlog1py(trials - successes, -chance)
    return np.asarray(np.exp(logs))


def transition(n: int, k: int) -> float:
    """The signal, in deviations, around which recovery sets in as n grows."""
    return math.sqrt(2 * math.log(n - k)) + math.sqrt(2 * math.log(k))


def _grid(signal: float) -> tuple[Vector, Vector]:
    """Gauss-Legendre nodes and weights on panels that cover [0, signal + REACH] finely."""
    nodes, steps = np.polynomial.legendre.leggauss(NODES)
    fine = np.linspace(0, signal + 12, PANELS + 1)
    edges = np.concatenate([fine, np.linspace(signal + 12, signal + REACH, 20)[1:]])
    half = np.diff(edges) / 2
    places = edges[:-1, None] + half[:, None] * (nodes + 1)
    return places.ravel(), (half[:, None] * steps).ravel()


def _density(x: Vector, signal: float) -> Vector:
    def bell(z: Vector) -> Vector:
        return np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)

    return bell(x - signal) + bell(x + signal)


def _tail(x: Vector, signal: float) -> Vector:
    """P[|signal + z| > x]."""
    return np.asarray(ndtr(signal - x) + ndtr(-x - signal))


def simulate(
    n: int, k: int, signal: float, draws: int, stream: SimulationRandomness
) -> tuple[int, Vector]:
    """Draw weights and keep the k largest: successes, and the share found in each draw."""
    found = []
    for part in range(0, draws, 1000):
        drawn = stream.stream(part).generator.normal(size=(min(1000, draws - part), n))
        drawn[:, :k] += signal
        kept = np.argpartition(-np.abs(drawn), k - 1, axis=1)[:, :k]
        found.append((kept < k).mean(axis=1))
    shares = np.concatenate(found)
    return int((shares == 1).sum()), shares


def clopper_pearson(successes: int, draws: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact binomial interval."""
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, draws - successes + 1))
    high = 1.0 if successes == draws else float(beta.isf(tail, successes + 1, draws - successes))
    return low, high


def run(setting: Setting, seed: int) -> dict[str, Any]:
    """Compare the closed forms with simulation."""
    rows = []
    for n, k in setting.sizes:
        for signal in setting.signals:
            stream = SimulationRandomness(seed, "support", n, k, str(signal))
            successes, shares = simulate(n, k, signal, setting.draws, stream)
            low, high = clopper_pearson(successes, setting.draws)
            rows.append(
                {
                    "n": n, "k": k, "signal": signal,
                    "exact": recovery_probability(n, k, signal),
                    "simulated": successes / setting.draws, "low": low, "high": high,
                    "exact_recall": expected_recall(n, k, signal),
                    "simulated_recall": study.spread(shares.tolist()),
                }
            )  # fmt: skip
    inside = sum(row["low"] <= row["exact"] <= row["high"] for row in rows)
    return {"rows": rows, "inside": inside, "intervals": len(rows)}


def draw(result: dict[str, Any], path: Path) -> None:
    """Closed forms as lines, simulation as points."""
    figure, (left, right) = study.panels(2)
    sizes = dict.fromkeys((row["n"], row["k"]) for row in result["rows"])
    for number, (n, k) in enumerate(sizes):
        rows = [row for row in result["rows"] if (row["n"], row["k"]) == (n, k)]
        fine = np.linspace(0, max(row["signal"] for row in rows), 60)
        colour = study.COLOURS[number]
        name = f"{k} of {n}"
        left.plot(fine, [recovery_probability(n, k, x) for x in fine], color=colour, label=name)
        right.plot(fine, [expected_recall(n, k, x) for x in fine], color=colour, label=name)
        left.axvline(transition(n, k), color=colour, lw=0.7, ls=":")
        for row in rows:
            bars = [[row["simulated"] - row["low"]], [row["high"] - row["simulated"]]]
            left.errorbar(
                [row["signal"]], [row["simulated"]], yerr=bars, fmt="o", ms=3, color=colour
            )
            right.plot(row["signal"], row["simulated_recall"]["mean"], "o", ms=3, color=colour)
    study.label(
        left, "whole support found (dotted: transition)", "signal / deviation", "probability"
    )
    study.label(right, "share of the support found", "signal / deviation", "expected recall")
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> None:
    """Compare, print, write JSON and picture."""
    arguments = study.parser(__doc__).parse_args(argv)
    begun = time.perf_counter()
    setting = SMALL if arguments.small else Setting()
    result = study.finish(__doc__, arguments, setting, begun, run(setting, arguments.seed), draw)
    print("   n   k  signal    exact  simulated [95 %]          recall exact / simulated")
    for row in result["rows"]:
        print(
            f"{row['n']:>4} {row['k']:>3} {row['signal']:>7g} {row['exact']:>8.5f}  "
            f"{row['simulated']:.5f} [{row['low']:.5f}, {row['high']:.5f}]  "
            f"{row['exact_recall']:.4f} / {row['simulated_recall']['mean']:.4f}"
        )
    print(f"closed form inside {result['inside']} of {result['intervals']} intervals")


if __name__ == "__main__":
    main()
