"""What does a private vote buy on real images, at each epsilon, and what would else have done?

Question: ten thousand clients hold five CIFAR-10 images each, alike (iid) or skewed (Dirichlet,
alpha = 0.3), and vote on which half of a pretrained ResNet-20's units to keep. For every epsilon:
which share of the units that the same clients would keep without noise does the private vote
find, and how accurate is the pruned network after the same federated fine-tuning? Beside it:
votes without noise, randomised response of every bit at the same epsilon (with the exact
composition at delta = 1e-5, which the private vote does not need), magnitude, random.

    python simulations/private_accuracy.py --root DATA --work WORK \
        --out simulations/results/private_accuracy.json

Every (partition, seed) is a file in WORK; a run that was stopped goes on where it was. With
`--only iid` or `--only dirichlet` two processes share the work. Fine-tuning is federated SGD
(McMahan et al. 2017 with one local step): in every round some clients send one gradient each, on
all their rows, with batch norm over the client's own rows; rows weigh alike. That is computed in
one pass over the round's clients.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Iterator, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from fedprune import __version__, data, fairness, models, privacy, pruning
from fedprune.data import Dataset, Federation, Rows
from fedprune.pruning import UnitLayout
from fedprune.randomness import SimulationRandomness

CONFIG: Mapping[str, Any] = {
    "dataset": "cifar10",
    "model": "resnet20",
    "weights": "weights/resnet20-12fca82f.th",
    "clients": 10_000,
    "partitions": ["iid", "dirichlet"],
    "alpha": 0.3,
    "criterion": "taylor",
    "keep_units": 0.5,
    "epsilons": [1.0, 2.0, 4.0, 8.0],
    "bitwise_delta": 1e-5,
    "seeds": [1, 2, 3, 4, 5],
    "rounds": 100,
    "clients_per_round": 20,
    "learning_rate": 0.2,
}
BATCH = 250

Bits = NDArray[np.bool_]
Vector = NDArray[np.float64]


def main() -> None:
    """Do what is not done yet, then write the table and the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of the data and weights")
    parser.add_argument("--work", type=Path, required=True, help="folder of finished parts")
    parser.add_argument("--out", type=Path, help="results JSON to write")
    parser.add_argument("--only", choices=CONFIG["partitions"], help="one partition")
    parser.add_argument("--masks-only", action="store_true", help="stop after the clients' masks")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    study = Study(arguments.root, arguments.work)
    parts = [arguments.only] if arguments.only else CONFIG["partitions"]
    if arguments.masks_only:
        for part, seed in pairs(parts):
            study.masks(part, seed)
        return
    rows = [study.row(part, seed) for part, seed in pairs(parts)]
    result = summarize(rows)
    print(table(result))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        draw(result, arguments.out.with_suffix(".png"))


def pairs(parts: list[str]) -> Iterator[tuple[str, int]]:
    """Every partition with every seed."""
    return ((part, seed) for seed in CONFIG["seeds"] for part in parts)


