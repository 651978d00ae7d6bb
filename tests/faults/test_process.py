"""Processes that are stopped, killed, frozen and starved, and clients that leave: what is left whole."""

import asyncio
import base64
import contextlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from sidecar.emulator import Emulator, Switches
from sidecar.tokens.seal import new_key
from tests.canary import canary
from tests.faults.instances import Instances, generation, get, instances, plain
from tests.faults.issuers import granting, issuer, never
from tests.faults.site import (
    GOOD,
    REFUSED,
    Site,
    admin,
    in_turn,
    metric,
    plm_site,
    request,
    reset,
    site,
)
from tests.fleet import by_password, families, relay, upstream
from tests.process import Running, start_sidecar
from tests.redis_servers import Server, redis_of_session, redis_server
from tests.rig import Seen, configuration, problem_of, raw, recorder, status_of
from tests.waiting import PATIENCE, eventually, until

TOP = Path(__file__).parents[2]
__all__ = ["instances", "redis_of_session", "redis_server"]

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


class Gate:
    """An upstream that answers `/slow` when it is told to, `/busy` with 503, and everything else at once."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def script(self, seen: Seen, reader: Reader, writer: Writer) -> None:
        if b"/slow" in seen.line:
            ends = {asyncio.create_task(self.open.wait()), asyncio.create_task(reader.read())}
            _, left = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        busy = b"HTTP/1.1 503 Busy\r\nRetry-After: 20\r\nContent-Length: 0\r\n\r\n"
        writer.write(busy if b"/busy" in seen.line else GOOD)


@pytest.fixture
def gate() -> Gate:
    return Gate()


async def renew(running: Running, folder: Path) -> None:
    """Have an operator's renewal made; that the sidecar ends meanwhile is no error."""
    proof = {"Authorization": f"Bearer {(folder / 'state/admin.token').read_text()}"}
    with contextlib.suppress(httpx.TransportError):
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            await client.post(f"http://{running.addresses['admin']}/upstreams/plm/renew", headers=proof)


async def end(process: asyncio.subprocess.Process) -> None:
    """Terminate a process, and kill it if that does not help; twice does no harm."""
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(20):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def exit_code(running: Running, within: float) -> int:
    async with asyncio.timeout(within):
        return await running.process.wait()


# Stopping.


async def test_flt_pr_01_sigterm_leaves_time_for_what_is_under_way(tmp_path: Path, log: Path, gate: Gate) -> None:
    """Not ready at once, requests in flight end, waiting ones get 503, the renewal is stored, and it exits with 0."""
    async with site(tmp_path, log, gate.script, oauth2={"client_id": "one"}) as at:
        await at.send()
        flying = [asyncio.create_task(at.send(b"/slow")) for _ in range(100)]
        await until(lambda: at.count(b"/slow") == 100, "the requests")
        waiting = [asyncio.create_task(at.send(b"/busy")) for _ in range(5)]
        await eventually(lambda: metric(at.running, "auth_sidecar_in_flight"), 105)
        await until(lambda: at.count(b"/busy"), "a request that is put off")
        at.issuer.delay = 1.5
        renewal = asyncio.create_task(renew(at.running, tmp_path))
        await until(lambda: at.issuer.calls == 2, "the renewal")
        at.running.process.terminate()
        refused = await asyncio.gather(*waiting)
        ready = await admin(at.running, "/readyz", 10)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", at.running.port("plm"))
        gate.open.set()
        answers = await asyncio.gather(*flying)
        code = await exit_code(at.running, 20)
        await renewal
    async with start_sidecar(json.loads((tmp_path / "config.yaml").read_text()), tmp_path, log) as again:
        stored = await generation(again)

    assert {(status_of(each), problem_of(each)["reason"]) for each in refused} == {(503, "shutting_down")}
    assert (ready.status_code, ready.json()["reasons"]) == (503, {"sidecar": "shutting down"})
    assert {status_of(each) for each in answers} == {200}
    assert (code, stored, at.issuer.calls) == (0, 2, 2)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_flt_pr_02_second_signal_ends_at_once(
    tmp_path: Path, log: Path, gate: Gate, second: signal.Signals
) -> None:
    """Whatever is in flight is cut off, and the ports are free at once."""
    async with site(tmp_path, log, gate.script) as at:
        flying = asyncio.create_task(at.send(b"/slow"))
        await until(lambda: at.count(b"/slow"), "the request")
        at.running.process.terminate()
        await until(lambda: at.running.log_events("drain"), "the first signal")
        before = at.running.process.returncode
        at.running.process.send_signal(second)
        code = await exit_code(at.running, 20)  # of the 25 that the first one leaves
        cut = await flying
        for name in at.running.addresses:
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", at.running.port(name))
        gate.open.set()

    assert before is None
    assert code != 0
    assert cut == b""


