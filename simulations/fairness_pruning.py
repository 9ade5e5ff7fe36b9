"""What does federated pruning do to groups of people and of classes, and what helps?

Adult (sex, race, sex x race; an MLP of 96 units) and CIFAR-10 by class (a trained ResNet-20), at
keep fractions 0.5, 0.3 and 0.1: gaps of accuracy, dense and pruned, with intervals; demographic
parity and equalised odds for Adult. Every client scores the units on its own rows and votes for
its own mask (without noise, to see pruning alone); the units with most votes stay; the smaller
network is fine-tuned by federated averaging, a plain loop over clients in this script. Adult's
dense network is trained on all training rows together, CIFAR-10's comes from a file. A fifth of
every client's training rows is held out: the pair of groups to follow, the dual variables and the
test that chooses a keep fraction are decided on them, all figures are those of the test rows.

At keep 0.1 each mitigation is compared with doing nothing, in the growth of the gap that it takes
back and the accuracy that it costs: a client's scores made group-aware (worst group; largest or
mean importance share), a dual variable a group in fine-tuning, both together, and the keep fraction
that fixed-sequence testing accepts. Claims to check: pruning hurts some groups more than others
(Hooker et al. 2019, 2020; Tran et al. 2022), and one of these takes back half of it.

    python simulations/fairness_pruning.py --root DATA --out results/fairness_pruning.json
    python simulations/fairness_pruning.py --root DATA --small --out small.json    # that it runs
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fedprune import __version__, data, fairness, models, pruning
from fedprune.errors import FairnessError
from fedprune.randomness import SimulationRandomness

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
Summary = fairness.FairnessSummary

KEEPS = (0.5, 0.3, 0.1)
HARDEST = 0.1
HELD_OUT = 0.2
WEIGHTS = "weights/resnet20-12fca82f.th"


@dataclass(frozen=True)
class Settings:
    """How one data set is pruned.

    Attributes:
        dataset: name of the data set.
        groupings: what gaps are measured by.
        clients: how many, by a Dirichlet partition of concentration `alpha`.
        train_rows, test_rows: rows used, drawn at random; 0 for all.
        rounds: of fine-tuning, one local epoch each.
        tolerance: excess loss (duals) and growth of the gap (choice of keep) allowed.
        dual_step: of the dual variables.
        resamples: of the bootstrap.
    """

    dataset: str
    groupings: tuple[str, ...]
    clients: int
    alpha: float
    train_rows: int
    test_rows: int
    rounds: int
    batch_size: int
    learning_rate: float
    dense_epochs: int
    tolerance: float
    dual_step: float
    resamples: int = 2000


FULL = (
    Settings("adult", ("sex", "race", "sex x race"), 50, 1.0, 0, 0, 10, 64, 0.05, 8, 0.005, 4.0),
    Settings("cifar10", ("class",), 10, 1.0, 10_000, 0, 20, 64, 0.05, 0, 0.02, 1.0),
)
SMALL = (
    replace(FULL[0], groupings=("sex", "sex x race"), train_rows=6000, rounds=2, dense_epochs=4,
            resamples=500),
    replace(FULL[1], clients=5, train_rows=1500, test_rows=600, rounds=1, resamples=500),
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """Rows in memory with who holds them; groups are columns by name."""

    inputs: Tensor
    labels: Tensor
    clients: Counts
    groups: dict[str, Counts]

    def take(self, places: Counts) -> Part:
        """Copy some rows."""
        index = torch.from_numpy(places)
        return Part(
            self.inputs[index],
            self.labels[index],
            self.clients[places],
            {name: codes[places] for name, codes in self.groups.items()},
        )


@dataclass(frozen=True)
class Problem:
    """One federation: rows to train on, held out and to test on, and the dense network."""

    settings: Settings
    train: Part
    held_out: Part
    test: Part
    names: dict[str, tuple[str, ...]]
    dense: nn.Module
    layout: pruning.UnitLayout
    seed: int
    predictions: WeakKeyDictionary[nn.Module, dict[int, Counts]]

    def known(self, model: nn.Module, part: Part) -> Counts:
        """What a finished network predicts, worked out once."""
        own = self.predictions.setdefault(model, {})
        if id(part) not in own:
            own[id(part)] = predicted(model, part)
        return own[id(part)]


# ------------------------------------------------------------------------------ the federation


def problem(settings: Settings, root: Path, seed: int) -> Problem:
    """Load, divide over clients, hold rows out and get the dense network."""
    dataset = data.load(settings.dataset, root, seed=seed)
    federation = data.partition(
        dataset, "dirichlet", clients=settings.clients, seed=seed, alpha=settings.alpha
    )
    generator = SimulationRandomness(seed, "rows").generator
    parts = {}
    for split, rows, most in (
        ("train", dataset.train, settings.train_rows),
        ("test", dataset.test, settings.test_rows),
    ):
        order, owners = federation.row_order(split), federation.client_ids(split)
        chosen = generator.permutation(len(order))[: most or len(order)]
        index = order[chosen]
        columns = {name: rows.group(name) for name in settings.groupings}
        groups = {name: column.codes[index] for name, column in columns.items()}
        parts[split] = Part(rows.inputs(index), rows.targets(index), owners[chosen], groups)
    cut = int(HELD_OUT * len(parts["train"].labels))  # rows are in random order already
    places = np.arange(len(parts["train"].labels))
    held_out, train = parts["train"].take(places[:cut]), parts["train"].take(places[cut:])
    names = {name: column.names for name, column in columns.items()}
    for name in settings.groupings:
        fairness.check_groups(
            parts["test"].groups[name], names[name], parts["test"].clients, group=name
        )
    dense = dense_network(settings, dataset, train, root, seed)
    layout = pruning.UnitLayout.of(dense, train.inputs[:1])
    known: WeakKeyDictionary[nn.Module, dict[int, Counts]] = WeakKeyDictionary()
    return Problem(settings, train, held_out, parts["test"], names, dense, layout, seed, known)


def dense_network(
    settings: Settings, dataset: data.Dataset, train: Part, root: Path, seed: int
) -> nn.Module:
    """CIFAR-10's from a file, Adult's trained on all training rows together."""
    if settings.dataset == "cifar10":
        return models.load("resnet20", weights=root / WEIGHTS)
    model = models.load(
        "mlp", num_classes=dataset.num_classes, input_shape=dataset.input_shape, seed=seed
    )
    generator = SimulationRandomness(seed, "dense").generator
    rows = np.arange(len(train.labels))
    for epoch in range(settings.dense_epochs):
        rate = 0.2 * (1 - epoch / settings.dense_epochs)
        local_epoch(model, train, rows, None, rate, settings.batch_size, generator)
    return model.eval()


def local_epoch(
    model: nn.Module,
    part: Part,
    places: Counts,
    weights: Tensor | None,
    learning_rate: float,
    batch_size: int,
    generator: np.random.Generator,
) -> None:
    """One epoch of SGD on some rows, each example's loss times its weight."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    shuffled = torch.from_numpy(generator.permutation(places))
    for batch in shuffled.split(batch_size):
        if len(batch) < 2:  # batch norm has no variance of one row
            continue
        losses = functional.cross_entropy(
            model(part.inputs[batch]), part.labels[batch], reduction="none"
        )
        loss = losses.mean() if weights is None else (losses * weights[batch]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    model.eval()


def average_round(
    model: nn.Module, one: Problem, weights: Tensor | None, rate: float, seed: int
) -> None:
    """One round of federated averaging: a local epoch a client, a mean by rows."""
    total: dict[str, Tensor] = {}
    rows = 0
    for client in range(one.settings.clients):
        places = np.flatnonzero(one.train.clients == client)
        if len(places) < 2:
            continue
        local = copy.deepcopy(model)
        generator = SimulationRandomness(one.seed, "round", seed, client).generator
        size = one.settings.batch_size
        local_epoch(local, one.train, places, weights, rate, size, generator)
        for name, value in local.state_dict().items():
            total[name] = (
                total.get(name, torch.zeros_like(value, dtype=torch.float64))
                + len(places) * value.double()
            )
        rows += len(places)
    model.load_state_dict({name: value / rows for name, value in total.items()})


# ------------------------------------------------------------------------------ pruning


def plain_scores(one: Problem) -> Tensor:
    """Scores of every client on all its rows: [clients with rows, units]."""
    ids = torch.from_numpy(one.train.clients)
    return pruning.score_clients(one.dense, one.layout, one.train.inputs, one.train.labels, ids)


@dataclass(frozen=True)
class Importances:
    """Importances of every client in each of its groups, `values` [cells, units], and whose."""

    values: Floats
    holders: Counts

    @classmethod
    def of(cls, one: Problem, grouping: str) -> Importances:
        """Score every client's rows of every group as if they were a client of their own."""
        count = len(one.names[grouping])
        cells = one.train.clients * count + one.train.groups[grouping]
        ids = torch.from_numpy(cells)
        found = pruning.score_clients(
            one.dense, one.layout, one.train.inputs, one.train.labels, ids
        )
        return cls(found.double().numpy(), np.unique(cells) // count)

    def scores(self, combine: Callable[[Floats], Floats]) -> Tensor:
        """Let every client combine its own groups: [clients with rows, units]."""
        clients = np.unique(self.holders)
        rows = [combine(self.values[self.holders == client]) for client in clients]
        return torch.from_numpy(np.stack(rows)).float()


COMBINE: dict[str, Callable[[Floats], Floats]] = {
    "worst group": fairness.worst_group,
    "largest share": fairness.importance_share,
    "mean share": lambda values: fairness.importance_share(values, combine="mean"),
}
# A mitigation: scores, and whether fine-tuning has dual variables.
MITIGATIONS = {
    "none": ("plain", False),
    "worst-group scores": ("worst group", False),
    "largest importance share": ("largest share", False),
    "mean importance share": ("mean share", False),
    "dual variables": ("plain", True),
    "largest share and duals": ("largest share", True),
}


def prune(one: Problem, scores: Tensor, keep: float) -> nn.Module:
    """Let every client vote for its own mask, keep the units with most votes, remove the rest.

    Every layer keeps at least half of its fair share, lest one channel carries a whole network.
    """
    votes = pruning.select_many(scores, one.layout, keep, keep / 2).float().mean(dim=0)
    # Votes tie; the mean rank of a unit over clients decides between equals.
    ranks = scores.argsort(dim=1).argsort(dim=1).float().mean(dim=0) / scores.shape[1]
    mask = pruning.select(
        votes + ranks / (len(scores) + 1), one.layout, keep_units=keep, floor=keep / 2
    )
    return pruning.shrink(one.dense, one.layout, mask)


def fine_tune(one: Problem, pruned: nn.Module, grouping: str, duals: bool) -> nn.Module:
    """Average rounds; with duals, groups that lose too much on held-out rows weigh more."""
    model = copy.deepcopy(pruned)
    codes, settings = one.train.groups[grouping], one.settings
    rows = np.bincount(codes, minlength=len(one.names[grouping]))
    variables = np.zeros(len(rows))
    dense_right = right(one.dense, one.held_out)
    for number in range(settings.rounds):
        weights = None
        if duals:
            excess = excess_losses(dense_right, right(model, one.held_out), one, grouping)
            variables = fairness.dual_step(
                variables, excess, tolerance=settings.tolerance, step=settings.dual_step, largest=1
            )
            by_group = fairness.group_weights(variables, rows)
            weights = torch.from_numpy(by_group[codes]).float()
        rate = settings.learning_rate * (1 - number / settings.rounds)
        average_round(model, one, weights, rate, number)
    return model


def excess_losses(
    dense_right: NDArray[np.bool_], pruned_right: NDArray[np.bool_], one: Problem, grouping: str
) -> Floats:
    """psi_g on held-out rows; NaN for groups under 30 rows."""
    codes = one.held_out.groups[grouping]
    count = len(one.names[grouping])
    table = fairness.GroupTable.from_correct(dense_right, pruned_right, codes, count).counts
    rows = table.sum(axis=(1, 2))
    lost = table[:, 1].sum(axis=1) - table[:, :, 1].sum(axis=1)
    overall = lost.sum() / rows.sum()
    return np.where(rows >= 30, lost / np.maximum(rows, 1) - overall, np.nan)


def right(model: nn.Module, part: Part) -> NDArray[np.bool_]:
    """Which rows a network gets right."""
    return predicted(model, part) == part.labels.numpy()


def predicted(model: nn.Module, part: Part) -> Counts:
    """The class that a network predicts for every row."""
    with torch.inference_mode():
        found = [model.eval()(batch).argmax(dim=1) for batch in part.inputs.split(500)]
    return torch.cat(found).numpy()


# ------------------------------------------------------------------------------ judging


def tables(before: nn.Module, after: nn.Module, part: Part, one: Problem, grouping: str) -> Counts:
    """Count tables of every client."""
    truth = part.labels.numpy()
    return fairness.client_tables(
        one.known(before, part) == truth,
        one.known(after, part) == truth,
        part.groups[grouping],
        part.clients,
        one.settings.clients,
        len(one.names[grouping]),
    )


def judged(before: nn.Module, after: nn.Module, one: Problem, grouping: str) -> Summary:
    """Compare two networks on the test rows; the pair is chosen on held-out rows."""
    return fairness.summarize(
        tables(before, after, one.test, one, grouping),
        one.names[grouping],
        SimulationRandomness(one.seed, "resamples"),
        other=tables(before, after, one.held_out, one, grouping),
        other_name="held-out training rows",
        group=grouping,
        resamples=one.settings.resamples,
    )


def outcomes(after: nn.Module, one: Problem, grouping: str) -> dict[str, Any] | None:
    """Demographic parity and equalised odds, of two-class tasks."""
    if len(torch.unique(one.test.labels)) != 2:
        return None
    found = [
        fairness.client_outcome_tables(
            part.labels,
            one.known(one.dense, part),
            one.known(after, part),
            part.groups[grouping],
            part.clients,
            one.settings.clients,
            len(one.names[grouping]),
        )
        for part in (one.test, one.held_out)
    ]
    return fairness.summarize_outcomes(
        found[0],
        one.names[grouping],
        SimulationRandomness(one.seed, "outcomes"),
        other=found[1],
        other_name="held-out training rows",
        group=grouping,
        resamples=one.settings.resamples,
    ).to_json()


def short(found: Summary) -> dict[str, Any]:
    """The figures of a summary that a table shows."""
    whole = found.to_json()
    kept = ("gap_dense", "gap_pruned", "gap_change", "gap_change_interval", "worst_group",
            "accuracy", "pair", "gap_dense_by_chance", "gap_pruned_by_chance",
            "gap_dense_interval", "gap_pruned_interval", "resampled", "conditional_on")  # fmt: skip
    groups = ("name", "rows", "too_small", "accuracy_dense", "accuracy_pruned", "excess_loss",
              "excess_interval", "excess_simultaneous", "p_holm")  # fmt: skip
    shown = [{key: group[key] for key in groups} for group in whole["groups"]]
    return {key: whole[key] for key in kept} | {"groups": shown}


def run(settings: Settings, root: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Every grouping of one data set at every keep fraction, and the mitigations at 0.1."""
    one = problem(settings, root, seed)
    plain = plain_scores(one)
    cut = {keep: prune(one, plain, keep) for keep in KEEPS}
    tuned = {k: fine_tune(one, model, settings.groupings[0], False) for k, model in cut.items()}
    start = {"dataset": settings.dataset, "seed": seed}
    for grouping in settings.groupings:
        for keep in KEEPS:
            for stage, model in (("cut", cut[keep]), ("fine-tuned", tuned[keep])):
                row = {"what": "pruning", "grouping": grouping, "keep": keep, "stage": stage}
                yield (
                    start
                    | row
                    | {
                        "summary": short(judged(one.dense, model, one, grouping)),
                        "outcomes": outcomes(model, one, grouping) if stage != "cut" else None,
                    }
                )
        importances = Importances.of(one, grouping)
        cut_by = {
            name: prune(one, importances.scores(combine), HARDEST)
            for name, combine in COMBINE.items()
        } | {"plain": cut[HARDEST]}
        for name, (scores, duals) in MITIGATIONS.items():
            model = tuned[HARDEST]
            if name != "none":
                model = fine_tune(one, cut_by[scores], grouping, duals)
            yield start | mitigated(one, grouping, name, model, tuned[HARDEST], HARDEST)
        try:
            yield start | chosen_keep(one, grouping, tuned)
        except FairnessError as error:
            print(f"{settings.dataset} {grouping}: no keep fraction was chosen: {error}")


def mitigated(
    one: Problem, grouping: str, name: str, model: nn.Module, plain: nn.Module, keep: float
) -> dict[str, Any]:
    """One mitigation against the dense network, and against doing nothing on the same rows."""
    found, nothing = (judged(one.dense, after, one, grouping) for after in (model, plain))
    against = judged(plain, model, one, grouping)
    change, base = found.gap_change, nothing.gap_change
    return {
        "what": "mitigation",
        "grouping": grouping,
        "keep": keep,
        "mitigation": name,
        "summary": short(found),
        # The share of the gap's growth taken back; None where nothing had grown.
        "closed": None if not base or base <= 0 or change is None else 1 - change / base,
        "gap_change_without": base,
        "accuracy_gained": against.accuracy.change,
        "accuracy_gained_interval": list(against.accuracy.change_interval),
    }


def chosen_keep(one: Problem, grouping: str, tuned: dict[float, nn.Module]) -> dict[str, Any]:
    """The smallest keep fraction whose gap surely grew by less than the tolerance."""
    tests = {
        keep: fairness.gap_test(
            tables(one.dense, model, one.held_out, one, grouping),
            one.names[grouping],
            SimulationRandomness(one.seed, "tolerance"),
            tolerance=2 * one.settings.tolerance,
            resamples=one.settings.resamples,
        )
        for keep, model in tuned.items()
    }
    choice = fairness.choose_keep(list(tests), [test.p_value for test in tests.values()])
    kept = 1.0 if choice.keep is None else choice.keep
    model = one.dense if choice.keep is None else tuned[choice.keep]
    row = mitigated(one, grouping, "chosen keep fraction", model, tuned[HARDEST], kept)
    return row | {
        "tolerance": 2 * one.settings.tolerance,
        "choice": asdict(choice),
        "tests": {f"{keep:g}": asdict(test) for keep, test in tests.items()},
    }


# ------------------------------------------------------------------------------ telling


def line(row: dict[str, Any]) -> str:
    """One result as text."""
    found = row["summary"]
    if found["gap_change"] is None:
        return f"{row['dataset']} {row['grouping']}: no two groups have 30 rows"
    name = row.get("mitigation", row.get("stage"))
    low, high = found["gap_change_interval"]
    text = (
        f"{row['dataset']:<8}{row['grouping']:<11}{row['keep']:>4g} {name:<25}accuracy "
        f"{100 * found['accuracy']['dense']:5.1f} to {100 * found['accuracy']['pruned']:5.1f}, gap "
        f"{100 * found['gap_dense']:5.1f} to {100 * found['gap_pruned']:5.1f}, pair "
        f"{100 * found['pair']['change']:+5.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    )
    if row["what"] == "mitigation" and row["closed"] is not None:
        text += (
            f", closes {100 * row['closed']:.0f} %, accuracy {100 * row['accuracy_gained']:+.1f}"
        )
    return text


def over_seeds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each mitigation over the seeds: growth of the gap and accuracy, against doing nothing."""
    keys = dict.fromkeys(
        (row["dataset"], row["grouping"], row["mitigation"])
        for row in rows
        if row["what"] == "mitigation" and row["summary"]["gap_change"] is not None
    )
    found = []
    for key in keys:
        own = [
            row
            for row in rows
            if row["what"] == "mitigation"
            and (row["dataset"], row["grouping"], row["mitigation"]) == key
        ]
        change = [row["summary"]["gap_change"] for row in own]
        without = [row["gap_change_without"] for row in own]
        gained = [row["accuracy_gained"] for row in own]
        mean_without = float(np.mean(without))
        found.append(
            {
                "dataset": key[0],
                "grouping": key[1],
                "mitigation": key[2],
                "gap_change": float(np.mean(change)),
                "gap_change_without": mean_without,
                "difference": fairness.paired_difference(change, without)._asdict(),
                "closed": 1 - float(np.mean(change)) / mean_without if mean_without > 0 else None,
                "accuracy_gained": fairness.paired_difference(
                    gained, [0.0] * len(gained)
                )._asdict(),
            }
        )
    return found


def draw(rows: list[dict[str, Any]], seed: int, path: Path) -> None:
    """Growth of the followed pair's difference: by keep fraction, and by mitigation."""
    own = [row for row in rows if row["seed"] == seed and row["summary"]["pair"] is not None]
    kinds = list(dict.fromkeys((row["dataset"], row["grouping"]) for row in own))
    figure = Figure(figsize=(9, 2.4 * max(1, len(kinds))), layout="constrained")
    panels = figure.subplots(max(1, len(kinds)), 2, squeeze=False)
    for (left, middle), kind in zip(panels, kinds, strict=False):
        these = [row for row in own if (row["dataset"], row["grouping"]) == kind]
        cuts = [row for row in these if row.get("stage") == "fine-tuned"]
        bars(left, [label(f"{row['keep']:g}", row) for row in cuts], cuts)
        helped = [row for row in these if row["what"] == "mitigation"]
        names = [
            f"keep {row['keep']:g}, chosen" if "choice" in row else row["mitigation"]
            for row in helped
        ]
        bars(middle, [label(*pair) for pair in zip(names, helped, strict=True)], helped)
        left.set(title=f"{kind[0]} by {kind[1]}", ylabel="keep fraction")
        middle.set(title=f"keep {HARDEST:g}: what helps")
    figure.supxlabel(
        "growth of the followed pair's difference, points, 95 % (accuracy in brackets)", fontsize=9
    )
    figure.savefig(path, dpi=150)


def label(name: str, row: dict[str, Any]) -> str:
    """A name with the accuracy that it comes at."""
    return f"{name} ({100 * row['summary']['accuracy']['pruned']:.1f} %)"


def bars(panel: Any, labels: list[str], rows: list[dict[str, Any]]) -> None:
    """Values with 95 % bars, one a line."""
    values = np.array([100 * row["summary"]["pair"]["change"] for row in rows])
    same = [row["keep"] == 1 for row in rows]  # the dense network itself: nothing changed
    intervals = [row["summary"]["pair"]["interval"] for row in rows]
    ends = 100 * np.array([[0, 0] if s else i for s, i in zip(same, intervals, strict=True)]).T
    places = np.arange(len(rows))
    panel.errorbar(values, places, xerr=np.abs(ends - values), fmt="o", color="#0072b2", ms=4)
    panel.axvline(0, color="#999999", lw=0.8)
    panel.set_yticks(places, labels, fontsize=7)
    panel.invert_yaxis()
    panel.grid(alpha=0.3, axis="x")


def main() -> None:
    """Prune, mitigate, print, write JSON and picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions, the next seeds")
    parser.add_argument("--only", default="", help="adult or cifar10; both where empty")
    parser.add_argument("--rounds", type=int, help="rounds of fine-tuning")
    parser.add_argument(
        "--small",
        action="store_true",
        help="few rows and rounds, under two minutes: that it runs, not what is true",
    )
    parser.add_argument("--out", type=Path, required=True, help="results JSON to write")
    options = parser.parse_args()
    if options.seeds < 1 or (options.rounds is not None and options.rounds < 1):
        parser.error("--seeds and --rounds must be at least 1")
    chosen = [one for one in (SMALL if options.small else FULL) if options.only in one.dataset]
    if not chosen:
        parser.error(f"--only must be adult or cifar10, got {options.only!r}")
    if options.rounds is not None:
        chosen = [replace(one, rounds=options.rounds) for one in chosen]
    seeds = (
        [options.seed] if options.small else list(range(options.seed, options.seed + options.seeds))
    )
    begun, rows = time.perf_counter(), []
    for settings in chosen:
        for seed in seeds:
            for row in run(settings, options.root, seed):
                rows.append(row)
                print(line(row), flush=True)
    flags = "".join(
        (
            " --small" if options.small else f" --seeds {options.seeds}",
            f" --only {options.only}" if options.only else "",
            f" --rounds {options.rounds}" if options.rounds else "",
        )
    )
    result = {
        "question": (__doc__ or "").splitlines()[0],
        "command": "python simulations/fairness_pruning.py --root DATA"
        f" --seed {options.seed}{flags} --out OUT",
        "date": date.today().isoformat(),
        "seed": options.seed,
        "config": {
            "settings": [asdict(one) for one in chosen],
            "keep_units": KEEPS,
            "criterion": "taylor",
            "held_out": HELD_OUT,
            "votes": "without noise, nothing is private: the question is what pruning does",
        },
        "versions": {
            "fedprune": __version__,
            "numpy": np.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": {"system": platform.system(), "processor": platform.machine()},
        "mitigations": over_seeds(rows),
        "rows": rows,
        "seconds": round(time.perf_counter() - begun, 1),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(rows, options.seed, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
