"""Clients of a population whose group accuracies are known exactly, and the tables they send."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedprune.fairness import TableNoise, clip_table

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

KINDS = 64  # of clients in the population


@dataclass(frozen=True)
class Regime:
    """A population: `shares` of the groups, their accuracy when dense, and what pruning loses.

    Attributes:
        clients: in one trial.
        rows: mean rows of a client.
        shares: [groups] of all rows.
        dense: [groups] chance that the dense model is right.
        lost: [groups] chance that a right answer is lost; a tenth of wrong ones is mended.
        spread: deviation, over kinds of clients, of the logit of what is lost.
    """

    clients: int
    rows: float
    shares: tuple[float, ...]
    dense: tuple[float, ...]
    lost: tuple[float, ...]
    spread: float


@dataclass(frozen=True)
class Population:
    """Kinds of clients: `rows` [kinds] and chances of every cell [kinds, groups * 4]."""

    rows: Counts
    cells: Floats

    @classmethod
    def of(cls, regime: Regime, generator: np.random.Generator) -> Population:
        """Draw the kinds of a regime."""
        kinds, groups = KINDS, len(regime.shares)
        rows = np.maximum(1, generator.poisson(generator.gamma(2, regime.rows / 2, kinds)))
        shares = generator.dirichlet(np.array(regime.shares) * 40, size=kinds)
        logits = np.log(np.array(regime.lost) / (1 - np.array(regime.lost)))
        shift = generator.normal(0, regime.spread, size=(kinds, 1))
        lost = 1 / (1 + np.exp(-(logits + shift)))
        right = np.broadcast_to(regime.dense, (kinds, groups))
        wrong = 1 - right
        given = np.stack([0.9 * wrong, 0.1 * wrong, right * lost, right * (1 - lost)], axis=2)
        return cls(rows.astype(np.int64), (shares[:, :, None] * given).reshape(kinds, -1))

    def draw(self, kinds: Counts, generator: np.random.Generator) -> Counts:
        """Tables of clients of these kinds: [clients, groups, 2, 2]."""
        tables = generator.multinomial(self.rows[kinds], self.cells[kinds])
        return tables.reshape(len(kinds), -1, 2, 2)

    def expected(self, kinds: Counts, most_rows: int | None) -> Floats:
        """Expected total of clients of these kinds: [groups, 2, 2]."""
        rows = self.rows[kinds] if most_rows is None else np.minimum(self.rows[kinds], most_rows)
        return (rows[:, None] * self.cells[kinds]).sum(axis=0).reshape(-1, 2, 2)


@dataclass(frozen=True)
class Truth:
    """What the intervals should cover: accuracies [groups, 2] (dense, pruned), and overall [2]."""

    groups: Floats
    overall: Floats

    @classmethod
    def of(cls, expected: Floats) -> Truth:
        """Divide expected counts."""

        def shares(counts: Floats) -> Floats:
            rows = counts.sum(axis=(-2, -1))
            right = [counts[..., 1, :].sum(axis=-1), counts[..., :, 1].sum(axis=-1)]
            return np.stack([one / rows for one in right], axis=-1)

        return cls(shares(expected), shares(expected.sum(axis=0)))

    def excess(self, code: int) -> float:
        """Excess loss of a group."""
        return float(np.subtract(*self.groups[code]) - np.subtract(*self.overall))

    def gap(self, model: int, among: list[int]) -> float:
        """Best minus worst accuracy."""
        return float(np.ptp(self.groups[among, model]))


def tables_of(
    population: Population, kinds: Counts, noise: TableNoise | None, generator: np.random.Generator
) -> Counts:
    """What clients of these kinds send: [clients, groups, 2, 2]."""
    tables = population.draw(kinds, generator)
    if noise is None:
        return tables
    if noise.clipped_to is not None:
        tables = clip_table(tables, noise.clipped_to, generator)
    return tables + noise.sample(tables.shape, generator)
