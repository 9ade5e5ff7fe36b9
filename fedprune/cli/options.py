"""Arguments and options that several commands share, and how they report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fedprune import config as configuration
from fedprune.config import Config
from fedprune.progress import Quiet, Reporter, Terminal


def complete_key(incomplete: str) -> list[str]:
    """Complete `--set` with the configuration's keys."""
    return [f"{key}=" for key in configuration.known_keys() if key.startswith(incomplete)]


ConfigFile = Annotated[
    Path | None, typer.Argument(help="TOML file; without it the built-in digits example.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override one key, as prune.keep_units=0.3.",
        autocompletion=complete_key,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Only JSON on standard output, no progress.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit 1 if the mask would be useless.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")]


def reporter_for(as_json: bool) -> Reporter:
    """Say nothing beside JSON; else progress on standard error."""
    return Quiet() if as_json else Terminal()


def show(found: dict[str, Any], lines: list[str], as_json: bool) -> None:
    """Print a result as JSON, or as lines for people."""
    if as_json:
        print(json.dumps(found))
        return
    for line in lines:
        print(line)


def plan_of(settings: Config, reporter: Reporter, wanted: float | None = None) -> dict[str, Any]:
    """Predict what a simulation of this configuration would cost and find."""
    from fedprune import study

    if settings.data.clients > 1 and settings.evaluate.tables == "off":
        reporter.say("evaluate.tables = 'off': accuracy and fairness will not be known")
    dataset = study.load_dataset(settings)
    recall = study.WANTED_RECALL if wanted is None else wanted
    return study.plan(settings, dataset.schema, dataset, recall).to_json()


def finish(folder: Path, summary: dict[str, Any], as_json: bool) -> None:
    """Write the report and say what came out."""
    from fedprune import audit as auditing

    auditing.write_report(folder)
    lines = [*auditing.headlines(summary), f"run folder: {folder} (report.html, summary.json)"]
    show(summary, lines, as_json)
