"""The two names of an upstream: fields say the one that their reader uses, and what names anything else stays."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar.policy.message import Fields, Request
from sidecar.policy.mirror import LinkPolicy, Mirror, mirror
from sidecar.policy.routing import Origin, Routes, parse_base_url

HERE = b"http://127.0.0.1:8090"
PLM = parse_base_url("https://plm.example.com/plm/api")
WHOLE = parse_base_url("https://plm.example.com")
ODD = parse_base_url("https://plm.example.com:8443/plm")
PLAIN = parse_base_url("http://plm.example.com/plm")
NO_LINKS = LinkPolicy()


def request(*fields: tuple[bytes, bytes], reverse: bool = True, **values) -> Request:
    """Return a request as a script makes it: to a reverse port, or with an http:// URL to the proxy port."""
    given = {"method": b"GET", "scheme": "http", "host": "plm.example.com", "port": 80, "target": b"/", "length": 0}
    host = (b"Host", HERE.removeprefix(b"http://"))
    return Request(fields=(host, *fields), upstream="plm" if reverse else None, **given | values)


def mirrored(origin: Origin = PLM, *fields: tuple[bytes, bytes], links: LinkPolicy = NO_LINKS, **values) -> Mirror:
    found = mirror(request(*fields, **values), origin, links)
    assert found is not None
    return found


def inward(name: bytes, value: bytes, origin: Origin = PLM, **values) -> bytes:
    """Return what the client gets for one field of an answer."""
    fields, rewriter = mirrored(origin, **values).inward(200, ((b"A", b"1"), (name, value)))
    assert rewriter is None
    assert fields[0] == (b"A", b"1")
    assert fields[1][0] == name
    return fields[1][1]


def outward(name: bytes, value: bytes, origin: Origin = PLM, **values) -> bytes:
    """Return what the upstream gets for one field of a request."""
    sent = mirrored(origin, (name, value), **values).outward()
    assert sent.fields[1][0] == name
    return sent.fields[1][1]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"https://plm.example.com/plm/api", HERE + b"/"),
        (b"https://plm.example.com/plm/api/", HERE + b"/"),
        (b"https://plm.example.com/plm/api/a?b#c", HERE + b"/a?b#c"),
        (b"https://plm.example.com/plm/api?b", HERE + b"/?b"),
        (b"https://plm.example.com/plm/api#b", HERE + b"/#b"),
        # a server behind a TLS terminator, one that spells the port, one that shouts, a name with its dot
        (b"http://plm.example.com/plm/api/a", HERE + b"/a"),
        (b"http://plm.example.com:80/plm/api/a", HERE + b"/a"),
        (b"http://plm.example.com:443/plm/api/a", HERE + b"/a"),
        (b"https://plm.example.com:443/plm/api/a", HERE + b"/a"),
        (b"https://plm.example.com:/plm/api/a", HERE + b"/a"),
        (b"HTTPS://PLM.Example.COM/plm/api/a", HERE + b"/a"),
        (b"https://plm.example.com./plm/api/a", HERE + b"/a"),
        (b"//plm.example.com/plm/api/a", HERE + b"/a"),
        # paths
        (b"/plm/api/a?b=/x", b"/a?b=/x"),
        (b"/plm/api", b"/"),
        (b"/plm/api?b", b"/?b"),
        (b"/login?next=/plm/api/a", b"https://plm.example.com/login?next=/plm/api/a"),
        (b"/plm/apiary", b"https://plm.example.com/plm/apiary"),
        (b"/plm/api/../../login", b"https://plm.example.com/plm/api/../../login"),
        (b"/plm/api/./a", b"https://plm.example.com/plm/api/./a"),
        (b"/plm/api/..", b"https://plm.example.com/plm/api/.."),
        (b"/plm/api/.hidden/a..b", b"/.hidden/a..b"),
        (b"//plm.example.com/login", b"https://plm.example.com/login"),
        # what is left may not name a host
        (b"/plm/api//evil.example/x", HERE + b"//evil.example/x"),
        (b"https://plm.example.com/plm/api//evil.example/x", HERE + b"//evil.example/x"),
    ],
)
def test_redirect_within_the_upstream_leads_back_to_the_reverse_port(value: bytes, expected: bytes) -> None:
    """However the upstream writes its own URL; a path of its other parts becomes a URL that leads there."""
    assert inward(b"Location", value) == expected


