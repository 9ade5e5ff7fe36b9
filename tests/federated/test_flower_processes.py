"""Real SuperLinks, SuperNodes and simulations on loopback, with an app that does nothing."""

from __future__ import annotations

import ast
import socket
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import small_config

from fedprune import config as configuration
from fedprune.config import Scalar
from fedprune.errors import ConfigError, FederationError
from fedprune.federated import pinned
from fedprune.federated.control import Control
from fedprune.federated.credentials import Certificates, NodeKeys, make_certificates, make_node_keys
from fedprune.federated.flower_engine import FlowerEngine, flower_simulation, resources, write_app
from fedprune.federated.processes import free_port, running
from fedprune.federated.reasons import exit_reason, refusal
from fedprune.federated.superlink import SuperLink, superlink
from fedprune.federated.supernode import SuperNode, as_node_config, supernode

PYPROJECT = """
[project]
name = "nothing"
version = "1.0.0"
description = ""
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "tests"

[tool.flwr.app.components]
serverapp = "nothing.server:app"
clientapp = "nothing.client:app"

[tool.flwr.app.config]
nodes = 1
fail = ""
[tool.flwr.app.config.deep]
marker = "a default"
"""
CLIENT = """
import os
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.query("who")
def who(message, context):
    answer = {"app": __name__, "parent": os.getppid(), **context.node_config}
    return Message(RecordDict({"answer": ConfigRecord(answer)}), reply_to=message)
"""
SERVER = """
import time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    if context.run_config["fail"]:
        raise ValueError(context.run_config["fail"])
    while len(ids := list(grid.get_node_ids())) < context.run_config["nodes"]:
        time.sleep(0.1)
    question = RecordDict({"question": ConfigRecord({})})
    messages = [Message(question, node, "query.who", group_id="1") for node in ids]
    waiting = set(grid.push_messages(messages))
    while waiting:
        for reply in grid.pull_messages(waiting):
            waiting.discard(reply.metadata.reply_to_message_id)
            print("ANSWER", dict(reply.content["answer"]))
        time.sleep(0.1)
    print("MARKER", context.run_config["deep.marker"])
"""
CHOSEN_HERE = "the_nodes_own:app"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An app that asks every node who it is and prints the answers."""
    folder = tmp_path_factory.mktemp("apps") / "nothing"
    (folder / "nothing").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "nothing" / "__init__.py").write_text("")
    (folder / "nothing" / "client.py").write_text(CLIENT)
    (folder / "nothing" / "server.py").write_text(SERVER)
    return folder


@dataclass(frozen=True)
class Deployment:
    root: Path
    link: SuperLink
    certificates: Certificates
    keys: dict[str, NodeKeys]
    ids: dict[str, int]
    nodes: dict[str, SuperNode]


def connected(made: Deployment, name: str, node_config: dict[str, Scalar], **more):
    return supernode(
        made.root / name,
        made.link.fleet_address,
        node_config,
        root_certificates=made.certificates.ca,
        private_key=made.keys[name].private,
        **more,
    )


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A SuperLink with TLS and authentication; "pinned" and "open" have joined, "stranger" not."""
    root = tmp_path_factory.mktemp("deployment")
    (root / "own").mkdir()
    (root / "own" / "the_nodes_own.py").write_text(CLIENT)
    certificates = make_certificates(root / "tls")
    keys = {name: make_node_keys(root / "keys", name) for name in ("pinned", "open", "stranger")}
    with ExitStack() as stack:
        link = stack.enter_context(
            superlink(root / "link", certificates=certificates, authenticate=True)
        )
        ids = {name: link.register(keys[name].public, name) for name in ("pinned", "open")}
        made = Deployment(root, link, certificates, keys, ids, {})
        environment = {"PYTHONPATH": f"{root / 'own'}:{Path(pinned.__file__).parents[2]}"}
        for number, (name, client_app) in enumerate([("pinned", CHOSEN_HERE), ("open", None)]):
            node_config = {"partition-id": number, "path": 'a "b" = c', "x": 1.5, "on": True}
            made.nodes[name] = stack.enter_context(
                connected(
                    made,
                    name,
                    node_config,
                    environment=environment,
                    wait=False,
                    client_app=client_app,
                )
            )
        for node in made.nodes.values():
            node.wait_joined()
        yield made


