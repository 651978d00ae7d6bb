"""A request head is read in one way or refused: what two servers would read differently never carries a credential."""

import contextlib
import re
import time

import pytest
from h11._receivebuffer import ReceiveBuffer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar.errors import Reason, Refusal
from sidecar.policy.routing import Origin
from sidecar.proxy.head import MAX_FIELDS, MAX_HEAD, Connect, Head, parse_head, take_head
from tests.canary import WORD

ORIGIN = Origin("https", "up.example", 8443, b"/v1")
HOST = b"Host: a.example"
LINE = b"GET http://a.example/x HTTP/1.1"


def proxy(*lines: bytes) -> Head:
    return parse_head(lines, None, None)


def reverse(*lines: bytes) -> Head:
    return parse_head(lines, "plm", ORIGIN)


def tunnel(*lines: bytes) -> Head:
    return parse_head(lines, None, Origin("https", "up.example", 8443))


def get(target: bytes, *fields: bytes, method: bytes = b"GET") -> Head:
    """Return the head of a request for *target* on the proxy port."""
    return proxy(b"%b %b HTTP/1.1" % (method, target), HOST, *fields)


def refused(read, *lines: bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read(*lines)
    assert WORD not in str(caught.value)
    return caught.value


def test_head_on_the_proxy_port() -> None:
    """What would be connected to is that of the target; the Host field is only a field."""
    head = proxy(b"POST http://A.example:8080/x?y HTTP/1.1", b"hOST: evil.example", b"Content-Length: 12", b"A:1")

    assert head == Head(head.request, close=False, expects_continue=False)
    assert (head.request.method, head.request.target) == (b"POST", b"/x?y")
    assert (head.request.scheme, head.request.host, head.request.port) == ("http", "A.example", 8080)
    assert head.request.fields == ((b"hOST", b"evil.example"), (b"Content-Length", b"12"), (b"A", b"1"))
    assert (head.request.length, head.request.upstream, head.request.http10) == (12, None, False)


def test_head_on_a_reverse_port() -> None:
    """Scheme, host and port are those of the base URL, whatever the Host field says."""
    request = reverse(b"GET /x?y HTTP/1.1", b"Host: evil.example:1").request

    assert (request.scheme, request.host, request.port) == ("https", "up.example", 8443)
    assert (request.target, request.upstream) == (b"/x?y", "plm")


BAD_LINES = [
    b"",
    b" ",
    b"GET",
    b"GET http://a.example/",
    b"GET http://a.example/ ",
    b"http://a.example/ HTTP/1.1",
    b" GET http://a.example/ HTTP/1.1",
    b"GET  http://a.example/ HTTP/1.1",
    b"GET http://a.example/  HTTP/1.1",
    b"GET http://a.example/ HTTP/1.1 ",
    b"GET\thttp://a.example/\tHTTP/1.1",
    b"GET http://a.example/ x HTTP/1.1",
    b"GET http://a.example/\tx HTTP/1.1",
    b"GET http://a.example/\x00 HTTP/1.1",
    b"GET http://a.example/\x0b HTTP/1.1",
    b"GET http://a.example/\x7f HTTP/1.1",
    b"GET http://a.example/\r HTTP/1.1",
    b"GET http://a.example/ HTTP/1.1\r",
    b"GET http://a.example/ HTTP/1.1\n",
    b"GET http://a.example/\nX: y HTTP/1.1",
    b"GET http://a.example/ HTTP/0.9",
    b"GET http://a.example/ HTTP/1.2",
    b"GET http://a.example/ HTTP/1.10",
    b"GET http://a.example/ HTTP/11",
    b"GET http://a.example/ HTTP/2.0",
    b"GET http://a.example/ HTTP/2",
    b"GET http://a.example/ HTTP/3",
    b"GET http://a.example/ http/1.1",
    b"GET http://a.example/ HTTPS/1.1",
    b"GET http://a.example/ HTTP/1.1x",
    b"GET http://a.example/ HTTP/ 1.1",
    b"PRI * HTTP/2.0",
    b"G{T http://a.example/ HTTP/1.1",
    b"G\xc9T http://a.example/ HTTP/1.1",
    b"GET: http://a.example/ HTTP/1.1",
    b"\x16\x03\x01\x02\x00\x01\x00",
    b"SSH-2.0-x",
    b"HTTP/1.1 200 OK",
]


@pytest.mark.parametrize("line", BAD_LINES)
def test_request_line_is_strict(line: bytes) -> None:
    """One space, one version of two, no control character: anything else is not HTTP/1."""
    for read in (proxy, reverse):
        refusal = refused(read, line, HOST)

        assert refusal.reason is Reason.BAD_REQUEST
        assert refusal.detail == "the request line is not that of HTTP/1.1 or HTTP/1.0"


def test_no_line_at_all_is_refused() -> None:
    """As everything that is not a request."""
    assert refused(proxy).reason is Reason.BAD_REQUEST


@pytest.mark.parametrize("method", [b"GET", b"get", b"PROPFIND", b"M-SEARCH", b"!#$%&'*+.^_`|~09Az-", b"connect"])
def test_method_is_any_token(method: bytes) -> None:
    """As it was sent: methods have case, and new ones come."""
    assert get(b"http://a.example/", method=method).request.method == method


BAD_FIELDS = [
    b"",
    b"A",
    b": x",
    b" : x",
    b"A : x",
    b"A\t: x",
    b" A: x",
    b"\tfolded",
    b" folded: x",
    b"A B: x",
    b"A\x00: x",
    b"A: x\x00",
    b"A: x\ry",
    b"A: x\r",
    b"A: x\ny",
    b"A: x\r\nB: y",
    b"A: \x01",
    b"A: \x08x",
    b"A: \x0bx",
    b"A: x\x0c",
    b"A: \x1b[31m",
    b"A: \x7f",
    b"A\xe9: x",
    b"(A): x",
    b"A,B: x",
    b"A;: x",
    b"A@: x",
    b'"A": x',
    b"A=1",
    b"GET / HTTP/1.1",
    b"\xef\xbb\xbfA: x",
]


@pytest.mark.parametrize("field", BAD_FIELDS)
def test_field_is_strict(field: bytes) -> None:
    """No space before the colon, no control character, bare CR and NUL among them (RFC 9112 section 5)."""
    refusal = refused(proxy, LINE, HOST, field)

    assert refusal.reason is Reason.BAD_REQUEST
    assert "header field is malformed" in refusal.detail


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (b"A:", (b"A", b"")),
        (b"A: ", (b"A", b"")),
        (b"A:\t \t", (b"A", b"")),
        (b"A:x", (b"A", b"x")),
        (b"A: \t x \t ", (b"A", b"x")),
        (b"A: x  y\tz", (b"A", b"x  y\tz")),
        (b"A: :", (b"A", b":")),
        (b"a-_B.1: http://x:1/", (b"a-_B.1", b"http://x:1/")),
        (b"A: caf\xe9 \xff\x80", (b"A", b"caf\xe9 \xff\x80")),
        (b"A: \xa0x\x85", (b"A", b"\xa0x\x85")),
    ],
)
def test_field_is_kept_byte_for_byte(line: bytes, field: tuple[bytes, bytes]) -> None:
    """Only space and tab around the value go; they are not part of it."""
    assert get(b"http://a.example/", line).request.fields[-1] == field


