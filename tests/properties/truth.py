"""A world in which every loss, reset, stall and status is drawn at every point of a request, on real sockets.

The upstream knows what it did; the client, what it was told. `contradiction` holds the one against the other.
A connection of a reset or refusal counts as sent: we cannot tell what the other side made of it.
"""

import asyncio
import contextlib
import json
import re
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import strategies as st

from tests.dialects import speak
from tests.rig import Rig, TokenServer, configuration, sidecar, token_server

SAFE = ("GET", "HEAD", "OPTIONS")
UNAPPLIED = (401, 421, 425, 429)
DENIED = (400, 403, 404, 409, 503)
OPEN = (500, 502, 504)
DONE = (200, 201, 204, 302)
SAID = {"dead": 401, "dead-500": 401, "busy": 429}
"""Answers that say in their bodies what became of the credential, by that."""


@dataclass(frozen=True)
class Step:
    """What the upstream does with one attempt: *how* it answers, and whether it does the work."""

    how: str
    work: bool = False
    status: int = 0
    close: bool = False


@dataclass(frozen=True)
class Plan:
    """One request of a client, and what is to become of each attempt; after the last step all is well."""

    method: str
    body: int
    chunked: bool
    fields: tuple[str, ...]
    client: str
    steps: tuple[Step, ...]
    issuer_fails: bool


def _step(how: str, status: int, work: bool, close: bool) -> Step:
    if how in SAID:
        return Step(how, close=close)
    if how == "answer":
        work = status in DONE or (work and status in OPEN)
    return Step(how, work and how != "refuse", status, close)


STEPS = st.builds(
    _step,
    st.sampled_from(["answer"] * 8 + [*SAID] + ["reset", "eof", "refuse", "half", "garbage", "stall", "early", "cut"]),
    st.sampled_from([*UNAPPLIED, *UNAPPLIED, *DENIED, *OPEN, *DONE]),
    st.booleans(),
    st.booleans(),
)
PLANS = st.builds(
    Plan,
    st.sampled_from(["GET", "PUT", "PUT", "POST", "POST", "DELETE", "PATCH"]),
    st.sampled_from([0, 3, 3000, 300_000]),
    st.booleans(),
    st.sampled_from([(), (), (), ("If-Match: x",), ("Idempotency-Key: k",), ("Idempotency-Key: k", "If-Match: x")]),
    st.sampled_from(["waits"] * 8 + ["leaves", "stalls", "half-closes"]),
    st.lists(STEPS, min_size=0, max_size=5).map(tuple),
    st.sampled_from([False, False, False, True]),
)


@dataclass
class Told:
    """What a client got: *status* None: no answer at all. *whole*: to its end."""

    status: int | None
    fields: str = ""
    body: bytes = b""
    whole: bool = True

    @property
    def dead(self) -> bool:
        """Whether the upstream says by a body that the credential is dead, or used too much."""
        return self.body.startswith(b'{"code"')

    @property
    def problem(self) -> dict[str, object]:
        """The problem details of an answer of ours, empty for an upstream's."""
        found: dict[str, object] = json.loads(self.body) if "proxy-status:" in self.fields.lower() else {}
        return found


@dataclass
class Seen:
    """What an upstream knows of one request: the steps left, and how often it was got, done and not answered."""

    left: list[Step]
    got: int = 0
    worked: int = 0
    lost: int = 0


