from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedprune import data
from fedprune.errors import DataError

Counts = NDArray[np.int64]


def rows(count: int, classes: int, sites: int, seed: int) -> data.Rows:
    generator = np.random.default_rng(seed)
    return data.Rows(
        stored=np.zeros((count, 1), dtype=np.float32),
        labels=generator.integers(classes, size=count),
        sites=np.concatenate([np.arange(sites), generator.integers(sites, size=count)])[:count],
    )


def made_up(train: int, test: int, classes: int, sites: int = 1, seed: int = 0) -> data.Dataset:
    return data.Dataset(
        name="made up",
        num_classes=classes,
        input_shape=(1,),
        train=rows(train, classes, sites, seed),
        test=rows(test, classes, 1, seed + 1),
        input_unit="none",
        site_names=tuple(f"site {site}" for site in range(sites)),
    )


def counts(federation: data.Federation, dataset: data.Dataset, split: str) -> Counts:
    """Count every client's rows of every class: [clients, classes]."""
    held = getattr(dataset, split).labels
    index = getattr(federation, f"{split}_index")
    return np.array(
        [
            np.bincount(held[index(client)], minlength=dataset.num_classes)
            for client in range(federation.num_clients)
        ]
    )


@st.composite
def divisions(draw: st.DrawFn) -> tuple[data.Dataset, str, dict[str, float]]:
    kind = draw(st.sampled_from(list(data.PARTITIONS)))
    train = draw(st.integers(1, 300))
    clients = draw(st.integers(1, train))
    dataset = made_up(
        train,
        draw(st.integers(0, 80)),
        draw(st.integers(1, 12)),
        sites=clients if kind == "natural" else 1,
        seed=draw(st.integers(0, 1000)),
    )
    return (
        dataset,
        kind,
        {
            "clients": clients,
            "seed": draw(st.integers(0, 1000)),
            "alpha": draw(st.sampled_from([1e-300, 1e-3, 0.1, 1.0, 1e3, 1e308])),
            "shards_per_client": draw(st.integers(1, train // clients)),
        },
    )


@settings(max_examples=300)
@given(divisions())
def test_every_row_goes_to_exactly_one_client_and_no_client_is_empty(
    division: tuple[data.Dataset, str, dict[str, float]],
) -> None:
    dataset, kind, options = division
    federation = data.partition(dataset, kind, **options)  # type: ignore[arg-type]
    clients = range(federation.num_clients)
    assert len(clients) == options["clients"]
    for split, index in (("train", federation.train_index), ("test", federation.test_index)):
        held = np.concatenate([index(client) for client in clients])
        assert np.array_equal(np.sort(held), np.arange(len(getattr(dataset, split))))
        assert np.array_equal(held, federation.row_order(split))
        owners = np.concatenate([np.full(len(index(client)), client) for client in clients])
        assert np.array_equal(owners, federation.client_ids(split))
        assert federation.client_ids(split).dtype == np.int64
    assert min(len(federation.train_index(client)) for client in clients) >= 1


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "shards"])
def test_a_seed_names_the_division_and_another_seed_another(kind: str) -> None:
    dataset = made_up(500, 100, 10)

    def order(seed: int) -> list[bytes]:
        federation = data.partition(dataset, kind, clients=20, seed=seed)
        return [
            part.tobytes()
            for assignment in (federation.train, federation.test)
            for part in (assignment.order, assignment.offsets)
        ]

    assert order(1) == order(1)
    assert order(1)[0] != order(2)[0]
    assert order(1)[2] != order(2)[2]


@pytest.mark.parametrize(("train", "test", "clients"), [(50_000, 10_000, 10_000), (103, 17, 10)])
def test_iid_sizes_differ_by_at_most_one(train: int, test: int, clients: int) -> None:
    federation = data.partition(made_up(train, test, 10), "iid", clients=clients, seed=4)
    for assignment, count in ((federation.train, train), (federation.test, test)):
        sizes = assignment.sizes()
        assert sizes.max() - sizes.min() <= (count % clients > 0)


@pytest.mark.parametrize("alpha", [0.05, 0.3, 5.0])
def test_ten_thousand_dirichlet_clients_over_ten_classes_all_hold_rows(alpha: float) -> None:
    dataset = made_up(50_000, 10_000, 10)
    federation = data.partition(dataset, "dirichlet", clients=10_000, seed=4, alpha=alpha)
    assert federation.train.sizes().min() == 1
    assert federation.train.sizes().sum() == 50_000