async def test_flt_pr_03_after_its_script_the_sidecar_ends_at_once(tmp_path: Path, log: Path) -> None:
    """When the script has ended first, as in a pod with a native sidecar, it ends at once, so that a Job completes."""
    async with site(tmp_path, log) as at:
        # A connection that the script left open and idle does not hold it up.
        reader, writer = await asyncio.open_connection("127.0.0.1", at.running.port("plm"))
        writer.write(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"ok")
        began = time.monotonic()
        at.running.process.terminate()
        code = await exit_code(at.running, 20)
        seconds = time.monotonic() - began
        writer.close()

    assert code == 0
    assert seconds < 10  # of the 25 that it may take


async def test_flt_pr_03_script_that_still_works_is_served_within_the_grace(
    tmp_path: Path, log: Path, gate: Gate
) -> None:
    """When both are stopped at once, what the script has begun is served to its end, within `grace`."""
    async with site(tmp_path, log, gate.script) as at:
        flying = asyncio.create_task(at.send(b"/slow"))
        await until(lambda: at.count(b"/slow"), "the request")
        at.running.process.terminate()
        await asyncio.sleep(2)
        still = at.running.process.returncode
        gate.open.set()
        answer = await flying
        code = await exit_code(at.running, 20)

    assert still is None
    assert status_of(answer) == 200
    assert code == 0


# Killing.


@pytest.fixture
async def plm() -> AsyncIterator[Emulator]:
    """An issuer that gives a refresh token once only."""
    switches = Switches(lifetime=600, supplier_lifetime=None, rotate_refresh=True)
    async with Emulator.start(switches=switches, tls=False) as made:
        yield made


async def kill(running: Running) -> None:
    running.process.kill()
    await running.process.wait()


async def test_flt_pr_04_lease_of_a_killed_instance_runs_out(
    instances: Instances, redis_server: Server, plm: Emulator
) -> None:
    """Another instance goes on when the lease has run out, after ten seconds at most, with one call of its own."""
    async with relay(plm.token_url) as held:
        held.fates = ["unreached"]
        instances.in_redis(redis_server)
        instances.upstreams = {"plm": plain(plm.base_url, held.url, by_password(plm), renew={"timeout": "2s"})}
        async with instances.start("a") as victim:
            await until(lambda: held.arrived == 1, "the call")
            await kill(victim)
        async with instances.start("b") as survivor:
            began = time.monotonic()
            answer = await get(survivor)
            seconds = time.monotonic() - began

    assert answer.status_code == 200
    assert seconds < 30
    assert (held.arrived, held.grants) == (2, ["password"])


async def test_flt_pr_05_refresh_token_that_may_be_spent_is_not_presented_again(
    instances: Instances, plm: Emulator
) -> None:
    """The refresh token may be spent, so the next start leaves it alone and begins anew with the configured grant."""
    async with relay(plm.token_url) as held:
        instances.upstreams = {"plm": plain(plm.base_url, held.url, by_password(plm), renew={"timeout": "2s"})}
        async with instances.start() as victim:
            assert (await get(victim)).status_code == 200
            held.fates = ["unanswered"]
            renewal = asyncio.create_task(instances.renew(victim))
            await until(lambda: len(held.statuses) == 2, "the answer that gets lost")
            await kill(victim)
            await renewal
        async with instances.start() as again:
            first = await get(again)
            plm.revoke_all()

            async def served() -> int:
                return (await get(again)).status_code

            await eventually(served, 200)

    assert first.status_code == 200
    assert held.grants == ["password", "refresh_token", "password"]
    assert held.reused == []


