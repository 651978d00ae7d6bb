"""Tokens that do not live as long as they say: refused whatever is done, or dead when they are not used."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar.events import ForcedRenewals, Trouble
from tests.rig import (
    OK,
    Recorder,
    Rig,
    Seen,
    TokenServer,
    configuration,
    raw,
    sidecar,
    status_of,
)
from tests.waiting import until

REFUSED = b'HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer error="invalid_token"\r\nContent-Length: 2\r\n\r\nno'
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
EVERY = 0.3


def answering(upstream: Recorder, choose: Callable[[Seen], bytes]) -> None:
    """Let *upstream* answer each request with what *choose* returns."""

    async def script(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(choose(seen))

    upstream.script = script


async def get(rig: Rig, path: str = "/items") -> int:
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{rig.port('plm')}\r\nConnection: close\r\n\r\n"
    return status_of(await raw(rig.port("plm"), request.encode()))


async def shown(rig: Rig) -> dict[str, Any]:
    """Return what `/status` says of the upstream."""
    request = f"GET /status HTTP/1.1\r\nHost: 127.0.0.1:{rig.port('admin')}\r\nConnection: close\r\n\r\n"
    found: dict[str, Any] = json.loads((await raw(rig.port("admin"), request.encode())).partition(b"\r\n\r\n")[2])
    return dict(found["upstreams"]["plm"])


def forced(rig: Rig) -> list[bool]:
    return [event.stopped for event in rig.events if isinstance(event, ForcedRenewals)]


def troubles(rig: Rig) -> list[str]:
    return [event.detail for event in rig.events if isinstance(event, Trouble) and event.where == "keepalive of plm"]


# --- refused whatever is done -------------------------------------------------------------------------------------


async def test_broken_upstream_does_not_cause_a_storm_of_renewals(
    upstream: Recorder, tokens: TokenServer, tmp_path: Path
) -> None:
    """It answers 401 to all there is: after five new tokens in vain the 401s are passed on, and nothing is renewed."""
    answering(upstream, lambda seen: REFUSED)
    settings = configuration(upstream.url, tokens.url, tmp_path, renew={"min_interval": 0}, breaker={"unauthorized": 5})
    async with sidecar(settings) as rig:
        for _ in range(5):
            assert await get(rig) == 401
        assert tokens.calls == 6
        assert forced(rig) == [True]
        assert (await shown(rig))["forced_renewals"] == "stopped"
        for _ in range(20):
            assert await get(rig) == 401

        assert tokens.calls < 20
        assert (await shown(rig))["usable"]

        answering(upstream, lambda seen: OK)
        assert await get(rig) == 200
        assert forced(rig) == [True, False]
        assert (await shown(rig))["forced_renewals"] == "allowed"


async def test_limit_of_refused_renewals_is_configured(upstream: Recorder, tokens: TokenServer, tmp_path: Path) -> None:
    """`breaker.unauthorized`."""
    answering(upstream, lambda seen: REFUSED)
    settings = configuration(upstream.url, tokens.url, tmp_path, renew={"min_interval": 0}, breaker={"unauthorized": 2})
    async with sidecar(settings) as rig:
        await get(rig)
        assert forced(rig) == []
        await get(rig)

        assert forced(rig) == [True]


async def test_one_bad_endpoint_leaves_the_others_their_renewals(
    upstream: Recorder, tokens: TokenServer, tmp_path: Path
) -> None:
    """Its 401s are passed on; a token that is revoked then is replaced all the same, and no script notices."""
    dead = set[bytes]()

    def choose(seen: Seen) -> bytes:
        return REFUSED if b"/bad" in seen.line or seen.values(b"authorization")[0] in dead else OK

    answering(upstream, choose)
    settings = configuration(upstream.url, tokens.url, tmp_path, renew={"min_interval": 0})
    async with sidecar(settings) as rig:
        for _ in range(10):
            assert await get(rig, "/bad") == 401
            assert await get(rig, "/good") == 200
        assert forced(rig) == []
        dead.add(upstream.seen[-1].values(b"authorization")[0])

        assert await get(rig, "/good") == 200


# --- dead when not used -------------------------------------------------------------------------------------------


def kept_alive(upstream: Recorder, tokens: TokenServer, folder: Path, **keepalive: Any) -> dict[str, Any]:
    settings = {"path": "/health?deep=1", "every": EVERY, "only_if_used_within": 3600} | keepalive
    return configuration(f"{upstream.url}/base", tokens.url, folder, keepalive=settings, renew={"min_interval": 0})


def health(upstream: Recorder) -> list[Seen]:
    return [seen for seen in upstream.seen if b"/health" in seen.line]


async def test_token_is_used_for_its_own_sake(upstream: Recorder, tokens: TokenServer, tmp_path: Path) -> None:
    """Again and again after a request, by a GET below the base URL with the token, and not one request before."""
    async with sidecar(kept_alive(upstream, tokens, tmp_path)) as rig:
        await asyncio.sleep(4 * EVERY)
        assert upstream.seen == []
        assert await get(rig) == 200
        await until(lambda: len(health(upstream)) >= 3, "three")

        seen = health(upstream)[0]
        assert seen.line == b"GET /base/health?deep=1 HTTP/1.1"
        assert seen.values(b"host") == [upstream.url.removeprefix("http://").encode()]
        assert seen.values(b"authorization") == upstream.seen[0].values(b"authorization")
        assert tokens.calls == 1


async def test_nothing_is_kept_alive_while_requests_are_made(
    upstream: Recorder, tokens: TokenServer, tmp_path: Path
) -> None:
    """They do that by themselves."""
    async with sidecar(kept_alive(upstream, tokens, tmp_path, every=5)) as rig:
        for _ in range(30):
            assert await get(rig) == 200
            await asyncio.sleep(0.2)

        assert health(upstream) == []


async def test_nothing_is_kept_alive_for_nobody(upstream: Recorder, tokens: TokenServer, tmp_path: Path) -> None:
    """It ends when no request was made for `only_if_used_within`, and begins again with the next one."""
    async with sidecar(kept_alive(upstream, tokens, tmp_path, only_if_used_within=4 * EVERY)) as rig:
        await get(rig)
        await until(lambda: health(upstream), "the first")
        await asyncio.sleep(6 * EVERY)
        number = len(health(upstream))
        assert number <= 5
        await asyncio.sleep(4 * EVERY)
        assert len(health(upstream)) == number
        await get(rig)

        await until(lambda: len(health(upstream)) > number, "one more")


async def test_token_that_died_all_the_same_is_renewed(upstream: Recorder, tokens: TokenServer, tmp_path: Path) -> None:
    """A 401 to it is like any other: the next request finds a token that is good."""
    dead = set[bytes]()
    answering(upstream, lambda seen: REFUSED if seen.values(b"authorization")[0] in dead else OK)
    async with sidecar(kept_alive(upstream, tokens, tmp_path)) as rig:
        await get(rig)
        dead |= set(upstream.seen[0].values(b"authorization"))
        await until(lambda: tokens.calls == 2, "the renewal")
        await until(lambda: health(upstream)[-1].values(b"authorization")[0] not in dead, "the next")
        number = len(upstream.seen)

        assert await get(rig) == 200
        assert upstream.seen[number].values(b"authorization")[0] not in dead
        assert troubles(rig) == []


@pytest.mark.parametrize(
    ("answer", "detail"), [(NOT_FOUND, "answered with 404"), (REFUSED, "answered with 401")], ids=["404", "401"]
)
async def test_path_that_keeps_nothing_alive_is_told_once(
    upstream: Recorder, tokens: TokenServer, tmp_path: Path, answer: bytes, detail: str
) -> None:
    """Its query is not shown, and a path that refuses every token does not renew for ever."""
    answering(upstream, lambda seen: answer if b"/health" in seen.line else OK)
    async with sidecar(kept_alive(upstream, tokens, tmp_path)) as rig:
        await get(rig)
        await until(lambda: len(health(upstream)) >= 6, "several")
        (trouble,) = troubles(rig)

        assert trouble.startswith(f"GET /health: {detail}")
        assert tokens.calls <= 10


async def test_closed_connection_is_no_trouble(upstream: Recorder, tokens: TokenServer, tmp_path: Path) -> None:
    """The upstream closed it meanwhile, as servers do: a new one is made."""

    async def script(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await writer.drain()
        writer.close()

    upstream.script = script
    async with sidecar(kept_alive(upstream, tokens, tmp_path)) as rig:
        await get(rig)
        await until(lambda: len(health(upstream)) >= 3, "three")

        assert troubles(rig) == []


async def test_reload_ends_what_is_configured_no_more(upstream: Recorder, tokens: TokenServer, tmp_path: Path) -> None:
    """And with the sidecar it ends too: nothing is left behind."""
    settings = kept_alive(upstream, tokens, tmp_path)
    async with sidecar(settings) as rig:
        await get(rig)
        await until(lambda: health(upstream), "the first")
        del settings["upstreams"]["plm"]["keepalive"]
        await rig.app.reload(type(rig.app.settings).model_validate(settings))
        await get(rig)
        await asyncio.sleep(3 * EVERY)
        number = len(health(upstream))
        await asyncio.sleep(4 * EVERY)

        assert len(health(upstream)) == number
