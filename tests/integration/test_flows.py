"""What an addon sees of a request, what it may do to it, and what it may not."""

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from mitmproxy import http

from sidecar.events import RequestDone, Trouble
from tests.canary import WORD, canary
from tests.rig import (
    OK,
    TOKEN,
    Recorder,
    Rig,
    Seen,
    TokenServer,
    configuration,
    problem_of,
    raw,
    sidecar,
    status_of,
)

Hook = Callable[[http.HTTPFlow], Awaitable[None] | None]
HOOKS = ("requestheaders", "request", "responseheaders", "response")
MIB = 1 << 20


class Addon:
    """Notes every hook of a flow and does what a test puts in for it."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.flow: http.HTTPFlow
        self.does: dict[str, Hook] = {}

    async def dispatch(self, hook: Any) -> None:
        """Take *hook* as mitmproxy's own manager would hand it on."""
        if not isinstance(flow := hook.args()[0], http.HTTPFlow):
            return
        self.told.append(hook.name)
        self.flow = flow
        if (does := self.does.get(hook.name)) is not None and (waits := does(flow)) is not None:
            await waits


@pytest.fixture
def addon() -> Addon:
    return Addon()


@pytest.fixture
async def rig(addon: Addon, upstream: Recorder, tokens: TokenServer, tmp_path: Path) -> AsyncIterator[Rig]:
    data = configuration(upstream.url, tokens.url, tmp_path)
    async with sidecar(data, dispatch=addon.dispatch) as running:
        yield running


def request(method: bytes, body: bytes = b"", *fields: bytes) -> bytes:
    length = b"Content-Length: %d" % len(body)
    return b"\r\n".join([method + b" /x HTTP/1.1", b"Host: localhost", length, *fields, b"", b""]) + body


LAST = (b"Connection: close",)


