"""A request from its first byte to what goes upstream, held against a parser that is not ours (h11).

I2: the upstream sees exactly one credential, which is never the client's. I13: all else is what the client sent.
"""

import h11
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from sidecar.errors import Refusal
from sidecar.policy.headers import HOP_BY_HOP, incoming, nominated, normal_name, outgoing, strip_set, strip_target
from sidecar.policy.message import Fields, Request
from sidecar.policy.routing import parse_base_url
from sidecar.proxy.head import Head, parse_head
from tests.canary import canary

ORIGIN = parse_base_url("http://plm.example:8080")
THEIRS = canary("theirs").encode()
OURS = (b"Authorization", b"Bearer ours")
HOP = (b"Auth-Sidecar-Hop", b"5a0c31f2")
STRIPS = strip_set(["X-Session"], [], ["sid"], [])
STRIPPED = (b"authorization", b"x-api-key", b"x-session", b"proxy-authorization")

NAMES = st.sampled_from(
    [
        b"A",
        b"x-y",
        b"X_Y",
        b"accept",
        b"AUTHORIZATION",
        b"Authorization",
        b"X-Api-Key",
        b"x_session",
        b"Proxy-Authorization",
        b"Proxy_Authorization",
        b"Via",
        b"TE",
        b"Keep-Alive",
        b"Idempotency-Key",
        b"Cookie",
    ]
)
TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=12).map(str.encode)
VALUES = st.one_of(TEXT, st.just(b"Bearer " + THEIRS))
SPACE = st.sampled_from([b"", b" ", b"\t", b"  "])
AFTER = st.sampled_from([b"", b"", b" ", b"\t", b"  ", b"\r\n more", b"\r\n\t and: more\r\n  still "])
FRAMING = st.sampled_from(
    [
        (),
        (b"Content-Length: 3",),
        (b"content-length:0",),
        (b"Transfer-Encoding: chunked",),
        (b"transfer-encoding:CHUNKED",),
        (b"Content-Length: 3", b"Content-Length: 3"),
        (b"Content-Length: 3", b"Content-Length: 03"),
        (b"Content-Length: 3\r\n 4",),
        (b"Content_Length: 4",),
        (b"Content-Length: 3", b"Content_Length: 4"),
        (b"Transfer-Encoding:\r\n chunked",),
        (b"Content-Length: 3", b"Transfer-Encoding: chunked"),
        (b"Content-Length: +3",),
        (b"Content-Length: 3, 3",),
        (b"Transfer-Encoding: gzip, chunked",),
    ]
)
CONNECTIONS = st.sampled_from(
    [
        (),
        (b"Connection: close",),
        (b"Connection: A, authorization",),
        (b"connection: x-y", b"Connection: Host"),
        (b"Connection: via",),
    ]
)
PATHS = st.text(st.sampled_from("/a.%2F?&=;+_-~"), max_size=14).map(lambda text: b"/" + text.encode())


@st.composite
def heads(draw: st.DrawFn) -> list[bytes]:
    """Heads as clients send them, and as those do who mean harm; with exactly one Host."""
    method = draw(st.sampled_from([b"GET", b"POST", b"DELETE", b"PATCH", b"get", b"M-SEARCH"]))
    fields = [
        name + b":" + before + value + after
        for name, before, value, after in draw(st.lists(st.tuples(NAMES, SPACE, VALUES, AFTER), max_size=8))
    ]
    fields += [*draw(FRAMING), *draw(CONNECTIONS)]
    host = draw(st.sampled_from([b"Host: plm.example", b"host:evil.example", b"HOST: plm.example:1"]))
    return [method + b" " + draw(PATHS) + b" HTTP/1.1", *draw(st.permutations([host, *fields]))]