@pytest.mark.parametrize("step", ["in the call", "before the write", "after the write"])
async def test_flt_pr_05_login_that_cannot_begin_anew_is_a_persons(
    instances: Instances, redis_server: Server, step: str
) -> None:
    """With the grant `refresh_token` the others serve to the token's end and then say `credential_rejected`; the issuer
    sees no refresh token twice, unless an operator's `token renew` presents it once more."""
    instances.in_redis(redis_server)
    async with families() as issuer, upstream() as api:
        issuer.lifetime = 15
        instances.upstreams = {"plm": plain(api.url, issuer.url, issuer.settings("alice"), renew={"margin": "1s"})}
        async with instances.pair() as (victim, other):
            for each in (victim, other):
                await eventually(lambda each=each: served(each), 200)
            answered = asyncio.Event()
            issuer.fates = ["unreached" if step == "in the call" else answered]
            renewing = asyncio.create_task(instances.renew(victim))
            await until(lambda: issuer.arrived == 2, "the call")
            if step == "before the write":  # what comes now is dropped when its sender is gone
                redis_server.command("CLIENT", "PAUSE", "60000", "WRITE")
            answered.set()
            if step != "in the call":
                await eventually(lambda: generation(victim), 4)
            await kill(victim)
            redis_server.command("CLIENT", "UNPAUSE")
            await renewing
            assert await served(other) == 200
            if step == "after the write":
                await eventually(lambda: generation(other), 4)
            else:
                await eventually(lambda: served(other), 502)
            assert issuer.reused == []
            assert len(issuer.calls) == (1 if step == "in the call" else 2)
            assert await instances.renew(other, process="b") == (502 if step == "before the write" else 200)
            assert issuer.reused == (["alice"] if step == "before the write" else [])


async def served(sidecar: Running) -> int:
    return (await get(sidecar)).status_code


# Several at once.


async def test_flt_pr_06_two_that_start_at_once_make_one_call(
    instances: Instances, redis_server: Server, plm: Emulator
) -> None:
    """One of them asks the issuer, and the other uses what it got."""
    plm.change(token_delay=0.5)
    instances.in_redis(redis_server)
    instances.upstreams = {"plm": plain(plm.base_url, plm.token_url, by_password(plm), renew={"timeout": "5s"})}
    async with instances.pair() as both:
        answers = await asyncio.gather(*(get(each) for each in both for _ in range(5)))

    assert {answer.status_code for answer in answers} == {200}
    assert plm.counters.token_calls.total() == 1


