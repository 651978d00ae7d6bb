"""The bytes on the wire: what the upstream gets and what the client gets, compared as bytes."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.events import RequestDone
from sidecar.proxy import http1
from sidecar.proxy.listener import Listener
from sidecar.proxy.sockets import bind
from sidecar.proxy.wire import reset
from sidecar.settings import HostPort
from tests.rig import (
    OK,
    Recorder,
    Rig,
    Seen,
    configuration,
    problem_of,
    raw,
    recorder,
    sidecar,
    status_of,
    token_server,
)
from tests.waiting import PATIENCE

pytestmark = pytest.mark.usefixtures("both_modes")

HOP = re.compile(rb"Auth-Sidecar-Hop: [0-9a-f]+")
CLOSE = b"Connection: close\r\n\r\n"
OURS = rb"Authorization: Bearer CANARY-rig-token-1"


@pytest.fixture
async def rig(upstream: Recorder, tmp_path: Path) -> AsyncIterator[Rig]:
    async with (
        token_server() as issuer,
        sidecar(configuration(upstream.url, issuer.url, tmp_path, retry={"base": "1ms"})) as running,
    ):
        yield running


def _request(upstream: Recorder, line: bytes, *fields: bytes, body: bytes = b"") -> bytes:
    """Return a request in absolute-form that closes; `%` in *line* stands for the upstream's address."""
    line = line.replace(b"@", upstream.url.encode())
    return b"\r\n".join([line, b"Host: elsewhere.example", *fields, b"Connection: close", b"", b""]) + body


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"GET @/a/b HTTP/1.1", b"GET /a/b HTTP/1.1"),
        (b"get @/x HTTP/1.1", b"get /x HTTP/1.1"),
        (b"M-SEARCH @/x HTTP/1.1", b"M-SEARCH /x HTTP/1.1"),
        (b"GET @/x? HTTP/1.1", b"GET /x? HTTP/1.1"),
        (b"GET @ HTTP/1.1", b"GET / HTTP/1.1"),
        (b"GET @?q=1 HTTP/1.1", b"GET /?q=1 HTTP/1.1"),
        (b"GET @/a%2Fb/%7e HTTP/1.1", b"GET /a%2Fb/%7e HTTP/1.1"),
        (b"GET @//a//b HTTP/1.1", b"GET //a//b HTTP/1.1"),
        (b"GET @/a/../b/./c HTTP/1.1", b"GET /a/../b/./c HTTP/1.1"),
        (b"GET @/a;p=1?x=%00&&=&y HTTP/1.1", b"GET /a;p=1?x=%00&&=&y HTTP/1.1"),
        (b"GET @/\xe9t\xe9?\xff HTTP/1.1", b"GET /\xe9t\xe9?\xff HTTP/1.1"),
        (b"GET @/x?a=1&access_token=old&b=2 HTTP/1.1", b"GET /x?a=1&b=2 HTTP/1.1"),
        (b"GET @/x?access%5Ftoken=old HTTP/1.1", b"GET /x HTTP/1.1"),
    ],
)
async def test_request_line_stays_as_it_was(upstream: Recorder, rig: Rig, sent: bytes, expected: bytes) -> None:
    """Method and target reach the upstream byte for byte, less a credential in the query."""
    answer = await raw(rig.port(), _request(upstream, sent))

    assert status_of(answer) == 200
    assert upstream.seen[0].line == expected


async def test_fields_keep_order_spelling_duplicates_and_bytes(upstream: Recorder, rig: Rig) -> None:
    """Header fields arrive in order, spelled as sent, doubled if doubled, with any byte, and ours behind them."""
    fields = [b"x-First: 1", b"X-Dup: a", b"x-dup: b", b"X-Latin: caf\xe9 \xff", b"X-Empty: ", b"Accept: */*"]

    await raw(rig.port(), _request(upstream, b"GET @/x HTTP/1.1", *fields))

    host, *rest = upstream.seen[0].fields
    assert host == b"Host: 127.0.0.1:%d" % upstream.port
    assert rest[:-2] == fields
    assert HOP.fullmatch(rest[-2])
    assert rest[-1] == OURS


