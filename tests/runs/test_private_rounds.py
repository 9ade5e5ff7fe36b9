"""The plan of private training: its noise keeps to the target, for the filter and in truth."""

from __future__ import annotations

import pytest

from fedprune import config as configuration
from fedprune.errors import PrivacyError
from fedprune.privacy.budgets.composition import noise_multiplier_for
from fedprune.privacy.budgets.events import PureEvent
from fedprune.privacy.budgets.filters import filter_of
from fedprune.runs.private_rounds import (
    noise_multiplier,
    private_rounds,
    record_budget,
    round_event,
    steps_per_round,
    training_epsilon,
)


def config_of(*overrides: str) -> configuration.Config:
    return configuration.load(None, ["train.private=fine-tune", *overrides])


@pytest.mark.parametrize(
    ("epochs", "rate", "steps"),
    [(5, 0.1, 50), (1, 0.3, 4), (3, 0.3, 10), (1, 1.0, 1), (2, 0.7, 3), (1, 0.05, 20)],
)
def test_a_record_is_drawn_once_an_epoch_in_expectation(
    epochs: int, rate: float, steps: int
) -> None:
    train = config_of(f"train.local_epochs={epochs}", f"train.sample_rate={rate}").train
    assert steps_per_round(train) == steps
    assert steps * rate >= epochs - 1e-9 > (steps - 1) * rate - 1e-9


def test_private_rounds_are_those_that_the_configuration_names() -> None:
    several = ("prune.steps=3", "prune.schedule=geometric", "train.rounds=7")
    assert private_rounds(config_of(*several)) == 30
    assert private_rounds(config_of(*several, "train.private=all")) == 37
    assert private_rounds(config_of(*several, "train.private=off")) == 0


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
@pytest.mark.parametrize("others", [[], [PureEvent(0.5)]])
def test_the_filter_lets_every_planned_round_pass_and_no_further_one(
    epsilon: float, others: list[PureEvent]
) -> None:
    config = config_of(f"train.dp_epsilon={epsilon}")
    rounds, noise = private_rounds(config), noise_multiplier(config, others)
    kept = filter_of(record_budget(config, others))
    charge = kept.charge(round_event(config.train, noise))
    spent = sum(kept.charge(other) for other in others) + rounds * charge
    assert spent <= kept.capacity < spent + charge


def test_the_noise_is_a_little_more_than_an_unfiltered_schedule_needs() -> None:
    config = config_of()
    steps = steps_per_round(config.train) * private_rounds(config)
    least = noise_multiplier_for(8.0, 1e-5, config.train.sample_rate, steps)
    noise = noise_multiplier(config)
    assert least < noise < 1.15 * least
    true = training_epsilon(config.train, noise, private_rounds(config))
    assert 0.85 * 8 < true < 8
    assert training_epsilon(config.train, noise, 0) == 0
    fewer = training_epsilon(config.train, noise, 5)
    assert 0 < fewer < true


def test_a_configured_noise_goes_first_and_an_impossible_target_is_refused() -> None:
    assert noise_multiplier(config_of("train.noise_multiplier=3.5")) == 3.5
    with pytest.raises(PrivacyError, match=r"no noise keeps 10 rounds within train.dp_epsilon = 1"):
        noise_multiplier(config_of("train.dp_epsilon=1.0"), [PureEvent(4.0)])