class Study:
    """The data, the dense network and the folder of finished parts."""

    def __init__(self, root: Path, work: Path) -> None:
        """Load what all seeds share."""
        self.work = work
        self.dataset: Dataset = data.load(CONFIG["dataset"], str(root), seed=0)
        self.dense = models.load(
            CONFIG["model"], weights=str(root / CONFIG["weights"]), num_classes=10
        )
        self.layout = UnitLayout.of(self.dense, torch.zeros(1, 3, 32, 32))
        scores = pruning.score(self.dense, self.layout, [], criterion="magnitude_l2")
        self.magnitude: Vector = scores.double().numpy()
        self.groups = np.asarray(self.layout.group_of, dtype=np.int64)

    def federation(self, part: str, seed: int) -> Federation:
        """Divide the training images."""
        return data.partition(
            self.dataset, part, clients=CONFIG["clients"], seed=seed, alpha=CONFIG["alpha"]
        )

    def masks(self, part: str, seed: int) -> Bits:
        """Every client's mask: [num_clients, num_units] bool."""
        path = self.work / f"masks-{part}-{seed}.npy"
        if not path.exists():
            clients = [self.federation(part, seed).train_index(i) for i in range(CONFIG["clients"])]
            owners = np.repeat(np.arange(len(clients)), [len(rows) for rows in clients])
            source = Places(self.dataset.train, np.concatenate(clients))
            scores = pruning.score_clients(
                self.dense, self.layout, source, None, torch.from_numpy(owners),
                criterion=CONFIG["criterion"],
            )  # fmt: skip
            masks = pruning.select_many(scores, self.layout, keep_units=CONFIG["keep_units"])
            np.save(path, np.packbits(masks.numpy(), axis=1))
            print(f"{part}, seed {seed}: masks", flush=True)
        return np.unpackbits(np.load(path), axis=1, count=len(self.layout)).astype(bool)

    def row(self, part: str, seed: int) -> dict[str, Any]:
        """One seed's figures, from its file if they are there."""
        path = self.work / f"row-{part}-{seed}.json"
        if not path.exists():
            found = self._compute(part, seed)
            path.write_text(json.dumps(found) + "\n", encoding="utf-8")
        return dict(json.loads(path.read_text(encoding="utf-8")))

    def _compute(self, part: str, seed: int) -> dict[str, Any]:
        votes = self.masks(part, seed)
        wanted = self.choose(votes.mean(axis=0))
        federation = self.federation(part, seed)
        methods: dict[str, Any] = {}
        for name, (ranking, facts) in self.rankings(votes, part, seed).items():
            begun = time.perf_counter()
            mask = self.choose(ranking)
            methods[name] = {
                "recall": float((mask & wanted).sum() / wanted.sum()),
                "accuracy": self.tuned_accuracy(mask, federation, seed),
                **facts,
            }
            told = methods[name]
            print(
                f"{part}, seed {seed}, {name}: recall {told['recall']:.3f}, accuracy "
                f"{told['accuracy']:.4f} ({time.perf_counter() - begun:.0f} s)",
                flush=True,
            )
        return {"partition": part, "seed": seed, "methods": methods}

    def rankings(self, votes: Bits, part: str, seed: int) -> dict[str, tuple[Vector, Any]]:
        """What every method ranks the units by."""
        random = SimulationRandomness(seed, "private accuracy", part)
        found: dict[str, tuple[Vector, Any]] = {
            "votes without noise": (votes.mean(axis=0), {}),
            "magnitude": (self.magnitude, {}),
            "random": (random.stream("random").generator.random(len(self.layout)), {}),
        }
        for epsilon in CONFIG["epsilons"]:
            found[f"private, epsilon {epsilon:g}"] = self.private(votes, epsilon, random)
            found[f"bitwise, epsilon {epsilon:g}"] = self.bitwise(votes, epsilon, random)
        return found

    def private(
        self, votes: Bits, epsilon: float, random: SimulationRandomness
    ) -> tuple[Vector, Any]:
        """Threshold randomised response on assigned blocks, with the magnitude prior."""
        mechanism = privacy.ThresholdResponse(epsilon, votes.shape[1])
        label = f"{random.seed} {epsilon}"
        blocks = privacy.assigned_blocks(
            privacy.public_ranks(len(votes), label), mechanism.num_blocks
        )
        streams = [random.stream("threshold", str(epsilon), i) for i in range(len(votes))]
        reports = mechanism.randomize_many(votes, streams, blocks=blocks)
        sums = mechanism.add(mechanism.new_sums(), reports, blocks=blocks)
        return self._posterior(mechanism.estimate_sums(sums, counts="observed"))

    def bitwise(
        self, votes: Bits, epsilon: float, random: SimulationRandomness
    ) -> tuple[Vector, Any]:
        """Warner's response of every bit, composed exactly to (epsilon, 1e-5), with the prior."""
        mechanism = privacy.BitwiseResponse(epsilon, votes.shape[1], delta=CONFIG["bitwise_delta"])
        streams = [random.stream("bitwise", str(epsilon), i) for i in range(len(votes))]
        return self._posterior(mechanism.estimate(mechanism.randomize_many(votes, streams)))

    def _posterior(self, estimate: privacy.VoteEstimate) -> tuple[Vector, Any]:
        ranking = privacy.magnitude_posterior(
            estimate.mean, estimate.variance, self.magnitude, self.groups
        ).mean
        return ranking, {"variance_per_vote": float(estimate.variance.mean())}

    def choose(self, ranking: Vector) -> Bits:
        """Keep the best half."""
        scores = torch.from_numpy(np.array(ranking))
        mask = pruning.select(scores, self.layout, keep_units=CONFIG["keep_units"])
        return np.asarray(mask.numpy(), dtype=bool)

    def tuned_accuracy(self, mask: Bits, federation: Federation, seed: int) -> float:
        """Shrink, fine-tune with federated SGD, and count right answers on all test images."""
        network = pruning.shrink(self.dense, self.layout, torch.from_numpy(mask))
        federated_sgd(network, self.dataset.train, federation, seed)
        right = 0
        network.eval()
        with torch.inference_mode():
            for start in range(0, len(self.dataset.test), BATCH):
                places = np.arange(start, min(start + BATCH, len(self.dataset.test)))
                found = network(self.dataset.test.inputs(places)).argmax(dim=1)
                right += int((found == self.dataset.test.targets(places)).sum())
        return right / len(self.dataset.test)


