"""What tests of the running proxy share: a sidecar in this process, an upstream that records, a raw client."""

import asyncio
import contextlib
import json
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from sidecar.clock import SystemClock
from sidecar.events import Event
from sidecar.proxy.port import Dispatch
from sidecar.proxy.wire import reset
from sidecar.run.app import App
from sidecar.run.running import running
from sidecar.settings import Settings
from tests.canary import canary
from tests.waiting import PATIENCE

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SECRET = canary("rig-secret")
TOKEN = canary("rig-token")


@dataclass
class Seen:
    """One request as the upstream read it: the head byte for byte, the body without its framing."""

    head: bytes
    body: bytes = b""

    @property
    def line(self) -> bytes:
        return self.head.split(b"\r\n", 1)[0]

    @property
    def fields(self) -> list[bytes]:
        return self.head.rstrip(b"\r\n").split(b"\r\n")[1:]

    def values(self, name: bytes) -> list[bytes]:
        pairs = (line.split(b":", 1) for line in self.fields)
        return [value.strip() for key, value in pairs if key.lower() == name.lower()]


Script = Callable[[Seen, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Recorder:
    """A raw upstream: records every head and body, answers what *script* writes."""

    port: int = 0
    script: Script | None = None
    seen: list[Seen] = field(default_factory=list)
    bytes_in: int = 0
    connections: int = 0
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}" if self.scheme == "http" else f"https://localhost:{self.port}"


async def _read_body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    low = head.lower()
    if match := re.search(rb"\r\ncontent-length: *(\d+)", low):
        return await reader.readexactly(int(match[1]))
    body = b""
    if b"transfer-encoding: chunked" in low:
        while size := int((await reader.readline()).strip(), 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    return body


@contextlib.asynccontextmanager
async def recorder(
    script: Script | None = None, *, read_body: bool = True, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Recorder]:
    """Serve a Recorder on loopback; without *script* it answers 200 `ok` to everything; with *tls* at `localhost`."""
    record = Recorder(script=script, scheme="https" if tls else "http")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        record.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                seen = Seen(head)
                record.seen.append(seen)
                record.bytes_in += len(head)
                if read_body:
                    seen.body = await _read_body(head, reader)
                if record.script is None:
                    writer.write(OK)
                else:
                    await record.script(seen, reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 20, ssl=tls)
    record.port = server.sockets[0].getsockname()[1]
    async with server:
        yield record


@dataclass
class TokenServer:
    """A token endpoint over plain HTTP that always grants; *delay* and *tokens* may be changed while it runs."""

    url: str = ""
    calls: int = 0
    delay: float = 0.0
    status: int = 200
    lifetime: int = 3600


@contextlib.asynccontextmanager
async def token_server() -> AsyncIterator[TokenServer]:
    """Serve a TokenServer on loopback."""
    state = TokenServer()

    async def grant(request: web.BaseRequest) -> web.Response:
        await request.read()
        state.calls += 1
        number = state.calls
        await asyncio.sleep(state.delay)
        if state.status >= 500:
            return web.Response(status=state.status, text="down")
        if state.status != 200:
            return web.json_response({"error": "invalid_client"}, status=state.status)
        token = f"{TOKEN}-{number}"
        return web.json_response({"access_token": token, "token_type": "Bearer", "expires_in": state.lifetime})

    runner = web.ServerRunner(web.Server(grant), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    state.url = f"http://127.0.0.1:{runner.addresses[0][1]}/token"
    try:
        yield state
    finally:
        await runner.cleanup()


@dataclass
class Rig:
    """A sidecar with one upstream `plm`, its ports and what it reported."""

    app: App
    events: list[Event]

    def port(self, name: str = "proxy") -> int:
        return int(self.app.addresses[name].rsplit(":", 1)[1])


def configuration(base_url: str, token_url: str, state_dir: Path, **upstream: Any) -> dict[str, Any]:
    """Return the data of a configuration file; *upstream* is merged into the upstream `plm`."""
    plm = {
        "base_url": base_url,
        "insecure_http": base_url.startswith("http:") or token_url.startswith("http:"),
        "listen": "127.0.0.1:0",
        "oauth2": {"token_url": token_url, "client_id": "rig", "client_secret": {"value": SECRET}},
    }
    oauth2 = plm["oauth2"] | upstream.pop("oauth2", {})
    return {
        "state_dir": str(state_dir),
        "listen": {"proxy": "127.0.0.1:0", "admin": "127.0.0.1:0"},
        "upstreams": {"plm": plm | upstream | {"oauth2": oauth2}},
    }


dispatch: Dispatch | None = None
"""Where mitmproxy's hooks go in a sidecar that a test runs; the fixture `both_modes` sets it."""


@contextlib.asynccontextmanager
async def sidecar(data: dict[str, Any], **options: Any) -> AsyncIterator[Rig]:
    """Run a sidecar in this loop until the context ends."""
    options.setdefault("dispatch", dispatch)
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    events: list[Event] = []
    settings = Settings.model_validate(data)
    async with running(settings, clock=SystemClock(), emit=events.append, **options) as app:
        yield Rig(app, events)
    asyncio.get_running_loop().set_task_factory(None)


async def raw(port: int, data: bytes, *, wait: float = PATIENCE) -> bytes:
    """Send *data* and return all that comes until the connection closes; a reset counts as the end.

    Raises TimeoutError when it stays open longer than *wait*: say `Connection: close`. Cancelled: the client resets.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        await writer.drain()
        answer = b""
        async with asyncio.timeout(wait):
            while True:
                try:
                    part = await reader.read(1 << 16)
                except ConnectionResetError:
                    return answer
                if not part:
                    return answer
                answer += part
    except asyncio.CancelledError:
        reset(writer)
        raise
    finally:
        writer.close()


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def problem_of(answer: bytes) -> dict[str, Any]:
    """Return the problem details of an answer of the sidecar's own."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head.lower()
    assert b"proxy-status: auth-sidecar; error=" in head.lower()
    problem: dict[str, Any] = json.loads(body)
    return problem
