"""Errors that a user can act on: each is one sentence with the value and the place.

Anything else that escapes is a bug and deserves its traceback.
"""

from __future__ import annotations


class FedpruneError(Exception):
    """Base of every error that fedprune raises on purpose.

    The message is one sentence: what was wrong, its value, what is allowed, where it came from.
    """


class ConfigError(FedpruneError):
    """A configuration key is unknown, of the wrong type, out of range or contradicts another."""


class DataError(FedpruneError):
    """Data are missing, malformed, or cannot be divided over the clients as asked."""


class ModelError(FedpruneError):
    """A model cannot be built, loaded or traced, or produced values that are not finite."""


class PruningError(FedpruneError):
    """Units cannot be found, scored, selected or removed as asked."""


class LayoutMismatchError(PruningError):
    """Two sides speak of different units: their layout fingerprints differ."""


class PrivacyError(FedpruneError):
    """A privacy parameter is out of range or a privacy claim would not hold."""


class BudgetExceededError(PrivacyError):
    """A client's ledger refuses an event: the budget would be exceeded."""


class QuestionChangedError(PrivacyError):
    """A server asks one round twice with different questions."""


class ReportError(PrivacyError):
    """A report has the wrong length or content that no honest client can produce."""


class LedgerError(PrivacyError):
    """A ledger is missing, damaged, from another owner or cannot be written."""


class RefusedInDeploymentError(PrivacyError):
    """A deployed client was asked for something that exists only in simulation."""


class FairnessError(FedpruneError):
    """Groups or count tables cannot answer the question asked."""


class RobustnessError(FedpruneError):
    """A bound or certificate cannot be computed for this model."""


class UnsupportedOpError(RobustnessError):
    """The Lipschitz tracer met an operation that it has no rigorous rule for."""


class RunError(FedpruneError):
    """A run folder is missing, is not one, is damaged or cannot be resumed."""


class FederationError(FedpruneError):
    """A client or the server answered with an error, or too few answered at all."""
