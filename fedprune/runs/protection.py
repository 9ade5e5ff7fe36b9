"""What a configuration's privacy settings call for: mechanisms and budgets, in one place.

The server asks with these, a simulation's ledger opens with these, the plan predicts from these
and an auditor checks against these, so that all four agree by construction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from fedprune.config import Config, PruneConfig
from fedprune.errors import PrivacyError
from fedprune.privacy.budgets.accounting import Budget, compose_pure
from fedprune.privacy.budgets.events import (
    ADD_REMOVE_RECORD,
    RELATIONS,
    REPLACEMENT,
    UNIT_OF,
    Event,
    PureEvent,
    SubsampledGaussianEvent,
    ZeroConcentratedEvent,
)
from fedprune.privacy.budgets.filters import filter_of
from fedprune.privacy.budgets.guarantees import TRUST, Guarantee
from fedprune.privacy.budgets.shuffling import (
    central_epsilon,
    local_epsilon_for,
    threshold_probability,
)
from fedprune.privacy.mechanisms.aggregate import AggregateMechanism
from fedprune.privacy.mechanisms.assignment import public_ranks
from fedprune.privacy.mechanisms.mechanism import Mechanism
from fedprune.privacy.mechanisms.record_scores import RecordScores
from fedprune.privacy.mechanisms.special_cases import make_mechanism
from fedprune.privacy.mechanisms.threshold_response import ThresholdResponse
from fedprune.privacy.votes.phases import phase_cohorts, phase_plan, units_to_ask
from fedprune.randomness import SimulationRandomness
from fedprune.runs.availability import expected_reports, least_available, most_available
from fedprune.runs.count_tables import table_events, table_relation
from fedprune.runs.private_rounds import noise_multiplier, private_rounds
from fedprune.runs.private_rounds import record_budget as target_budget
from fedprune.runs.private_rounds import round_event as event_of_round

JsonDict = dict[str, Any]


def asked_at_once(config: Config) -> int:
    """How many clients are asked in one phase of one step, at least."""
    return config.data.clients // (config.prune.steps * config.privacy.phases)


def min_reports(config: Config) -> int:
    """How many reports shuffling and secure sums need: as configured, else the quorum's.

    Under `availability.participation` that is the quorum of the clients that are available save
    once in a thousand rounds; and for a secure sum more than half of those that then may be, which
    is what its threshold needs.
    """
    if config.privacy.min_reports:
        return config.privacy.min_reports
    asked = asked_at_once(config)
    there = least_available(config, asked)
    wanted = max(1, math.ceil(config.federation.quorum * there - 1e-9))
    if config.privacy.trust == "aggregate" and config.availability.participation < 1:
        wanted = max(wanted, min(asked, most_available(config, asked) // 2 + 1))
    return wanted


# Mask reports.


def report_epsilon(config: Config, num_units: int) -> float:
    """What one mask report costs its own client under local and shuffle.

    Under shuffle it is the largest local epsilon that the promised number of reports amplifies
    to the configured central (epsilon, delta). Where the network is pruned in one step that rests
    on the mechanism in use, whose bound is tighter; over several steps, in which the number of
    units falls, on any mechanism's.

    Args:
        config: the run's.
        num_units: of the dense network.
    """
    privacy = config.privacy
    if privacy.trust != "shuffle":
        return privacy.epsilon
    units = num_units if config.prune.steps == 1 else 0
    return _amplified(privacy.epsilon, privacy.delta, min_reports(config), privacy.mechanism, units)


@lru_cache(maxsize=64)
def _amplified(epsilon: float, delta: float, reports: int, name: str, num_units: int) -> float:
    if not num_units:
        return local_epsilon_for(epsilon, reports, delta)

    def share(local: float) -> float:
        return _preferred_share(make_mechanism(name, local, num_units)) or 0.5

    return local_epsilon_for(epsilon, reports, delta, threshold_probability=share)


def _preferred_share(mechanism: Mechanism) -> float | None:
    """The share of patterns that a threshold response prefers; None for other mechanisms."""
    if not isinstance(mechanism, ThresholdResponse):
        return None
    return threshold_probability(mechanism.block_units, mechanism.threshold)


def guarantee(config: Config) -> Guarantee:
    """What a client's answer about its mask is protected by, with all qualifiers."""
    privacy = config.privacy
    relation = ADD_REMOVE_RECORD if privacy.trust == "record" else REPLACEMENT
    return Guarantee(privacy.epsilon, privacy.delta, UNIT_OF[relation], relation, privacy.trust)


