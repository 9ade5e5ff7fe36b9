"""What pruning did to each subgroup: count tables, gaps and intervals that hold.

Clients send counts, group x (dense wrong or right) x (pruned wrong or right), exact or with noise;
everything else is computed from them::

    table = fairness.GroupTable.of(dense_model, pruned_model, inputs, labels, groups)
    summary = fairness.summarize([table], names, rng, other=validation_table)
    summary.gap_change, summary.pair, summary.groups[0].excess_interval

Binary tasks may count group x label x predictions instead (`OutcomeTable`, `summarize_outcomes`).
What helps the groups that pruning hurts: `worst_group` and `importance_share` (scores),
`dual_step` and `group_weights` (fine-tuning), `gap_test` and `choose_keep` (how much to prune).
"""

from fedprune.fairness.analysis import choose_pair, summarize
from fedprune.fairness.clipping import clip_table
from fedprune.fairness.columns import check_groups
from fedprune.fairness.disagreement import Disagreements, find_disagreements, modal_predictions
from fedprune.fairness.intervals import (
    Interval,
    PairedDifference,
    clopper_pearson,
    exact_mcnemar,
    holm,
    paired_difference,
    wilson,
)
from fedprune.fairness.mitigation import dual_step, group_weights, importance_share, worst_group
from fedprune.fairness.noise import TableNoise, table_sensitivity
from fedprune.fairness.outcome_analysis import (
    EqualizedOdds,
    GroupRate,
    OutcomeSummary,
    RateChange,
    summarize_outcomes,
)
from fedprune.fairness.outcomes import (
    RATES,
    OutcomeTable,
    client_outcome_tables,
    rate_tables,
    stack_outcomes,
)
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
from fedprune.fairness.tolerance import GapTest, KeepChoice, choose_keep, gap_test

__all__ = [
    "RATES",
    "AccuracyChange",
    "ClientSpread",
    "Disagreements",
    "EqualizedOdds",
    "FairnessSummary",
    "GapTest",
    "GroupRate",
    "GroupResult",
    "GroupTable",
    "Interval",
    "KeepChoice",
    "OutcomeSummary",
    "OutcomeTable",
    "PairChange",
    "PairedDifference",
    "RateChange",
    "Spread",
    "TableNoise",
    "WorstGroup",
    "check_groups",
    "choose_keep",
    "choose_pair",
    "client_outcome_tables",
    "client_tables",
    "clip_table",
    "clopper_pearson",
    "dual_step",
    "exact_mcnemar",
    "find_disagreements",
    "gap_test",
    "group_weights",
    "holm",
    "importance_share",
    "modal_predictions",
    "paired_difference",
    "rate_tables",
    "stack_outcomes",
    "stack_tables",
    "sum_tables",
    "summarize",
    "summarize_outcomes",
    "table_sensitivity",
    "wilson",
    "worst_group",
]
