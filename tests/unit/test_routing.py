"""Which upstream gets the credential: decided by what would be connected to, whatever the target looks like."""

import dataclasses
import itertools
import re
import sys
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar.errors import Reason, Refusal
from sidecar.policy.hosts import normal_host
from sidecar.policy.message import Request
from sidecar.policy.paths import as_served, names
from sidecar.policy.routing import Origin, Route, Routes, parse_base_url
from sidecar.proxy.head import parse_head
from tests.canary import WORD, canary

GOOD = parse_base_url("https://api.good.example/v1")
ORIGINS = {
    "good": GOOD,
    "port": parse_base_url("https://api.good.example:8443"),
    "plain": parse_base_url("http://plain.example"),
    "six": parse_base_url("https://[2001:db8::1]/v1"),
    "mapped": parse_base_url("https://[::ffff:192.0.2.7]"),
    "four": parse_base_url("https://192.0.2.7:9443"),
    "idn": parse_base_url("https://bücher.example"),
    "sharp": parse_base_url("https://straße.example"),
}


def request(target: bytes, scheme: str = "https", host: str = "api.good.example", port: int = 443, upstream=None):
    return Request(
        method=b"GET", scheme=scheme, host=host, port=port, target=target, fields=(), length=0, upstream=upstream
    )


def route(request: Request, origins=ORIGINS) -> Route:
    return Routes(origins).find(request)


def routed(url: str, origins=ORIGINS) -> Route:
    """Return the route of a target as it comes over the proxy port; the Host field says something else."""
    return route(
        parse_head([b"GET %b HTTP/1.1" % url.encode(), b"Host: api.good.example"], None, None).request, origins
    )


def refused(request: Request, origins=ORIGINS) -> Refusal:
    with pytest.raises(Refusal) as caught:
        route(request, origins)
    return caught.value


def outcome(request: Request) -> Route | Refusal:
    try:
        return route(request, ORIGINS)
    except Refusal as refusal:
        return refusal


REACHED = [
    ("https://api.good.example/v1", "good", b"/v1"),
    ("https://api.good.example/v1/", "good", b"/v1/"),
    ("https://api.good.example/v1/items?a=/../../b", "good", b"/v1/items?a=/../../b"),
    ("https://api.good.example/v1?", "good", b"/v1?"),
    ("https://api.good.example:443/v1/a", "good", b"/v1/a"),
    ("https://api.good.example:/v1/a", "good", b"/v1/a"),
    ("https://api.good.example:00443/v1/a", "good", b"/v1/a"),
    ("HTTPS://API.Good.Example/v1/a", "good", b"/v1/a"),
    ("https://api.good.example./v1/a", "good", b"/v1/a"),
    ("http://api.good.example/v1/a", "good", b"/v1/a"),
    ("http://api.good.example:80/v1/a", "good", b"/v1/a"),
    ("http://api.good.example:443/v1/a", "good", b"/v1/a"),
    ("https://evil.example@api.good.example/v1/a", "good", b"/v1/a"),
    ("https://user:CANARY-p@ss@api.good.example/v1/a", "good", b"/v1/a"),
    ("https://api.good.example:8443", "port", b"/"),
    ("https://api.good.example:8443?a", "port", b"/?a"),
    ("http://api.good.example:8443/../x", "port", b"/../x"),
    ("http://plain.example/x", "plain", b"/x"),
    ("https://[2001:db8::1]/v1/a", "six", b"/v1/a"),
    ("https://[2001:DB8:0:0:0:0:0:1]/v1/a", "six", b"/v1/a"),
    ("https://[2001:db8:0::0.0.0.1]:443/v1/a", "six", b"/v1/a"),
    ("https://[::ffff:c000:207]/", "mapped", b"/"),
    ("https://192.0.2.7:9443/", "four", b"/"),
    ("https://xn--bcher-kva.example/", "idn", b"/"),
    ("https://XN--BCHER-KVA.example/", "idn", b"/"),
    ("https://xn--STRAE-oqa.example./", "sharp", b"/"),
]

