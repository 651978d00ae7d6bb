"""What a renewal asks of a real Redis: few commands; and a slow one doubles no call that costs something."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.canary import canary
from tests.fleet import Families, families, fleet
from tests.redis_servers import Server, redis_of_session, redis_server
from tests.waiting import until

__all__ = ["redis_of_session", "redis_server"]

CLIENT = {"client_id": "desk", "client_secret": {"value": canary("desk")}}
USER = {**CLIENT, "grant": "password", "username": "u", "password": {"value": canary("user")}}


@pytest.fixture
async def issuer() -> AsyncIterator[Families]:
    async with families() as made:
        yield made


def oauth2(issuer: Families, grant: str) -> dict[str, Any]:
    return {"client_credentials": CLIENT, "password": USER}.get(grant) or issuer.settings("alice")


@contextlib.contextmanager
def commands(redis: Server) -> Iterator[list[str]]:
    """Note what clients ask of *redis*, by MONITOR; what a script does inside is not asked for."""
    seen: list[str] = []
    with redis.client() as client, client.monitor() as monitor:

        def listen() -> None:
            for command in monitor.listen():
                if command["command"] == "PING end":
                    return
                if command["client_type"] != "lua":
                    seen.append(command["command"])

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield seen
        finally:
            redis.command("PING", "end")
            thread.join()


def of_renewal(seen: list[str]) -> list[str]:
    """Return the commands that are about the credential, without those that open a connection."""
    return [command for command in seen if "auth-sidecar:" in command and "instances" not in command]


@pytest.mark.parametrize(
    ("grant", "start", "renewal"),
    [("client_credentials", 3, 2), ("password", 3, 3), ("refresh_token", 4, 3)],
)
async def test_commands_of_a_renewal(
    redis_server: Server, issuer: Families, tmp_path: Path, grant: str, start: int, renewal: int
) -> None:
    """Take, note, write: two where nothing is presented that must be noted, else three; a look before at the start,
    one for an operator, and one after a 401."""
    async with fleet({"url": redis_server.url, "timeout": "2s"}, issuer.url, tmp_path, **oauth2(issuer, grant)) as made:
        warm = await made.node(check_every=0)  # so that the scripts are known
        await warm.get()
        redis_server.command("FLUSHDB")
        issuer.log_in("alice")
        with commands(redis_server) as seen:
            node = await made.node(check_every=0, min_interval=0)
            await node.get()
            await until(node.renewals, "the first")
        assert len(of_renewal(seen)) - FORMER <= start, seen
        with commands(redis_server) as seen:
            await node.broker.renew()
        assert len(of_renewal(seen)) == renewal + 1, seen
        with commands(redis_server) as seen:
            used = await node.broker.token(0)
            assert await node.broker.after(used, time.monotonic() + 10)
        assert len(of_renewal(seen)) == renewal + 1, seen
    assert issuer.reused == []


FORMER = 1
"""At the start one look more: whether the release before has a record."""


async def test_commands_of_a_renewal_that_is_due(redis_server: Server, issuer: Families, tmp_path: Path) -> None:
    """By the timer: no more than by hand."""
    issuer.lifetime = 4
    async with fleet(
        {"url": redis_server.url, "timeout": "2s"}, issuer.url, tmp_path, **issuer.settings("alice")
    ) as made:
        node = await made.node(margin="2s", check_every="30s")
        await node.get()
        with commands(redis_server) as seen:
            await until(lambda: len(node.renewals()) == 2, "the next")
        assert len(of_renewal(seen)) <= 4, seen
    assert issuer.reused == []


@contextlib.asynccontextmanager
async def slow(target: Server, seconds: float) -> AsyncIterator[str]:
    """Give the URL of a line to *target* on which each answer takes *seconds*."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wait: float) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await asyncio.sleep(wait)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", target.port)
        await asyncio.gather(pump(reader, to_writer, 0), pump(to_reader, writer, seconds))

    line = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{line.sockets[0].getsockname()[1]}"
    finally:
        line.close()


@pytest.mark.parametrize("timeout", ["80ms", "1s"])
async def test_slow_store_doubles_no_refresh(
    redis_server: Server, issuer: Families, tmp_path: Path, timeout: str
) -> None:
    """100 ms for each command, more than `store.timeout` or less: each refresh token is presented once."""
    issuer.lifetime = 3
    settings = issuer.settings("alice")
    async with slow(redis_server, 0.1) as url:
        async with fleet({"url": redis_server.url, "timeout": "2s"}, issuer.url, tmp_path, **settings) as made:
            quick = await made.node(margin="1s", check_every="1s")
            await quick.get()
            made.data["store"] |= {"timeout": timeout}
            nodes = [await made.node(url=url, margin="1s", check_every="1s", min_interval=0) for _ in range(4)]
            await until(lambda: len(issuer.calls) > 3, "renewals")
            if timeout == "1s":
                for node in nodes:
                    await node.get()
    assert issuer.reused == []
