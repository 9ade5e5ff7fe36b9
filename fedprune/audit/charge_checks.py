"""Whether what clients were charged is what the configuration asks them for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedprune import runs
from fedprune.config import Config
from fedprune.errors import PrivacyError
from fedprune.privacy import Entry
from fedprune.privacy.budgets.events import (
    ADD_REMOVE_RECORD,
    REPLACEMENT,
    UNIT_OF,
    Event,
    PureEvent,
    SubsampledGaussianEvent,
    ZeroConcentratedEvent,
    event_from_text,
)
from fedprune.privacy.budgets.filters import filter_of
from fedprune.privacy.budgets.guarantees import RECORD_ONLY

KIND_OF_TRUST: Mapping[str, str] = {
    "local": "mask-report",
    "shuffle": "mask-report",
    "aggregate": "aggregate-share",
    "record": "record-scores",
}
UPDATE = "dp-update"


def charge_flaw(config: Config, num_units: int, entry: Entry) -> str | None:
    """Say what is wrong with a charged entry of a run of a network with so many units, or None.

    A deployed client may add more noise to its DP-SGD updates than it was asked for; everything
    else is fixed by the configuration.
    """
    if entry.relation not in UNIT_OF:
        return None
    allowed = {
        KIND_OF_TRUST.get(config.privacy.trust),
        UPDATE if _updates(config) else None,
        _table_kind(config),
    }
    if entry.kind not in allowed:
        return f"charges a {entry.kind!r}, which this configuration does not ask for"
    if not _round_fits(config, entry):
        return f"charges a {entry.kind!r} in round {entry.round!r}, in which none is asked for"
    try:
        event = event_from_text(entry.event)
    except PrivacyError as error:
        return f"charges what is {error}"
    relation = ADD_REMOVE_RECORD if entry.kind in RECORD_ONLY else REPLACEMENT
    if entry.relation != relation or not _EVENT_FITS[entry.kind](config, num_units, event):
        return (
            f"charges {event!r} under {entry.relation} (epsilon = {entry.epsilon:g}), which is not "
            "what this configuration asks for"
        )
    return None


def _updates(config: Config) -> bool:
    return runs.private_rounds(config) > 0


def _table_kind(config: Config) -> str | None:
    return runs.table_kind(runs.table_mechanism(config, 1)) if runs.tables_noised(config) else None


def _round_fits(config: Config, entry: Entry) -> bool:
    if entry.kind in (runs.RECORD_TABLE, runs.CLIENT_TABLE):
        return entry.round in runs.TABLE_ROUNDS
    if entry.kind == UPDATE:
        return entry.round.startswith(("train-", "tune-"))
    steps, phases = config.prune.steps, config.privacy.phases
    return entry.round in {
        runs.phase_round(step, phase)
        for step in range(1, steps + 1)
        for phase in range(1, phases + 1)
    }


def _report_fits(config: Config, num_units: int, event: Event) -> bool:
    return event == PureEvent(runs.report_epsilon(config, num_units))


def _zero_concentrated_fits(config: Config, num_units: int, event: Event) -> bool:
    """No more than the configured (epsilon, delta) allows; the exact rho depends on the layout."""
    if not isinstance(event, ZeroConcentratedEvent):
        return False
    budget = runs.answer_budget(config, num_units)
    kept = filter_of(budget)
    return kept.charge(event) <= kept.capacity


def _update_fits(config: Config, num_units: int, event: Event) -> bool:
    asked = runs.round_event(config, num_units)
    return (
        isinstance(event, SubsampledGaussianEvent)
        and (event.sampling_rate, event.steps) == (asked.sampling_rate, asked.steps)
        and event.noise_multiplier >= asked.noise_multiplier
    )


def _table_fits(config: Config, num_units: int, event: Event) -> bool:
    del num_units
    return event in runs.table_events(config)


_EVENT_FITS: Mapping[str, Callable[[Config, int, Event], bool]] = {
    "mask-report": _report_fits,
    "aggregate-share": _zero_concentrated_fits,
    "record-scores": _zero_concentrated_fits,
    UPDATE: _update_fits,
    runs.RECORD_TABLE: _table_fits,
    runs.CLIENT_TABLE: _table_fits,
}
