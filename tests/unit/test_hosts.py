"""Hosts are compared in one spelling, the one that clients send, and patterns name one or all below it."""

import contextlib

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.policy.hosts import EVERY_HOST, configured_host, matching, normal_host

NAMES = {"pypi.org", "*.example.net", "2001:db8::2", "192.0.2.1"}


@pytest.mark.parametrize(
    ("host", "pattern"),
    [
        ("pypi.org", "pypi.org"),
        ("files.pypi.org", None),
        ("xpypi.org", None),
        ("pypi.org.evil.example", None),
        ("org", None),
        ("a.example.net", "*.example.net"),
        ("a.b.example.net", "*.example.net"),
        ("example.net", None),
        ("xexample.net", None),
        ("a.example.net.evil.example", None),
        ("2001:db8::2", "2001:db8::2"),
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.10", None),
    ],
)
def test_pattern_names_one_host_or_all_below_it(host: str, pattern: str | None) -> None:
    """A dot is part of what a `*.` pattern asks for, so that no other domain ends like it."""
    assert matching(host, NAMES) == pattern
    assert matching(host, {EVERY_HOST}) == EVERY_HOST
    assert matching(host, ()) is None


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "ab", "a.b", "*.a", "*.b.a", "*.a.b", "*.ab"]), max_size=4), st.data())
def test_any_of_the_patterns_is_enough(patterns: list[str], data: st.DataObject) -> None:
    """However many there are, it is as if each was tried."""
    host = ".".join(data.draw(st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=4)))
    each = [pattern for pattern in patterns if host == pattern or (pattern[0] == "*" and host.endswith(pattern[1:]))]

    assert (matching(host, frozenset(patterns)) in each) if each else matching(host, frozenset(patterns)) is None


UNICODE = [
    ("b\u00fccher.example", "xn--bcher-kva.example"),
    ("B\u00dcCHER.Example.", "xn--bcher-kva.example"),
    ("bu\u0308cher.example", "xn--bcher-kva.example"),  # u and a combining mark
    ("stra\u00dfe.example", "xn--strae-oqa.example"),  # strasse.example to IDNA 2003
    ("\u03b2\u03cc\u03bb\u03bf\u03c2.example", "xn--nxasmm1c.example"),  # ends in the final sigma
    ("\u0392\u038c\u039b\u039f\u03a3.example", "xn--nxasmq6b.example"),  # in capitals, which have one sigma only
    ("\u4f8b\u5b50.\u6d4b\u8bd5", "xn--fsqu00a.xn--0zwm56d"),
    ("plm\u3002example", "plm.example"),  # the full stop of those who write so
    ("\uff50lm.example", "plm.example"),  # full width
]


@pytest.mark.parametrize(("host", "labels"), UNICODE)
def test_host_of_a_configuration_may_be_unicode(host: str, labels: str) -> None:
    """It is the name that clients look up for what a person wrote: UTS 46, without the transition to IDNA 2003."""
    assert configured_host(host) == labels
    assert configured_host(labels.upper()) == labels


@pytest.mark.parametrize(
    "host",
    [
        "b\u00fccher.example",
        "stra\u00dfe.example",
        "\u03b2\u03cc\u03bb\u03bf\u03c2.example",
        "\u4f8b\u5b50.\u6d4b\u8bd5",
    ],
)
def test_a_client_asks_for_the_same_host(host: str) -> None:
    """What requests sends for a name is what it is configured as."""
    assert requests.Request("GET", f"https://{host}/").prepare().url == f"https://{configured_host(host)}/"


@pytest.mark.parametrize(
    "host",
    [
        "",
        "a..b",
        "b\u00fccher..example",
        "a" * 64,
        "\u00fc" * 60,
        "\u00fc_1.example",
        "\u2603.example",
        "-\u00fc.example",
    ],
)
def test_host_that_no_client_asks_for_is_refused(host: str) -> None:
    """An empty or overlong label, and what IDNA 2008 has no place for."""
    with pytest.raises(ValueError, match=r"^."):
        configured_host(host)


@settings(deadline=None)
@given(st.text(max_size=20))
def test_host_of_a_configuration_is_normal_or_an_error(host: str) -> None:
    """Any text; what comes out is what requests are compared with."""
    with contextlib.suppress(ValueError):
        name = configured_host(host)

        assert configured_host(name) == normal_host(name) == name


@pytest.mark.parametrize(
    "host",
    ["", ".", "a b", "a\n", "a/b", "a@b", "a:b", "[::1]", "::1%lo", "a%41", "\u00e9", "a*", "a,b", "\u017f", "\u212a"],
)
def test_what_is_no_host_is_refused(host: str) -> None:
    """Unicode that lower case would turn into ASCII is no host of a request either."""
    with pytest.raises(ValueError, match=r"host name|At least 3 parts|Only hex"):
        normal_host(host)
