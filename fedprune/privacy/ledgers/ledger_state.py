"""What a ledger's rows add up to: who spent what, and who was answered where.

A state is nothing but its rows read in order. It tells what is wrong with a row after those
before it, which is how a ledger is verified and why nothing is spent on a damaged one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np

from fedprune.errors import BudgetExceededError, PrivacyError
from fedprune.privacy.budgets.accounting import Budget
from fedprune.privacy.budgets.events import (
    COUNTS_UNDER,
    NO_CHARGE,
    UNIT_OF,
    PureEvent,
    event_from_text,
)
from fedprune.privacy.budgets.filters import filter_of
from fedprune.privacy.ledgers.chain import (
    HASH_BYTES,
    MOST_CLIENTS,
    RESERVED,
    SENT,
    STORED,
    Entry,
    Numbers,
    Row,
    cohort_clients,
    row_flaws,
    to_entry,
    type_flaw,
)
from fedprune.privacy.ledgers.entry import Asked, guarantee_alone
from fedprune.privacy.ledgers.int_map import IntMap
from fedprune.privacy.ledgers.spending import Spending, in_words, past


@dataclass
class Round:
    """Who was asked what in one round of a run, and where the answers are stored."""

    questions: list[Asked] = field(default_factory=list)
    asked: IntMap = field(default_factory=lambda: IntMap(-1))  # client -> place in `questions`
    stored: IntMap = field(default_factory=lambda: IntMap(0))  # client -> row of its answer

    def place_of(self, asked: Asked) -> int:
        """Place of a question; -2, which is nobody's, if it was not asked."""
        return self.questions.index(asked) if asked in self.questions else -2

    def place(self, asked: Asked) -> int:
        """Place of a question, a new one if it was not asked before."""
        if asked not in self.questions:
            self.questions.append(asked)
        return self.questions.index(asked)


@dataclass(frozen=True)
class Totals:
    """What a whole ledger adds up to.

    Attributes:
        kinds: of all messages in it.
        clients: how many clients have an entry.
        reserved, stored: entries that were charged, and those of them with their bytes.
        largest: largest sum of any client by relation, in the currency of that budget.
    """

    kinds: frozenset[str]
    clients: int
    reserved: int
    stored: int
    largest: Mapping[str, Fraction]


