"""The run folder: architecture descriptions, atomic files, events, resume, recomputed figures."""

from fedprune.runs.architecture import Architecture
from fedprune.runs.folder import RunFolder, load_weights_vector, weights_vector
from fedprune.runs.private_rounds import private_rounds
from fedprune.runs.protection import (
    aggregate_mechanism,
    answer_budget,
    asked_at_once,
    assigns_blocks,
    budgets,
    central_guarantee,
    guarantee,
    min_reports,
    phase_round,
    ranked_clients,
    ranks_label,
    record_mechanism,
    report_epsilon,
    report_mechanism,
    round_event,
    step_phases,
)
from fedprune.runs.receipts import read_receipts, receipt_lines, receipts_head
from fedprune.runs.recompute import (
    certified_accuracies,
    fairness_of_tables,
    is_run_of,
    ledger_contradiction,
    lipschitz_bounds,
    mask_recalls,
    run_id,
    seal,
)
from fedprune.runs.seeds import compare_over_seeds
from fedprune.runs.spending import LEDGER, LedgerTotals, ledger_totals, privacy_figures

__all__ = [
    "LEDGER",
    "Architecture",
    "LedgerTotals",
    "RunFolder",
    "aggregate_mechanism",
    "answer_budget",
    "asked_at_once",
    "assigns_blocks",
    "budgets",
    "central_guarantee",
    "certified_accuracies",
    "compare_over_seeds",
    "fairness_of_tables",
    "guarantee",
    "is_run_of",
    "ledger_contradiction",
    "ledger_totals",
    "lipschitz_bounds",
    "load_weights_vector",
    "mask_recalls",
    "min_reports",
    "phase_round",
    "privacy_figures",
    "private_rounds",
    "ranked_clients",
    "ranks_label",
    "read_receipts",
    "receipt_lines",
    "receipts_head",
    "record_mechanism",
    "report_epsilon",
    "report_mechanism",
    "round_event",
    "run_id",
    "seal",
    "step_phases",
    "weights_vector",
]
