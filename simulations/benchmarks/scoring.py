"""How fast are all clients' scores, beside an ordinary centralised forward and backward pass?

10,000 clients of 5 CIFAR-shaped images on ResNet-20, taylor criterion, by several ways:

- central: the same images with weight gradients, batch 250, training mode, torch's own threads;
- scoring: `score_clients`, in float32;
- bfloat16: the same with convolutions and products in bfloat16;
- one by one: one call of `score` a client, for a tenth of the clients;
- plain evaluation: a forward pass in evaluation mode, batch 250, torch's own threads;
- evaluation: `correct_predictions`;
- flower, local: a whole report round of the app on Flower's own engine (Ray) and on the local one,
  on fewer clients and on warm processes; the rate for an image is compared.

All take turns in one process run, repeat after repeat, so that ratios do not depend on what else
the machine does. The floor is the arithmetic that nothing can avoid, a forward pass and the
gradients of all inputs but the network's own, at the highest rate that a large product or
convolution reaches on this machine.

    python simulations/benchmarks/scoring.py --out simulations/results/scoring.json
    python simulations/benchmarks/scoring.py --root DATA --weights resnet20-12fca82f.th
    python simulations/benchmarks/scoring.py --clients 500 --repeats 5 --flower-clients 0   # a try
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measuring import command, machine, spread, versions, write
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from fedprune import data, hardware, models, pruning
from fedprune.runs import RunFolder

CENTRAL_BATCH = 250
HOST = torch.device("cpu")
KEEP_UNITS = 0.5
CLIENTS_VARIABLE, IMAGES_VARIABLE = "SCORING_CLIENTS", "SCORING_IMAGES"
TARGETS = {"scoring / central": 1.6, "bfloat16 / central": 2.2, "scoring / flower": 2.5,
           "bfloat16 votes' mask": pruning.LEAST_KEPT}  # fmt: skip


def noise(images: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw CIFAR-shaped images, as bytes, and labels."""
    random = np.random.default_rng(0)
    drawn = random.integers(0, 256, (images, 3, 32, 32), dtype=np.uint8)
    return drawn, random.integers(0, 10, images)


def rows(root: str | Path, *, seed: int) -> data.Dataset:
    """The noise that the app's engines score, so many images a client."""
    del root, seed
    images = int(os.environ[CLIENTS_VARIABLE]) * int(os.environ[IMAGES_VARIABLE])
    return data.from_arrays(
        "noise",
        train=noise(images),
        test=noise(100),
        num_classes=10,
        scaling=data.Scaling(255.0, (0.5,) * 3, (0.25,) * 3),
    )


