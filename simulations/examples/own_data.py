"""Your own data: `fedprune simulate own_data.toml`, run in this folder.

The function named by `data.dataset` gets `data.root` and the seed, and gives a `data.Dataset`.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

from fedprune import data

# What each of the 30 measurements is divided by: public constants, computed from nobody's rows.
MEANS = [30, 40, 200, 2600, 0.2, 0.4, 0.5, 0.25, 0.4, 0.1]
ERRORS = [3, 5, 22, 550, 0.04, 0.15, 0.4, 0.06, 0.08, 0.03]
WORST = [40, 50, 260, 4300, 0.25, 1.1, 1.3, 0.3, 0.7, 0.25]


def load(root: str | Path, *, seed: int) -> data.Dataset:  # noqa: ARG001
    """Tumours described by 30 numbers; files of your own would be read from `root`."""
    tumours = load_breast_cancer()
    inputs = tumours.data / np.array(MEANS + ERRORS + WORST)
    sizes = np.digitize(tumours.data[:, 0], [12.0, 16.0])  # bands of the mean radius
    x_train, x_test, y_train, y_test, size_train, size_test = train_test_split(
        inputs, tumours.target, sizes, test_size=0.3, random_state=seed % 2**32
    )
    return data.from_arrays(
        "tumours",
        train=(x_train, y_train),
        test=(x_test, y_test),
        num_classes=2,
        class_names=("malignant", "benign"),
        groups={"size": (size_train, size_test, ("small", "medium", "large"))},
        input_unit="scaled measurement",
    )