async def run(*arguments: str, cwd: Path) -> tuple[int | None, bytes, bytes]:
    """Run a command of auth-sidecar and return its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", *arguments),
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(40):
            output, errors = await process.communicate()
    finally:
        await end(process)
    return process.returncode, output, errors


async def test_flt_pr_07_key_is_rotated_without_a_request_that_fails(
    instances: Instances, redis_server: Server, plm: Emulator
) -> None:
    """No request fails, nobody asks for a new token because of it, and when the old key has gone records still open."""
    instances.in_redis(redis_server)
    instances.upstreams = {"plm": plain(plm.base_url, plm.token_url, by_password(plm))}
    keys = instances.folder / "keys"
    old = keys.read_text()
    statuses: set[int] = set()
    async with instances.pair() as both:
        rotated = asyncio.Event()

        async def load(running: Running) -> None:
            while not rotated.is_set():
                statuses.add((await get(running)).status_code)

        clients = [asyncio.create_task(load(running)) for running in both]
        code, _, errors = await run("keys", "rotate", "-c", "config.yaml", str(keys), cwd=instances.folder / "a")
        assert code == 0, errors
        calls = plm.counters.token_calls.total()
        assert await instances.renew(both[0]) == 200
        for running in both:
            await eventually(lambda running=running: generation(running), 3)  # type: ignore[misc]
        rotated.set()
        await asyncio.gather(*clients)
        keys.write_text(keys.read_text().replace(old.strip(), ""))
    async with instances.start("c") as newcomer:
        statuses.add((await get(newcomer)).status_code)
        found = await generation(newcomer)

    assert statuses == {200}
    assert (calls, plm.counters.token_calls.total(), found) == (1, 2, 3)


async def test_flt_pr_07_instance_with_another_key_goes_on_alone(
    instances: Instances, redis_server: Server, plm: Emulator
) -> None:
    """An instance that lacks the key goes on with a token of its own, and leaves the record to those who have it."""
    instances.in_redis(redis_server)
    instances.upstreams = {"plm": plain(plm.base_url, plm.token_url, by_password(plm))}
    async with instances.start("a") as first:
        assert (await get(first)).status_code == 200
        own = instances.folder / "own-keys"
        own.write_text(new_key())
        own.chmod(0o600)
        shared, instances.store = instances.store, {**instances.store, "keys": [{"file": str(own)}]}
        async with instances.start("b") as stranger:
            assert (await get(stranger)).status_code == 200
            troubles = stranger.log_events("trouble")
        instances.store = shared
        async with instances.start("c") as third:
            assert (await get(third)).status_code == 200

    assert plm.counters.token_calls.total() == 2
    assert any("key" in event["detail"] for event in troubles), troubles


# Clients that leave.


async def leave(at: Site, path: bytes, when: Callable[[], Any]) -> None:
    """Begin a request and leave *when* it has come so far; wait until the sidecar has done with it."""
    _, writer = await asyncio.open_connection("127.0.0.1", at.running.port("plm"))
    writer.write(request(path, b"POST", b"Idempotency-Key: 1", body=b"x"))
    await until(when, "the upstream")
    reset(writer)
    path_text = path.decode()
    await until(lambda: any(each["path"] == path_text for each in at.running.log_events("request")), "its end")


async def test_flt_pr_08_work_for_a_client_that_left_stops(tmp_path: Path, log: Path) -> None:
    """What was done for it alone stops, the upstream sees no more of it, and a renewal goes on."""
    closed = asyncio.Event()

    async def script(seen: Seen, reader: Reader, writer: Writer) -> None:
        if b"/waits-for-token" in seen.line:
            writer.write(REFUSED if seen.values(b"authorization")[0].endswith(b"-1") else GOOD)
        elif b"/waits-for-retry" in seen.line:
            writer.write(b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
        elif b"/waits-for-upstream" in seen.line:
            await reader.read()
            closed.set()
        else:
            writer.write(GOOD)

    async with site(tmp_path, log, script) as at:
        assert status_of(await at.send(b"/x")) == 200
        at.issuer.delay = 1.5
        await leave(at, b"/waits-for-token", lambda: at.issuer.calls == 2)
        await leave(at, b"/waits-for-upstream", lambda: at.count(b"/waits-for-upstream"))
        await until(closed.is_set, "the end at the upstream")
        await leave(at, b"/waits-for-retry", lambda: at.count(b"/waits-for-retry"))
        await eventually(lambda: generation(at.running), 2)
        await asyncio.sleep(2)
        busy = await metric(at.running, "auth_sidecar_in_flight")
        outcomes = [each["outcome"] for each in at.running.log_events("request") if "waits" in each["path"]]
        after = await at.send(b"/x")

    assert outcomes == ["client_gone"] * 3
    assert [at.count(b"/waits-for-%b" % what) for what in (b"token", b"retry", b"upstream")] == [1, 1, 1]
    assert (busy, at.issuer.calls, status_of(after)) == (0, 2, 200)


# Bugs.

CHAOS = """
import importlib


def boom(*arguments, **options):
    raise RuntimeError("CANARY-boom")


module, _, name = {place!r}.partition(":")
owner = importlib.import_module(module)
*path, last = name.split(".")
for part in path:
    owner = getattr(owner, part)
