"""Data sets, their division over clients, and the groups that fairness is measured by."""

from fedprune.data.catalogue import DATASETS, load
from fedprune.data.holdout import validation
from fedprune.data.partition import PARTITIONS, Assignment, Federation, partition
from fedprune.data.rows import Dataset, GroupColumn, Rows, Scaling

__all__ = [
    "DATASETS",
    "PARTITIONS",
    "Assignment",
    "Dataset",
    "Federation",
    "GroupColumn",
    "Rows",
    "Scaling",
    "load",
    "partition",
    "validation",
]