@dataclass
class World:
    """A sidecar in front of an upstream that follows plans, by path."""

    tokens: TokenServer
    rig: Rig | None = None
    seen: dict[str, Seen] = field(default_factory=dict)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                seen = self.seen[head.split(b" ")[1].decode()]
                step = seen.left.pop(0) if seen.left else Step("answer", work=True, status=200)
                if not await self._take(seen, step, head, reader, writer):
                    break
        writer.close()

    async def _take(
        self, seen: Seen, step: Step, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Do as *step* says; tell whether the connection stays."""
        if step.how not in ("answer", *SAID):
            seen.lost += 1  # a reset may overtake what was written before it
        if step.how == "early":
            writer.write(response(413, close=False))
            await writer.drain()
            return False
        if step.how == "refuse":
            reset(writer)
            return False
        await read_body(head, reader)
        seen.got += 1
        seen.worked += step.work
        match step.how:
            case "answer":
                writer.write(response(step.status, close=step.close))
                await writer.drain()
                return not step.close
            case "dead" | "dead-500" | "busy":
                writer.write(said(500 if step.how == "dead-500" else 200, SAID[step.how], close=step.close))
                await writer.drain()
                return not step.close
            case "cut":
                seen.worked += not step.work
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
            case "half":
                writer.write(b"HTTP/1.1 200 O")
            case "garbage":
                writer.write(b"HTTP/1.1 2xx\r\n\r\n")
            case "reset":
                reset(writer)
            case "stall":
                await reader.read()
        return False

    async def ask(self, plan: Plan) -> tuple[Seen, Told]:
        """Make the request of *plan*; return what the upstream knows of it, and what the client was told."""
        if self.rig is None:
            raise RuntimeError("a world is made by `world`")
        path = f"/{len(self.seen)}"
        seen = self.seen[path] = Seen(list(plan.steps))
        self.tokens.status = 503 if plan.issuer_fails else 200
        return seen, await client(self.rig.port("plm"), path, plan)


def reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def response(status: int, *, close: bool) -> bytes:
    fields = "Connection: close\r\n" if close else ""
    fields += "Retry-After: 0\r\n" if status == 429 else ""
    body = "" if status in (204, 304) else f"{status}"
    length = "" if status in (204, 304) else f"Content-Length: {len(body)}\r\n"
    return f"HTTP/1.1 {status} X\r\n{fields}{length}\r\n{body}".encode()


def said(status: int, code: int, *, close: bool) -> bytes:
    body = json.dumps({"code": code}).encode()
    fields = b"Connection: close\r\n" if close else b""
    head = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n"
    return head % (status, fields, len(body)) + body


async def read_body(head: bytes, reader: asyncio.StreamReader) -> None:
    if found := re.search(rb"\r\ncontent-length: *(\d+)", head.lower()):
        await reader.readexactly(int(found[1]))
    elif b"transfer-encoding: chunked" in head.lower():
        while size := int(await reader.readuntil(b"\r\n"), 16):
            await reader.readexactly(size + 2)
        await reader.readuntil(b"\r\n")


async def client(port: int, path: str, plan: Plan) -> Told:
    """Send the request of *plan* as it says, and read what comes; a client that leaves is told nothing."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = b"x" * plan.body
    framing = "Transfer-Encoding: chunked" if plan.chunked else f"Content-Length: {plan.body}"
    lines = [f"{plan.method} {path} HTTP/1.1", "Host: localhost", "Connection: close", framing, *plan.fields, "", ""]
    sent = (b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n") if plan.chunked else body
    stalls = plan.client == "stalls" and len(sent) > 0
    try:
        writer.write("\r\n".join(lines).encode() + (sent[: len(sent) // 2] if stalls else sent))
        if plan.client == "leaves":
            await asyncio.sleep(0)
            writer.transport.abort()
            return Told(None, whole=False)
        with contextlib.suppress(OSError):
            await writer.drain()
            if plan.client == "half-closes":
                writer.write_eof()
        return await _read(reader, plan)
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader, plan: Plan) -> Told:
    try:
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)).decode("latin-1")
    except (asyncio.IncompleteReadError, OSError):
        return Told(None, whole=False)
    told = Told(int(head.split(" ")[1]), head)
    found = re.search(r"\r\ncontent-length: *(\d+)", head.lower())
    if found and plan.method != "HEAD":
        try:
            told.body = await reader.readexactly(int(found[1]))
        except (asyncio.IncompleteReadError, OSError):
            told.whole = False
    return told


def contradiction(plan: Plan, seen: Seen, told: Told) -> str:
    """Return what is untrue of *told*, given what the upstream knows; empty when nothing is."""
    if told.status is None:
        return ""  # nothing was said
    unknown = told.problem.get("outcome") == "unknown"
    if plan.method in SAFE:
        return "a read is called unknown" if unknown else ""
    if unknown:
        # A time-out is ours, and a busy machine is late.
        opened = seen.lost or any(step.status in OPEN for step in plan.steps) or told.status == 504
        return "" if opened and told.status in (502, 504) else f"{told.status} unknown, though every answer came"
    if told.dead:
        return f"the credential was refused, and it was done {seen.worked} times" if seen.worked else ""
    if told.status < 400 and not seen.worked:
        return f"{told.status}, and nothing was done"
    if (400 <= told.status < 500 or told.status == 503) and seen.worked:
        return f"{told.status}, and it was done {seen.worked} times"
    if told.problem and told.status in (502, 504) and (seen.got or seen.lost):
        return f"{told.status} without a word, and it was sent"
    if seen.worked > 1 and plan.method != "PUT" and "Idempotency-Key: k" not in plan.fields:
        return f"done {seen.worked} times"
    return (
        f"a conditional write was done {seen.worked} times" if seen.worked > 1 and "If-Match: x" in plan.fields else ""
    )


@contextlib.asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    """Run a sidecar that never gives up for other reasons than those of a plan."""
    settings = {
        "retry": {"base": "1ms", "cap": "2ms", "budget": "100%", "attempts": 3},
        "breaker": {"min_requests": 10**6, "unauthorized": 10**6},
        "renew": {"min_interval": 0, "timeout": "300ms"},
        "timeout": {"first_byte": "150ms", "idle": "150ms", "token": "2s"},
    }
    async with token_server() as tokens:
        made = World(tokens)
        server = await asyncio.start_server(made.serve, "127.0.0.1", 0, limit=1 << 20)
        async with server:
            port = server.sockets[0].getsockname()[1]
            async with sidecar(configuration(f"http://127.0.0.1:{port}", tokens.url, folder, **settings)) as rig:
                speak(rig)
                made.rig = rig
                yield made
