"""Sidecars as processes, set up for a fault, and what their users and operators see of it."""

import asyncio
import contextlib
import json
import re
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from sidecar.settings import Settings
from sidecar.tokens.seal import new_key
from tests.canary import WORD
from tests.faults.site import admin, state
from tests.process import Running, start_sidecar
from tests.redis_servers import Server
from tests.rig import configuration


def plain(base_url: str, token_url: str, oauth2: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """Return the settings of one upstream with a reverse port, in a hurry; *settings* replace them."""
    data = configuration(base_url, token_url, Path("/"), oauth2=oauth2 or {})
    upstream: dict[str, Any] = data["upstreams"]["plm"]
    if oauth2:
        upstream["oauth2"] = {"token_url": token_url, **oauth2}
    hurry = {"min_interval": "0.2s", "check_every": "1s"}
    return {**upstream, **settings, "renew": hurry | settings.get("renew", {})}


@dataclass
class Instances:
    """The sidecars of one test: where they live, their store, what they are set up for."""

    folder: Path
    outputs: Path
    name: str
    store: dict[str, Any] = field(default_factory=lambda: {"url": "sqlite"})
    upstreams: dict[str, dict[str, Any]] = field(default_factory=dict)

    def data(self, name: str) -> dict[str, Any]:
        """Return the configuration of the sidecar *name*."""
        listen = {"proxy": "127.0.0.1:0", "admin": "127.0.0.1:0"}
        state_dir = str(self.folder / f"state-{name}")
        return {"state_dir": state_dir, "listen": listen, "store": self.store, "upstreams": self.upstreams}

    def start(self, name: str = "a", source: Path | None = None) -> contextlib.AbstractAsyncContextManager[Running]:
        """Start the sidecar *name*, which has a state directory of its own; *source* as for `start_sidecar`."""
        log = self.outputs / f"{self.name}-{name}.log"
        return start_sidecar(self.data(name), self.folder / name, log, source=source)

    @contextlib.asynccontextmanager
    async def pair(self) -> AsyncIterator[tuple[Running, Running]]:
        """Start two at once."""
        async with contextlib.AsyncExitStack() as stack:
            first, second = await asyncio.gather(*(stack.enter_async_context(self.start(name)) for name in "ab"))
            yield first, second

    def in_redis(self, redis: Server | str, timeout: str = "1s", **store: Any) -> None:
        """Keep the tokens in *redis*; a time-out of a second is for machines that run many tests at once."""
        keys = self.folder / "keys"
        keys.write_text(new_key())
        keys.chmod(0o600)
        url = redis if isinstance(redis, str) else redis.url
        self.store = {"url": url, "timeout": timeout, "keys": [{"file": str(keys)}], **store}

    def settings(self) -> Settings:
        """Return what the sidecars are set up with, for a look at what they write."""
        return Settings.model_validate(self.data("a"))

    async def act(self, action: str, sidecar: Running, name: str = "plm", process: str = "a") -> int:
        """Have an operator's *action* done, and return its status; 0 if the sidecar ended meanwhile."""
        token = (Path(self.data(process)["state_dir"]) / "admin.token").read_text().strip()
        url = f"http://{sidecar.addresses['admin']}/upstreams/{name}/{action}"
        with contextlib.suppress(httpx.TransportError):
            async with httpx.AsyncClient(trust_env=False, verify=False, timeout=70) as client:
                return (await client.post(url, headers={"Authorization": f"Bearer {token}"})).status_code
        return 0

    async def renew(self, sidecar: Running, name: str = "plm", process: str = "a") -> int:
        """Have an operator's renewal made, as `act` does."""
        return await self.act("renew", sidecar, name, process)

    async def command(self, *arguments: str, name: str = "a") -> tuple[int, str, str]:
        """Run a command beside the sidecar *name*; return its exit code, output and errors."""
        self.folder.joinpath(name).mkdir(exist_ok=True)
        self.folder.joinpath(name, "config.yaml").write_text(json.dumps(self.data(name)))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sidecar", *arguments), cwd=self.folder / name, stdout=PIPE, stderr=PIPE
        )
        output, errors = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode(), errors.decode()


@pytest.fixture
def instances(tmp_path: Path, outputs: Path, request: pytest.FixtureRequest) -> Instances:
    """The sidecars of this test, whose logs are named after it."""
    return Instances(tmp_path, outputs, re.sub(r"\W+", "-", request.node.name))


async def get(sidecar: Running, name: str = "plm", *, method: str = "GET") -> httpx.Response:
    """Ask the upstream *name* as a script does, through its reverse port."""
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=70) as client:
        return await client.request(method, f"http://{sidecar.addresses[name]}/echo/x")


async def statuses(sidecars: dict[str, Running] | Running, *names: str) -> set[int]:
    """Ask each of *names* once, at once, and return the statuses."""
    every = sidecars.values() if isinstance(sidecars, dict) else [sidecars]
    answers = await asyncio.gather(*(get(each, name) for each in every for name in names or ("plm",)))
    return {answer.status_code for answer in answers}


async def generation(sidecar: Running, name: str = "plm") -> int:
    """Return the number of the token in use."""
    return int((await state(sidecar, name))["generation"])


async def reasons(sidecar: Running) -> dict[str, str]:
    """Return why it is not ready, by upstream; empty when it is."""
    answer = await admin(sidecar, "/readyz", 10)
    found: dict[str, str] = answer.json()["reasons"]
    assert answer.status_code == (503 if found else 200)
    return found


def is_refused(answer: httpx.Response, status: int, reason: str) -> bool:
    """Check an answer of the sidecar's own: its form, its reason, and that it gives nothing away."""
    assert answer.status_code == status, answer.text
    assert answer.json()["reason"] == reason
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["proxy-status"].startswith("auth-sidecar; error=")
    assert status != 503 or int(answer.headers["retry-after"]) >= 1
    assert WORD not in answer.text.upper()
    return True
