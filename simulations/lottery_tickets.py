"""Do the weights that training leaves large form a ticket that wins from its old start only?

Frankle & Carbin 2019, "The Lottery Ticket Hypothesis": train, remove the smallest weights, give the
rest their values of the initialisation, train again, and so on; the sparse network learns as well
as the dense one down to a few percent of the weights, and worse from another initialisation.
Frankle et al. 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis": for larger
networks the values of step k, early in training, are the better start.

Every ticket is trained from
- `initialisation`: its own initial values,
- `step k`: its values early in training,
- `reinitialised`: new random values under the same masks,
- `shuffled`: its own initial values under masks shuffled within each layer (weights only).

Three settings: single weights of a network trained in one place; units of the same network, where
the masks are physically smaller networks; and the federated one, where "training" is rounds of
averaging over clients with their own skewed rows and the server prunes the average by magnitude.
The claim: at the smallest fractions of weights, initialisation and step k are above reinitialised
and shuffled; for units the difference is small (Liu et al. 2019, "Rethinking the Value of Network
Pruning").

    python simulations/lottery_tickets.py --small --out OUT.json
    python simulations/lottery_tickets.py --out simulations/results/lottery_tickets.json
    python simulations/lottery_tickets.py --model lenet --dataset fashion-mnist --root DATA \\
        --rows 10000 --out OUT.json
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _study as study
import torch
from torch import Tensor, nn

from fedprune import data, pruning
from fedprune.pruning import weights
from fedprune.randomness import SimulationRandomness

Train = Callable[[nn.Module, weights.StudyMasks | None], nn.Module]
Start = Mapping[str, Tensor]
ERASED = 1000  # added to a network's seed for values that have nothing to do with its own


@dataclass(frozen=True)
class Setting:
    """Sizes of the study.

    Attributes:
        seeds: networks.
        epochs: of every training in one place.
        early_steps: k, in minibatches, of the second start.
        keep_weights: smallest fraction of single weights.
        keep_units: smallest fraction of units.
        rounds: of pruning down to them, geometric.
        clients: of the federated setting, Dirichlet-skewed with `alpha`.
        alpha: of the skew.
        averaging_rounds: of every federated training.
        early_rounds: k, in rounds, of the second federated start.
        cohort: clients in a round.
        local_epochs: of each of them.
    """

    seeds: int = 5
    epochs: float = 20
    early_steps: int = 20
    keep_weights: float = 0.01
    keep_units: float = 0.1
    rounds: int = 8
    clients: int = 30
    alpha: float = 0.3
    averaging_rounds: int = 20
    early_rounds: int = 2
    cohort: int = 10
    local_epochs: float = 2


SMALL = Setting(seeds=3, epochs=6, rounds=3, keep_weights=0.02, averaging_rounds=8,
                early_rounds=1, cohort=5, clients=12)  # fmt: skip


def centrally(setting: Setting, task: study.Problem, seed: int) -> tuple[Train, Start]:
    """Training in one place, and the values of step k."""

    def learn(model: nn.Module, masks: weights.StudyMasks | None) -> nn.Module:
        return study.train(
            model, task.inputs, task.labels, epochs=setting.epochs, seed=seed, masks=masks
        )

    early: list[Start] = []

    def remember(done: int, model: nn.Module) -> None:
        if done == setting.early_steps:
            early.append(pruning.snapshot(model))

    steps = setting.early_steps / math.ceil(len(task.inputs) / 32)
    study.train(
        task.fresh(seed), task.inputs, task.labels, epochs=steps, seed=seed, shape="constant",
        after_step=remember,
    )  # fmt: skip
    return learn, early[0]


def federated(setting: Setting, task: study.Problem, seed: int) -> tuple[Train, Start]:
    """Rounds of averaging over clients, and the values after the first k rounds."""
    held = clients_rows(setting, task, seed)

    def learn(
        model: nn.Module, masks: weights.StudyMasks | None, rounds: int | None = None
    ) -> nn.Module:
        present = model
        for number in range(setting.averaging_rounds if rounds is None else rounds):
            draws = SimulationRandomness(seed, "cohort", number).generator
            cohort = draws.permutation(len(held))[: setting.cohort].tolist()
            present = average(
                [local(setting, task, present, masks, held[one], seed + number) for one in cohort],
                [len(held[one]) for one in cohort],
            )
        return present

    return learn, pruning.snapshot(learn(task.fresh(seed), None, setting.early_rounds))


def clients_rows(setting: Setting, task: study.Problem, seed: int) -> list[Tensor]:
    """Which training rows each client holds."""
    rows = data.from_arrays(
        "rows", train=(task.inputs.numpy(), task.labels.numpy()),
        test=(task.test_inputs.numpy(), task.test_labels.numpy()), num_classes=task.num_classes,
    )  # fmt: skip
    divided = data.partition(
        rows, "dirichlet", clients=setting.clients, seed=seed, alpha=setting.alpha
    )
    return [torch.from_numpy(divided.train_index(one)) for one in range(setting.clients)]


def local(
    setting: Setting, task: study.Problem, model: nn.Module, masks: weights.StudyMasks | None,
    rows: Tensor, seed: int,
) -> nn.Module:  # fmt: skip
    """What one client makes of the present average."""
    return study.train(
        model, task.inputs[rows], task.labels[rows], epochs=setting.local_epochs, seed=seed,
        masks=masks, batch_size=8, rate=0.05, shape="constant",
    )  # fmt: skip


def average(trained: list[nn.Module], rows: list[int]) -> nn.Module:
    """The mean of the clients' networks, weighted by their rows (McMahan et al. 2017)."""
    mean = copy.deepcopy(trained[0])
    states = [one.state_dict() for one in trained]
    shares = torch.tensor(rows, dtype=torch.float64) / sum(rows)
    with torch.no_grad():
        for name, tensor in mean.state_dict().items():
            stacked = torch.stack([state[name].double() for state in states])
            tensor.copy_(torch.tensordot(shares, stacked, dims=1))
    return mean


