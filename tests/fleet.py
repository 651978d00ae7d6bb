"""What tests of several instances share: token endpoints that can be held up and count, an upstream, brokers alone."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx
from aiohttp import web

from sidecar.clock import SystemClock
from sidecar.emulator import Emulator
from sidecar.events import Event, Renewal, Trouble
from sidecar.run.credentials import Shared, credentials, make_broker
from sidecar.run.stores import open_store
from sidecar.settings import Settings
from sidecar.tokens.broker import Broker
from sidecar.tokens.seal import new_key
from sidecar.tokens.store import TokenStore, store_key
from tests.canary import canary
from tests.rig import configuration
from tests.waiting import PATIENCE

_HOP = ("connection", "content-length", "transfer-encoding", "host")


@dataclass
class Relay:
    """A token endpoint in front of a real one, which holds calls up and counts them.

    *fate* of the next call, once: `unreached` (it never gets to the issuer, nor does an answer come), `unanswered`
    (the issuer acts, no answer comes), `dropped` (the issuer acts, the connection is broken), a status (nobody acts),
    seconds that the answer takes, or an event that it waits for. *fates* are those of the calls after it.
    *presented*: how often the issuer saw each refresh token; *grants*: the calls that it saw; *arrived*: those that
    came so far.
    """

    target: str
    url: str = ""
    fates: list[str | int | float | asyncio.Event] = field(default_factory=list)
    presented: Counter[str] = field(default_factory=Counter)
    grants: list[str] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    arrived: int = 0

    @property
    def reused(self) -> list[int]:
        """How often each refresh token was presented that was so more than once."""
        return [times for times in self.presented.values() if times > 1]


@contextlib.asynccontextmanager
async def relay(target: str, ca: Path | None = None) -> AsyncIterator[Relay]:
    """Serve a Relay on loopback, over plain HTTP."""
    state = Relay(target)
    client = httpx.AsyncClient(trust_env=False, timeout=PATIENCE, verify=str(ca) if ca else True)

    async def pass_on(request: web.BaseRequest) -> web.Response:
        body = await request.read()
        form = parse_qs(body.decode())
        fate = state.fates.pop(0) if state.fates else 0.0
        state.arrived += 1
        if fate == "unreached":
            await asyncio.Event().wait()
        if isinstance(fate, int):
            return web.Response(status=fate)
        state.grants.append(form["grant_type"][0])
        for token in form.get("refresh_token", []):
            state.presented[token] += 1
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        answer = await client.post(state.target, content=body, headers=headers)
        state.statuses.append(answer.status_code)
        if fate == "dropped":
            assert request.transport is not None
            request.transport.abort()
        elif fate == "unanswered":
            await asyncio.Event().wait()
        elif isinstance(fate, float):
            await asyncio.sleep(fate)
        elif isinstance(fate, asyncio.Event):
            await fate.wait()
        return web.Response(status=answer.status_code, body=answer.content, content_type="application/json")

    runner = web.ServerRunner(web.Server(pass_on, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    state.url = f"http://127.0.0.1:{runner.addresses[0][1]}/token"
    try:
        yield state
    finally:
        await runner.cleanup()
        await client.aclose()


@dataclass
class Families:
    """A token endpoint whose refresh tokens are taken once: a spent one ends the whole family (RFC 9700 4.14.2).

    *fates* of the next calls, as those of a Relay. *calls*: the families that were asked for, in turn, None for other
    grants. *reused*: the families that were ended.
    """

    url: str = ""
    lifetime: float = 600.0
    fates: list[str | int | float | asyncio.Event] = field(default_factory=list)
    calls: list[str | None] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    current: dict[str, int] = field(default_factory=dict)
    arrived: int = 0

    def log_in(self, family: str) -> str:
        """Return the first refresh token of a new *family*."""
        self.current[family] = 0
        return canary(f"R-{family}-0")

    def settings(self, family: str, **oauth2: Any) -> dict[str, Any]:
        """Return the grant settings of a client that begins a new *family*; *oauth2* replace them."""
        first = {"grant": "refresh_token", "refresh_token": {"value": self.log_in(family)}}
        return {"client_id": "desk", "client_auth": "none"} | first | oauth2

    def grant(self, form: dict[str, list[str]]) -> web.Response:
        """Answer a call."""
        if form["grant_type"] != ["refresh_token"]:
            self.calls.append(None)
            number = len(self.calls)
            fields = {"refresh_token": self.log_in(f"user{number}")} if form["grant_type"] == ["password"] else {}
            return self._granted(f"A-none-{number}", **fields)
        family, number = form["refresh_token"][0].removeprefix(canary("R-")).rsplit("-", 1)
        self.calls.append(family)
        if self.current.get(family) == int(number):
            self.current[family] += 1
            refresh_token = canary(f"R-{family}-{self.current[family]}")
            return self._granted(f"A-{family}-{self.current[family]}", refresh_token=refresh_token)
        self.reused.append(family)
        self.current.pop(family, None)
        return web.json_response({"error": "invalid_grant"}, status=400)

    def _granted(self, name: str, **fields: str) -> web.Response:
        token = {"access_token": canary(name), "token_type": "Bearer", "expires_in": self.lifetime}
        return web.json_response(token | fields)


@contextlib.asynccontextmanager
async def families() -> AsyncIterator[Families]:
    """Serve Families on loopback, at every path."""
    state = Families()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        form = parse_qs((await request.read()).decode())
        fate = state.fates.pop(0) if state.fates else 0.0
        state.arrived += 1
        if fate == "unreached":
            await asyncio.Event().wait()
        if isinstance(fate, int):
            return web.Response(status=fate)
        said = state.grant(form)
        if fate == "dropped":
            assert request.transport is not None
            request.transport.abort()
        elif fate == "unanswered":
            await asyncio.Event().wait()
        elif isinstance(fate, float):
            await asyncio.sleep(fate)
        elif isinstance(fate, asyncio.Event):
            await fate.wait()
        return said

    runner = web.ServerRunner(web.Server(answer, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    state.url = f"http://127.0.0.1:{runner.addresses[0][1]}/token"
    try:
        yield state
    finally:
        await runner.cleanup()


@dataclass
class Upstream:
    """An API that takes every token but those that were revoked; below the first segment each is one of its own."""

    url: str = ""
    seen: dict[str, set[str]] = field(default_factory=dict)
    revoked: set[str] = field(default_factory=set)
    executed: Counter[str] = field(default_factory=Counter)

    def revoke(self, name: str) -> None:
        """Refuse every token that the API *name* has seen so far."""
        self.revoked |= self.seen.get(name, set())


@contextlib.asynccontextmanager
async def upstream() -> AsyncIterator[Upstream]:
    """Serve an Upstream on loopback."""
    state = Upstream()

    async def answer(request: web.BaseRequest) -> web.Response:
        await request.read()
        token = request.headers.get("Authorization", "")
        state.seen.setdefault(request.path.split("/")[1], set()).add(token)
        if not token or token in state.revoked:
            return web.Response(status=401, headers={"WWW-Authenticate": 'Bearer error="invalid_token"'})
        state.executed[request.path] += 1
        return web.Response(text="ok")

    runner = web.ServerRunner(web.Server(answer, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    state.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield state
    finally:
        await runner.cleanup()


class Skewed(SystemClock):
    """The clock of a machine that is *ahead* seconds ahead."""

    def __init__(self, ahead: float) -> None:
        self._ahead = ahead

    def now(self) -> float:
        return super().now() + self._ahead


@dataclass
class Node:
    """A broker as an instance of a fleet has it, with a store of its own and what it reported."""

    broker: Broker
    store: TokenStore
    key: str
    events: list[Event]

    def renewals(self, result: str = "ok") -> list[Renewal]:
        return [event for event in self.events if isinstance(event, Renewal) and event.result == result]

    def troubles(self) -> list[str]:
        return [event.detail for event in self.events if isinstance(event, Trouble)]

    async def get(self, within: float = PATIENCE) -> str:
        """Return the token of a request that waits so long."""
        return (await self.broker.token(time.monotonic() + within)).values["access_token"].reveal()

    async def kill(self) -> None:
        """End it as SIGKILL does: nothing is given back, nothing is written."""
        await self.store.aclose()
        await self.broker._tasks.aclose()


@dataclass
class Fleet:
    """Makes the instances of one credential; *data* is their configuration."""

    data: dict[str, Any]
    folder: Path
    stack: contextlib.AsyncExitStack
    made: int = 0

    async def node(self, *, ahead: float = 0.0, start: bool = True, url: str | None = None, **renew: Any) -> Node:
        """Start one more; *renew* replaces settings, *ahead* sets its clock."""
        data = {**self.data, "store": self.data["store"] | ({"url": url} if url else {})}
        plm = data["upstreams"]["plm"]
        data["upstreams"] = {"plm": {**plm, "renew": {**plm.get("renew", {}), **renew}}}
        settings, clock, events = Settings.model_validate(data), Skewed(ahead), list[Event]()
        store, keys = open_store(settings, clock)
        self.made += 1
        owner, elsewhere = f"node/{self.made}", settings.store.shared
        shared = Shared(
            store=store,
            keys=keys,
            owner=owner,
            elsewhere=elsewhere,
            clock=clock,
            emit=events.append,
            marks=self.folder / f"node-{self.made}",
        )
        [credential] = credentials(settings, clock)
        broker = make_broker(credential, settings, shared)
        self.stack.push_async_callback(store.aclose)
        self.stack.push_async_callback(broker.aclose)
        if start:
            await broker.start()
        return Node(broker, store, store_key(credential.identity), events)


@contextlib.asynccontextmanager
async def fleet(store: dict[str, Any], token_url: str, folder: Path, **oauth2: Any) -> AsyncIterator[Fleet]:
    """Give a Fleet whose instances all end with the context."""
    keys = folder / "keys"
    if not keys.exists():
        keys.write_text(new_key())
        keys.chmod(0o600)
    folder.joinpath("state").mkdir(mode=0o700, exist_ok=True)
    data = configuration("http://127.0.0.1:9", token_url, folder / "state", oauth2=oauth2)
    async with contextlib.AsyncExitStack() as stack:
        yield Fleet(data | {"store": {"keys": [{"file": str(keys)}], **store}}, folder, stack)


def by_password(plm: Emulator) -> dict[str, Any]:
    """Return the settings for the grant password with a refresh token."""
    return {
        "grant": "password",
        "client_id": plm.client_id,
        "client_secret": {"value": plm.client_secret},
        "username": plm.username,
        "password": {"value": plm.password},
        "scope": "api offline_access",
    }


async def by_refresh_token(plm: Emulator) -> dict[str, Any]:
    """Return the settings for the grant refresh_token, with a first refresh token that was just issued."""
    form = {
        "grant_type": "password",
        "username": plm.username,
        "password": plm.password,
        "scope": "api offline_access",
        "client_id": plm.client_id,
        "client_secret": plm.client_secret,
    }
    async with httpx.AsyncClient(trust_env=False) as client:
        first = (await client.post(plm.token_url, data=form)).raise_for_status().json()["refresh_token"]
    return {
        "grant": "refresh_token",
        "client_id": plm.client_id,
        "client_secret": {"value": plm.client_secret},
        "refresh_token": {"value": first},
    }
