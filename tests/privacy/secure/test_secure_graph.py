"""Degree and threshold of secure sums against the probabilities they stand for."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.errors import PrivacyError, ReportError
from fedprune.privacy.secure.secure_graph import SharingPlan
from fedprune.privacy.secure.secure_terms import SumTerms


def terms(clients: tuple[int, ...], min_survivors: int, colluding: int = 0) -> SumTerms:
    """Terms about short vectors."""
    return SumTerms("run", "sum", clients, min_survivors, colluding, 4, 32)


def exceeds(population: int, marked: int, drawn: int, bound: int) -> Fraction:
    """P[more than `bound` marked among those drawn], exactly."""
    ways = sum(
        comb(marked, k) * comb(population - marked, drawn - k) for k in range(bound + 1, drawn + 1)
    )
    return Fraction(ways, comb(population, drawn))


@pytest.mark.parametrize(("n", "survivors", "colluding"), [(300, 240, 0), (400, 360, 40)])
def test_a_sparse_plan_keeps_its_failure_probabilities(
    n: int, survivors: int, colluding: int
) -> None:
    plan = SharingPlan.of(n, survivors, colluding)
    assert not plan.complete
    k, t, c = plan.degree, plan.threshold, plan.colluding_neighbours
    assert k % 2 == 0
    assert n * exceeds(n - 1, colluding, k, c) <= Fraction(1, 2**40)
    assert 2 * t > k + 1 + c
    gone = n - survivors + colluding
    row = (
        Fraction(comb(n - k // 2, gone - k // 2), comb(n, gone)) if gone >= k // 2 else Fraction(0)
    )
    assert n * row <= Fraction(1, 2**40)
    assert n * exceeds(n - 1, n - survivors, k, k - t) <= Fraction(1, 2**30)


@pytest.mark.parametrize("n", [2, 3, 4, 9, 100])
def test_few_clients_are_all_neighbours_and_survivors_suffice(n: int) -> None:
    plan = SharingPlan.of(n, n)
    assert plan.complete
    assert plan.threshold == n // 2 + 1
    least = SharingPlan.of(n, max(2, plan.threshold))
    assert least.threshold <= least.min_survivors


@pytest.mark.parametrize(("n", "colluding"), [(3, 0), (5, 1), (6, 1), (6, 2)])
def test_no_split_of_the_holders_reaches_both_secrets(n: int, colluding: int) -> None:
    plan = SharingPlan.of(n, n, colluding)
    honest = plan.holders - colluding
    for told_lost in product((False, True), repeat=honest):
        keys = sum(told_lost) + colluding
        seeds = honest - sum(told_lost) + colluding
        assert not (keys >= plan.threshold and seeds >= plan.threshold)


def test_the_degree_grows_slowly() -> None:
    degrees = [SharingPlan.of(n, (9 * n) // 10).degree for n in (1000, 10_000, 100_000)]
    assert degrees == sorted(degrees)
    assert degrees[-1] < 1.5 * degrees[0]


@settings(max_examples=30)
@given(st.integers(2, 260), st.integers(0, 10**6), st.data())
def test_neighbours_are_mutual_and_slots_are_where_holders_stand(
    n: int, first: int, data: st.DataObject
) -> None:
    agreed = terms(tuple(range(first, first + 3 * n, 3)), n)
    client = data.draw(st.sampled_from(agreed.participants))
    holders = agreed.holders(client)
    assert len(set(holders)) == len(holders) == agreed.plan.holders
    assert client in holders
    for slot, holder in enumerate(holders):
        assert agreed.slot(client, holder) == slot
        assert client in agreed.holders(holder)
    strangers = set(agreed.participants) - set(holders)
    if strangers:
        with pytest.raises(ReportError, match="no neighbour"):
            agreed.slot(client, min(strangers))


def test_another_name_gives_another_ring() -> None:
    clients = tuple(range(300))
    first = SumTerms("run", "a", clients, 290, 0, 4, 32)
    second = SumTerms("run", "b", clients, 290, 0, 4, 32)
    assert first.holders(0) != second.holders(0)


@pytest.mark.parametrize(
    ("n", "survivors", "colluding", "message"),
    [
        (10, 1, 0, "min_reports in"),
        (10, 11, 0, "min_reports in"),
        (10, 5, 0, "at least 6"),
        (10, 6, 3, "at least 7"),
        (10, 8, -1, "colluding"),
        (10, 8, 8, "colluding"),
        (1000, 500, 0, "at least 501"),
    ],
)
def test_too_few_survivors_are_refused(
    n: int, survivors: int, colluding: int, message: str
) -> None:
    with pytest.raises(PrivacyError, match=message):
        SharingPlan.of(n, survivors, colluding)


@pytest.mark.parametrize("clients", [(), (1, 1), (2, 1), (-1, 2)])
def test_participants_must_be_different_rising_numbers(clients: tuple[int, ...]) -> None:
    with pytest.raises(PrivacyError, match="different, rising"):
        terms(clients, 2)


def test_terms_need_entries_and_a_modulus() -> None:
    for entries, bits in ((0, 32), (4, 33)):
        with pytest.raises(PrivacyError, match="modulus of 32 or 64 bits"):
            SumTerms("run", "sum", (1, 2), 2, 0, entries, bits)
