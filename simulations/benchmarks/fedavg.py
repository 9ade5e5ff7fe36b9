"""How long does a round of federated averaging take, by four ways of training the clients?

200 clients with two batches of 32 CIFAR-shaped rows each train LeNet-5 (62,006 parameters) and are
averaged:

- workers: this package's local engine, in worker processes, through Flower's Grid and ClientApp;
- one process: the same engine without worker processes;
- plain loop: build the network, load the weights, torch.optim.SGD, add up; PyTorch on two threads;
- flower: Flower's own simulation engine (Ray) on the same app;
- floor: the bare forward and backward passes and steps of all clients in one process on one
  thread, divided by the number of workers: what is left when everything else costs nothing;
- floor at once: the same, shared by as many processes as there are workers, side by side: what the
  cores really give when all of them are busy.

    python simulations/benchmarks/fedavg.py --out simulations/results/fedavg.json

All take turns, repeat after repeat, so that every ratio compares neighbours in time. Start-up is
left out for all of them: a turn's first round is not timed. That the engines gave the same weights,
bit for bit, is checked. `--profile` tells where a round in workers goes.
"""

from __future__ import annotations

import argparse
import cProfile
import hashlib
import multiprocessing
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measuring import command, machine, spread, versions, write
from torch import Tensor, nn

from fedprune import config as configuration
from fedprune import data
from fedprune.config import Config
from fedprune.federated.averaging import OPEN, average
from fedprune.federated.conversation import Conversation
from fedprune.federated.experiment import Experiment, Held
from fedprune.federated.local_grid import LocalGrid
from fedprune.federated.opening import close_stations
from fedprune.federated.training import LocalTraining, Trainer
from fedprune.federated.trial import traits_of
from fedprune.federated.workers import WorkerSettings, worker_processes
from fedprune.progress import Quiet
from fedprune.runs import Architecture, RunFolder, weights_vector

BATCH, BATCHES = 32, 2
RATE, MOMENTUM = 0.01, 0.9
PLAIN_THREADS = 2
TARGETS = {"flower": 3.2, "plain loop": 1.6}  # how many times the workers' time they must take
CLIENTS_VARIABLE = "FEDAVG_CLIENTS"  # tells the functions below, wherever they are called


class LeNet5(nn.Module):
    """LeNet-5 for RGB images of 32x32 (after LeCun et al. 1998)."""

    def __init__(self, num_classes: int) -> None:
        """Build it: 62,006 parameters for ten classes."""
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.relu1, self.relu2, self.relu3, self.relu4 = (nn.ReLU() for _ in range(4))
        self.pool1, self.pool2 = nn.MaxPool2d(2), nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1, self.fc2 = nn.Linear(400, 120), nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits [batch, num_classes] of images [batch, 3, 32, 32]."""
        maps = self.pool1(self.relu1(self.conv1(images)))
        maps = self.pool2(self.relu2(self.conv2(maps)))
        hidden = self.relu4(self.fc2(self.relu3(self.fc1(self.flatten(maps)))))
        logits: Tensor = self.fc3(hidden)
        return logits


def lenet5(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build the network, as `model.name` calls it."""
    del input_shape
    return LeNet5(num_classes)


def rows(root: str | Path, *, seed: int) -> data.Dataset:
    """Draw noise in the shape of CIFAR-10, two batches for each client."""
    del root
    random = np.random.default_rng(seed)
    train, test = int(os.environ[CLIENTS_VARIABLE]) * BATCH * BATCHES, 100

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        images = random.integers(0, 256, (count, 3, 32, 32)).astype(np.uint8)
        return images, random.integers(0, 10, count)

    return data.from_arrays(
        "noise",
        train=part(train),
        test=part(test),
        num_classes=10,
        scaling=data.Scaling(255.0),
    )


