"""Made-up people of two classes, for runs whose groups are not classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedprune import data

ALL = "people:load"
FROM_ONE_PLACE = "people:load_from_one_place"
PEOPLE = (f"data.dataset={ALL}", "data.root=", "data.groups=sex", "data.clients=12")


def load(root: str | Path, *, seed: int) -> data.Dataset:  # noqa: ARG001 - they lie nowhere
    """People of both sexes; who earns more is harder to tell of one of them."""
    return _people(seed)


def load_from_one_place(root: str | Path, *, seed: int) -> data.Dataset:  # noqa: ARG001
    """The same people, of whom all that are tested live in the north."""
    return _people(seed, places=1)


def _people(seed: int, places: int = 2) -> data.Dataset:
    generator = np.random.default_rng(seed)
    parts, sexes, homes = [], [], []
    for count in (600, 500):
        sex = generator.integers(0, 2, count)
        labels = (generator.random(count) < np.where(sex, 0.5, 0.3)).astype(np.int64)
        inputs = generator.normal(0, 1, (count, 8)).astype(np.float32)
        inputs[:, 0] += 2 * labels * np.where(sex, 1.0, 0.6)
        inputs[:, 1] += sex
        parts.append((inputs, labels))
        sexes.append(sex)
        homes.append(generator.integers(0, places, count))
    return data.from_arrays(
        "people",
        train=parts[0],
        test=parts[1],
        num_classes=2,
        class_names=("less", "more"),
        groups={
            "sex": (*sexes, ("female", "male")),
            "place": (*homes, ("north", "south")),
        },
    )