async def test_folded_field_arrives_in_one_line(upstream: Recorder, rig: Rig) -> None:
    """As Java's SAAJ folds a long Content-Type: the upstream reads what the script meant, and needs no folding."""
    folded = b'Content-Type: application/soap+xml; charset=utf-8;\r\n\taction="urn:x"'
    answer = await raw(rig.port(), _request(upstream, b"POST @/x HTTP/1.1", folded, b"Content-Length: 2", body=b"hi"))

    assert status_of(answer) == 200
    assert b'Content-Type: application/soap+xml; charset=utf-8; action="urn:x"' in upstream.seen[0].fields
    assert upstream.seen[0].body == b"hi"


@pytest.mark.parametrize("fields", [(b"Content-Length: 2", b"content-length: 2"), (b"Content-Length: 2, 2",)])
async def test_length_said_twice_arrives_once(upstream: Recorder, rig: Rig, fields: tuple[bytes, ...]) -> None:
    """And a field that a server might take for another length not at all."""
    sent = _request(upstream, b"POST @/x HTTP/1.1", *fields, b"Content_Length: 44", body=b"hi")
    answer = await raw(rig.port(), sent)

    assert status_of(answer) == 200
    assert [field for field in upstream.seen[0].fields if b"ength" in field] == [b"Content-Length: 2"]
    assert upstream.seen[0].body == b"hi"


async def test_empty_lines_before_a_request_are_ignored(upstream: Recorder, rig: Rig) -> None:
    """As some old clients send them behind a body, and in any number (RFC 9112 section 2.2)."""
    address = b"http://127.0.0.1:%d" % upstream.port
    first = b"POST %b/a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi" % address
    await raw(rig.port(), first + b"\r\n" * 300 + _request(upstream, b"GET @/b HTTP/1.1"))

    assert [seen.line for seen in upstream.seen] == [b"POST /a HTTP/1.1", b"GET /b HTTP/1.1"]


async def test_delete_without_length_stays_without(upstream: Recorder, rig: Rig) -> None:
    """No Content-Length is made up for a request without a body."""
    await raw(rig.port(), _request(upstream, b"DELETE @/x HTTP/1.1"))

    assert not upstream.seen[0].values(b"content-length")
    assert not upstream.seen[0].values(b"transfer-encoding")


@pytest.mark.parametrize(
    "fields",
    [
        [b"Authorization: Bearer CANARY-own"],
        [b"authorization: Basic Q0FOQVJZ", b"AUTHORIZATION: Bearer CANARY-own"],
        [b"Authorization:CANARY-own"],
        [b"Authorization: CANARY-own", b"Connection: Authorization"],
        [b"X-Api-Key: CANARY-own", b"x_api_key: CANARY-own", b"Proxy-Authorization: Basic CANARY-own"],
        [b"Proxy_Authorization: CANARY-own"],
        [b"Connection: X-Mine", b"X-Mine: CANARY-own", b"Keep-Alive: CANARY-own", b"TE: trailers", b"Upgrade: h2c"],
    ],
)
async def test_exactly_one_credential_ours(upstream: Recorder, rig: Rig, fields: list[bytes]) -> None:
    """Whatever credential a client sends, the upstream sees one Authorization, ours, and none of the client's."""
    answer = await raw(rig.port(), _request(upstream, b"GET @/x HTTP/1.1", *fields))

    head = upstream.seen[0].head
    assert status_of(answer) == 200
    assert upstream.seen[0].values(b"authorization") == [OURS.split(b": ")[1]]
    assert b"CANARY-own" not in head
    assert not upstream.seen[0].values(b"connection")
    assert not upstream.seen[0].values(b"upgrade")


async def test_userinfo_is_dropped(upstream: Recorder, rig: Rig) -> None:
    """A password in the URL goes nowhere."""
    request = b"GET http://user:CANARY-own@127.0.0.1:%d/x HTTP/1.1\r\nHost: a\r\n" % upstream.port + CLOSE

    answer = await raw(rig.port(), request)

    assert status_of(answer) == 200
    assert b"CANARY-own" not in upstream.seen[0].head


async def test_hop_of_others_is_a_chain_our_own_a_loop(upstream: Recorder, rig: Rig) -> None:
    """The id of another sidecar stays in front of ours; a request that carries our own is refused, and says why."""
    served = await raw(rig.port(), _request(upstream, b"GET @/x HTTP/1.1", b"Auth-Sidecar-Hop: 0badcafe"))
    theirs, own = upstream.seen[0].values(b"auth-sidecar-hop")

    for back in (b"Auth-Sidecar-Hop: " + own, b"auth_sidecar_hop: 0badcafe, " + own):
        answer = await raw(rig.port(), _request(upstream, b"GET @/x HTTP/1.1", back))
        assert problem_of(answer)["reason"] == "no_route"
        assert "a loop" in problem_of(answer)["detail"]

    assert theirs == b"0badcafe"
    assert b"hop" not in served.lower()
    assert len(upstream.seen) == 1


