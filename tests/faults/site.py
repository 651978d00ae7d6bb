"""A sidecar as a process, between a scripted upstream and a token endpoint that counts."""

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from sidecar.emulator import Emulator, Switches
from tests.process import Running, start_sidecar
from tests.rig import Recorder, Script, Seen, TokenServer, configuration, raw, recorder, token_server
from tests.waiting import PATIENCE

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
REFUSED = (
    b"HTTP/1.1 401 Unauthorized\r\n"
    b'WWW-Authenticate: Bearer realm="plm", error="invalid_token"\r\n'
    b"Content-Length: 5\r\n\r\nno..."
)


def request(path: bytes, method: bytes = b"GET", *fields: bytes, body: bytes | None = None) -> bytes:
    """Return a request to the reverse port, after whose answer the connection ends."""
    framing = [] if body is None else [b"Content-Length: %d" % len(body)]
    lines = [b"%b %b HTTP/1.1" % (method, path), b"Host: localhost", *fields, *framing, b"Connection: close", b""]
    return b"\r\n".join([*lines, body or b""])


def closing(answer: bytes) -> bytes:
    """Return *answer* as a client gets it that wanted the connection closed."""
    return answer.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)


@dataclass
class Site:
    """A running sidecar with one upstream `plm`, and what is around it."""

    running: Running
    upstream: Recorder
    issuer: TokenServer

    async def send(
        self,
        path: bytes = b"/x",
        method: bytes = b"GET",
        *fields: bytes,
        body: bytes | None = None,
        wait: float = PATIENCE,
        to: str = "plm",
    ) -> bytes:
        """Make a request on a connection of its own and return the whole answer, as far as it came."""
        return await raw(self.running.port(to), request(path, method, *fields, body=body), wait=wait)

    def count(self, path: bytes = b"") -> int:
        """Return how many requests the upstream saw whose target starts with *path*."""
        return sum(seen.line.split()[1].startswith(path) for seen in self.upstream.seen)


async def admin(running: Running, path: str, within: float = 1.0) -> httpx.Response:
    """Return what the admin port answers; it has a second."""
    async with httpx.AsyncClient(trust_env=False, timeout=within) as client:
        return await client.get(f"http://{running.addresses['admin']}{path}")


async def state(running: Running, name: str = "plm") -> dict[str, Any]:
    """Return what `/status` says of an upstream."""
    found: dict[str, Any] = (await admin(running, "/status", 10.0)).json()["upstreams"][name]
    return found


async def metric(running: Running, name: str, *labels: str) -> float:
    """Return the sum of a metric's samples that have all *labels*, written as `reason="budget"`."""
    page = (await admin(running, "/metrics", 10.0)).text
    samples = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", page, re.MULTILINE)
    return sum(float(value) for found, value in samples if all(label in found for label in labels))


@contextlib.asynccontextmanager
async def site(
    folder: Path, log: Path, script: Script | None = None, *, read_body: bool = True, **upstream: Any
) -> AsyncIterator[Site]:
    """Run a sidecar in front of an upstream that answers what *script* writes; *upstream*: settings of `plm`."""
    async with recorder(script, read_body=read_body) as record, token_server() as issuer:
        data = configuration(record.url, issuer.url, folder / "state", **upstream)
        async with start_sidecar(data, folder, log) as running:
            yield Site(running, record, issuer)


@contextlib.asynccontextmanager
async def many(folder: Path, log: Path, script: Script, names: Iterable[str], **upstream: Any) -> AsyncIterator[Site]:
    """Run a sidecar with an upstream, and a token, for each of *names*; the target of its requests begins with it."""
    async with recorder(script) as record, token_server() as issuer:
        data = configuration(record.url, issuer.url, folder / "state", **upstream)
        plm = data["upstreams"].pop("plm")
        for name in names:
            one = {"base_url": f"{record.url}/{name}", "oauth2": plm["oauth2"] | {"client_id": name}}
            data["upstreams"][name] = plm | one
        async with start_sidecar(data, folder, log) as running:
            yield Site(running, record, issuer)


def plm_settings(plm: Emulator, folder: Path, **upstream: Any) -> dict[str, Any]:
    """Return the configuration for a sidecar in front of the emulator."""
    oauth2 = {"client_id": plm.client_id, "client_secret": {"value": plm.client_secret}}
    tls = {"ca": str(plm.ca_path)} if plm.base_url.startswith("https") else {}
    return configuration(plm.base_url, plm.token_url, folder / "state", oauth2=oauth2, tls=tls, **upstream)


@contextlib.asynccontextmanager
async def plm_site(folder: Path, log: Path, **upstream: Any) -> AsyncIterator[tuple[Running, Emulator]]:
    """Run a sidecar in front of the emulator, over TLS."""
    async with Emulator.start(switches=Switches(supplier_lifetime=None)) as plm:
        async with start_sidecar(plm_settings(plm, folder, **upstream), folder, log) as running:
            yield running, plm


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST, whatever was sent before."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def by_path(answers: dict[bytes, bytes], default: bytes = GOOD) -> Script:
    """Return a script that answers by target; a request for another one gets *default*."""

    async def answer(seen: Seen, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answers.get(seen.line.split()[1], default))

    return answer


def in_turn(*answers: bytes) -> Script:
    """Return a script that gives *answers* in turn, the last one from then on; an empty one is a reset."""
    left = list(answers)

    async def answer(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = left.pop(0) if len(left) > 1 else left[0]
        if data:
            writer.write(data)
        else:
            reset(writer)

    return answer