def read_by_h11(lines: list[bytes]) -> h11.Request | None:
    """Return the request as another parser reads it, None when it refuses it."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"\r\n".join(lines) + b"\r\n\r\n")
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError:
        return None
    assert isinstance(event, h11.Request)
    return event


def parsed(lines: list[bytes]) -> Request:
    """Return the request as we read it on a reverse port; a case of no interest when we refuse it."""
    try:
        head = parse_head(b"\r\n".join(lines).split(b"\r\n"), "plm", ORIGIN)
    except Refusal:
        assume(False)
        raise
    assert isinstance(head, Head)
    return head.request


def sent(request: Request) -> tuple[bytes, Fields]:
    """Return target and fields as the exchange sends them."""
    fields = outgoing(
        request.fields,
        STRIPS,
        host=b"plm.example:8080",
        hop=HOP[1],
        credential=(OURS,),
        chunked=request.length is None,
    )
    return strip_target(request.target, STRIPS), fields


@given(heads())
@example([b"POST / HTTP/1.1", b"Host: a", b"Transfer-Encoding: chunked"])
@example([b"POST / HTTP/1.1", b"Host: a", b"Content-Length: 3"])
@example([b"POST / HTTP/1.1", b"Host: a", b"A:\r\n x\r\n\ty", b"Content-Length: 3, 3", b"Content-Length: 3"])
def test_what_we_take_another_parser_reads_alike(lines: list[bytes]) -> None:
    """Method, target, fields and the length of the body: a request that two read differently can be smuggled."""
    request = parsed(lines)
    other = read_by_h11(lines)

    assert other is not None
    assert (other.method, other.target) == (request.method, request.target)
    framing = (b"transfer-encoding", b"chunked")  # which it spells its own way
    ours = [framing if name.lower() == framing[0] else (name.lower(), value) for name, value in request.fields]
    theirs = list(other.headers)
    if any(b"\r\n" in line for line in lines):  # a fold is one space or more (RFC 9112 section 5.2)
        ours, theirs = ([(name, b" ".join(value.split())) for name, value in fields] for fields in (ours, theirs))
    assert theirs == ours
    chunked = any(name == b"transfer-encoding" for name, _ in other.headers)
    lengths = {int(value) for name, value in other.headers if name == b"content-length"}
    assert request.length == (None if chunked else lengths.pop() if lengths else 0)


@given(heads())
@example([b"GET /?sid=1&a=2 HTTP/1.1", b"Host: a", b"Connection: authorization", b"Authorization: " + THEIRS])
def test_what_goes_upstream_has_one_credential_which_is_ours(lines: list[bytes]) -> None:
    """As another parser reads it: one Authorization, one Host, the body framed as it came, all else in its order."""
    request = parsed(lines)
    target, fields = sent(request)
    seen = read_by_h11([request.method + b" " + target + b" HTTP/1.1", *(b"%b: %b" % field for field in fields)])

    assert seen is not None
    values = list(seen.headers)
    assert [value for name, value in values if normal_name(name) in STRIPPED] == [OURS[1]]
    assert [value for name, value in values if name == b"host"] == [b"plm.example:8080"]
    assert (b"transfer-encoding", b"chunked") in values or request.length is not None
    assert not any(b"sid=" in part for part in target.partition(b"?")[2].split(b"&") if part.startswith(b"sid="))
    gone = HOP_BY_HOP | nominated(request.fields) | {*STRIPPED, b"host"}
    kept = [(name.lower(), value) for name, value in request.fields if normal_name(name) not in gone]
    kept = [field for field in kept if field[0] != b"content_length"]
    ours = [(b"transfer-encoding", b"chunked")] * (request.length is None)
    ours += [(b"auth-sidecar-hop", HOP[1]), (b"authorization", OURS[1])]
    assert [field for field in values if field[0] != b"host"] == kept + ours


@given(st.lists(st.tuples(NAMES, TEXT), max_size=8), st.lists(NAMES, max_size=2))
def test_an_answer_loses_what_is_hop_by_hop_only(fields: list[tuple[bytes, bytes]], named: list[bytes]) -> None:
    """The rest comes in its order and spelling, duplicates too; twice is once."""
    answer = (*fields, (b"Connection", b",".join(named)), (b"Set-Cookie", b"a"), (b"Set-Cookie", b"a"))
    gone = HOP_BY_HOP | {normal_name(name) for name in named}

    assert incoming(answer) == tuple(field for field in answer if normal_name(field[0]) not in gone)
    assert incoming(incoming(answer)) == incoming(answer)


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 3\r\nContent-Length: 4", b"Transfer-Encoding: chunked\r\nContent-Length: 3"]
)
def test_the_other_parser_is_a_strict_one(framing: bytes) -> None:
    """An oracle that takes everything would show nothing; where it is laxer than we are, we refuse."""
    lines = [b"POST / HTTP/1.1", b"Host: a", *framing.split(b"\r\n")]
    with pytest.raises(Refusal):
        parse_head(lines, "plm", ORIGIN)
