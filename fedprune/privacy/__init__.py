"""Private mask reports: mechanisms, estimation, accounting, ledger, secure sums, planning."""

from fedprune.privacy.budgets.accountant import Accountant, Release
from fedprune.privacy.budgets.accounting import Budget, compose_pure
from fedprune.privacy.budgets.composition import delta_of, epsilon_of, noise_multiplier_for
from fedprune.privacy.budgets.events import (
    CLIENT,
    RECORD,
    PureEvent,
    SubsampledGaussianEvent,
    ZeroConcentratedEvent,
)
from fedprune.privacy.budgets.filters import filter_of
from fedprune.privacy.budgets.guarantees import (
    COVERED,
    Guarantee,
    not_covered,
    overall_client_epsilon,
    overall_epsilon,
)
from fedprune.privacy.budgets.shuffling import (
    central_delta,
    central_epsilon,
    local_epsilon_for,
    threshold_probability,
)
from fedprune.privacy.ledgers.chain import Entry
from fedprune.privacy.ledgers.cohorts import CohortAnswer
from fedprune.privacy.ledgers.keys import SigningKey, key_path
from fedprune.privacy.ledgers.ledger import Granted, Ledger, Memoised
from fedprune.privacy.ledgers.receipt_checks import epsilon_of as epsilon_of_receipts
from fedprune.privacy.ledgers.receipt_checks import verify_receipts
from fedprune.privacy.ledgers.receipts import Receipt
from fedprune.privacy.mechanisms.aggregate import AggregateMechanism
from fedprune.privacy.mechanisms.assignment import assigned_blocks, public_ranks
from fedprune.privacy.mechanisms.bitwise_response import BitwiseResponse
from fedprune.privacy.mechanisms.discrete_gaussian import DiscreteGaussian, DiscreteLaplace
from fedprune.privacy.mechanisms.estimation import VoteEstimate, VoteSums
from fedprune.privacy.mechanisms.mechanism import Mechanism, counts_for
from fedprune.privacy.mechanisms.noised_counts import NoisedCounts
from fedprune.privacy.mechanisms.record_scores import RecordScores
from fedprune.privacy.mechanisms.reports import Report, ReportFormat
from fedprune.privacy.mechanisms.special_cases import duchi, k_ary, make_mechanism, warner
from fedprune.privacy.mechanisms.threshold_response import ThresholdResponse
from fedprune.privacy.secure.roster import read_roster
from fedprune.privacy.votes.honesty import HonestyTest, check_reports
from fedprune.privacy.votes.influence import Influence, influence, tolerated_share
from fedprune.privacy.votes.phases import (
    PhaseVotes,
    choose_undecided,
    combine,
    phase_cohorts,
    phase_plan,
    units_to_ask,
)
from fedprune.privacy.votes.planning import (
    RecallPrediction,
    predict_recall,
    recall_interval,
    variance_for_recall,
)
from fedprune.privacy.votes.prior import Posterior, magnitude_posterior

__all__ = [
    "CLIENT",
    "COVERED",
    "RECORD",
    "Accountant",
    "AggregateMechanism",
    "BitwiseResponse",
    "Budget",
    "CohortAnswer",
    "DiscreteGaussian",
    "DiscreteLaplace",
    "Entry",
    "Granted",
    "Guarantee",
    "HonestyTest",
    "Influence",
    "Ledger",
    "Mechanism",
    "Memoised",
    "NoisedCounts",
    "PhaseVotes",
    "Posterior",
    "PureEvent",
    "RecallPrediction",
    "Receipt",
    "RecordScores",
    "Release",
    "Report",
    "ReportFormat",
    "SigningKey",
    "SubsampledGaussianEvent",
    "ThresholdResponse",
    "VoteEstimate",
    "VoteSums",
    "ZeroConcentratedEvent",
    "assigned_blocks",
    "central_delta",
    "central_epsilon",
    "check_reports",
    "choose_undecided",
    "combine",
    "compose_pure",
    "counts_for",
    "delta_of",
    "duchi",
    "epsilon_of",
    "epsilon_of_receipts",
    "filter_of",
    "influence",
    "k_ary",
    "key_path",
    "local_epsilon_for",
    "magnitude_posterior",
    "make_mechanism",
    "noise_multiplier_for",
    "not_covered",
    "overall_client_epsilon",
    "overall_epsilon",
    "phase_cohorts",
    "phase_plan",
    "predict_recall",
    "public_ranks",
    "read_roster",
    "recall_interval",
    "threshold_probability",
    "tolerated_share",
    "units_to_ask",
    "variance_for_recall",
    "verify_receipts",
    "warner",
]
