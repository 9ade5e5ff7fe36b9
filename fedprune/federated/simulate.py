"""Simulation over one or several seeds, on an engine of choice, and its resumption."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeAlias

from fedprune import config as configuration
from fedprune.config import Config
from fedprune.errors import FederationError, RunError
from fedprune.federated.experiment import JsonDict
from fedprune.federated.local_grid import LocalGrid
from fedprune.federated.opening import close_stations
from fedprune.federated.server import check_continuable, run
from fedprune.progress import Reporter
from fedprune.runs import RunFolder, compare_over_seeds

Engine: TypeAlias = Callable[[RunFolder, Reporter], None]


def simulate(
    config: Config, out: str | Path, reporter: Reporter, engine: str = "local"
) -> JsonDict:
    """Start a simulation in a new folder; further seeds get folders of their own inside it.

    Args:
        config: the experiment.
        out: the run folder to make.
        reporter: where to say how far it is.
        engine: a key of `ENGINES`.

    Raises:
        FedpruneError: in one sentence.
    """
    folder = RunFolder.create(out, _located(config, Path(out), config.seed))
    return _all_seeds(folder, reporter, engine)


def resume(out: str | Path, reporter: Reporter, engine: str = "local") -> JsonDict:
    """Continue a simulation from its last finished phase; a finished one is left as it is.

    Any engine can continue what another began.

    Raises:
        RunError: if the folder is not a run, or another process works on it.
        FederationError: if its clients were deployed: their server app continues it.
    """
    folder = RunFolder.open(out)
    if folder.has("receipts.jsonl"):
        raise FederationError(
            f"{out} is the run of deployed clients; continue it by running its server app again "
            "with the same configuration"
        )
    return _all_seeds(folder, reporter, engine)


@contextmanager
def local_engine(config: Config) -> Iterator[Engine]:
    """Run in this process: no Ray, no sockets."""
    del config

    def run_here(folder: RunFolder, reporter: Reporter) -> None:
        config = folder.config.model_copy(update={"out": str(folder.path)})
        grid = LocalGrid(config.data.clients, configuration.to_flat(config))
        try:
            with folder.locked():
                run(grid, folder, reporter)
        finally:
            close_stations()

    yield run_here


@contextmanager
def flower_engine(config: Config) -> Iterator[Engine]:
    """Run on Flower's simulation engine (Ray), in processes of its own."""
    from fedprune.federated.flower_engine import flower_simulation

    with flower_simulation(config) as flower:

        def run_there(folder: RunFolder, reporter: Reporter) -> None:
            flower.run(folder.config, folder.path, reporter)

        yield run_there


ENGINES: Mapping[str, Callable[[Config], AbstractContextManager[Engine]]] = {
    "local": local_engine,
    "flower": flower_engine,
}


def _all_seeds(folder: RunFolder, reporter: Reporter, engine: str) -> JsonDict:
    config = folder.config
    paths = [folder.path] + [
        _seed_path(folder, seed)
        for seed in range(config.seed + 1, config.seed + config.evaluate.seeds)
    ]
    if not all((path / "summary.json").is_file() for path in paths):
        with ENGINES[engine](config) as run_on:
            _run_seeds(folder, reporter, run_on)
    summaries = [RunFolder.open(path).read_json("summary.json") for path in paths]
    with folder.locked():
        return _with_comparison(folder, summaries) if len(summaries) > 1 else summaries[0]


def _run_seeds(folder: RunFolder, reporter: Reporter, run_on: Engine) -> None:
    config = folder.config
    for seed in range(config.seed, config.seed + config.evaluate.seeds):
        own = folder
        if seed != config.seed:
            reporter.say(f"seed {seed}")
            own = _seed_folder(folder, config, seed)
        if not own.has("summary.json"):
            check_continuable(own)
            run_on(own, reporter)


def _seed_path(folder: RunFolder, seed: int) -> Path:
    return folder.path / "seeds" / f"seed-{seed}"


def _seed_folder(folder: RunFolder, config: Config, seed: int) -> RunFolder:
    path = _seed_path(folder, seed)
    if (path / "config.toml").is_file():
        return RunFolder.open(path)
    return RunFolder.create(path, _located(config, path, seed, seeds=1))


def _located(config: Config, out: Path, seed: int, seeds: int | None = None) -> Config:
    evaluate = config.evaluate
    if seeds is not None:
        evaluate = evaluate.model_copy(update={"seeds": seeds})
    return config.model_copy(update={"out": str(out), "seed": seed, "evaluate": evaluate})


def _with_comparison(folder: RunFolder, summaries: Sequence[JsonDict]) -> JsonDict:
    summary = dict(summaries[0])
    if summary["baselines"] is not None:
        confidence = folder.config.evaluate.confidence
        summary["paired_difference"] = compare_over_seeds(summaries, confidence)
    if summary != summaries[0]:
        folder.write_json("summary.json", summary)
    return summary


def default_folder(config: Config) -> Path:
    """Give the first free name runs/DATASET-MODEL-N.

    Raises:
        RunError: if a thousand are taken.
    """
    stem = f"{config.data.dataset}-{config.model.name}"
    for number in range(1, 1001):
        path = Path("runs") / f"{stem}-{number}"
        if not path.exists():
            return path
    raise RunError(f"runs/{stem}-1 to runs/{stem}-1000 are all taken; name another with --out")