class LedgerState:
    """The sum of a ledger's rows up to some row.

    Attributes:
        rows, head: number and hash of the last row taken (of the terms, before the first).
    """

    def __init__(self, budgets: Mapping[str, Budget], terms_hash: str, *, shared: bool) -> None:
        """Begin with no rows.

        Args:
            budgets: by relation.
            terms_hash: what the first row links to.
            shared: whether the ledger may hold cohorts: it is that of a simulation.
        """
        self.rows, self.head = 0, terms_hash
        self._budgets, self._shared = budgets, shared
        self._spending = {name: Spending(filter_of(budget)) for name, budget in budgets.items()}
        self._rounds: dict[tuple[str, str], Round] = {}
        self._kinds: set[str] = set()
        self._counts = {RESERVED: 0, STORED: 0}
        self._seen = IntMap(0)
        self._numbers: dict[str, int] = {}  # of clients whose names are no plain numbers
        self._names: list[str] = []
        self._charges: dict[Asked, list[tuple[Spending, Fraction]]] = {}

    # Looking.

    def number_of(self, client: str) -> int:
        """The number that stands for a client here: its own, or one below 0 for other names."""
        if client.isdecimal() and client.isascii() and len(client) <= 10:
            number = int(client)
            if number < MOST_CLIENTS and str(number) == client:
                return number
        if client not in self._numbers:
            self._names.append(client)
            self._numbers[client] = -len(self._names)
        return self._numbers[client]

    def name_of(self, number: int) -> str:
        """A client's name."""
        return str(number) if number >= 0 else self._names[-number - 1]

    def completed(self, entry: Entry) -> Entry:
        """Fill in what an event that is not pure guarantees at its budget's delta."""
        budget = self._budgets.get(entry.relation)
        if budget is None or not entry.event or entry.epsilon or entry.delta:
            return entry
        event = event_from_text(entry.event)
        if isinstance(event, PureEvent):
            return entry
        epsilon, delta = guarantee_alone(event, budget)
        return replace(entry, epsilon=epsilon, delta=delta)

    def round(self, entry: Entry) -> Round:
        """What is known of an entry's round."""
        return self._rounds.get((entry.run, entry.round)) or Round()

    def spending(self, relation: str) -> Spending | None:
        """The spending under one relation; None where the ledger has no budget for it."""
        return self._spending.get(relation)

    def charges(self, entry: Entry) -> list[tuple[Spending, Fraction]]:
        """What an entry costs of which budgets.

        Raises:
            PrivacyError: if it is not an entry that this ledger can reserve, naming why.
        """
        if entry.asked not in self._charges:
            self._check_charge(entry)
            counted = COUNTS_UNDER.get(entry.relation, ())
            affected = [self._spending[name] for name in counted if name in self._spending]
            self._charges[entry.asked] = [
                (spending, spending.kept.charge(event_from_text(entry.event)))
                for spending in affected
            ]
        return self._charges[entry.asked]

    def refusal(self, entry: Entry, client: int) -> BudgetExceededError | None:
        """Say which budget an entry of a client would exceed, or None if it fits into all."""
        for spending, charge in self.charges(entry):
            spent = spending.of(client)
            if spent + charge > spending.kept.capacity:
                return BudgetExceededError(past(self.name_of(client), spending.kept, spent, charge))
        return None

    def totals(self) -> Totals:
        """Add everything up."""
        return Totals(
            kinds=frozenset(self._kinds),
            clients=len(self._seen.items()[0]),
            reserved=self._counts[RESERVED],
            stored=self._counts[STORED],
            largest={name: spending.largest for name, spending in self._spending.items()},
        )

    # Reading rows.

    def read(self, row: Row) -> Iterator[str]:
        """Take the next row of a file; yield one sentence for everything that is wrong with it."""
        wrong = type_flaw(row)
        if wrong:  # nothing can be computed from it, and the rows after it still link to its hash
            self.rows = row.seq if isinstance(row.seq, int) else self.rows + 1
            self.head = str(row.hash)
            yield _named(row, wrong)
            return
        yield from (_named(row, flaw) for flaw in row_flaws(row, self.rows + 1, self.head))
        yield from (_named(row, flaw) for flaw in self.take(row))

    def take(self, row: Row) -> list[str]:
        """Add a row whose hashes are right; say what it contradicts among those before it."""
        self.rows, self.head = row.seq, row.hash
        try:
            entry, clients = to_entry(row), self._clients_of(row)
            flaws = list(self._form_flaws(row, entry, len(clients)))
        except ValueError as error:
            return [f"it is not a row as they are written: {error}"]
        self._kinds.add(entry.kind)
        self._seen.put_many(clients, clients)
        if entry.stage == RESERVED:
            flaws += self._reserve(entry, clients)
        elif entry.stage == STORED:
            flaws += self._store(entry, clients, row.seq)
        elif entry.stage != SENT:
            flaws.append(f"stage {entry.stage!r} is unknown")
        if entry.stage in self._counts and entry.relation != NO_CHARGE:
            self._counts[entry.stage] += len(clients)
        return flaws

    # The inside.

    def _clients_of(self, row: Row) -> Numbers:
        if row.clients:
            return cohort_clients(row)
        return np.array([self.number_of(row.client)], dtype=np.int64)

    def _form_flaws(self, row: Row, entry: Entry, count: int) -> Iterator[str]:
        """Say what is odd about a row's form."""
        if row.clients and (row.client or not self._shared):
            yield "a cohort has no name, and stands in a simulation's ledger only"
        if not row.clients and not row.client:
            yield "it names no client"
        if entry.event != row.event:
            yield "its event is missing"
        if row.clients and len(row.report) % count:
            yield "its reports do not divide evenly among its clients"
        if row.clients and row.stage == SENT and len(row.report) not in (0, HASH_BYTES * count):
            yield "its content hashes are not one for every client"
        if row.stage == RESERVED and row.report:
            yield "a reservation has no report"
        if row.stage == SENT and entry.relation in UNIT_OF:
            yield "what is charged must be reserved and stored, not only recorded as sent"

    def _reserve(self, entry: Entry, clients: Numbers) -> Iterator[str]:
        known = self._rounds.setdefault((entry.run, entry.round), Round())
        before = known.asked.get_many(clients) >= 0
        if before.any():
            yield f"client {self._first(clients, before)} reserved round {entry.round} twice"
        places = np.full(len(clients), known.place(entry.asked), dtype=np.int64)
        known.asked.put_many(clients, places)
        try:
            charges = self.charges(entry)
        except PrivacyError as error:
            yield str(error)
            return
        for spending, charge in charges:
            fits = spending.fits(clients, charge)
            if not fits.all():
                kept, first = spending.kept, int(clients[~fits][0])
                total = kept.epsilon_of(spending.of(first) + charge)
                yield (
                    f"client {self.name_of(first)} reserved epsilon = {total:g}, past its budget "
                    f"of {in_words(kept.budget)}"
                )
            spending.add(clients, charge)

    def _store(self, entry: Entry, clients: Numbers, seq: int) -> Iterator[str]:
        known = self._rounds.setdefault((entry.run, entry.round), Round())
        again = known.stored.get_many(clients) > 0
        if again.any():
            yield f"client {self._first(clients, again)} stored two reports in round {entry.round}"
        odd = known.asked.get_many(clients) != known.place(entry.asked)
        if odd.any():
            yield f"client {self._first(clients, odd)} stored a report that it did not reserve so"
        known.stored.put_many(clients, np.full(len(clients), seq, dtype=np.int64))

    def _first(self, clients: Numbers, where: np.ndarray) -> str:
        return self.name_of(int(clients[where][0]))

    def _check_charge(self, entry: Entry) -> None:
        """Refuse an entry whose figures do not follow from its event and this ledger's terms."""
        figures = f"epsilon = {entry.epsilon!r}, delta = {entry.delta!r}, event {entry.event!r}"
        if entry.relation == NO_CHARGE:
            if (entry.epsilon, entry.delta, entry.event) != (0, 0, ""):
                raise PrivacyError(
                    f"what is not charged has no epsilon and no event, got {figures}"
                )
            return
        if entry.relation not in UNIT_OF:
            raise PrivacyError(
                f"a charge needs a neighbouring relation of {', '.join(UNIT_OF)}, got "
                f"{entry.relation!r}"
            )
        budget = self._budgets.get(entry.relation)
        if budget is None:
            raise BudgetExceededError(
                f"this ledger has no budget under {entry.relation} (unit: one "
                f"{UNIT_OF[entry.relation]}), only under {', '.join(self._budgets)}; {figures} is "
                "refused"
            )
        wanted = guarantee_alone(event_from_text(entry.event), budget)
        if not _same_guarantee((entry.epsilon, entry.delta), wanted):
            raise PrivacyError(
                f"an entry's epsilon and delta must be those of its event, {wanted}, got {figures}"
            )


def _same_guarantee(found: tuple[float, float], wanted: tuple[float, float]) -> bool:
    """Compare exactly where pure; elsewhere up to the last digits of another machine's exp."""
    if wanted[1] == 0:
        return found == wanted
    return found[1] == wanted[1] and abs(found[0] - wanted[0]) <= 1e-9 * abs(wanted[0])


def _named(row: Row, flaw: str) -> str:
    """Name the row; text that was no text in the file is written so that it can be printed."""
    return f"ledger row {row.seq}: {flaw}".encode(errors="backslashreplace").decode()