class Places:
    """Rows at given places, read a batch at a time."""

    def __init__(self, rows: Rows, places: NDArray[np.int64]) -> None:
        """Take rows and places [n]."""
        self._rows, self._places = rows, places

    def __len__(self) -> int:
        """Count the rows."""
        return len(self._places)

    def batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Read inputs and labels."""
        places = self._places[start:stop]
        return self._rows.inputs(places), self._rows.targets(places)


class ClientBatchNorm(nn.Module):
    """Batch norm over each client's rows of a batch that holds several clients' rows.

    A client with one row has no spread of its own and uses the running statistics; these move by
    the clients' own statistics, weighed by rows.
    """

    def __init__(self, inner: nn.BatchNorm2d) -> None:
        """Wrap a layer; `owners` [rows] says whose each row is, `sizes` [clients] how many."""
        super().__init__()
        self.inner = inner
        self.owners, self.sizes = torch.zeros(0, dtype=torch.int64), torch.zeros(0)

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise [rows, channels, height, width]."""
        inner = self.inner
        if not self.training:
            return inner(inputs)
        count = (self.sizes * inputs.shape[2] * inputs.shape[3])[:, None]
        mean = self._sum(inputs) / count
        centred = inputs - mean[self.owners][:, :, None, None]
        variance = self._sum(centred * centred) / count
        alone = (self.sizes == 1)[:, None]
        self._move(mean, variance * count / (count - 1).clamp(min=1), ~alone)
        mean = torch.where(alone, inner.running_mean, mean)
        variance = torch.where(alone, inner.running_var, variance)
        scale = (variance + inner.eps).rsqrt() * inner.weight
        shift = inner.bias - mean * scale
        per_row = scale[self.owners][:, :, None, None], shift[self.owners][:, :, None, None]
        return inputs * per_row[0] + per_row[1]

    def _sum(self, values: Tensor) -> Tensor:
        start = torch.zeros(len(self.sizes), values.shape[1])
        return start.index_add(0, self.owners, values.sum((2, 3)))

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor, several: Tensor) -> None:
        share = (self.sizes / self.sizes.sum())[:, None] * several * self.inner.momentum
        for running, own in ((self.inner.running_mean, mean), (self.inner.running_var, variance)):
            running += (share * (own - running)).sum(dim=0)


