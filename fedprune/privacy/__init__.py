"""Private mask reports: mechanisms, estimation, accounting, ledger, secure sums, planning."""

from fedprune.privacy.accountant import Accountant, Release
from fedprune.privacy.accounting import Budget, compose_pure
from fedprune.privacy.aggregate import AggregateMechanism
from fedprune.privacy.assignment import assigned_blocks, public_ranks
from fedprune.privacy.bitwise_response import BitwiseResponse
from fedprune.privacy.chain import Entry
from fedprune.privacy.cohorts import CohortAnswer
from fedprune.privacy.composition import delta_of, epsilon_of, noise_multiplier_for
from fedprune.privacy.discrete_gaussian import DiscreteGaussian, DiscreteLaplace
from fedprune.privacy.estimation import VoteEstimate, VoteSums
from fedprune.privacy.events import (
    CLIENT,
    RECORD,
    PureEvent,
    SubsampledGaussianEvent,
    ZeroConcentratedEvent,
)
from fedprune.privacy.filters import filter_of
from fedprune.privacy.guarantees import (
    COVERED,
    Guarantee,
    not_covered,
    overall_client_epsilon,
    overall_epsilon,
)
from fedprune.privacy.honesty import HonestyTest, check_reports
from fedprune.privacy.influence import Influence, influence, tolerated_share
from fedprune.privacy.keys import SigningKey, key_path
from fedprune.privacy.ledger import Granted, Ledger, Memoised
from fedprune.privacy.mechanism import Mechanism, counts_for
from fedprune.privacy.phases import (
    PhaseVotes,
    choose_undecided,
    combine,
    phase_cohorts,
    phase_plan,
    units_to_ask,
)
from fedprune.privacy.planning import (
    RecallPrediction,
    predict_recall,
    recall_interval,
    variance_for_recall,
)
from fedprune.privacy.prior import Posterior, magnitude_posterior
from fedprune.privacy.receipt_checks import epsilon_of as epsilon_of_receipts
from fedprune.privacy.receipt_checks import verify_receipts
from fedprune.privacy.receipts import Receipt
from fedprune.privacy.record_scores import RecordScores
from fedprune.privacy.reports import Report, ReportFormat
from fedprune.privacy.roster import read_roster
from fedprune.privacy.shuffling import (
    central_delta,
    central_epsilon,
    local_epsilon_for,
    threshold_probability,
)
from fedprune.privacy.special_cases import duchi, k_ary, make_mechanism, warner
from fedprune.privacy.threshold_response import ThresholdResponse

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
