"""What the count tables of a run hold, and what noise `evaluate.tables = "noised"` adds to them.

A plain table counts, per group, which of two models were right. Where there are two classes, and
groups are not divided by class, the final tables count label and predictions, which hold the rates
that equalised odds and demographic parity compare, and the plain table as sums of two cells. In
either a record falls in one cell, so however many cells there are a table moves by 1 in l1 when a
record comes or goes, and by twice the rows that it may count when a client is replaced: noise and
what it is charged are the same for both.

With noise a client answers two rounds with a table at most: of its test rows, from which accuracy,
gaps and their intervals come, and of its training rows, on which the pair of groups to follow is
chosen. Everything else that would need tables (accuracy between steps) is not asked for.
"""

from __future__ import annotations

import math

from fedprune import fairness
from fedprune.config import Config
from fedprune.data import names_classes
from fedprune.fairness import GroupTable, OutcomeTable
from fedprune.privacy import NoisedCounts
from fedprune.privacy.budgets.events import ADD_REMOVE_RECORD, REPLACEMENT, Event

TABLE_ROUNDS = ("tables", "pair-tables")
RECORD_TABLE, CLIENT_TABLE = "record-table", "client-table"  # kinds in ledgers
PLAIN_CELLS = GroupTable.CELLS  # of a group: dense right or wrong x pruned right or wrong
OUTCOME_CELLS = OutcomeTable.CELLS  # label x dense prediction x pruned prediction


def final_cells(num_classes: int, groups: str) -> tuple[int, ...]:
    """Axes of a group's cells in the tables of the final model.

    Args:
        num_classes: of the data.
        groups: `data.groups`. Among rows of one class there is no rate of the other one's errors
            to compare, so groups by class are counted plainly, with less noise in each figure.
    """
    return OUTCOME_CELLS if num_classes == 2 and not names_classes(groups) else PLAIN_CELLS


def cells_asked(
    num_cells: int, num_groups: int, num_classes: int, groups: str
) -> tuple[int, ...] | None:
    """Axes of a group's cells in a table of so many counts; None if no table has so many."""
    allowed = {PLAIN_CELLS, final_cells(num_classes, groups)}
    return next((axes for axes in allowed if num_groups * math.prod(axes) == num_cells), None)


def tables_noised(config: Config) -> bool:
    """Whether count tables leave clients with noise, and only so."""
    return config.evaluate.tables == "noised"


def table_mechanism(config: Config, num_cells: int) -> NoisedCounts:
    """The mechanism of one client's table of so many counts."""
    evaluate = config.evaluate
    capacity = evaluate.table_rows if evaluate.table_unit == "client" else 0
    return NoisedCounts(evaluate.table_epsilon, num_cells, capacity)


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


def table_noise(config: Config, tables: int = 1) -> fairness.TableNoise | None:
    """Describe the noise in a cell of so many tables together; None without noise."""
    if not tables_noised(config):
        return None
    mechanism = table_mechanism(config, 1)
    scale, clipped = float(mechanism.scale), mechanism.capacity or None
    return fairness.TableNoise("discrete-laplace", scale, tables, clipped)