async def test_via_is_added_where_it_is_asked_for(upstream: Recorder, tmp_path: Path) -> None:
    """Without `via` no line is added, with it one stands behind those of others."""
    async with token_server() as issuer:
        for via in (False, True):
            async with sidecar(configuration(upstream.url, issuer.url, tmp_path / str(via), via=via)) as rig:
                await raw(rig.port(), _request(upstream, b"GET @/x HTTP/1.1", b"Via: 1.0 other"))

    lines = [b"1.0 other", b"1.1 auth-sidecar"]
    assert [seen.values(b"via") for seen in upstream.seen] == [lines[:1], lines]


async def test_body_is_passed_on_as_it_is_framed(upstream: Recorder, rig: Rig) -> None:
    """A body with a length keeps it; a chunked one stays chunked, its trailers are dropped."""
    await raw(rig.port(), _request(upstream, b"POST @/x HTTP/1.1", b"content-length: 5", body=b"hello"))
    chunked = b"3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nX-Trailer: 1\r\n\r\n"
    await raw(rig.port(), _request(upstream, b"POST @/x HTTP/1.1", b"Transfer-Encoding: chunked", body=chunked))

    first, second = upstream.seen
    assert (first.body, first.values(b"content-length")) == (b"hello", [b"5"])
    assert (second.body, second.values(b"transfer-encoding")) == (b"abcde", [b"chunked"])
    assert b"X-Trailer" not in second.head


async def test_names_in_other_charsets_arrive(upstream: Recorder, tmp_path: Path) -> None:
    """GBK and JavaScript's escape() are names like others, also where a base path has to be kept."""
    targets = (
        b"/files/%D6%CA%C1%BF.pdf",
        b"/files/%C0%B4%D4%B4.pdf",
        b"/files/%D6%D0%CE%C4.pdf",
        b"/files/caf%u00e9.pdf",
    )
    async with token_server() as issuer, sidecar(configuration(upstream.url + "/api", issuer.url, tmp_path)) as rig:
        for target in targets:
            await raw(rig.port("plm"), b"GET %b HTTP/1.1\r\nHost: localhost\r\n" % target + CLOSE)

    assert [seen.line for seen in upstream.seen] == [b"GET /api%b HTTP/1.1" % target for target in targets]


@pytest.mark.parametrize(
    ("field", "status"),
    [
        (b"X-HTTP-Method-Override: DELETE", 405),
        (b"X-HTTP-Method: patch", 405),
        (b"x_method_override: PUT", 405),
        (b"X-Original-URL: /admin", 403),
        (b"X-Rewrite-URL: /api/../admin", 403),
        (b"X-HTTP-Method-Override: GET", 200),
        (b"X-Original-URL: /api/x", 200),
    ],
)
async def test_field_that_means_another_request_goes_no_further(
    upstream: Recorder, tmp_path: Path, field: bytes, status: int
) -> None:
    """Neither past `read_only` nor out of the base path; what it may ask for arrives as it was."""
    async with token_server() as issuer:
        data = configuration(upstream.url + "/api", issuer.url, tmp_path, read_only=True)
        async with sidecar(data) as rig:
            sent = b"GET /x HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % field + CLOSE
            assert status_of(await raw(rig.port("plm"), sent)) == status

    assert [field in seen.fields for seen in upstream.seen] == [True] * (status == 200)


async def test_reverse_port_joins_the_base_path(tmp_path: Path) -> None:
    """A reverse port appends the target to the base URL and rewrites a Location that starts with it."""

    async def redirect(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:%d/v1/new\r\nContent-Length: 0\r\n\r\n" % up.port
        )

    async with recorder(redirect) as up, token_server() as issuer:
        data = configuration(up.url + "/v1/", issuer.url, tmp_path)
        async with sidecar(data) as rig:
            here = b"127.0.0.1:%d" % rig.port("plm")
            answer = await raw(rig.port("plm"), b"GET /items?a HTTP/1.1\r\nHost: %b\r\n" % here + CLOSE)
            escape = await raw(rig.port("plm"), b"GET /%2e%2e/admin HTTP/1.1\r\nHost: localhost\r\n" + CLOSE)

    assert up.seen[0].line == b"GET /v1/items?a HTTP/1.1"
    assert b"Location: http://%b/new\r\n" % here in answer
    assert problem_of(escape)["reason"] == "no_route"
    assert len(up.seen) == 1


