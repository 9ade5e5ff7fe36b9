"""Which criteria give the same ranking to two networks that compute the same function?

A ReLU network does not change as a function when a channel is scaled by c and its readers by 1/c,
when a channel is split into two halves that are read half as strongly each, or when a silent one is
added. Importance is about what a network computes, so a ranking should not change either - as
infrared and collinear safety ask of what is measured of a jet of particles: neither a silent
particle nor one that splits in two may change it.

Claim: criteria of the gates (Taylor of every order, Fisher, linearised logits, the oracle) see the
function alone and pass all three; the l2 norm of the weights passes none of them. It is a theorem
for the former: their scores are derivatives or differences of the loss in a factor on the unit's
output. Two halves share their whole's slope, so each scores less than it did.

    python simulations/criterion_symmetry.py --small --out RESULTS.json

For each change and criterion: the Spearman correlation of the scores before and after over the
units that were there before, whether their order is exactly the same, and where the new unit's (or
a half's) score falls among the others'.
"""

from __future__ import annotations

import copy
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _study import finish, label, panels, parser, train
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn

from fedprune import data, pruning
from fedprune.randomness import SimulationRandomness

Vector = NDArray[np.float64]

SAME = 1e-4  # of the largest score: rounding of single precision in a network of this depth


@dataclass(frozen=True)
class Setting:
    """How large everything is.

    Attributes:
        widths: channels of the two convolutions.
        epochs: of training on digits.
        images: that criteria see.
        changed: channels of the first convolution that are changed, one network each.
    """

    widths: tuple[int, int] = (16, 24)
    epochs: int = 8
    images: int = 500
    changed: int = 5


SMALL = Setting(widths=(8, 12), epochs=3, images=200, changed=3)


def network(widths: tuple[int, int], seed: int) -> nn.Sequential:
    """Two convolutions with batch norms and a linear layer, for digits."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(OrderedDict(
            conv1=nn.Conv2d(1, widths[0], 3, padding=1), norm1=nn.BatchNorm2d(widths[0]),
            relu1=nn.ReLU(), pool=nn.MaxPool2d(2),
            conv2=nn.Conv2d(widths[0], widths[1], 3, padding=1), norm2=nn.BatchNorm2d(widths[1]),
            relu2=nn.ReLU(), mean=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(),
            out=nn.Linear(widths[1], 10),
        ))  # fmt: skip


# Networks that compute the same. The changed channel is one of conv1; a new one comes after it.


def scaled(model: nn.Sequential, channel: int, factor: float = 8.0) -> nn.Sequential:
    """A channel leaves its norm `factor` times larger and is read as much more weakly."""
    other: Any = copy.deepcopy(model)
    with torch.no_grad():
        other.norm1.weight[channel] *= factor
        other.norm1.bias[channel] *= factor
        other.conv2.weight[:, channel] /= factor
    return other


def scaled_before_norm(model: nn.Sequential, channel: int, factor: float = 8.0) -> nn.Sequential:
    """A channel is `factor` times larger before its norm, which takes that out again."""
    other: Any = copy.deepcopy(model)
    norm = other.norm1
    with torch.no_grad():
        other.conv1.weight[channel] *= factor
        other.conv1.bias[channel] *= factor
        norm.running_mean[channel] *= factor
        norm.running_var[channel] = (norm.running_var[channel] + norm.eps) * factor**2 - norm.eps
    return other


def split(model: nn.Sequential, channel: int) -> nn.Sequential:
    """A channel becomes two equal ones; each is read half as strongly."""
    other: Any = widened(model, channel)
    with torch.no_grad():
        other.conv2.weight[:, channel : channel + 2] /= 2
    return other


def with_silent(model: nn.Sequential, channel: int) -> nn.Sequential:
    """A channel that its norm puts to zero stands beside; weights before and after are ordinary."""
    other: Any = widened(model, channel)
    with torch.no_grad():
        other.norm1.weight[channel + 1] = 0
        other.norm1.bias[channel + 1] = 0
    return other


def widened(model: nn.Sequential, channel: int) -> nn.Sequential:
    """A copy whose channel stands there twice, so that its readers read too much."""
    conv1, conv2, old_norm = model.conv1, model.conv2, model.norm1
    assert isinstance(conv1, nn.Conv2d)
    assert isinstance(conv2, nn.Conv2d)
    assert isinstance(old_norm, nn.BatchNorm2d)
    places = torch.arange(conv1.out_channels)
    places = torch.cat([places[: channel + 1], places[channel:]])
    other: Any = network((len(places), conv2.out_channels), seed=0)
    state = dict(model.state_dict())
    for name in list(state):
        if name.startswith(("conv1.", "norm1.")) and state[name].ndim > 0:
            state[name] = state[name][places]
    state["conv2.weight"] = state["conv2.weight"][:, places]
    other.load_state_dict(state)
    return other.train(model.training)


CHANGES: dict[str, tuple[Callable[[nn.Sequential, int], nn.Sequential], bool]] = {
    "scaled": (scaled, False),
    "scaled before its norm": (scaled_before_norm, False),
    "split in halves": (split, True),
    "silent channel added": (with_silent, True),
}


# What criteria say of them.


def before_and_after(
    model: nn.Sequential, change: str, channel: int, criterion: str, batch: tuple[Tensor, Tensor]
) -> tuple[Vector, Vector, float]:
    """Scores of the units that both networks have, and the new unit's (else the changed one's)."""
    make, adds = CHANGES[change]
    other = make(model, channel)
    scores = []
    for one in (model, other):
        layout = pruning.UnitLayout.of(one, batch[0][:2])
        scores.append(pruning.score(one, layout, [batch], criterion, seed=1).double().numpy())
    if not adds:
        return scores[0], scores[1], float(scores[1][channel])
    # What halves and the silent channel themselves score is told apart from the other units.
    new = float(scores[1][channel + 1])
    if change == "split in halves":
        left = np.delete(scores[0], channel), np.delete(scores[1], [channel, channel + 1])
    else:
        left = scores[0], np.delete(scores[1], channel + 1)
    return *left, new


def verdict(before: Vector, after: Vector, new: float) -> dict[str, Any]:
    """How far scores and their order are the same."""
    size = max(float(np.abs(before).max()), 1e-300)
    moved = float(np.abs(after - before).max()) / size
    falling = np.argsort(-before, kind="stable")
    apart = before[falling[:-1]] - before[falling[1:]] > SAME * size  # closer ones are rounding
    same = bool((after[falling[:-1]] > after[falling[1:]])[apart].all())
    return {
        "same_scores": moved < SAME,
        "same_order": same,
        "largest_change": moved,
        "spearman": float(spearmanr(before, after)[0]),
        "new_share_below": float((before < new).mean()),
    }


def run(setting: Setting, seed: int) -> dict[str, Any]:
    """Every criterion under every change of a trained network."""
    digits = data.load("digits", "", seed=seed)
    rows = np.arange(len(digits.train))
    inputs, labels = digits.train.inputs(rows), digits.train.targets(rows)
    trained = train(
        network(setting.widths, seed), inputs, labels, epochs=setting.epochs, seed=seed, rate=0.05
    )
    assert isinstance(trained, nn.Sequential)
    batch = inputs[: setting.images], labels[: setting.images]
    random = SimulationRandomness(seed, "symmetry").generator
    channels = random.permutation(setting.widths[0])[: setting.changed].tolist()
    table = []
    for change, (make, _) in CHANGES.items():
        apart = max(difference(trained, make(trained, one), batch[0]) for one in channels)
        for criterion in pruning.CRITERIA:
            found = [
                verdict(*before_and_after(trained, change, one, criterion, batch))
                for one in channels
            ]
            table.append({"change": change, "criterion": criterion, "outputs_differ_by": apart}
                         | combined(found))  # fmt: skip
    return {"table": table}


def difference(one: nn.Module, other: nn.Module, inputs: Tensor) -> float:
    """The largest difference of two networks' outputs."""
    with torch.inference_mode():
        return float((one(inputs) - other(inputs)).abs().max())