HOSTILE = [
    # another host that looks like ours
    "https://evil.example/v1/a",
    "https://evil-api.good.example/v1/a",
    "https://evilapi.good.example/v1/a",
    "https://api.good.example.evil.example/v1/a",
    "https://good.example/v1/a",
    "https://x.api.good.example/v1/a",
    "https://api.good.exampl/v1/a",
    "https://api.good.examplee/v1/a",
    "https://api_good.example/v1/a",
    "https://.api.good.example/v1/a",
    "https://api..good.example/v1/a",
    "https://api.good.example../v1/a",
    "https://api.good.example%2e/v1/a",
    "https://api.good.example%00.evil.example/v1/a",
    "https://api%2egood%2eexample/v1/a",
    "https://api.good.example,evil.example/v1/a",
    "https://*.good.example/v1/a",
    "https://xn--api.good.example/v1/a",
    "https://api.good.exampl\u0435/v1/a",  # a Cyrillic letter
    "https://\uff41pi.good.example/v1/a",  # full width
    "https://api\u3002good\u3002example/v1/a",
    "https://api.good.example\u00ad/v1/a",
    "https://b\u00fccher.example/",  # as UTF-8 bytes: not what DNS takes
    "https://b%c3%bccher.example/",
    "https://stra\u00dfe.example/",
    "https://strasse.example/",  # what IDNA 2003 made of it: another host
    # userinfo and what tries to look like it
    "https://api.good.example@evil.example/v1/a",
    "https://api.good.example:443@evil.example/v1/a",
    "https://api.good.example%40evil.example/v1/a",
    "https://evil.example/v1@api.good.example/v1/a",
    "https://evil.example?@api.good.example/v1/a",
    "https://evil.example#@api.good.example/v1/a",
    "https://evil.example\\@api.good.example/v1/a",
    "https://api.good.example\\@evil.example/v1/a",
    "https://api.good.example\\.evil.example/v1/a",
    "https://api.good.example#@evil.example/v1/a",
    "https://@/v1/a",
    # ports and schemes
    "https://api.good.example:444/v1/a",
    "https://api.good.example:80/v1/a",
    "https://api.good.example:0/v1/a",
    "https://api.good.example:65979/v1/a",  # 443 + 65536
    "https://api.good.example:-443/v1/a",
    "https://api.good.example:+443/v1/a",
    "https://api.good.example:443:443/v1/a",
    "https://api.good.example: 443/v1/a",
    "https://api.good.example:４４３/v1/a",
    "http://api.good.example:8080/v1/a",
    "https://plain.example/x",
    "https://plain.example:80/x",
    "wss://api.good.example/v1/a",
    "ftp://api.good.example/v1/a",
    "httpss://api.good.example/v1/a",
    "https:api.good.example/v1/a",
    "https:/api.good.example/v1/a",
    "https:///api.good.example/v1/a",
    "//api.good.example/v1/a",
    "/v1/a",
    "api.good.example:443",
    "*",
    # other spellings of addresses: what a resolver makes of them is not ours to guess
    "https://3221225991:9443/",
    "https://0xc0000207:9443/",
    "https://0300.0.2.7:9443/",
    "https://192.0.519:9443/",
    "https://192.0.2.7/",
    "https://192.0.2.007:9443/",
    "https://[::ffff:192.0.2.7]:9443/",
    "https://[2001:db8::2]/v1/a",
    "https://[2001:db8::1%25eth0]/v1/a",
    "https://[2001:db8::1/v1/a",
    "https://2001:db8::1/v1/a",
    "https://[2001:db8::1]x/v1/a",
    "https://[[2001:db8::1]]/v1/a",
    "https://[1::2::3]/v1/a",
    "https://[192.0.2.7]:9443/",
    "https://[v1.a]/",
    # beside the base path
    "https://api.good.example",
    "https://api.good.example/",
    "https://api.good.example/v2/a",
    "https://api.good.example/v10/a",
    "https://api.good.example/V1/a",
    "https://api.good.example/v1;x/a",
    "https://api.good.example/v1%2fa",
    "https://api.good.example/v1\\a",
    "https://api.good.example//v1/a",
    "https://api.good.example/./v1/a",
    "https://api.good.example/x/../v1/a",
    "https://api.good.example/%761/a",
    "https://api.good.example?/v1/a",
    "https://api.good.example/v1#a",
]

# Each leaves /v1 as some server reads it; written below the base path.
ESCAPES = [
    b"/..",
    b"/../",
    b"/../secret",
    b"/../v2/secret",
    b"/a/../../secret",
    b"/./../secret",
    b"/.//../secret",
    b"//../secret",
    b"/..//secret",
    b"/../v1/../secret",
    b"/../v1/a",
    b"/%2e%2e/secret",
    b"/%2E%2e/secret",
    b"/.%2e/secret",
    b"/%2e./secret",
    b"/%252e%252e/secret",
    b"/%25252e%25252e/secret",
    b"/%2525252525252e%2525252525252e/secret",
    b"/%252525252525252561/../a",
    b"/..%2fsecret",
    b"/..%2Fsecret",
    b"/..%252fsecret",
    b"/%2e%2e%2fsecret",
    b"/a%2f..%2f..%2fsecret",
    b"/..\\secret",
    b"/..%5csecret",
    b"/..%255csecret",
    b"/a\\..\\..\\secret",
    b"/..;/secret",
    b"/..;x=1/secret",
    b"/..;",
    b"/..%3b/secret",
    b"/..%3bx/secret",
    b"/%2e%2e;%2fsecret",
    b"/;/../secret",
    b"/;x/../secret",
    b"/.;/../secret",
    b"/;a=b/..;c=d/secret",
    b"/...",  # old servers take more dots for more steps
    b"/..../secret",
    b"/%2e%2e%2e/secret",
    b"/..#",
    b"/..#/secret",
    b"/..%23/secret",
    b"/..%3f/secret",
    b"/..%3fx=1",
    b"/..%2500/secret",
    b"/..%2500.js",
    b"/..%u0000/secret",
    b"/..%c0%80.js",
    b"/..%20/secret",
    b"/.%09./secret",
    b"/.%0d%0a./secret",
    b"/%20../secret",
    b"/..%7f/secret",
    b"/%20/../secret",
    b"/%c0%ae%c0%ae/secret",
    b"/a/%c0%ae%c0%ae%c0%af%c0%ae%c0%ae%c0%afsecret",
    b"/..%c0%afsecret",
    b"/..%c1%9csecret",
    b"/%e0%80%ae%e0%80%ae/secret",
    b"/%f0%80%80%ae%f0%80%80%ae/secret",
    b"/\xc0\xae\xc0\xae/secret",
    b"/%u002e%u002e/secret",
    b"/%U002E%u002e/secret",
    b"/..%u2215secret",
    b"/%uff0e%uff0e/secret",
    b"/..%u002fsecret",
    b"/..%u2216secret",
    b"/..%u2044secret",
    b"/..%uff0fsecret",
    b"/..%uff3csecret",
    b"/..%u00a5secret",
    b"/..%u20a9secret",
    b"/..%uEFC8secret",
    b"/..%uF025secret",
    b"/%u2024%ufe52/secret",
    b"/%u2025/secret",
    b"/%u2026/secret",
    b"/..%ufe68secret",
    b"/%u002525%u0032e./secret",
    b"/%25u002e%25u002e/secret",
    b"/%2525u002e%25252e/secret",
    b"/..%u003b/secret",
    b"/.%u0009./secret",
    b"/%c0%ae%u002e/secret",
    b"/%25c0%25ae%252e/secret",
    b"/%c0%a52e./secret",
    b"/%c0%2e%c0%2e/secret",
    b"/..%c0%2fsecret",
    b"/..%c0%5csecret",
    b"/..%c1%1csecret",
    b"/..%c1%afsecret",
    b"/..%c0%bb/secret",
    b"/..%f8%80%80%80%afsecret",
    b"/..%fc%80%80%80%80%afsecret",
    b"/..%f0%8f%bc%8fsecret",
    # as UTF-8: what best fit or compatibility turns into a dot or a slash
    b"/%ef%bc%8e%ef%bc%8e/secret",
    b"/\xef\xbc\x8e\xef\xbc\x8e/secret",
    b"/..%ef%bc%8fsecret",
    b"/..%e2%88%95secret",
    b"/..%e2%81%84secret",
    b"/..%c2%a5secret",
    b"/%e2%80%a5/secret",
    b"/%ef%bc%852e%ef%bc%852e/secret",
    # what is a separator to one server is a letter to another
    b"/a%2fb/../../secret",
    b"/a%2fb/%2e%2e/%2e%2e/secret",
    b"/a%252fb/../../secret",
    b"/a\\b/../../secret",
    b"/a%5cb/../../secret",
    b"/a%2f/../../secret",
    b"/;%2fa/../secret",
    b"/a%2f%2f%2f/../../secret",
    b"/a//../../../secret",
]