@pytest.mark.parametrize(
    ("lines", "value"),
    [
        ((b"A: x", b" y"), b"x y"),
        ((b"A: x", b"\ty"), b"x y"),
        ((b"A: x; ", b" \t y \t", b"  z"), b"x; y z"),
        ((b"A:", b" x"), b"x"),
        ((b"A: x", b" B: y"), b"x B: y"),
        ((b"A: x", b" Content-Length: 5"), b"x Content-Length: 5"),
        ((b"A: x", b" caf\xe9\ty"), b"x caf\xe9\ty"),
    ],
)
def test_folded_field_is_unfolded(lines: tuple[bytes, ...], value: bytes) -> None:
    """RFC 9112 section 5.2: a line that begins with space or tab goes on with the one before, after one space."""
    head = get(b"http://a.example/", *lines, b"B: 1")

    assert head.request.fields[1:] == ((b"A", value), (b"B", b"1"))
    assert head.request.length == 0


@pytest.mark.parametrize(
    "lines",
    [
        (b" folded", HOST),
        (b" Host: a.example", HOST),
        (HOST, b" "),
        (HOST, b"A: x", b" "),
        (HOST, b"A: x", b" \t "),
        (HOST, b"A: x", b" \x01y"),
        (HOST, b"A: x", b" y\x00"),
        (HOST, b"A: x", b" y\rB: z"),
        (HOST, b"A: x", b"\x0by"),
        (HOST, b"A: x", b"\xa0y"),
        (b"Host:", b" a.example"),
        (b"Host: a", b" .example"),
        (HOST, b"Transfer-Encoding:", b" chunked"),
        (HOST, b"Transfer-Encoding: chunked", b"\tx"),
        (HOST, b"Transfer_Encoding:", b" chunked"),
        (HOST, b"Content-Length:", b" 5"),
        (HOST, b"Content-Length: 1", b" 0"),
        (HOST, b"content_length: 1", b"\t0"),
    ],
)
def test_what_frames_and_names_a_message_is_not_folded(lines: tuple[bytes, ...]) -> None:
    """Nor does anything go on from the request line, or with nothing: servers differ in what they make of these."""
    for read, line in ((proxy, LINE), (reverse, b"POST /x HTTP/1.1")):
        refusal = refused(read, line, *lines)

        assert refusal.reason is Reason.BAD_REQUEST
        assert "folded line" in refusal.detail


