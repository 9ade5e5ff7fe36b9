"""Columns of groups that cannot answer are refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from fedprune.errors import FairnessError
from fedprune.fairness import check_groups, summarize
from fedprune.randomness import SimulationRandomness


def test_a_column_with_two_groups_on_two_clients_passes() -> None:
    check_groups([0, 1, 1], ["a", "b"], [0, 0, 1], group="sex")
    check_groups([0, 2], ["a", "b", "c"])


@pytest.mark.parametrize(
    ("codes", "clients", "message"),
    [
        (None, None, "no column 'sex'"),
        ([1, 1, 1], None, "constant: every row is 'b'"),
        ([0, 1, 1], [3, 3, 3], "of one client"),
        ([], None, "zero examples"),
        ([0, 2], None, "code of sex"),
        ([0.0, 1.0], None, "whole-number codes"),
        ([0.0, np.nan], None, "whole-number codes"),
        ([0, 1], [0, 1, 2], "client_ids must have one entry"),
        ([0, 1], [-1, 4], "client number must be at least 0, got -1"),
        ([0, -1], None, "code of sex must be from 0 to names - 1 = 1, got -1"),
    ],
)
def test_a_column_that_cannot_answer_is_refused(codes, clients, message) -> None:
    with pytest.raises(FairnessError, match=message):
        check_groups(codes, ["a", "b"], clients, group="sex")


def test_a_group_on_one_client_is_said_to_be_that_clients() -> None:
    tables = np.full((4, 2, 2, 2), 20)
    tables[1:, 1] = 0
    method = summarize(tables, ["a", "b"], SimulationRandomness(0), resamples=100).method
    assert "On one client only, whose figures they therefore are: b." in method