@pytest.mark.parametrize(
    "value",
    [
        b"https://plm.example.com/plm/apiary/a",
        b"https://plm.example.com/plm/api.evil/a",
        b"https://plm.example.com/",
        b"https://plm.example.com/plm/API/a",
        b"https://plm.example.com/plm/api/../x",
        b"https://plm.example.com/plm/api\\a",
        b"https://plm.example.com/plm/api@evil",
        b"https://plm.example.com.evil/plm/api/a",
        b"https://plm.example.com@evil.example/plm/api/a",
        b"https://user@plm.example.com/plm/api/a",
        b"https://plm.example.com\\@evil.example/plm/api/a",
        b"https://plm.example.com:8443/plm/api/a",
        b"http://plm.example.com:8080/plm/api/a",
        b"https://plm.example.com:80/plm/api/a",
        b"https://plm.example.com:x/plm/api/a",
        b"https://plm.example.com:443443/plm/api/a",
        b"ftp://plm.example.com/plm/api/a",
        b"//other.example/plm/api/a",
        b"https://evil.example/?https://plm.example.com/plm/api/",
        b"https:/plm/api/a",
        b"mailto:https://plm.example.com/plm/api/a",
        b" https://plm.example.com/plm/api/a",
        b"items/5",
        b"?page=2",
        b"#x",
        b"../login",
        b"",
        b"caf\xe9",
    ],
)
def test_what_names_something_else_stays(value: bytes) -> None:
    """Another host, port, path or scheme, and a relative reference: byte for byte, in every field."""
    for name in (b"Location", b"content-location", b"OData-EntityId", b"Access-Control-Allow-Origin", b"Refresh"):
        assert inward(name, value) == value
    assert inward(b"Link", b"<" + value + b'>; rel="next"') == b"<" + value + b'>; rel="next"'
    for name in (b"Destination", b"Referer", b"Origin"):
        assert outward(name, value) == value


@pytest.mark.parametrize("name", [b"Location", b"content-location", b"CONTENT-LOCATION", b"OData-EntityId"])
def test_fields_that_hold_one_url(name: bytes) -> None:
    """Their names are compared without case and keep their spelling."""
    assert inward(name, b"https://plm.example.com/plm/api/Parts('7')") == HERE + b"/Parts('7')"


def test_no_other_field_is_looked_into() -> None:
    """A URL in a field that is not on the list is nobody's business."""
    value = b"https://plm.example.com/plm/api/a"
    for name in (b"X-Location", b"Lock-Token", b"Alt-Svc", b"Destination", b"Referer", b"ETag"):
        assert inward(name, value) == value
    for name in (b"X-Destination", b"Cookie", b"Location", b"SOAPAction", b"Link", b"Host"):
        assert outward(name, HERE + b"/a") == HERE + b"/a"


def test_what_has_nothing_to_map_is_the_same_object() -> None:
    """No copy is made of the fields of most messages."""
    found = mirrored(PLM, (b"Accept", b"*/*"))
    fields: Fields = ((b"Content-Type", b"text/plain"),)
    assert found.inward(200, fields)[0] is fields
    assert found.outward() is found.request


@pytest.mark.parametrize(
    ("origin", "value", "expected"),
    [
        (WHOLE, b"https://plm.example.com", HERE + b"/"),
        (WHOLE, b"https://plm.example.com/a/../b", HERE + b"/a/../b"),
        (WHOLE, b"/a/../b", b"/a/../b"),
        (WHOLE, b"//other.example/a", b"//other.example/a"),
        (ODD, b"https://plm.example.com:8443/plm/a", HERE + b"/a"),
        (ODD, b"http://plm.example.com:8443/plm/a", HERE + b"/a"),
        (ODD, b"//plm.example.com:8443/plm/a", HERE + b"/a"),
        (ODD, b"https://plm.example.com/plm/a", None),
        (ODD, b"http://plm.example.com/plm/a", None),
        (ODD, b"https://plm.example.com:84430/plm/a", None),
        (ODD, b"/x", b"https://plm.example.com:8443/x"),
        (PLAIN, b"http://plm.example.com/plm/a", HERE + b"/a"),
        (PLAIN, b"//plm.example.com/plm/a", HERE + b"/a"),
        (PLAIN, b"https://plm.example.com/plm/a", None),
        (parse_base_url("https://[2001:db8::1]/plm"), b"https://[2001:DB8::1]:443/plm/a", HERE + b"/a"),
    ],
)
def test_other_base_urls(origin: Origin, value: bytes, expected: bytes | None) -> None:
    """Without a path, with a port of its own, over plain HTTP, at an IPv6 address."""
    assert inward(b"Location", value, origin) == (value if expected is None else expected)


