"""What a run's clients spent, per neighbouring relation, from its ledger or its receipts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fedprune import privacy
from fedprune.config import Config
from fedprune.privacy import Budget, Entry, Ledger
from fedprune.privacy.budgets.accountant import Accountant, Release
from fedprune.privacy.budgets.events import UNIT_OF, PureEvent, event_from_text
from fedprune.privacy.budgets.guarantees import not_covered, overall_epsilon
from fedprune.privacy.ledgers.chain import RESERVED, STORED
from fedprune.runs.folder import RunFolder
from fedprune.runs.protection import budgets, guarantee
from fedprune.runs.receipts import read_receipts

JsonDict = dict[str, Any]
LEDGER = "ledger.sqlite"
_LARGE = 1e6
_Sent = tuple[str, str, str]  # kind, relation, event


@dataclass(frozen=True)
class LedgerTotals:
    """What a ledger, or the receipts of many, add up to.

    Attributes:
        kinds: of all messages in it.
        reserved, stored: events charged, and reports with their bytes; receipts are given for
            stored reports only, so there both are the same.
        answers: stored answers about masks alone, which votes are made of.
        clients: how many clients have a row or a receipt.
        histories: what clients sent, each different history once.
    """

    kinds: frozenset[str]
    reserved: int
    stored: int
    answers: int
    clients: int
    histories: tuple[Accountant, ...]


_ANSWERS = frozenset({"mask-report", "aggregate-share", "record-scores"})


def ledger_totals(folder: RunFolder) -> LedgerTotals:
    """Add up the ledger of a simulated run, or the receipts of a deployed one.

    Raises:
        LedgerError: if what is there cannot be read.
        RunError: if neither is there.
    """
    if folder.has(LEDGER):
        with Ledger.open(folder.path / LEDGER, read_only=True) as ledger:
            return _totals(ledger.entries())
    latest = {receipt.entry.key: receipt.entry for receipt in read_receipts(folder)}
    return _totals(latest.values(), stored_only=True)


def _totals(entries: Iterable[Entry], stored_only: bool = False) -> LedgerTotals:
    sent: dict[str, Counter[_Sent]] = {}
    kinds: set[str] = set()
    reserved = stored = answers = 0
    for entry in entries:
        kinds.add(entry.kind)
        own = sent.setdefault(entry.client, Counter())
        charged = entry.relation in UNIT_OF
        stored += charged and entry.stage == STORED
        answers += entry.kind in _ANSWERS and entry.stage == STORED
        reserved += charged and entry.stage == RESERVED
        if not charged:
            own[entry.kind, entry.relation, ""] += entry.stage != RESERVED
        elif entry.stage == (STORED if stored_only else RESERVED):  # a reservation is spent
            own[entry.kind, entry.relation, entry.event] += 1
    distinct = dict.fromkeys(frozenset(own.items()) for own in sent.values())
    return LedgerTotals(
        frozenset(kinds),
        stored if stored_only else reserved,
        stored,
        answers,
        len(sent),
        tuple(_accountant(history) for history in distinct),
    )


def _accountant(history: Iterable[tuple[_Sent, int]]) -> Accountant:
    releases = [
        Release(kind, relation, event_from_text(event) if event else None, count)
        for (kind, relation, event), count in sorted(history)
        if count
    ]
    return Accountant().compose(*releases)


def privacy_figures(folder: RunFolder, config: Config, simulated: bool) -> JsonDict:
    """Say what the ledger adds up to: epsilon spent, reports, and what no epsilon covers.

    Of a deployed run the figures follow from the clients' receipts, and `basis` says so.

    Args:
        folder: of the run.
        config: its configuration.
        simulated: whether baselines and tables existed inside a simulation only.
    """
    totals = ledger_totals(folder)
    kinds = set(totals.kinds) | _inside_simulation(folder, config, simulated)
    stated, claimed = guarantee(config), config.privacy.trust != "none"
    own = {budget.relation: budget for budget in budgets(config, _num_units(folder))}
    per_relation = relation_totals(totals, config, own, kinds)
    spent = next((t["epsilon"] for t in per_relation if t["relation"] == stated.relation), None)
    client = next((t["overall_epsilon"] for t in per_relation if t["unit"] == privacy.CLIENT), None)
    return {
        "trust": stated.trust,
        "unit": stated.unit,
        "relation": stated.relation,
        "statement": stated.sentence(),
        "epsilon": stated.epsilon if claimed else None,
        "delta": stated.delta if claimed else None,
        "reports": totals.answers,
        "max_epsilon_spent": spent,
        "overall_client_epsilon": client,
        "not_covered": not_covered(kinds, stated.unit),
        "totals": per_relation,
        **({} if simulated else {"basis": _basis(totals)}),
    }


def relation_totals(
    totals: LedgerTotals, config: Config, own: Mapping[str, Budget], kinds: Iterable[str]
) -> list[JsonDict]:
    """The worst client's total under every relation that anything was charged under.

    `epsilon` is what the ledger's filter counts, which holds however rounds were chosen;
    `epsilon_of_schedule` composes the same events tightly, as a schedule fixed beforehand.
    """
    found = []
    for relation in UNIT_OF:
        histories = [h for h in totals.histories if relation in h.relations]
        if histories:
            budget = own.get(relation) or _yardstick(config, relation, histories)
            found.append(_relation_total(histories, relation, budget, config, kinds))
    return found


def _relation_total(
    histories: list[Accountant], relation: str, budget: Budget, config: Config, kinds: Iterable[str]
) -> JsonDict:
    unit = UNIT_OF[relation]
    worst = max(histories, key=lambda history: history.spent(budget))
    epsilon = worst.odometer(budget)
    return {
        "unit": unit,
        "relation": relation,
        "epsilon": epsilon,
        "epsilon_of_schedule": min(epsilon, worst.epsilon(relation, budget.delta)),
        "delta": budget.delta,
        "composition": budget.composition,
        "covers": sorted(worst.kinds() & privacy.COVERED[unit]),
        "not_covered": not_covered(kinds, unit),
        "overall_epsilon": overall_epsilon(epsilon, kinds, unit),
        "sentence": worst.sentences(dict.fromkeys(UNIT_OF, budget.delta), config.privacy.trust)[
            worst.relations.index(relation)
        ],
    }


def _num_units(folder: RunFolder) -> int:
    """Units of the dense network, as the run's plan counted them."""
    return next(int(e["result"]["num_units"]) for e in folder.events() if e["phase"] == "plan")