async def soon(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not what():
            await asyncio.sleep(0.01)


def answering(answer: bytes) -> Callable[..., Awaitable[None]]:
    async def script(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    return script


async def test_addon_sees_heads_and_bodies(rig: Rig, addon: Addon) -> None:
    """Each hook once, in order; the whole request and the whole answer are there when the answer is."""
    answer = await raw(rig.port("plm"), request(b"POST", b"hello", b"X-Mine: 1", *LAST))

    assert answer.endswith(b"\r\n\r\nok")
    assert addon.told == list(HOOKS)
    assert addon.flow.request.method == "POST"
    assert addon.flow.request.path == "/x"
    assert addon.flow.request.headers["X-Mine"] == "1"
    assert addon.flow.request.content == b"hello"
    assert addon.flow.response is not None
    assert (addon.flow.response.status_code, addon.flow.response.content) == (200, b"ok")
    assert not addon.flow.live


@pytest.mark.parametrize(
    "head",
    [b"Content-Length: 6\r\n", b"Transfer-Encoding: chunked\r\n"],
    ids=["length", "chunked"],
)
async def test_request_hook_sees_a_body_that_comes_a_little_later(rig: Rig, addon: Addon, head: bytes) -> None:
    """Clients send head and body in two pieces; an addon may answer by what is in the body."""
    seen: list[bytes | None] = []
    addon.does["request"] = lambda flow: seen.append(flow.request.content)
    parts = (b"abc", b"def") if b"Length" in head else (b"3\r\nabc\r\n", b"3\r\ndef\r\n0\r\n\r\n")
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port("plm"))
    writer.write(b"POST /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + head + b"\r\n")
    await soon(lambda: addon.told == ["requestheaders"])
    for part in parts:
        writer.write(part)
        await writer.drain()
    answer = await reader.read()
    writer.close()

    assert status_of(answer) == 200
    assert seen == [b"abcdef"]


async def test_credentials_are_in_no_flow(rig: Rig, addon: Addon, upstream: Recorder) -> None:
    """The client's own is taken out, and what an upstream sends back of it or of ours becomes stars."""
    own, session = canary("own").encode(), canary("session").encode()

    async def echo(seen: Seen, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        token = seen.values(b"authorization")[0]
        body = b"head: " + seen.head + b"token: " + token
        writer.write(b"HTTP/1.1 200 %b\r\nX-Echo: %b\r\nContent-Length: %d\r\n\r\n" % (token, token, len(body)))
        writer.write(body)

    upstream.script = echo
    fields = (b"Authorization: Bearer " + own, b"Cookie: a=1; b=" + session, *LAST)
    answer = await raw(rig.port("plm"), request(b"POST", b"hi", *fields))
    state = repr(addon.flow.get_state())

    assert TOKEN.encode() in answer
    assert session in answer
    assert WORD not in state
    assert addon.flow.response is not None
    assert addon.flow.response.headers["X-Echo"] == "Bearer " + "*" * len(f"{TOKEN}-1")
    assert (addon.flow.response.raw_content or b"").endswith(b"token: Bearer " + b"*" * len(f"{TOKEN}-1"))


async def test_token_is_masked_across_chunks(rig: Rig, addon: Addon, upstream: Recorder) -> None:
    """However the upstream cuts it."""

    async def drip(seen: Seen, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for byte in seen.values(b"authorization")[0]:
            writer.write(b"1\r\n%c\r\n" % byte)
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")

    upstream.script = drip
    answer = await raw(rig.port("plm"), request(b"GET", b"", *LAST))

    assert answer.endswith(b"0\r\n\r\n")
    assert addon.flow.response is not None
    assert addon.flow.response.content == b"Bearer " + b"*" * len(f"{TOKEN}-1")


async def test_token_is_masked_where_the_shown_part_ends(rig: Rig, addon: Addon, upstream: Recorder) -> None:
    """A half of it is none the less a part of it."""
    body = b"x" * (MIB - 5) + f"{TOKEN}-1".encode() + b"y" * 100
    upstream.script = answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    answer = await raw(rig.port("plm"), request(b"GET", b"", *LAST))

    assert answer.endswith(body)
    assert addon.flow.response is not None
    assert addon.flow.response.content == b"x" * (MIB - 5) + b"*" * 5


@pytest.mark.parametrize("coding", ["gzip", "odd", "gzip, odd"])
async def test_token_is_masked_in_a_compressed_answer(rig: Rig, addon: Addon, upstream: Recorder, coding: str) -> None:
    """What can be decoded is looked into; what cannot is not shown, and the flow says so. The client gets its bytes."""
    body = gzip.compress(f'{{"token": "{TOKEN}-1"}}'.encode())
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (coding.encode(), len(body))
    upstream.script = answering(head + body)
    answer = await raw(rig.port("plm"), request(b"GET", b"", *LAST))

    assert answer.endswith(body)
    assert addon.flow.response is not None
    if coding == "gzip":
        assert addon.flow.response.text == '{"token": "%s"}' % ("*" * len(f"{TOKEN}-1"))
        assert addon.flow.comment == ""
    else:
        assert addon.flow.response.raw_content is None
        assert addon.flow.comment == f"answer: a compressed body of {len(body)} bytes is not shown"


async def test_long_bodies_are_shown_in_part(rig: Rig, addon: Addon, upstream: Recorder) -> None:
    """The first MiB of each, and the flow says that it is not all; both peers get every byte."""
    body = bytes(range(256)) * (3 * MIB // 256)
    upstream.script = answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    answer = await raw(rig.port("plm"), request(b"POST", body, *LAST))

    assert answer.endswith(body)
    assert upstream.seen[0].body == body
    assert addon.flow.request.content == body[:MIB]
    assert addon.flow.response is not None
    assert addon.flow.response.content == body[:MIB]
    said = f"only the first 1 MiB of {len(body)} bytes are shown"
    assert addon.flow.comment == f"request: {said}; answer: {said}"


@pytest.mark.parametrize("hook", ["requestheaders", "request"])
@pytest.mark.parametrize("method", [b"GET", b"POST", b"DELETE"])
async def test_addon_answers_in_the_place_of_the_upstream(
    rig: Rig, addon: Addon, upstream: Recorder, hook: str, method: bytes
) -> None:
    """With the framing that the client needs, on a connection that stays; the upstream hears nothing of it."""

    def mock(flow: http.HTTPFlow) -> None:
        flow.response = http.Response.make(418, b"mocked", {"X-Mock": "1", "Transfer-Encoding": "chunked"})

    addon.does[hook] = mock
    body = b"" if method == b"GET" else b"abc"
    answers = await raw(rig.port("plm"), request(method, body) + request(method, body, *LAST))
    first, second = answers.split(b"mocked")[:2]

    assert first.startswith(b"HTTP/1.1 418 ")
    assert b"\r\nContent-Length: 6\r\n" in first
    assert b"x-mock: 1" in first.lower()
    assert b"ransfer-" not in first
    assert b"Connection: close" in second
    assert upstream.bytes_in == 0
    assert addon.told == ["requestheaders", "request", "response"] * 2


async def test_answer_of_an_addon_to_head_has_no_body(rig: Rig, addon: Addon) -> None:
    """Its length is that of the body there would be."""
    addon.does["request"] = lambda flow: setattr(flow, "response", http.Response.make(200, b"mocked"))
    answer = await raw(rig.port("plm"), request(b"HEAD", b"", *LAST))

    assert b"Content-Length: 6\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


async def test_upload_that_an_addon_has_answered_is_dropped(rig: Rig, addon: Addon, upstream: Recorder) -> None:
    """The client has its answer at once; what it still sends is taken for the rest of its body, not for a request."""
    addon.does["requestheaders"] = lambda flow: setattr(flow, "response", http.Response.make(200, b"mocked"))
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port("plm"))
    writer.write(b"POST /up HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000\r\n\r\n" + bytes(1000))
    async with asyncio.timeout(10):
        assert (await reader.readuntil(b"mocked")).startswith(b"HTTP/1.1 200")
        writer.write(bytes(1_999_000) + request(b"GET", b"", *LAST))
        rest = await reader.read()
    writer.close()

    assert rest.endswith(b"mocked")
    assert addon.told.count("requestheaders") == 2
    assert upstream.bytes_in == 0


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_killed_flow_ends_the_connection(
    rig: Rig, addon: Addon, upstream: Recorder, hook: str, method: bytes
) -> None:
    """At any hook; the client gets no answer, the exchange ends, and the connection is not used any more."""
    addon.does[hook] = lambda flow: flow.kill()
    answer = await raw(rig.port("plm"), request(method, b"abc" if method == b"POST" else b"") + request(b"GET"))

    assert answer == b""
    assert len(upstream.seen) == (0 if "request" in hook else 1)
    assert addon.told[-1] in ("error", "response")
    assert addon.told.count("requestheaders") == 1
    await soon(lambda: rig.app.busy == 0)


async def test_kill_in_the_middle_of_an_answer_cuts_it(rig: Rig, addon: Addon, upstream: Recorder) -> None:
    """The client cannot take what it has for the whole, and the upstream is let go."""
    gone = asyncio.Event()

    async def endless(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"4\r\ntick\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        gone.set()

    upstream.script = endless
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port("plm"))
    writer.write(request(b"GET"))
    async with asyncio.timeout(10):
        await reader.readuntil(b"tick")
        addon.flow.kill()
        with contextlib.suppress(ConnectionError):
            assert not (await reader.read()).endswith(b"0\r\n\r\n")
        await gone.wait()
    writer.close()

    assert addon.told[-1] == "error"


@pytest.mark.parametrize("hook", HOOKS)
async def test_addon_that_raises(rig: Rig, addon: Addon, upstream: Recorder, hook: str) -> None:
    """Before the request is sent nothing is sent; after that the client has its answer. The log names the hook."""

    def boom(_: http.HTTPFlow) -> None:
        raise RuntimeError(canary("addon"))

    addon.does[hook] = boom
    answer = await raw(rig.port("plm"), request(b"POST", b"abc", *LAST))
    troubles = [event for event in rig.events if isinstance(event, Trouble) and event.where == "addon"]

    assert [event.detail.split(":")[0] for event in troubles] == [hook]
    assert WORD not in repr(troubles)
    if "request" in hook:
        assert problem_of(answer)["reason"] == "internal"
        assert upstream.bytes_in == 0
        assert addon.told[-1] == "error"
    else:
        assert answer.endswith(b"\r\n\r\nok")
        assert addon.told == list(HOOKS)


@pytest.mark.parametrize("hook", ["responseheaders", "response"])
async def test_changed_answer_is_not_sent(rig: Rig, addon: Addon, upstream: Recorder, hook: str) -> None:
    """What streams is not held back for an addon: it changes its copy, the client gets the upstream's bytes."""
    body = b"z" * 300_000

    def change(flow: http.HTTPFlow) -> None:
        assert flow.response is not None
        flow.response.stream = False
        flow.response.status_code = 500
        flow.response.headers["X-Changed"] = "1"
        flow.response.text = "changed"

    addon.does[hook] = change
    upstream.script = answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    answer = await raw(rig.port("plm"), request(b"GET", b"", *LAST))

    assert answer == b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\nConnection: close\r\n\r\n" + body


async def test_changed_request_is_not_sent(rig: Rig, addon: Addon, upstream: Recorder) -> None:
    """The exchange has its own."""

    def change(flow: http.HTTPFlow) -> None:
        flow.request.path = "/other"
        flow.request.headers["Authorization"] = "none"
        flow.request.content = b"changed"

    addon.does["requestheaders"] = addon.does["request"] = change
    await raw(rig.port("plm"), request(b"POST", b"abc", *LAST))

    assert upstream.seen[0].line == b"POST /x HTTP/1.1"
    assert upstream.seen[0].values(b"authorization") == [f"Bearer {TOKEN}-1".encode()]
    assert upstream.seen[0].body == b"abc"


@pytest.mark.parametrize("hook", HOOKS)
async def test_hook_that_waits_holds_the_request(rig: Rig, addon: Addon, upstream: Recorder, hook: str) -> None:
    """As intercepting in mitmweb does: neither the upstream nor the client hears of it before it goes on."""
    go_on = asyncio.Event()

    async def wait() -> None:
        await go_on.wait()

    addon.does[hook] = lambda _: wait()
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port("plm"))
    writer.write(request(b"GET", b"", *LAST))
    await soon(lambda: hook in addon.told)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await reader.read(1)
    sent_before = len(upstream.seen)
    go_on.set()
    answer = await reader.read()
    writer.close()

    assert sent_before == (0 if hook in ("requestheaders", "request") else 1)
    assert answer.endswith(b"\r\n\r\nok")


async def test_broken_answer_ends_with_the_error_hook(rig: Rig, addon: Addon, upstream: Recorder) -> None:
    """Every flow is told `response` or `error`, one of them."""

    async def cut(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()

    upstream.script = cut
    await raw(rig.port("plm"), request(b"GET", b"", *LAST))
    await soon(lambda: addon.told[-1] == "error")

    assert addon.told == ["requestheaders", "request", "responseheaders", "error"]
    assert addon.flow.error is not None


async def test_client_that_is_reset_ends_with_the_error_hook(rig: Rig, addon: Addon, upstream: Recorder) -> None:
    """Also when nothing has come yet."""
    from sidecar.proxy.wire import reset

    arrived, over = asyncio.Event(), asyncio.Event()

    async def never(*_: object) -> None:
        arrived.set()
        await over.wait()

    upstream.script = never
    _, writer = await asyncio.open_connection("127.0.0.1", rig.port("plm"))
    writer.write(request(b"GET"))
    async with asyncio.timeout(10):
        await arrived.wait()
    reset(writer)
    await soon(lambda: addon.told[-1] == "error")
    over.set()

    assert [event.outcome for event in rig.events if isinstance(event, RequestDone)] == ["client_gone"]


async def test_our_own_answers_are_shown(rig: Rig, addon: Addon) -> None:
    """An addon sees why there is no answer of the upstream."""
    answer = await raw(rig.port(), b"GET http://nobody.example/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")

    assert status_of(answer) == 403
    assert addon.told == list(HOOKS)
    assert addon.flow.response is not None
    assert "no_route" in (addon.flow.response.text or "")


async def test_flows_of_one_connection_are_apart(rig: Rig, addon: Addon, upstream: Recorder) -> None:
    """Each request has its own, with its own bodies."""
    flows: list[http.HTTPFlow] = []
    addon.does["response"] = flows.append
    upstream.script = answering(OK)
    await raw(rig.port("plm"), request(b"POST", b"one") + request(b"POST", b"two", *LAST))

    assert [flow.request.content for flow in flows] == [b"one", b"two"]
    assert len({flow.id for flow in flows}) == 2
    assert len({flow.client_conn.id for flow in flows}) == 1