setattr(owner, last, boom)
"""


@pytest.mark.parametrize(
    "place",
    [
        "sidecar.proxy.head:parse_head",
        "sidecar.proxy.http1:Reply",
        "sidecar.policy.routing:Routes.find",
        "sidecar.policy.headers:outgoing",
        "sidecar.tokens.broker:Broker.current",
    ],
)
async def test_flt_pr_09_bug_lets_nothing_through(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The script gets 500 `internal`, nothing is sent to the upstream, and the process lives on."""
    (tmp_path / "sitecustomize.py").write_text(CHAOS.format(place=place))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    own = b"Authorization: Bearer " + canary("own").encode()
    async with site(tmp_path, log) as at:
        answers = [await at.send(b"/x", b"POST", own, body=b"body") for _ in range(3)]
        alive = await admin(at.running, "/livez", 10)
        await until(lambda: at.running.log_events("trouble"), "the log")

    assert {(status_of(each), problem_of(each)["reason"]) for each in answers} == {(500, "internal")}
    assert not any(b"CANARY" in each for each in answers)
    assert at.upstream.bytes_in == 0
    assert alive.status_code == 200
    assert any("RuntimeError" in each["detail"] for each in at.running.log_events("trouble"))


RAISING = """
def requestheaders(flow):
    raise RuntimeError("boom")
"""


async def test_flt_pr_09_addon_that_raises_lets_no_credential_through(tmp_path: Path, log: Path) -> None:
    """In mitmdump a request whose addon raises gets 500 too, and nothing of it is sent."""
    (tmp_path / "raising.py").write_text(RAISING)
    scripts = (str(TOP / "addons/auth_sidecar.py"), str(tmp_path / "raising.py"))
    async with recorder() as upstream, issuer(granting("addon")) as says:
        data = configuration(upstream.url, says.url, tmp_path / "state")
        (tmp_path / "config.yaml").write_text(json.dumps(data))
        settings = (f"auth_sidecar_config={tmp_path / 'config.yaml'}", f"confdir={tmp_path}", "server=false")
        arguments = [part for script in scripts for part in ("-s", script)]
        arguments += [part for setting in settings for part in ("--set", setting)]
        with log.open("wb") as stream:
            process = await asyncio.create_subprocess_exec(
                str(Path(sys.executable).with_name("mitmdump")), *arguments, stdout=stream, stderr=stream
            )
        try:
            await until(lambda: '"event": "ready"' in log.read_text(), "mitmdump")
            [ready] = [json.loads(line) for line in log.read_text().splitlines() if '"event": "ready"' in line]
            port = int(ready["addresses"]["proxy"].rpartition(":")[2])
            own = b"Authorization: Bearer " + canary("own").encode()
            target = upstream.url.encode() + b"/x"
            answer = await raw(port, request(target, b"POST", own, body=b"body"))
        finally:
            await end(process)

    assert (status_of(answer), problem_of(answer)["reason"]) == (500, "internal")
    assert "RuntimeError" in log.read_text()
    assert upstream.bytes_in == 0


# Starving.


async def test_flt_pr_10_process_that_stands_still_is_seen(tmp_path: Path, log: Path) -> None:
    """While it stands still `/livez` does not answer, and afterwards the requests that waited are served."""
    async with site(tmp_path, log) as at:
        await at.send()
        at.running.process.send_signal(signal.SIGSTOP)
        try:
            waiting = [asyncio.create_task(at.send()) for _ in range(20)]
            with pytest.raises(httpx.TimeoutException):
                await admin(at.running, "/livez")
            await asyncio.sleep(1)
        finally:
            at.running.process.send_signal(signal.SIGCONT)
        answers = await asyncio.gather(*waiting)
        alive = await admin(at.running, "/livez", 10)

    assert {status_of(answer) for answer in answers} == {200}
    assert alive.status_code == 200


async def refuse_first_token(seen: Seen, _: Reader, writer: Writer) -> None:
    old = b"/first" in seen.line and seen.values(b"authorization")[0].endswith(b"-1")
    writer.write(REFUSED if old else GOOD)


def limit_files(running: Running, size: int) -> None:
    """Let no file of the process grow beyond *size*, as a full disk does."""
    resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


