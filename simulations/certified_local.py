"""How much tighter is a Lipschitz bound inside a small ball than everywhere?

Inside an l2 ball around an example most ReLUs are dead or always active; the rest is bounded by
LipSDP, by an enclosure of the Jacobians, or by the global bound, whichever is least. The claim: at
radius 0.1 the local bound is at least twice as tight in the median as the product of norms for a
convolutional network. It cannot be below the slope at the point itself, which stands beside it: a
perceptron whose global bound is nearly attained at the data leaves nothing to gain, and then the
ratio to that floor shows it.

Certificates gain more than slopes, because a local certificate bounds differences of logits: the
certified radius of each example, local over global, and certified accuracy at several radii.

    python simulations/certified_local.py --small --out OUT.json
    python simulations/certified_local.py --out simulations/results/certified_local.json
    python simulations/certified_local.py --models lenet --train-radius 0.2 --out OUT.json
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import _certified as certified
import _study as study
import numpy as np

from fedprune import robustness

PRODUCT = "product of layer norms, branches added"


@dataclass(frozen=True)
class Setting:
    """Sizes of the study.

    Attributes:
        epochs: of training.
        train_radius: of the margin; 0 is standard training.
        radii: of the balls.
        points: test rows with a ball around them.
        certified_points: test rows whose certified radius is searched.
        largest: radius up to which it is searched.
        work: floating point operations for LipSDP at a point.
    """

    epochs: float = 30
    train_radius: float = 0.0
    radii: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.4)
    points: int = 100
    certified_points: int = 100
    largest: float = 1.0
    work: float = 5e9


SMALL = Setting(epochs=12, radii=(0.05, 0.1), points=8, certified_points=12, work=2e9)


def one_network(setting: Setting, task: study.Problem, seed: int) -> dict[str, Any]:
    """Slopes and certificates of one network."""
    model = task.pretrained() or task.fresh(seed)
    if not task.weights:
        model = certified.train(
            model, task, radius=setting.train_radius, epochs=setting.epochs, seed=seed
        )
    model = model.eval()
    points = task.test_inputs[: setting.points]
    bound = robustness.lipschitz(model, points[:1], lower_inputs=points, seed=seed)
    alternatives = dict(bound.alternatives)
    rows = []
    for radius in setting.radii:
        found = robustness.local_lipschitz(model, points, radius, work=setting.work)
        rows.append(
            {
                "radius": radius,
                "median": float(np.median(found.upper)),
                "median_floor": float(np.median(found.lower)),
                "gain_over_best_global": found.gain,
                "gain_over_product": alternatives[PRODUCT] / float(np.median(found.upper)),
                "above_floor": float(np.median(found.upper / np.maximum(found.lower, 1e-12))),
                "decided": float(found.decided.mean()),
                "methods": {name: found.methods.count(name) for name in sorted({*found.methods})},
            }
        )
    return {
        "accuracy": study.accuracy(model, task.test_inputs, task.test_labels),
        "alternatives": alternatives,
        "upper": bound.upper,
        "lower": bound.lower,
        "balls": rows,
        "certificates": _certificates(setting, task, model),
    }


def _certificates(setting: Setting, task: study.Problem, model: Any) -> dict[str, Any]:
    rows = slice(0, setting.certified_points)
    inputs, labels = task.test_inputs[rows], task.test_labels[rows]
    wide = robustness.Certifier.of(model, inputs[:1])
    overall = wide.certified_radii(wide.margins(inputs, labels))
    near = robustness.LocalCertifier.of(model, inputs[:1]).certified_radii(
        inputs, labels, setting.largest
    )
    either = np.maximum(overall, near)
    right = overall > 0
    at = [radius for radius in (0.05, 0.1, 0.2, 0.3) if radius < setting.largest]
    curves = {"global": overall, "local": near, "the larger one": either}
    return {
        "radii": at,
        "median_gain": float(np.median(near[right] / overall[right])) if right.any() else None,
        "certified": {
            name: list(robustness.certified_curve(radii, at).certified)
            for name, radii in curves.items()
        },
    }


def draw(result: dict[str, Any], path: Path) -> None:
    """Local bounds over the radius, beside the global ones and the floor."""
    figure, panels = study.panels(len(result["networks"]))
    for panel, (name, found) in zip(panels, result["networks"].items(), strict=True):
        radii = [row["radius"] for row in found["balls"]]
        panel.plot(radii, [row["median"] for row in found["balls"]], "-o", label="local, median")
        panel.plot(radii, [row["median_floor"] for row in found["balls"]], ":",
                   label="slope at the point, median")  # fmt: skip
        for number, (method, upper) in enumerate(found["alternatives"].items()):
            panel.axhline(upper, ls="--", color=study.COLOURS[3 + number], label=method[:34])
        panel.set_yscale("log")
        study.label(panel, name, "radius", "Lipschitz bound")
    figure.savefig(path, dpi=150)


def run(
    setting: Setting, arguments: argparse.Namespace, names: list[str], seed: int
) -> dict[str, Any]:
    """Every network on the same data."""
    networks = {}
    for name in names:
        arguments.model = name
        networks[name] = one_network(setting, certified.asked(arguments), seed)
    return {"networks": networks}


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write JSON and picture."""
    parser = certified.add_options(study.parser(__doc__))
    parser.add_argument("--models", nargs="+", default=["mlp", "lenet"], help="networks by name")
    parser.add_argument("--train-radius", type=float, help="of margin training (default: none)")
    arguments = parser.parse_args(argv)
    begun = time.perf_counter()
    setting = SMALL if arguments.small else Setting()
    if arguments.train_radius is not None:
        setting = replace(setting, train_radius=arguments.train_radius)
    found = run(setting, arguments, arguments.models, arguments.seed)
    result = study.finish(__doc__, arguments, setting, begun, found, draw)
    for name, row in result["networks"].items():
        print(f"{name}: accuracy {row['accuracy']:.3f}, slope found {row['lower']:.2f}")
        for method, upper in row["alternatives"].items():
            print(f"  everywhere {upper:9.2f}  {method}")
        for ball in row["balls"]:
            print(
                f"  radius {ball['radius']:<5g} {ball['median']:9.2f}  "
                f"{ball['gain_over_product']:.2f}x below the product, "
                f"{ball['gain_over_best_global']:.2f}x below the best global bound, "
                f"{ball['above_floor']:.2f}x above the slope at the point; "
                f"{100 * ball['decided']:.0f} % of ReLUs decided"
            )
        print(f"  certified: {row['certificates']}")


if __name__ == "__main__":
    main()