def test_fields_keep_order_spelling_and_duplicates() -> None:
    """As they came."""
    fields = get(b"http://a.example/", b"B: 1", b"a: 2", b"b: 3", b"A: 2").request.fields

    assert fields == ((b"Host", b"a.example"), (b"B", b"1"), (b"a", b"2"), (b"b", b"3"), (b"A", b"2"))


BAD_FRAMING = [
    (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    (b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    (b"Content-Length: 0", b"transfer-ENCODING: chunked"),
    (b"Content-Length: 5", b"Content-Length: 6"),
    (b"Content-Length: 5", b"Content-Length: 05"),
    (b"Content-Length: 5", b"Content-Length:"),
    (b"Content-Length: 5", b"Content-Length: 5", b"Content-Length: 6"),
    (b"Content-Length: 5", b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    (b"Content-Length: 5,6",),
    (b"Content-Length: 5,",),
    (b"Content-Length: ,5",),
    (b"Content-Length: x, x",),
    (b"Content-Length:",),
    (b"Content-Length: -1",),
    (b"Content-Length: +5",),
    (b"Content-Length: 5.0",),
    (b"Content-Length: 0x5",),
    (b"Content-Length: 5 5",),
    (b"Content-Length: 5;",),
    (b"Content-Length: 1_0",),
    (b"Content-Length: \xb2",),
    (b"Content-Length: \xd9\xa5",),
    (b"Content-Length: abc",),
    (b"Content-Length: 9999999999999999999",),
    (b"Content-Length: " + b"0" * 19,),
    (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    (b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"),
    (b"Transfer-Encoding: chunked, chunked",),
    (b"Transfer-Encoding: gzip, chunked",),
    (b"Transfer-Encoding: chunked, gzip",),
    (b"Transfer-Encoding: identity",),
    (b"Transfer-Encoding: gzip",),
    (b"Transfer-Encoding:",),
    (b"Transfer-Encoding: chunkedx",),
    (b"Transfer-Encoding: xchunked",),
    (b"Transfer-Encoding: chunked;q=1",),
    (b"Transfer-Encoding: 'chunked'",),
    (b'Transfer-Encoding: "chunked"',),
    (b"Transfer-Encoding: chunked,",),
    (b"Transfer-Encoding: ,chunked",),
    (b"Transfer-Encoding: chun ked",),
    (b"Transfer-Encoding: \xa0chunked",),
]


@pytest.mark.parametrize("fields", BAD_FRAMING)
def test_framing_that_can_be_read_in_two_ways_is_refused(fields: tuple[bytes, ...]) -> None:
    """The smuggling corpus: one length or one chunked coding, written in the one way (RFC 9112 section 6)."""
    for read, line in ((proxy, LINE), (reverse, b"POST /x HTTP/1.1")):
        refusal = refused(read, line, HOST, *fields)

        assert refusal.reason is Reason.BAD_REQUEST
        assert "Content-Length" in refusal.detail


@pytest.mark.parametrize(
    "fields",
    [
        (b"A: 1", b"Content-Length: 5", b"content-LENGTH: 5", b"B: 2"),
        (b"A: 1", b"Content-Length: 5", b"B: 2", b"Content-Length:5 ", b"Content-Length: 5"),
        (b"A: 1", b"Content-Length: 5, 5", b"B: 2"),
        (b"A: 1", b"Content-Length: 5,5", b"B: 2", b"Content-Length: 5"),
    ],
)
def test_length_said_twice_is_one(fields: tuple[bytes, ...]) -> None:
    """RFC 9110 section 8.6: the same number again is no doubt; the upstream gets one line, the first."""
    request = get(b"http://a.example/", *fields, method=b"POST").request

    assert request.length == 5
    assert request.fields[1:] == ((b"A", b"1"), (b"Content-Length", b"5"), (b"B", b"2"))


def test_chunks_need_http11() -> None:
    """RFC 9112 section 6.1: with HTTP/1.0 the framing is faulty."""
    line = b"POST http://a.example/x HTTP/1.0"

    assert refused(proxy, line, HOST, b"Transfer-Encoding: chunked").reason is Reason.BAD_REQUEST
    assert proxy(line, HOST, b"Content-Length: 5").request.length == 5


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        ((), 0),
        ((b"Content-Length: 0",), 0),
        ((b"content-length: 007",), 7),
        ((b"Content-Length: 999999999999999999",), 999999999999999999),
        ((b"Transfer-Encoding: chunked",), None),
        ((b"TRANSFER-encoding:  Chunked ",), None),
        ((b"X-Content-Length: 5",), 0),
        ((b"Content_Length: 5",), 0),
        ((b"Transfer_Encoding: chunked",), 0),
        ((b"Content-Length: 5", b"Transfer_Encoding: chunked"), 5),
    ],
)
def test_length_of_a_body(fields: tuple[bytes, ...], length: int | None) -> None:
    """A number, chunked, or none; a field that only looks like one of the two is another field."""
    assert get(b"http://a.example/", *fields).request.length == length


@pytest.mark.parametrize(
    "hosts",
    [
        (),
        (b"Host: a", b"Host: a"),
        (b"Host: a", b"hOST: b"),
        (b"Host: a, b",),
        (b"Host: a b",),
        (b"Host: a,b",),
        (b"Host: a/b",),
        (b"Host: http://a",),
        (b"Host: user@a",),
        (b"Host: a:b",),
        (b"Host: a:80:80",),
        (b"Host: a:-1",),
        (b"Host: ::1",),
        (b"Host: [::1",),
        (b"Host: [::1]]",),
        (b"Host: [a]",),
        (b"Host: a?b",),
        (b"Host: a#b",),
        (b"Host: a\\b",),
        (b"Host: <a>",),
        (b"Host: caf\xc3\xa9.example",),
        (b"Host: a'\"",),
    ],
)
def test_host_is_one_and_valid(hosts: tuple[bytes, ...]) -> None:
    """RFC 9112 section 3.2: none, more than one or an invalid one is 400, though nothing is routed by it."""
    for read, line in ((proxy, LINE), (reverse, b"GET /x HTTP/1.1")):
        refusal = refused(read, line, *hosts)

        assert refusal.reason is Reason.BAD_REQUEST
        assert "Host" in refusal.detail


@pytest.mark.parametrize(
    "host", [b"a", b"A.example.", b"a_b:80", b"127.0.0.1:8080", b"[::1]", b"[::1]:8080", b"", b"a:", b"%41", b"x~y"]
)
def test_valid_host_is_taken(host: bytes) -> None:
    """With or without a port, an address, and empty."""
    assert proxy(LINE, b"Host:" + host).request.fields == ((b"Host", host),)


def test_http10_needs_no_host_and_closes() -> None:
    """A proxy keeps no connection with such a client (RFC 9112 section 9.3), and it cannot wait for 100."""
    head = proxy(b"GET http://a.example/ HTTP/1.0", b"Connection: keep-alive", b"Expect: 100-continue")

    assert head.request.http10
    assert head.close
    assert not head.expects_continue
    assert refused(proxy, b"GET http://a.example/ HTTP/1.0", HOST, HOST).reason is Reason.BAD_REQUEST


@pytest.mark.parametrize(
    ("field", "close", "expects"),
    [
        (b"A: b", False, False),
        (b"Connection: close", True, False),
        (b"connection: keep-alive, Close", True, False),
        (b"Connection: keep-alive", False, False),
        (b"Proxy-Connection: close", False, False),
        (b"Expect: 100-continue", False, True),
        (b"EXPECT: 100-Continue", False, True),
        (b"Expect: 100-continue, x", False, False),
        (b"Expect: 200-ok", False, False),
        (b"X-Expect: 100-continue", False, False),
    ],
)
def test_wishes_for_the_connection(field: bytes, close: bool, expects: bool) -> None:
    """What a client wants of its connection is understood in any case."""
    head = get(b"http://a.example/", field)

    assert (head.close, head.expects_continue) == (close, expects)


TARGETS = [
    (b"http://a.example", "http", "a.example", 80, b"/"),
    (b"http://a.example/", "http", "a.example", 80, b"/"),
    (b"https://a.example/x", "https", "a.example", 443, b"/x"),
    (b"HTTP://A.Example/X", "http", "A.Example", 80, b"/X"),
    (b"hTTpS://a.example", "https", "a.example", 443, b"/"),
    (b"http://a.example?", "http", "a.example", 80, b"/?"),
    (b"http://a.example?x=/y", "http", "a.example", 80, b"/?x=/y"),
    (b"http://a.example/?", "http", "a.example", 80, b"/?"),
    (b"http://a.example/x?", "http", "a.example", 80, b"/x?"),
    (b"http://a.example//x//", "http", "a.example", 80, b"//x//"),
    (b"http://a.example/../x/./", "http", "a.example", 80, b"/../x/./"),
    (b"http://a.example/%2f%zz%", "http", "a.example", 80, b"/%2f%zz%"),
    (b"http://a.example/caf\xe9\xff\x80?\xfe", "http", "a.example", 80, b"/caf\xe9\xff\x80?\xfe"),
    (b'http://a.example/x;y=1,2|{}^`"<>\\', "http", "a.example", 80, b'/x;y=1,2|{}^`"<>\\'),
    (b"http://a.example/http://b.example/", "http", "a.example", 80, b"/http://b.example/"),
    (b"http://a.example/x@y", "http", "a.example", 80, b"/x@y"),
    (b"http://a.example?@b.example/", "http", "a.example", 80, b"/?@b.example/"),
    (b"http://a.example:/x", "http", "a.example", 80, b"/x"),
    (b"https://a.example:", "https", "a.example", 443, b"/"),
    (b"http://a.example:1/x", "http", "a.example", 1, b"/x"),
    (b"http://a.example:65535", "http", "a.example", 65535, b"/"),
    (b"http://a.example:00080", "http", "a.example", 80, b"/"),
    (b"http://[::1]/x", "http", "::1", 80, b"/x"),
    (b"http://[2001:DB8::1]:8080", "http", "2001:DB8::1", 8080, b"/"),
    (b"http://[::ffff:1.2.3.4]:1/", "http", "::ffff:1.2.3.4", 1, b"/"),
    (b"http://user@a.example/", "http", "a.example", 80, b"/"),
    (b"http://user:CANARY@a.example:81/x", "http", "a.example", 81, b"/x"),
    (b"http://user:CANARY@x@a.example/x", "http", "a.example", 80, b"/x"),
    (b"http://:@a.example/x", "http", "a.example", 80, b"/x"),
    (b"http://@a.example/x", "http", "a.example", 80, b"/x"),
    (b"http://u:p[@[::1]:81/x", "http", "::1", 81, b"/x"),
    (b"http://a_b~c.example/", "http", "a_b~c.example", 80, b"/"),
    (b"http://a%41/", "http", "a%41", 80, b"/"),
]


@pytest.mark.parametrize(("target", "scheme", "host", "port", "path"), TARGETS)
def test_absolute_target(target: bytes, scheme: str, host: str, port: int, path: bytes) -> None:
    """Scheme, host and port are taken off, userinfo with them; the rest stays byte for byte."""
    request = get(target).request

    assert (request.scheme, request.host, request.port, request.target) == (scheme, host, port, path)
    assert WORD not in repr(request)


BAD_TARGETS = [
    b"http://",
    b"http:///x",
    b"http://?x",
    b"http://:80/",
    b"http://@/",
    b"http://user@/",
    b"http://user:CANARY@:80/",
    b"http://a:0/",
    b"http://a:00000/",
    b"http://a:65536/",
    b"http://a:99999/",
    b"http://a:000080/",
    b"http://a:-80/",
    b"http://a:+80/",
    b"http://a:8_0/",
    b"http://a:0x50/",
    b"http://a:80:80/",
    b"http://a:b/",
    b"http://a:\xb2/",
    b"http://a:80a/",
    b"http://::1/",
    b"http://[::1/",
    b"http://::1]/",
    b"http://[::1]x/",
    b"http://[]/",
    b"http://[a]/",
    b"http://[1.2.3.4]/",
    b"http://[::1%25lo]/",
    b"http://[v1.x]/",
    b"http://[[::1]]/",
    b"http://a,b/",
    b"http://a|b/",
    b"http://a^b/",
    b"http://a'b/",
    b'http://a"b/',
    b"http://a<b>/",
    b"http://a;b/",
    b"http://a=b/",
    b"http://a&b/",
    b"http://*/",
    b"http://caf\xc3\xa9.example/",
    b"http://caf\xe9.example/",
    b"http://a.example\xad/",
    b"http://a.example/#",
    b"http://a.example/x#y",
    b"http://a.example#@b.example/",
    b"http://a.example/x?y#CANARY",
    b"http://user:CANARY#@a.example/",
    b"ws://a.example/",
    b"ftp://a.example/",
    b"file:///etc/passwd",
    b"file://a/etc/passwd",
    b"javascript://a/",
    b"httpx://a.example/",
    b"http+unix://a/",
]


@pytest.mark.parametrize("target", BAD_TARGETS)
def test_malformed_target_is_a_bad_request(target: bytes) -> None:
    """A host, a port and a scheme that are what they say, no fragment; the answer quotes nothing."""
    assert refused(get, target).reason is Reason.BAD_REQUEST


NOT_ABSOLUTE = [
    b"/",
    b"/x",
    b"*",
    b"x",
    b"?x",
    b"//a.example/x",
    b"a.example",
    b"a.example:443",
    b"a.example/x",
    b"http:",
    b"http:/a.example/",
    b"http:a.example/",
    b"://a.example/",
    b"1http://a.example/",
    b"ht_tp://a.example/",
    b"http;//a.example/",
    b"http:\\\\a.example\\",
    b"http://a.example\\b",
    b"http://a.example\\@b.example/",
    b"\xe9://a.example/",
]


@pytest.mark.parametrize("target", NOT_ABSOLUTE)
def test_proxy_port_takes_absolute_targets_only(target: bytes) -> None:
    """Anything else would be routed by the Host field, which anybody can write; the answer says what to do."""
    refusal = refused(get, target)

    assert refusal.reason is Reason.NO_ROUTE
    assert refusal.detail.startswith("this is a proxy port: expected an absolute target")


def test_options_for_a_whole_server() -> None:
    """RFC 9112 section 3.2.4: without a path, it is the server that is asked, and the last proxy says `*`."""
    assert get(b"http://a.example", method=b"OPTIONS").request.target == b"*"
    assert get(b"http://a.example/", method=b"OPTIONS").request.target == b"/"
    assert get(b"http://a.example?x", method=b"OPTIONS").request.target == b"/?x"
    assert get(b"http://a.example", method=b"options").request.target == b"/"
    assert reverse(b"OPTIONS * HTTP/1.1", HOST).request.target == b"*"


@pytest.mark.parametrize("target", [b"/", b"//a/b", b"/x?y?z", b"/caf\xe9", b"/http://b/", b"/%23", b"/?", b"*"])
def test_reverse_port_takes_paths(target: bytes) -> None:
    """Byte for byte."""
    assert reverse(b"GET %b HTTP/1.1" % target, HOST).request.target == target


@pytest.mark.parametrize("target", [b"http://up.example:8443/v1/x", b"x", b"?x", b"**", b"a:443", b".", b"\\x", b"@b/"])
def test_reverse_port_refuses_the_rest(target: bytes) -> None:
    """An absolute target asks a proxy; this port is none."""
    refusal = refused(reverse, b"GET %b HTTP/1.1" % target, HOST)

    assert refusal.reason is Reason.NO_ROUTE
    assert refusal.detail.startswith("this is a reverse port")


@pytest.mark.parametrize("target", [b"/x#y", b"/#", b"/..#", b"#"])
def test_reverse_port_takes_no_fragment(target: bytes) -> None:
    """A server that cuts it off reads another path than one that does not."""
    refusal = refused(reverse, b"GET %b HTTP/1.1" % target, HOST)

    assert refusal.reason is Reason.BAD_REQUEST
    assert refusal.detail == "a target has no fragment"


@pytest.mark.parametrize(
    ("target", "host", "port"),
    [
        (b"a.example:443", "a.example", 443),
        (b"A.Example:1", "A.Example", 1),
        (b"[::1]:65535", "::1", 65535),
        (b"169.254.169.254:80", "169.254.169.254", 80),
    ],
)
def test_connect_names_host_and_port(target: bytes, host: str, port: int) -> None:
    """Whether it may go there is another question; the Host field has no say."""
    head = parse_head([b"CONNECT %b HTTP/1.1" % target, b"Host: evil.example", b"A: 1"], None, None)

    assert isinstance(head, Connect)
    assert (head.request.method, head.request.target) == (b"CONNECT", target)
    assert (head.request.host, head.request.port, head.request.length) == (host, port, 0)
    assert head.request.fields == ((b"Host", b"evil.example"), (b"A", b"1"))


@pytest.mark.parametrize(
    "target",
    [b"a", b"a:", b"a:0", b"a:65536", b":443", b"/", b"*", b"http://a.example/", b"a:443/", b"a:44 3", b"u@a:443"],
)
def test_connect_to_no_host_and_port(target: bytes) -> None:
    """Nothing is guessed, no default port either."""
    assert refused(proxy, b"CONNECT %b HTTP/1.1" % target, HOST).reason is Reason.BAD_REQUEST


@pytest.mark.parametrize("field", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
def test_connect_has_no_body(field: bytes) -> None:
    """What follows belongs to the tunnel, so a length could hide a part of it."""
    assert refused(proxy, b"CONNECT a:443 HTTP/1.1", HOST, field).detail == "CONNECT has no body"


def test_connect_is_for_the_proxy_port() -> None:
    """On a reverse port, and inside another tunnel, there is nowhere to go."""
    for read in (reverse, tunnel):
        refusal = refused(read, b"CONNECT up.example:8443 HTTP/1.1", HOST)

        assert refusal.reason is Reason.NO_ROUTE
        assert refusal.detail.startswith("CONNECT is served on the proxy port only")


def test_head_inside_connect() -> None:
    """What CONNECT asked for decides; the same may be said again in absolute-form."""
    for target in (b"/x?y", b"https://UP.example:8443/x?y", b"https://up.example.:8443/x?y"):
        request = tunnel(b"GET %b HTTP/1.1" % target, b"Host: evil.example").request

        assert (request.scheme, request.host, request.port) == ("https", "up.example", 8443)
        assert (request.target, request.upstream) == (b"/x?y", None)
    assert tunnel(b"GET https://up.example:8443 HTTP/1.1", HOST).request.target == b"/"
    assert tunnel(b"OPTIONS * HTTP/1.1", HOST).request.target == b"*"


@pytest.mark.parametrize(
    "target",
    [
        b"https://other.example:8443/",
        b"https://up%2eexample:8443/",
        b"https://up.example/",
        b"http://up.example:8443/",
        b"x",
        b"up.example:8443",
    ],
)
def test_nothing_else_is_reached_inside_connect(target: bytes) -> None:
    """The client trusts what it reads there to be of the host it asked for."""
    assert refused(tunnel, b"GET %b HTTP/1.1" % target, HOST).reason is Reason.NO_ROUTE


def test_malformed_connect_is_malformed() -> None:
    """Framing is looked at first: a request that could smuggle another is never only refused."""
    refusal = refused(proxy, b"CONNECT a:443 HTTP/1.1", HOST, b"Content-Length: 5", b"Transfer-Encoding: chunked")

    assert refusal.reason is Reason.BAD_REQUEST


def test_size_is_bounded() -> None:
    """64 KiB and 1000 lines in all, to the byte; more is 431."""
    rest = MAX_HEAD - len(LINE) - len(HOST) - len(b"A:")
    fits = [LINE, HOST, b"A:" + b"x" * rest]

    assert proxy(*fits).request.fields[-1] == (b"A", b"x" * rest)
    assert str(refused(proxy, *fits[:2], fits[2] + b"x")) == "request_too_large: the head is over 64 KiB or 1000 fields"
    assert len(proxy(LINE, HOST, *[b"A:"] * (MAX_FIELDS - 2)).request.fields) == MAX_FIELDS - 1
    assert refused(proxy, LINE, HOST, *[b"A:"] * (MAX_FIELDS - 1)).reason is Reason.REQUEST_TOO_LARGE
    assert refused(proxy, b"GET http://a/%b HTTP/1.1" % (b"x" * MAX_HEAD), HOST).reason is Reason.REQUEST_TOO_LARGE
    assert (MAX_HEAD, MAX_FIELDS) == (65536, 1000)


@pytest.mark.parametrize(
    "lines",
    [
        (LINE, HOST, b"A:" + b" " * 60000 + b"\x01"),
        (LINE, HOST, b"A: x" + b" " * 60000 + b"y"),
        (LINE, HOST, b"A:" + b" \t" * 30000),
        (LINE, HOST, b"A" * 60000),
        (b"GET http://" + b"a" * 60000 + b"\\ HTTP/1.1", HOST),
        (b"GET http://" + b"@" * 60000 + b" HTTP/1.1", HOST),
        (b"GET http://" + b"[:" * 30000 + b" HTTP/1.1", HOST),
        (b"GET http://[" + b":" * 60000 + b" HTTP/1.1", HOST),
        (b"GET " + b"a" * 60000 + b" HTTP/1.1", HOST),
        (LINE, b"Host: " + b"a" * 60000 + b"!"),
        (LINE, HOST, b"Connection: " + b"," * 60000),
        (LINE, HOST, b"Content-Length: " + b"1" * 60000),
        (LINE, HOST, b"Content-Length: " + b"1," * 30000),
        (LINE, HOST, b"A: " + b"x" * 55000, *[b" x"] * (MAX_FIELDS - 3)),
        (LINE, HOST, b"A: x", b" " * 60000 + b"\x01"),
    ],
)
def test_time_is_bounded(lines: tuple[bytes, ...]) -> None:
    """No head of the largest size keeps the event loop busy: every byte is looked at a few times only."""
    started = time.process_time()
    with contextlib.suppress(Refusal):
        proxy(*lines)

    assert time.process_time() - started < 0.5


def buffered(data: bytes) -> ReceiveBuffer:
    buffer = ReceiveBuffer()
    buffer += data
    return buffer


@pytest.mark.parametrize("blank", [b"\r\n", b"\n", b"\r\n" * 6, b"\n\r\n" * 300, b"\r\n" * (MAX_HEAD // 2)])
def test_empty_lines_before_a_request_are_ignored(blank: bytes) -> None:
    """RFC 9112 section 2.2: however many there are, in one piece or while the rest is still to come."""
    buffer = buffered(blank)

    assert take_head(buffer, None, None) is None
    assert len(buffer) == 0
    buffer += blank + LINE + b"\r\n" + HOST + b"\r\n"
    assert take_head(buffer, None, None) is None
    buffer += b"\r\nrest"
    head = take_head(buffer, None, None)
    assert isinstance(head, Head)
    assert head.request.target == b"/x"
    assert bytes(buffer) == b"rest"


@pytest.mark.parametrize("start", [b"\r", b"\r\r\n", b"\r\n\r", b"\r\n ", b" \r\n", b"\r\n\x00", b"\x0b\r\n"])
def test_only_empty_lines_are_ignored(start: bytes) -> None:
    """A bare CR, a space or another byte is no empty line."""
    with pytest.raises(Refusal) as caught:
        take_head(buffered(start + LINE + b"\r\n" + HOST + b"\r\n\r\n"), None, None)

    assert caught.value.reason is Reason.BAD_REQUEST


def test_head_that_does_not_end_is_too_large() -> None:
    """Behind empty lines as without them."""
    for blank in (b"", b"\r\n"):
        assert take_head(buffered(blank + b"x" * MAX_HEAD), None, None) is None
        with pytest.raises(Refusal) as caught:
            take_head(buffered(blank + b"x" * (MAX_HEAD + 1)), None, None)
        assert caught.value.reason is Reason.REQUEST_TOO_LARGE


BYTES = st.binary(max_size=30)
TEXTS = st.text("aA:/@?#[]. \t%\\;*1", max_size=20).map(str.encode)
METHOD = st.sampled_from([b"GET", b"POST", b"CONNECT", b"OPTIONS", b"get"])
TARGET = st.one_of(
    BYTES, TEXTS, st.tuples(st.sampled_from([b"http://", b"https://a", b"/", b"HTTP://u:p@h"]), BYTES).map(b"".join)
)
VERSION = st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0"])
FIELD = st.one_of(
    BYTES,
    st.tuples(st.sampled_from([b"Host:", b"Content-Length:", b"Transfer-Encoding:", b"A:", b"Expect: "]), BYTES).map(
        b"".join
    ),
    st.sampled_from(
        [b"Host: a", b"Host: a", b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Connection: close"]
    ),
)


@settings(deadline=None, max_examples=400)
@given(st.tuples(METHOD, TARGET, VERSION).map(b" ".join), st.lists(FIELD, max_size=5), st.booleans())
@example(b"", [], True)
@example(b"GET http://a# HTTP/1.1", [b"Host: a"], True)
def test_head_is_read_or_refused(line: bytes, fields: list[bytes], reversed_port: bool) -> None:
    """Never another exception; what is read holds the bytes that came, and nothing that could split a message."""
    try:
        head = (reverse if reversed_port else proxy)(line, *fields)
    except Refusal:
        return
    request = head.request
    target = line.split(b" ")[1]

    assert line.count(b" ") == 2
    assert target.endswith(request.target) or request.target in (b"*", b"/" + target[target.find(b"?") :], b"/")
    assert not reversed_port or request.target == target
    assert re.fullmatch(rb"[!-\"$-~\x80-\xff]+", request.target)
    assert len(request.fields) <= len(fields)
    assert all(any(field.startswith(name + b":") for field in fields) for name, _ in request.fields)
    assert all(part in b"".join(fields) for _, value in request.fields for part in value.split(b" "))
    assert not any(set(name + value) & {0, 10, 13} for name, value in request.fields)
    assert 1 <= request.port <= 65535
    assert request.host.isascii()


PATHS = st.binary(min_size=1, max_size=40).map(
    lambda raw: bytes(byte for byte in raw if byte > 0x20 and byte not in b"#\x7f")
)


@settings(deadline=None)
@given(PATHS)
def test_no_byte_of_a_path_or_query_changes(path: bytes) -> None:
    """Any bytes that can stand in a target come through both kinds of port as they are."""
    assert get(b"http://a.example/" + path).request.target == b"/" + path
    assert get(b"http://a.example?" + path).request.target == b"/?" + path
    assert reverse(b"GET /" + path + b" HTTP/1.1", HOST).request.target == b"/" + path