INSIDE = [
    b"",
    b"/",
    b"?",
    b"?x=../../y",
    b"/a?/../..",
    b"/a/../b",
    b"/a/b/../../c",
    b"/a/%2e%2e/b",
    b"/a/./b//c/",
    b"//",
    b"//a",
    b"/.",
    b"/.a",
    b"/..a",
    b"/a..",
    b"/a..b/c",
    b"/...a",
    b"/.well-known/x",
    b"/a;x=1;y=2/b",
    b"/a;..",
    b"/;x",
    b"/a%2fb/c",
    b"/a%252fb",
    b"/a%25252fb",
    b"/100%",
    b"/%zz/%",
    b"/a%20b",
    b"/%E2%82%AC/\xe2\x82\xac",
    b"/caf\xe9",
    b"/Items('a%2Fb')/$value",
    b"/http://evil.example/",
    b"/@evil.example",
    b"/a%23b%3fc",
    b"/a%5cb",
    b"/%2500",
    b"/?%00",
    # names in other charsets, and as JavaScript's escape() writes them
    b"/files/%D6%CA%C1%BF.pdf",
    b"/files/%C0%B4%D4%B4.pdf",
    b"/files/%D6%D0%CE%C4.pdf",
    b"/%C0%A5%C3%F7/%C0%AF/%C1%AF.pdf",
    b"/%C0%AE/a/../b",
    b"/caf%u00e9.pdf",
    b"/%u8d28%u91cf/%ud83d%ude00",
    b"/%u00e9%u002f%u00e9",
    b"/%u12",
    b"/%u",
    b"/%uzzzz/x",
    b"/\x95\x5c\x8e\xa6.txt",
    b"/%EF%BC%8E%EF%BC%92/%E8%B3%87%E6%96%99%EF%BC%8F%E5%9B%B3",
    b"/%C0%20%C1.txt",
    b"/a:b,c!d~e*f'g(h)+i=j&k",
]


@pytest.mark.parametrize(("url", "name", "target"), REACHED)
def test_target_reaches_its_upstream(url: str, name: str, target: bytes) -> None:
    """Every right spelling of scheme, host, port and path is served, and the target stays as it was."""
    assert routed(url) == Route(name, ORIGINS[name], target)


def test_the_tables_are_long_enough() -> None:
    """At least forty hostile forms, none twice."""
    assert len(set(HOSTILE)) == len(HOSTILE) >= 40
    assert len(set(ESCAPES)) == len(ESCAPES) >= 40


@pytest.mark.parametrize("url", HOSTILE)
def test_hostile_target_is_refused(url: str) -> None:
    """What is not exactly an upstream's scheme, host, port and base path gets no credential and no connection."""
    with pytest.raises(Refusal) as caught:
        routed(url)

    assert caught.value.reason in (Reason.NO_ROUTE, Reason.BAD_REQUEST)
    assert "evil" not in caught.value.detail


@pytest.mark.parametrize("path", ESCAPES)
@pytest.mark.parametrize("upstream", [None, "good"], ids=["proxy port", "reverse port"])
def test_path_that_may_leave_the_base_path_is_refused(path: bytes, upstream: str | None) -> None:
    """If any server could read the path as one outside, it gets no credential, on either kind of port."""
    target = path if upstream else GOOD.path + path

    assert refused(request(target, upstream=upstream)).reason is Reason.NO_ROUTE


@pytest.mark.parametrize("path", INSIDE)
def test_path_that_stays_inside_is_served_as_it_is(path: bytes) -> None:
    """Dots, escapes and empty segments that lead nowhere are the client's business, byte for byte."""
    assert route(request(GOOD.path + path), ORIGINS).target == GOOD.path + path
    if path.startswith(b"/"):
        assert route(request(path, upstream="good"), ORIGINS).target == GOOD.path + path