async def test_flt_pr_10_full_disk_costs_replays_of_large_bodies(tmp_path: Path, log: Path) -> None:
    """With a full disk a large body is passed on but not sent again, everything else goes on, and it recovers."""
    large = os.urandom(4 << 20)
    async with site(tmp_path, log, refuse_first_token, renew={"min_interval": "0s"}) as at:
        limit_files(at.running, 64 << 10)
        streamed = await at.send(b"/large", b"POST", body=large)
        refused = await at.send(b"/first", b"POST", body=large)
        small = [await at.send(b"/first", b"POST", body=b"x" * 1000) for _ in range(5)]
        limit_files(at.running, resource.RLIM_INFINITY)
        at.upstream.script = in_turn(REFUSED, GOOD)
        recovered = await at.send(b"/again", b"POST", body=large)

    assert (status_of(streamed), status_of(refused)) == (200, 401)
    assert {status_of(answer) for answer in small} == {200}
    assert [seen.body for seen in at.upstream.seen if b"/large" in seen.line] == [large]
    assert status_of(recovered) == 200
    assert [seen.body for seen in at.upstream.seen if b"/again" in seen.line] == [large, large]


async def test_flt_pr_10_log_that_cannot_be_written_stops_nothing(tmp_path: Path, log: Path) -> None:
    """Neither a log nor an embedded store that cannot be written stops a request or a renewal."""
    async with site(tmp_path, log, refuse_first_token) as at:
        assert status_of(await at.send()) == 200
        limit_files(at.running, 0)
        answers = [await at.send(path, b"POST", body=b"x") for path in (b"/x", b"/first", b"/x")]
        limit_files(at.running, resource.RLIM_INFINITY)

    assert [status_of(answer) for answer in answers] == [200, 200, 200]
    assert at.issuer.calls == 2


async def test_flt_pr_10_descriptors_that_run_out_come_back(tmp_path: Path, log: Path) -> None:
    """Without descriptors new connections wait, those that are there are served, and afterwards all are."""
    async with site(tmp_path, log) as at:
        pid = at.running.process.pid
        reader, writer = await asyncio.open_connection("127.0.0.1", at.running.port("plm"))
        keep = b"GET /kept HTTP/1.1\r\nHost: localhost\r\n\r\n"
        writer.write(keep)
        await reader.readuntil(b"ok")
        used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 10, limit[1]))
        crowd = [await asyncio.open_connection("127.0.0.1", at.running.port("plm")) for _ in range(64)]
        await asyncio.sleep(0.5)
        writer.write(keep)
        async with asyncio.timeout(PATIENCE):
            kept = await reader.readuntil(b"ok")
        for _, each in crowd:
            each.close()
        after = [await at.send() for _ in range(20)]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
        writer.close()

    assert status_of(kept) == 200
    assert {status_of(answer) for answer in after} == {200}


async def test_flt_pr_10_killed_worker_is_replaced(tmp_path: Path, log: Path) -> None:
    """A worker that is killed, by the kernel for its memory say, is replaced, and the others serve meanwhile."""
    async with recorder() as upstream, issuer(granting("workers")) as says:
        data = configuration(upstream.url, says.url, tmp_path / "state") | {"workers": 2}
        async with start_sidecar(data, tmp_path, log) as running:
            pid = running.process.pid

            def workers() -> list[int]:
                return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

            before = workers()
            os.kill(before[0], signal.SIGKILL)
            await until(lambda: before[0] not in workers(), "its end")
            answers = [await raw(running.port("plm"), request(b"/x")) for _ in range(20)]
            await until(lambda: before[0] not in workers() and len(workers()) == 2, "another worker")
            answers += [await raw(running.port("plm"), request(b"/x")) for _ in range(20)]
            replaced = running.log_events("worker_replaced")

    assert {status_of(answer) for answer in answers} == {200}
    assert [event["code"] for event in replaced] == [-signal.SIGKILL]


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_flt_pr_11_clock_that_jumps_costs_a_renewal_at_most(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch, fake_time: dict[str, str]
) -> None:
    """Each jump costs one renewal at most, no request fails, and nothing waits for long or spins."""
    shift = tmp_path / "shift"
    shift.write_text("+0\n")
    for name, value in fake_time.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(shift))
    monkeypatch.setenv("FAKETIME_NO_CACHE", "1")
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    async with issuer(granting("jump", expires_in=1800)) as says, recorder() as upstream:
        data = configuration(upstream.url, says.url, tmp_path / "state", renew={"check_every": "1s"})
        async with start_sidecar(data, tmp_path, log) as running:
            calls, answers = [], []
            for moved in ("+0", "+3600", "-3600"):
                shift.write_text(f"{moved}\n")
                answers += [await raw(running.port("plm"), request(b"/x")) for _ in range(5)]
                used = cpu_seconds(running.process.pid)
                await asyncio.sleep(1.2)
                used = cpu_seconds(running.process.pid) - used
                answers += [await raw(running.port("plm"), request(b"/x")) for _ in range(5)]
                calls.append(says.calls)
                assert used < 1
            stamps = {event["timestamp"][:13] for event in running.log_events("request")}

    assert {status_of(answer) for answer in answers} == {200}
    assert calls[0] == 1
    assert calls[1] == 2
    assert calls[2] <= 3
    assert len(stamps) == 3  # the clock did jump


