"""A sweep: the cells of a grid as ordinary runs, one after another, and what they come to."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from fedprune import study
from fedprune.config import Config, EngineConfig
from fedprune.errors import FedpruneError
from fedprune.federated import simulate as simulation
from fedprune.federated.finished import Finished
from fedprune.federated.sharing import Sharing
from fedprune.federated.simulate import ENGINES, Engine
from fedprune.federated.sweep_folder import Sweep
from fedprune.progress import Reporter
from fedprune.runs import RunFolder
from fedprune.study.grid import Cell, in_words
from fedprune.study.sweep_privacy import all_answered
from fedprune.study.sweep_table import DONE, FAILED, OPEN, SeedRow, of_groups, to_csv

JsonDict = dict[str, Any]

TABLE, PICTURE, SUMMARY = "sweep.csv", "sweep.svg", "summary.json"


def check(sweep: Sweep, sharing: Sharing, reporter: Reporter) -> dict[str, str]:
    """Plan the cells that are not done before the first one starts.

    Args:
        sweep: whose cells are planned.
        sharing: keeps the rows that are loaded.
        reporter: hears the warnings of useless masks, each with the cell that it is about.

    Returns:
        The cells that cannot be done, by name, each with the plan's sentence.

    Raises:
        FedpruneError: the first cell's, if not one of all cells can be done.
    """
    refused: dict[str, FedpruneError] = {}
    cells = sweep.grid.cells()
    for cell in cells:
        if _is_done(sweep, cell):
            continue
        try:
            dataset = sharing.kept.dataset(cell.config)
            sharing.kept.federation(cell.config)
            found = study.plan(cell.config, dataset.schema)
        except FedpruneError as error:
            refused[cell.name] = error
            continue
        for sentence in found.advice:
            reporter.say(f"warning: {cell.name}: {sentence}")
    if cells and len(refused) == len(cells):
        raise next(iter(refused.values()))
    return {name: str(error) for name, error in refused.items()}


def run_sweep(
    sweep: Sweep,
    sharing: Sharing,
    reporter: Reporter,
    refused: Mapping[str, str],
    after: Callable[[Path], object],
) -> None:
    """Do the cells that are not finished, those that failed before included.

    A cell that fails is written down with its sentence, and the others go on.

    Args:
        sweep: where the cells lie.
        sharing: what the cells have in common.
        reporter: where to say how far it is.
        refused: cells that the plan has refused, by name, with its sentence.
        after: called with a cell's run folder once it is finished.

    Raises:
        RunError: if another process works on the sweep, or its folder cannot be written.
    """
    cells = sweep.grid.cells()
    sweep.create()
    with sweep.files.locked(), _engines(sharing) as open_engine:
        for number, cell in enumerate(cells, start=1):
            begun = time.perf_counter()
            if _is_done(sweep, cell) and cell.name not in sweep.errors:
                continue
            reporter.say(f"[{number}/{len(cells)}] {' '.join(in_words(cell.settings))}")
            error = refused.get(cell.name) or _do(sweep, cell, reporter, open_engine, after)
            if error:
                reporter.say(f"{cell.name} failed: {error}")
            sweep.note(cell, error, time.perf_counter() - begun)
            sweep.files.write_text(TABLE, to_csv(sweep.rows(), {}))


def _is_done(sweep: Sweep, cell: Cell) -> bool:
    """Whether a cell's runs and its report are there."""
    folder = sweep.folder(cell)
    return folder is not None and folder.has("report.html") and _is_finished(folder)


def _is_finished(folder: RunFolder) -> bool:
    """Whether the runs of all seeds are finished."""
    return all((path / "summary.json").is_file() for path in simulation.seed_paths(folder))