@pytest.mark.parametrize(
    ("request_bytes", "status", "reason"),
    [
        (b"GET http://other.example/ HTTP/1.1\r\nHost: other.example\r\n", 403, "no_route"),
        (b"GET /x HTTP/1.1\r\nHost: %b\r\n", 403, "no_route"),
        (b"CONNECT other.example:443 HTTP/1.1\r\nHost: a\r\n", 403, "no_route"),
        (b"TRACE http://%b/ HTTP/1.1\r\nHost: a\r\n", 405, "method_refused"),
        (b"track http://%b/ HTTP/1.1\r\nHost: a\r\n", 405, "method_refused"),
        (b"DEBUG http://%b/ HTTP/1.1\r\nHost: a\r\n", 405, "method_refused"),
        (b"GET http://%b/a%00.js HTTP/1.1\r\nHost: a\r\n", 400, "bad_request"),
        (b"GET http://%b/ HTTP/1.1\r\n X: a\r\nHost: a\r\n", 400, "bad_request"),
        (b"POST http://%b/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n", 400, "bad_request"),
        (b"POST http://%b/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n 0\r\n", 400, "bad_request"),
        (b"GET http://caf\xc3\xa9.example/ HTTP/1.1\r\nHost: a\r\n", 400, "bad_request"),
        (b"GET http://caf%c3%a9.example/ HTTP/1.1\r\nHost: a\r\n", 403, "no_route"),
        (b"GET http://%b/ HTTP/1.1\r\n", 400, "bad_request"),
        (b"GET http://%b/ HTTP/2.0\r\nHost: a\r\n", 400, "bad_request"),
        (
            b"POST http://%b/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            400,
            "bad_request",
        ),
        (b"GET http://%b/ HTTP/1.1\r\nHost: a\r\nX: " + b"y" * (70 << 10) + b"\r\n", 431, "request_too_large"),
    ],
)
async def test_refused_requests_never_leave(
    upstream: Recorder, rig: Rig, request_bytes: bytes, status: int, reason: str
) -> None:
    """What cannot be routed or read gets our own answer, and the upstream sees not one byte."""
    address = b"127.0.0.1:%d" % upstream.port
    data = request_bytes.replace(b"%b", address) + b"Connection: close\r\n\r\n"

    answer = await raw(rig.port(), data)

    problem = problem_of(answer)
    assert (status_of(answer), problem["status"], problem["reason"]) == (status, status, reason)
    assert upstream.bytes_in == 0


async def test_broken_chunks_get_one_answer(upstream: Recorder, rig: Rig) -> None:
    """A body whose chunks are malformed ends with one 400 and a closed connection, and is reported once."""
    head = b"POST %b/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" % upstream.url.encode()

    answer = await raw(rig.port(), head + b"3\r\nabc\r\nzz\r\n")

    assert answer.count(b"HTTP/1.1 ") == 1
    assert problem_of(answer)["reason"] == "bad_request"
    done = [event.outcome for event in rig.events if isinstance(event, RequestDone)]
    assert done.count("bad_request") == 1
    assert all(seen.body != b"abc" for seen in upstream.seen)


async def test_silent_client_is_let_go(upstream: Recorder, tmp_path: Path) -> None:
    """A head that does not become complete is answered with 408 after its time, and the connection is closed."""
    limits = {"limits": {"header_timeout": "100ms"}}
    async with token_server() as issuer, sidecar(configuration(upstream.url, issuer.url, tmp_path) | limits) as rig:
        answer = await raw(rig.port(), b"GET http://127.0.0.1/ HTTP/1.1\r\nHost: a\r\nX-Slow:")

    assert status_of(answer) == 408
    assert problem_of(answer)["reason"] == "request_timeout"
    assert [event.outcome for event in rig.events if isinstance(event, RequestDone)] == ["request_timeout"]


