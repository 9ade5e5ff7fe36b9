"""What the report says about a deployed run: whose receipts there are, and who was missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedprune import privacy
from fedprune.audit import _wording as say
from fedprune.audit._page import Note, Table
from fedprune.audit._wording import Json
from fedprune.errors import FedpruneError
from fedprune.privacy import Receipt
from fedprune.runs import RunFolder, read_receipts, receipt_lines

NAMED = 10  # clients, or rounds, that one sentence names


@dataclass(frozen=True)
class Deployment:
    """What a run folder's receipts show.

    Attributes:
        clients: how many clients signed.
        receipts: how many distinct receipts there are.
        flaw: the first thing that is wrong with them, or "".
        keys: one row a client: number, public key, receipts, epsilon charged.
    """

    clients: int
    receipts: int
    flaw: str
    keys: tuple[tuple[str, str, str, str], ...]

    @property
    def words(self) -> str:
        """The state of the receipts in a few words."""
        checked = "receipts verified" if not self.flaw else "receipts NOT in order"
        return f"deployed: {say.plural(self.clients, 'client')}, {checked}"

    @property
    def table(self) -> Table:
        """Who signed with which key."""
        head = ("Client", "Public key (Ed25519)", "Receipts", "ε charged here")
        return Table(head, self.keys, words=frozenset({1}))


def look_at_receipts(folder: RunFolder) -> Deployment:
    """Verify a deployed run's receipts for its report."""
    try:
        lines, receipts = receipt_lines(folder), read_receipts(folder)
        flaw = next(
            privacy.verify_receipts(lines, run=str(folder.events()[0]["result"]["run"])), ""
        )
    except FedpruneError as error:
        return Deployment(0, 0, str(error), ())
    except (IndexError, KeyError, TypeError):
        return Deployment(0, 0, "the run's first event does not name the run", ())
    by_client: dict[str, list[Receipt]] = {}
    for receipt in receipts:
        by_client.setdefault(receipt.client, []).append(receipt)
    spent = privacy.epsilon_of_receipts(receipts)
    keys = tuple(
        (
            client,
            " and ".join(dict.fromkeys(receipt.public_key for receipt in own)),
            say.count(len(own)),
            say.plain(float(spent.get(client, 0)), 6),
        )
        for client, own in sorted(by_client.items(), key=lambda item: (len(item[0]), item[0]))
    )
    return Deployment(len(by_client), len(receipts), flaw, keys)


def deployment_notes(summary: Json, deployment: Deployment | None) -> Iterator[Note]:
    """Say how the clients' spending is known, and who was missing."""
    if summary.get("simulated") is not False:
        return
    if deployment is None:
        yield Note("mind", "Deployed: the clients' receipts were not looked at for this page.")
    elif deployment.flaw:
        yield Note("bad", f"The clients' receipts do not hold: {say.sentence(deployment.flaw)}")
    else:
        words = (
            f"Deployed: {say.plural(deployment.clients, 'client')}, "
            f"{say.plural(deployment.receipts, 'signed receipt')} verified."
        )
        yield Note("good", f"{words} {_basis(summary)}".strip())
    for words in missing_words(summary):
        yield Note("mind", f"Missing: {words}.")


def missing_words(summary: Json) -> Iterator[str]:
    """Name every client that gave no answer in some round, with the rounds."""
    rounds = _rounds_missed(summary)
    for client, names in list(rounds.items())[:NAMED]:
        more = f" and {len(names) - NAMED} more rounds" if len(names) > NAMED else ""
        yield f"client {client} gave no answer in {', '.join(names[:NAMED])}{more}"
    if len(rounds) > NAMED:
        yield f"{len(rounds) - NAMED} more clients gave no answer in some round"


def missing_sentence(summary: Json) -> list[str]:
    """One sentence that names who was missing somewhere; none where nobody was."""
    gone = list(_rounds_missed(summary))
    if not gone:
        return []
    named = ", ".join(gone[:NAMED]) + (f" and {len(gone) - NAMED} more" if gone[NAMED:] else "")
    one = "Client" if len(gone) == 1 else "Clients"
    return [f"{one} {named} gave no answer in some of the rounds."]


def _rounds_missed(summary: Json) -> dict[str, list[str]]:
    rounds: dict[str, list[str]] = {}
    for name, gone in say.table_of(summary, "missing").items():
        for client in gone if isinstance(gone, list) else ():
            rounds.setdefault(say.text(client), []).append(str(name))
    return rounds


def _basis(summary: Json) -> str:
    basis = say.pick(summary, "privacy.basis")
    return say.sentence(f"What is known rests on {basis}") if isinstance(basis, str) else ""