def report_mechanism(config: Config, num_units: int, num_reports: int) -> Mechanism:
    """The mechanism of mask reports about `num_units` units, under local and shuffle.

    Where clients are told their block, there are no more blocks than the reports that are expected
    of the `num_reports` that are asked for, so that every unit is spoken about.
    """
    epsilon, name = report_epsilon(config, num_units), config.privacy.mechanism
    expected = max(1, expected_reports(config, num_reports))
    limit = expected if assigns_blocks(config) else None
    return make_mechanism(name, epsilon, num_units, num_reports=limit)


def assigns_blocks(config: Config) -> bool:
    """Whether clients are told their block; a shuffler needs them to draw it."""
    return config.privacy.trust == "local"


def ranks_label(config: Config) -> str:
    """Names the public order of the clients: cohorts, phases and blocks follow from it."""
    return f"fedprune seed {config.seed}"


def ranked_clients(config: Config) -> list[tuple[int, ...]]:
    """Who is asked in which step: disjoint cohorts, each in the public order."""
    order = np.argsort(public_ranks(config.data.clients, ranks_label(config)), kind="stable")
    return [tuple(part.tolist()) for part in np.array_split(order, config.prune.steps)]


def participants(config: Config, round_name: str) -> list[int]:
    """Who is to train in a round, by number: drawn from all clients, whether available or not."""
    everybody = config.data.clients
    generator = SimulationRandomness(config.seed, "server", "participants", round_name).generator
    chosen = min(config.train.clients_per_round, everybody)
    return sorted(generator.permutation(everybody)[:chosen].tolist())


def phase_round(step: int, phase: int) -> str:
    """Name the round in which a phase of a step is asked."""
    return f"report-{step}" if phase == 1 else f"report-{step}-{phase}"


def step_phases(
    config: Config, num_units: int, ranked: Sequence[int]
) -> list[tuple[tuple[int, ...], int]]:
    """Divide a step's clients over its phases.

    Args:
        config: the run's.
        num_units: of the step's layout.
        ranked: the step's clients in their public order.

    Returns:
        (clients, how many units they are asked about), a phase a row.
    """
    whole = report_mechanism(config, num_units, len(ranked))
    variance = whole.variance_per_vote(len(ranked), assigned=True)
    planned = phase_plan(config.privacy.phases, num_units, variance=variance)
    return [
        (tuple(ranked[i] for i in places), units_to_ask(share, num_units))
        for places, (_, share) in zip(phase_cohorts(len(ranked), planned), planned, strict=True)
    ]


def central_guarantee(config: Config, mechanism: Mechanism, reports: int) -> JsonDict:
    """What shuffling really came to, from the reports that were forwarded.

    Never above what the configuration promises where at least `min_reports` were.
    """
    found = central_epsilon(
        mechanism.epsilon,
        reports,
        config.privacy.delta,
        threshold_probability=_preferred_share(mechanism),
    )
    return {
        "epsilon": found,
        "delta": config.privacy.delta,
        "local_epsilon": mechanism.epsilon,
        "reports": reports,
        "sentence": (
            f"{reports} shuffled reports of local epsilon = {mechanism.epsilon:.4g} come to a "
            f"central epsilon = {found:.4g}, delta = {config.privacy.delta:g}; unit of "
            f"protection: one client; neighbouring relation: {REPLACEMENT} "
            f"({RELATIONS[REPLACEMENT]}); must be trusted: {TRUST['shuffle']}"
        ),
    }


def aggregate_mechanism(config: Config, num_units: int, keep: int | None) -> AggregateMechanism:
    """The mechanism of a secure sum of masks, of which each keeps `keep` units."""
    fixed = keep if keep is not None and 0 < keep < num_units else None
    return AggregateMechanism(
        config.privacy.epsilon,
        config.privacy.delta,
        num_units,
        max(2, min_reports(config)),
        fixed,
        config.privacy.colluding,
    )


def record_mechanism(config: Config, num_units: int) -> RecordScores:
    """The mechanism of per-record scores."""
    return RecordScores(config.privacy.epsilon, config.privacy.delta, num_units)


def answer_budget(config: Config, num_units: int) -> Budget:
    """What a client's answers about its mask alone may mean."""
    privacy, relation = config.privacy, guarantee(config).relation
    if privacy.trust in ("aggregate", "record"):
        return Budget.zcdp(privacy.epsilon, privacy.delta, relation)
    return Budget(report_epsilon(config, num_units), relation=relation)


def budgets(config: Config, num_units: int) -> tuple[Budget, ...]:
    """What every simulated client allows: at most one budget a neighbouring relation.

    A client-level budget for what is protected at client level, and a record-level one where
    something is protected at record level only; mask reports count under both.
    """
    tables = table_events(config)
    if tables:
        return _budgets_with_tables(config, num_units, tables)
    privacy = config.privacy
    trains = private_rounds(config) > 0
    own: tuple[Budget, ...] = ()
    if privacy.trust in ("local", "shuffle", "aggregate") or not trains:
        own = (answer_budget(config, num_units),)  # under "none" nothing is ever charged to it
    if privacy.trust == "record" and trains:
        own = ()
    return (*own, record_budget(config, num_units)) if trains else own


