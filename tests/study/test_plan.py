"""The plan says before the run what the run then shows."""

from __future__ import annotations

import pytest
from helpers import small_config
from people import FROM_ONE_PLACE, load_from_one_place

from fedprune import data, privacy, study
from fedprune.config import Config
from fedprune.errors import FairnessError


def plan_of(*overrides: str) -> study.Plan:
    config: Config = small_config(*overrides)
    dataset = data.load(config.data.dataset, config.data.root, seed=config.seed)
    return study.plan(config, dataset.schema, dataset)


def test_the_plan_states_the_mechanism_s_own_variance_and_sizes() -> None:
    found = plan_of("data.clients=300")
    mechanism = privacy.ThresholdResponse(4.0, found.num_units)
    assert found.variance_per_vote == mechanism.variance_per_vote(300, assigned=True)
    assert found.up_bytes_per_client == mechanism.report_bytes
    assert found.mechanism == repr(mechanism)
    assert "one client" in found.guarantee
    assert "any change of one client's whole data" in found.guarantee
    assert "nobody" in found.guarantee


def test_more_clients_or_more_epsilon_never_predict_less() -> None:
    recalls = [plan_of(f"data.clients={n}").predicted_recall for n in (10, 100, 1000)]
    assert recalls == sorted(recalls)
    recalls = [plan_of(f"privacy.epsilon={e}").predicted_recall for e in (0.5, 2, 8)]
    assert recalls == sorted(recalls)


def test_steps_divide_the_clients_among_them() -> None:
    one = plan_of("data.clients=300")
    three = plan_of("data.clients=300", "prune.schedule=geometric", "prune.steps=3")
    assert three.reports_per_step == 100
    assert three.variance_per_vote == pytest.approx(
        (one.variance_per_vote + 1 / 1200) * 3 - 1 / 400, rel=0.02
    )


def test_a_hopeless_plan_says_so_and_its_advice_is_true() -> None:
    found = plan_of("data.clients=6", "privacy.epsilon=1")
    assert not found.useful
    assert "nearly useless" in found.advice[0]
    clients = int(found.advice[1].split("about ")[1].split(" ")[0].replace(",", ""))
    mechanism = privacy.ThresholdResponse(1.0, found.num_units)
    assert privacy.predict_recall(mechanism.variance_per_vote(clients)) >= 0.9 - 1e-6


def test_no_trust_means_no_noise_and_no_claim() -> None:
    found = plan_of("privacy.trust=none")
    assert found.variance_per_vote == 0
    assert found.predicted_recall == 1
    assert found.mechanism is None
    assert "no privacy claim" in found.guarantee


def test_groups_that_cannot_be_compared_are_refused_where_tables_are_wanted() -> None:
    config = small_config(f"data.dataset={FROM_ONE_PLACE}", "data.root=", "data.groups=place")
    dataset = load_from_one_place("", seed=config.seed)
    with pytest.raises(FairnessError, match="column 'place' is constant: every row is 'north'"):
        study.plan(config, dataset.schema, dataset)
    off = small_config(
        f"data.dataset={FROM_ONE_PLACE}", "data.root=", "data.groups=place", "evaluate.tables=off"
    )
    assert study.plan(off, dataset.schema, dataset).num_units > 0
    assert study.plan(config, dataset.schema).num_units > 0  # the rows lie with the clients
