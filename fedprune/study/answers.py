"""What a client's private answer is under each trust setting, and what it costs the client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedprune import runs
from fedprune.config import Config
from fedprune.privacy.budgets.accountant import Accountant, Release
from fedprune.privacy.budgets.events import (
    ADD_REMOVE_RECORD,
    REPLACEMENT,
    UNIT_OF,
    Event,
    PureEvent,
)
from fedprune.privacy.secure.secure_graph import SharingPlan
from fedprune.privacy.votes.planning import RecallPrediction, recall_interval
from fedprune.study.availability import reports_per_step


@dataclass(frozen=True)
class Answer:
    """One client's answer about its mask.

    Attributes:
        mechanism: in words; None without noise.
        variance: of one unit's vote over all clients of a step; None where it depends on the data.
        up_bytes: what a client sends, masks of a secure sum included, its key messages not.
        kind: as ledgers call it.
        relation, event: what it is charged; None without a guarantee.
    """

    num_units: int
    mechanism: str | None
    variance: float | None
    up_bytes: int
    kind: str
    relation: str
    event: Event | None

    def prediction(self, keep: float) -> RecallPrediction | None:
        """Predict the recall; None where it depends on the data."""
        if self.variance is None:
            return None
        return recall_interval(self.variance, self.num_units, keep)


def answer_of(config: Config, num_units: int, keep: float) -> Answer:
    """Describe a client's answer about its mask.

    Raises:
        PrivacyError: if the configured guarantee cannot be met.
    """
    return _ANSWERS[config.privacy.trust](config, num_units, keep)


def _reported(config: Config, num_units: int, keep: float) -> Answer:
    del keep  # reports are about bits, however many are ones
    mechanism = runs.report_mechanism(config, num_units, config.data.clients // config.prune.steps)
    reports = max(1, reports_per_step(config))
    variance = mechanism.variance_per_vote(reports, assigned=runs.assigns_blocks(config))
    event = PureEvent(mechanism.epsilon)
    return Answer(
        num_units, repr(mechanism), variance, mechanism.report_bytes, "mask-report", REPLACEMENT,
        event,
    )  # fmt: skip


def _summed(config: Config, num_units: int, keep: float) -> Answer:
    mechanism = runs.aggregate_mechanism(config, num_units, int(keep * num_units + 1e-9))
    most = runs.most_available(config, runs.asked_at_once(config))
    # Refuses what no secure sum can be made for.
    SharingPlan.of(most, mechanism.min_reports, mechanism.colluding)
    variance = mechanism.variance_per_vote(max(mechanism.min_reports, reports_per_step(config)))
    return Answer(
        num_units, repr(mechanism), variance, mechanism.report_bytes, "aggregate-share",
        REPLACEMENT, mechanism.event,
    )  # fmt: skip


def _scored(config: Config, num_units: int, keep: float) -> Answer:
    del keep
    mechanism = runs.record_mechanism(config, num_units)
    return Answer(
        num_units, repr(mechanism), None, mechanism.report_bytes, "record-scores",
        ADD_REMOVE_RECORD, mechanism.event,
    )  # fmt: skip


def _open(config: Config, num_units: int, keep: float) -> Answer:
    del config, keep
    return Answer(num_units, None, 0.0, (num_units + 7) // 8, "raw-mask", "unprotected", None)


_ANSWERS: Mapping[str, Callable[[Config, int, float], Answer]] = {
    "local": _reported,
    "shuffle": _reported,
    "aggregate": _summed,
    "record": _scored,
    "none": _open,
}


def planned_totals(config: Config, answer: Answer) -> tuple[str, ...]:
    """Say what a client that is in every round spends, one sentence per neighbouring relation."""
    spent = Accountant().compose(Release(answer.kind, answer.relation, answer.event))
    rounds, train = runs.private_rounds(config), config.train
    if rounds:
        event = runs.round_event(config, answer.num_units)
        spent = spent.compose(Release("dp-update", ADD_REMOVE_RECORD, event, rounds))
    for released in runs.table_events(config):
        kind = runs.table_kind(runs.table_mechanism(config, 1))
        spent = spent.compose(Release(kind, runs.table_relation(config), released))
    open_rounds = train.rounds + config.prune.steps * train.fine_tune_rounds - rounds
    if open_rounds:
        spent = spent.compose(Release("model-update", "unprotected", None, open_rounds))
    if train.recalibrate:
        norms = config.prune.steps * train.recalibrate
        spent = spent.compose(Release("norm-statistics", "unprotected", None, norms))
    deltas = dict.fromkeys(UNIT_OF, config.privacy.delta)
    deltas |= {budget.relation: budget.delta for budget in runs.budgets(config, answer.num_units)}
    return tuple(spent.sentences(deltas, config.privacy.trust))