def _budgets_with_tables(config: Config, num_units: int, tables: list[Event]) -> tuple[Budget, ...]:
    """As `budgets`, with room for noised count tables, which may be protected at either level."""
    privacy, relation = config.privacy, table_relation(config)
    answers = _reported(config, num_units)
    of_client = answers if privacy.trust in ("local", "shuffle", "aggregate") else []
    of_client = [*of_client, *(tables if relation == REPLACEMENT else [])]
    found = [_covering(of_client, privacy.delta, REPLACEMENT)] if of_client else []
    if private_rounds(config):
        found.append(record_budget(config, num_units))
    elif privacy.trust == "record" or relation == ADD_REMOVE_RECORD:
        found.append(_covering([*answers, *tables], privacy.delta, ADD_REMOVE_RECORD))
    return tuple(found)


def _covering(events: list[Event], delta: float, relation: str) -> Budget:
    """The smallest budget that lets all of these events through."""
    pure = [event.epsilon for event in events if isinstance(event, PureEvent)]
    if len(pure) == len(events):
        total = compose_pure(pure)
        nearest = float(total)
        enough = nearest if Fraction(nearest) >= total else math.nextafter(nearest, math.inf)
        return Budget(enough, relation=relation)
    return _enough_for(events, lambda epsilon: Budget.zcdp(epsilon, delta, relation))


def round_event(config: Config, num_units: int) -> SubsampledGaussianEvent:
    """What one round of DP-SGD releases about one client's records.

    Raises:
        PrivacyError: if no noise can meet the configured target.
    """
    return event_of_round(config.train, _noise(config, num_units))


def record_budget(config: Config, num_units: int) -> Budget:
    """The record-level budget of a run with DP-SGD: `train.dp_epsilon` covers the reports too.

    With a noise multiplier given by hand it is what that noise comes to.
    """
    if not config.train.noise_multiplier:
        return _calibrated(_training_alone(config), _beside_training(config, num_units))[1]
    rounds, delta = private_rounds(config), config.train.dp_delta
    events = [*_beside_training(config, num_units), *[round_event(config, num_units)] * rounds]
    return _enough_for(
        events, lambda epsilon: Budget.renyi(epsilon, delta, ADD_REMOVE_RECORD, events)
    )


def _noise(config: Config, num_units: int) -> float:
    if config.train.noise_multiplier:
        return config.train.noise_multiplier
    return _calibrated(_training_alone(config), _beside_training(config, num_units))[0]


@lru_cache(maxsize=32)
def _calibrated(config: Config, others: tuple[Event, ...]) -> tuple[float, Budget]:
    noise = noise_multiplier(config, others)
    found = config.train.model_copy(update={"noise_multiplier": noise})  # not searched for again
    return noise, target_budget(config.model_copy(update={"train": found}), others)


def _training_alone(config: Config) -> Config:
    """Keep of a configuration what calibration depends on, so that it is done once."""
    return Config(
        train=config.train.model_copy(update={"learning_rate": 1.0}),
        prune=PruneConfig(steps=config.prune.steps, schedule=config.prune.schedule),
    )


def _beside_training(config: Config, num_units: int) -> tuple[Event, ...]:
    """What a client's other answers release at record level, at most."""
    return (*_reported(config, num_units), *table_events(config))


def _reported(config: Config, num_units: int) -> list[Event]:
    """What a client's answer about its mask releases at record level, at most."""
    privacy = config.privacy
    if privacy.trust in ("local", "shuffle"):
        return [PureEvent(report_epsilon(config, num_units))]
    if privacy.trust in ("aggregate", "record"):
        rho = filter_of(answer_budget(config, num_units)).capacity
        return [ZeroConcentratedEvent(math.nextafter(float(rho), math.inf))]
    return []


def _enough_for(events: list[Event], budget_at: Callable[[float], Budget]) -> Budget:
    """The smallest epsilon, in steps of a thousandth, whose filter lets all of the events through.

    Raises:
        PrivacyError: if no epsilon up to a million does.
    """
    low, high = 1, 10**9  # thousandths
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _fits(events, middle / 1000, budget_at) else (middle + 1, high)
    if not _fits(events, low / 1000, budget_at):
        raise PrivacyError("the noise is so small that no epsilon covers it")
    return budget_at(low / 1000)


def _fits(events: list[Event], epsilon: float, budget_at: Callable[[float], Budget]) -> bool:
    try:
        keeper = filter_of(budget_at(epsilon))
    except PrivacyError:
        return False
    return sum(keeper.charge(event) for event in events) <= keeper.capacity