# Files.


def secret_of(seen: Seen) -> str:
    """Return the client secret that a token request carried."""
    basic = seen.values(b"authorization")[0].partition(b" ")[2]
    return base64.b64decode(basic).decode().partition(":")[2]


async def test_flt_pr_12_replaced_secret_is_used_next(tmp_path: Path, log: Path) -> None:
    """A secret that is replaced as Kubernetes does it is used by the next renewal, without a restart."""
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "secret").write_text(canary(f"secret-{version}"))
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "secret").symlink_to("..data/secret")
    async with issuer(granting("secret")) as says, recorder() as upstream:
        oauth2 = {"client_secret": {"file": str(tmp_path / "secret")}}
        data = configuration(upstream.url, says.url, tmp_path / "state", oauth2=oauth2)
        async with start_sidecar(data, tmp_path, log) as running:
            await until(lambda: says.calls == 1, "the first token")
            (tmp_path / "..data_tmp").symlink_to("2")
            (tmp_path / "..data_tmp").rename(tmp_path / "..data")
            await renew(running, tmp_path)
            answer = await raw(running.port("plm"), request(b"/x"))

    assert [secret_of(seen) for seen in says.record.seen] == [canary("secret-1"), canary("secret-2")]
    assert status_of(answer) == 200


async def test_flt_pr_12_half_written_configuration_is_not_taken(tmp_path: Path, log: Path) -> None:
    """A configuration that is half written is refused and told of, the old one serves on until the file is whole."""
    async with site(tmp_path, log) as at:
        await at.send()
        file = tmp_path / "config.yaml"
        data = json.loads(file.read_text())
        data["upstreams"]["plm"]["read_only"] = True
        whole = json.dumps(data)
        file.write_text(whole[: len(whole) // 2])
        at.running.process.send_signal(signal.SIGHUP)
        await until(lambda: at.running.log_events("reload"), "the refusal")
        during = await at.send(b"/x", b"POST", body=b"x")
        refused = at.running.log_events("reload")[0]
        told = (await admin(at.running, "/status", 10)).text
        file.write_text(whole)
        at.running.process.send_signal(signal.SIGHUP)
        await until(lambda: any(e["result"] == "ok" for e in at.running.log_events("reload")), "the whole one")
        after = await at.send(b"/x", b"POST", body=b"x")

    assert refused["result"] != "ok"
    assert "config.yaml" in refused["detail"]
    assert "config.yaml" in told
    assert (status_of(during), status_of(after)) == (200, 405)


SECRET = {"value": canary("in-a-file")}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (json.dumps(configuration("https://a", "https://b", Path("state"), base_uri=canary("x"))), "plm.base_uri"),
        (json.dumps({"store": {"url": "redis://r", "keys": [SECRET]}, "workers": -1}), "workers"),
        (json.dumps({"listen": {"proxy": canary("no-address")}}), "listen.proxy"),
        (f"upstreams:\n  plm: {{oauth2: {{client_secret: {{value: {canary('cut')}", "config.yaml"),
        (f"a: !!python/object/apply:os.system ['{canary('tag')}']", "config.yaml"),
        ("", "upstreams"),
    ],
    ids=["unknown key", "bad value", "bad address", "cut", "tag", "empty"],
)
async def test_flt_pr_13_bad_configuration_is_one_line(tmp_path: Path, text: str, named: str) -> None:
    """Exit code 2, and one line that names the place and what is expected, without a traceback and without a secret."""
    (tmp_path / "config.yaml").write_text(text)
    code, output, errors = await run("run", "-c", "config.yaml", cwd=tmp_path)

    assert (code, output) == (2, b"")
    assert errors.count(b"\n") == 1
    assert named.encode() in errors
    assert b"Traceback" not in errors
    assert b"CANARY" not in errors


