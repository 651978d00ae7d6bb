"""What a script is told is true: writes whose outcome nobody knows, clients that stall; and who passes the gates."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from sidecar.events import RequestDone
from tests.rig import (
    OK,
    Recorder,
    Rig,
    Seen,
    TokenServer,
    configuration,
    problem_of,
    raw,
    recorder,
    sidecar,
    status_of,
)
from tests.waiting import until

QUICK = {"base": "1ms", "cap": "1ms"}


def answer(status: int, *fields: bytes) -> bytes:
    lines = b"".join(b"%b\r\n" % field for field in fields)
    return b"HTTP/1.1 %d X\r\n%bContent-Length: 0\r\n\r\n" % (status, lines)


FIRST = {
    "401": answer(401, b'WWW-Authenticate: Bearer error="invalid_token"'),
    "421": answer(421),
    "425": answer(425),
    "429": answer(429, b"Retry-After: 0"),
    "503": answer(503),
    "504": answer(504),
}


class Losing:
    """An upstream that gives its first answer to a path that names one, then does the work and loses the answer."""

    def __init__(self) -> None:
        self.done: list[bytes] = []
        self._seen: set[bytes] = set()

    async def __call__(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, target, _ = seen.line.split(b" ")
        first, _, how = target[1:].partition(b"/")
        if target not in self._seen and first in {name.encode() for name in FIRST}:
            self._seen.add(target)
            writer.write(FIRST[first.decode()])
            return
        self.done.append(seen.body)
        if how == b"hang":
            await reader.read()
        if how == b"garbage":
            writer.write(b"HTTP/1.1 2xx Done\r\n\r\n")
            await writer.drain()
        writer.close()


async def send(rig: Rig, method: bytes, path: bytes, *fields: bytes) -> bytes:
    head = b"".join(b"%b\r\n" % field for field in (b"Host: localhost", b"Connection: close", *fields))
    return await raw(rig.port("plm"), b"%b %b HTTP/1.1\r\n%bContent-Length: 3\r\n\r\nabc" % (method, path, head))


def done(rig: Rig) -> list[RequestDone]:
    return [event for event in rig.events if isinstance(event, RequestDone)]


@pytest.mark.usefixtures("both_modes")
@pytest.mark.parametrize(
    ("method", "path", "fields"),
    [
        *(
            (method, b"/%b/close" % first, ())
            for first in (b"401", b"421", b"425", b"429")
            for method in (b"POST", b"DELETE")
        ),
        (b"POST", b"/401/hang", ()),
        (b"POST", b"/401/garbage", ()),
        (b"POST", b"/x/close", ()),
        (b"POST", b"/x/garbage", ()),
        (b"DELETE", b"/x/close", ()),
        (b"PUT", b"/x/close", (b'If-Match: "1"',)),
        (b"PUT", b"/x/close", (b"If-Unmodified-Since: Fri, 01 Mar 2019 10:00:00 GMT",)),
        (b"PUT", b"/x/hang", ()),
        (b"MOVE", b"/x/close", (b"If: <urn:x>",)),
    ],
)
async def test_a_write_whose_answer_was_lost_is_unknown(
    tokens: TokenServer, tmp_path: Path, method: bytes, path: bytes, fields: tuple[bytes, ...]
) -> None:
    """Whatever was answered before, and whatever we could repeat: it was done once, and the script is told so."""
    upstream = Losing()
    settings: dict[str, Any] = {"renew": {"min_interval": 0}, "timeout": {"first_byte": "300ms"}, "retry": QUICK}
    async with (
        recorder(upstream) as record,
        sidecar(configuration(record.url, tokens.url, tmp_path, **settings)) as rig,
    ):
        told = await send(rig, method, path, *fields)
        (event,) = done(rig)

    problem = problem_of(told)
    hangs = path.endswith(b"hang")
    assert (status_of(told), problem["reason"]) == (
        (504, "upstream_timeout") if hangs else (502, "upstream_unreachable")
    )
    assert problem["outcome"] == event.applied == "unknown"
    assert upstream.done == [b"abc"]


@pytest.mark.parametrize("first", [b"503", b"504"])
async def test_an_earlier_answer_does_not_stand_in_for_a_lost_one(
    tokens: TokenServer, tmp_path: Path, first: bytes
) -> None:
    """A PUT that was repeated after a 503 and then lost may have been applied; for a GET it does not matter."""
    upstream = Losing()
    async with recorder(upstream) as record:
        data = configuration(record.url, tokens.url, tmp_path, retry=QUICK | {"attempts": 2})
        async with sidecar(data) as rig:
            put, get = await send(rig, b"PUT", b"/%b/close" % first), await send(rig, b"GET", b"/%b/close?" % first)

    assert problem_of(put)["outcome"] == "unknown"
    assert get.startswith(b"HTTP/1.1 %b X" % first)


async def test_a_denial_after_a_loss_is_not_told(tokens: TokenServer, tmp_path: Path) -> None:
    """A PUT was lost, and the second one is told 409: as if somebody else had acted."""
    turn = 0

    async def script(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal turn
        turn += 1
        writer.close() if turn == 1 else writer.write(answer(409))

    async with recorder(script) as record:
        async with sidecar(configuration(record.url, tokens.url, tmp_path, retry=QUICK)) as rig:
            told = await send(rig, b"PUT", b"/x")

    assert (status_of(told), problem_of(told)["outcome"]) == (502, "unknown")
    assert "409" in problem_of(told)["detail"]


async def test_nothing_is_called_unknown_that_is_not(tokens: TokenServer, tmp_path: Path) -> None:
    """A read that was lost, and a write that was never sent."""
    upstream = Losing()
    async with recorder(upstream) as record:
        async with sidecar(configuration(record.url, tokens.url, tmp_path, retry=QUICK)) as rig:
            read = await send(rig, b"GET", b"/x/close")
            assert status_of(await send(rig, b"POST", b"/x/close")) == 502
    async with sidecar(configuration(record.url, tokens.url, tmp_path, retry=QUICK)) as rig:
        unsent = await send(rig, b"POST", b"/x/close")

    assert [problem_of(told).get("outcome") for told in (read, unsent)] == [None, None]
    assert [status_of(told) for told in (read, unsent)] == [502, 502]


async def test_a_fault_of_ours_after_a_write_was_sent_says_so(
    tokens: TokenServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500, and nobody is let believe that nothing was done; a read changes nothing."""

    def boom(*_: object) -> None:
        raise RuntimeError("a fault")

    async with recorder() as record:
        async with sidecar(configuration(record.url, tokens.url, tmp_path)) as rig:
            monkeypatch.setattr("sidecar.policy.headers.incoming", boom)
            write, read = await send(rig, b"POST", b"/x"), await send(rig, b"GET", b"/x")

    assert [status_of(told) for told in (write, read)] == [500, 500]
    assert [problem_of(told).get("outcome") for told in (write, read)] == ["unknown", None]


