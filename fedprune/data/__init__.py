"""Data sets, their division over clients, and the groups that fairness is measured by."""

from fedprune.data.arrays import from_arrays
from fedprune.data.catalogue import DATASETS, Loader, load
from fedprune.data.groups import GroupColumn, names_classes
from fedprune.data.holdout import validation
from fedprune.data.partition import PARTITIONS, Assignment, Federation, partition
from fedprune.data.rows import Dataset, Rows, Scaling
from fedprune.data.schema import Schema

__all__ = [
    "DATASETS",
    "PARTITIONS",
    "Assignment",
    "Dataset",
    "Federation",
    "GroupColumn",
    "Loader",
    "Rows",
    "Scaling",
    "Schema",
    "from_arrays",
    "load",
    "names_classes",
    "partition",
    "validation",
]