@pytest.mark.parametrize(
    ("host", "base"),
    [
        (b"localhost:8090", b"http://localhost:8090"),
        (b"LocalHost:8090", b"http://LocalHost:8090"),
        (b"localhost", b"http://localhost"),
        (b"localhost:80", b"http://localhost"),
        (b"localhost:", b"http://localhost"),
        (b"[::1]:8090", b"http://[::1]:8090"),
        (b"[::1]", b"http://[::1]"),
        (b"plm.example.com:8090", b"http://plm.example.com:8090"),
        (b"2130706433", b"http://2130706433"),
        (b"", b"http://localhost"),
        (None, b"http://localhost"),
    ],
)
def test_client_of_a_reverse_port_has_the_name_that_it_used(host: bytes | None, base: bytes) -> None:
    """Its own Host, as it spelled it; `localhost` when it sent none."""
    fields: Fields = () if host is None else ((b"hOST", host),)
    found = Mirror(
        Request(
            method=b"GET",
            scheme="https",
            host="plm.example.com",
            port=443,
            target=b"/",
            fields=fields,
            length=0,
            upstream="plm",
        ),
        PLM,
        NO_LINKS,
    )
    answer, _ = found.inward(302, ((b"Location", b"https://plm.example.com/plm/api/a"),))
    assert answer == ((b"Location", base + b"/a"),)


def test_upgraded_client_stays_with_http() -> None:
    """It knows the upstream as http://, at the same host and the port that it used; paths are the same."""
    assert inward(b"Location", b"https://plm.example.com/plm/api/a", reverse=False) == (
        b"http://plm.example.com/plm/api/a"
    )
    assert inward(b"Location", b"https://plm.example.com:443/plm/api/a", reverse=False) == (
        b"http://plm.example.com/plm/api/a"
    )
    odd = b"https://plm.example.com:8443/plm/a"
    assert inward(b"Location", odd, ODD, reverse=False, port=8443) == b"http://plm.example.com:8443/plm/a"
    assert inward(b"Location", b"//plm.example.com/login", reverse=False) == b"https://plm.example.com/login"
    for value in (b"/plm/api/a", b"/login", b"https://plm.example.com/login", b"a", b"//other.example/"):
        assert inward(b"Location", value, reverse=False) == value
    assert outward(b"Destination", b"http://plm.example.com/plm/api/b", reverse=False) == (
        b"https://plm.example.com/plm/api/b"
    )
    assert outward(b"Destination", b"/plm/api/b", reverse=False) == b"/plm/api/b"


def test_names_that_are_the_same_on_both_sides_need_no_mirror() -> None:
    """Inside intercepted TLS, and with https:// in absolute form."""
    assert mirror(request(reverse=False, scheme="https", port=443), PLM, NO_LINKS) is None
    assert mirror(request(reverse=False), PLAIN, NO_LINKS) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b'<https://plm.example.com/plm/api/p?page=2>; rel="next"', b'<%b/p?page=2>; rel="next"' % HERE),
        (
            b'<https://plm.example.com/plm/api/a>; rel=prev; title="a, <b>", </plm/api/b,c>;rel=next,<https://o.example/>',
            b'<%b/a>; rel=prev; title="a, <b>", </b,c>;rel=next,<https://o.example/>' % HERE,
        ),
        (b'<d>; title="</plm/api/x>"', b'<d>; title="</plm/api/x>"'),
        (b'<d>; title="\\"</plm/api/x>", </plm/api/y>', b'<d>; title="\\"</plm/api/x>", </y>'),
        (b'<d>; title="open </plm/api/x>', b'<d>; title="open </plm/api/x>'),
        (b"</login>; rel=login", b"<https://plm.example.com/login>; rel=login"),
        (b"<>", b"<>"),
        (b"</plm/api/x", b"</plm/api/x"),
    ],
)
def test_links(value: bytes, expected: bytes) -> None:
    """Each target in a field is mapped (RFC 8288), no quoted text is."""
    assert inward(b"Link", value) == expected