def settings(clients: int, rounds: int) -> tuple[str, ...]:
    """Everything that differs from the default configuration."""
    return (
        "data.dataset=fedavg:rows",
        f"data.clients={clients}",
        "model.name=fedavg:lenet5",
        f"train.rounds={rounds}",
        "train.fine_tune_rounds=0",
        f"train.clients_per_round={clients}",
        "train.local_epochs=1",
        f"train.batch_size={BATCH}",
        f"train.learning_rate={RATE}",
        f"train.momentum={MOMENTUM}",
        "prune.criterion=magnitude_l2",
        "evaluate.seeds=1",
        "evaluate.baselines=false",
        "evaluate.tables=off",
        "evaluate.certified_rows=1",
        "evaluate.resamples=100",
    )


class Engine:
    """Rounds on this package's local grid, one after the other, from the same weights."""

    def __init__(self, config: Config, folder: Path) -> None:
        """Meet the clients."""
        self._config = config
        self._folder = RunFolder.create(folder, config.model_copy(update={"out": str(folder)}))
        grid = LocalGrid(config.data.clients, configuration.to_flat(self._folder.config))
        conversation = Conversation(grid, config.data.clients, config.federation, Quiet())
        self._experiment = Experiment(config, self._folder, conversation, Quiet())
        schema = conversation.schema
        architecture = Architecture.dense(config.model.name, 10, schema.input_shape)
        self._held = Held.save(self._folder, "start", architecture, first_weights())

    def round(self, name: str) -> Tensor:
        """Train all clients in a round of this name and average them."""
        train = self._config.train
        how = {
            "local_epochs": train.local_epochs,
            "batch_size": train.batch_size,
            "learning_rate": train.learning_rate,
            "momentum": train.momentum,
            "weight_decay": train.weight_decay,
        }
        question = self._experiment.question(name, self._held, how)
        weights, _ = average(self._experiment, OPEN, question, self._experiment.clients)
        return weights


def first_weights() -> Tensor:
    """The weights that every round starts from."""
    torch.manual_seed(0)
    return weights_vector(LeNet5(10))


def plain_round(dataset: data.Dataset, clients: int) -> Tensor:
    """What one would write without any framework."""
    start = {name: tensor.clone() for name, tensor in plain_start().items()}
    total = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
    each = BATCH * BATCHES
    for client in range(clients):
        model = LeNet5(10)
        model.load_state_dict(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
        for first in range(client * each, (client + 1) * each, BATCH):
            part = slice(first, first + BATCH)
            optimizer.zero_grad()
            outputs = model(dataset.train.inputs(part))
            nn.functional.cross_entropy(outputs, dataset.train.targets(part)).backward()
            optimizer.step()
        for name, tensor in model.state_dict().items():
            total[name] += tensor
    return torch.cat([tensor.reshape(-1) / clients for tensor in total.values()])


def bare_steps(dataset: data.Dataset, clients: int, memory_format: torch.memory_format) -> Tensor:
    """Nothing but the arithmetic: one network for all, its weights never set back."""
    model = LeNet5(10).to(memory_format=memory_format)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=MOMENTUM)
    images = dataset.train.inputs(slice(0, BATCH * BATCHES)).to(memory_format=memory_format)
    labels = dataset.train.targets(slice(0, BATCH * BATCHES))
    for _ in range(clients):
        for first in range(0, BATCH * BATCHES, BATCH):
            part = slice(first, first + BATCH)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[part]), labels[part]).backward()
            optimizer.step()
    return weights_vector(model)


def floor(dataset: data.Dataset, options: argparse.Namespace) -> float:
    """Seconds of the bare steps over the workers, in the faster order of memory."""
    with torch_threads(1):
        seconds = []
        for memory_format in (torch.contiguous_format, torch.channels_last):
            bare_steps(dataset, min(20, options.clients), memory_format)
            work = partial(bare_steps, dataset, options.clients, memory_format)
            seconds.append(timed(work)[0])
    return min(seconds) / options.workers


