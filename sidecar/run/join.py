"""Finding the sidecar that runs for a state directory, and asking it for a port of `exec`."""

import hashlib
import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidecar import __version__
from sidecar.secret import Secret
from sidecar.settings import Settings, effective

_SHORT = 2.0
_MAX_ANSWER = 64 << 10


@dataclass(frozen=True, slots=True)
class Running:
    """A sidecar that answers; *configuration* is its hash, empty when it told none."""

    pid: int
    addresses: Mapping[str, str]
    configuration: str


def configuration_hash(settings: Settings) -> str:
    """Return what two sidecars have in common that do the same: of version and settings, without any secret."""
    canonical = json.dumps([__version__, effective(settings)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_run_file(state_dir: Path) -> dict[str, Any]:
    """Return the content of `run.json`, empty when there is none or it cannot be read."""
    try:
        content = json.loads((state_dir / "run.json").read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def find_running(settings: Settings) -> Running | None:
    """Return the sidecar of this state directory, None when none answers within 2 s.

    Another process may have taken the address of one that was killed: only who tells the pid of `run.json` counts.
    """
    found = read_run_file(settings.state_dir)
    addresses, pid = found.get("addresses"), found.get("pid")
    if not isinstance(addresses, dict) or not isinstance(pid, int):
        return None
    running = Running(pid, {str(k): str(v) for k, v in addresses.items()}, str(found.get("configuration", "")))
    status, answer = _ask(running, "GET", "/livez", {})
    return running if status == http.client.OK and answer.get("pid") == pid else None


def exec_port(running: Running, token: Secret) -> str | None:
    """Return `host:port` where *running* takes a proxy's requests and passes other hosts through; None if it cannot."""
    status, answer = _ask(running, "POST", "/exec", {"Authorization": f"Bearer {token.reveal()}"})
    address = answer.get("proxy")
    return address if status == http.client.OK and isinstance(address, str) else None


def host_and_port(address: str) -> tuple[str, int]:
    """Return where `127.0.0.1:80` or `[::1]:80` is reached; ValueError for anything else, a unix socket say.

    A wildcard address is reached on loopback.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), int(port)


def _ask(running: Running, method: str, path: str, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
    """Return status and JSON of an answer of the admin port; 0 and nothing when there is none."""
    connection = None
    try:
        host, port = host_and_port(running.addresses.get("admin", ""))
        # The Host field of an IPv6 address needs its brackets, which http.client adds.
        connection = http.client.HTTPConnection(host, port, timeout=_SHORT)
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        content = json.loads(answer.read(_MAX_ANSWER))
    except (OSError, ValueError, http.client.HTTPException):
        return 0, {}
    finally:
        if connection is not None:
            connection.close()
    return answer.status, content if isinstance(content, dict) else {}
