"""A server that dies between two phases puts the same question of the second one again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from helpers import small_config

from fedprune import config as configuration
from fedprune import models
from fedprune.federated.client import app
from fedprune.federated.conversation import Conversation
from fedprune.federated.experiment import Experiment, Held
from fedprune.federated.local_grid import LocalGrid
from fedprune.federated.local_votes import local_votes
from fedprune.federated.opening import close_stations
from fedprune.federated.steps import schedule
from fedprune.privacy import Ledger
from fedprune.progress import Quiet
from fedprune.runs import Architecture, RunFolder, step_phases, weights_vector

CLIENTS = 18
ARCHITECTURE = Architecture.dense("mlp", 10, (1, 8, 8))
WEIGHTS = weights_vector(models.load("mlp", num_classes=10, input_shape=(1, 8, 8), seed=1))


class CrashError(Exception):
    """The server dies."""


class DeployedGrid(LocalGrid):
    """Deployed clients; some may be away, and the server may die after so many answers."""

    away: int | None = None
    answers_left: int | None = None

    def send_and_receive(
        self, messages: Iterator[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        del timeout  # nothing is waited for
        for message in messages:
            client = message.metadata.dst_node_id - 2
            close_stations()
            reply = app(message, self._deployed(client))
            if message.metadata.message_type == "query.report":
                if self.answers_left == 0:
                    raise CrashError
                if self.answers_left is not None:
                    self.answers_left -= 1
                if client == self.away:
                    continue
            yield reply

    def _deployed(self, client: int) -> Context:
        folder = Path(str(self._run_config["data.root"]))
        node = {
            "partition-id": client,
            "num-partitions": CLIENTS,
            "data-root": str(folder),
            "ledger": str(folder / f"{client}.sqlite"),
            "epsilon": 4.0,
        }
        return Context(1, client + 2, node, RecordDict(), self._run_config)


@pytest.fixture(autouse=True)
def _no_open_stations() -> Iterator[None]:
    yield
    close_stations()


def experiment_of(grid: DeployedGrid, run: RunFolder) -> tuple[Experiment, Held]:
    conversation = Conversation(grid, CLIENTS, run.config.federation, Quiet())
    experiment = Experiment(run.config, run, conversation, Quiet())
    experiment.phase("plan", lambda: {"run": experiment.run_id})
    return experiment, Held.save(run, "start", ARCHITECTURE, WEIGHTS)


def test_whoever_comes_back_late_does_not_change_what_the_second_phase_asks(tmp_path: Path) -> None:
    config = small_config(
        f"out={tmp_path / 'run'}",
        f"data.root={tmp_path}",
        f"data.clients={CLIENTS}",
        "model.name=mlp",
        "privacy.phases=2",
        "federation.quorum=0.8",
    )
    grid = DeployedGrid(CLIENTS, configuration.to_flat(config))
    run = RunFolder.create(tmp_path / "run", config)
    experiment, held = experiment_of(grid, run)
    [(step, _)] = schedule(experiment)
    (early, _), (late, _) = step_phases(config, len(held.layout()), step.ranked)
    grid.away, grid.answers_left = early[0], len(early) + 1  # one of the second phase has answered
    with pytest.raises(CrashError):
        local_votes(experiment, held, step)

    grid.away = grid.answers_left = None  # everybody is there when the server starts again
    experiment, held = experiment_of(grid, run)
    found = local_votes(experiment, held, step)
    first, second = found.facts["phases"]
    assert first["reports"] == len(early) - 1
    assert second["reports"] == second["asked"] == len(late) > 1
    assert list(experiment.conversation.missing[first["round"]]) == [early[0]]
    close_stations()
    for client in range(CLIENTS):
        with Ledger.open(tmp_path / f"{client}.sqlite") as ledger:
            assert ledger.spent(str(client)) == 4