# Everything at once.


async def test_flt_pr_14_health_and_metrics_depend_on_nothing(instances: Instances, redis_server: Server) -> None:
    """Each answers at once, whatever is down, and `/readyz` says why it is not ready."""

    async def silent(_: Seen, reader: Reader, __: Writer) -> None:
        await reader.read()

    instances.in_redis(redis_server, "30s")
    async with issuer(granting("health")) as says, issuer(never) as mute, recorder(silent) as upstream:
        instances.upstreams = {
            "plm": plain(upstream.url, says.url),
            "erp": plain(
                f"{upstream.url}/erp", mute.url, {"client_id": "erp", "client_secret": {"value": canary("erp")}}
            ),
        }
        async with instances.start() as running:
            await until(lambda: says.calls, "the token")
            port = running.port("plm")
            waiting = [asyncio.create_task(raw(port, request(b"/x"))) for _ in range(50)]
            waiting += [asyncio.create_task(raw(running.port("erp"), request(b"/x"))) for _ in range(50)]
            await until(lambda: len(upstream.seen) >= 50, "the requests")
            redis_server.freeze()
            try:
                for path in ("/livez", "/readyz", "/status", "/metrics"):
                    answer = await admin(running, path, 20)  # who asked Redis would wait for longer
                    assert answer.status_code == (503 if path == "/readyz" else 200)
                reasons = (await admin(running, "/readyz", 20)).json()["reasons"]
            finally:
                redis_server.thaw()
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)

    assert set(reasons) == {"erp"}


async def test_flt_pr_15_faults_over_time_leave_nothing_behind(tmp_path: Path, log: Path) -> None:
    """Memory, descriptors and requests in flight are afterwards what they were, as `make soak` shows at length."""
    settings = {"renew": {"min_interval": "0s"}, "retry": {"base": "1ms", "max_retry_after": "0s"}}
    async with plm_site(tmp_path, log, **settings) as (running, plm):
        port, pid = running.port("plm"), running.process.pid

        async def client(number: int, end: float) -> None:
            while time.monotonic() < end:
                body = os.urandom(100 * number)
                with contextlib.suppress(TimeoutError):
                    await raw(port, request(b"/echo/x", b"PUT", body=body), wait=0.01 if number == 7 else 20)

        async def round_of(seconds: float) -> None:
            end = time.monotonic() + seconds
            clients = [asyncio.create_task(client(number, end)) for number in range(8)]
            while time.monotonic() < end:
                await asyncio.sleep(0.5)
                plm.revoke_all()
            await asyncio.gather(*clients)

        def descriptors() -> int:
            return len(list(Path(f"/proc/{pid}/fd").iterdir()))

        assert status_of(await raw(port, request(b"/echo/x"))) == 200
        open_before = descriptors()
        plm.change(every_503=7, every_429=13, drop_every=11, every_500=17, retry_after=0)
        await round_of(3)
        memory_before = running.resident()
        await round_of(4)
        grown = running.resident() - memory_before
        # Idle connections to the upstream are closed after four seconds.
        await until(lambda: descriptors() <= open_before + 1, "descriptors at rest")
        busy = await metric(running, "auth_sidecar_in_flight")
        plm.change(every_503=0, every_429=0, drop_every=0, every_500=0)
        answer = await raw(port, request(b"/echo/x"))

    assert plm.counters.dropped > 10
    assert status_of(answer) == 200
    assert busy == 0
    assert grown < 16
