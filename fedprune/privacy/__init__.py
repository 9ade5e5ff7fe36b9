"""Private mask reports: mechanism, estimation, accounting, ledger, planning."""

from fedprune.privacy.accounting import (
    Budget,
    Guarantee,
    compose_pure,
    not_covered,
    overall_client_epsilon,
)
from fedprune.privacy.chain import Entry
from fedprune.privacy.estimation import VoteEstimate, VoteSums
from fedprune.privacy.keys import SigningKey, key_path
from fedprune.privacy.ledger import Granted, Ledger, Memoised
from fedprune.privacy.planning import predict_recall, variance_for_recall
from fedprune.privacy.prior import Posterior, magnitude_posterior
from fedprune.privacy.receipt_checks import epsilon_of, verify_receipts
from fedprune.privacy.receipts import Receipt
from fedprune.privacy.reports import Report, ReportFormat
from fedprune.privacy.threshold_response import ThresholdResponse, best_block, counts_for

__all__ = [
    "Budget",
    "Entry",
    "Granted",
    "Guarantee",
    "Ledger",
    "Memoised",
    "Posterior",
    "Receipt",
    "Report",
    "ReportFormat",
    "SigningKey",
    "ThresholdResponse",
    "VoteEstimate",
    "VoteSums",
    "best_block",
    "compose_pure",
    "counts_for",
    "epsilon_of",
    "key_path",
    "magnitude_posterior",
    "not_covered",
    "overall_client_epsilon",
    "predict_recall",
    "variance_for_recall",
    "verify_receipts",
]
