"""How much accuracy does a CIFAR ResNet keep at half of its multiply-accumulates?

A trained network is pruned in small steps, each followed by some training (Molchanov et al. 2019),
made physically smaller every time, and then trained on with distillation from the dense network
(or a larger one with public weights, if that is named) and a moving average of the weights. The
best public tool reports 93.77 % for a ResNet-56 on CIFAR-10 at 2.13 times fewer operations, from
93.53 % (DepGraph, Fang et al. 2023, table 3).

    python simulations/resnet_half_macs.py --root DATA --network resnet56 \
        --weights DATA/weights/resnet56-4bfd9763.th --work WORK --out RESULTS.json
    python simulations/resnet_half_macs.py --root DATA --network resnet20 \
        --weights DATA/weights/resnet20-12fca82f.th --work WORK --out RESULTS.json

What is reported is the average of the weights after the last epoch, never the best epoch, with
batch norm statistics of its own: of plain training images, or, with `--statistics views`, of the
views that it was trained on, mixtures among them. `--restart` adds cycles (warm restarts,
Loshchilov & Hutter 2017), each from the last one's average, at half of the learning rate and with
new views; what is reported then is the mean of all cycles' averages (Izmailov et al. 2018), and
each beside it. The state is kept after every epoch, in files without code; the same command goes
on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _central import Batch, Recipe, Training, Views, recalibrate
from _half_macs import draw, result
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedprune import data, models, pruning

SCORED = 2_000  # training images that units are scored with, in minibatches
SCORED_BATCH = 50
RECALIBRATED_BATCH = 250
RECALIBRATED = 20  # batches of an epoch's figure; the last figure takes all images


class Study:
    """One network on its way: pruned in steps, then trained for epochs."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Load data and the dense network."""
        self.options = options
        self.work: Path = options.work
        self.work.mkdir(parents=True, exist_ok=True)
        rows = data.load("cifar10", options.root, seed=options.seed)
        self.cycles = [
            Views(rows.train, options.images, options.views, options.seed, options.mixed, cycle)
            for cycle in range(1 + len(options.restart))
        ]
        self.test = rows.test
        self.scored = rows.train
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dense = self._load(options.network, options.weights)
        self.layout = pruning.UnitLayout.of(self.dense.cpu(), torch.zeros(1, 3, 32, 32))
        self.dense.to(self.device)
        self.recipe = Recipe(
            rate=options.rate, distill=options.distill, weight_decay=options.weight_decay
        )
        self.told: dict[str, Any] = self._read()

    def run(self) -> dict[str, Any]:
        """Do what is not done yet; give the result."""
        if "dense" not in self.told:
            self.told["dense"] = self.accuracy(self.dense)
        while len(self.told["steps"]) < self.options.steps:
            self._prune(len(self.told["steps"]) + 1)
        for cycle in range(len(self.cycles)):
            self._train_epochs(cycle)
        if "final" not in self.told:
            self._finish()
        question = (__doc__ or "").splitlines()[0]
        return result(
            question, self.options, self.told, self.layout, self.mask(), self.recipe, self.device
        )

    def mask(self) -> Tensor:
        """Which units of the dense network are left so far."""
        if not self.told["mask"]:
            return torch.ones(len(self.layout), dtype=torch.bool)
        return torch.tensor([letter == "1" for letter in self.told["mask"]])

    def network(self) -> nn.Module:
        """The network as it is now, with its weights."""
        small = pruning.shrink(self.dense.cpu(), self.layout, self.mask()).to(self.device)
        self.dense.to(self.device)
        if (self.work / "state.safetensors").exists():
            small.load_state_dict(part(self._state(), "model."))
        return small.requires_grad_(True)

    def accuracy(self, model: nn.Module) -> float:
        """Share of the test images that a network gets right."""
        layout = pruning.UnitLayout.of(model.cpu(), torch.zeros(1, 3, 32, 32))
        right = pruning.correct_predictions(model.to(self.device), layout, Part(self.test))
        return float(right.double().mean())

    def _load(self, network: str, weights: str) -> nn.Module:
        own = models.load(network, weights=weights, num_classes=10, seed=self.options.seed)
        return own.to(self.device)

    def _judged(self, cycle: int) -> Views:
        """The views of a cycle, every one of every image judged by the teacher, once for all."""
        options, views = self.options, self.cycles[cycle]
        if views.logits:
            return views
        teacher = self._load(
            options.teacher or options.network, options.teacher_weights or options.weights
        )
        told = self._training(teacher)
        for view in range(views.count):
            path = self.work / f"teacher-{cycle * views.count + view}.safetensors"
            if not path.exists():
                logits = views.ask(told.average, view, told.precision, options.threads)
                save_file({"logits": logits.contiguous()}, path.with_suffix(".new"))
                os.replace(path.with_suffix(".new"), path)
                print(f"teacher: view {view + 1} of {views.count}", flush=True)
            views.logits.append(load_file(path)["logits"])
        told.close()
        return views

    def _prune(self, step: int) -> None:
        """Take one step towards the wanted multiply-accumulates and train a little."""
        options, before = self.options, self.mask()
        model = self.network().cpu().eval()
        layout = pruning.UnitLayout.of(model, torch.zeros(1, 3, 32, 32))
        wanted = options.keep_macs ** (step / options.steps) * self.layout.total_macs
        random = np.random.default_rng((options.seed, step))
        places = random.permutation(len(self.scored))[:SCORED].reshape(-1, SCORED_BATCH)
        batches = ((self.scored.inputs(own), self.scored.targets(own)) for own in places)
        scores = pruning.score(model, layout, batches, options.criterion, seed=options.seed)
        inner = pruning.select(
            scores, layout, keep_macs=min(1.0, wanted / layout.total_macs), fill=options.fill
        )
        mask = pruning.compose_masks(before, inner)
        small = pruning.shrink(model, layout, inner).to(self.device)
        training = self._training(small)
        for done, batch in enumerate(self._some_batches(step, random)):
            training.step(batch, 0.5 + 0.5 * done / max(options.minibatches, 1))
        training.close()
        # Units are scored on plain images, whatever is reported in the end.
        made = self._recalibrated(training.model, random, mixed=False)
        state = {f"model.{k}": v for k, v in made.state_dict().items()}
        found = self.accuracy(made)
        left = self.layout.macs(mask) / self.layout.total_macs
        self.told["mask"] = "".join("1" if keep else "0" for keep in mask.tolist())
        self.told["steps"].append({"keep_macs": round(left, 5), "accuracy": found})
        print(f"step {step}: {left:.3f} of the operations, accuracy {found:.4f}", flush=True)
        self._keep(state)

    def _some_batches(self, step: int, random: np.random.Generator) -> Iterator[Batch]:
        left = self.options.minibatches
        while left > 0:
            for batch in self._judged(0).batches(self.recipe.batch_size, step, random):
                yield batch
                left -= 1
                if left <= 0:
                    return

    def _train_epochs(self, cycle: int) -> None:
        """Train from the last epoch that is kept to the end of a cycle."""
        lengths = [self.options.epochs, *self.options.restart]
        first, epochs = sum(lengths[:cycle]), lengths[cycle]
        if len(self.told["epochs"]) >= first + epochs:
            return
        state, model = self._state(), self.network()
        starts = len(self.told["epochs"]) == first
        ended = {name: t for name, t in state.items() if name.startswith("ended-")}
        if starts and cycle:
            last = part(state, "average.")
            model.load_state_dict(last)
            ended |= {f"ended-{cycle}.{name}": tensor for name, tensor in last.items()}
        training = self._training(model, 0.5 if cycle else 1.0)
        if not starts:
            training.load(state)
        views = self._judged(cycle)
        each = len(views) // self.recipe.batch_size
        for epoch in range(len(self.told["epochs"]), first + epochs):
            begun, loss = time.perf_counter(), 0.0
            random = np.random.default_rng((self.options.seed, 1_000 + epoch))
            batches = views.batches(self.recipe.batch_size, epoch, random)
            for done, batch in enumerate(batches):
                loss += training.step(batch, ((epoch - first) * each + done) / (epochs * each))
            seconds = time.perf_counter() - begun
            averaged = self._recalibrated(training.average, random, mixed=self._mixed)
            self.told["epochs"].append(
                {
                    "loss": round(loss / each, 5),
                    "accuracy": self.accuracy(training.model.eval()),
                    "averaged": self.accuracy(averaged),
                    "seconds": round(seconds, 1),
                }
            )
            print(f"epoch {epoch + 1}: {self.told['epochs'][-1]}", flush=True)
            self._keep(training.state() | ended)
        training.close()

    @property
    def _mixed(self) -> bool:
        return bool(self.options.statistics == "views")

    def _recalibrated(
        self, model: nn.Module, random: np.random.Generator, *, mixed: bool
    ) -> nn.Module:
        """A copy with batch norm statistics from some training images."""
        batches = self.cycles[0].first_views(RECALIBRATED_BATCH, random, mixed=mixed)
        return recalibrate(model, islice(batches, RECALIBRATED))

    def _finish(self) -> None:
        """Find the network that was sought: the average, or the mean of those of all cycles."""
        state, model = self._state(), self.network()
        names = [f"ended-{cycle}." for cycle in range(1, len(self.cycles))]
        ends = [end for name in (*names, "average.") if (end := part(state, name))]
        cycles = [self._settled(model, end) for end in ends or [model.state_dict()]]
        self.told["cycles"] = [self.accuracy(one) for one in cycles]
        found = cycles[0]
        if len(ends) > 1:
            mean = {name: sum(end[name] for end in ends) / len(ends) for name in ends[0]}
            found = self._settled(model, mean)
        self.told["final"] = self.accuracy(found)
        self._keep(state | {f"final.{k}": v for k, v in found.state_dict().items()})

    def _settled(self, model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
        """A network with these weights and batch norm statistics of its own."""
        model.load_state_dict(weights)
        random = np.random.default_rng((self.options.seed, 500))
        batches = self.cycles[0].first_views(RECALIBRATED_BATCH, random, mixed=self._mixed)
        return recalibrate(model.eval(), batches)

    def _state(self) -> dict[str, Tensor]:
        return load_file(self.work / "state.safetensors", device=str(self.device))

    def _training(self, model: nn.Module, slower: float = 1.0) -> Training:
        return Training(
            model,
            replace(self.recipe, rate=slower * self.recipe.rate),
            threads=self.options.threads,
            bfloat16=self.options.bfloat16,
        )

    def _read(self) -> dict[str, Any]:
        asked = {
            name: str(value)
            for name, value in sorted(vars(self.options).items())
            if name not in ("work", "out", "root", "threads")
        }
        path = self.work / "told.json"
        if not path.exists():
            return {"asked": asked, "mask": "", "steps": [], "epochs": []}
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if told["asked"] != asked:
            raise SystemExit(f"{self.work} holds a study with other settings: {told['asked']}")
        return told

    def _keep(self, state: dict[str, Tensor]) -> None:
        """Write weights and the account of them; each replaces the old one at once."""
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        save_file(whole, self.work / "state.new")
        text = json.dumps(self.told, indent=1)
        (self.work / "told.new").write_text(text, encoding="utf-8")
        os.replace(self.work / "state.new", self.work / "state.safetensors")
        os.replace(self.work / "told.new", self.work / "told.json")


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with this, named by the rest."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


class Part:
    """Rows as a source of batches."""

    def __init__(self, rows: data.Rows) -> None:
        """Take rows."""
        self._rows = rows

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Inputs and labels of neighbouring rows."""
        part = slice(start, min(stop, len(self._rows)))
        return self._rows.inputs(part), self._rows.targets(part)


def main() -> None:
    """Prune, train, tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", required=True, help="folder with cifar-10-batches-py")
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--weights", required=True, help="of the dense network")
    parser.add_argument("--keep-macs", type=float, default=0.475)
    parser.add_argument("--criterion", choices=sorted(pruning.CRITERIA), default="linear_logits")
    parser.add_argument("--fill", choices=pruning.FILLS, default="value", help="of the budget")
    parser.add_argument("--steps", type=int, default=10, help="of pruning")
    parser.add_argument("--minibatches", type=int, default=100, help="of training after each step")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument(
        "--restart", type=int, nargs="*", default=[], help="epochs of every cycle after the first"
    )
    parser.add_argument("--rate", type=float, default=0.02, help="largest learning rate")
    parser.add_argument("--weight-decay", type=float, default=2e-4)
    parser.add_argument("--distill", type=float, default=0.7, help="weight of the teacher")
    parser.add_argument("--teacher", help="network to learn from instead of the dense one")
    parser.add_argument("--teacher-weights", help="of that network")
    parser.add_argument("--views", type=int, default=12, help="fixed augmentations of an image")
    parser.add_argument("--mixed", type=float, default=0.0, help="share of views that are mixtures")
    parser.add_argument(
        "--statistics", choices=("plain", "views"), default="plain", help="of batch norms, reported"
    )
    parser.add_argument("--bfloat16", action="store_true", help="compute passes in bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--images", type=int, help="train on the first so many only, for a try")
    parser.add_argument("--work", type=Path, required=True, help="folder to keep the state in")
    parser.add_argument("--out", type=Path, help="results JSON to write, and a picture beside it")
    options = parser.parse_args()
    if (options.teacher is None) != (options.teacher_weights is None):
        parser.error("--teacher and --teacher-weights are given both or not at all")
    if options.restart and options.epochs < 1:
        parser.error("--restart goes on from an average, but --epochs 0 makes none")
    if min(options.restart, default=1) < 1:
        parser.error(f"--restart is {options.restart}, but a cycle has at least one epoch")
    if not 0 <= options.mixed <= 1:
        parser.error(f"--mixed is {options.mixed}, but a share is 0 to 1")
    found = Study(options).run()
    print(json.dumps({k: found[k] for k in ("macs", "params", "accuracy")}, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        draw(found, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