def test_path_may_have_been_encoded_four_times() -> None:
    """Clients and gateways encode what is encoded already; who does it once more hides something."""
    plain = "/v1/x%61"
    four, five = (plain.replace("%", "%" + "25" * count) for count in (3, 4))

    assert route(request(four.encode()), ORIGINS).target == four.encode()
    assert refused(request(five.encode())).reason is Reason.NO_ROUTE


@pytest.mark.parametrize("path", ESCAPES)
def test_without_a_base_path_every_path_is_inside(path: bytes) -> None:
    """An upstream that is a whole host takes any path as it is: nothing can leave it."""
    assert route(request(path, port=8443), ORIGINS).target == path
    assert route(request(path, upstream="port"), ORIGINS).target == path


@pytest.mark.parametrize("path", [b"/%00", b"/..%00/secret", b"/..%00.js", b"/a/b%00?x", b"/a%2f%00"])
@pytest.mark.parametrize(("upstream", "port"), [("good", 443), (None, 443), (None, 8443), (None, 9)])
def test_nul_in_a_path_is_refused(path: bytes, upstream: str | None, port: int) -> None:
    """Where one server ends the name there, another goes on; so on every port, with a base path or without."""
    target = path if upstream or port == 8443 else GOOD.path + path

    assert refused(request(target, port=port, upstream=upstream)).reason is Reason.BAD_REQUEST


def test_refusals_say_what_was_wrong() -> None:
    """The client reads why, without a word of what it sent."""
    leaves = refused(request(b"/..", upstream="good"))
    unjoined = refused(request(b"v1", upstream="good"))
    unknown = refused(request(b"/", host="evil.example"))
    hostless = refused(request(b"/", host="%"))

    assert leaves.detail == "this path leaves the base path of the upstream"
    assert unjoined.detail == "this target cannot be joined to the base path of the upstream"
    assert unknown.detail == "no upstream is configured for this scheme, host, port and path"
    assert hostless.detail == "this target has no valid host"


def _readings(path: str) -> set[str]:
    """Return every normal form that a mixture of readings gives: a model that is slow, and knows no shortcuts.

    Decoding so many times, of slashes or not, before or after dot segments go, with disguises seen through or
    not; back slashes; parameters; empty segments; control characters.
    """
    found = set()
    for decodings, disguises, slashes, back, parameters, empty, controls in itertools.product(
        range(4), *[(False, True)] * 6
    ):
        text = path
        for _ in range(decodings):
            text = unquote(text if slashes else re.sub("%(?=2f|5c)", "%25", text, flags=re.IGNORECASE), "latin-1")
            if disguises:
                text = re.sub("|".join(DISGUISES), lambda found: DISGUISES[found[0]], text)
        text = text.replace("\\", "/") if back else text
        text = re.sub(r"[\x00-\x20\x7f]", "", text) if controls else text
        parts: list[str] = []
        for segment in text.split("/")[1:]:
            name = segment.partition(";")[0] if parameters else segment
            if name == "..":
                del parts[-1:]
            elif name != "." and (name or not empty):
                parts.append(name)
        found.add("/" + "/".join(parts))
    return found


DISGUISES = {"\xc0\xae": ".", "\xc0\xaf": "/", "%u002e": ".", "%uff0f": "/", "\xc0\xa5": "%", "%u003b": ";"}
PIECES = st.sampled_from(
    [
        "%c0%ae",
        "%25c0%af",
        "%u002e",
        "%uff0f",
        "%c0%a52e",
        "%u003b",
        "/",
        "a",
        "v1",
        ".",
        "..",
        "%2e",
        "%252E",
        "%2f",
        "%5C",
        "%252F",
        "\\",
        ";",
        "%3b",
        "%20",
        "%09",
        "%25",
        "//",
        "/../",
    ]
)


@settings(deadline=None, max_examples=400)
@given(st.lists(PIECES, max_size=9).map("".join))
@example("a%2fb/../..")
@example(";/..")
@example(";%2fa/..")
def test_routed_path_never_leaves_the_base_path(path: str) -> None:
    """Whatever is routed stays below the base path in every reading of it."""
    target = "/v1/" + path
    found = outcome(request(target.encode()))
    if isinstance(found, Refusal):
        return

    assert found.target == target.encode()
    assert [reading for reading in _readings(target) if reading != "/v1" and not reading.startswith("/v1/")] == []


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=30).filter(lambda raw: not set(raw) & set(b"?#%;\\./")), st.integers(0, 3))
def test_ordinary_path_is_always_routed(raw: bytes, decodings: int) -> None:
    """A name without dots and separators is served, however often it was encoded; what is refused is really odd."""
    name = b"x" + bytes(byte for byte in raw if 0 < byte < 0x80)
    for _ in range(decodings):
        name = quote(name).encode()

    assert route(request(b"/v1/" + name), ORIGINS).target == b"/v1/" + name


@settings(deadline=None)
@given(
    scheme=st.sampled_from(["http", "https"]),
    host=st.sampled_from(["api.good.example", "plain.example", "evil.example", "API.GOOD.example.", "", "2001:db8::1"]),
    port=st.sampled_from([1, 80, 443, 8080, 8443]),
    target=st.sampled_from([b"/", b"/v1", b"/v1/a", b"/v2"]),
)
def test_route_never_downgrades_and_never_changes_host(scheme: str, host: str, port: int, target: bytes) -> None:
    """A credential goes to the host that was asked for; to another scheme or port only by the upgrade rule."""
    way = outcome(request(target, scheme, host, port))
    if isinstance(way, Refusal):
        return
    found = way.origin

    assert found.host == normal_host(host)
    assert (scheme, found.scheme) != ("https", "http")
    assert scheme == found.scheme or port == found.port or (port, found.port) == (80, 443)
    assert scheme != found.scheme or port == found.port


