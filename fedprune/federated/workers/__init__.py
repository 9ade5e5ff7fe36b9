"""Local training in worker processes: one thread each, rows and weights in shared memory.

    parent (pool.py, lending.py)                 nursery (nursery.py)        workers (worker.py)
    rows, weights, reply slots in shared memory
        --- starts once, by exec ------------->  imports once
        --- "fork", the worker's socket ------>  forks  ------------------>  answers on its socket
        --- "job": network, settings, memory ---------------------------->   builds, tries it
        --- "train": client, rows, slot --------------------------------->   trains, fills the slot

Workers are never forked from the parent: it has threads (torch's, its users'), and a fork copies
their locks in whatever state they are in, held ones for ever. They come from a process that was
started afresh for it and has one thread for all its life. Nothing is pickled: messages are small
JSON, memory is handed over as file descriptors, and what is nobody's any more is freed by the
system, however its processes ended.
"""

from fedprune.federated.workers.errors import ClientFailedError, WorkersUnavailableError
from fedprune.federated.workers.lending import Workers, open_workers, worker_processes
from fedprune.federated.workers.pool import Pool
from fedprune.federated.workers.settings import WorkerSettings
from fedprune.federated.workers.turn import Trained
from fedprune.federated.workers.work import Work

__all__ = [
    "ClientFailedError",
    "Pool",
    "Trained",
    "Work",
    "WorkerSettings",
    "Workers",
    "WorkersUnavailableError",
    "open_workers",
    "worker_processes",
]
