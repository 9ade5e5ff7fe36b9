"""Does a deployed client keep its epsilon? Two worlds of data, asked through the real ClientApp.

A server that wants to know whether a client's images are lit at the left or at the right sends
the network that serves it best: half of the units see the left pixel alone, half the right one.
The client's true mask is then b in one world and -b in the other, the furthest that two masks can
be apart. Each draw is an answer of the deployed ClientApp with all of its parts: reservation in a
durable ledger, scores from the rows, selection, the operating system's randomness, storage,
receipt, reply.

Most draws are cohorts of client numbers that one station answers at once, each with a budget and
an answer of its own; some go one message at a time through Flower's app, each to a node with a
new ledger; those are asked twice, and the second answer must be the first one's bytes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message, RecordDict
from numpy.typing import NDArray

from fedprune import config as configuration
from fedprune import data, models, pruning
from fedprune.federated.client import answer_cohort, app
from fedprune.federated.flower_internals import identify_server_task
from fedprune.federated.messages import Question
from fedprune.federated.opening import close_stations
from fedprune.privacy import Report, ThresholdResponse
from fedprune.privacy.budgets.events import REPLACEMENT
from fedprune.privacy.empirical import (
    EmpiricalAudit,
    EventCounts,
    analytic_epsilon,
    log_ratios,
    table,
    two_worlds,
)
from fedprune.runs import Architecture, load_weights_vector, weights_vector

SHAPE, CLASSES, ROWS = (1, 1, 2), 2, 4
LEFT, RIGHT = "left", "right"
COHORT = 500

JsonDict = dict[str, Any]


def left(root: str | Path, *, seed: int) -> data.Dataset:  # noqa: ARG001
    """Rows of the world in which the left pixel is lit."""
    return _rows(np.array([1.0, 0.0]))


def right(root: str | Path, *, seed: int) -> data.Dataset:  # noqa: ARG001
    """Rows of the world in which the right pixel is lit."""
    return _rows(np.array([0.0, 1.0]))


def _rows(pixels: NDArray[np.float64]) -> data.Dataset:
    inputs = np.tile(pixels.reshape(1, *SHAPE), (ROWS, 1, 1, 1)).astype(np.float32)
    labels = np.arange(ROWS) % CLASSES
    return data.from_arrays(
        "worlds", train=(inputs, labels), test=(inputs, labels), num_classes=CLASSES
    )


def opposed_network() -> tuple[Architecture, torch.Tensor]:
    """Give the network whose first half of every layer sees the left pixel, the rest the right."""
    model = models.load("mlp", num_classes=CLASSES, input_shape=SHAPE, seed=1)
    with torch.no_grad():
        for layer in (part for part in model.children() if isinstance(part, torch.nn.Linear)):
            out, into = layer.weight.shape
            own = (torch.arange(out) * 2 >= out)[:, None] == (torch.arange(into) * 2 >= into)
            last = out == CLASSES  # the last layer reads both halves
            layer.weight.copy_(torch.where(own | torch.tensor(last), layer.weight.abs() + 0.1, 0.0))
            layer.weight[0] *= 0.5 if last else 1.0  # so that no gradient cancels
            layer.bias.zero_()
    return Architecture.dense("mlp", CLASSES, SHAPE), weights_vector(model)


class DeployedWorld:
    """Deployed clients whose rows are those of one world, and the questions put to them."""

    def __init__(self, folder: Path, world: str, mechanism: ThresholdResponse) -> None:
        """Take a folder for ledgers, "left" or "right", and what is asked for."""
        self.folder, self.world, self.mechanism = folder, world, mechanism
        self.architecture, self.weights = opposed_network()
        self.asked = 0

    def question(self, round_: str) -> Question:
        """Ask for a report, as the server of a run does."""
        settings: dict[str, str | int | float | bool] = {
            "criterion": "taylor",
            "fingerprint": self.architecture.dense_layout.fingerprint,
            "keep_units": 0.5,
            "floor": 1,
            "epsilon": self.mechanism.epsilon,
            "block_units": self.mechanism.block_units,
            "threshold": self.mechanism.threshold,
            "mechanism": self.mechanism.name,
            "units": "",  # all of them
            "clients": 1,
            "ranks": "",  # every client draws its block
        }
        return Question("audit", round_, self.architecture, self.weights, settings)

    def context(self, client: int, ledger: Path) -> Context:
        """Context of a SuperNode whose operator allows exactly one report."""
        return Context(
            run_id=1,
            node_id=client + 2,
            node_config={
                "partition-id": client,
                "data-root": str(self.folder),
                "ledger": str(ledger),
                "epsilon": self.mechanism.epsilon,
                "dataset": f"audit_client:{self.world}",
            },
            state=RecordDict(),
            run_config=configuration.to_flat(
                configuration.load(None, ["model.name=mlp", f"out={self.folder}"])
            ),
        )

    def cohort(self, count: int, *, again: bool = False) -> tuple[list[Report], list[Report]]:
        """Ask so many new client numbers of one station; ask them `again` for a second answer."""
        first: list[Report] = []
        second: list[Report] = []
        own = self.context(0, self.folder / f"{self.world}.sqlite")
        content = self.question("report-1").to_content()
        while len(first) < count:
            clients = range(self.asked + 1, self.asked + 1 + min(COHORT, count - len(first)))
            self.asked += len(clients)
            # Client 0 comes first, so that the station stays open; its answer is always the same.
            contexts = [own, *(_renumbered(own, client) for client in clients)]
            for answers in (first, second)[: 1 + again]:
                messages = [Message(content, c.node_id, "query.report") for c in contexts]
                answers += [_report(reply) for reply in answer_cohort(messages, contexts)[1:]]
        return first, second

    def alone(self, count: int) -> tuple[list[Report], list[Report]]:
        """Ask so many new nodes one by one through Flower's app, each twice."""
        first: list[Report] = []
        second: list[Report] = []
        for _ in range(count):
            self.asked += 1
            ledger = self.folder / f"{self.world}-{self.asked}.sqlite"
            context = self.context(self.asked, ledger)
            for answers in (first, second):
                message = Message(
                    self.question("report-1").to_content(), context.node_id, "query.report"
                )
                answers.append(_report(app(message, context)))
            close_stations()
            for used in self.folder.glob(f"{ledger.name}*"):
                used.unlink()
        return first, second


