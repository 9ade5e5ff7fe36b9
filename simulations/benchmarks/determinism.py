"""How many bits of the clients' masks depend on how the clients' scores were computed?

The clients of a scoring round (5 images each, ResNet-20, taylor criterion) are scored in cohorts of
three sizes, on one thread and on several (which is one pass after another, or passes side by
side), in batches of other sizes, and with the examples of all clients mixed. Every way is compared
with the first, all clients at once on one thread: mask bits that differ, and score bits. At most
one mask bit in 100,000 may.

    python simulations/benchmarks/determinism.py --root DATA --weights resnet20-12fca82f.th \\
        --out simulations/results/determinism.json
    python simulations/benchmarks/determinism.py --clients 60          # noise, a quick try

The exit status is 1 if more mask bits differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measuring import command, machine, versions, write
from torch import Tensor

from fedprune import data, models, pruning

TARGET = 1e-5
KEEP_UNITS = 0.5


class Images:
    """Chosen rows, read a batch at a time."""

    def __init__(self, rows: data.Rows, places: np.ndarray) -> None:
        """Take rows and the places to read, in order."""
        self._rows, self._places = rows, places

    def __len__(self) -> int:
        """Number of images."""
        return len(self._places)

    def batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Inputs and labels."""
        places = self._places[start:stop]
        return self._rows.inputs(places), self._rows.targets(places)


def load_rows(root: str, images: int) -> data.Rows:
    """The first training images of CIFAR-10, or noise of their shape."""
    if root:
        return data.load("cifar10", root, seed=0).train.take(np.arange(images))
    random = np.random.default_rng(0)
    drawn = random.integers(0, 256, (images, 3, 32, 32), dtype=np.uint8)
    return data.Rows(drawn, random.integers(0, 10, images), data.Scaling(255.0))


class Scoring:
    """All clients' scores, by one way or another."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Load the network and the images."""
        self._clients, self._each = options.clients, options.per_client
        self._rows = load_rows(options.root, self._clients * self._each)
        self._model = models.load("resnet20", weights=options.weights, num_classes=10, seed=0)
        self.layout = pruning.UnitLayout.of(self._model, torch.zeros(1, 3, 32, 32))

    def cohorts(self, size: int, batch_size: int | None = None) -> Tensor:
        """Scores [clients, units] of one cohort after another, of so many clients each."""
        found = []
        for first in range(0, self._clients, size):
            last = min(first + size, self._clients)
            places = np.arange(first * self._each, last * self._each)
            found.append(self._score(places, batch_size))
        return torch.cat(found)

    def mixed(self) -> Tensor:
        """Scores of all clients at once, their images in any order."""
        return self._score(np.random.default_rng(1).permutation(self._clients * self._each))

    def _score(self, places: np.ndarray, batch_size: int | None = None) -> Tensor:
        clients = torch.from_numpy(places // self._each)
        return pruning.score_clients(
            self._model,
            self.layout,
            Images(self._rows, places),
            None,
            clients,
            batch_size=batch_size,
        )


def ways(scoring: Scoring, options: argparse.Namespace) -> dict[str, Callable[[], Tensor]]:
    """Every way to score, by name; the first is what the others are compared with."""
    found: dict[str, Callable[[], Tensor]] = {}
    for threads in (1, options.threads):
        for size in (options.clients, options.cohort, 1):
            found[f"cohorts of {size}, {threads} threads"] = _with(
                threads, lambda size=size: scoring.cohorts(size)
            )
    for batch_size in (100, 33):
        found[f"batches of {batch_size}, {options.threads} threads"] = _with(
            options.threads, lambda size=batch_size: scoring.cohorts(options.clients, size)
        )
    found[f"images mixed, {options.threads} threads"] = _with(options.threads, scoring.mixed)
    return found


def _with(threads: int, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        torch.set_num_threads(threads)
        return work()

    return run


def difference(found: Tensor, wanted: Tensor, layout: pruning.UnitLayout) -> dict[str, Any]:
    """Mask bits and scores that differ, and by how much the worst score does."""
    masks = [pruning.select_many(one, layout, KEEP_UNITS) for one in (found, wanted)]
    bits = int((masks[0] != masks[1]).sum())
    relative = (found - wanted).abs() / wanted.abs().clamp(min=1e-30)
    return {
        "mask_bits_that_differ": bits,
        "of_mask_bits": masks[0].numel(),
        "share": bits / masks[0].numel(),
        "scores_that_differ": int((found != wanted).sum()),
        "largest_relative_difference": float(relative[found != wanted].max())
        if bool((found != wanted).any())
        else 0.0,
    }


def main() -> None:
    """Compare, print and, if asked, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--per-client", type=int, default=5, help="images of each client")
    parser.add_argument("--cohort", type=int, default=37, help="clients of the middle cohort size")
    parser.add_argument("--threads", type=int, default=2, help="threads, beside one")
    parser.add_argument("--root", default="", help="folder with cifar-10-batches-py; else noise")
    parser.add_argument("--weights", default="", help="weights of ResNet-20; else initial ones")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args()
    if min(options.clients, options.per_client, options.cohort) < 1 or options.threads < 2:
        parser.error("all counts must be at least 1, and --threads at least 2")
    scoring, wanted, found = Scoring(options), None, {}
    for name, work in ways(scoring, options).items():
        scores = work()
        wanted = scores if wanted is None else wanted
        found[name] = difference(scores, wanted, scoring.layout)
        one = found[name]
        print(f"{name:28}{one['mask_bits_that_differ']:>6} of {one['of_mask_bits']} mask bits, "
              f"{one['scores_that_differ']} scores differ")  # fmt: skip
    worst = max(one["share"] for one in found.values())
    print(f"at most {worst:.2g} of the mask bits differ; {TARGET:.0e} may")
    result = {
        "question": (__doc__ or "").splitlines()[0],
        "command": command(sys.argv),
        "date": date.today().isoformat(),
        "seed": 0,
        "config": {k: v for k, v in vars(options).items() if k not in ("out", "root", "weights")}
        | {"keep_units": KEEP_UNITS, "data": "cifar10" if options.root else "noise"},
        "versions": versions(),
        "machine": machine(),
        "target": TARGET,
        "worst_share": worst,
        "ways": found,
    }
    write(options.out, result)
    sys.exit(0 if worst <= TARGET else 1)


if __name__ == "__main__":
    main()
