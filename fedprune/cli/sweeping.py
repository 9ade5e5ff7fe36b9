"""sweep: a grid of configurations, each an ordinary run, and one table of what they come to."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedprune import __version__
from fedprune.cli import running
from fedprune.cli.options import AsJson, ConfigFile, Sets, complete_key, reporter_for, show
from fedprune.cli.running import Engine, EngineOption
from fedprune.progress import Reporter

if TYPE_CHECKING:
    from fedprune.federated.sweep_folder import Sweep

_INTERRUPTED = 130
_TABLE_WIDTH = 200  # characters, where no terminal says how wide it is

Overs = Annotated[
    list[str] | None,
    typer.Option(
        "--over",
        metavar="KEY=VALUE,VALUE,...",
        help="Sweep over one key, as privacy.epsilon=1,2,4; several give every combination.",
        autocompletion=complete_key,
    ),
]


def sweep(
    config: ConfigFile = None,
    over: Overs = None,
    set_: Sets = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the sweep; sweeps/NAME by default.")
    ] = None,
    engine: EngineOption = Engine.local,
    as_json: AsJson = False,
) -> None:
    """Simulate every combination of some keys' values; the same command again continues.

    Each combination is a run folder of its own, under cells/. What does not change between them
    (data, the trained dense model, scores, baselines) is done once. Exit 1 if a cell failed; the
    others are done all the same.
    """
    from fedprune.study.grid import make_grid

    grid = make_grid(config, set_ or (), over or ())
    base, cells = grid.base, grid.cells()
    reporter = reporter_for(as_json)
    reporter.say(
        f"fedprune {__version__}: {base.model.name} on {base.data.dataset}, {len(cells)} cells"
    )
    from fedprune.federated.sweep_folder import Sweep, default_folder

    folder = out or (Path(base.out) if base.out else default_folder(grid))
    _carry_on(Sweep.of(grid, folder), engine.value, reporter, as_json)


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or a sweep's.")],
    engine: EngineOption = Engine.local,
    as_json: AsJson = False,
) -> None:
    """Continue a run from its last finished phase, or a sweep; either engine continues the other's.

    Of a sweep the cells that are not finished are done, those that failed included.
    """
    from fedprune.federated.sweep_folder import Sweep, is_sweep

    if is_sweep(run):
        _carry_on(Sweep.open(run), engine.value, reporter_for(as_json), as_json)
    else:
        running.resume(run, engine, as_json)


def _carry_on(sweep: Sweep, engine: str, reporter: Reporter, as_json: bool) -> None:
    from fedprune import audit as auditing
    from fedprune.federated import sweep as sweeps
    from fedprune.federated.sweep_folder import is_sweep

    sharing = sweeps.share(sweep, engine)
    try:
        refused = sweeps.check(sweep, sharing, reporter)
        sweeps.run_sweep(sweep, sharing, reporter, refused, auditing.write_report)
    except KeyboardInterrupt:
        left = f"`fedprune resume {sweep.path}` does what is left"
        begun = left if is_sweep(sweep.path) else "nothing was begun"
        print(f"fedprune: interrupted; {begun}", file=sys.stderr)
        raise typer.Exit(_INTERRUPTED) from None
    summary = sweeps.summarize(sweep)
    if as_json:
        show(summary, [], as_json)
    else:
        _show(summary, sweep.path)
    if summary["errors"]:
        failed = ", ".join(summary["errors"])
        print(
            f"fedprune: {len(summary['errors'])} of {len(sweep.grid.cells())} cells failed: "
            f"{failed}; `fedprune resume {sweep.path}` tries them again",
            file=sys.stderr,
        )
        raise typer.Exit(1)


def _show(summary: Mapping[str, Any], folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from fedprune.study import sweep_privacy

    console = Console()
    if not console.is_terminal:
        console = Console(width=_TABLE_WIDTH)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    keys = [axis["key"] for axis in summary["over"] if axis["key"] != "seed"]
    for name in (*keys, "seeds", *_SHOWN, "private - magnitude"):
        table.add_column(name, justify="right")
    for group in summary["groups"]:
        table.add_row(*_texts(group, keys))
    console.print(table)
    for cell, error in summary["errors"].items():
        console.print(f"{cell} failed: {error}", markup=False, highlight=False, soft_wrap=True)
    for sentence in sweep_privacy.in_words(summary["epsilons"]["if_the_same_clients_answered_all"]):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    seconds = summary["seconds"]
    console.print(
        f"time: {seconds['wall']:,.0f} s; spared by taking over what other cells had done: "
        f"{seconds['spared']:,.0f} s",
        highlight=False,
    )
    files = ", ".join(name for name in (*summary["files"].values(), "summary.json") if name)
    console.print(f"sweep: {folder} ({files}; cells/)", markup=False, highlight=False)


_SHOWN: Mapping[str, tuple[str, str]] = {
    "recall": ("mask_recall", ".3f"),
    "dense": ("accuracy_dense", ".4f"),
    "private": ("accuracy_private", ".4f"),
    "no noise": ("accuracy_votes_without_noise", ".4f"),
    "magnitude": ("accuracy_magnitude", ".4f"),
    "random": ("accuracy_random", ".4f"),
    "epsilon": ("epsilon", "g"),
    "params": ("params_pruned", ",.0f"),
    "MACs": ("macs_pruned", ",.0f"),
    "gap change": ("fairness_gap_change", "+.4f"),
}


def _texts(group: Mapping[str, Any], keys: list[str]) -> list[str]:
    settings = [_setting(group["settings"][key]) for key in keys]
    if not group["seeds"]:
        return [*settings, "0", *["-"] * len(_SHOWN), "-"]
    means = [_mean(group["means"][column], form) for column, form in _SHOWN.values()]
    return [*settings, str(len(group["seeds"])), *means, _difference(group)]


def _setting(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _mean(found: Mapping[str, float] | None, form: str) -> str:
    return "-" if found is None else format(found["mean"], form)


def _difference(group: Mapping[str, Any]) -> str:
    found = group["private_minus_magnitude"]
    if found is None:
        return "-"
    if found["low"] is None:
        return f"{found['mean']:+.4f}"
    return f"{found['mean']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"