def floor_at_once(options: argparse.Namespace) -> float:
    """Seconds of the bare steps in as many processes as workers, all at once, the slowest's."""
    context = multiprocessing.get_context("spawn")
    share, seconds = -(-options.clients // options.workers), []
    with context.Pool(options.workers, _meet, (context.Barrier(options.workers),)) as processes:
        for channels_last in (False, True):
            work = [(share, channels_last)] * options.workers
            seconds.append(max(processes.starmap(_bare_share, work, chunksize=1)))
    return min(seconds)


_meeting: Any = None


def _meet(barrier: Any) -> None:
    """Begin a process of `floor_at_once`."""
    global _meeting
    _meeting = barrier
    os.environ[CLIENTS_VARIABLE] = "1"
    torch.set_num_threads(1)


def _bare_share(clients: int, channels_last: bool) -> float:
    dataset = rows("", seed=1)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    bare_steps(dataset, 20, memory_format)
    _meeting.wait()
    return timed(lambda: bare_steps(dataset, clients, memory_format))[0]


def plain_start() -> dict[str, Tensor]:
    """The weights that every round starts from, by name."""
    torch.manual_seed(0)
    return LeNet5(10).state_dict()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use so many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timed(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Seconds that a piece of work takes, and what it gives."""
    begun = time.perf_counter()
    found = work()
    return time.perf_counter() - begun, found


def flower_rounds(clients: int, rounds: int, folder: Path) -> float:
    """Seconds of a round on Flower's engine: the median of all but the first."""
    command = [sys.executable, "-m", "fedprune", "simulate", "--json", "--engine", "flower"]
    command += ["--out", str(folder)]
    for setting in settings(clients, rounds):
        command += ["--set", setting]
    here = str(Path(__file__).resolve().parent)  # where "fedavg:rows" is found
    done = subprocess.run(command, cwd=here, stdout=subprocess.DEVNULL, check=False)
    seconds = {e["phase"]: float(e["seconds"]) for e in RunFolder.open(folder).events()}
    found = [seconds[f"train-{k}"] for k in range(2, rounds + 1) if f"train-{k}" in seconds]
    if not found:
        sys.exit(f"Flower's engine failed with exit status {done.returncode}")
    return statistics.median(found)


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, list[float]]:
    """Take turns; seconds a round of each way, one for each repeat."""
    config = configuration.load(None, settings(options.clients, 1))
    dataset = rows("", seed=config.seed)
    ways = ("workers", "one process", "plain loop", "floor", "floor at once")
    found: dict[str, list[float]] = {way: [] for way in ways}
    if not options.without_flower:
        found["flower"] = []
    engine = Engine(config, scratch / "run")
    for repeat in range(options.repeats):
        seconds, in_workers = turn_in_workers(engine, repeat, options.workers)
        found["workers"].append(seconds)
        seconds, in_process = turn(engine, repeat, "")
        found["one process"].append(seconds)
        if digest(in_workers) != digest(in_process):
            sys.exit("workers and one process gave different weights")
        with torch_threads(PLAIN_THREADS):
            plain_round(dataset, min(20, options.clients))
            found["plain loop"].append(timed(lambda: plain_round(dataset, options.clients))[0])
        found["floor"].append(floor(dataset, options))
        found["floor at once"].append(floor_at_once(options))
        if not options.without_flower:
            folder = scratch / f"flower-{repeat}"
            found["flower"].append(flower_rounds(options.clients, options.rounds, folder))
        last = {way: round(values[-1], 3) for way, values in found.items()}
        print(f"repeat {repeat + 1}: {last}", file=sys.stderr)
    close_stations()
    return found


def turn(engine: Engine, repeat: int, way: str) -> tuple[float, Tensor]:
    """Seconds of one round, after another one, and the weights that it gave."""
    engine.round(f"warm-{way}-{repeat}")
    return timed(lambda: engine.round(f"round-{repeat}"))


def turn_in_workers(engine: Engine, repeat: int, count: int) -> tuple[float, Tensor]:
    """The same in worker processes, which are started before and ended after it."""
    with worker_processes(WorkerSettings(count)) as workers:
        if not workers.start(120.0):
            sys.exit("no worker processes could be started")
        return turn(engine, repeat, "workers")


def digest(weights: Tensor) -> str:
    """SHA-256 of the exact bits."""
    return hashlib.sha256(weights.numpy().tobytes()).hexdigest()


def profile(options: argparse.Namespace, scratch: Path) -> None:
    """Print where this process spends a round in workers; what is left is waiting for them."""
    config = configuration.load(None, settings(options.clients, 1))
    engine = Engine(config, scratch / "profile")
    with worker_processes(WorkerSettings(options.workers)) as workers:
        workers.start(120.0)
        engine.round("warm")
        profiler = cProfile.Profile()
        profiler.runcall(engine.round, "profiled")
        pstats.Stats(profiler).sort_stats("tottime").print_stats(15)
    close_stations()


def where_time_goes(clients: int, most: int = 12) -> list[dict[str, Any]]:
    """Share of each operator in the training of clients on one thread."""
    config = configuration.load(None, settings(clients, 1))
    dataset, start = rows("", seed=config.seed), first_weights()
    model = LeNet5(10)
    trainer = Trainer(model, traits_of(model, (3, 32, 32)))
    how = LocalTraining(1, BATCH, RATE, MOMENTUM, 0.0)
    each = BATCH * BATCHES

    def train(client: int) -> None:
        own = slice(client * each, (client + 1) * each)
        order = np.random.default_rng(client)
        trainer.train(start, dataset.train.inputs(own), dataset.train.targets(own), how, order)

    with torch_threads(1):
        train(0)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            for client in range(min(clients, 50)):
                train(client)
    spent = sorted(profiler.key_averages(), key=lambda one: -one.self_cpu_time_total)
    total = sum(one.self_cpu_time_total for one in spent)
    return [
        {"operator": one.key, "share": round(one.self_cpu_time_total / total, 4)}
        for one in spent[:most]
    ]


def summary_of(found: dict[str, list[float]], options: argparse.Namespace) -> dict[str, Any]:
    """Spreads, and the ratios of every repeat."""
    ratios = {
        way: [slow / fast for slow, fast in zip(values, found["workers"], strict=True)]
        for way, values in found.items()
        if way != "workers"
    }
    return {
        "question": (__doc__ or "").splitlines()[0],
        "command": command(sys.argv),
        "date": date.today().isoformat(),
        "seed": 1,
        "config": configuration.load(None, settings(options.clients, options.rounds)).model_dump(),
        "versions": versions(),
        "machine": machine()
        | {
            "torch_threads": torch.get_num_threads(),
            "plain_loop_threads": PLAIN_THREADS,
            "workers": options.workers,
        },
        "same_weights_with_and_without_workers": True,
        "targets": TARGETS,
        "where_time_goes": where_time_goes(options.clients),
        "ms_a_client": {
            way: spread([1000 * value / options.clients for value in values])
            for way, values in found.items()
        },
        "times_the_workers": {way: spread(values) for way, values in ratios.items()},
    }


def table(result: dict[str, Any]) -> str:
    """The result as lines for people."""
    lines = [f"{'':14}{'ms a client':>26}{'times the workers':>26}"]
    for way, cost in result["ms_a_client"].items():
        ratio = result["times_the_workers"].get(way)
        cells = ["" if c is None else f"{c['median']:.3g} ({c['min']:.3g} to {c['max']:.3g})"
                 for c in (cost, ratio)]  # fmt: skip
        lines.append(f"{way:14}" + "".join(f"{cell:>26}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    """Measure, print and, if asked, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=4, help="of each of Flower's turns")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    parser.add_argument("--without-flower", action="store_true", help="leave Ray out, for a try")
    parser.add_argument("--profile", action="store_true", help="only tell where a round goes")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args()
    if min(options.repeats, options.clients) < 1 or min(options.rounds, options.workers) < 2:
        parser.error("--repeats and --clients must be at least 1, --rounds and --workers 2")
    os.environ[CLIENTS_VARIABLE] = str(options.clients)
    with tempfile.TemporaryDirectory() as scratch:
        if options.profile:
            profile(options, Path(scratch))
            return
        result = summary_of(measure(options, Path(scratch)), options)
    print(table(result))
    write(options.out, result)


if __name__ == "__main__":
    main()