# --- one clock for one party --------------------------------------------------------------------------------------


async def stall(rig: Rig, method: bytes, sent: bytes, name: str = "plm") -> bytes:
    """Begin an upload and say nothing more; return what comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port(name))
    writer.write(b"%b /up HTTP/1.1\r\nHost: localhost\r\n%b" % (method, sent))
    try:
        return await asyncio.wait_for(reader.readuntil(b"}"), 20)
    finally:
        writer.close()


@pytest.mark.usefixtures("both_modes")
@pytest.mark.parametrize(
    "sent",
    [
        b"Content-Length: 100\r\n\r\nabc",
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"Content-Length: 9\r\n\r\n",
    ],
)
async def test_a_client_that_stalls_is_told_so(tokens: TokenServer, tmp_path: Path, sent: bytes) -> None:
    """408 after its own silence; nothing is repeated, and the upstream is not blamed however many do it."""
    async with recorder() as record:
        settings: dict[str, Any] = {"timeout": {"idle": "500ms"}, "breaker": {"min_requests": 3}}
        async with sidecar(configuration(record.url, tokens.url, tmp_path, **settings)) as rig:
            told = await stall(rig, b"PUT", sent)
            asked = len(record.seen)
            await asyncio.gather(*(stall(rig, b"POST", sent) for _ in range(6)))
            healthy = await send(rig, b"GET", b"/healthy")
            events = done(rig)

    assert (status_of(told), problem_of(told)["reason"]) == (408, "request_timeout")
    assert asked == 1
    assert status_of(healthy) == 200
    assert {event.outcome for event in events[:-1]} == {"request_timeout"}


async def test_a_slow_client_is_not_the_upstreams_silence(tokens: TokenServer, tmp_path: Path) -> None:
    """An upload that pauses for longer than the upstream may be silent goes on."""
    async with recorder() as record:
        settings: dict[str, Any] = {"timeout": {"idle": "20s", "first_byte": "300ms"}}
        async with sidecar(configuration(record.url, tokens.url, tmp_path, **settings)) as rig:
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.port("plm"))
            writer.write(b"POST /up HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 6\r\n\r\nabc")
            await until(lambda: record.seen, "the head")
            await asyncio.sleep(0.7)
            writer.write(b"def")
            told = await reader.read()
            writer.close()

    assert status_of(told) == 200
    assert record.seen[0].body == b"abcdef"


# --- every way passes the same gates ------------------------------------------------------------------------------

KEPT = {"path": "/kept", "every": "100ms", "only_if_used_within": "1h"}


def kept(record: Recorder) -> int:
    return sum(b" /kept " in seen.line for seen in record.seen)


async def test_keepalive_waits_for_a_turn(tokens: TokenServer, tmp_path: Path) -> None:
    """`sessions.max_in_flight` is a limit of the upstream's, whoever asks."""
    release, busy, most = asyncio.Event(), 0, 0

    async def script(seen: Seen, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        if b" /long " in seen.line:
            await release.wait()
        busy -= 1
        writer.write(OK)

    async with recorder(script) as record:
        data = configuration(record.url, tokens.url, tmp_path, keepalive=KEPT, sessions={"max_in_flight": 1})
        async with sidecar(data) as rig:
            assert status_of(await send(rig, b"GET", b"/x")) == 200
            await until(lambda: kept(record), "the first keep-alive")
            long = asyncio.create_task(send(rig, b"GET", b"/long"))
            await until(lambda: any(b" /long " in seen.line for seen in record.seen), "the long one")
            before = kept(record)
            await asyncio.sleep(0.5)
            assert kept(record) == before
            release.set()
            assert status_of(await long) == 200
            await until(lambda: kept(record) > before, "the next keep-alive")

    assert most == 1


async def test_keepalive_waits_out_a_pause_and_an_open_breaker(tokens: TokenServer, tmp_path: Path) -> None:
    """An upstream that asked to be left alone is."""
    mode = OK

    async def script(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(mode)

    async with recorder(script) as record:
        data = configuration(
            record.url, tokens.url, tmp_path, keepalive=KEPT, retry={"attempts": 1}, breaker={"min_requests": 1000}
        )
        async with sidecar(data) as rig:
            assert status_of(await send(rig, b"GET", b"/x")) == 200
            await until(lambda: kept(record), "the first keep-alive")
            mode = answer(503, b"Retry-After: 20")
            await send(rig, b"GET", b"/x")
            pause = rig.app._assembly.destinations["plm"].admission.pause
            assert pause.until > time.monotonic()
            before = kept(record)
            await asyncio.sleep(0.6)
            assert kept(record) == before


async def test_keepalive_is_no_use_of_the_credential(tokens: TokenServer, tmp_path: Path) -> None:
    """It ends when no script has asked for `only_if_used_within`, however often it was answered."""
    async with recorder() as record:
        limits = KEPT | {"only_if_used_within": "1s"}
        async with sidecar(configuration(record.url, tokens.url, tmp_path, keepalive=limits)) as rig:
            assert status_of(await send(rig, b"GET", b"/x")) == 200
            verdicts = rig.app.brokers["plm"].verdicts
            used = verdicts.used_at
            await until(lambda: kept(record) >= 3, "some keep-alives")
            assert verdicts.used_at == used
            assert json.dumps([event.path for event in done(rig)]) == '["/x"]'
