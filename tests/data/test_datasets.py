from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedprune import data
from fedprune.errors import DataError


def contents(rows: data.Rows) -> list[bytes]:
    pairs = zip(rows.stored, rows.labels, strict=True)
    return sorted(row.tobytes() + bytes([label]) for row, label in pairs)


def test_digits_are_scikit_learns_scaled_by_their_sixteen_levels() -> None:
    digits = data.load("digits", "", seed=1)
    images, labels = load_digits(return_X_y=True)
    assert (len(digits.train), len(digits.test)) == (1438, 359)
    together = [row for rows in (digits.train, digits.test) for row in contents(rows)]
    assert sorted(together) == sorted(
        image.astype(np.uint8).tobytes() + bytes([label])
        for image, label in zip(images, labels, strict=True)
    )
    inputs = digits.train.inputs(np.arange(10))
    assert inputs.shape == (10, 1, 8, 8)
    assert np.array_equal(inputs.numpy() * 16, digits.train.stored[:10])


def test_the_seed_decides_which_rows_are_held_out() -> None:
    first, again, other = (data.load("digits", "", seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.test.stored, again.test.stored)
    assert not np.array_equal(first.test.stored, other.test.stored)


def test_validation_rows_are_about_a_fifth_of_the_training_rows_and_never_test_rows() -> None:
    digits = data.load("digits", "", seed=1)
    chosen = data.validation(digits, seed=3)
    spread = (0.2 * 0.8 * len(digits.train)) ** 0.5
    assert abs(len(chosen.test) - 0.2 * len(digits.train)) < 4 * spread
    assert sorted(contents(chosen.train) + contents(chosen.test)) == contents(digits.train)
    assert not np.array_equal(chosen.test.labels, data.validation(digits, seed=4).test.labels)
    assert np.array_equal(chosen.test.stored, data.validation(digits, seed=3).test.stored)


def sites_of_made_up_rows(count: int) -> data.Dataset:
    rows = data.Rows(
        stored=np.arange(count, dtype=np.float32)[:, None],
        labels=np.zeros(count, dtype=np.int64),
        sites=np.repeat([0, 1], [3 * count // 4, count - 3 * count // 4]),
    )
    return data.Dataset("made up", 1, (1,), rows, rows, "none", site_names=("a", "b"))


def test_a_site_sets_the_same_rows_aside_alone_and_among_others() -> None:
    dataset = sites_of_made_up_rows(400)
    chosen = data.validation(dataset, seed=1)
    assert all(40 <= n <= 80 or 8 <= n <= 35 for n in np.bincount(chosen.test.sites))
    alone = replace(dataset, train=dataset.train.take(np.arange(300, 400)))
    found = data.validation(alone, seed=1).test.stored
    assert np.array_equal(found, chosen.test.stored[chosen.test.sites == 1])


def test_one_record_more_or_less_moves_no_other_record_between_training_and_validation() -> None:
    dataset = sites_of_made_up_rows(100)
    whole = data.validation(dataset, seed=1)
    for gone in (0, 37, 99):
        left = np.delete(np.arange(100), gone)
        fewer = data.validation(replace(dataset, train=dataset.train.take(left)), seed=1)
        for part in ("train", "test"):
            before, after = (set(getattr(d, part).stored[:, 0]) for d in (whole, fewer))
            assert before - after in ({float(gone)}, set())
            assert after <= before


def test_taking_rows_keeps_inputs_labels_groups_and_sites_together() -> None:
    rows = data.Rows(
        stored=np.arange(6, dtype=np.float32)[:, None],
        labels=np.arange(6),
        groups={"parity": data.GroupColumn(np.arange(6) % 2, ("even", "odd"))},
        sites=np.arange(6) // 2,
    )
    taken = rows.take(np.array([5, 0, 3]))
    assert taken.inputs(slice(None)).flatten().tolist() == [5, 0, 3]
    assert taken.targets(slice(None)).tolist() == [5, 0, 3]
    assert taken.group("parity").codes.tolist() == [1, 0, 1]
    assert taken.sites is not None
    assert taken.sites.tolist() == [2, 0, 1]


def test_what_a_caller_does_to_a_batch_does_not_reach_the_rows() -> None:
    rows = data.Rows(stored=np.ones((3, 2), dtype=np.float32), labels=np.zeros(3, dtype=np.int64))
    for index in (slice(None), np.arange(3)):
        rows.inputs(index).zero_()
        rows.targets(index).fill_(7)
    assert rows.stored.sum() == 6
    assert rows.labels.sum() == 0


def test_scaling_is_per_channel() -> None:
    scaling = data.Scaling(divisor=2.0, mean=(1.0, 2.0), std=(4.0, 8.0))
    rows = data.Rows(
        stored=np.full((1, 2, 3, 3), 10, dtype=np.uint8),
        labels=np.zeros(1, dtype=np.int64),
        scaling=scaling,
    )
    inputs = rows.inputs(np.array([0]))
    assert inputs[0, 0].unique().tolist() == [(5 - 1) / 4]
    assert inputs[0, 1].unique().tolist() == [(5 - 2) / 8]


def test_an_unknown_group_is_refused_with_those_there_are() -> None:
    with pytest.raises(DataError, match=r"data.groups must be one of class, got 'sex'"):
        data.load("digits", "", seed=1).test.group("sex")


def test_an_unknown_data_set_is_refused_with_those_there_are() -> None:
    with pytest.raises(DataError) as refusal:
        data.load("iris", "", seed=1)
    sentence = str(refusal.value)
    assert all(name in sentence for name in data.DATASETS)
    assert "\"package.module:function\", got 'iris'" in sentence


def test_train_and_test_rows_of_other_groups_are_refused() -> None:
    codes = np.zeros(2, dtype=np.int64)
    parts = [
        data.Rows(np.zeros((2, 1)), codes, groups={"sex": data.GroupColumn(codes, names)})
        for names in (("f", "m"), ("m", "f"))
    ]
    with pytest.raises(DataError, match=r"the same groups, got sex \(f, m\) and sex \(m, f\)"):
        data.Dataset("made up", 1, (1,), *parts, "none")
    wrong = {"sex": data.GroupColumn(codes + 1, ("f",))}
    rows = data.Rows(np.zeros((2, 1)), codes, groups=wrong)
    with pytest.raises(DataError, match=r"train codes of group sex .* in 0 to 0, got 1"):
        data.Dataset("made up", 1, (1,), rows, rows, "none")


def test_cifar10_without_files_says_where_to_get_them() -> None:
    with pytest.raises(DataError, match=r"data_batch_1, .*test_batch under data.root = 'no/such'"):
        data.load("cifar10", "no/such", seed=1)


def test_columns_of_other_lengths_and_labels_out_of_range_are_refused() -> None:
    stored = np.zeros((3, 1), dtype=np.float32)
    good = data.Rows(stored, np.zeros(3, dtype=np.int64))
    with pytest.raises(DataError, match=r"labels must have one entry for each of the 3 rows"):
        data.Rows(stored, np.zeros(2, dtype=np.int64))
    bad = data.Rows(stored, np.array([0, 1, 2]))
    with pytest.raises(DataError, match=r"train labels .* must be in 0 to 1, got 2"):
        data.Dataset("made up", 2, (1,), bad, good, "none")
    with pytest.raises(DataError, match=r"train inputs .* have shape \[1\], not \[2\]"):
        data.Dataset("made up", 2, (2,), good, good, "none")
    with pytest.raises(DataError, match="dataset 'made up' has no training rows"):
        data.Dataset("made up", 2, (1,), good.take(np.array([], dtype=np.int64)), good, "none")
