"""What a configuration's training under privacy comes to: steps, noise, and what they mean.

The noise is fixed before the first round, for a client that takes part in every private round.
Two figures follow from one schedule: `training_epsilon`, the tightest bound for a schedule fixed
beforehand, for display; and what a client's filter charges, which holds for any schedule and is a
little more. Noise is chosen so that the filter lets every round pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fedprune.config import Config, TrainConfig
from fedprune.errors import PrivacyError
from fedprune.privacy.budgets.accounting import Budget
from fedprune.privacy.budgets.composition import epsilon_of
from fedprune.privacy.budgets.events import ADD_REMOVE_RECORD, Event, SubsampledGaussianEvent
from fedprune.privacy.budgets.filters import filter_of
from fedprune.privacy.mechanisms.poisson import PoissonSampling

_LEAST, _MOST = 2.0**-6, 2.0**16
_PRECISION = 1e-4


def steps_per_round(train: TrainConfig) -> int:
    """Tell how many steps a client takes in a round: local_epochs / sample_rate, rounded up.

    In so many steps a record is drawn local_epochs times in expectation, whatever the number of
    records.
    """
    return max(1, math.ceil(train.local_epochs / train.sample_rate - 1e-9))


def private_rounds(config: Config) -> int:
    """Tell how many rounds of a run are private; no client takes part in more."""
    train = config.train
    tuned = train.fine_tune_rounds * config.prune.steps
    rounds: Mapping[str, int] = {"off": 0, "fine-tune": tuned, "all": train.rounds + tuned}
    return rounds[train.private]


def round_event(train: TrainConfig, noise_multiplier: float) -> SubsampledGaussianEvent:
    """Say what one round releases about one client's records."""
    rate = PoissonSampling(train.sample_rate).accounted_rate
    return SubsampledGaussianEvent(noise_multiplier, rate, steps_per_round(train))


def noise_multiplier(config: Config, other_events: Sequence[Event] = ()) -> float:
    """Choose the noise: as configured, or the least that keeps to the target.

    Args:
        config: its train.noise_multiplier goes first; 0 asks for the target's.
        other_events: what else is charged to the same record-level budget.

    Raises:
        PrivacyError: if no noise can keep to the target.
    """
    train = config.train
    if train.noise_multiplier > 0:
        return train.noise_multiplier
    return fitting_noise(train, private_rounds(config), other_events)


def record_budget(config: Config, other_events: Sequence[Event] = ()) -> Budget:
    """Make the record-level budget that a run's private rounds fill, at the order that suits."""
    train = config.train
    multiplier = noise_multiplier(config, other_events)
    event = round_event(train, multiplier)
    events = [*other_events, *[event] * private_rounds(config)]
    return Budget.renyi(train.dp_epsilon, train.dp_delta, ADD_REMOVE_RECORD, events)


def training_epsilon(train: TrainConfig, multiplier: float, rounds: int) -> float:
    """Bound epsilon at train.dp_delta for a client that took part in so many rounds."""
    if rounds == 0:
        return 0.0
    event = round_event(train, multiplier)
    return epsilon_of([(event, rounds)], train.dp_delta, ADD_REMOVE_RECORD)


def fitting_noise(train: TrainConfig, rounds: int, other_events: Sequence[Event] = ()) -> float:
    """Find the least noise with which a filter of the target lets all rounds pass.

    Raises:
        PrivacyError: if none does.
    """
    if not _fits(train, _MOST, rounds, other_events):
        raise PrivacyError(
            f"no noise keeps {rounds} rounds within train.dp_epsilon = {train.dp_epsilon:g} at "
            f"train.dp_delta = {train.dp_delta:g} beside {len(other_events)} other events"
        )
    low, high = _LEAST, _MOST
    while high > low * (1 + _PRECISION):
        middle = math.sqrt(low * high)
        if _fits(train, middle, rounds, other_events):
            high = middle
        else:
            low = middle
    return high


def _fits(train: TrainConfig, noise: float, rounds: int, other_events: Sequence[Event]) -> bool:
    event = round_event(train, noise)
    events = [*other_events, *[event] * rounds]
    kept = filter_of(Budget.renyi(train.dp_epsilon, train.dp_delta, ADD_REMOVE_RECORD, events))
    others = sum(kept.charge(other) for other in other_events)
    return others + rounds * kept.charge(event) <= kept.capacity
