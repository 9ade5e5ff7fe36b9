"""How fast are all clients' scores, beside an ordinary centralised forward and backward pass?

10,000 clients of 5 CIFAR-shaped images on ResNet-20, `score_clients` with the taylor criterion,
against the same images through the same network with weight gradients, batch 250, in training
mode. Both take turns in one process, repeat after repeat, so that the ratio does not depend on
what else the machine does. The ratio must be at least 1.

    python simulations/benchmarks/scoring.py                      # synthetic images
    python simulations/benchmarks/scoring.py --root DATA --weights resnet20-12fca82f.th
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedprune import __version__, data, models, pruning

CENTRAL_BATCH = 250


class Synthetic:
    """CIFAR-shaped noise, kept as bytes and scaled as it is needed."""

    def __init__(self, images: int) -> None:
        """Draw so many images and labels."""
        generator = torch.Generator().manual_seed(0)
        self._bytes = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8,
                                    generator=generator)  # fmt: skip
        self._labels = torch.randint(0, 10, (images,), generator=generator)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._labels)

    def batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Inputs and labels of neighbouring images."""
        return self._bytes[start:stop].float() / 128 - 1, self._labels[start:stop]


class Cifar:
    """The first training images of CIFAR-10."""

    def __init__(self, root: str, images: int) -> None:
        """Read the python batches under `root`."""
        self._rows = data.load("cifar10", root, seed=0).train.take(np.arange(images))

    def __len__(self) -> int:
        """Number of images."""
        return len(self._rows)

    def batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Inputs and labels of neighbouring images."""
        return self._rows.inputs(slice(start, stop)), self._rows.targets(slice(start, stop))


class Part:
    """Neighbouring examples of a source."""

    def __init__(self, source: pruning.Source, start: int, stop: int) -> None:
        """Take the examples from `start` to `stop`."""
        self._source, self._start, self._stop = source, start, stop

    def __len__(self) -> int:
        """Number of images."""
        return self._stop - self._start

    def batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Inputs and labels of neighbouring images."""
        return self._source.batch(self._start + start, self._start + stop)


def central_pass(model: nn.Module, source: pruning.Source) -> float:
    """Images per second of a plain forward and backward pass in training mode."""
    model.train()
    began = time.perf_counter()
    for start in range(0, len(source), CENTRAL_BATCH):
        inputs, labels = source.batch(start, min(start + CENTRAL_BATCH, len(source)))
        model.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()
    return len(source) / (time.perf_counter() - began)


def scoring_pass(
    model: nn.Module, layout: pruning.UnitLayout, source: pruning.Source, per_client: int
) -> tuple[float, Tensor]:
    """Images per second of all clients' scores, and the scores."""
    clients = torch.arange(len(source)) // per_client
    began = time.perf_counter()
    scores = pruning.score_clients(model, layout, source, None, clients)
    return len(source) / (time.perf_counter() - began), scores


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Take turns, one part of the clients at a time, and collect the figures."""
    images = options.clients * options.per_client
    source: pruning.Source
    source = Cifar(options.root, images) if options.root else Synthetic(images)
    model = models.load("resnet20", weights=options.weights, num_classes=10, seed=0)
    trained = models.load("resnet20", weights=options.weights, num_classes=10, seed=0)
    layout = pruning.UnitLayout.of(model, torch.zeros(1, 3, 32, 32))
    warm = Part(source, 0, min(CENTRAL_BATCH, images))
    central_pass(trained, warm)
    scoring_pass(model, layout, warm, options.per_client)
    central, scoring, scores = [], [], []
    clients_each = options.clients // options.repeats
    for repeat in range(options.repeats):
        first = repeat * clients_each * options.per_client
        part = Part(source, first, first + clients_each * options.per_client)
        central.append(central_pass(trained, part))
        speed, rows = scoring_pass(model, layout, part, options.per_client)
        scoring.append(speed)
        scores.append(rows)
        print(f"{repeat + 1}/{options.repeats}: central {central[-1]:.0f}, scoring {speed:.0f} "
              f"images/s", file=sys.stderr)  # fmt: skip
    ratios = [fast / slow for fast, slow in zip(scoring, central, strict=True)]
    return {
        "clients": clients_each * options.repeats,
        "images_per_client": options.per_client,
        "units": len(layout),
        "data": "cifar10" if options.root else "synthetic",
        "central_images_per_second": statistics.median(central),
        "scoring_images_per_second": statistics.median(scoring),
        "ratio": {
            "min": min(ratios),
            "median": statistics.median(ratios),
            "max": max(ratios),
        },
        "scores_shape": list(torch.cat(scores).shape),
        "command": f"python simulations/benchmarks/scoring.py --clients {options.clients} "
        f"--repeats {options.repeats}" + (" --root DATA" if options.root else ""),
        "date": date.today().isoformat(),
        "fedprune": __version__,
        "peak_rss_gib": _peak_rss_bytes() / 2**30,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def _peak_rss_bytes() -> int:
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Measure, print and, if asked, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--per-client", type=int, default=5, help="images of each client")
    parser.add_argument("--repeats", type=int, default=10, help="turns the clients are split into")
    parser.add_argument("--root", default="", help="folder with cifar-10-batches-py; else noise")
    parser.add_argument("--weights", default="", help="weights of ResNet-20; else initial ones")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args()
    if options.clients < options.repeats or min(options.per_client, options.repeats) < 1:
        parser.error("--clients must be at least --repeats, and all counts at least 1")
    figures = measure(options)
    text = json.dumps(figures, indent=2)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