def test_the_smaller_alpha_the_fewer_classes_a_client_sees() -> None:
    dataset = made_up(20_000, 1_000, 10)

    def largest_share(alpha: float) -> float:
        held = counts(
            data.partition(dataset, "dirichlet", clients=20, seed=1, alpha=alpha), dataset, "train"
        )
        return float((held.max(axis=1) / held.sum(axis=1)).mean())

    skewed, mild, even = (largest_share(alpha) for alpha in (0.01, 0.5, 1e6))
    assert skewed > 0.9 > mild > even
    assert even == pytest.approx(0.1, abs=0.01)


def test_dirichlet_shares_have_the_moments_of_their_distribution() -> None:
    dataset = made_up(200_000, 10, 10)
    alpha, clients = 0.5, 50
    held = counts(
        data.partition(dataset, "dirichlet", clients=clients, seed=2, alpha=alpha),
        dataset,
        "train",
    )
    shares = held / held.sum(axis=0)
    mean = 1 / clients
    variance = mean * (1 - mean) / (clients * alpha + 1)  # of Dir(alpha, ..., alpha)
    assert shares.mean() == pytest.approx(mean)
    assert shares.var() == pytest.approx(variance, rel=0.3)  # 500 shares: about 3 sigma


@pytest.mark.parametrize("kind", ["dirichlet", "shards"])
@pytest.mark.parametrize("clients", [7, 400])
def test_test_rows_follow_the_clients_shares_of_every_class(kind: str, clients: int) -> None:
    dataset = made_up(3_000, 900, 10)
    federation = data.partition(dataset, kind, clients=clients, seed=3)
    train, test = (counts(federation, dataset, split) for split in ("train", "test"))
    expected = train / train.sum(axis=0) * test.sum(axis=0)
    assert np.abs(test - expected).max() < 1 + 1e-6
    assert not test[train == 0].any()


def test_shards_are_runs_of_equal_labels_of_nearly_equal_size() -> None:
    dataset = made_up(5_000, 1_000, 10)
    federation = data.partition(dataset, "shards", clients=100, seed=3, shards_per_client=2)
    held = counts(federation, dataset, "train")
    assert set(federation.train.sizes()) == {50}
    # Of 200 runs, nine at most straddle two labels; all others hold one.
    assert ((held > 0).sum(axis=1) <= 2).sum() >= 91
    assert ((held > 0).sum(axis=1) <= 4).all()


def test_natural_clients_are_the_sites() -> None:
    dataset = made_up(200, 50, 3, sites=4)
    federation = data.partition(dataset, "natural", clients=4, seed=3)
    assert dataset.train.sites is not None
    for client in range(4):
        assert set(dataset.train.sites[federation.train_index(client)]) == {client}


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("random", {"clients": 2}, r"data.partition must be one of iid, .*, got 'random'"),
        ("iid", {"clients": 0}, r"data.clients must be in 1 to 30, .* got 0"),
        ("iid", {"clients": 31}, r"data.clients must be in 1 to 30, .* got 31"),
        ("dirichlet", {"clients": 3, "alpha": 0.0}, r"data.alpha must be .* above 0, got 0.0"),
        ("dirichlet", {"clients": 3, "alpha": float("nan")}, r"data.alpha must be .* got nan"),
        ("shards", {"clients": 3, "shards_per_client": 0}, r"must be in 1 to 10, .* got 0"),
        ("shards", {"clients": 3, "shards_per_client": 11}, r"must be in 1 to 10, .* got 11"),
        ("natural", {"clients": 3}, r"data.clients must be 2 .*\(site 0, site 1\), got 3"),
    ],
)
def test_a_division_that_cannot_be_made_is_refused_in_one_sentence(
    kind: str, options: dict[str, float], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        data.partition(made_up(30, 5, 3, sites=2), kind, seed=1, **options)  # type: ignore[arg-type]


def test_natural_needs_sites_and_every_site_needs_training_rows() -> None:
    digits = data.load("digits", "", seed=1)
    with pytest.raises(DataError, match=r"dataset 'digits', which has no natural sites"):
        data.partition(digits, "natural", clients=1, seed=1)
    full = made_up(30, 5, 3, sites=4)
    assert full.train.sites is not None
    lacking = replace(full, train=full.train.take(np.flatnonzero(full.train.sites != 2)))
    with pytest.raises(DataError, match=r"site 2 of dataset 'made up' has no training rows"):
        data.partition(lacking, "natural", clients=4, seed=1)


def test_a_client_that_does_not_exist_is_refused() -> None:
    federation = data.partition(made_up(30, 5, 3), "iid", clients=3, seed=1)
    for client in (-1, 3):
        with pytest.raises(DataError, match=f"client must be in 0 to 2, got {client}"):
            federation.train_index(client)