@settings(deadline=None)
@given(st.text(max_size=20))
def test_no_host_makes_it_crash(host: str) -> None:
    """Any host is an upstream's or a refusal."""
    found = outcome(request(b"/", host=host, port=8443))

    assert isinstance(found, Refusal)
    assert found.reason is Reason.NO_ROUTE


UPGRADES = [
    ("https://h.example", 80, True),
    ("https://h.example", 443, True),
    ("https://h.example", 8080, False),
    ("https://h.example:8443", 8443, True),
    ("https://h.example:8443", 80, False),
    ("https://h.example:8443", 443, False),
    ("https://h.example:80", 80, True),
    ("http://h.example:8080", 8080, True),
    ("http://h.example:8080", 80, False),
]


@pytest.mark.parametrize(("base", "port", "served"), UPGRADES)
def test_http_is_upgraded_with_the_same_port_or_between_the_defaults(base: str, port: int, served: bool) -> None:
    """A client that cannot do TLS says http:// and is upgraded; a port of its own must be the upstream's."""
    origins = {"h": parse_base_url(base)}

    if served:
        assert route(request(b"/", "http", "h.example", port), origins).origin == origins["h"]
    else:
        assert refused(request(b"/", "http", "h.example", port), origins).reason is Reason.NO_ROUTE


@pytest.mark.parametrize("port", [80, 443])
def test_https_is_never_downgraded(port: int) -> None:
    """A client that asked for TLS does not get clear text because the upstream of that host has it."""
    assert refused(request(b"/", "https", "plain.example", port)).reason is Reason.NO_ROUTE


def test_upgrade_needs_the_same_host() -> None:
    """The rule is about schemes: another host is another host."""
    assert refused(request(b"/", "http", "evil.example", 80), {"h": parse_base_url("https://h.example")})


def test_exact_match_comes_before_an_upgrade() -> None:
    """Who configured both schemes gets the one that was asked for, though the other has the longer path."""
    origins = {"tls": parse_base_url("https://h.example/v1"), "clear": parse_base_url("http://h.example")}

    assert route(request(b"/v1/a", "http", "h.example", 80), origins).upstream == "clear"
    assert route(request(b"/v1/a", "https", "h.example", 443), origins).upstream == "tls"


NESTED = {
    "root": parse_base_url("https://h.example"),
    "api": parse_base_url("https://h.example/api"),
    "admin": parse_base_url("https://h.example/api/admin"),
    "other": parse_base_url("https://h.example:444/api/admin/x"),
}


@pytest.mark.parametrize("names", list(itertools.permutations(NESTED)))
def test_longest_base_path_wins(names: tuple[str, ...]) -> None:
    """However the upstreams are ordered in the file."""
    origins = {name: NESTED[name] for name in names}
    found = [
        route(request(target, host="h.example"), origins).upstream
        for target in (b"/", b"/apiary", b"/api", b"/api/x", b"/api/admin", b"/api/admin/x", b"/api/administrator")
    ]

    assert found == ["root", "root", "api", "api", "admin", "admin", "api"]


@pytest.mark.parametrize(
    "target",
    [
        b"/x/../api/admin",
        b"/x/../y",
        b"/api/%2e%2e/api/admin",
        b"/%61pi/x",
        b"//api/x",
        b"/./api/x",
        b"/api%2fx",
        b"/api;x/y",
        b"/api/ad%6din",
        b"/api/%2561dmin",
        b"/api//admin",
        b"/api/./admin/x",
        b"/api/admin;x",
        b"/api/admin%2fx",
        b"/api\\admin",
        b"/api/admin%09",
        b"/api/admin%2500x",
        b"/api/ad%u006din",
        b"/api/ad%c1%adin",
        b"/api%e2%88%95admin",
        b"/api/%EF%BD%81dmin",
        b"/api/a%2fb/../admin",
        b"/api/x/../admin",
        b"/api/;%2fx/admin",
        b"/api%2f;/;%2fx/admin",
        b"/api;%2fx/admin",
        b"/api/%c0%ae%c0%ae/admin",
    ],
)
def test_path_that_leads_from_one_upstream_into_another_is_refused(target: bytes) -> None:
    """Where upstreams nest, each has its own credential and rules: no spelling may get one by the other's."""
    refusal = refused(request(target, host="h.example"), NESTED)

    assert refusal.reason is Reason.NO_ROUTE
    assert refusal.detail == "this path leads from one upstream into another"


@pytest.mark.parametrize("target", [b"/api/admin/x/../y", b"/api/admin/x/y%2f..", b"/api/admin/%61"])
def test_innermost_upstream_is_not_bothered(target: bytes) -> None:
    """Below the longest base path there is nothing to lead into; other ports and hosts do not count."""
    assert route(request(target, host="h.example"), NESTED).upstream == "admin"


def test_a_name_may_be_the_beginning_of_what_a_server_finds() -> None:
    """One server splits a segment that another cuts at a parameter, in one and the same path."""
    origins = {"a": parse_base_url("https://h.example/a"), "c": parse_base_url("https://h.example/a/b/c")}
    target = b"/a/b%2f;/;%2fx/c"

    assert (
        refused(request(target, host="h.example"), origins).detail == "this path leads from one upstream into another"
    )