def _do(
    sweep: Sweep,
    cell: Cell,
    reporter: Reporter,
    open_engine: Callable[[Config], AbstractContextManager[Engine]],
    after: Callable[[Path], object],
) -> str:
    """Do one cell; give the sentence with which it failed, or ""."""
    try:
        path = sweep.cell_path(cell)
        folder = sweep.folder(cell) or simulation.begin(cell.config, path)
        simulation.finish(folder, reporter, open_engine)
        after(path)
    except FedpruneError as error:
        return str(error)
    except Exception as error:  # a bug, or the machine's: it must not cost the other cells
        sweep.files.write_text(f"failures/{cell.name}.txt", traceback.format_exc())
        return f"{type(error).__name__}: {error} (traceback: failures/{cell.name}.txt)"
    return ""


@contextmanager
def _engines(sharing: Sharing) -> Iterator[Callable[[Config], AbstractContextManager[Engine]]]:
    """Keep an engine running from cell to cell, as long as they want the same one."""
    opened: dict[EngineConfig, Engine] = {}
    with ExitStack() as stack:

        def open_engine(config: Config) -> AbstractContextManager[Engine]:
            if config.engine not in opened:
                stack.close()
                opened.clear()
                make = ENGINES[sharing.finished.engine]
                opened[config.engine] = stack.enter_context(make(config, sharing))
            return nullcontext(opened[config.engine])

        yield open_engine


def share(sweep: Sweep, engine: str) -> Sharing:
    """Make what a sweep's cells share on an engine."""
    return Sharing(Finished(sweep.path, engine))


def summarize(sweep: Sweep) -> JsonDict:
    """Write the table, the picture and the summary of what is finished, and give the summary."""
    from fedprune.study.sweep_plot import draw

    rows = sweep.rows()
    together = all_answered([RunFolder(path) for path in _finished_runs(sweep)])
    confidence = sweep.grid.base.evaluate.confidence
    groups = of_groups(rows, confidence)
    by_relation = {str(one["relation"]): float(one["epsilon"]) for one in together}
    sweep.files.write_text(TABLE, to_csv(rows, by_relation))
    title = f"{sweep.grid.base.model.name} on {sweep.grid.base.data.dataset}"
    picture = draw(groups, confidence, title)
    if picture:
        sweep.files.write_text(PICTURE, picture)
    summary: JsonDict = {
        "name": title,
        "over": sweep.grid.to_json()["over"],
        "cells": {state: _cells(sweep, rows, state) for state in (DONE, FAILED, OPEN)},
        "errors": dict(sweep.errors),
        "groups": groups,
        "epsilons": {"of_cells": "alternatives", "if_the_same_clients_answered_all": together},
        "seconds": {
            "wall": round(sweep.seconds, 1),
            "phases": round(sum(row.seconds for row in rows), 1),
            "spared": round(sum(row.spared_seconds for row in rows), 1),
        },
        "files": {"table": TABLE, "picture": PICTURE if picture else None},
        "versions": _versions(rows),
        "config": sweep.grid.base.model_dump(),
    }
    sweep.files.write_json(SUMMARY, summary)
    return summary


def _finished_runs(sweep: Sweep) -> list[Path]:
    folders = [sweep.folder(cell) for cell in sweep.grid.cells()]
    return [
        path
        for folder in folders
        if folder is not None
        for path in simulation.seed_paths(folder)
        if (path / "summary.json").is_file()
    ]


def _cells(sweep: Sweep, rows: Sequence[SeedRow], status: str) -> list[str]:
    """The cells that failed, that are open, or all of whose runs are done."""
    unfinished = {row.cell for row in rows if row.status != DONE}

    def status_of(cell: str) -> str:
        return FAILED if cell in sweep.errors else OPEN if cell in unfinished else DONE

    names = dict.fromkeys(row.cell for row in rows)
    return [name for name in names if status_of(name) == status]


def _versions(rows: Sequence[SeedRow]) -> list[JsonDict]:
    """The versions that the runs were done with: one entry, unless they changed on the way."""
    known = [json.dumps(row.summary["versions"], sort_keys=True) for row in rows if row.summary]
    return [json.loads(text) for text in dict.fromkeys(known)]
