"""choose: the smallest model of a sweep that no group pays for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedprune.cli.options import AsJson, show

if TYPE_CHECKING:
    from fedprune.study.keep_choice import Choice, Tested


def choose(
    sweep: Annotated[Path, typer.Argument(metavar="SWEEP", help="Folder of a sweep.")],
    tolerance: Annotated[
        float, typer.Option(help="Growth of the gap that is too much, in accuracy.")
    ] = 0.02,
    level: Annotated[
        float, typer.Option(help="Chance of accepting a model beyond the tolerance.")
    ] = 0.05,
    as_json: AsJson = False,
) -> None:
    """Choose how much to keep under a tolerance for the gap between groups.

    Runs of a sweep over prune.keep_* are tested from the largest down, each at the full level, and
    the first that fails ends it. Exit 1 if nothing was accepted for some combination and seed.
    """
    from fedprune.federated.sweep_folder import Sweep
    from fedprune.study import keep_choice

    opened = Sweep.open(sweep)
    choices = keep_choice.choose_among(
        opened.grid, opened.finished(), tolerance=tolerance, level=level
    )
    found: dict[str, Any] = {
        "key": keep_choice.swept_keep(opened.grid),
        "tolerance": tolerance,
        "level": level,
        "choices": [choice.to_json() for choice in choices],
    }
    lines = [line for choice in choices for line in _lines(choice, found["key"])]
    lines.append(
        f"in each line the chance to accept a model whose gap grew by {tolerance:g} or more is at "
        f"most {level:g}, over clients and rows drawn anew; the models are taken as they are"
    )
    show(found, lines, as_json)
    if any(choice.keep is None for choice in choices):
        raise typer.Exit(1)


def _lines(choice: Choice, key: str) -> list[str]:
    named = [f"{name} = {value}" for name, value in choice.settings.items()]
    title = ", ".join([*named, f"seed {choice.seed}"])
    kept = "nothing is accepted" if choice.keep is None else f"{key} = {choice.keep:g}"
    return [f"{title}: {kept}", *(f"  {_tested(one)}" for one in choice.tested)]


def _tested(one: Tested) -> str:
    if one.p_value is None or one.upper_limit is None:
        return f"keep {one.keep:g}: not tested, {one.reason}"
    said = (
        f"keep {one.keep:g}: {'accepted' if one.accepted else 'not accepted'}, the gap grew by at "
        f"most {one.upper_limit:.4f} (p = {one.p_value:.3g})"
    )
    return f"{said}; nothing is known of {', '.join(one.left_out)}" if one.left_out else said
