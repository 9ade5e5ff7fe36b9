"""The variables under which Flower's programs run: quiet, local, and out of the user's home."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from fedprune.federated.processes import program

_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",  # seconds; a second is lost per message otherwise
    "RAY_USAGE_STATS_ENABLED": "0",
}
_LOCAL = "127.0.0.1,localhost,::1"


def flower_environment(home: Path, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Make the variables for one of Flower's programs.

    Flower starts its helpers by bare name, so the folder that has them comes first in PATH;
    loopback addresses are kept away from proxies.

    Args:
        home: the folder for Flower's own files.
        environment: further variables; they win over the quiet ones.

    Returns:
        Variables to set on top of this process's own.
    """
    base = {**os.environ, **(environment or {})}
    scripts = str(Path(program("flower-superexec")).parent)
    past_proxies = ",".join(filter(None, [base.get("NO_PROXY", ""), _LOCAL]))
    return {
        **_QUIET,
        **(environment or {}),
        "FLWR_HOME": str(home.absolute()),
        "PATH": os.pathsep.join([scripts, base.get("PATH", os.defpath)]),
        "NO_PROXY": past_proxies,
        "no_proxy": past_proxies,
    }
