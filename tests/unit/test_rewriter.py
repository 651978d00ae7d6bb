"""Links in a body: the base URL becomes the client's, however the body is cut, and nothing else changes."""

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.policy.rewriter import Rewriter
from sidecar.policy.routing import Origin, parse_base_url

CLIENT = Origin("http", "127.0.0.1", 8090)
PLM = parse_base_url("https://plm.example.com/plm/api")
WHOLE = parse_base_url("https://plm.example.com")
BASE = b"https://plm.example.com/plm/api"
HERE = b"http://127.0.0.1:8090"


def rewritten(body: bytes, origin: Origin = PLM, size: int = 1 << 20) -> bytes:
    """Return *body* rewritten, given in pieces of *size*."""
    rewriter = Rewriter(origin, CLIENT)
    parts = [rewriter.feed(body[start : start + size]) for start in range(0, len(body), size)]
    return b"".join(parts) + rewriter.end()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"next": "%b/p?page=2"}' % BASE, b'{"next": "%b/p?page=2"}' % HERE),
        (b'<soap:address location="%b/svc"/>' % BASE, b'<soap:address location="%b/svc"/>' % HERE),
        (b"<id>%b</id>" % BASE, b"<id>%b</id>" % HERE),
        (b"<xs:import schemaLocation='%b?xsd=1'/>" % BASE, b"<xs:import schemaLocation='%b/?xsd=1'/>" % HERE),
        (b"&quot;%b&quot;" % BASE, b"&quot;%b&quot;" % HERE),
        (b"(%b) [%b] %b, `%b`|" % ((BASE,) * 4), b"(%b) [%b] %b, `%b`|" % ((HERE,) * 4)),
        (BASE, HERE),
        (BASE + b"#x\n" + BASE, HERE + b"/#x\n" + HERE),
        (b'"https:\\/\\/plm.example.com\\/plm\\/api\\/a"', b'"http:\\/\\/127.0.0.1:8090\\/a"'),
        (b'"https:\\/\\/plm.example.com\\/plm\\/api?a"', b'"http:\\/\\/127.0.0.1:8090\\/?a"'),
        (b'"{\\"a\\":\\"%b\\"}"' % BASE, b'"{\\"a\\":\\"%b\\"}"' % HERE),
        # a server behind a TLS terminator, the port spelled out, the name as the administrator wrote it
        (b"http://plm.example.com/plm/api/a", HERE + b"/a"),
        (b"http://plm.example.com:80/plm/api/a", HERE + b"/a"),
        (b"http://plm.example.com:443/plm/api/a", HERE + b"/a"),
        (b"https://plm.example.com:443/plm/api/a", HERE + b"/a"),
        (b"https://PLM.Example.com/plm/api/a", HERE + b"/a"),
        (b"https://login.example/?next=%b/a" % BASE, b"https://login.example/?next=%b/a" % HERE),
    ],
)
def test_base_url_becomes_the_address_of_the_client(body: bytes, expected: bytes) -> None:
    """In every spelling that servers use, and whatever ends it."""
    assert rewritten(body) == expected


@pytest.mark.parametrize(
    "body",
    [
        b"https://plm.example.com/plm/apiary/a",
        b"https://plm.example.com/plm/api.evil",
        b"https://plm.example.com/plm/api%2Fa",
        b"https://plm.example.com/plm/api:a",
        b"https://plm.example.com/plm/API/a",
        b"https://plm.example.com/login",
        b"https://plm.example.com.evil/plm/api/a",
        b"https://plm.example.com:8443/plm/api/a",
        b"https://plm.example.com:80/plm/api/a",
        b"http://plm.example.com:8080/plm/api/a",
        b"https://xplm.example.com/plm/api/a",
        b"https://user@plm.example.com/plm/api/a",
        b"https%3A%2F%2Fplm.example.com%2Fplm%2Fapi%2Fa",
        b"https:&#x2F;&#x2F;plm.example.com&#x2F;plm&#x2F;api&#x2F;a",
        b"https:\\/\\/plm.example.com/plm/api/a",
        b"ftp://plm.example.com/plm/api/a",
        b"plm.example.com/plm/api/a",
        b"",
        b"h",
        b"https://plm.example.com/plm/ap",
        bytes(range(256)),
    ],
)
def test_what_only_looks_like_it_stays(body: bytes) -> None:
    """Longer names, other places, other ways to write it."""
    assert rewritten(body) == body
    assert rewritten(body, size=1) == body


