"""What a deployed client's operator decides, in the node config of its own SuperNode.

`flower-supernode --node-config 'partition-id=0 data-root="/srv/heart" ledger="/srv/fedprune.sqlite"
epsilon=4.0'`. Nothing here can be changed by a server.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedprune import runs
from fedprune.config import Config, Scalar
from fedprune.data import PARTITIONS
from fedprune.errors import PrivacyError, RefusedInDeploymentError
from fedprune.privacy import Budget
from fedprune.privacy.budgets.accounting import RENYI
from fedprune.privacy.budgets.events import ADD_REMOVE_RECORD

CLIENT_KEY = "partition-id"
_REQUIRED = ("data-root", "ledger", "epsilon")
_UNPROTECTED, _NOISED, _OFF = "unprotected", "noised", "off"


@dataclass(frozen=True)
class NodeSettings:
    """A deployed client's own settings.

    Attributes:
        client: its number in the federation (`partition-id`).
        data_root: folder of its rows.
        ledger: SQLite file of its budget.
        epsilon, delta: the client-level budget that it enforces; delta = 0 counts pure epsilon.
        record_epsilon, record_delta: a record-level budget beside it; None allows no message that
            is protected at record level only, such as DP-SGD updates.
        record_order: the Renyi order that it is counted at, which leaves most room for a certain
            schedule; 0 takes the one that suits Gaussian noise without sampling.
        least_noise_multiplier: of DP-SGD; a server that asks for less noise gets this much.
        head_copy: file, best on another disk, that remembers the ledger's last row: a ledger that
            was put back to an earlier state is then refused.
        least_colluding: how many clients of a secure sum it takes for the server's friends; a sum
            whose noise and shares count on fewer is refused.
        roster: file with the public keys of the clients that it takes part in secure sums with.
        signing_key: file of the key that signs its receipts; beside the ledger by default.
        dataset: name of its data set; "" takes the run's, unless that names code to import.
        model: the "package.module:function" that it allows to be imported, if any.
        tables: "noised" lets count tables leave with noise, charged to the budgets above;
            "unprotected" without it too; "off" lets none leave.
        split_seed: holds out its test rows and, with `num_partitions`, picks its share.
        num_partitions: where several clients share one data root, for trying things out: it takes
            one share of that many; None where all rows are its own.
        partition: how they are shared.
    """

    client: int
    data_root: str
    ledger: Path
    epsilon: float
    signing_key: Path
    dataset: str = ""
    model: str = ""
    tables: str = _OFF
    split_seed: int = 1
    num_partitions: int | None = None
    partition: str = "iid"
    delta: float = 0.0
    record_epsilon: float | None = None
    record_delta: float = 1e-5
    record_order: float = 0.0
    least_noise_multiplier: float = 0.0
    least_colluding: int = 0
    roster: Path | None = None
    head_copy: Path | None = None

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """What this client allows, one budget a neighbouring relation.

        Raises:
            RefusedInDeploymentError: if a budget can promise nothing.
        """
        try:
            own = Budget(self.epsilon) if self.delta == 0 else Budget.zcdp(self.epsilon, self.delta)
            if self.record_epsilon is None:
                return (own,)
            return own, self._record_budget(self.record_epsilon)
        except PrivacyError as error:
            raise RefusedInDeploymentError(f"node config: {error}") from None

    def _record_budget(self, epsilon: float) -> Budget:
        if self.record_delta == 0:
            return Budget(epsilon, relation=ADD_REMOVE_RECORD)
        if not self.record_order:
            return Budget.renyi(epsilon, self.record_delta, ADD_REMOVE_RECORD)
        return Budget(
            epsilon,
            self.record_delta,
            relation=ADD_REMOVE_RECORD,
            composition=RENYI,
            order=self.record_order,
        )

    @staticmethod
    def of(node_config: Mapping[str, Scalar]) -> NodeSettings:
        """Read a node config.

        Raises:
            RefusedInDeploymentError: if something is missing or not allowed.
        """
        missing = [name for name in _REQUIRED if name not in node_config]
        if missing:
            raise RefusedInDeploymentError(
                f"a deployed client needs {', '.join(missing)} in its own node config: its data, "
                "its ledger and its budget are never taken from a server"
            )
        ledger = Path(str(node_config["ledger"])).expanduser()
        own_key = ledger.with_name(ledger.name + ".key")
        return NodeSettings(
            client=client_number(node_config),
            data_root=str(node_config["data-root"]),
            ledger=ledger,
            epsilon=_budget(node_config, "epsilon"),
            delta=_delta(node_config, "delta", 0.0),
            record_epsilon=(
                _budget(node_config, "record-epsilon") if "record-epsilon" in node_config else None
            ),
            record_delta=_delta(node_config, "record-delta", 1e-5),
            record_order=_at_least_0(node_config, "record-order"),
            least_noise_multiplier=_at_least_0(node_config, "least-noise-multiplier"),
            least_colluding=_whole(node_config, "least-colluding", 0) or 0,
            roster=_path(node_config, "roster"),
            head_copy=_path(node_config, "head-copy"),
            signing_key=Path(str(node_config.get("signing-key", own_key))).expanduser(),
            dataset=str(node_config.get("dataset", "")),
            model=str(node_config.get("model", "")),
            tables=_choice(node_config, "tables", _OFF, (_OFF, _NOISED, _UNPROTECTED)),
            split_seed=_whole(node_config, "split-seed", 1) or 0,
            num_partitions=_whole(node_config, "num-partitions", None),
            partition=_choice(node_config, "partition", "iid", tuple(PARTITIONS)),
        )


def client_number(node_config: Mapping[str, Scalar]) -> int:
    """Read the client's number.

    Raises:
        RefusedInDeploymentError: if it is missing or not a whole number of at least 0.
    """
    found = _whole(node_config, CLIENT_KEY, None)
    if found is None:
        raise RefusedInDeploymentError(f"node config needs a whole number {CLIENT_KEY}")
    return found


def _whole(node_config: Mapping[str, Scalar], name: str, default: int | None) -> int | None:
    value = node_config.get(name, default)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RefusedInDeploymentError(
            f"node config's {name} must be a whole number of at least 0, got {value!r}"
        )
    return value


def _choice(
    node_config: Mapping[str, Scalar], name: str, default: str, allowed: tuple[str, ...]
) -> str:
    value = str(node_config.get(name, default))
    if value not in allowed:
        raise RefusedInDeploymentError(
            f"node config's {name} must be one of {', '.join(allowed)}, got {value!r}"
        )
    return value


def _budget(node_config: Mapping[str, Scalar], name: str) -> float:
    value = node_config[name]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(float(value)) or float(value) <= 0:
        raise RefusedInDeploymentError(
            f"node config's {name} must be a number above 0, got {value!r}"
        )
    return float(value)


def _delta(node_config: Mapping[str, Scalar], name: str, default: float) -> float:
    value = node_config.get(name, default)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= float(value) < 1:
        raise RefusedInDeploymentError(
            f"node config's {name} must be a number in [0, 1), got {value!r}"
        )
    return float(value)


def _at_least_0(node_config: Mapping[str, Scalar], name: str) -> float:
    value = node_config.get(name, 0.0)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= float(value) < math.inf:
        raise RefusedInDeploymentError(
            f"node config's {name} must be a number of at least 0, got {value!r}"
        )
    return float(value)


def _path(node_config: Mapping[str, Scalar], name: str) -> Path | None:
    return Path(str(node_config[name])).expanduser() if name in node_config else None


def budget_settings(config: Config) -> dict[str, Scalar]:
    """Write budgets that are just what a run asks for, as node config."""
    found: dict[str, Scalar] = {"epsilon": config.privacy.epsilon}
    for budget in runs.budgets(config, num_units=1):  # which only shuffling depends on
        if budget.relation == ADD_REMOVE_RECORD:
            found["record-epsilon"], found["record-delta"] = budget.epsilon, budget.delta
            found["record-order"] = budget.order
        else:
            found["epsilon"], found["delta"] = budget.epsilon, budget.delta
    return found
