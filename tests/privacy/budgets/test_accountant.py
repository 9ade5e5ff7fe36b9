"""Totals are kept apart by relation, and every statement says what it is about."""

from __future__ import annotations

from fractions import Fraction

import pytest

from fedprune.errors import PrivacyError
from fedprune.privacy.budgets.accountant import Accountant, Release
from fedprune.privacy.budgets.accounting import (
    TRUST,
    Budget,
    Guarantee,
    not_covered,
    overall_client_epsilon,
)
from fedprune.privacy.budgets.composition import epsilon_of
from fedprune.privacy.budgets.events import (
    ADD_REMOVE_RECORD,
    CLIENT,
    NO_CHARGE,
    RECORD,
    RELATIONS,
    REPLACEMENT,
    UNPROTECTED,
    PureEvent,
    SubsampledGaussianEvent,
    ZeroConcentratedEvent,
)
from fedprune.privacy.budgets.guarantees import COVERS, DP_UPDATES, overall_epsilon

REPORT = Release("mask-report", REPLACEMENT, PureEvent(4.0))
TRAINING = Release("dp-update", ADD_REMOVE_RECORD, SubsampledGaussianEvent(1.0, 0.01, 1000))
UPDATE = Release("model-update", UNPROTECTED, None)
KEYS = Release("secure-sum-keys", NO_CHARGE, None)


def test_a_clients_report_counts_for_records_and_training_not_for_clients() -> None:
    both = Accountant().compose(REPORT, TRAINING, KEYS)
    assert both.relations == (REPLACEMENT, ADD_REMOVE_RECORD)
    assert both.events(REPLACEMENT) == [(PureEvent(4.0), 1)]
    assert both.epsilon(REPLACEMENT, 0.0) == pytest.approx(4.0)
    record = both.epsilon(ADD_REMOVE_RECORD, 1e-5)
    assert record == epsilon_of([(PureEvent(4.0), 1), (TRAINING.event, 1)], 1e-5, ADD_REMOVE_RECORD)
    assert record > both.epsilon(REPLACEMENT, 1e-5)
    assert Accountant().compose(TRAINING).relations == (ADD_REMOVE_RECORD,)


def test_composing_gives_a_new_accountant_and_epsilon_never_falls() -> None:
    empty = Accountant()
    longer = empty.compose(REPORT)
    assert empty.history == ()
    assert longer.compose(REPORT).epsilon(REPLACEMENT, 1e-6) > longer.epsilon(REPLACEMENT, 1e-6)


def test_an_odometer_counts_in_its_budgets_currency() -> None:
    twice = Accountant().compose(Release("mask-report", REPLACEMENT, PureEvent(1.0), 2))
    assert twice.spent(Budget(4.0)) == 2
    assert twice.odometer(Budget(4.0)) == 2
    assert twice.odometer(Budget.zcdp(20.0, 1e-5)) >= twice.epsilon(REPLACEMENT, 1e-5)
    assert Accountant().spent(Budget(4.0)) == Fraction(0)
    with pytest.raises(PrivacyError, match="cannot count"):
        Accountant().compose(TRAINING).spent(Budget(1.0, relation=ADD_REMOVE_RECORD))


def test_every_relation_gets_one_sentence_that_names_what_is_left_out() -> None:
    mixed = Accountant().compose(REPORT, TRAINING, UPDATE)
    client, record = mixed.sentences({REPLACEMENT: 0.0, ADD_REMOVE_RECORD: 1e-5}, "local")
    assert client.startswith("per client: epsilon = 4, delta = 0 in all")
    assert "covers: mask-report;" in client
    assert "single records only" in client
    assert record.startswith("per record: epsilon = ")
    assert "covers: dp-update, mask-report;" in record
    assert TRUST["record"] in record
    for sentence in (client, record):
        assert "model updates" in sentence
        assert TRUST["local"] in sentence
    with pytest.raises(PrivacyError, match="no delta was given for add-remove-record"):
        mixed.sentences({REPLACEMENT: 0.0}, "local")
    with pytest.raises(PrivacyError, match="trust must be"):
        mixed.sentences({REPLACEMENT: 0.0, ADD_REMOVE_RECORD: 1e-5}, "everybody")


@pytest.mark.parametrize(
    "values",
    [
        ("mask-report", REPLACEMENT, None),
        ("model-update", UNPROTECTED, PureEvent(1.0)),
        ("mask-report", "friendship", PureEvent(1.0)),
        ("mask-report", REPLACEMENT, PureEvent(1.0), 0),
    ],
)
def test_releases_that_mean_nothing_are_refused(values: tuple[object, ...]) -> None:
    with pytest.raises(PrivacyError):
        Release(*values)  # type: ignore[arg-type]


@pytest.mark.parametrize("trust", [name for name in TRUST if name != "none"])
def test_a_guarantee_says_unit_relation_trust_and_what_it_covers(trust: str) -> None:
    unit, relation = (RECORD, ADD_REMOVE_RECORD) if trust == "record" else (CLIENT, REPLACEMENT)
    words = Guarantee(2.0, 1e-5, unit, relation, trust).sentence()
    for part in (
        "epsilon = 2,",
        "delta = 1e-05",
        COVERS[trust],
        f"one {unit}",
        RELATIONS[relation],
    ):
        assert part in words
    assert words.endswith(f"must be trusted: {TRUST[trust]}")


def test_dp_sgd_and_no_protection_have_words_of_their_own() -> None:
    trained = Guarantee(8.0, 1e-5, RECORD, ADD_REMOVE_RECORD, "record", covers=DP_UPDATES)
    assert DP_UPDATES in trained.sentence()
    none = Guarantee(4.0, 0.0, CLIENT, REPLACEMENT, "none").sentence()
    assert none.startswith("no privacy claim")
    with pytest.raises(PrivacyError, match="trust must be"):
        Guarantee(4.0, 0.0, CLIENT, REPLACEMENT, "hope")
    with pytest.raises(PrivacyError, match="belong together"):
        Guarantee(4.0, 0.0, RECORD, REPLACEMENT, "local")


def test_an_overall_epsilon_exists_only_where_every_message_is_covered() -> None:
    assert overall_client_epsilon(4.0, ["mask-report", "secure-sum-keys"]) == 4.0
    assert overall_client_epsilon(4.0, ["aggregate-share", "secure-sum-unmask"]) == 4.0
    for kind in ("dp-update", "record-scores", "model-update", "raw-mask", "something-new"):
        assert overall_client_epsilon(4.0, ["mask-report", kind]) is None
    assert overall_epsilon(8.0, ["mask-report", "dp-update", "record-scores"], RECORD) == 8.0
    assert overall_epsilon(8.0, ["dp-update", "count-table"], RECORD) is None


def test_what_covers_records_is_left_out_for_clients_only() -> None:
    kinds = ["dp-update", "record-scores", "mask-report", "secure-sum-shares"]
    assert len(not_covered(kinds)) == 2
    assert not_covered(kinds, RECORD) == []


def test_zero_concentrated_events_add_up() -> None:
    share = Release("aggregate-share", REPLACEMENT, ZeroConcentratedEvent(0.05), 4)
    budget = Budget.zcdp(8.0, 1e-5)
    assert float(Accountant().compose(share).spent(budget)) == pytest.approx(0.2, abs=1e-10)