@pytest.mark.parametrize(
    ("origin", "body", "expected"),
    [
        (WHOLE, b'"https://plm.example.com"', b'"%b"' % HERE),
        (WHOLE, b"https://plm.example.com?wsdl", HERE + b"?wsdl"),
        (WHOLE, b"https://plm.example.com/a", HERE + b"/a"),
        (WHOLE, b"https://plm.example.com:8443/a", None),
        (WHOLE, b"https://plm.example.company/a", None),
        (parse_base_url("https://h:8443/2x"), b"https://h:8443/2x/a http://h:8443/2x", b"%b/a %b" % (HERE, HERE)),
        (parse_base_url("https://h:8443/2x"), b"https://h/2x/a http://h/2x/a http://h:80/2x/a", None),
        (parse_base_url("http://h/x"), b"http://h:80/x http://h/x", b"%b %b" % (HERE, HERE)),
        (parse_base_url("http://h/x"), b"https://h/x", None),
        (parse_base_url("https://[2001:db8::1]/x"), b"https://[2001:DB8::1]/x/a", HERE + b"/a"),
        (
            parse_base_url("https://h/a+b(c)"),
            b"https://h/a+b(c)/d https://h/aab(c)/d",
            b"%b/d https://h/aab(c)/d" % HERE,
        ),
    ],
)
def test_other_base_urls(origin: Origin, body: bytes, expected: bytes | None) -> None:
    """Without a path, with a port of its own, over plain HTTP, with characters that mean something to a pattern."""
    for size in (1, 7, 1000):
        assert rewritten(body, origin, size) == (body if expected is None else expected)


PIECES = st.sampled_from(
    [
        BASE,
        b"https:\\/\\/plm.example.com\\/plm\\/api",
        b"http://plm.example.com:80/plm/api",
        b"https://PLM.example.com:443/plm/api",
        b"https://plm.example.com",
        b"http",
        b"h",
        b"/",
        b'"',
        b"?",
        b":443",
        b".",
        b"x" * 50,
    ]
)


@settings(deadline=None, max_examples=500)
@given(st.lists(PIECES, max_size=8).map(b"".join), st.lists(st.integers(0, 300), max_size=6))
def test_cuts_make_no_difference(body: bytes, cuts: list[int]) -> None:
    """A body in any pieces, empty ones too, comes out as it does in one; little is held back at any time."""
    rewriter = Rewriter(PLM, CLIENT)
    places = sorted({0, *(min(cut, len(body)) for cut in cuts), len(body)})
    out = b""
    for start, end in itertools.pairwise(places):
        out += rewriter.feed(body[start:end]) + rewriter.feed(b"")
        assert len(rewriter._held) <= len(b"https:\\/\\/plm.example.com:443\\/plm\\/api")
    assert out + rewriter.end() == rewritten(body)


def test_nothing_is_held_back_that_cannot_begin_a_url() -> None:
    """An event of a stream is out when it is complete."""
    rewriter = Rewriter(PLM, CLIENT)
    assert rewriter.feed(b"data: %b/a\n\n" % BASE) == b"data: %b/a\n\n" % HERE
    assert rewriter.feed(b"data: each\n\n") == b"data: each\n\n"
    assert rewriter.feed(b"each") == b"eac"
    assert rewriter.end() == b"h"


@pytest.mark.parametrize("unit", [b"h", b"http", b"https://", b"https:\\/", BASE, b"\\", b"https://plm.example.com:"])
def test_a_hostile_body_costs_no_more_than_its_length(unit: bytes) -> None:
    """A megabyte of beginnings, in small pieces."""
    begun = time.process_time()
    rewritten(unit * ((1 << 20) // len(unit)), size=4096)
    assert time.process_time() - begun < 10
