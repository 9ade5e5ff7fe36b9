"""Simulation in this process, over one or several seeds, and its resumption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedprune import config as configuration
from fedprune.config import Config
from fedprune.errors import LedgerError, RunError
from fedprune.federated.experiment import JsonDict
from fedprune.federated.local_grid import LocalGrid
from fedprune.federated.server import run
from fedprune.federated.station import close_stations
from fedprune.progress import Reporter
from fedprune.runs import RunFolder, compare_over_seeds, ledger_contradiction, run_id


def simulate(config: Config, out: str | Path, reporter: Reporter) -> JsonDict:
    """Start a simulation in a new folder; further seeds get folders of their own inside it.

    Raises:
        FedpruneError: in one sentence.
    """
    folder = RunFolder.create(out, _located(config, Path(out), config.seed))
    return _all_seeds(folder, reporter)


def resume(out: str | Path, reporter: Reporter) -> JsonDict:
    """Continue a simulation from its last finished phase; a finished one is left as it is.

    Raises:
        RunError: if the folder is not a run, or another process works on it.
    """
    return _all_seeds(RunFolder.open(out), reporter)


def _all_seeds(folder: RunFolder, reporter: Reporter) -> JsonDict:
    with folder.locked():
        config = folder.config
        summaries = [_one_seed(folder, reporter)]
        for seed in range(config.seed + 1, config.seed + config.evaluate.seeds):
            reporter.say(f"seed {seed}")
            summaries.append(_one_seed(_seed_folder(folder, config, seed), reporter))
        return _with_comparison(folder, summaries) if len(summaries) > 1 else summaries[0]


def _one_seed(folder: RunFolder, reporter: Reporter) -> JsonDict:
    if folder.has("summary.json"):
        return folder.read_json("summary.json")
    begun = next(iter(folder.events()), None)
    if begun is not None and begun["result"].get("run") != run_id(folder.config):
        raise RunError(
            f"{folder.path / 'config.toml'} was changed after the run had begun; a run has one "
            "configuration, start another for the new one"
        )
    broken = ledger_contradiction(folder)
    if broken:
        raise LedgerError(
            f"{folder.path} cannot be continued, its ledger was rolled back: {broken}"
        )
    # A run folder may have been moved since it was started.
    config = folder.config.model_copy(update={"out": str(folder.path)})
    grid = LocalGrid(config.data.clients, configuration.to_flat(config))
    try:
        return run(grid, config, folder, reporter)
    finally:
        close_stations()


def _seed_folder(folder: RunFolder, config: Config, seed: int) -> RunFolder:
    path = folder.path / "seeds" / f"seed-{seed}"
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