def answers(log: str) -> list[dict[str, object]]:
    lines = [line for line in log.splitlines() if line.startswith("ANSWER")]
    return [ast.literal_eval(line.removeprefix("ANSWER ")) for line in lines]


def test_a_run_reaches_registered_nodes_and_a_pinned_one_runs_no_code_of_the_server(
    deployment: Deployment, app: Path
) -> None:
    link = deployment.link
    number = link.submit(app, {"nodes": 2, "deep.marker": 'it\'s "set" = here'})
    status = link.wait(number, seconds=120)
    assert status.completed, link.reason(number, status)
    log = link.log_of(number)
    by_client = {answer["partition-id"]: answer for answer in answers(log)}
    assert [by_client[i]["app"] for i in (0, 1)] == ["the_nodes_own", "nothing.client"]
    assert all(by_client[i]["path"] == 'a "b" = c' for i in (0, 1))
    assert (by_client[0]["x"], by_client[0]["on"]) == (1.5, True)
    assert 'MARKER it\'s "set" = here' in log
    assert not (deployment.root / "pinned" / "apps").exists()  # the server's code is not unpacked
    assert (deployment.root / "open" / "apps").exists()
    assert {name: node.node_id for name, node in deployment.nodes.items()} == deployment.ids


def test_a_failed_run_is_told_with_the_apps_own_sentence(deployment: Deployment, app: Path) -> None:
    link = deployment.link
    number = link.submit(app, {"fail": "no such data"})
    status = link.wait(number, seconds=120)
    assert (status.state, status.detail) == ("finished:failed", "no such data")
    assert status.finished
    assert not status.completed
    assert link.reason(number, status) == "no such data"


def test_a_run_can_be_stopped_and_stopping_it_again_is_no_error(
    deployment: Deployment, app: Path
) -> None:
    link = deployment.link
    number = link.submit(app, {"nodes": 99})
    link.stop_run(number)
    assert link.wait(number, seconds=120).state == "finished:stopped"
    link.stop_run(number)


def test_who_may_not_join_is_told_why(deployment: Deployment, tmp_path: Path) -> None:
    link, ca = deployment.link, deployment.certificates.ca
    stranger = deployment.keys["stranger"].private
    other = make_certificates(tmp_path / "tls")
    cases = {
        "does not let this key in": {"root_certificates": ca, "private_key": stranger},
        "lets only registered SuperNodes in": {"root_certificates": ca},
        "does not vouch for": {"root_certificates": other.ca, "private_key": stranger},
        "speaks TLS, and no root certificates were given": {},
    }
    with ExitStack() as stack:
        begun = {
            words: stack.enter_context(
                supernode(
                    tmp_path / str(number),
                    link.fleet_address,
                    {"partition-id": 9},
                    wait=False,
                    join_seconds=1,
                    **options,
                )
            )
            for number, (words, options) in enumerate(cases.items())
        }
        for words, node in begun.items():
            with pytest.raises(FederationError, match=words):
                node.wait_joined()
            assert not node.alive
    with pytest.raises(FederationError, match="does not vouch for"):
        Control(tmp_path / "control", link.address, root_certificates=other.ca).nodes()


def test_what_the_superlink_refuses_is_told_in_one_line(
    deployment: Deployment, app: Path, tmp_path: Path
) -> None:
    link = deployment.link
    refusals = {
        "Public key already in use": lambda: link.register(deployment.keys["open"].public),
        "Unsupported key type": lambda: link.register(deployment.certificates.ca),
        "has no key deep.typo": lambda: link.submit(app, {"deep.typo": 1}),
        "does not describe a Flower app": lambda: link.submit(tmp_path),
        "Run ID not found": lambda: link.status(1),
    }
    for words, action in refusals.items():
        with pytest.raises(FederationError, match=words) as caught:
            action()
        assert "\n" not in str(caught.value)
        assert "\x1b" not in str(caught.value)