def _trusted(config: Config) -> str:
    """Whom the ledger's own count rests on: what a shuffler adds is no part of it."""
    return "local" if config.privacy.trust == "shuffle" else config.privacy.trust


def _yardstick(config: Config, relation: str, histories: list[Accountant]) -> Budget:
    """What to count in under a relation that the configuration sets no budget under."""
    events = [event for history in histories for event, _ in history.events(relation)]
    if all(isinstance(event, PureEvent) for event in events):
        return Budget(_LARGE, relation=relation)
    return Budget.zcdp(_LARGE, config.privacy.delta, relation)


def _inside_simulation(folder: RunFolder, config: Config, simulated: bool) -> set[str]:
    if not simulated:
        return set()
    kinds = {
        "count-table-simulation": config.evaluate.tables == "simulation-only",
        "counterfactual": config.evaluate.baselines,
        "margins-simulation": folder.has("margins.safetensors"),
    }
    return {kind for kind, there in kinds.items() if there}


def _basis(totals: LedgerTotals) -> str:
    """Say what the figures of a deployed run rest on, and what the server cannot see."""
    return (
        f"signed receipts of {totals.clients} clients: each proves what the holder of a key "
        "stated about its own ledger for this run; what a client spent in other runs, or on "
        "reports that never arrived, stands in its own ledger only"
    )
