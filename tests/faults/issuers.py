"""Token endpoints that do what no well-behaved server does, byte for byte, and count what they are asked."""

import asyncio
import contextlib
import gzip
import itertools
import json
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from tests.canary import canary
from tests.rig import Recorder, Script, Seen, recorder


@dataclass
class Issuer:
    """A token endpoint whose calls get what it *says*, which may be exchanged while it runs.

    `at`: when each call came, on the monotonic clock. `most`: how many were under way at once.
    """

    record: Recorder
    says: Script
    at: list[float] = field(default_factory=list)
    now: int = 0
    most: int = 0

    @property
    def url(self) -> str:
        return f"{self.record.url}/token"

    @property
    def calls(self) -> int:
        return len(self.at)

    async def answer(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.at.append(time.monotonic())
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.says(seen, reader, writer)
        finally:
            self.now -= 1


@contextlib.asynccontextmanager
async def issuer(says: Script, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Issuer]:
    """Serve an Issuer on loopback; who asks it must end first, for its connections are waited for."""
    async with recorder(tls=tls) as record:
        made = Issuer(record, says)
        record.script = made.answer
        yield made


def message(status: str, body: bytes, *lines: str) -> bytes:
    """Return an answer with *lines* in its head."""
    head = (f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Content-Type: application/json", *lines)
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def saying(data: bytes, *, close: bool = False) -> Script:
    """Answer every call with *data*; with *close* nothing comes after it."""

    async def say(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        if close:
            writer.close()

    return say


def granting(name: str, **fields: Any) -> Script:
    """Answer each call with a token of its own, *fields* in place of the usual ones; `...` leaves one out."""
    numbers = itertools.count(1)

    async def say(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        usual = {"access_token": f"{canary(name)}-{next(numbers)}", "token_type": "Bearer", "expires_in": 3600}
        document = {key: value for key, value in (usual | fields).items() if value is not ...}
        writer.write(message("200 OK", json.dumps(document).encode()))

    return say


def refusing(status: str, error: str) -> Script:
    """Refuse with an error of RFC 6749 section 5.2."""
    return saying(message(status, json.dumps({"error": error}).encode()))


async def never(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say nothing until the caller has left."""
    await reader.read()


async def reset(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Break the connection, the request having been read."""
    writer.transport.abort()


async def dripping(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send an answer that never gets done, a byte now and then, until the caller has left."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while not reader.at_eof():
        writer.write(b" ")
        await writer.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await reader.read()


def bomb(megabytes: int) -> bytes:
    """Return an answer of a token, and so many megabytes of nothing after it, all compressed to a thousandth."""
    token = json.dumps({"access_token": canary("bomb"), "token_type": "Bearer", "expires_in": 3600}).encode()
    return message("200 OK", gzip.compress(token + b" " * (megabytes << 20), 9), "Content-Encoding: gzip")
