"""Which criterion finds the units of one layer that can go, and how near is it to an oracle?

Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", figure 2: one layer is
pruned unit by unit without any training, and the loss is drawn against the units removed. Beside
the criteria stand three oracles, which look at the loss itself:

- oracle: units ranked once, by the change of the loss when each one alone is removed;
- greedy oracle: after every removal all changes are measured again;
- best subset: the least loss over all subsets of every size (layers of up to 16 units, not small).

Criteria rank once ("once"), some also again after every removal ("again"). The source's claim: the
loss of Taylor scores follows the oracles' over most of the layer; random and magnitude leave them
early. No order beats the best subset, and ranking again brings a criterion nearer to the oracles.

    python simulations/prune_one_layer.py --small --out OUT.json
    python simulations/prune_one_layer.py --out simulations/results/prune_one_layer.json
    python simulations/prune_one_layer.py --dataset cifar10 --root DATA --model resnet20 \\
        --weights resnet20-12fca82f.th --layer layer1.0.conv1 --rows 1000 --out OUT.json
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _study as study
import torch
from torch import Tensor, nn

from fedprune import pruning
from fedprune.errors import FedpruneError

Units = tuple[int, ...]


@dataclass(frozen=True)
class Setting:
    """Sizes of the study.

    Attributes:
        seeds: networks that are trained, with a 95 % interval over them; 1 with weights of a file.
        epochs: of training.
        score_rows: training rows that scores and losses are of.
        again: criteria that also rank again after every removal.
        subsets: whether all subsets are tried, in layers of at most 16 units.
    """

    seeds: int = 5
    epochs: float = 15
    score_rows: int = 1000
    again: tuple[str, ...] = ("magnitude_l2", "taylor", "taylor_second", "linear_logits")
    subsets: bool = True


SMALL = Setting(seeds=3, epochs=8, score_rows=300, again=("taylor",), subsets=False)
LARGEST_EXHAUSTIVE = 16


class Layer:
    """One group of units in a network, and the loss of any choice of them."""

    def __init__(self, task: study.Problem, model: nn.Module, group: pruning.UnitGroup, rows: int):
        """Take the first rows for scores and losses."""
        self.model, self.layout, self.group = model, task.layout, group
        self.batches = study.minibatches(task.inputs, task.labels, rows=rows)
        self._inputs, self._labels = task.inputs[:rows], task.labels[:rows]
        self._known: dict[Units, float] = {}

    def without(self, removed: Units) -> nn.Module:
        """The network with units of this layer silent."""
        mask = torch.ones(len(self.layout), dtype=torch.bool)
        mask[[self.group.start + unit for unit in removed]] = False
        return pruning.mask_model(self.model, self.layout, mask)

    def loss(self, removed: Units) -> float:
        """Mean cross-entropy without these units."""
        key = tuple(sorted(removed))
        if key not in self._known:
            self._known[key] = study.loss(self.without(key), self._inputs, self._labels)
        return self._known[key]

    def losses(self, order: Units) -> list[float]:
        """The loss after 0, 1, ... removals in an order, until one unit is left."""
        return [self.loss(order[:count]) for count in range(len(self.group))]

    def scores(self, criterion: str, removed: Units, seed: int) -> Tensor:
        """A criterion's scores of the layer's units, with some of them already gone."""
        found = pruning.score(
            self.without(removed), self.layout, self.batches, criterion, seed=seed
        )
        return found[self.group.units]


def single_oracle(layer: Layer) -> Units:
    """Rank once by the change of the loss."""
    change = [abs(layer.loss((unit,)) - layer.loss(())) for unit in range(len(layer.group))]
    return tuple(sorted(range(len(layer.group)), key=change.__getitem__))


def greedy(layer: Layer, value: Callable[[Units, int], float]) -> Units:
    """Remove again and again the unit of least value, ties to the higher unit."""
    removed: Units = ()
    while len(removed) < len(layer.group) - 1:
        rest = [unit for unit in range(len(layer.group)) if unit not in removed]
        before = removed
        removed = (*removed, min(rest, key=lambda unit: (value(before, unit), -unit)))
    return removed


def ranked_again(layer: Layer, criterion: str, seed: int) -> Units:
    """Score again after every removal."""
    known: dict[Units, Tensor] = {}

    def value(removed: Units, unit: int) -> float:
        if removed not in known:
            known[removed] = layer.scores(criterion, removed, seed)
        return float(known[removed][unit])

    return greedy(layer, value)


def best_subsets(layer: Layer) -> list[float]:
    """The least loss over all subsets of every size."""
    units = range(len(layer.group))
    return [
        min(layer.loss(subset) for subset in itertools.combinations(units, count))
        for count in units
    ]


def curves(
    layer: Layer, criteria: Sequence[str], seed: int, setting: Setting
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """The loss against units removed, for every way to choose them."""
    found = {"oracle": layer.losses(single_oracle(layer))}
    found["greedy oracle"] = layer.losses(
        greedy(layer, lambda removed, unit: layer.loss((*removed, unit)))
    )
    refused = {}
    for name in criteria:
        try:
            scores = layer.scores(name, (), seed)
        except FedpruneError as reason:
            refused[name] = str(reason)
            continue
        rising = scores.argsort(stable=True).tolist()
        found[f"{name}, once"] = layer.losses(tuple(rising))
        if name in setting.again:
            found[f"{name}, again"] = layer.losses(ranked_again(layer, name, seed))
    if setting.subsets and len(layer.group) <= LARGEST_EXHAUSTIVE:
        found["best subset"] = best_subsets(layer)
    return found, refused


def find_group(layout: pruning.UnitLayout, name: str) -> pruning.UnitGroup:
    """The group called so, or the first one."""
    groups = {group.name: group for group in layout.groups}
    if name and name not in groups:
        raise SystemExit(f"--layer must be one of {', '.join(groups)}, got {name!r}")
    return groups[name] if name else layout.groups[0]


def run(
    setting: Setting, task: study.Problem, seed: int, criteria: Sequence[str], layer: str = ""
) -> dict[str, Any]:
    """Draw the curves of several networks."""
    group = find_group(task.layout, layer)
    seeds = 1 if task.weights else setting.seeds
    every: dict[str, list[list[float]]] = {}
    refused: dict[str, str] = {}
    for number in range(seed, seed + seeds):
        model = study.trained_network(task, number, setting.epochs)
        one = Layer(task, model, group, setting.score_rows)
        found, refused = curves(one, criteria, number, setting)
        for name, losses in found.items():
            every.setdefault(name, []).append(losses)
    rows = {
        name: [study.spread(column) for column in zip(*runs, strict=True)]
        for name, runs in every.items()
    }
    return {"layer": group.name, "units": len(group), "loss": rows, "refused": refused}


def draw(result: dict[str, Any], path: Path) -> None:
    """Loss against units removed."""
    figure, (panel,) = study.panels(1, width=8, height=5)
    for number, (name, rows) in enumerate(result["loss"].items()):
        styles = {"again": "--", "oracle": "-s", "subset": "-D"}
        ending = name.rpartition(" ")[2]
        line = styles.get(ending, "-" if number < len(study.COLOURS) else "-.")
        study.curve(panel, list(range(len(rows))), rows, name, number, line, bars=False)
    panel.set_yscale("log")
    study.label(panel, f"{result['layer']} alone", "units removed", "loss, nats", beside=True)
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write JSON and picture."""
    parser = study.add_criteria(study.add_problem(study.parser(__doc__)))
    parser.add_argument("--layer", default="", help="a group's name (default: the first)")
    arguments = parser.parse_args(argv)
    begun = time.perf_counter()
    setting = SMALL if arguments.small else Setting()
    task = study.asked_problem(arguments)
    found = run(setting, task, arguments.seed, arguments.criteria, arguments.layer)
    result = study.finish(__doc__, arguments, setting, begun, found, draw)
    half = result["units"] // 2
    print(f"loss with {half} of {result['units']} units of {result['layer']} removed")
    for name, rows in result["loss"].items():
        print(f"{name:<28}{study.interval(rows[half])}")


if __name__ == "__main__":
    main()
