"""Flower's exit messages, said again in one sentence that tells what to do.

A Flower program that gives up prints "Exit Code: N", one or two lines with the reason, a general
line and a link. Checked with flwr 1.41.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

_EXIT = re.compile(r"Exit Code: (\d+)")
_LINK = "For more information, visit:"
_GENERAL = (
    "Failed to initialize the connection to the SuperLink.",
    "The SuperNode could not establish a connection to the SuperLink.",
)
_PROBE_SECONDS = 5.0


def exit_reason(lines: Sequence[str]) -> str:
    """Find what a Flower program said when it gave up; "" if it did not say anything."""
    starts = [i for i, line in enumerate(lines) if _EXIT.search(line)]
    if not starts:
        return ""
    said: list[str] = []
    for line in lines[starts[-1] + 1 :]:
        if line.startswith(_LINK):
            break
        if line.strip() and line.strip() not in _GENERAL:
            said.append(line.strip())
    return said[0] if said else ""


def refusal(reason: str, address: str, root_certificates: Path | None) -> str:
    """Say why a SuperNode could not join, in one sentence."""
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return f"the SuperLink at {address} {_distrusted(reason, root_certificates)}"
    if "code: 2004" in reason:
        return (
            f"the SuperLink at {address} does not let this key in: it is not registered there, or "
            "another SuperNode uses it (one that was killed counts as gone after a minute)"
        )
    if "code: 2001" in reason:
        return (
            f"the SuperLink at {address} lets only registered SuperNodes in, and this one has no "
            "private key"
        )
    if "Server disconnected" in reason and root_certificates is None:
        return f"the SuperLink at {address} speaks TLS, and no root certificates were given"
    if "WRONG_VERSION_NUMBER" in reason or "record layer failure" in reason:
        return f"the SuperLink at {address} does not speak TLS, but root certificates were given"
    if "Connection refused" in reason or "timed out" in reason or "Errno" in reason:
        return f"no SuperLink answers at {address}: {reason}"
    return f"the SuperLink at {address} cannot be joined: {reason}"


def unreachable(address: str, root_certificates: Path | None) -> str:
    """Find out why a SuperLink does not answer a command, in one sentence."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        with socket.create_connection((host, int(port)), timeout=_PROBE_SECONDS) as plain:
            if root_certificates is None:
                return f"the SuperLink at {address} gave no answer; does it speak TLS?"
            context = ssl.create_default_context(cafile=str(root_certificates))
            with context.wrap_socket(plain, server_hostname=host):
                return f"the SuperLink at {address} gave no answer"
    except ssl.SSLCertVerificationError as error:
        reason = error.verify_message
        return f"the SuperLink at {address} {_distrusted(reason, root_certificates)}"
    except ssl.SSLError as error:
        return f"the SuperLink at {address} does not speak TLS: {error.reason}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return f"no SuperLink answers at {address}: {reason}"


def _distrusted(reason: str, root_certificates: Path | None) -> str:
    reason = re.sub(r"^.*certificate verify failed: | \(_ssl.*$", "", reason)
    return f"shows a certificate that {root_certificates} does not vouch for: {reason}"
