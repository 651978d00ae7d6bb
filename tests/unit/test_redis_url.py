"""URLs of Redis: what each form means, and that none is ever shown."""

import pytest

from sidecar.errors import ConfigurationError
from sidecar.secret import Secret
from sidecar.tokens.redis.url import Layout, Target, parse_url
from tests.canary import canary

WORD = canary("redis-url")


@pytest.mark.parametrize(
    ("url", "target", "shown"),
    [
        (
            "redis://redis.example",
            Target(layout=Layout.SINGLE, tls=False, nodes=(("redis.example", 6379),)),
            "Redis at redis.example:6379",
        ),
        (
            f"rediss://app:{WORD}@10.0.0.1:7000/3",
            Target(
                layout=Layout.SINGLE,
                tls=True,
                nodes=(("10.0.0.1", 7000),),
                db=3,
                username="app",
                password=Secret(WORD),
            ),
            "Redis at 10.0.0.1:7000",
        ),
        (
            "redis://:p%40s%2Fs%3A%25@[::1]:7000/",
            Target(layout=Layout.SINGLE, tls=False, nodes=(("::1", 7000),), password=Secret("p@s/s:%")),
            "Redis at [::1]:7000",
        ),
        (
            "redis://a%3Ab:c:d@host",
            Target(layout=Layout.SINGLE, tls=False, nodes=(("host", 6379),), username="a:b", password=Secret("c:d")),
            "Redis at host:6379",
        ),
        (
            "redis+sentinel://u:p@a,b:1,c,a/main/2",
            Target(
                layout=Layout.SENTINEL,
                tls=False,
                nodes=(("a", 26379), ("b", 1), ("c", 26379)),
                service="main",
                db=2,
                username="u",
                password=Secret("p"),
            ),
            "Redis Sentinel at a:26379,b:1,c:26379",
        ),
        (
            "rediss+sentinel://a/my%20master",
            Target(layout=Layout.SENTINEL, tls=True, nodes=(("a", 26379),), service="my master"),
            "Redis Sentinel at a:26379",
        ),
        (
            "rediss+cluster://a,b:7001/",
            Target(layout=Layout.CLUSTER, tls=True, nodes=(("a", 6379), ("b", 7001))),
            "Redis Cluster at a:6379,b:7001",
        ),
    ],
)
def test_every_form_means_what_it_says(url: str, target: Target, shown: str) -> None:
    """Ports have their defaults, and what is percent-encoded is decoded once; messages name the servers only."""
    assert parse_url(url) == target
    assert str(parse_url(url)) == shown
    assert WORD not in repr(parse_url(url))


@pytest.mark.parametrize(
    ("url", "what"),
    [
        (f"http://{WORD}", "scheme"),
        (f"redis:{WORD}", "scheme"),
        (f"Redis+Cluster://{WORD}", "scheme"),
        (f"redis+other://{WORD}", "scheme"),
        ("redis://", "host or port"),
        (f"redis://:{WORD}@", "host or port"),
        (f"redis://:{WORD}@host:", "host or port"),
        (f"redis://:{WORD}@host:port", "host or port"),
        (f"redis://:{WORD}@host:65536", "out of range"),
        (f"redis://:{WORD}@host:0", "out of range"),
        (f"redis://:{WORD}/x@host", "with a / in it"),
        (f"redis+sentinel://u:12/{WORD}@host/main", "with a / in it"),
        (f"redis://{WORD} x", "host or port"),
        (f"redis://host/{WORD}", "database is not a number"),
        (f"redis://host/-1?{WORD}", "percent-encode"),
        (f"redis://host#{WORD}", "percent-encode"),
        ("rediss://host?ssl_cert_reqs=none", "percent-encode"),
        (f"redis://{WORD}@host", "user without a password"),
        (f"redis://a,b/{WORD}", "database is not a number"),
        (f"redis://:{WORD}@a,b", "several hosts"),
        (f"redis+sentinel://:{WORD}@a", "service is missing"),
        (f"redis+sentinel://:{WORD}@a//0", "service is missing"),
        (f"redis+sentinel://a/main/{WORD}", "database is not a number"),
        (f"redis+cluster://:{WORD}@a/1", "no databases"),
        (f"redis+cluster://:{WORD}@a,,b", "host or port"),
    ],
)
def test_a_bad_url_is_refused_and_not_shown(url: str, what: str) -> None:
    """The message says what is wrong and which forms there are, in one line."""
    with pytest.raises(ConfigurationError, match=what) as caught:
        parse_url(url)
    message = str(caught.value)
    assert message.startswith("store.url: ")
    assert "redis+sentinel://" in message
    assert "\n" not in message
    assert WORD not in message
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_password_may_come_from_elsewhere() -> None:
    """From a file, say; a user in the URL goes with it, but two of one thing are too many."""
    word = Secret(WORD)
    assert parse_url("redis://host", password=word).password == word
    assert parse_url("redis://host", username="u", password=word).username == "u"
    assert parse_url("redis://u@host", password=word).username == "u"
    for url, username in (("redis://:p@host", None), ("redis://u:p@host", None), ("redis://v@host", "u")):
        with pytest.raises(ConfigurationError, match="twice"):
            parse_url(url, username=username, password=word)
    with pytest.raises(ConfigurationError, match="user without a password"):
        parse_url("redis://host", username="u")