def weight_tickets(
    setting: Setting, task: study.Problem, learn: Train, early: Start, seed: int
) -> Iterator[tuple[str, float, float]]:
    """Start, fraction of the weights, and test accuracy, for every ticket of single weights."""
    first = task.fresh(seed)
    fractions = pruning.keep_fractions("geometric", setting.rounds, setting.keep_weights)
    generator = torch.Generator().manual_seed(seed)
    other = task.fresh(seed + ERASED)
    tickets = {
        name: weights.iterative_magnitude_pruning(first, learn, fractions, rewind_to=state)
        for name, state in (("initialisation", pruning.snapshot(first)), ("step k", early))
    }
    for name, found in tickets.items():
        yield name, 1.0, reached(task, found[0].trained)
        for ticket in found:
            yield name, ticket.masks.keep_weights, reached(task, learn(ticket.start, ticket.masks))
    for ticket in tickets["initialisation"]:
        masks = {"reinitialised": (other, ticket.masks)}
        masks["shuffled"] = (first, weights.random_masks_like(ticket.masks, generator))
        for name, (begin, kept) in masks.items():
            accuracy = reached(task, learn(weights.apply_masks(begin, kept), kept))
            yield name, kept.keep_weights, accuracy


def unit_tickets(
    setting: Setting, task: study.Problem, learn: Train, early: Start, seed: int
) -> Iterator[tuple[str, float, float]]:
    """The same for units, by magnitude over the whole network; tickets are smaller networks."""
    first, other = task.fresh(seed), task.fresh(seed + ERASED)
    starts = {"initialisation": pruning.snapshot(first), "step k": early}
    fractions = pruning.keep_fractions("geometric", setting.rounds, setting.keep_units)
    for name, state in starts.items():
        mask = torch.ones(len(task.layout), dtype=torch.bool)
        trained = learn(first, None)
        yield name, 1.0, reached(task, trained)
        for fraction in fractions:
            before, mask = mask, next_mask(task, trained, mask, fraction)
            trained = learn(pruning.rewind(first, state, task.layout, mask, shrunk=True), None)
            yield name, float(mask.float().mean()), reached(task, trained)
            if name == "initialisation" and bool((mask != before).any()):
                again = pruning.rewind(
                    first, pruning.snapshot(other), task.layout, mask, shrunk=True
                )
                yield "reinitialised", float(mask.float().mean()), reached(task, learn(again, None))


def next_mask(task: study.Problem, trained: nn.Module, mask: Tensor, fraction: float) -> Tensor:
    """Keep the units of largest weights among those that are left."""
    layout = pruning.UnitLayout.of(trained, task.inputs[:2])
    scores = torch.full((len(task.layout),), -torch.inf)
    scores[mask] = pruning.score(trained, layout, [], "magnitude")
    return pruning.select(scores, task.layout, keep_units=fraction)


def reached(task: study.Problem, model: nn.Module) -> float:
    """Test accuracy."""
    return study.accuracy(model, task.test_inputs, task.test_labels)


def run(setting: Setting, task: study.Problem, seed: int) -> dict[str, Any]:
    """All three settings over several networks."""
    found: dict[tuple[str, str, float], list[float]] = {}
    for number in range(seed, seed + setting.seeds):
        central = centrally(setting, task, number)
        averaged = federated(setting, task, number)
        every = (
            ("weights", weight_tickets(setting, task, *central, number)),
            ("units", unit_tickets(setting, task, *central, number)),
            ("federated weights", weight_tickets(setting, task, *averaged, number)),
        )
        for what, tickets in every:
            for start, fraction, accuracy in tickets:
                found.setdefault((what, start, round(fraction, 4)), []).append(accuracy)
    rows = [
        {"setting": what, "start": start, "kept": fraction, **study.spread(values)}
        for (what, start, fraction), values in found.items()
    ]
    return {"rows": rows}


def draw(result: dict[str, Any], path: Path) -> None:
    """Accuracy against the fraction kept, in the three settings."""
    settings = list(dict.fromkeys(row["setting"] for row in result["rows"]))
    figure, places = study.panels(len(settings), width=4.2)
    for panel, what in zip(places, settings, strict=True):
        for number, start in enumerate(("initialisation", "step k", "reinitialised", "shuffled")):
            rows = [r for r in result["rows"] if (r["setting"], r["start"]) == (what, start)]
            rows.sort(key=lambda row: row["kept"])
            if rows:
                study.curve(panel, [row["kept"] for row in rows], rows, start, number)
        panel.set_xscale("log")
        study.label(panel, what, "fraction kept", "test accuracy")
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write JSON and picture."""
    arguments = study.add_problem(study.parser(__doc__), "mlp").parse_args(argv)
    begun = time.perf_counter()
    setting = SMALL if arguments.small else Setting()
    found = run(setting, study.asked_problem(arguments), arguments.seed)
    result = study.finish(__doc__, arguments, setting, begun, found, draw)
    for row in sorted(result["rows"], key=lambda r: (r["setting"], -r["kept"], r["start"])):
        print(
            f"{row['setting']:<18} kept {row['kept']:<7g} {row['start']:<15} {study.interval(row)}"
        )


if __name__ == "__main__":
    main()