async def test_host_field_does_not_choose_the_upstream(upstream: Recorder, rig: Rig) -> None:
    """The Host field of an absolute-form request is ignored: the credential goes where the target points or nowhere."""
    answer = await raw(
        rig.port(),
        b"GET http://127.0.0.1:9/ HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % upstream.port + CLOSE,
    )

    assert problem_of(answer)["reason"] == "no_route"
    assert upstream.bytes_in == 0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (OK, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + CLOSE + b"ok"),
        (
            b"HTTP/1.1 299 Odd Reason\r\nx-A: 1\r\nX-a: 2\r\nX-L: \xe9\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 299 Odd Reason\r\nx-A: 1\r\nX-a: 2\r\nX-L: \xe9\r\ncontent-length: 0\r\n" + CLOSE + b"",
        ),
        (
            b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + CLOSE + b"ok",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Z: 1\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX-Z: 1\r\nTransfer-Encoding: chunked\r\n" + CLOSE + b"3\r\nabc\r\n0\r\n\r\n",
        ),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 204 No Content\r\n" + CLOSE),
        (
            b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: X-Gone\r\nX-Gone: 1\r\n\r\nno",
            b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n" + CLOSE + b"no",
        ),
        (
            b"HTTP/1.1 302 Found\r\nLocation: https://elsewhere.example/\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 302 Found\r\nLocation: https://elsewhere.example/\r\nContent-Length: 0\r\n" + CLOSE + b"",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x00\x01",
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n" + CLOSE + b"\x1f\x8b\x00\x01",
        ),
    ],
    ids=["plain", "odd", "early-hints", "chunked", "no-content", "nominated", "redirect", "gzip"],
)
async def test_answer_stays_as_it_was(upstream: Recorder, rig: Rig, answer: bytes, expected: bytes) -> None:
    """The upstream's final answer reaches the client byte for byte, less hop-by-hop fields."""

    async def say(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    upstream.script = say
    got = await raw(rig.port(), _request(upstream, b"GET @/x HTTP/1.1"))

    assert got == expected


async def test_answer_until_close_is_chunked_or_closed(upstream: Recorder, rig: Rig) -> None:
    """A body without a length is chunked for an HTTP/1.1 client and ended by closing for an HTTP/1.0 one."""

    async def say(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")
        writer.close()

    upstream.script = say
    new = await raw(rig.port(), _request(upstream, b"GET @/x HTTP/1.1"))
    old = await raw(rig.port(), b"GET %b/x HTTP/1.0\r\n\r\n" % upstream.url.encode())

    assert new.endswith(b"\r\n\r\nd\r\nuntil the end\r\n0\r\n\r\n")
    assert old == b"HTTP/1.1 200 OK\r\n" + CLOSE + b"until the end"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n",
    ],
)
async def test_cut_answer_is_never_a_whole_one(upstream: Recorder, rig: Rig, answer: bytes) -> None:
    """An upstream that breaks off in mid-body breaks the client's connection, without a clean end."""

    async def say(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()

    upstream.script = say
    got = await raw(rig.port(), _request(upstream, b"GET @/x HTTP/1.1"))

    assert b"100" in got.split(b"\r\n\r\n")[0] or b"chunked" in got
    assert not got.endswith(b"0\r\n\r\n")
    assert len(upstream.seen) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: CANARY-upstream\x01\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * (70 << 10) + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
        b"CANARY-upstream garbage\r\n\r\n",
    ],
    ids=["101", "two-lengths", "coding", "control", "huge-field", "many-fields", "garbage"],
)
async def test_broken_answer_is_a_502_without_its_bytes(upstream: Recorder, rig: Rig, answer: bytes) -> None:
    """An answer that is not HTTP, or switches protocols unasked, becomes our own 502; nothing of it is quoted."""

    async def say(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()
        writer.close()

    upstream.script = say
    got = await raw(rig.port(), _request(upstream, b"POST @/x HTTP/1.1", b"Content-Length: 0"))

    assert problem_of(got)["reason"] == "upstream_unreachable"
    assert b"CANARY-upstream" not in got
    assert len(upstream.seen) == 1


MENDED = {
    "204 with a body": (
        b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ),
    "chunks and a length": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ),
    "one length twice": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\nContent-Length: 5, 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\nhello",
    ),
    "identity": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    ),
    "layout": (
        b"HTTP/1.0 200\nConnection: keep-alive\nX : y\n z\nContent-Length: 5\n\nhello",
        b"HTTP/1.1 200 \r\nX: y z\r\nContent-Length: 5\r\n\r\nhello",
    ),
    "surplus": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    ),
}


