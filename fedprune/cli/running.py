"""plan, simulate, resume."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fedprune import __version__
from fedprune import config as configuration
from fedprune.cli.options import (
    AsJson,
    ConfigFile,
    RunArgument,
    Sets,
    Strict,
    finish,
    plan_of,
    reporter_for,
)
from fedprune.progress import Reporter


class Engine(StrEnum):
    """What carries the messages between server and clients."""

    local = "local"
    flower = "flower"


EngineOption = Annotated[
    Engine, typer.Option(help="local: in this process. flower: Flower's simulation (Ray).")
]


def plan(
    config: ConfigFile = None,
    set_: Sets = None,
    recall: Annotated[
        float | None,
        typer.Option(help="The recall to recommend a setting for.", min=0.0, max=1.0),
    ] = None,
    as_json: AsJson = False,
    strict: Strict = False,
) -> None:
    """Predict recall, bytes and time before any client spends anything."""
    settings = configuration.load(config, set_ or ())
    found = plan_of(settings, reporter_for(as_json), recall)
    print(json.dumps(found, indent=1)) if as_json else _show_plan(found)
    _stop_if_useless(found, strict)


def simulate(
    config: ConfigFile = None,
    set_: Sets = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to make.")] = None,
    engine: EngineOption = Engine.local,
    as_json: AsJson = False,
    strict: Strict = False,
) -> None:
    """Train, vote, prune, shrink, fine-tune and evaluate with simulated clients."""
    settings = configuration.load(config, set_ or ())
    reporter = reporter_for(as_json)
    reporter.say(
        f"fedprune {__version__}: {settings.model.name} on {settings.data.dataset}, "
        f"{settings.data.clients} clients, seed {settings.seed}"
    )
    from fedprune.federated import simulate as simulation

    found = plan_of(settings, reporter)
    _warn_if_useless(found, reporter)
    _stop_if_useless(found, strict)
    folder = out or (Path(settings.out) if settings.out else simulation.default_folder(settings))
    summary = simulation.simulate(settings, folder, reporter, engine.value)
    finish(folder, summary, as_json)


def resume(run: RunArgument, engine: EngineOption = Engine.local, as_json: AsJson = False) -> None:
    """Continue a run from its last finished phase; either engine continues what the other began."""
    from fedprune.federated import simulate as simulation

    summary = simulation.resume(run, reporter_for(as_json), engine.value)
    finish(run, summary, as_json)


def _warn_if_useless(found: dict[str, Any], reporter: Reporter) -> None:
    for sentence in found["advice"]:
        reporter.say(f"warning: {sentence}")


def _stop_if_useless(found: dict[str, Any], strict: bool) -> None:
    if strict and not found["useful"]:
        print("fedprune: --strict: nothing was spent", file=sys.stderr)
        raise typer.Exit(1)


def _show_plan(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    rows = {
        "units to vote on": f"{found['num_units']:,}",
        "parameters, MACs": f"{found['params']:,}, {found['macs']:,}",
        "clients vote to keep": f"{found['keep_units']:.3f} of the units",
        "reports": f"{found['reports_per_step']:,} in each of {found['steps']} step(s)",
        "mechanism": found["mechanism"] or "none",
        "guarantee": found["guarantee"],
        "variance per vote": _figure(found["variance_per_vote"], ".4g"),
        "predicted recall": _recall(found),
        "bytes per client": f"{found['up_bytes_per_client']:,} up, "
        f"{found['down_bytes_per_client']:,} down; dense weights "
        f"{found['dense_upload_bytes']:,}",
        "time": f"roughly {found['seconds']:.0f} s for the whole run on this machine",
    }
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(name, value)
    console = Console()
    console.print(table)
    for sentence in found["totals"]:
        console.print(f"a client that is in every round spends {sentence}", markup=False)
    if found["options"]:
        console.print("at this epsilon, by trust setting:")
    for row in found["options"]:
        console.print(_option(row), markup=False, highlight=False)
    console.print(found["recommendation"], markup=False)
    for sentence in found["advice"]:
        console.print(f"warning: {sentence}", markup=False)


def _figure(value: float | None, form: str) -> str:
    return "depends on the data" if value is None else format(value, form)


def _recall(found: dict[str, Any]) -> str:
    if found["predicted_recall"] is None:
        return "depends on the data"
    low, high = found["recall_interval"]
    least, most = found["recall_if_model_is_off"]
    return (
        f"{found['predicted_recall']:.3f} (95 % of votes: {low:.3f} to {high:.3f}) without the "
        f"prior's help, if {found['client_model']}; {least:.3f} to {most:.3f} if clients differ "
        "half as much or twice as much"
    )


def _option(row: dict[str, Any]) -> str:
    """What one trust setting would give, on a line that can stand alone."""
    found = (
        row["remark"]
        if row["low"] is None
        else f"recall {row['recall']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
    )
    return (
        f"  {row['trust']}: {found}; epsilon = {row['epsilon']:g}, delta = {row['delta']:g} per "
        f"{row['unit']} ({row['relation']}); must be trusted: {row['trusted']}"
    )
