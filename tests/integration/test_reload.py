"""Another configuration while requests are under way: they end as they began, the next ones see the new one."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.clock import SystemClock
from sidecar.errors import ConfigurationError
from sidecar.events import Drain, Reload, Renewal
from sidecar.run.reload import Reloader
from sidecar.settings import Settings, load
from tests.canary import canary
from tests.rig import OK, Recorder, Rig, Seen, TokenServer, configuration, problem_of, raw, recorder, sidecar, status_of
from tests.waiting import PATIENCE

CLOSE = b"Connection: close\r\n\r\n"


def settings(data: dict[str, Any]) -> Settings:
    return Settings.model_validate(data)


async def get(rig: Rig, target: bytes, port: str = "proxy") -> bytes:
    return await raw(rig.port(port), b"GET %b HTTP/1.1\r\nHost: localhost\r\n" % target + CLOSE)


async def test_new_upstream_is_served(upstream: Recorder, other: Recorder, tokens: TokenServer, tmp_path: Path) -> None:
    """What is added is there, what is taken out gets 403, and what has not changed keeps its token."""
    data = configuration(upstream.url, tokens.url, tmp_path)
    more = json.loads(json.dumps(data))
    more["upstreams"]["erp"] = data["upstreams"]["plm"] | {"base_url": other.url, "oauth2": _client(tokens, "erp")}
    less = more | {"upstreams": {"erp": more["upstreams"]["erp"]}}
    async with sidecar(data) as rig:
        assert status_of(await get(rig, upstream.url.encode())) == 200
        assert status_of(await get(rig, other.url.encode())) == 403
        await rig.app.reload(settings(more))
        assert status_of(await get(rig, other.url.encode())) == 200
        assert status_of(await get(rig, upstream.url.encode())) == 200
        calls = tokens.calls
        assert "erp" in rig.app.addresses
        await rig.app.reload(settings(less))
        gone = await get(rig, upstream.url.encode())
        names = set(rig.app.addresses)

    assert calls == 2
    assert problem_of(gone)["reason"] == "no_route"
    assert names == {"proxy", "admin", "erp"}


def _client(tokens: TokenServer, name: str) -> dict[str, Any]:
    return {"token_url": tokens.url, "client_id": name, "client_secret": {"value": canary(name)}}


async def test_request_under_way_ends_as_it_began(tokens: TokenServer, other: Recorder, tmp_path: Path) -> None:
    """Its answer comes from the upstream it was sent to, whole, though that is no upstream any more."""
    release = asyncio.Event()

    async def slow(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\none")
        await writer.drain()
        await release.wait()
        writer.write(b"two")

    async with recorder(slow) as upstream:
        data = configuration(upstream.url, tokens.url, tmp_path)
        async with sidecar(data) as rig:
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.port("plm"))
            writer.write(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await reader.readuntil(b"one")
            data["upstreams"]["plm"]["base_url"] = other.url
            await rig.app.reload(settings(data))
            new = await get(rig, b"/y", "plm")
            release.set()
            assert await reader.readexactly(3) == b"two"
            writer.write(b"GET /z HTTP/1.1\r\nHost: localhost\r\n\r\n")
            again = await reader.readuntil(b"ok")
            writer.close()

    assert new.endswith(b"ok")
    assert again.startswith(b"HTTP/1.1 200")
    assert [seen.line.split()[1] for seen in other.seen] == [b"/y", b"/z"]


async def test_reverse_port_that_moves(upstream: Recorder, tokens: TokenServer, tmp_path: Path) -> None:
    """The new address serves at once, the old one takes nothing any more."""
    data = configuration(upstream.url, tokens.url, tmp_path)
    data["upstreams"]["plm"]["listen"] = f"unix:{tmp_path}/one"
    async with sidecar(data) as rig:
        moved = json.loads(json.dumps(data))
        moved["upstreams"]["plm"]["listen"] = f"unix:{tmp_path}/two"
        await rig.app.reload(settings(moved))
        reader, writer = await asyncio.open_unix_connection(f"{tmp_path}/two")
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n" + CLOSE)
        answer = await reader.read()
        writer.close()
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    _, writer = await asyncio.open_unix_connection(f"{tmp_path}/one")
                except (ConnectionRefusedError, FileNotFoundError):
                    break
                writer.close()
                await asyncio.sleep(0.01)

    assert answer.endswith(b"ok")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"store": {"url": "memory"}}, "store takes effect with a restart only"),
        ({"state_dir": "/nowhere"}, "state_dir takes effect with a restart only"),
        ({"log": {"level": "error"}}, "log takes effect with a restart only"),
        ({"listen": {"proxy": "127.0.0.1:0", "admin": "127.0.0.1:1"}}, "listen.admin takes effect with a restart only"),
    ],
)
async def test_what_needs_a_restart_is_refused(
    upstream: Recorder, tokens: TokenServer, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    """And everything stays as it is."""
    data = configuration(upstream.url, tokens.url, tmp_path)
    async with sidecar(data) as rig:
        with pytest.raises(ConfigurationError, match=said):
            await rig.app.reload(settings(data | change))
        assert status_of(await get(rig, upstream.url.encode())) == 200


async def test_taken_address_leaves_the_old_configuration(
    upstream: Recorder, other: Recorder, tokens: TokenServer, tmp_path: Path
) -> None:
    """What was bound for the new one already is given back."""
    data = configuration(upstream.url, tokens.url, tmp_path)
    async with sidecar(data) as rig:
        taken = json.loads(json.dumps(data))
        taken["upstreams"]["plm"]["listen"] = f"127.0.0.1:{other.port}"
        taken["upstreams"]["erp"] = data["upstreams"]["plm"] | {"base_url": other.url, "listen": f"unix:{tmp_path}/x"}
        for _ in range(2):
            with pytest.raises(ConfigurationError, match=r"upstreams\.plm\.listen: cannot listen on"):
                await rig.app.reload(settings(taken))
        assert status_of(await get(rig, upstream.url.encode())) == 200
        assert status_of(await get(rig, b"/", "plm")) == 200


async def test_reloads_under_load_fail_no_request(tokens: TokenServer, tmp_path: Path) -> None:
    """Twenty of them, each with another setting, while eight clients ask on kept connections; none is left behind."""
    answered: list[bytes] = []
    done = asyncio.Event()

    async def client(rig: Rig) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port("plm"))
        while not done.is_set():
            writer.write(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answered.append(await reader.readexactly(len(OK)))
        writer.close()

    async with recorder() as upstream:
        data = configuration(upstream.url, tokens.url, tmp_path)
        async with sidecar(data) as rig:
            clients = [asyncio.create_task(client(rig)) for _ in range(8)]
            for number in range(20):
                data["upstreams"]["plm"]["retry"] = {"cap": f"{number + 1}s"}
                await rig.app.reload(settings(data))
                before = len(answered)
                async with asyncio.timeout(PATIENCE):
                    while len(answered) < before + 8:
                        await asyncio.sleep(0.005)
            done.set()
            await asyncio.gather(*clients)
            retired = rig.app._retired
            assert retired
            await asyncio.wait_for(retired, PATIENCE)
            left = [task.get_name() for task in asyncio.all_tasks() if "retirement" in task.get_name()]

    assert set(answered) == {OK}
    assert tokens.calls == 1
    assert left == []


# Files.


@contextlib.asynccontextmanager
async def watched(rig: Rig, file: Path) -> AsyncIterator[Reloader]:
    """Run the reloader of *file* beside the sidecar."""
    reloader = Reloader(rig.app, lambda: load(file, environ={}), file, clock=SystemClock(), emit=rig.events.append)
    task = asyncio.create_task(reloader.watch())
    yield reloader
    task.cancel()
    await asyncio.wait({task})


async def until(rig: Rig, result: str, number: int = 1) -> Reload:
    async with asyncio.timeout(PATIENCE):
        while (
            len(found := [each for each in rig.events if isinstance(each, Reload) and each.result == result]) < number
        ):
            await asyncio.sleep(0.05)
    return found[-1]


@pytest.mark.parametrize("way", ["written", "replaced", "symlink"])
async def test_changed_file_is_read_again(
    upstream: Recorder, other: Recorder, tokens: TokenServer, tmp_path: Path, way: str
) -> None:
    """In whichever way it changed; Kubernetes points a symbolic link elsewhere."""
    data = configuration(upstream.url, tokens.url, tmp_path / "state")
    file = tmp_path / "config.yaml"
    if way == "symlink":
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        (tmp_path / "data").symlink_to("one")
        file = tmp_path / "data/config.yaml"
    file.write_text(json.dumps(data))
    async with sidecar(data) as rig, watched(rig, file):
        data["upstreams"]["plm"]["base_url"] = other.url
        changed = json.dumps(data)
        if way == "written":
            file.write_text(changed)
        elif way == "replaced":
            (tmp_path / "new").write_text(changed)
            (tmp_path / "new").replace(file)
        else:
            (tmp_path / "two/config.yaml").write_text(changed)
            (tmp_path / "link").symlink_to("two")
            (tmp_path / "link").replace(tmp_path / "data")
        await until(rig, "ok")
        await get(rig, b"/", "plm")

    assert len(other.seen) == 1


async def test_broken_file_is_refused_and_told_of(upstream: Recorder, tokens: TokenServer, tmp_path: Path) -> None:
    """The old configuration serves on, `/status` says why, and a good file ends that."""
    data = configuration(upstream.url, tokens.url, tmp_path / "state")
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(data))
    async with sidecar(data) as rig, watched(rig, file) as reloader:
        for number in range(20):
            file.write_text(json.dumps(data | {f"nonsense{number}": 1}))
            await reloader.reload()
            assert status_of(await get(rig, upstream.url.encode())) == 200
        refused = await until(rig, "refused", 20)
        status = await raw(rig.port("admin"), b"GET /status HTTP/1.1\r\nHost: localhost\r\n" + CLOSE)
        file.write_text(json.dumps(data))
        await until(rig, "unchanged")
        after = await raw(rig.port("admin"), b"GET /status HTTP/1.1\r\nHost: localhost\r\n" + CLOSE)

    assert "nonsense19: unknown key" in refused.detail
    assert b"nonsense19: unknown key" in status
    assert b'"reload_refused": null' in after


async def test_secret_that_cannot_be_read_is_refused_and_told_of(
    upstream: Recorder, tokens: TokenServer, tmp_path: Path
) -> None:
    """A reload that would leave an upstream without its secret changes nothing: the old configuration serves on."""
    secret = tmp_path / "secret"
    secret.write_text(canary("plm"))
    data = configuration(upstream.url, tokens.url, tmp_path / "state")
    data["upstreams"]["plm"]["oauth2"]["client_secret"] = {"file": str(secret)}
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(data))
    async with sidecar(data) as rig, watched(rig, file) as reloader:
        assert status_of(await get(rig, upstream.url.encode())) == 200
        secret.unlink()
        file.write_text(json.dumps(data | {"grace": "9s"}))
        await reloader.reload()
        refused = await until(rig, "refused")
        assert status_of(await get(rig, upstream.url.encode())) == 200
        grace = rig.app.settings.grace

    assert "upstreams.plm.oauth2.client_secret" in refused.detail
    assert grace != 9
    assert tokens.calls == 1


async def test_changed_secret_ends_a_rejection(upstream: Recorder, tokens: TokenServer, tmp_path: Path) -> None:
    """Nobody has to ask: the new secret is tried as soon as its file is seen."""
    secret = tmp_path / "secret"
    secret.write_text(canary("old"))
    tokens.status = 401
    oauth2 = {"client_secret": {"file": str(secret)}}
    data = configuration(upstream.url, tokens.url, tmp_path / "state", oauth2=oauth2)
    data["upstreams"]["plm"]["oauth2"]["client_secret"] = {"file": str(secret)}
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(data))
    async with sidecar(data) as rig, watched(rig, file):
        assert problem_of(await get(rig, upstream.url.encode()))["reason"] == "credential_rejected"
        tokens.status = 200
        secret.write_text(canary("new"))
        await until(rig, "ok")
        async with asyncio.timeout(PATIENCE):
            while not [each for each in rig.events if isinstance(each, Renewal) and each.result == "ok"]:
                await asyncio.sleep(0.02)
        assert status_of(await get(rig, upstream.url.encode())) == 200


# The end.


async def test_waits_end_with_503_when_the_sidecar_stops(tokens: TokenServer, tmp_path: Path) -> None:
    """A request in backoff is not kept to the end of its patience; one in flight gets its answer, which closes."""
    release = asyncio.Event()

    async def script(seen: Seen, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"/busy" in seen.line:
            writer.write(b"HTTP/1.1 502 Busy\r\nContent-Length: 0\r\nRetry-After: 20\r\n\r\n")
        else:
            await release.wait()
            writer.write(OK)

    async with recorder(script) as upstream:
        data = configuration(upstream.url, tokens.url, tmp_path)
        async with sidecar(data) as rig:
            waiting = [asyncio.create_task(get(rig, upstream.url.encode() + b"/busy")) for _ in range(5)]
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.port())
            writer.write(b"GET %b/slow HTTP/1.1\r\nHost: a\r\n\r\n" % upstream.url.encode())
            idle = await asyncio.open_connection("127.0.0.1", rig.port())
            async with asyncio.timeout(PATIENCE):
                while len(upstream.seen) < 6:
                    await asyncio.sleep(0.01)
            draining = asyncio.create_task(rig.app.drain(25.0, SystemClock(), rig.events.append))
            refused = await asyncio.wait_for(asyncio.gather(*waiting), 15)
            assert await asyncio.wait_for(idle[0].read(), 15) == b""
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", rig.port())
            assert b'"addresses"' in await raw(
                rig.port("admin"), b"GET /status HTTP/1.1\r\nHost: localhost\r\n" + CLOSE
            )
            release.set()
            answer = await asyncio.wait_for(reader.read(), PATIENCE)
            await draining
            writer.close()
            idle[1].close()

    assert {problem_of(each)["reason"] for each in refused} == {"shutting_down"}
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"\r\nConnection: close\r\n" in answer
    drains = [event for event in rig.events if isinstance(event, Drain)]
    assert (drains[0].ended, drains[0].in_flight) == (False, 6)
    assert (drains[1].ended, drains[1].cut) == (True, 0)
