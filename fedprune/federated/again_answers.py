"""A client's part in training that another run of the same sweep has done: its ledger says so."""

from __future__ import annotations

from collections.abc import Sequence

from fedprune.federated.answering import send_unprotected
from fedprune.federated.answers import Outcome, Outcomes
from fedprune.federated.messages import Question, answer_content
from fedprune.federated.station import Station


def answer_train_again(station: Station, question: Question, clients: Sequence[int]) -> Outcomes:
    """Write down the update that each client would have sent: in simulation only.

    The same clients with the same rows and seeds have trained on the same model in the run that
    the question names; what they would send again is known, and that they would is on record.
    """
    station.simulation_only("to write down an update that it did not compute")
    question.text("source")
    contents: list[Outcome] = [answer_content(client, {}) for client in clients]
    return send_unprotected(station, question, "model-update", clients, contents)
