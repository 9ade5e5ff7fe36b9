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
from fedprune.federated.opening import close_stations, open_simulation
from fedprune.federated.server import check_continuable, run
from fedprune.federated.sharing import Sharing
from fedprune.federated.workers import WorkerSettings, worker_processes
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
    folder = begin(config, out)
    return finish(folder, reporter, lambda config: ENGINES[engine](config, None))


def begin(config: Config, out: str | Path) -> RunFolder:
    """Make the folder of a simulation.

    Raises:
        RunError: if it already holds something.
    """
    return RunFolder.create(out, _located(config, Path(out), config.seed))


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
    return finish(folder, reporter, lambda config: ENGINES[engine](config, None))


@contextmanager
def local_engine(config: Config, sharing: Sharing | None = None) -> Iterator[Engine]:
    """Run in this process: no Ray, no sockets."""
    settings = WorkerSettings(config.engine.workers, config.federation.deadline_seconds)

    def run_here(folder: RunFolder, reporter: Reporter) -> None:
        config = folder.config.model_copy(update={"out": str(folder.path)})
        flat = configuration.to_flat(config)
        grid = LocalGrid(config.data.clients, flat)
        try:
            with folder.locked():
                if sharing is not None:
                    open_simulation(flat, grid.run.run_id, sharing.kept)
                run(grid, folder, reporter, sharing)
        finally:
            close_stations()

    with worker_processes(settings):
        yield run_here


@contextmanager
def flower_engine(config: Config, sharing: Sharing | None = None) -> Iterator[Engine]:
    """Run on Flower's simulation engine (Ray), in processes of its own."""
    from fedprune.federated.flower_engine import flower_simulation

    with flower_simulation(config, {} if sharing is None else sharing.environment()) as flower:

        def run_there(folder: RunFolder, reporter: Reporter) -> None:
            flower.run(folder.config, folder.path, reporter)

        yield run_there


ENGINES: Mapping[str, Callable[[Config, Sharing | None], AbstractContextManager[Engine]]] = {
    "local": local_engine,
    "flower": flower_engine,
}


def finish(
    folder: RunFolder,
    reporter: Reporter,
    open_engine: Callable[[Config], AbstractContextManager[Engine]],
) -> JsonDict:
    """Do what is left of a simulation, all seeds, and give the summary.

    Args:
        folder: of the first seed, in which the others lie.
        reporter: where to say how far it is.
        open_engine: gives what to run on, if there is something left to do.

    Raises:
        FedpruneError: in one sentence.
    """
    config, paths = folder.config, seed_paths(folder)
    if not all((path / "summary.json").is_file() for path in paths):
        with open_engine(config) as run_on:
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


def seed_paths(folder: RunFolder) -> list[Path]:
    """Where the runs of all seeds lie, the first seed's first."""
    config = folder.config
    further = range(config.seed + 1, config.seed + config.evaluate.seeds)
    return [folder.path, *(_seed_path(folder, seed) for seed in further)]


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
