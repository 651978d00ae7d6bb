"""Many upstreams in one sidecar: what they share, and that none of them holds up the others. Judged by counts."""

import asyncio
import contextlib
import gc
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web

from sidecar.clock import SystemClock
from sidecar.run.app import App
from sidecar.run.credentials import AT_ONCE
from sidecar.run.running import running
from sidecar.settings import Settings
from tests.canary import canary
from tests.rig import SECRET, configuration, raw, recorder, status_of

COUNT = 100
PATIENCE = 60.0
TURN = 1.0


class PatientClock(SystemClock):
    """A clock by which nobody's turn is ever over, so that a busy machine changes no count."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(3600 if seconds == TURN else seconds)


@dataclass
class Issuer:
    """A token endpoint over TLS; `slow/token` answers once `let_go` is set. *most*: requests that it saw at once."""

    port: int = 0
    now: int = 0
    most: int = 0
    served: int = 0
    expected: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    let_go: asyncio.Event = field(default_factory=asyncio.Event)

    def url(self, path: str = "token") -> str:
        return f"https://localhost:{self.port}/{path}"

    async def grant(self, request: web.BaseRequest) -> web.Response:
        """Grant, but none before as many ask at once as will; whoever is alone at the end is not kept."""
        await request.read()
        async with self.changed:
            self.now += 1
            self.most = max(self.most, self.now)
            self.changed.notify_all()
            if request.path == "/token":
                await self.changed.wait_for(lambda: self.now >= AT_ONCE or self.served + self.now >= self.expected)
        if request.path != "/token":
            await self.let_go.wait()
        async with self.changed:
            self.now -= 1
            self.served += 1
            self.changed.notify_all()
        return web.json_response({"access_token": canary(f"t-{self.served}"), "token_type": "Bearer", "expires_in": 60})


@contextlib.asynccontextmanager
async def issuing(authority: trustme.CA, expected: int = 0) -> AsyncIterator[Issuer]:
    """Serve an Issuer, of which *expected* tokens will be asked."""
    issuer = Issuer(expected=expected)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    runner = web.ServerRunner(web.Server(issuer.grant))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    issuer.port = runner.addresses[0][1]
    try:
        yield issuer
    finally:
        issuer.let_go.set()
        await runner.cleanup()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


def many(token_urls: list[str], ca: Path, state: Path, store: str = "sqlite") -> dict[str, Any]:
    """Return a configuration with an upstream, and a credential of its own, for each of *token_urls*."""
    upstreams = {
        f"plm_{number}": {
            "base_url": f"https://plm-{number}.example.com",
            "oauth2": {"token_url": url, "client_id": f"client-{number}", "client_secret": {"value": SECRET}},
            "tls": {"ca": str(ca)},
            "renew": {"timeout": "60s"},
        }
        for number, url in enumerate(token_urls)
    }
    listen = {"proxy": "127.0.0.1:0", "admin": "127.0.0.1:0"}
    return {"state_dir": str(state), "listen": listen, "upstreams": upstreams, "store": {"url": store}}


async def until(seen: Callable[[], bool]) -> None:
    """Wait until *seen*."""
    async with asyncio.timeout(PATIENCE):
        while not seen():
            await asyncio.sleep(0.01)


def usable(app: App) -> int:
    """Return how many upstreams have a token."""
    return sum(broker.status().usable for broker in app.brokers.values())


def client_contexts() -> int:
    gc.collect()
    found = (each for each in gc.get_objects() if type(each) is ssl.SSLContext)
    return sum(each.verify_mode is ssl.CERT_REQUIRED for each in found)


@pytest.fixture(autouse=True)
async def eager() -> None:
    """Run tasks as the service does."""
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)


async def test_equal_settings_share_one_tls_context(authority: trustme.CA, ca: Path, tmp_path: Path) -> None:
    """A hundred upstreams and a hundred issuers with the same authority verify by one context."""
    async with issuing(authority, COUNT) as issuer:
        settings = Settings.model_validate(many([issuer.url()] * COUNT, ca, tmp_path / "state", "memory"))
        before = client_contexts()
        async with running(settings, clock=SystemClock(), emit=lambda _: None) as app:
            await until(lambda: usable(app) == COUNT)
            assert client_contexts() == before + 1


async def test_first_tokens_are_got_a_few_at_a_time(authority: trustme.CA, ca: Path, tmp_path: Path) -> None:
    """The issuer of all sees eight requests at once and never more, until each upstream has its token."""
    async with issuing(authority, COUNT) as issuer:
        settings = Settings.model_validate(many([issuer.url()] * COUNT, ca, tmp_path / "state"))
        async with running(settings, clock=PatientClock(), emit=lambda _: None) as app:
            await until(lambda: usable(app) == COUNT)
        assert (issuer.most, issuer.served) == (AT_ONCE, COUNT)


async def test_records_of_many_are_there_when_the_ports_open(authority: trustme.CA, ca: Path, tmp_path: Path) -> None:
    """After a restart every token comes from the store, and no issuer is asked."""
    async with issuing(authority, COUNT) as issuer:
        settings = Settings.model_validate(many([issuer.url()] * COUNT, ca, tmp_path / "state"))
        async with running(settings, clock=SystemClock(), emit=lambda _: None) as app:
            await until(lambda: usable(app) == COUNT)
        async with running(settings, clock=SystemClock(), emit=lambda _: None) as app:
            assert usable(app) == COUNT
        assert issuer.served == COUNT


async def test_a_slow_issuer_does_not_hold_up_the_others(authority: trustme.CA, ca: Path, tmp_path: Path) -> None:
    """More than may ask at once wait for an answer; the upstream that comes last has its token all the same."""
    async with issuing(authority, 1) as issuer:
        urls = [issuer.url("slow/token")] * (AT_ONCE + 1)
        settings = Settings.model_validate(many([*urls, issuer.url()], ca, tmp_path / "state"))
        async with running(settings, clock=SystemClock(), emit=lambda _: None) as app:
            await until(lambda: usable(app) == 1)
            await until(lambda: issuer.now == AT_ONCE + 1)
            issuer.let_go.set()


async def test_a_request_waits_for_no_first_token_but_its_own(authority: trustme.CA, ca: Path, tmp_path: Path) -> None:
    """While slow issuers have every turn, a request for another upstream gets a token and its answer."""
    async with issuing(authority, 1) as issuer, recorder() as upstream:
        data = many([issuer.url("slow/token")] * AT_ONCE, ca, tmp_path / "state")
        last = configuration(upstream.url, issuer.url(), tmp_path, tls={"ca": str(ca)})["upstreams"]["plm"]
        settings = Settings.model_validate(data | {"upstreams": data["upstreams"] | {"plm": last}})
        async with running(settings, clock=PatientClock(), emit=lambda _: None) as app:
            await until(lambda: issuer.now == AT_ONCE)
            port = int(app.addresses["plm"].rsplit(":", 1)[1])
            answer = await raw(port, b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert status_of(answer) == 200
            issuer.let_go.set()
