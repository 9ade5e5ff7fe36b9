"""What a ledger holds: one client's reservation, stored report, or record of what was sent."""

from __future__ import annotations

from dataclasses import dataclass

from fedprune.privacy.budgets.accounting import Budget
from fedprune.privacy.budgets.events import UNIT_OF, Event, PureEvent, event_to_text
from fedprune.privacy.budgets.filters import filter_of

RESERVED, STORED, SENT = "reserved", "stored", "sent"
Asked = tuple[str, str, str, float, float, str]


@dataclass(frozen=True)
class Entry:
    """What one client reserved, stored or sent.

    Attributes:
        client: who; run, round: for which question of which run.
        kind: "mask-report", "model-update", "count-table", ...
        question: SHA-256 of everything that the server asked.
        relation: neighbouring relation of the charge, "no-charge" or "unprotected".
        epsilon, delta: what this event alone guarantees under its relation; 0 where nothing is
            charged, and without a meaning where unprotected. For an event that is not pure they
            depend on the budget's delta: a ledger fills them in where both are 0.
        event: what was released, as `event_to_text` writes it; "" where nothing is charged. An
            entry with an epsilon, delta = 0 and no event is that of a pure event.
        stage: "reserved", "stored" (with the report's exact bytes) or "sent" (recorded only).
        report: the stored bytes.
        content_hash: SHA-256 of what was sent, of a "sent" entry; "" binds nothing.
    """

    client: str
    run: str
    round: str
    kind: str
    question: str
    relation: str
    epsilon: float = 0.0
    delta: float = 0.0
    event: str = ""
    stage: str = RESERVED
    report: bytes = b""
    content_hash: str = ""

    def __post_init__(self) -> None:
        """Write out the event of a pure epsilon."""
        pure = not self.event and self.delta == 0 and self.relation in UNIT_OF
        if pure and 0 < self.epsilon < float("inf"):
            object.__setattr__(self, "event", event_to_text(PureEvent(float(self.epsilon))))

    @classmethod
    def charged(
        cls,
        *,
        client: str,
        run: str,
        round: str,
        kind: str,
        question: str,
        relation: str,
        event: Event,
    ) -> Entry:
        """Write the reservation of an event.

        Args:
            client: who is charged.
            run: of which run.
            round: of which round.
            kind: of message.
            question: SHA-256 of what was asked.
            relation: the neighbouring relation that the event is charged under.
            event: what is released.
        """
        epsilon = float(event.epsilon) if isinstance(event, PureEvent) else 0.0
        text = event_to_text(event)
        return cls(client, run, round, kind, question, relation, epsilon, 0.0, text)

    @property
    def key(self) -> tuple[str, str, str]:
        """One answer is given per client, run and round."""
        return self.client, self.run, self.round

    @property
    def asked(self) -> Asked:
        """What was asked for and at what price: the same for whoever is asked the same."""
        return self.kind, self.question, self.relation, self.epsilon, self.delta, self.event


def guarantee_alone(event: Event, budget: Budget) -> tuple[float, float]:
    """Say what an event alone guarantees under a budget's relation: epsilon and delta, rounded up.

    Raises:
        PrivacyError: if the budget cannot count the event.
    """
    if isinstance(event, PureEvent):
        return float(event.epsilon), 0.0
    kept = filter_of(budget)
    return kept.epsilon_of(kept.charge(event)), budget.delta
