"""latency."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedprune import config as configuration
from fedprune.cli.options import AsJson, ConfigFile, Sets, reporter_for, show


def latency(
    out: Annotated[Path, typer.Option(help="Table to write, for prune.latency_table.")],
    config: ConfigFile = None,
    set_: Sets = None,
    batch_size: Annotated[int, typer.Option(help="Examples a pass.", min=1)] = 1,
    threads: Annotated[int, typer.Option(help="Processor threads.", min=1)] = 1,
    repeats: Annotated[int, typer.Option(help="Timed turns; medians count.", min=1)] = 7,
    as_json: AsJson = False,
) -> None:
    """Time the network's layers on this machine, so that pruning can keep to a budget of time."""
    settings = configuration.load(config, set_ or ())
    reporter_for(as_json).say(f"timing the layers of {settings.model.name}")
    from fedprune import study

    schema = study.load_dataset(settings).schema
    table = study.measure_latency(
        settings, schema, batch_size=batch_size, threads=threads, repeats=repeats
    )
    table.save(out)
    rows = [
        {"kept": kept, "measured_ms": measured, "predicted_ms": predicted}
        for kept, measured, predicted in table.calibration
    ]
    lines = [
        f"{row['kept']:.0%} of every layer: measured {row['measured_ms']:.3g} ms, predicted "
        f"{row['predicted_ms']:.3g} ms"
        for row in rows
    ]
    lines.append(f"use it with prune.latency_table = {str(out)!r} and prune.keep_latency")
    show({"table": str(out), "whole_networks": rows}, lines, as_json)