@pytest.mark.parametrize(("answer", "expected"), MENDED.values(), ids=MENDED)
async def test_odd_answer_is_mended(upstream: Recorder, rig: Rig, answer: bytes, expected: bytes) -> None:
    """What every client takes is passed on as the message it is taken for; the next request on both sides is served."""

    async def say(seen: Seen, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer if b"/odd" in seen.line else OK)

    upstream.script = say
    odd, end = (_request(upstream, line) for line in (b"GET @/odd HTTP/1.1", b"GET @/x HTTP/1.1"))
    kept = odd.replace(b"Connection: close\r\n", b"")
    got = await raw(rig.port(), kept + kept + end)

    assert got == expected * 2 + OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert len(upstream.seen) == 3


async def test_answers_do_not_wait_for_acknowledgements() -> None:
    """Connections of our listeners have TCP_NODELAY, which asyncio sets only where the socket names its protocol."""
    accepted: asyncio.Queue[int] = asyncio.Queue()

    def look(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.put_nowait(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listener = Listener(bind(HostPort("127.0.0.1", 0), "listen.proxy"))
    async with await asyncio.start_server(look, sock=listener.socket):
        _, writer = await asyncio.open_connection(*listener.address)
        no_delay = await accepted.get()
        writer.close()
    await listener.aclose()

    assert no_delay


async def test_pipelined_requests_are_answered_in_order(upstream: Recorder, rig: Rig) -> None:
    """Requests sent without waiting are served one after the other on the same connection."""
    base = upstream.url.encode()
    first = b"POST %b/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc" % base
    second = b"\r\nGET %b/2 HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n\r\n" % base

    answer = await raw(rig.port(), first + second)

    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert [seen.line for seen in upstream.seen] == [b"POST /1 HTTP/1.1", b"GET /2 HTTP/1.1"]


async def test_pipelined_request_may_take_its_time(
    upstream: Recorder, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of one answer says nothing of the next request, whose head came early and whose body is slow."""
    monkeypatch.setattr(http1, "_LINGER_SECONDS", 0.1)
    head = b"POST %b/%%d HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n" % upstream.url.encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port())
    writer.write(head % 1 + b"\r\nbody" + head % 2 + b"Connection: close\r\n\r\nbo")
    await asyncio.sleep(0.4)
    writer.write(b"dy")
    async with asyncio.timeout(PATIENCE):
        answers = await reader.read()
    writer.close()

    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert [seen.body for seen in upstream.seen] == [b"body", b"body"]


async def test_leaving_ends_a_pipelined_request_too(upstream: Recorder, rig: Rig) -> None:
    """A client that is reset while its second request is served is noticed."""

    async def slow_second(seen: Seen, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(2 if b"/2" in seen.line else 0)
        writer.write(OK)

    upstream.script = slow_second
    request = b"GET %b/%%d HTTP/1.1\r\nHost: a\r\n\r\n" % upstream.url.encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port())
    writer.write(request % 1 + request % 2)
    await reader.readuntil(b"ok")
    await asyncio.sleep(0.1)
    reset(writer)
    done: list[tuple[str, str]] = []
    async with asyncio.timeout(PATIENCE):
        while len(done) < 2:
            await asyncio.sleep(0.02)
            done = [(event.path, event.outcome) for event in rig.events if isinstance(event, RequestDone)]

    assert done == [("/1", "passed"), ("/2", "client_gone")]


async def test_expect_continue_is_answered_only_when_the_body_is_wanted(upstream: Recorder, rig: Rig) -> None:
    """A client that waits for 100 gets it for an upstream's target, and a final 403 without it for any other."""
    head = b"POST %b/x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n" + CLOSE
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port())
    writer.write(head % upstream.url.encode())
    interim = await reader.readuntil(b"\r\n\r\n")
    writer.write(b"body")
    final = await reader.read()
    writer.close()
    refused_reader, refused_writer = await asyncio.open_connection("127.0.0.1", rig.port())
    refused_writer.write(head % b"http://other.example")
    refused = await refused_reader.readuntil(b"}")
    refused_writer.close()

    assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert status_of(final) == 200
    assert upstream.seen[0].body == b"body"
    assert not upstream.seen[0].values(b"expect")
    assert status_of(refused) == 403