def test_a_node_that_was_stopped_comes_back_under_its_old_id(deployment: Deployment) -> None:
    stranger = deployment.keys["stranger"]
    number = deployment.link.register(stranger.public, "stranger")
    for _ in range(2):
        with connected(deployment, "stranger", {"partition-id": 2}) as node:
            assert node.node_id == number
            assert node.alive


def test_where_no_superlink_is_both_sides_say_so(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(FederationError, match=f"no SuperLink answers at {address}"):
        Control(tmp_path / "control", address).nodes()
    with (
        pytest.raises(FederationError, match=f"no SuperLink answers at {address}"),
        supernode(tmp_path / "node", address, {"partition-id": 0}, join_seconds=1),
    ):
        pass


def test_what_cannot_start_is_refused_before_it_is_tried(tmp_path: Path) -> None:
    certificates, keys = make_certificates(tmp_path / "tls"), make_node_keys(tmp_path, "north")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(FederationError, match=f"cannot listen on 127.0.0.1:{port}"),
            superlink(tmp_path / "link", port=port),
        ):
            pass
    with (
        pytest.raises(FederationError, match="needs certificates"),
        superlink(tmp_path / "link", authenticate=True),
    ):
        pass
    with (
        pytest.raises(FederationError, match="needs root certificates"),
        supernode(tmp_path / "node", "127.0.0.1:1", {}, private_key=keys.private),
    ):
        pass
    with (
        pytest.raises(FederationError, match="absent is no file"),
        supernode(
            tmp_path / "node",
            "127.0.0.1:1",
            {},
            root_certificates=certificates.ca,
            private_key=tmp_path / "absent",
        ),
    ):
        pass


# The simulation engine.


def test_runs_share_a_simulation_and_one_that_fails_says_its_own_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Listener:
        def say(self, text: str) -> None:
            told.append(text)

        def track(self, items, label, total):
            del total
            told.append(label)
            yield from items

    monkeypatch.chdir(tmp_path)
    small = ("data.clients=4", "train.rounds=0", "train.fine_tune_rounds=0", "engine.actors=1")
    config = small_config(*small, "evaluate.baselines=false", "evaluate.certified_rows=10")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.toml").write_text("seed = 2")
    with flower_simulation(config) as engine:
        with pytest.raises(FederationError, match=r"taken.*another configuration"):
            engine.run(config, Path("taken"), Listener())
        engine.run(config, Path("right"), Listener())
        pid, home = engine.link.pid, engine.link.home
    assert (tmp_path / "right" / "summary.json").is_file()
    assert any("units" in line for line in told)
    assert "reports, step 1" in told
    assert not Path(f"/proc/{pid}").exists()
    assert not home.exists()


CLUSTER = """
import sys, time
from pathlib import Path
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1, include_dashboard=False)
cluster.wait_for_nodes()
Path(sys.argv[1]).write_text(cluster.address)
time.sleep(600)
"""


def test_a_simulation_spreads_over_the_nodes_of_a_running_ray_cluster(
    app: Path, tmp_path: Path, short_folder: Path
) -> None:
    address = tmp_path / "address"
    with running(
        "a Ray cluster",
        [sys.executable, "-c", CLUSTER, str(address)],
        log=tmp_path / "ray.log",
        environment={"RAY_TMPDIR": str(short_folder), "RAY_USAGE_STATS_ENABLED": "0"},
    ) as cluster:
        cluster.wait_for(address.exists, 60, "it had two nodes")
        config = small_config("data.clients=6", f"engine.ray_address={address.read_text()}")
        with flower_simulation(config) as engine:
            found = simulate(engine, app, resources(config), nodes=6)
    assert sorted(answer["partition-id"] for answer in found) == list(range(6))
    assert len({answer["parent"] for answer in found}) == 2  # a Ray node is its workers' parent


def simulate(
    engine: FlowerEngine, app: Path, federation_config: dict[str, Scalar], nodes: int
) -> list[dict[str, object]]:
    number = engine.link.submit(app, {"nodes": nodes}, federation_config=federation_config)
    status = engine.link.wait(number, seconds=120)
    assert status.completed, engine.link.reason(number, status)
    return answers(engine.link.log_of(number, 200))


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose name is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="fp-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


