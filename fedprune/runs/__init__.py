"""The run folder: architecture descriptions, atomic files, events, resume, recomputed figures."""

from fedprune.runs.architecture import Architecture
from fedprune.runs.folder import RunFolder, load_weights_vector, weights_vector
from fedprune.runs.receipts import read_receipts, receipt_lines, receipts_head
from fedprune.runs.recompute import (
    LedgerTotals,
    certified_accuracies,
    fairness_of_tables,
    is_run_of,
    ledger_contradiction,
    ledger_totals,
    lipschitz_bounds,
    mask_recalls,
    privacy_figures,
    run_id,
    seal,
)
from fedprune.runs.seeds import compare_over_seeds

__all__ = [
    "Architecture",
    "LedgerTotals",
    "RunFolder",
    "certified_accuracies",
    "compare_over_seeds",
    "fairness_of_tables",
    "is_run_of",
    "ledger_contradiction",
    "ledger_totals",
    "lipschitz_bounds",
    "load_weights_vector",
    "mask_recalls",
    "privacy_figures",
    "read_receipts",
    "receipt_lines",
    "receipts_head",
    "run_id",
    "seal",
    "weights_vector",
]
