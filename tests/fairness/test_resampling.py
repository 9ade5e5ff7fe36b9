"""The bootstrap on counts is the bootstrap on rows."""

from __future__ import annotations

import numpy as np
import pytest

from fedprune.errors import FairnessError
from fedprune.fairness.resampling import resample_clients, resample_records


def make_tables(seed: int, clients: int, high: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, size=(clients, 3, 2, 2))


def generator() -> np.random.Generator:
    return np.random.default_rng(11)


def test_resampled_clients_have_the_moments_of_drawing_clients() -> None:
    tables = make_tables(0, 40)
    totals = resample_clients(tables, 20_000, generator())
    flat, expected = totals.reshape(20_000, -1), tables.reshape(40, -1).astype(float)
    covariance = 40 * np.cov(expected.T, ddof=0)
    error = np.sqrt(np.diag(covariance))
    assert np.abs(flat.mean(0) - expected.sum(0)).max() < 5 * error.max() / np.sqrt(20_000)
    scale = np.outer(error, error)
    assert np.abs((np.cov(flat.T) - covariance) / scale).max() < 0.05


def test_resampled_records_have_the_moments_of_a_stratified_multinomial() -> None:
    tables = make_tables(1, 4, high=30)
    totals = resample_records(tables, 20_000, generator()).reshape(20_000, -1)
    covariance = np.zeros((12, 12))
    for counts in tables.reshape(4, -1).astype(float):
        share = counts / counts.sum()
        covariance += counts.sum() * (np.diag(share) - np.outer(share, share))
    error = np.sqrt(np.diag(covariance))
    assert np.abs(totals.mean(0) - tables.reshape(4, -1).sum(0)).max() < 5 * error.max() / 141
    assert np.abs((np.cov(totals.T) - covariance) / np.outer(error, error)).max() < 0.05


def test_resampled_records_keep_every_large_client_at_its_size() -> None:
    tables = make_tables(2, 5)
    totals = resample_records(tables, 50, generator())
    assert np.all(totals.sum(axis=(1, 2, 3)) == tables.sum())


def test_clients_of_one_row_still_vary_when_records_are_resampled() -> None:
    tables = np.zeros((50, 1, 2, 2), dtype=np.int64)
    tables[:20, 0, 1, 1] = 1
    tables[20:, 0, 1, 0] = 1
    right = resample_records(tables, 4000, generator())[:, 0, 1, 1]
    assert right.var() == pytest.approx(50 * 0.4 * 0.6, rel=0.1)


def test_clients_without_rows_change_nothing() -> None:
    tables = make_tables(3, 35)
    padded = np.concatenate([tables, np.zeros((10, 3, 2, 2), dtype=np.int64)])
    for resample in (resample_clients, resample_records):
        assert np.array_equal(
            resample(tables, 100, generator()), resample(padded, 100, generator())
        )


def test_a_resample_in_many_chunks_is_one_of_every_chunk() -> None:
    tables = np.ones((100_000, 1, 2, 2), dtype=np.int64)
    totals = resample_clients(tables, 13, generator())
    assert totals.shape == (13, 1, 2, 2)
    assert np.all(totals.sum(axis=(1, 2, 3)) == 400_000)


def test_nothing_to_resample_is_refused() -> None:
    empty = np.zeros((3, 2, 2, 2), dtype=np.int64)
    for resample in (resample_clients, resample_records):
        with pytest.raises(FairnessError, match="no client has rows"):
            resample(empty, 10, generator())
        with pytest.raises(FairnessError, match="resamples must be at least 1"):
            resample(empty + 1, 0, generator())
