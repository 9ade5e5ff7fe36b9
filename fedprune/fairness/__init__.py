"""What pruning did to each subgroup: count tables, gaps and intervals that hold.

Clients send counts, group x (dense wrong or right) x (pruned wrong or right); everything else is
computed from them::

    table = fairness.GroupTable.of(dense_model, pruned_model, inputs, labels, groups)
    summary = fairness.summarize([table], names, rng, other=validation_table)
    summary.gap_change, summary.pair, summary.groups[0].excess_interval
"""

from fedprune.fairness.analysis import choose_pair, summarize
from fedprune.fairness.clipping import clip_table
from fedprune.fairness.intervals import (
    Interval,
    PairedDifference,
    clopper_pearson,
    exact_mcnemar,
    holm,
    paired_difference,
    wilson,
)
from fedprune.fairness.noise import TableNoise, table_sensitivity
from fedprune.fairness.summary import (
    AccuracyChange,
    ClientSpread,
    FairnessSummary,
    GroupResult,
    PairChange,
    Spread,
    WorstGroup,
)
from fedprune.fairness.tables import GroupTable, client_tables, stack_tables, sum_tables

__all__ = [
    "AccuracyChange",
    "ClientSpread",
    "FairnessSummary",
    "GroupResult",
    "GroupTable",
    "Interval",
    "PairChange",
    "PairedDifference",
    "Spread",
    "TableNoise",
    "WorstGroup",
    "choose_pair",
    "client_tables",
    "clip_table",
    "clopper_pearson",
    "exact_mcnemar",
    "holm",
    "paired_difference",
    "stack_tables",
    "sum_tables",
    "summarize",
    "table_sensitivity",
    "wilson",
]