# What needs no processes.


def test_the_app_folder_carries_every_key_of_the_configuration(tmp_path: Path) -> None:
    from flwr.common.config import get_fused_config_from_dir

    config = small_config("model.name=a.b:c", 'data.root=it\'s "here"', "train.learning_rate=1")
    folder = write_app(tmp_path / "app", config, tmp_path / "out")
    read = get_fused_config_from_dir(folder, {})
    located = config.model_copy(update={"out": str(tmp_path / "out")})
    assert configuration.from_flat(read) == located


def test_the_resources_of_a_simulation_follow_the_configuration() -> None:
    config = small_config(
        "data.clients=7",
        "engine.actors=3",
        "engine.cpus_per_client=2",
        "engine.gpus_per_client=0.5",
    )
    assert resources(config) == {
        "num-supernodes": 7,
        "client-resources-num-cpus": 2,
        "client-resources-num-gpus": 0.5,
        "init-args-num-cpus": 6,
    }


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["engine.cpus_per_client=100000"], "engine.cpus_per_client must be at most"),
        (["engine.ray_address=127.0.0.1:1"], "no Ray cluster answers"),
        (["engine.ray_address=somewhere"], "must be host:port"),
        (["engine.ray_address=127.0.0.1:1", "engine.actors=2"], "engine.actors must be 0"),
    ],
)
def test_what_ray_cannot_give_is_refused_at_once(overrides: list[str], words: str) -> None:
    with (
        pytest.raises((ConfigError, FederationError), match=words),
        flower_simulation(small_config(*overrides)),
    ):
        pass


@pytest.mark.parametrize(
    "values",
    [
        {"partition-id": 0, "x": -1.5e-7, "on": True, "off": False, "empty": ""},
        {"path": "/srv/a b/c.toml", "words": 'with "double" quotes = and # signs \\ here'},
        {"unicode": "Zürich 東京"},
        {"only": "/srv/a.toml"},
    ],
)
def test_flower_reads_a_node_config_back_as_it_was_meant(values: dict[str, Scalar]) -> None:
    from flwr.common.config import parse_config_args

    assert parse_config_args([as_node_config(values)]) == values


@pytest.mark.parametrize("value", ["a'b", "a\nb"])
def test_a_node_config_that_flower_cannot_carry_is_refused(value: str) -> None:
    with pytest.raises(FederationError, match="node config cannot hold"):
        as_node_config({"path": value})


def test_a_pinned_node_offers_no_program_that_a_server_could_ask_for(tmp_path: Path) -> None:
    from flwr.supercore.constant import TASK_TYPE_TO_COMMAND

    folder = pinned.write_programs(tmp_path / "bin", "a:b")
    assert {path.name for path in folder.iterdir()} == set(TASK_TYPE_TO_COMMAND.values())
    refused = set(TASK_TYPE_TO_COMMAND.values()) - {"flwr-clientapp"}
    assert refused == set(pinned.REFUSED_PROGRAMS)


def test_a_pinned_node_runs_nothing_where_flower_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flwr.supernode.runtime import run_clientapp

    monkeypatch.delattr(run_clientapp, "install_from_fab")
    with pytest.raises(FederationError, match=r"has no install_from_fab; nothing is run"):
        pinned.main(["a:b"])


def test_an_app_that_is_not_installed_is_named() -> None:
    with pytest.raises(FederationError, match="no client app 'no_such:app' is installed"):
        pinned.load("no_such:app")


def test_flowers_reason_is_found_among_its_general_words() -> None:
    log = textwrap.dedent("""\
        INFO :      Starting
        ERROR :     Exit Code: 305
        Failed to initialize the connection to the SuperLink.
        [Errno 111] Connection refused
        The SuperNode could not establish a connection to the SuperLink.

        For more information, visit: <https://flower.ai>
        INFO:     Shutting down""").splitlines()
    assert exit_reason(log) == "[Errno 111] Connection refused"
    assert exit_reason(log[:1]) == ""
    assert "no SuperLink answers at a:1" in refusal(exit_reason(log), "a:1", None)
    assert refusal("something new", "a:1", None).endswith("cannot be joined: something new")