class Part:
    """Neighbouring rows."""

    def __init__(self, held: data.Rows, start: int, stop: int) -> None:
        """Take the rows from `start` to `stop`."""
        self._rows, self._start, self._stop = held, start, stop

    def __len__(self) -> int:
        """Number of images."""
        return self._stop - self._start

    def batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Inputs and labels of neighbouring images."""
        places = slice(self._start + start, min(self._start + stop, self._stop))
        return self._rows.inputs(places), self._rows.targets(places)


def load_rows(root: str, images: int) -> data.Rows:
    """The first training images of CIFAR-10, or noise."""
    if root:
        return data.load("cifar10", root, seed=0).train.take(np.arange(images))
    drawn, labels = noise(images)
    return data.Rows(drawn, labels, data.Scaling(255.0, (0.5,) * 3, (0.25,) * 3))


def central_pass(model: nn.Module, source: pruning.Source) -> None:
    """A plain forward and backward pass in training mode."""
    model.train()
    for start in range(0, len(source), CENTRAL_BATCH):
        inputs, labels = source.batch(start, start + CENTRAL_BATCH)
        model.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()


def plain_evaluation(model: nn.Module, source: pruning.Source) -> None:
    """A plain forward pass in evaluation mode."""
    model.eval()
    with torch.no_grad():
        for start in range(0, len(source), CENTRAL_BATCH):
            inputs, labels = source.batch(start, start + CENTRAL_BATCH)
            (model(inputs).argmax(1) == labels).sum()


class Ways:
    """The ways to go over a part of the clients, and what the scores were."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Load the network twice: one copy is put in training mode, over and over."""
        self.per_client = options.per_client
        self.model, self._other = (
            models.load("resnet20", weights=options.weights, num_classes=10, seed=0)
            for _ in range(2)
        )
        self.layout = pruning.UnitLayout.of(self.model, torch.zeros(1, 3, 32, 32))
        self.precisions = [p for p in ("float32", "bfloat16") if pruning.has_instructions(p, HOST)]
        self.scores: dict[str, list[Tensor]] = {name: [] for name in self.precisions}

    def all(self) -> dict[str, Callable[[Part], int]]:
        """Every way: it goes over a part and says how many images it did."""
        found: dict[str, Callable[[Part], int]] = {
            "central": lambda part: self._whole(part, lambda: central_pass(self._other, part)),
            "scoring": lambda part: self._whole(part, lambda: self._score(part, "float32")),
            "bfloat16": lambda part: self._whole(part, lambda: self._score(part, "bfloat16")),
            "one by one": self._one_by_one,
            "plain evaluation": lambda part: self._whole(
                part, lambda: plain_evaluation(self._other, part)
            ),
            "evaluation": lambda part: self._whole(
                part, lambda: pruning.correct_predictions(self.model, self.layout, part)
            ),
        }
        if "bfloat16" not in self.precisions:
            del found["bfloat16"]
        return found

    def _whole(self, part: Part, work: Callable[[], object]) -> int:
        work()
        return len(part)

    def _score(self, part: Part, precision: str) -> None:
        clients = torch.arange(len(part)) // self.per_client
        self.scores[precision].append(
            pruning.score_clients(self.model, self.layout, part, None, clients, precision=precision)
        )

    def _one_by_one(self, part: Part) -> int:
        clients = max(1, len(part) // self.per_client // 10)
        for client in range(clients):
            batch = part.batch(client * self.per_client, (client + 1) * self.per_client)
            pruning.score(self.model, self.layout, [batch])
        return clients * self.per_client

    def masks_kept(self) -> dict[str, float] | None:
        """What bfloat16 keeps of float32's masks, over all clients that were scored."""
        if "bfloat16" not in self.precisions:
            return None
        exact, reduced = (torch.cat(self.scores[name]) for name in ("float32", "bfloat16"))
        own = [pruning.select_many(one, self.layout, KEEP_UNITS) for one in (exact, reduced)]
        votes = [
            pruning.select(masks.float().mean(0), self.layout, keep_units=KEEP_UNITS)
            for masks in own
        ]
        return {
            "keep_units": KEEP_UNITS,
            "clients": len(exact),
            "votes_mask": float((votes[0] & votes[1]).sum() / votes[0].sum()),
            "clients_own_masks": float((own[0] & own[1]).sum() / own[0].sum()),
        }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Take turns, one part of the clients at a time, and collect images per second."""
    ways = Ways(options)
    each = options.clients // options.repeats * options.per_client
    held = load_rows(options.root, each * options.repeats)
    warm = Part(held, 0, min(CENTRAL_BATCH, len(held)))
    for work in ways.all().values():
        work(warm)
    ways.scores = {name: [] for name in ways.scores}
    speeds: dict[str, list[float]] = {name: [] for name in ways.all()}
    peaks: list[dict[str, float]] = []
    for repeat in range(options.repeats):
        part = Part(held, repeat * each, (repeat + 1) * each)
        for name, work in ways.all().items():
            begun = time.perf_counter()
            images = work(part)
            speeds[name].append(images / (time.perf_counter() - begun))
        for engine in ("local", "flower") if options.flower_clients else ():
            speeds.setdefault(engine, []).append(report_round(engine, options))
        peaks.append(peak_rates(ways.precisions))
        last = {name: round(values[-1]) for name, values in speeds.items()}
        print(f"{repeat + 1}/{options.repeats}: {last}", file=sys.stderr)
    return summary_of(options, ways, speeds, peaks)


def report_round(engine: str, options: argparse.Namespace) -> float:
    """Images per second of a report round of the app, after a training round that warms it up."""
    settings = (
        "data.dataset=scoring:rows",
        f"data.clients={options.flower_clients}",
        "model.name=resnet20",
        "train.rounds=1",
        f"train.clients_per_round={options.flower_clients}",
        "train.local_epochs=1",
        "train.fine_tune_rounds=0",
        "evaluate.seeds=1",
        "evaluate.baselines=false",
        "evaluate.tables=off",
        "evaluate.certified_rows=1",
        "evaluate.resamples=100",
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        command = [sys.executable, "-m", "fedprune", "simulate", "--json", "--engine", engine]
        command += ["--out", str(folder)]
        command += [word for setting in settings for word in ("--set", setting)]
        here = str(Path(__file__).resolve().parent)  # where "scoring:rows" is found
        done = subprocess.run(command, cwd=here, stdout=subprocess.DEVNULL, check=False)
        seconds = {e["phase"]: float(e["seconds"]) for e in RunFolder.open(folder).events()}
    if "vote-1" not in seconds:
        sys.exit(f"the {engine} engine failed with exit status {done.returncode}")
    return float(options.flower_clients * options.per_client / seconds["vote-1"])


def peak_rates(precisions: Sequence[str]) -> dict[str, float]:
    """Operations per second, in 10^9, of a large product and a large convolution."""
    found: dict[str, float] = {}
    for name in precisions:
        dtype = pruning.PRECISIONS[name]
        left, right = (torch.ones(2048, 2048, dtype=dtype) for _ in range(2))
        images = torch.ones(32, 256, 32, 32, dtype=dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        kernel = torch.ones(256, 256, 3, 3, dtype=dtype)
        product = rate(2 * 2048**3, lambda a=left, b=right: a @ b)
        convolution = rate(
            2 * 32 * 32 * 32 * 256 * 256 * 9,
            lambda x=images, k=kernel: functional.conv2d(x, k, padding=1),
        )
        found[name] = max(product, convolution)
    return found


def rate(operations: int, work: Callable[[], object]) -> float:
    """The highest of four tries, in 10^9 operations per second."""
    seconds = []
    for _ in range(4):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return operations / min(seconds) / 1e9


def operations_an_image(model: nn.Module) -> int:
    """Forward and input gradients: twice the forward pass, less the first layer's second half."""
    macs = hardware.cost(model, torch.zeros(1, 3, 32, 32)).macs
    first = hardware.cost(nn.Sequential(model.get_submodule("conv1")), torch.zeros(1, 3, 32, 32))
    return 2 * (2 * macs - first.macs)


def where_time_goes(ways: Ways, held: Part) -> list[dict[str, Any]]:
    """Share of a float32 scoring pass on one thread, by operator, the largest first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    clients = torch.arange(len(held)) // ways.per_client
    try:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            pruning.score_clients(ways.model, ways.layout, held, None, clients)
    finally:
        torch.set_num_threads(threads)
    found = [(event.key, event.self_cpu_time_total) for event in profiler.key_averages()]
    total = sum(spent for _, spent in found)
    largest = sorted(found, key=lambda one: -one[1])[:12]
    return [{"operator": name, "share": round(spent / total, 4)} for name, spent in largest]


def summary_of(
    options: argparse.Namespace,
    ways: Ways,
    speeds: dict[str, list[float]],
    peaks: list[dict[str, float]],
) -> dict[str, Any]:
    """Spreads, the ratios of every repeat, and the distance to the floor."""
    pairs = [("scoring", "central"), ("bfloat16", "central"), ("scoring", "one by one"),
             ("evaluation", "plain evaluation"), ("scoring", "flower"),
             ("local", "flower")]  # fmt: skip
    held = load_rows(options.root, 500)
    operations = operations_an_image(ways.model)
    floors = {
        name: max(peak[name] for peak in peaks) * 1e9 / operations for name in ways.precisions
    }
    way = {"float32": "scoring", "bfloat16": "bfloat16"}
    share = {name: statistics.median(speeds[way[name]]) / floors[name] for name in floors}
    return {
        "question": (__doc__ or "").splitlines()[0],
        "command": command(sys.argv),
        "date": date.today().isoformat(),
        "seed": 0,
        "config": {k: v for k, v in vars(options).items() if k not in ("out", "root", "weights")}
        | {"units": len(ways.layout), "data": "cifar10" if options.root else "noise"},
        "versions": versions(),
        "machine": machine()
        | {
            "torch_threads": torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
        },
        "targets": TARGETS,
        "images_per_second": {name: spread(values) for name, values in speeds.items()},
        "ratios": {
            f"{fast} / {slow}": spread(
                [a / b for a, b in zip(speeds[fast], speeds[slow], strict=True)]
            )
            for fast, slow in pairs
            if fast in speeds and slow in speeds
        },
        "bfloat16_keeps": ways.masks_kept(),
        "floor": {
            "operations_an_image": operations,
            "peak_gflops": {name: spread([peak[name] for peak in peaks]) for name in floors},
            "images_per_second": {name: round(value, 1) for name, value in floors.items()},
            "share_reached": {name: round(value, 3) for name, value in share.items()},
        },
        "where_time_goes": where_time_goes(ways, Part(held, 0, len(held))),
        "peak_rss_gib": round(_peak_rss_bytes() / 2**30, 2),
    }


def _peak_rss_bytes() -> int:
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def table(result: dict[str, Any]) -> str:
    """The result as lines for people."""
    lines = [f"{'':28}{'median (min to max)':>30}"]
    for title, unit in (("images_per_second", "images/s"), ("ratios", "times")):
        for name, found in result[title].items():
            cell = f"{found['median']:.4g} ({found['min']:.4g} to {found['max']:.4g}) {unit}"
            lines.append(f"{name:28}{cell:>38}")
    floor, kept = result["floor"], result["bfloat16_keeps"]
    lines += [
        f"floor in {name}: {floor['images_per_second'][name]:.0f} images/s, {reached:.0%} reached"
        for name, reached in floor["share_reached"].items()
    ]
    lines.append(
        "bfloat16 is left out: this processor has no instructions for it"
        if kept is None
        else f"bfloat16 keeps {kept['votes_mask']:.2%} of the votes' mask and "
        f"{kept['clients_own_masks']:.2%} of the clients' own"
    )
    lines += [f"{one['share']:7.1%} {one['operator']}" for one in result["where_time_goes"]]
    return "\n".join(lines)


def main() -> None:
    """Measure, print and, if asked, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--per-client", type=int, default=5, help="images of each client")
    parser.add_argument("--repeats", type=int, default=10, help="turns the clients are split into")
    parser.add_argument("--flower-clients", type=int, default=200,
                        help="clients of a turn on both engines of the app; 0: none")  # fmt: skip
    parser.add_argument("--root", default="", help="folder with cifar-10-batches-py; else noise")
    parser.add_argument("--weights", default="", help="weights of ResNet-20; else initial ones")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args()
    if options.clients < options.repeats or min(options.per_client, options.repeats) < 1:
        parser.error("--clients must be at least --repeats, and all counts at least 1")
    os.environ[CLIENTS_VARIABLE] = str(options.flower_clients)
    os.environ[IMAGES_VARIABLE] = str(options.per_client)
    result = measure(options)
    print(table(result))
    write(options.out, result)


if __name__ == "__main__":
    main()