def test_upstreams_side_by_side_do_not_bother_each_other() -> None:
    """Only an upstream below the chosen one makes dot segments suspect."""
    origins = {"a": parse_base_url("https://h.example/a"), "b": parse_base_url("https://h.example/bb")}

    assert route(request(b"/a/x/../y", host="h.example"), origins).upstream == "a"


@pytest.mark.parametrize("name", [b"X-Original-URL", b"x_rewrite_url", b"X-REWRITE-URL"])
@pytest.mark.parametrize("upstream", ["api", None])
def test_field_that_means_another_path_stays_below_the_base_path(name: bytes, upstream: str | None) -> None:
    """IIS and some frameworks serve what it says instead of the target, with the credential of this upstream."""

    def served(value: bytes, names=("api", "admin")) -> bool:
        origins = {each: NESTED[each] for each in names}
        way = request(b"/x" if upstream else b"/api/x", host="h.example", upstream=upstream)
        try:
            return route(dataclasses.replace(way, fields=((b"A", b"/"), (name, value))), origins).upstream == "api"
        except Refusal as refusal:
            return refusal.reason is not Reason.NO_ROUTE

    inside = [b"/api", b"/api/y?z=/../..", b"/api/x/../y"]
    outside = [
        b"/",
        b"/apis",
        b"/other",
        b"/api/../x",
        b"/api/%2e%2e/x",
        b"api/x",
        b"https://h.example/api/x",
        b"",
        b"*",
    ]
    nested = [b"/api/admin/x", b"/api/./admin/x", b"/api/x/../admin"]
    assert [value for value in [*inside, *nested] if not served(value, ("api",))] == []
    assert [value for value in [*inside[:2], *outside, *nested] if served(value)] == inside[:2]
    assert [value for value in outside if served(value, ("api",))] == []


@pytest.mark.parametrize("value", [b"/api/x", b"api/x", b"/x/../api", b"/%61pi"])
@pytest.mark.parametrize("upstream", ["root", None])
def test_field_leads_from_no_upstream_into_another(value: bytes, upstream: str | None) -> None:
    """All of the host is this upstream's, but for what has a credential of its own."""
    sent = request(b"/x", host="h.example", upstream=upstream)
    meant = dataclasses.replace(sent, fields=((b"X-Original-URL", value),))

    assert refused(meant, NESTED).reason is Reason.NO_ROUTE
    assert route(dataclasses.replace(meant, fields=((b"X-Original-URL", b"/y"),)), NESTED).upstream == "root"


def test_without_a_base_path_a_field_means_what_it_likes() -> None:
    """All of the host is the upstream's."""
    meant = dataclasses.replace(request(b"/", port=8443), fields=((b"X-Original-URL", b"/../x"),))

    assert route(meant).upstream == "port"


INTERCEPTED = {
    "plm": parse_base_url("https://plm.example.org/api"),
    "port": parse_base_url("https://port.example.org:8443"),
    "plain": parse_base_url("http://plain.example.org"),
    "six": parse_base_url("https://[2001:db8::1]"),
    "odd": Origin("http", "odd.example.org", 443),
}


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        ("plm.example.org", 443, True),
        ("plm.example.org", 80, True),  # upgraded
        ("plm.example.org", 8080, False),
        ("plm.example.org", 444, False),
        ("port.example.org", 8443, True),
        ("port.example.org", 443, False),
        ("port.example.org", 80, False),
        ("plain.example.org", 80, True),
        ("plain.example.org", 443, False),
        ("2001:db8::1", 443, True),
        ("other.example.org", 443, False),
        ("odd.example.org", 443, True),
        ("odd.example.org", 80, False),  # only https has a second port
    ],
)
def test_connect_is_intercepted_where_an_upstream_can_be_meant(host: str, port: int, expected: bool) -> None:
    """Host and port of an upstream, and port 80 of one on 443."""
    assert Routes(INTERCEPTED).intercepts(host, port) is expected


@dataclasses.dataclass
class Scanned:
    """What a plain scan over all upstreams says: slow, and without a table."""

    origins: dict[str, Origin]

    def find(self, sent: Request) -> str | None:
        ranked = []
        for name, origin in self.origins.items():
            asked, own = (sent.scheme, sent.host, sent.port), (origin.scheme, origin.host, origin.port)
            upgraded = (
                asked[:2] == ("http", origin.host)
                and own[0] == "https"
                and (sent.port == origin.port or (sent.port, origin.port) == (80, 443))
            )
            if (asked == own or upgraded) and self.inside(sent.target, origin.path):
                ranked.append((asked == own, len(origin.path), sent.port == origin.port, name))
        if not ranked:
            return None
        name = max(ranked, key=lambda each: each[:3])[3]
        chosen = self.origins[name]
        siblings = [
            origin.path
            for origin in self.origins.values()
            if dataclasses.replace(origin, path=b"") == dataclasses.replace(chosen, path=b"")
        ]
        below = [path for path in siblings if path.startswith(chosen.path + b"/")]
        return None if any(self.leans(sent.target, path) for path in below) else name

    def inside(self, target: bytes, base: bytes) -> bool:
        path = target.partition(b"?")[0]
        if base and not (path == base or path.startswith(base + b"/")):
            return False
        depth = 0
        for found in map(names, path[len(base) + 1 :].split(b"/")):
            depth += -found.count(b"..") if b".." in found else bool(found[0])
            if base and depth < 0:
                return False
        return True

    def leans(self, target: bytes, base: bytes) -> bool:
        """Every segment is read as one name, or two, or all that the most generous server finds in it."""
        read = [names(segment) for segment in target.partition(b"?")[0].split(b"/")]
        if any(b".." in found for found in read):
            return True
        for counts in itertools.product(*(range(1, len(found) + 1) for found in read)):
            taken = [name for found, count in zip(read, counts, strict=True) for name in found[:count] if name]
            if b"/".join([b"", *taken, b""]).startswith(base + b"/"):
                return True
        return False


