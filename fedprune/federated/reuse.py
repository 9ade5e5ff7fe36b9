"""Taking over what another run of the same sweep has already done.

The run copies the series' last model and repeats its events with the same results and a field
"reused_from" that names the run which did the work; its own ledger gets the rows that its own
clients' messages would have got. What is charged to a budget is never taken over: noise is drawn
and written down anew in every run that uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from fedprune.config import Config
from fedprune.federated.experiment import Experiment, Held, JsonDict, file_name
from fedprune.federated.finished import SPARED, Series, Taken
from fedprune.federated.messages import model_digest

REUSED = "reused_from"
SaidAgain = Callable[[str, str], None]

# What an outcome does not depend on, by table; every other key counts, also one yet to come.
_Ignored = Mapping[str, tuple[str, ...]]
_REPORTING = (
    "seeds", "baselines", "certified_radius", "certified_rows", "attacked_rows",
    "local_certificates", "confidence", "resamples",
)  # fmt: skip
_BY_TRAINING: _Ignored = {
    "": ("out", "privacy", "prune"),
    "evaluate": (*_REPORTING, "tables"),
    "train": (
        "rounds", "fine_tune_rounds", "learning_rate", "fine_tune_learning_rate", "private",
        "dp_epsilon", "dp_delta", "noise_multiplier", "max_grad_norm", "sample_rate",
    ),
}  # fmt: skip
_BY_BASELINES: _Ignored = {
    "": ("out",),
    "evaluate": _REPORTING,
    "privacy": ("epsilon", "delta", "prior", "mechanism", "min_reports", "masking"),
}
_BY_BASELINES_BESIDE_PHASES: _Ignored = {"": ("out",), "evaluate": _REPORTING}


def training_series(
    experiment: Experiment,
    start: Held,
    prefix: str,
    stage: str,
    rounds: int,
    learning_rate: float,
) -> Series | None:
    """Name rounds of training in the open by what their outcome depends on.

    Returns:
        None where there are no rounds, or who is there in them is a matter of the run's own clock.
    """
    if rounds == 0 or experiment.config.availability.configured:
        return None

    def key() -> str:
        return _key(
            experiment,
            ["training", stage, rounds, learning_rate],
            start,
            _what_counts(experiment.config, _BY_TRAINING),
        )

    phases = tuple(f"{stage}-{number}" for number in range(1, rounds + 1))
    return Series(key() if start.there else "", prefix, phases, phases[-1])


def baseline_series(experiment: Experiment, dense: Held, name: str) -> Series | None:
    """Name the whole path of a baseline by what its outcome depends on.

    Returns:
        None where the path is more than a matter of the simulation: its fine-tuning is noised, its
        count tables leave the clients, or the private path says who is there in it.
    """
    config = experiment.config
    if config.train.recalibrate:  # a series ends with a vote or a round of training
        return None
    if config.train.private != "off" or config.evaluate.tables in ("unprotected", "noised"):
        return None
    if config.availability.configured:
        return None
    # How phases divide the clients follows from epsilon, and scores are computed by cohorts.
    ignored = _BY_BASELINES if config.privacy.phases == 1 else _BY_BASELINES_BESIDE_PHASES
    key = _key(experiment, ["baseline", name], dense, _what_counts(config, ignored))
    steps, rounds = config.prune.steps, config.train.fine_tune_rounds
    return Series(key, f"{name}/", None, f"tune-{steps}-{rounds}" if rounds else f"vote-{steps}")


def take_over(
    experiment: Experiment, series: Series | None, said_again: SaidAgain | None = None
) -> None:
    """Finish the phases of a series that another run has done.

    The run's own copies of the model and of the events come first: from then on it can be
    continued without the other run.

    Args:
        experiment: the run.
        series: None where nothing may be taken over.
        said_again: given a phase's name without a prefix and the run that did it, lets this run's
            clients write down what they would have sent.
    """
    if series is None:
        return
    folder, note = experiment.folder, _note(series)
    if not folder.is_finished(series.model) and not folder.has(note):
        found = experiment.sharing.finished.find(series) if experiment.sharing else None
        if found is None:
            return
        _copy(experiment, series, found)
    if folder.has(note):
        _repeat(experiment, series, folder.read_json(note), said_again)
        (folder.path / note).unlink()


def leave(experiment: Experiment, series: Series | None) -> None:
    """Let further runs of the sweep take over a series that this run has finished."""
    if series is not None and series.key and experiment.sharing is not None:
        experiment.sharing.finished.add(series, experiment.folder, _checkpoint(series))


def _key(experiment: Experiment, kind: list[object], start: Held, counts: JsonDict) -> str:
    sharing = experiment.sharing
    if sharing is None:
        return ""
    rows = sharing.kept.rows_digest(experiment.config)
    return sharing.finished.key(kind, model_digest(*start.value), rows, counts)


def _what_counts(config: Config, ignored: _Ignored) -> JsonDict:
    tables = config.model_dump()
    for table, keys in ignored.items():
        for key in keys:
            del (tables[table] if table else tables)[key]
    return tables


def _copy(experiment: Experiment, series: Series, found: Taken) -> None:
    for suffix in (".safetensors", ".json"):
        content = found.model.with_name(found.model.name + suffix).read_bytes()
        experiment.folder.write_bytes(_checkpoint(series) + suffix, content)
    note = {"from": found.source, "events": list(found.events)}
    experiment.folder.write_json(_note(series), note)


def _repeat(
    experiment: Experiment, series: Series, note: JsonDict, said_again: SaidAgain | None
) -> None:
    source = str(note["from"])
    experiment.reporter.say(f"{_in_words(series)}: as {source} has done it")

    for event in note["events"]:

        def action(event: JsonDict = event) -> JsonDict:
            if said_again is not None:
                said_again(event["phase"], source)
            return dict(event["result"])

        named = {REUSED: source, SPARED: event["seconds"]}
        experiment.phase(f"{series.prefix}{event['phase']}", action, named=named)


def _in_words(series: Series) -> str:
    if series.phases is None:
        return series.prefix.rstrip("/").replace("_", " ")
    return f"{series.prefix}{series.last.rpartition('-')[0]}"


def _checkpoint(series: Series) -> str:
    return f"checkpoints/{file_name(series.model)}"


def _note(series: Series) -> str:
    return str(Path(f"{_checkpoint(series)}.reused.json"))