def test_every_line_of_a_field_is_mapped() -> None:
    """Fields that stand several times keep their order."""
    lines = (
        (b"Link", b"</plm/api/a>"),
        (b"X", b"1"),
        (b"link", b"</plm/api/b>"),
        (b"Set-Cookie", b"a=1; Path=/plm/api"),
    )
    assert mirrored().inward(200, lines)[0] == (
        (b"Link", b"</a>"),
        (b"X", b"1"),
        (b"link", b"</b>"),
        (b"Set-Cookie", b"a=1; Path=/"),
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"5; url=https://plm.example.com/plm/api/a", b"5; url=%b/a" % HERE),
        (b"5;URL=/plm/api/a", b"5;URL=/a"),
        (b"0, url='https://plm.example.com/plm/api/a'", b"0, url='%b/a'" % HERE),
        (b"0; url='https://plm.example.com/plm/api'", b"0; url='%b/'" % HERE),
        (b'0; url="/plm/api/a" x', b'0; url="/a" x'),
        (b"0; url='/plm/api", b"0; url='/"),
        (b"1.5 ; url = /login", b"1.5 ; url = https://plm.example.com/login"),
        (b"0; /plm/api/a", b"0; /a"),
        (b"30", b"30"),
        (b"5; url=next", b"5; url=next"),
        (b"5;../x", b"5;../x"),
        (b"url=/plm/api/a", b"url=/plm/api/a"),
    ],
)
def test_refresh(value: bytes, expected: bytes) -> None:
    """As browsers read it: with or without quotes and with or without the name of the parameter."""
    assert inward(b"Refresh", value) == expected


@pytest.mark.parametrize(
    ("value", "reverse", "upgraded"),
    [
        (b"sid=a; Path=/; Secure; HttpOnly", b"sid=a; Path=/; HttpOnly", b"sid=a; Path=/; HttpOnly"),
        (b"sid=a;secure;SameSite=None;Partitioned", b"sid=a", b"sid=a"),
        (b"sid=a; SECURE ; SameSite=Lax", b"sid=a; SameSite=Lax", b"sid=a; SameSite=Lax"),
        (b"sid=a; Path=/plm/api", b"sid=a; Path=/", None),
        (b"sid=a; path = /plm/api/", b"sid=a; path =/", None),
        (b"sid=a; Path=/plm/api/v1", b"sid=a; Path=/v1", None),
        (b"sid=a; Path=/plm", b"sid=a; Path=/", None),
        (b"sid=a; Path=/plm/", b"sid=a; Path=/", None),
        (b"sid=a; Path=/plm/apiary", None, None),
        (b"sid=a; Path=/other", None, None),
        (b"sid=a; Path=", None, None),
        (b"sid=a; Path=plm/api", None, None),
        (b"sid=a; Path=/", None, None),
        (b"sid=a; Domain=plm.example.com", b"sid=a", None),
        (b"sid=a; domain=.EXAMPLE.com; Max-Age=5", b"sid=a; Max-Age=5", None),
        (b"sid=a; Domain=other.example", None, None),
        (b"sid=a; Domain=xample.com", None, None),
        (b"sid=a; Domain=", None, None),
        (b"Secure=1; Path=/", None, None),
        (b"path=/plm/api; HttpOnly", None, None),
        (b"sid=secure", None, None),
        (b"sid=a; Comment=example.com; Priority=None", None, None),
        (b"sid=a; Expires=Wed, 21 Oct 2037 07:28:00 GMT;; x=/plm/api", None, None),
        (b"__Host-sid=a; Path=/; Secure", b"__Host-sid=a; Path=/", b"__Host-sid=a; Path=/"),
        (b"", None, None),
    ],
)
def test_cookies_come_back_from_where_the_client_is(
    value: bytes, reverse: bytes | None, upgraded: bytes | None
) -> None:
    """What keeps a jar from sending a cookie back to the client's name of the upstream goes; None: nothing does."""
    assert inward(b"Set-Cookie", value) == (value if reverse is None else reverse)
    assert inward(b"Set-Cookie", value, reverse=False) == (value if upgraded is None else upgraded)


def test_cookie_of_a_plain_upstream_stays_secure() -> None:
    """No jar would send it back without us either."""
    assert inward(b"Set-Cookie", b"a=1; Secure", PLAIN) == b"a=1; Secure"