def federated_sgd(network: nn.Module, rows: Rows, federation: Federation, seed: int) -> None:
    """Fine-tune in place; participants depend on the seed alone, so that masks compare."""
    norms = with_client_norms(network)
    generator = SimulationRandomness(seed, "participants").generator
    optimizer = torch.optim.SGD(network.parameters(), lr=CONFIG["learning_rate"])
    network.train()
    for done in range(CONFIG["rounds"]):
        chosen = sorted(generator.permutation(CONFIG["clients"])[: CONFIG["clients_per_round"]])
        parts = [federation.train_index(int(client)) for client in chosen]
        sizes = torch.tensor([len(part) for part in parts])
        for norm in norms:
            norm.owners = torch.repeat_interleave(torch.arange(len(parts)), sizes)
            norm.sizes = sizes.float()
        places = np.concatenate(parts)
        step = 0.5 * CONFIG["learning_rate"] * (1 + np.cos(np.pi * done / CONFIG["rounds"]))
        for group in optimizer.param_groups:
            group["lr"] = float(step)
        loss = nn.functional.cross_entropy(network(rows.inputs(places)), rows.targets(places))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def with_client_norms(network: nn.Module) -> list[ClientBatchNorm]:
    """Replace every batch norm by one over each client's own rows."""
    found = []
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                found.append(ClientBatchNorm(child))
                setattr(module, name, found[-1])
    return found


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds with Student-t intervals, and paired differences to magnitude."""
    cells = []
    for part in dict.fromkeys(row["partition"] for row in rows):
        own = [row["methods"] for row in rows if row["partition"] == part]
        magnitude = [methods["magnitude"]["accuracy"] for methods in own]
        for name in own[0]:
            accuracy = [methods[name]["accuracy"] for methods in own]
            recall = [methods[name]["recall"] for methods in own]
            cell = {"partition": part, "method": name}
            cell |= {"recall": interval(recall), "accuracy": interval(accuracy)}
            if name != "magnitude":
                cell["minus_magnitude"] = difference(accuracy, magnitude)
            if "variance_per_vote" in own[0][name]:
                spread = [methods[name]["variance_per_vote"] for methods in own]
                cell["variance_per_vote"] = statistics.mean(spread)
            cells.append(cell)
    return {
        "question": (__doc__ or "").splitlines()[0],
        "command": "python simulations/private_accuracy.py --root DATA --work WORK "
        "--out simulations/results/private_accuracy.json",
        "privacy": "epsilon of each client's mask report, delta = 0 (bitwise: delta = 1e-5); unit: "
        "one client; relation: any change of one client's whole data; trusted: nobody",
        "intervals": "95 %, Student-t over seeds",
        "date": date.today().isoformat(),
        "config": dict(CONFIG),
        "versions": {
            "fedprune": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "torch", "torchvision")},
        },
        "cells": cells,
        "rows": rows,
    }


def interval(values: list[float]) -> dict[str, float]:
    """Mean with its interval."""
    return difference(values, [0.0] * len(values))


def difference(values: list[float], others: list[float]) -> dict[str, float]:
    """Mean of paired differences with its interval."""
    found = fairness.paired_difference(values, others, 0.95)
    return {"mean": found.mean, "low": found.low, "high": found.high}


def table(result: dict[str, Any]) -> str:
    """One line a method."""
    lines = [f"{'partition':<10} {'method':<22} {'recall':<22} {'accuracy':<22} minus magnitude"]
    for cell in result["cells"]:
        parts = [cell["recall"], cell["accuracy"], cell.get("minus_magnitude")]
        texts = [f"{p['mean']:.3f} [{p['low']:.3f}, {p['high']:.3f}]" if p else "" for p in parts]
        lines.append(
            f"{cell['partition']:<10} {cell['method']:<22} " + " ".join(f"{t:<22}" for t in texts)
        )
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """Recall and accuracy against epsilon; lines without epsilon are dashed."""
    parts = list(dict.fromkeys(cell["partition"] for cell in result["cells"]))
    figure = Figure(figsize=(8, 3.2 * len(parts)), layout="constrained")
    panels = figure.subplots(len(parts), 2, squeeze=False, sharex=True)
    for line, part in zip(panels, parts, strict=True):
        cells = {c["method"]: c for c in result["cells"] if c["partition"] == part}
        for panel, what in zip(line, ("recall", "accuracy"), strict=True):
            for name, colour in (("private", "#0072b2"), ("bitwise", "#d55e00")):
                found = [cells[f"{name}, epsilon {e:g}"][what] for e in CONFIG["epsilons"]]
                means = [f["mean"] for f in found]
                spread = [
                    [f["mean"] - f["low"] for f in found],
                    [f["high"] - f["mean"] for f in found],
                ]
                panel.errorbar(
                    CONFIG["epsilons"], means, yerr=spread, marker="o", capsize=3, color=colour,
                    label="threshold response" if name == "private" else "every bit, (ε, 1e-5)",
                )  # fmt: skip
            for name, colour in (
                ("votes without noise", "#009e73"), ("magnitude", "#555555"), ("random", "#bbbbbb")
            ):  # fmt: skip
                panel.axhline(cells[name][what]["mean"], linestyle="--", color=colour, label=name)
            panel.set_xscale("log", base=2)
            panel.set_xticks(CONFIG["epsilons"], [f"{e:g}" for e in CONFIG["epsilons"]])
            panel.set_ylabel(what)
            panel.set_title(part, size=9)
            panel.grid(alpha=0.3)
    for panel in panels[-1]:
        panel.set_xlabel("ε per client (mask report)")
    panels[0][0].legend(fontsize=7)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