def _renumbered(context: Context, client: int) -> Context:
    node_config = {**context.node_config, "partition-id": client}
    return Context(
        run_id=context.run_id,
        node_id=client + 2,
        node_config=node_config,
        state=context.state,
        run_config=context.run_config,
    )


def _report(reply: Message) -> Report:
    if reply.has_error():
        raise SystemExit(f"a client refused: {reply.error.reason}")
    return Report(bytes(reply.content.config_records["answer"]["report"]))  # type: ignore[arg-type]


def true_mask(world: str) -> NDArray[np.bool_]:
    """What a client of a world keeps, before any noise: [num_units] bool."""
    architecture, weights = opposed_network()
    model, layout = architecture.build()
    load_weights_vector(model, weights)
    rows = {LEFT: left, RIGHT: right}[world]("", seed=1).train
    batch = (rows.inputs(np.arange(ROWS)), rows.targets(np.arange(ROWS)))
    scores = pruning.score(model, layout, [batch], criterion="taylor")
    return np.asarray(pruning.select(scores, layout, keep_units=0.5).numpy(), dtype=np.bool_)


def count_client(
    mechanism: ThresholdResponse, draws: int, folder: Path, *, again: bool = False
) -> EventCounts:
    """Count what deployed clients' answers say for the left world; asked `again`, both answers."""
    mask, other = true_mask(LEFT), true_mask(RIGHT)
    if not np.array_equal(mask, ~other):
        raise SystemExit("the two worlds' masks are not opposite: the network is not as meant")

    def sampler(name: str) -> Callable[[int], NDArray[np.float64]]:
        world = DeployedWorld(folder, name, mechanism)

        def sample(count: int) -> NDArray[np.float64]:
            answers = [part for part in world.cohort(count, again=again) if part]
            ratios = [log_ratios(mechanism, part, mask, other) for part in answers]
            return np.asarray(np.sum(ratios, axis=0), dtype=np.float64)

        return sample

    threshold = 2.0 if again else 1.0
    try:
        return two_worlds(
            sampler(LEFT), sampler(RIGHT), draws=draws, threshold=threshold, mirrored=True
        )
    finally:
        close_stations()


def repeats_of_nodes(mechanism: ThresholdResponse, nodes: int, folder: Path) -> int:
    """Ask nodes of their own twice through Flower's app; give how many sent other bytes."""
    first, second = DeployedWorld(folder, LEFT, mechanism).alone(nodes)
    return sum(a != b for a, b in zip(first, second, strict=True))


def audit_client(epsilon: float, draws: int, nodes: int) -> tuple[EmpiricalAudit, JsonDict]:
    """Audit deployed clients at one epsilon.

    Args:
        epsilon: that every client is asked to report at, and has as its budget.
        draws: answers in each world; a tenth as many are asked for a second answer.
        nodes: of the small check through Flower's app.

    Returns:
        Claimed, analytic and empirical epsilon, and the same for the two answers together.
    """
    identify_server_task(1)
    mechanism = ThresholdResponse(epsilon, len(true_mask(LEFT)))
    with tempfile.TemporaryDirectory() as once, tempfile.TemporaryDirectory() as twice:
        counts = count_client(mechanism, draws, Path(once))
        both = count_client(mechanism, max(1, draws // 10), Path(twice), again=True)
        other_bytes = repeats_of_nodes(mechanism, nodes, Path(twice))
    audit = EmpiricalAudit.of(
        counts,
        subject=f"deployed ClientApp, {mechanism.num_units} units, {mechanism.num_blocks} blocks",
        claimed=epsilon,
        analytic=analytic_epsilon(mechanism),
        relation=REPLACEMENT,
        trust="local",
    )
    retried = both.test_claim(epsilon, name="retry")
    return audit, {
        "retry": retried.to_json(),
        "retry_epsilon_lower": both.epsilon_lower(),
        "nodes": nodes,
        "nodes_with_other_bytes": other_bytes,
    }


def main() -> None:
    """Audit the client at 1, 4 and 8 and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=100_000, help="answers in each world")
    parser.add_argument("--nodes", type=int, default=100, help="nodes asked one by one, twice")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    audits = []
    for epsilon in (1.0, 4.0, 8.0):
        audit, retries = audit_client(epsilon, arguments.draws, arguments.nodes)
        audits.append(audit)
        print(audit.sentence())
        print(f"  asked twice: at least {retries['retry_epsilon_lower']:.3f}; {retries['retry']}")
        print(f"  {retries['nodes_with_other_bytes']} of {retries['nodes']} nodes sent other bytes")
    print(table(audits))


if __name__ == "__main__":
    main()