BASES = st.lists(st.sampled_from(["a", "b", "ab", "a.b"]), max_size=3).map(
    lambda parts: "".join(f"/{p}" for p in parts)
)
AUTHORITIES = st.sampled_from(["https://h", "http://h", "https://h:80", "https://h:8443", "https://g"])
TARGETS = st.lists(
    st.sampled_from(
        ["/", "/a", "/b", "/ab", "/a.b", "/%61", "/..", "/.", "//", "%2f", "%2fa", ";", "/;", "%5cb", "\\a", "%2e"]
    ),
    min_size=1,
    max_size=6,
).map(lambda parts: ("/" + "".join(parts).removeprefix("/")).encode())


@settings(deadline=None, max_examples=600)
@given(
    st.lists(st.tuples(AUTHORITIES, BASES).map("".join), min_size=1, max_size=6, unique=True),
    st.sampled_from(["http", "https"]),
    st.sampled_from(["h", "g"]),
    st.sampled_from([80, 443, 8443]),
    TARGETS,
)
@example(["https://h/a", "https://h/a/b/ab"], "https", "h", 443, b"/a/b%2f;/;%2fx/ab")
@example(["https://h/a", "https://h:80"], "http", "h", 80, b"/a")
def test_table_says_what_a_scan_says(urls: list[str], scheme: str, host: str, port: int, target: bytes) -> None:
    """However upstreams nest and whatever a target hides, looking up is only faster."""
    origins = {f"u{number}": parse_base_url(url) for number, url in enumerate(urls)}
    sent = request(target, scheme, host, port)
    try:
        found = route(sent, origins).upstream
    except Refusal:
        found = None

    assert found == Scanned(origins).find(sent)


def test_a_thousand_upstreams_cost_what_one_does() -> None:
    """Of other hosts, or of one host with a thousand base paths: none of them is looked at but the right one."""
    hosts = {f"h{number}": parse_base_url(f"https://h{number}.example/api") for number in range(1000)}
    paths = {f"p{number}": parse_base_url(f"https://h.example/t{number}/api") for number in range(1000)}
    table = Routes(hosts | paths)

    def lines(sent: Request) -> int:
        """Return how many lines of code are run for *sent*."""
        count = 0

        def trace(*_: object) -> object:
            nonlocal count
            count += 1
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            table.find(sent)
        finally:
            sys.settrace(before)
        return count

    for path in (b"/api/a%20b", b"/api/a"):
        assert lines(request(path, host="h999.example")) < 200
        assert lines(request(b"/t999" + path, host="h.example")) < 200


@pytest.mark.parametrize(
    ("base", "target", "joined"),
    [
        ("https://h.example", b"/a", b"/a"),
        ("https://h.example", b"//a", b"//a"),
        ("https://h.example/", b"/a", b"/a"),
        ("https://h.example/v1", b"/a?b", b"/v1/a?b"),
        ("https://h.example/v1/", b"/a", b"/v1/a"),
        ("https://h.example/v1//", b"/", b"/v1/"),
        ("https://h.example/v1", b"/?x", b"/v1/?x"),
        ("https://h.example", b"*", b"*"),
    ],
)
def test_reverse_port_joins_with_one_slash(base: str, target: bytes, joined: bytes) -> None:
    """The target goes behind the base path and is not changed otherwise, whatever scheme and host it came with."""
    origins = {"h": parse_base_url(base), "good": GOOD}
    found = route(request(target, "http", "evil.example", 1, upstream="h"), origins)

    assert found == Route("h", origins["h"], joined)


@pytest.mark.parametrize("target", [b"*", b"", b"a", b"?a", b"https://evil.example/", b"@evil.example/", b".evil"])
def test_reverse_port_refuses_what_cannot_be_joined(target: bytes) -> None:
    """Behind a base path only a path can stand."""
    assert refused(request(target, upstream="good")).reason is Reason.NO_ROUTE


BASE_URLS = [
    ("https://plm.example.com", Origin("https", "plm.example.com", 443)),
    ("https://plm.example.com/", Origin("https", "plm.example.com", 443)),
    ("https://PLM.Example.com.", Origin("https", "plm.example.com", 443)),
    ("HTTP://plm.example.com", Origin("http", "plm.example.com", 80)),
    ("https://plm.example.com:", Origin("https", "plm.example.com", 443)),
    ("https://plm.example.com:8443/a/b/", Origin("https", "plm.example.com", 8443, b"/a/b")),
    (
        "https://plm.example.com/sap/opu/odata/v1.0/x_y-z~(1)",
        Origin("https", "plm.example.com", 443, b"/sap/opu/odata/v1.0/x_y-z~(1)"),
    ),
    ("https://[2001:DB8::0:1]:444", Origin("https", "2001:db8::1", 444)),
    ("https://bücher.example", Origin("https", "xn--bcher-kva.example", 443)),
    ("https://STRAßE.example:8443/v1", Origin("https", "xn--strae-oqa.example", 8443, b"/v1")),
    ("https://ΒΌΛΟΣ.example", Origin("https", "xn--nxasmq6b.example", 443)),
    ("https://plm_1.example~", Origin("https", "plm_1.example~", 443)),
]

