"""Counts with their resamples, and accuracies with the intervals that follow from both."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fedprune.fairness.counting import Counts
from fedprune.fairness.intervals import Interval, wilson
from fedprune.fairness.noise import TableNoise
from fedprune.fairness.noisy import (
    check_rows,
    decided_groups,
    effective_holders,
    resample_noisy_records,
)
from fedprune.fairness.resampling import resample_clients, resample_records
from fedprune.randomness import SimulationRandomness

Floats = NDArray[np.float64]

MIN_CLIENTS = 30  # fewer clients than this are not resampled as wholes
MIN_HOLDERS = 10  # nor are they where a group to be shown has rows on fewer clients than this


@dataclass(frozen=True)
class Sample:
    """Counts, their resamples, and how many independent draws stand behind each group.

    Attributes:
        total: [num_groups, 2, 2] counts.
        totals: [resamples, num_groups, 2, 2] counts of every resample.
        shown: codes of the groups that have rows enough.
        holders: [num_groups] clients with rows of the group; estimated where there is noise.
        effective: [num_groups] clients of equal size that would say as much about the group.
        clients: clients with rows; all clients where there is noise.
        effective_clients: clients of equal size that would say as much about all groups together.
        whole_clients: whether whole clients were resampled, or else records within clients.
        confidence: of every interval.
        noise: in every cell of every client's table; None where counts are exact.
        noise_variance: of every count in `total`.
    """

    total: Counts
    totals: Floats
    shown: Counts
    holders: Counts
    effective: Counts
    clients: int
    effective_clients: int
    whole_clients: bool
    confidence: float
    noise: TableNoise | None = None
    noise_variance: float = 0.0

    def independent(self, code: int) -> int:
        """Independent draws behind a group: clients that hold it, in effect, or its rows."""
        if self.whole_clients:
            return max(2, int(self.effective[code]))
        return int(self.total[code].sum())

    def independent_overall(self) -> int:
        """Independent draws behind all groups together, as `independent` of one."""
        return max(2, self.effective_clients) if self.whole_clients else int(self.total.sum())

    def of_group(self, code: int) -> Part:
        """Give the rows of one group."""
        return Part(
            self,
            self.total[code],
            self.totals[:, code],
            int(self.holders[code]),
            self.independent(code),
        )

    def of_all(self) -> Part:
        """Give the rows of all groups."""
        return Part(
            self,
            self.total.sum(axis=0),
            self.totals.sum(axis=1),
            self.clients,
            self.independent_overall(),
        )

    def of_others(self, code: int) -> Part:
        """Give the rows of all groups but one."""
        own, every = self.of_group(code), self.of_all()
        return Part(
            self, every.cells - own.cells, every.draws - own.draws, every.holders, every.independent
        )

    def shares(self, counts: Counts) -> tuple[Floats, Floats]:
        """Dense and pruned accuracy of `counts`; noise cannot make them impossible."""
        dense, pruned = accuracies(counts)
        return np.clip(dense, 0.0, 1.0), np.clip(pruned, 0.0, 1.0)


@dataclass(frozen=True)
class Part:
    """Some of a sample's rows, with the resamples of their counts.

    Attributes:
        sample: whose rows they are.
        cells: [2, 2] counts by dense and pruned correctness.
        draws: [resamples, 2, 2] the counts of every resample.
        holders: clients that have such rows.
        independent: draws behind them, as `Sample.independent`.
    """

    sample: Sample
    cells: Counts
    draws: Floats
    holders: int
    independent: int

    def seen(self) -> int:
        """Draws that could have shown a change that no row shows.

        Rows; or where clients were resampled, as many as their likeness leaves of them. Nothing
        is known of how alike a client's rows are in a change that never occurred. They are taken
        to be as alike as they are in being right: the effective number of rows is the one whose
        binomial variance is that of the accuracy over the resamples (Korn and Graubard 1998). It
        is never less than the clients, which are independent in any case.
        """
        rows = float(self.cells.sum())
        if not self.sample.whole_clients:
            return int(rows)
        share = float(np.clip(self.cells[1].sum() / rows, 0.0, 1.0))
        freedom = self.independent / (self.independent - 1)
        variance = float(np.nanvar(accuracies(self.draws)[0])) * freedom
        alike = share * (1 - share) / variance if variance > 0 else 0.0
        return max(self.holders, int(min(rows, alike)))


def draw_sample(
    tables: Counts,
    min_group: int,
    confidence: float,
    resamples: int,
    rng: SimulationRandomness,
    noise: TableNoise | None = None,
) -> Sample:
    """Resample client tables [num_clients, num_groups, 2, 2] as their number allows."""
    if noise is not None:
        return _draw_noisy_sample(tables, min_group, confidence, resamples, rng, noise)
    by_client = tables.sum(axis=(2, 3))
    shown = np.flatnonzero(by_client.sum(axis=0) >= min_group)
    holders = (by_client > 0).sum(axis=0)
    clients = int((by_client.sum(axis=1) > 0).sum())
    whole = clients >= MIN_CLIENTS and bool(np.all(holders[shown] >= MIN_HOLDERS))
    draw = resample_clients if whole else resample_records
    totals = draw(tables, resamples, rng.stream("fairness resamples").generator)
    return Sample(
        total=tables.sum(axis=0),
        totals=totals,
        shown=shown,
        holders=holders,
        effective=effective_holders(tables),
        clients=clients,
        effective_clients=_effective_clients(tables, None),
        whole_clients=whole,
        confidence=confidence,
    )


def _draw_noisy_sample(
    tables: Counts,
    min_group: int,
    confidence: float,
    resamples: int,
    rng: SimulationRandomness,
    noise: TableNoise,
) -> Sample:
    check_rows(tables, noise)
    generator = rng.stream("fairness resamples").generator
    shown = decided_groups(tables, min_group, confidence, noise)
    holders = effective_holders(tables, noise)
    whole = len(tables) >= MIN_CLIENTS and bool(np.all(holders[shown] >= MIN_HOLDERS))
    if whole:
        totals = resample_clients(tables, resamples, generator, noisy=True)
    else:
        totals = resample_noisy_records(tables, resamples, noise, generator)
    return Sample(
        total=tables.sum(axis=0),
        totals=totals,
        shown=shown,
        holders=holders,
        effective=holders,
        clients=len(tables),
        effective_clients=_effective_clients(tables, noise),
        whole_clients=whole,
        confidence=confidence,
        noise=noise,
        noise_variance=noise.times(len(tables)).variance,
    )


def _effective_clients(tables: Counts, noise: TableNoise | None) -> int:
    all_groups = None if noise is None else noise.times(tables.shape[1])
    return int(effective_holders(tables.sum(axis=1, keepdims=True), all_groups)[0])


def accuracies(counts: Counts | Floats) -> tuple[Floats, Floats]:
    """Dense and pruned accuracy of [..., 2, 2] counts: [...] each, NaN where there are no rows."""
    rows = counts.sum(axis=(-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return counts[..., 1, :].sum(axis=-1) / rows, counts[..., :, 1].sum(axis=-1) / rows


def accuracy_interval(
    counts: Counts,
    draws: Floats,
    independent: int,
    whole_clients: bool,
    confidence: float,
    noise_variance: float = 0.0,
) -> Interval:
    """Wilson's interval, with the effective number of rows where clients were resampled.

    Rows of one client resemble each other, so many rows of few clients say less than as many
    independent ones: the effective number is the one whose binomial variance is the variance over
    the resamples, reduced for the degrees of freedom (Korn and Graubard 1998, for
    Clopper-Pearson; Dean and Pagano 2015 recommend the same for Wilson).

    Noise in the counts is an error of its own, as wide near 0 and 1 as elsewhere. Wilson's
    interval is that of the sampling alone, and the noise is added to each side in squares (the
    method of variance estimates recovery, Zou and Donner 2008).

    Args:
        counts: [2] wrong and right.
        draws: [resamples] accuracy in every resample.
        independent: clients that hold the rows.
        whole_clients: whether whole clients were resampled.
        confidence: coverage asked for.
        noise_variance: of the noise in each of the two counts.
    """
    rows = float(counts.sum())
    raw = float(counts[1]) / rows
    right = min(rows, max(0.0, float(counts[1])))
    share = right / rows
    from_noise = noise_variance * ((1 - share) ** 2 + share**2) / rows**2
    normal = float(stats.norm.isf((1 - confidence) / 2))
    if not whole_clients:
        sampling = wilson(right, rows, confidence)
        return _add_noise(sampling, raw, normal * math.sqrt(from_noise))
    spread, total = share * (1 - share), float(np.nanvar(draws))
    variance = total - from_noise
    if noise_variance:  # the resamples hold the noise too, and rows vary at least binomially
        variance = max(variance, spread / rows)
        from_noise = max(0.0, total - variance)
    student = float(stats.t.isf((1 - confidence) / 2, independent - 1))
    effective = spread / variance if spread > 0 and variance > 0 else float(independent)
    effective = min(rows, effective * (normal / student) ** 2)
    sampling = wilson(share * effective, effective, confidence)
    return _add_noise(sampling, raw, student * math.sqrt(from_noise))


def _add_noise(sampling: Interval, raw: float, reach: float) -> Interval:
    if reach == 0:
        return sampling
    share = min(1.0, max(0.0, raw))
    low = raw - math.hypot(share - sampling.low, reach)
    high = raw + math.hypot(sampling.high - share, reach)
    return Interval(min(share, max(0.0, low)), max(share, min(1.0, high)))
