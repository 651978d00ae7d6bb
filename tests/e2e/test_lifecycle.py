"""Started, asked whether it is ready, and stopped by machines."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.process import Running, start_sidecar
from tests.redis_servers import free_port
from tests.rig import OK, Seen, configuration, problem_of, raw, recorder, status_of, token_server
from tests.waiting import PATIENCE, until

REQUEST = b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


async def get(running: Running, path: bytes) -> bytes:
    return await raw(running.port("plm"), REQUEST % path, wait=60)


async def ready(running: Running) -> tuple[int, dict[str, str]]:
    """Return status and reasons of `/readyz`, which answers whatever is down."""
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client:
        answer = await client.get(f"http://{running.addresses['admin']}/readyz")
    return answer.status_code, answer.json()["reasons"]


async def until_ready(running: Running, wanted: int) -> dict[str, str]:
    async with asyncio.timeout(PATIENCE):
        while True:
            status, reasons = await ready(running)
            if status == wanted:
                return reasons
            await asyncio.sleep(0.05)


async def test_sigterm_with_everything_under_way(tmp_path: Path, outputs: Path) -> None:
    """Requests in flight are answered, those in backoff refused, the renewal is stored; exit code 0."""
    release = asyncio.Event()

    async def script(seen: Seen, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"/busy" in seen.line:
            writer.write(b"HTTP/1.1 502 Busy\r\nContent-Length: 0\r\nRetry-After: 20\r\n\r\n")
        else:
            await release.wait()
            writer.write(OK)

    async with recorder(script) as upstream, token_server() as issuer:
        data = configuration(upstream.url, issuer.url, tmp_path / "state")
        async with start_sidecar(data, tmp_path, outputs / "sigterm.log") as running:
            await until_ready(running, 200)
            flying = [asyncio.create_task(get(running, b"/slow")) for _ in range(100)]
            waiting = [asyncio.create_task(get(running, b"/busy")) for _ in range(5)]
            await until(lambda: len(upstream.seen) == 105, "the requests")
            issuer.delay = 2.0
            renewal = asyncio.create_task(_renew(running, tmp_path))
            await until(lambda: issuer.calls == 2, "the renewal")
            running.process.terminate()
            refused = await asyncio.wait_for(asyncio.gather(*waiting), 15)  # of the 20 that they were asked to wait
            status, reasons = await ready(running)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", running.port())
            release.set()
            answers = await asyncio.gather(*flying)
            code = await asyncio.wait_for(running.process.wait(), PATIENCE)
            await asyncio.wait({renewal})
            drains = running.log_events("drain")
        async with start_sidecar(data, tmp_path, outputs / "sigterm.log") as running:
            await until_ready(running, 200)
            await get(running, b"/slow")
        used = upstream.seen[-1].values(b"Authorization")[0]

    assert {(status_of(each), problem_of(each)["reason"]) for each in refused} == {(503, "shutting_down")}
    assert {status_of(each) for each in answers} == {200}
    assert (status, reasons) == (503, {"sidecar": "shutting down"})
    assert code == 0
    assert (drains[0]["in_flight"], drains[1]["cut"]) == (105, 0)
    assert issuer.calls == 2
    assert used.endswith(b"-2")


async def _renew(running: Running, tmp_path: Path) -> None:
    proof = {"Authorization": f"Bearer {(tmp_path / 'state/admin.token').read_text()}"}
    async with httpx.AsyncClient(trust_env=False, timeout=20.0) as client:
        await client.post(f"http://{running.addresses['admin']}/upstreams/plm/renew", headers=proof)


async def test_second_sigterm_ends_at_once(tmp_path: Path, outputs: Path) -> None:
    """Whoever says it twice means it."""
    never = asyncio.Event()

    async def script(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await never.wait()
        writer.write(OK)

    async with recorder(script) as upstream, token_server() as issuer:
        data = configuration(upstream.url, issuer.url, tmp_path / "state")
        async with start_sidecar(data, tmp_path, outputs / "twice.log") as running:
            flying = asyncio.create_task(get(running, b"/slow"))
            await until(lambda: upstream.seen, "the request")
            running.process.terminate()
            await until(lambda: running.log_events("drain"), "the first one is heard")
            assert running.process.returncode is None
            running.process.terminate()
            code = await asyncio.wait_for(running.process.wait(), 20)  # of the 25 that the first one leaves
            never.set()

    assert await flying == b""
    assert code != 0


async def test_grace_is_the_most_that_a_request_gets(tmp_path: Path, outputs: Path) -> None:
    """What has not ended then is cut, and the log says how many."""
    never = asyncio.Event()

    async def script(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await never.wait()
        writer.write(OK)

    async with recorder(script) as upstream, token_server() as issuer:
        data = configuration(upstream.url, issuer.url, tmp_path / "state")
        async with start_sidecar(data, tmp_path, outputs / "grace.log", "--grace", "500ms") as running:
            flying = asyncio.create_task(get(running, b"/slow"))
            await until(lambda: upstream.seen, "the request")
            running.process.terminate()
            code = await asyncio.wait_for(running.process.wait(), 20)  # of the usual 25
            never.set()

    assert await flying == b""
    assert (code, running.log_events("drain")[1]["cut"]) == (0, 1)


# Readiness.


async def ready_with(data: dict[str, Any], folder: Path, log: Path, wanted: int) -> dict[str, str]:
    async with start_sidecar(data, folder, log) as running:
        return await until_ready(running, wanted)


async def test_not_ready_while_the_issuer_is_down(tmp_path: Path, outputs: Path) -> None:
    """From the first attempt on, until there is a token."""
    async with recorder() as upstream, token_server() as issuer:
        issuer.status = 503
        data = configuration(upstream.url, issuer.url, tmp_path / "state")
        async with start_sidecar(data, tmp_path, outputs / "down.log") as running:
            reasons = await until_ready(running, 503)
            issuer.status = 200
            await until_ready(running, 200)

    assert set(reasons) == {"plm"}


async def test_not_ready_with_a_wrong_secret(tmp_path: Path, outputs: Path) -> None:
    """The reason says whose fault it is."""
    async with recorder() as upstream, token_server() as issuer:
        issuer.status = 401
        data = configuration(upstream.url, issuer.url, tmp_path / "state")
        async with start_sidecar(data, tmp_path, outputs / "wrong.log") as running:
            async with asyncio.timeout(PATIENCE):
                while (await ready(running))[1] != {"plm": "the issuer refused the credential"}:
                    await asyncio.sleep(0.05)


async def test_ready_without_redis(tmp_path: Path, outputs: Path) -> None:
    """The token in memory serves; the log tells of the store."""
    async with recorder() as upstream, token_server() as issuer:
        data = configuration(upstream.url, issuer.url, tmp_path / "state")
        (tmp_path / "key").write_text("A" * 43)
        data["store"] = {"url": f"redis://127.0.0.1:{free_port()}", "keys": [{"file": str(tmp_path / "key")}]}
        async with start_sidecar(data, tmp_path, outputs / "redis.log") as running:
            await until_ready(running, 200)
            answer = await get(running, b"/x")
            troubles = running.log_events("trouble")

    assert status_of(answer) == 200
    assert any("store" in event["where"] for event in troubles)


async def test_optional_upstream_does_not_count(tmp_path: Path, outputs: Path) -> None:
    """One that is down is no reason; a required one is."""
    async with recorder() as upstream, token_server() as issuer, token_server() as broken:
        broken.status = 503
        data = configuration(upstream.url, issuer.url, tmp_path / "state")
        erp = json.loads(json.dumps(data["upstreams"]["plm"])) | {"base_url": f"{upstream.url}/erp"}
        erp["oauth2"] |= {"token_url": broken.url, "client_id": "erp"}
        data["upstreams"]["erp"] = erp | {"renew": {"startup": "optional"}}
        assert await ready_with(data, tmp_path, outputs / "optional.log", 200) == {}
        data["upstreams"]["erp"] = erp
        assert set(await ready_with(data, tmp_path, outputs / "required.log", 503)) <= {"erp", "plm"}