def combined(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether all channels' verdicts agree, and the worst of their numbers."""
    return {
        "same_scores": all(one["same_scores"] for one in found),
        "same_order": all(one["same_order"] for one in found),
        "largest_change": max(one["largest_change"] for one in found),
        "spearman": min(one["spearman"] for one in found),
        "new_share_below": float(np.mean([one["new_share_below"] for one in found])),
    }


def report(result: dict[str, Any]) -> str:
    """The table as text: "same" for the same scores, "order" for the same order only."""
    by_criterion: dict[str, dict[str, dict[str, Any]]] = {}
    for row in result["table"]:
        by_criterion.setdefault(row["criterion"], {})[row["change"]] = row
    lines = [" " * 25 + "".join(f"{change:>24}" for change in CHANGES)]
    for criterion, rows in by_criterion.items():
        lines.append(f"{criterion:<25}" + "".join(f"{said(rows[c]):>24}" for c in CHANGES))
    return "\n".join(lines)


def said(row: dict[str, Any]) -> str:
    """One cell: same scores, same order, or the correlation that is left."""
    if row["same_scores"]:
        return "same"
    return "order" if row["same_order"] else f"{row['spearman']:.2f}"


def draw(result: dict[str, Any], path: Path) -> None:
    """The table as a picture: what stays is green."""
    criteria = list(dict.fromkeys(row["criterion"] for row in result["table"]))
    figure, (panel,) = panels(1, width=7.5, height=0.28 * len(criteria) + 1.4)
    shades = np.zeros((len(criteria), len(CHANGES)))
    for row in result["table"]:
        place = criteria.index(row["criterion"]), list(CHANGES).index(row["change"])
        stays = row["same_scores"] or row["same_order"]
        shades[place] = 1.0 if stays else 0.5 * max(row["spearman"], 0.0)
        panel.text(place[1], place[0], said(row), ha="center", va="center", size=7)
    panel.imshow(shades, cmap="RdYlGn", vmin=-0.3, vmax=1.4, aspect="auto")
    panel.set_xticks(range(len(CHANGES)), list(CHANGES), size=7)
    panel.set_yticks(range(len(criteria)), criteria, size=7)
    label(panel, "scores of the same function, written differently", "", "")
    panel.grid(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, print, write JSON and picture."""
    arguments = parser(__doc__).parse_args()
    setting, begun = SMALL if arguments.small else Setting(), time.perf_counter()
    found = run(setting, arguments.seed)
    print(report(finish(__doc__, arguments, setting, begun, found, draw)))


if __name__ == "__main__":
    main()
