"""What `evaluate.tables = "noised"` calls for: the mechanism of count tables and what it charges.

A client answers two rounds with a table at most: of its test rows, from which accuracy, gaps and
their intervals come, and of its training rows, on which the pair of groups to follow is chosen.
Everything else that would need tables (accuracy between steps) is not asked for.
"""

from __future__ import annotations

from fedprune import fairness
from fedprune.config import Config
from fedprune.privacy import NoisedCounts
from fedprune.privacy.budgets.events import ADD_REMOVE_RECORD, REPLACEMENT, Event

TABLE_ROUNDS = ("tables", "pair-tables")
RECORD_TABLE, CLIENT_TABLE = "record-table", "client-table"  # kinds in ledgers
CELLS = 4  # of a group: dense right or wrong, pruned right or wrong


def tables_noised(config: Config) -> bool:
    """Whether count tables leave clients with noise, and only so."""
    return config.evaluate.tables == "noised"


def table_mechanism(config: Config, num_groups: int) -> NoisedCounts:
    """The mechanism of one client's table."""
    evaluate = config.evaluate
    capacity = evaluate.table_rows if evaluate.table_unit == "client" else 0
    return NoisedCounts(evaluate.table_epsilon, CELLS * num_groups, capacity)


def table_kind(mechanism: NoisedCounts) -> str:
    """What ledgers call a table of this mechanism."""
    return CLIENT_TABLE if mechanism.capacity else RECORD_TABLE


def table_relation(config: Config) -> str:
    """The neighbouring relation that tables are charged under."""
    return REPLACEMENT if config.evaluate.table_unit == "client" else ADD_REMOVE_RECORD


def table_events(config: Config) -> list[Event]:
    """What a client's tables release in a whole run, at most; nothing without noise."""
    if not tables_noised(config):
        return []
    return [table_mechanism(config, 1).event] * len(TABLE_ROUNDS)


def table_noise(config: Config, num_groups: int, tables: int = 1) -> fairness.TableNoise | None:
    """Describe the noise in a cell of so many tables together; None without noise."""
    if not tables_noised(config):
        return None
    mechanism = table_mechanism(config, num_groups)
    scale, clipped = float(mechanism.scale), mechanism.capacity or None
    return fairness.TableNoise("discrete-laplace", scale, tables, clipped)