def test_domain_stays_for_a_client_that_is_in_it() -> None:
    """A script may reach the reverse port by a name of the upstream's own domain."""
    value = b"a=1; Domain=example.com"
    found = Mirror(request(), PLM, NO_LINKS)
    near = Mirror(
        Request(**_values(found.request) | {"fields": ((b"Host", b"PLM.local.example.com:8090"),)}), PLM, NO_LINKS
    )
    assert near.inward(200, ((b"Set-Cookie", value),))[0] == ((b"Set-Cookie", value),)


def _values(request: Request) -> dict:
    return {name: getattr(request, name) for name in Request.__slots__}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"https://plm.example.com", HERE),
        (b"https://plm.example.com:443", HERE),
        (b"http://plm.example.com", HERE),
        (b"https://wiki.example", b"https://wiki.example"),
        (b"https://plm.example.com?x", b"https://plm.example.com?x"),
        (b"*", b"*"),
        (b"null", b"null"),
        (b"//plm.example.com", b"//plm.example.com"),
        (b"https://plm.example.com/", b"https://plm.example.com/"),
    ],
)
def test_page_of_the_reverse_port_is_a_page_of_the_upstream(value: bytes, expected: bytes) -> None:
    """An origin has no path; the one that the upstream allows is the one that the page is from."""
    assert inward(b"Access-Control-Allow-Origin", value) == expected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (b"Destination", HERE + b"/b%20c", b"https://plm.example.com/plm/api/b%20c"),
        (b"Destination", b"HTTP://127.0.0.1:8090/b", b"https://plm.example.com/plm/api/b"),
        (b"Destination", b"/b", b"/plm/api/b"),
        (b"destination", HERE, b"https://plm.example.com/plm/api/"),
        (b"Referer", HERE + b"/a?q#f", b"https://plm.example.com/plm/api/a?q#f"),
        (b"Origin", HERE, b"https://plm.example.com"),
        (b"If", b"(<urn:uuid:1>)", b"(<urn:uuid:1>)"),
        (
            b"If",
            b'<%b/a> (<%b/lock> ["e)<x>"]) </b> (Not <DAV:no-lock>)' % (HERE, HERE),
            b'<https://plm.example.com/plm/api/a> (<%b/lock> ["e)<x>"]) </plm/api/b> (Not <DAV:no-lock>)' % HERE,
        ),
        # not the client's name of the upstream
        (b"Destination", b"http://127.0.0.1:8091/b", None),
        (b"Destination", b"https://127.0.0.1:8090/b", None),
        (b"Destination", b"http://localhost:8090/b", None),
        (b"Destination", b"https://plm.example.com/plm/api/b", None),
        (b"Destination", HERE + b"/../admin", None),
        (b"Referer", b"https://wiki.example/page", None),
        (b"Origin", b"null", None),
    ],
)
def test_request_names_the_upstream_by_its_own_name(name: bytes, value: bytes, expected: bytes | None) -> None:
    """What a script made of its base URL; a path that may leave the base path stays foreign to the upstream."""
    assert outward(name, value) == (value if expected is None else expected)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.sampled_from(["a", "b.c", "%2F", "", "x;y", "~"]), max_size=4).map(lambda s: "/" + "/".join(s)),
    st.sampled_from(["", "?q=/plm/api", "?x#f"]),
    st.sampled_from(["https://plm.example.com", "http://PLM.example.com", "//plm.example.com:443", ""]),
)
@example("//evil.example/x", "", "")
def test_mapped_redirect_leads_to_the_same_place(path: str, rest: str, root: str) -> None:
    """Followed over the reverse port, what a client gets for a URL of the upstream is routed to that URL's target."""
    value = f"{root}/plm/api{path}{rest}".encode()
    location = inward(b"Location", value)
    followed = location.removeprefix(HERE)
    assert followed.startswith(b"/")
    assert location != followed or not followed.startswith(b"//")

    way = Routes({"plm": PLM}).find(request(target=followed.partition(b"#")[0]))
    assert way.target == f"/plm/api{path}{rest}".partition("#")[0].encode()
    assert outward(b"Referer", HERE + followed) == b"https://plm.example.com" + f"/plm/api{path}{rest}".encode()


