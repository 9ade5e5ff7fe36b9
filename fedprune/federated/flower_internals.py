"""The few places where fedprune touches what Flower keeps to itself.

Checked with flwr 1.41 and ray 2.55. A message can only be made once the current task has an
identity, which Flower's own server process sets; the local grid sets it here.
"""

from __future__ import annotations

import sys
from itertools import count

from flwr.app import Message
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

CHECKED_VERSIONS = ("1.41",)
CHECKED_RAY_VERSIONS = ("2.55",)
SERVER_NODE = 1
_NUMBERS = count(1)


def identify_server_task(run_id: int) -> None:
    """Give this process the identity that Flower's server code gives its own."""
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SERVER_NODE


def empty_run(run_id: int) -> Run:
    """Make the record of a run that Flower's grids carry."""
    return Run.create_empty(run_id)


def name_message(message: Message) -> str:
    """Give a message an id of its own in this process, as a SuperLink would."""
    identifier = f"{next(_NUMBERS):032x}"
    message.metadata.__dict__["_message_id"] = identifier
    return identifier


def hosts_simulation_actor() -> bool:
    """Whether this process is a Ray worker that hosts a client actor of Flower's simulation.

    A SuperNode's client process is no Ray worker; what it is not sure of is False.
    """
    worker_module = sys.modules.get("ray._private.worker")
    actor_module = sys.modules.get("flwr.simulation.ray_transport.ray_actor")
    if worker_module is None or actor_module is None:  # neither is imported by anything of ours
        return False
    worker = worker_module.global_worker
    if worker.mode != worker_module.WORKER_MODE:
        return False
    kind = actor_module.VirtualClientEngineActor
    return any(isinstance(actor, kind) for actor in worker.actors.values())
