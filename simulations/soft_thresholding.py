"""Soft or hard thresholds: shrink all weights while training, or cut the small ones afterwards?

Hard thresholding keeps v where |v| > λ, soft thresholding (the proximal step of an L1 penalty)
gives sign(v) max(|v| - λ, 0). Two parts.

The risk of estimating one number θ from v = θ + z, z standard normal (Donoho & Johnstone 1994,
"Ideal spatial adaptation by wavelet shrinkage"): with a = λ - θ, b = λ + θ and Q = 1 - Φ

    hard: [a φ(a) + Q(a)] + [b φ(b) + Q(b)] + θ² [Φ(a) - Φ(-b)]
    soft: [(1 + λ²) Q(a) + (a - 2λ) φ(a)] + [(1 + λ²) Q(b) + (b - 2λ) φ(b)] + θ² [Φ(a) - Φ(-b)]

Soft wins near zero and pays a bias of about λ² for large θ; hard does the reverse.

The same in a network: it is trained by proximal steps (ISTA: gradient step, then soft threshold)
at several penalties, which leave a fraction of nonzero weights; or trained without penalty and cut
by magnitude to just the same fraction. Both are told as they are, and after the same fine-tuning of
what stays without penalty. The closed forms are the claim that is exact; for the network the
question is open, and on the digits the bias weighs more: hard is at least as good at every
fraction, most of all after fine-tuning.

    python simulations/soft_thresholding.py --small --out OUT.json
    python simulations/soft_thresholding.py --out simulations/results/soft_thresholding.json
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _study as study
import numpy as np
import torch
from scipy.stats import norm
from torch import nn

from fedprune import pruning
from fedprune.pruning import weights
from fedprune.randomness import SimulationRandomness


@dataclass(frozen=True)
class Setting:
    """Sizes of the study.

    Attributes:
        seeds: networks for each penalty.
        epochs: of training.
        tune_epochs: of fine-tuning without penalty.
        rate: learning rate.
        penalties: λ of the L1 penalty.
        threshold: λ of the risks.
        signals: θ of the risks.
        draws: simulated numbers for each θ.
    """

    seeds: int = 5
    epochs: float = 20
    tune_epochs: float = 5
    rate: float = 0.5
    penalties: tuple[float, ...] = (1e-4, 3e-4, 6e-4, 1e-3, 1.5e-3, 2e-3)
    threshold: float = 1.5
    signals: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    draws: int = 1_000_000


SMALL = Setting(seeds=3, epochs=8, tune_epochs=2, penalties=(3e-4, 1e-3, 2e-3), draws=100_000)


def hard_risk(cut: float, signal: float) -> float:
    """E[(hard(θ + z) - θ)²], exact."""
    a, b = cut - signal, cut + signal
    tails = a * norm.pdf(a) + norm.sf(a) + b * norm.pdf(b) + norm.sf(b)
    return float(tails + signal**2 * (norm.cdf(a) - norm.cdf(-b)))


def soft_risk(cut: float, signal: float) -> float:
    """E[(soft(θ + z) - θ)²], exact."""
    a, b = cut - signal, cut + signal
    tails = sum((1 + cut**2) * norm.sf(x) + (x - 2 * cut) * norm.pdf(x) for x in (a, b))
    return float(tails + signal**2 * (norm.cdf(a) - norm.cdf(-b)))


def risks(setting: Setting, seed: int) -> list[dict[str, Any]]:
    """Closed forms beside the means of simulated losses."""
    rows = []
    draws = SimulationRandomness(seed, "risk").generator
    for signal in setting.signals:
        seen = torch.from_numpy(signal + draws.normal(size=setting.draws))
        row: dict[str, Any] = {"signal": signal}
        for name, exact, threshold in (
            ("hard", hard_risk, weights.hard_threshold),
            ("soft", soft_risk, weights.soft_threshold),
        ):
            losses = ((threshold(seen, setting.threshold) - signal) ** 2).numpy()
            row[name] = exact(setting.threshold, signal)
            row[f"{name}_simulated"] = study.spread(losses.tolist())
        rows.append(row)
    return rows


def train_by_ista(setting: Setting, task: study.Problem, penalty: float, seed: int) -> nn.Module:
    """Gradient steps, each followed by the proximal step of the penalty."""
    per_epoch = -(-len(task.inputs) // 32)
    steps = round(setting.epochs * per_epoch)

    def proximal(done: int, model: nn.Module) -> None:
        rate = pruning.learning_rate("cosine", done - 1, steps, setting.rate)
        weights.shrink_weights_(model, rate * penalty)

    return study.train(
        task.fresh(seed), task.inputs, task.labels, epochs=setting.epochs, seed=seed,
        rate=setting.rate, momentum=0.0, after_step=proximal,
    )  # fmt: skip


def nonzero(model: nn.Module) -> weights.StudyMasks:
    """The weights that a soft threshold has left."""
    named = dict(model.named_parameters())
    return weights.StudyMasks(
        {name: named[name].detach() != 0 for name in weights.prunable_weights(model)}
    )


def one_pair(
    setting: Setting, task: study.Problem, plain: nn.Module, penalty: float, seed: int
) -> dict[str, float]:
    """Soft and hard at the same fraction of weights: accuracy as they are and fine-tuned."""
    soft = train_by_ista(setting, task, penalty, seed)
    kept = nonzero(soft)
    cut = weights.magnitude_masks(plain, max(kept.keep_weights, 1e-4))
    found = {"kept": kept.keep_weights}
    for name, model, masks in (
        ("soft", soft, kept), ("hard", weights.apply_masks(plain, cut), cut)
    ):  # fmt: skip
        tuned = study.train(
            model, task.inputs, task.labels, epochs=setting.tune_epochs, seed=seed, rate=0.02,
            masks=masks,
        )  # fmt: skip
        found[name] = study.accuracy(model, task.test_inputs, task.test_labels)
        found[f"{name}_tuned"] = study.accuracy(tuned, task.test_inputs, task.test_labels)
    return found


def run(setting: Setting, task: study.Problem, seed: int) -> dict[str, Any]:
    """The risks, and networks at every penalty."""
    runs: dict[float, list[dict[str, float]]] = {penalty: [] for penalty in setting.penalties}
    for number in range(seed, seed + setting.seeds):
        plain = train_by_ista(setting, task, 0.0, number)
        for penalty in setting.penalties:
            runs[penalty].append(one_pair(setting, task, plain, penalty, number))
    rows = [
        {"penalty": penalty} | {key: study.spread([one[key] for one in found]) for key in found[0]}
        for penalty, found in runs.items()
    ]
    return {"risks": risks(setting, seed), "rows": rows}


def draw(result: dict[str, Any], path: Path) -> None:
    """Risks with their simulation, and accuracy against the fraction kept."""
    figure, (left, right) = study.panels(2)
    cut = result["config"]["threshold"]
    fine = np.linspace(0, max(row["signal"] for row in result["risks"]), 100)
    for number, (name, exact) in enumerate((("hard", hard_risk), ("soft", soft_risk))):
        colour = study.COLOURS[number]
        left.plot(fine, [exact(cut, x) for x in fine], color=colour, label=f"{name}, exact")
        seen = [row[f"{name}_simulated"] for row in result["risks"]]
        study.curve(left, [r["signal"] for r in result["risks"]], seen, "simulated", number, "o")
        kept = [row["kept"]["mean"] for row in result["rows"]]
        for key, line, what in ((name, "--o", ""), (f"{name}_tuned", "-s", ", fine-tuned")):
            rows = [row[key] for row in result["rows"]]
            study.curve(right, kept, rows, f"{name}{what}", number, line)
    right.set_xscale("log")
    study.label(left, f"risk at threshold {cut:g}", "signal / deviation", "mean squared error")
    study.label(right, "network", "fraction of weights kept", "test accuracy")
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write JSON and picture."""
    arguments = study.add_problem(study.parser(__doc__)).parse_args(argv)
    begun = time.perf_counter()
    setting = SMALL if arguments.small else Setting()
    found = run(setting, study.asked_problem(arguments), arguments.seed)
    result = study.finish(__doc__, arguments, setting, begun, found, draw)
    for row in result["risks"]:
        print(
            f"theta {row['signal']:<4g} hard {row['hard']:.4f} "
            f"({study.interval(row['hard_simulated'])})  soft {row['soft']:.4f} "
            f"({study.interval(row['soft_simulated'])})"
        )
    for row in result["rows"]:
        print(
            f"penalty {row['penalty']:<7g} kept {row['kept']['mean']:.4f}  "
            + "  ".join(
                f"{key} {study.interval(row[key])}"
                for key in ("soft", "hard", "soft_tuned", "hard_tuned")
            )
        )


if __name__ == "__main__":
    main()