@pytest.mark.parametrize(
    "unit", [b"<", b">", b'"', b"\\", b'"\\', b"(", b"(<", b'("', b";", b" ", b"url=", b"//", b"a"]
)
@pytest.mark.parametrize("name", [b"Link", b"If", b"Refresh", b"Location", b"Set-Cookie"])
def test_a_hostile_value_costs_no_more_than_its_length(name: bytes, unit: bytes) -> None:
    """64 KiB of anything are looked at about once; in quadratic time they would take minutes."""
    value = unit * ((64 << 10) // len(unit))
    begun = time.process_time()
    inward(name, value)
    outward(name, value)
    assert time.process_time() - begun < 5


FORWARDED = LinkPolicy(forwarded=True)


def names_told(origin: Origin, *fields: tuple[bytes, bytes], **values) -> Fields:
    return mirrored(origin, *fields, links=FORWARDED, **values).outward().fields[1:]


def test_forwarded_tells_the_name_that_the_client_uses() -> None:
    """In place of what it sent itself, in any spelling; the prefix only where the base URL has a path."""
    theirs = ((b"X-Forwarded-Host", b"a"), (b"x_forwarded_proto", b"b"), (b"X-Forwarded-Prefix", b"/c"))
    kept = (b"X-Forwarded-For", b"10.0.0.1")
    host, proto = (b"X-Forwarded-Host", b"127.0.0.1:8090"), (b"X-Forwarded-Proto", b"http")
    assert names_told(PLM, *theirs, kept) == (kept, host, proto, (b"X-Forwarded-Prefix", b"/"))
    assert names_told(WHOLE, *theirs) == (host, proto)


def test_forwarded_is_for_the_reverse_port() -> None:
    """On the proxy port, and without the setting, what the client sent stays."""
    theirs = (b"X-Forwarded-Host", b"a")
    assert names_told(PLM, theirs, reverse=False) == (theirs,)
    assert mirrored(PLM, theirs).outward().fields[1:] == (theirs,)


REWRITE = LinkPolicy(rewrite=frozenset({b"application/json", b"text/xml"}))
JSON = (b"Content-Type", b"Application/JSON; charset=utf-8")


def test_rewriting_asks_for_plain_answers() -> None:
    """On the reverse port, in place of every Accept-Encoding of the client."""
    theirs = ((b"Accept-Encoding", b"gzip"), (b"A", b"1"), (b"accept_encoding", b"br"))
    identity = (b"Accept-Encoding", b"identity")
    assert mirrored(PLM, *theirs, links=REWRITE).outward().fields[1:] == ((b"A", b"1"), identity)
    assert mirrored(PLM, links=REWRITE).outward().fields[1:] == (identity,)
    assert mirrored(PLM, *theirs, links=REWRITE, reverse=False).outward().fields[1:] == theirs


def test_rewritten_answer_says_nothing_of_bytes_that_are_others_now() -> None:
    """Length, digests and ranges go; a strong ETag stays, for If-Match."""
    names = (b"Content-Length", b"content-md5", b"Digest", b"Content-Digest", b"Repr-Digest", b"Accept-Ranges")
    tag = (b"ETag", b'"7"')
    fields, rewriter = mirrored(links=REWRITE).inward(200, (JSON, *((name, b"1") for name in names), tag))
    assert fields == (JSON, tag)
    assert rewriter is not None
    assert rewriter.feed(b'"https://plm.example.com/plm/api/a"') + rewriter.end() == b'"%b/a"' % HERE


@pytest.mark.parametrize(
    ("status", "fields", "reverse"),
    [
        (206, (JSON,), True),
        (200, (JSON, (b"Content-Encoding", b"gzip")), True),
        (200, (JSON, (b"content-encoding", b"identity, br")), True),
        (200, ((b"Content-Type", b"application/json+x"),), True),
        (200, ((b"Content-Type", b"text/json"),), True),
        (200, (), True),
        (200, (JSON,), False),
    ],
)
def test_answer_that_is_not_rewritten_keeps_its_length(status: int, fields: Fields, reverse: bool) -> None:
    """A part, a compressed body, another media type, none, and all of the proxy port."""
    sized = (*fields, (b"Content-Length", b"5"))
    assert mirrored(links=REWRITE, reverse=reverse).inward(status, sized) == (sized, None)


def test_uncompressed_by_its_own_word_is_rewritten() -> None:
    """`Content-Encoding: identity` is none."""
    assert mirrored(links=REWRITE).inward(200, (JSON, (b"Content-Encoding", b"Identity")))[1] is not None
