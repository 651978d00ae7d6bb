"""Which hosts are none of our business, and which CONNECT may hold requests for an upstream."""

import pytest

from sidecar.policy.passthrough import EVERY_HOST, intercepted, matches, passes
from sidecar.policy.routing import Origin, parse_base_url

ORIGINS = {
    "plm": parse_base_url("https://plm.example.org/api"),
    "port": parse_base_url("https://port.example.org:8443"),
    "plain": parse_base_url("http://plain.example.org"),
    "six": parse_base_url("https://[2001:db8::1]"),
}


@pytest.mark.parametrize(
    ("pattern", "host", "expected"),
    [
        ("pypi.org", "pypi.org", True),
        ("pypi.org", "files.pypi.org", False),
        ("pypi.org", "xpypi.org", False),
        ("pypi.org", "pypi.org.evil.example", False),
        ("*.example.net", "a.example.net", True),
        ("*.example.net", "a.b.example.net", True),
        ("*.example.net", "example.net", False),
        ("*.example.net", "xexample.net", False),
        ("*.example.net", "a.example.net.evil.example", False),
        ("2001:db8::2", "2001:db8::2", True),
        ("192.0.2.1", "192.0.2.10", False),
        (EVERY_HOST, "anything.example", True),
        (EVERY_HOST, "192.0.2.1", True),
        (EVERY_HOST, "2001:db8::2", True),
    ],
)
def test_pattern_names_one_host_or_all_below_it(pattern: str, host: str, expected: bool) -> None:
    """A dot is part of what a `*.` pattern asks for, so that no other domain ends like it."""
    assert matches(pattern, host) is expected


@pytest.mark.parametrize("host", [origin.host for origin in ORIGINS.values()])
@pytest.mark.parametrize("patterns", [(EVERY_HOST,), ("*.example.org", "plm.example.org"), ("2001:db8::1",)])
def test_host_of_an_upstream_is_never_passed_through(host: str, patterns: tuple[str, ...]) -> None:
    """Not even where every host is: there is no port to ask for, so it holds for all of them."""
    assert not passes(host, patterns, ORIGINS)


def test_one_pattern_of_several_is_enough_and_none_passes_nothing() -> None:
    patterns = ("pypi.org", "*.example.org")

    assert passes("pypi.org", patterns, ORIGINS)
    assert passes("other.example.org", patterns, ORIGINS)
    assert not passes("example.org", patterns, ORIGINS)
    assert not passes("pypi.org", (), ORIGINS)
    assert passes("plm.example.org", ("*.example.org",), {})


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
    ],
)
def test_connect_is_intercepted_where_an_upstream_can_be_meant(host: str, port: int, expected: bool) -> None:
    """Host and port of an upstream, and port 80 of one on 443."""
    assert intercepted(host, port, ORIGINS) is expected


def test_only_https_has_a_second_port() -> None:
    """An `http://` upstream on port 443 has no other scheme that port 80 could stand for."""
    odd = {"odd": Origin("http", "odd.example.org", 443)}

    assert intercepted("odd.example.org", 443, odd)
    assert not intercepted("odd.example.org", 80, odd)