BAD_BASE_URLS = [
    "",
    "plm.example.com",
    "//plm.example.com",
    "https://",
    "https:///v1",
    "https:plm.example.com",
    "ftp://plm.example.com",
    "ftp://plm.example.com:443",
    "unix:/run/x",
    "https://plm.example.com:0",
    "https://plm.example.com:65536",
    "https://plm.example.com:abc",
    "https://plm.example.com:-1",
    "https://plm..example.com",
    "https://plm.example.com..",
    "https://.",
    "https://plm%2eexample.com",
    "https://plm,example.com",
    "https://*.example.com",
    "https://[::1",
    "https://[fe80::1%25eth0]",
    "https://[fe80::1%eth0]",
    "https://[12345::]",
    " https://plm.example.com",
    "https://plm.example.com ",
    "https://plm.exa\nmple.com",
    "https://plm.example.com\t/v1",
    "https://plm.example.com/v1\x00",
    "https://plm.example.com/\u2028",
    "https://plm.example.com\\v1",
    "https://" + "a" * 64 + ".example",
    "https://ü_1.example",
    "https://☃.example",
    "https://bücher.example@evil.example",
    "https://user@plm.example.com",
    "https://user:CANARY@plm.example.com",
    "https://user:CANARY/x@plm.example.com",
    "https://user:CANARY\u2100@plm.example.com",
    "https://user:CANARY@plm.example.com:CANARY",
    "https://@plm.example.com",
    "https://plm.example.com?key=CANARY",
    "https://plm.example.com/v1?key=CANARY",
    "https://plm.example.com/#CANARY",
    "https://plm.example.com/a//b",
    "https://plm.example.com/a/../b",
    "https://plm.example.com/..",
    "https://plm.example.com/a/.",
    "https://plm.example.com/...",
    "https://plm.example.com/./a",
    "https://plm.example.com/%61",
    "https://plm.example.com/a%2fb",
    "https://plm.example.com/a;b",
    "https://plm.example.com/a\\b",
    "https://plm.example.com/a b",
    "https://plm.example.com/ä",
]


@pytest.mark.parametrize(("url", "origin"), BASE_URLS)
def test_base_url_has_one_normal_form(url: str, origin: Origin) -> None:
    """What is compared is normal once and for all: case, trailing dot, default port, IDNA, short IPv6."""
    assert parse_base_url(url) == origin
    assert parse_base_url(origin.url) == origin


@pytest.mark.parametrize("url", BAD_BASE_URLS)
def test_base_url_that_could_be_misread_is_refused(url: str) -> None:
    """The error says what is expected and shows nothing of the URL: there may be a password in it."""
    with pytest.raises(ValueError, match=r"^expected a (URL|plain path)") as caught:
        parse_base_url(url)

    assert WORD not in str(caught.value)
    assert not isinstance(caught.value, UnicodeError)


@settings(deadline=None)
@given(st.text(max_size=30), st.sampled_from(["", "https://", f"https://u:{canary('p')}"]))
def test_no_url_is_shown_or_crashes(text: str, start: str) -> None:
    """Any text is a base URL with a normal form, or a ValueError without it."""
    origin, said = None, "expected"
    try:
        origin = parse_base_url(start + text)
    except ValueError as error:
        said = str(error)

    assert said.startswith("expected")
    assert WORD not in said
    assert origin is None or parse_base_url(origin.url) == origin
    assert origin is None or not origin.path.endswith(b"/")


@pytest.mark.parametrize(
    ("origin", "authority", "url"),
    [
        (Origin("https", "h.example", 443), "h.example", "https://h.example"),
        (Origin("https", "h.example", 80), "h.example:80", "https://h.example:80"),
        (Origin("http", "h.example", 80, b"/v1"), "h.example", "http://h.example/v1"),
        (Origin("http", "h.example", 443), "h.example:443", "http://h.example:443"),
        (Origin("https", "::1", 443), "[::1]", "https://[::1]"),
        (Origin("https", "::1", 8443), "[::1]:8443", "https://[::1]:8443"),
    ],
)
def test_origin_has_its_authority(origin: Origin, authority: str, url: str) -> None:
    """The Host field has the port only if it is not the scheme's own, and IPv6 in brackets."""
    assert origin.authority == authority
    assert origin.url == url


@pytest.mark.parametrize(
    ("path", "read"),
    [
        (b"/login", b"/login"),
        (b"//api///login", b"/api/login"),
        (b"/./login", b"/login"),
        (b"/x/../login", b"/login"),
        (b"/../login", b"/login"),
        (b"/api;v=1/login;jsessionid=1", b"/api/login"),
        (b"/%6Cogin", b"/login"),
        (b"/a%2f..%2Flogin", b"/login"),
        (b"/login/", b"/login/"),
        (b"/a/b/..", b"/a/"),
        (b"//", b"/"),
        (b"", b"/"),
        (b"*", b"/"),
    ],
)
def test_a_path_is_read_as_servers_read_it(path: bytes, read: bytes) -> None:
    """Whatever its spelling, a login is known for one."""
    assert as_served(path) == read


def test_a_lent_origin_is_intercepted_and_serves_nothing() -> None:
    """Its plain port too; who lends it is told in the order of the upstreams."""
    login = parse_base_url("https://login.example")
    routes = Routes({"a": GOOD, "b": GOOD}, {"a": [login], "b": [login]})
    assert [name for name, _ in routes.lent("LOGIN.example", 443)] == ["a", "b"]
    assert routes.intercepts("login.example", 443)
    assert routes.intercepts("login.example", 80)
    assert not routes.intercepts("login.example", 8443)
    assert not routes.serves("login.example", 443)
    assert routes.serves(GOOD.host, 443)
    assert routes.lent("other.example", 443) == ()
    assert routes.lent("log in.example", 443) == ()
