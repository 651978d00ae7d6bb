"""What keeps a sidecar from finishing off an upstream in trouble: budget, breaker, pause and cap, over real sockets."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.clock import SystemClock
from sidecar.events import BreakerChanged, RequestDone
from sidecar.exchange.admission import Admission
from sidecar.policy.reading import Sign
from sidecar.proxy.wire import reset
from sidecar.tokens.seal import new_key
from tests.redis_servers import Server, redis_of_session, redis_server
from tests.rig import OK, Recorder, Rig, Seen, TokenServer, configuration, problem_of, raw, recorder, sidecar, status_of
from tests.waiting import PATIENCE, until

__all__ = ["redis_of_session", "redis_server"]

QUICK = {"base": "1ms", "cap": "1ms"}
NEVER = {"min_requests": 1_000_000}
DOWN = b"HTTP/1.1 503 Down\r\nContent-Length: 4\r\n\r\ndown"


def slow_down(seconds: int, status: bytes = b"429 Slow") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: 4\r\nRetry-After: %d\r\n\r\nslow" % (status, seconds)


class Play:
    """An upstream that answers `data`, or what its path asks for, and can be held up; it notes when it was asked."""

    def __init__(self, data: bytes = OK) -> None:
        self.data = data
        self.first: list[bytes] = []
        self.at: list[float] = []
        self.open = asyncio.Event()
        self.open.set()
        self.busy = self.most = 0

    async def __call__(self, seen: Seen, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = self.first.pop(0) if self.first else self.data
        self.at.append(time.monotonic())
        self.busy += 1
        self.most = max(self.most, self.busy)
        if b"/hang" in seen.line or not self.open.is_set():
            await self.open.wait()
        self.busy -= 1
        if data:
            writer.write(data)
        else:
            writer.close()


@contextlib.asynccontextmanager
async def behind(play: Play, tokens: TokenServer, folder: Path, **upstream: Any) -> AsyncIterator[tuple[Rig, Recorder]]:
    """Run a sidecar in front of *play*; *upstream* are its settings."""
    async with recorder(play) as record:
        data = configuration(record.url, tokens.url, folder, **upstream)
        async with sidecar(data) as running:
            yield running, record


async def get(running: Rig, path: str = "/items", method: str = "GET") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    return await raw(running.port("plm"), head.encode(), wait=PATIENCE)


def admission(running: Rig) -> Admission:
    return running.app._assembly.destinations["plm"].admission


def done(running: Rig) -> list[RequestDone]:
    return [event for event in running.events if isinstance(event, RequestDone)]


def changes(running: Rig) -> list[str]:
    return [event.state for event in running.events if isinstance(event, BreakerChanged)]


def seconds_left(answer: bytes) -> int:
    found = re.search(rb"\r\nRetry-After: (\d+)\r\n", answer)
    assert found
    return int(found[1])


def due_in(running: Rig, seconds: float) -> None:
    """Let the next probe of whatever waits for one be due in so many *seconds*."""
    waits = admission(running).breaker._waits
    assert waits
    for wait in waits.values():
        wait.until = time.monotonic() + seconds


async def open_breaker(running: Rig, play: Play) -> None:
    """Let requests fail until it opens."""
    play.data = DOWN
    while "open" not in changes(running):
        await get(running)


# The budget.


async def test_retries_are_a_share_of_the_requests(tokens: TokenServer, tmp_path: Path) -> None:
    """Two hundred requests at an upstream that is down are 240 attempts, not 600; each gets the upstream's answer."""
    play = Play(DOWN)
    async with behind(play, tokens, tmp_path, retry=QUICK, breaker=NEVER) as (running, upstream):
        answers = [answer for _ in range(10) for answer in await asyncio.gather(*(get(running) for _ in range(20)))]
        refused = [event.refused for event in done(running)]

    assert all(answer.startswith(b"HTTP/1.1 503 Down") for answer in answers)
    assert 200 + 10 <= len(upstream.seen) <= 200 + 40
    assert refused.count("budget") >= 150
    assert set(refused) <= {"budget", "attempts"}


async def test_a_script_alone_has_ten_retries(tokens: TokenServer, tmp_path: Path) -> None:
    """Five requests get all three attempts, with a budget of nothing."""
    async with behind(Play(DOWN), tokens, tmp_path, retry=QUICK | {"budget": "0%"}, breaker=NEVER) as (running, record):
        for _ in range(6):
            await get(running)
        assert len(record.seen) == 5 * 3 + 1


async def test_a_replay_with_a_newer_token_is_no_retry(tokens: TokenServer, tmp_path: Path) -> None:
    """Thirty requests whose token was revoked are all sent again, with a budget of nothing."""

    async def script(seen: Seen, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        old = seen.values(b"Authorization")[0].endswith(b"-1")
        writer.write(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n" if old else OK)

    async with recorder(script) as record:
        data = configuration(record.url, tokens.url, tmp_path, retry={"budget": "0%"})
        async with sidecar(data) as running:
            answers = await asyncio.gather(*(get(running) for _ in range(30)))

    assert [status_of(answer) for answer in answers] == [200] * 30


async def test_a_connection_that_had_ended_is_no_retry(tokens: TokenServer, tmp_path: Path) -> None:
    """Thirty times a kept connection turns out to be closed: all are sent again on a new one."""
    answered: set[asyncio.StreamWriter] = set()

    async def script(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if writer in answered:
            writer.close()
        else:
            answered.add(writer)
            writer.write(OK)

    async with recorder(script) as record:
        data = configuration(record.url, tokens.url, tmp_path, retry={"budget": "0%"}, breaker={"min_requests": 1})
        async with sidecar(data) as running:
            answers = [await get(running) for _ in range(31)]

    assert [status_of(answer) for answer in answers] == [200] * 31
    assert sum(event.verdicts == ("stale", "pass") for event in done(running)) >= 20
    assert changes(running) == []


# The breaker.


async def test_open_breaker_answers_at_once_and_closes_by_itself(tokens: TokenServer, tmp_path: Path) -> None:
    """With the defaults: open after twenty failures, fast answers and few probes, closed ten seconds after recovery."""
    play = Play(DOWN)
    async with behind(play, tokens, tmp_path, retry={"attempts": 1}) as (running, upstream):
        for _ in range(20):
            assert (await get(running)).startswith(b"HTTP/1.1 503 Down")
        assert changes(running) == ["open"]
        sent = len(upstream.seen)
        for _ in range(40):
            answer = await get(running)
            if changes(running) == ["open"]:
                problem = problem_of(answer)
                assert (problem["status"], problem["reason"]) == (503, "circuit_open")
                assert b"Proxy-Status: auth-sidecar; error=destination_unavailable" in answer
                assert seconds_left(answer) == 1
        assert len(upstream.seen) - sent <= 3
        page = await raw(
            running.port("admin"), b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        assert b'auth_sidecar_breaker_state{upstream="plm"} 2.0' in page

        play.data, recovered = OK, time.monotonic()
        while status_of(await get(running)) != 200:
            await asyncio.sleep(0.05)
        assert time.monotonic() - recovered < 14  # of the 15 of `breaker.open_for`
        assert changes(running)[-2:] == ["half_open", "closed"]
        answers = await asyncio.gather(*(get(running) for _ in range(20)))

    assert [status_of(answer) for answer in answers] == [200] * 20


@pytest.mark.parametrize("status", [400, 404, 408, 429, 500, 501])
async def test_these_answers_are_no_failures(tokens: TokenServer, tmp_path: Path, status: int) -> None:
    """One bad endpoint or a limit must not take the others down."""
    play = Play(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status)
    async with behind(play, tokens, tmp_path, retry={"attempts": 1}, breaker={"min_requests": 2}) as (running, _):
        answers = [await get(running) for _ in range(4)]

    assert [status_of(answer) for answer in answers] == [status] * 4
    assert changes(running) == []


@pytest.mark.parametrize("data", [b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % n for n in (502, 503, 504)] + [b""])
async def test_these_outcomes_are_failures(tokens: TokenServer, tmp_path: Path, data: bytes) -> None:
    """An upstream that cannot serve, or that breaks off."""
    async with behind(Play(data), tokens, tmp_path, retry={"attempts": 1}, breaker={"min_requests": 2}) as (running, _):
        for _ in range(2):
            await get(running)
        assert problem_of(await get(running))["reason"] == "circuit_open"


async def test_no_connection_is_a_failure(tokens: TokenServer, tmp_path: Path) -> None:
    """Refused, nothing sent."""
    async with recorder() as record:
        pass
    data = configuration(record.url, tokens.url, tmp_path, retry={"attempts": 1}, breaker={"min_requests": 2})
    async with sidecar(data) as running:
        reasons = [problem_of(await get(running))["reason"] for _ in range(3)]

    assert reasons == ["upstream_unreachable", "upstream_unreachable", "circuit_open"]


async def test_a_request_is_evidence_once_however_often_it_was_tried(tokens: TokenServer, tmp_path: Path) -> None:
    """Three attempts that fail are one failure; one that succeeds in the end is a success."""
    play = Play(DOWN)
    async with behind(play, tokens, tmp_path, retry=QUICK, breaker={"min_requests": 3}) as (running, upstream):
        for _ in range(2):
            await get(running)
        assert len(upstream.seen) == 6
        assert admission(running).breaker.counts(time.monotonic()) == (2, 2)
        play.first = [DOWN, DOWN, OK]
        assert status_of(await get(running)) == 200
        assert admission(running).breaker.counts(time.monotonic()) == (3, 2)

    assert changes(running) == []


async def test_a_page_that_always_fails_does_not_close_the_others(tokens: TokenServer, tmp_path: Path) -> None:
    """A sync that touches a broken page for each item, and good ones: the good ones work."""

    async def script(seen: Seen, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(DOWN if b"/report" in seen.line else OK)

    async with recorder(script) as record:
        async with sidecar(configuration(record.url, tokens.url, tmp_path, retry=QUICK)) as running:
            good = []
            for number in range(40):
                await get(running, f"/items/{number}/report")
                await get(running, f"/report?item={number}")
                good.append(status_of(await get(running, f"/items/{number}")))

    assert set(good) == {200}
    assert changes(running) == []


async def test_breaker_that_opens_during_a_backoff_stops_the_retry(tokens: TokenServer, tmp_path: Path) -> None:
    """It is asked again when the wait is over, and the retry that was not made is not counted."""
    play = Play(DOWN)
    play.first = [slow_down(2, b"502 Bad")]
    async with behind(play, tokens, tmp_path, retry={"attempts": 2}, breaker={"min_requests": 2}) as (
        running,
        upstream,
    ):
        waiting = asyncio.create_task(get(running))
        await until(lambda: upstream.seen, "the first attempt")
        for _ in range(2):
            await get(running, method="POST")
        due_in(running, 20)
        answer = await waiting
        event = next(each for each in done(running) if each.method == "GET")
        assert len(upstream.seen) == 3

    assert answer.endswith(b"slow")
    assert (event.verdicts, event.refused, event.retries, event.attempts) == (("pass",), "circuit_open", 0, 1)


async def test_a_retry_is_no_probe(tokens: TokenServer, tmp_path: Path) -> None:
    """A probe is due when its wait is over: that is for a request that has not failed yet."""
    play = Play(DOWN)
    play.first = [slow_down(2, b"502 Bad")]
    async with behind(play, tokens, tmp_path, retry={"attempts": 2}, breaker={"min_requests": 2}) as (
        running,
        upstream,
    ):
        waiting = asyncio.create_task(get(running))
        await until(lambda: upstream.seen, "the first attempt")
        for _ in range(2):
            await get(running, method="POST")
        due_in(running, -1)
        assert (await waiting).endswith(b"slow")
        assert len(upstream.seen) == 3


async def test_retry_is_not_begun_while_the_breaker_is_open(tokens: TokenServer, tmp_path: Path) -> None:
    """The upstream's own answer is what there is."""
    play = Play()
    async with behind(play, tokens, tmp_path, retry=QUICK, breaker={"min_requests": 2}) as (running, upstream):
        play.open.clear()
        waiting = asyncio.create_task(get(running))
        await until(lambda: upstream.seen, "the first attempt")
        held, play.open = play.open, asyncio.Event()
        play.open.set()
        play.data = DOWN
        for _ in range(2):
            await get(running, method="POST")
        assert changes(running) == ["open"]
        held.set()
        assert status_of(await waiting) == 200


async def test_probe_whose_client_leaves_gives_its_permit_back(tokens: TokenServer, tmp_path: Path) -> None:
    """The next request after the shortest wait is a probe, although the upstream never answered the first."""
    play = Play()
    limits = {"min_requests": 2, "open_for": "3200s"}
    async with behind(play, tokens, tmp_path, retry={"attempts": 1}, breaker=limits) as (running, upstream):
        await open_breaker(running, play)
        breaker = admission(running).breaker
        due_in(running, -1)
        play.open.clear()
        seen = len(upstream.seen)
        _, writer = await asyncio.open_connection("127.0.0.1", running.port("plm"))
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await until(lambda: len(upstream.seen) > seen, "the probe")
        assert breaker.not_before(b"/") > time.monotonic() + 200, "another would have to wait for its end"
        reset(writer)
        await until(lambda: changes(running)[-1] == "open", "the permit is back")
        assert breaker.not_before(b"/") <= time.monotonic() + 200
        due_in(running, -1)
        play.data = OK
        play.open.set()
        assert status_of(await get(running)) == 200

    assert changes(running) == ["open", "half_open", "open", "half_open", "closed"]


async def test_probe_that_hangs_does_not_keep_the_next(tokens: TokenServer, tmp_path: Path) -> None:
    """The upstream is back while a probe from before still waits for its answer."""
    play = Play()
    limits = {"min_requests": 2, "open_for": "1.6s"}
    async with behind(play, tokens, tmp_path, retry={"attempts": 1}, breaker=limits) as (running, upstream):
        await open_breaker(running, play)
        play.data = OK
        seen = len(upstream.seen)
        hanging = asyncio.create_task(get(running, "/items"))
        play.open.clear()
        while len(upstream.seen) == seen:
            if hanging.done():
                hanging = asyncio.create_task(get(running, "/items"))
            await asyncio.sleep(0.02)
        held, play.open = play.open, asyncio.Event()
        play.open.set()
        async with asyncio.timeout(20):
            while status_of(await get(running)) != 200:
                await asyncio.sleep(0.02)
        assert not hanging.done()
        held.set()
        assert status_of(await hanging) == 200

    assert changes(running)[-1] == "closed"


async def test_probe_goes_on_a_new_connection(tokens: TokenServer, tmp_path: Path) -> None:
    """The kept ones may have ended with the outage, and would say nothing of the upstream."""
    play = Play()
    async with behind(play, tokens, tmp_path, retry={"attempts": 1}, breaker={"min_requests": 2}) as (
        running,
        upstream,
    ):
        await open_breaker(running, play)
        assert upstream.connections == 1
        due_in(running, -1)
        play.data = OK
        assert status_of(await get(running)) == 200
        assert upstream.connections == 2
        assert status_of(await get(running)) == 200
        assert upstream.connections == 2


async def test_request_that_waits_for_a_token_does_not_hide_the_breaker(tokens: TokenServer, tmp_path: Path) -> None:
    """Without a usable token and with an open breaker the answer still comes at once."""
    play = Play()
    limits: dict[str, Any] = {"breaker": {"min_requests": 2}, "renew": {"timeout": "2s"}}
    async with behind(play, tokens, tmp_path, retry={"attempts": 1}, **limits) as (running, _):
        await open_breaker(running, play)
        due_in(running, 60)
        tokens.delay = 20.0
        await running.app.brokers["plm"].revoke()
        answer = await asyncio.wait_for(get(running), 15)

    assert problem_of(answer)["reason"] == "circuit_open"


# The pause.


async def test_pause_holds_all_requests_to_the_upstream(tokens: TokenServer, tmp_path: Path) -> None:
    """After a 429 with Retry-After nobody sends before its end, whatever the method; then all are served, spread."""
    play = Play()
    play.first = [slow_down(2)]
    async with behind(play, tokens, tmp_path) as (running, upstream):
        first = asyncio.create_task(get(running))
        await until(lambda: admission(running).pause.until, "the pause")
        others = [asyncio.create_task(get(running, method=method)) for method in ("GET", "POST", "DELETE") * 7]
        answers = await asyncio.gather(first, *others)
        assert len(upstream.seen) == 1 + 22
        waits = sorted(at - play.at[0] for at in play.at[1:])

    assert [status_of(answer) for answer in answers] == [200] * 22
    assert waits[0] >= 1.99
    assert waits[-1] - waits[0] > 0.1, "not all in one moment"


async def test_pause_that_is_passed_on_counts_too(tokens: TokenServer, tmp_path: Path) -> None:
    """The 503 of a POST is its script's, but what the upstream asks for is for all."""
    play = Play()
    play.first = [slow_down(2, b"503 Busy")]
    async with behind(play, tokens, tmp_path) as (running, _):
        assert status_of(await get(running, method="POST")) == 503
        assert status_of(await get(running)) == 200

    assert play.at[1] - play.at[0] >= 1.99


async def test_a_limit_is_waited_out_for_a_post_too(tokens: TokenServer, tmp_path: Path) -> None:
    """A 429 says that nothing was done."""
    play = Play()
    play.first = [slow_down(1)]
    async with behind(play, tokens, tmp_path) as (running, upstream):
        assert status_of(await get(running, method="POST")) == 200
        assert len(upstream.seen) == 2

    assert play.at[1] - play.at[0] >= 0.99


@pytest.mark.parametrize(
    ("data", "settings"),
    [
        (slow_down(31), {}),
        (slow_down(0), {}),
        (slow_down(20, b"502 Bad"), {}),
        (slow_down(20), {"statuses": [503], "unapplied": []}),
        (b"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\nRetry-After: soon\r\n\r\n", {}),
    ],
    ids=["too long", "none", "502", "not a status of ours", "unreadable"],
)
async def test_what_does_not_pause_the_others(
    tokens: TokenServer, tmp_path: Path, data: bytes, settings: dict[str, Any]
) -> None:
    """What we do not respect ourselves is no rule for others."""
    play = Play()
    play.first = [data]
    async with behind(play, tokens, tmp_path, retry={"attempts": 1} | settings) as (running, _):
        await get(running)
        assert admission(running).pause.until == 0.0
        assert status_of(await get(running)) == 200


async def test_no_request_waits_in_pauses_for_longer_than_the_longest(tokens: TokenServer, tmp_path: Path) -> None:
    """Whoever was told to wait again and again gets an answer in the end."""
    async with behind(Play(), tokens, tmp_path, retry={"max_retry_after": "2s"}) as (running, upstream):
        pause = admission(running).pause
        pause.extend(1.5)
        waiting = asyncio.create_task(get(running))
        await asyncio.sleep(1.0)
        pause.extend(2.0)
        answer = await waiting
        assert upstream.seen == []

    assert problem_of(answer)["reason"] == "upstream_paused"


async def test_pauses_before_each_attempt_add_up(tokens: TokenServer, tmp_path: Path) -> None:
    """Who has waited already has less left, and is told what it got in between."""
    play = Play()
    play.first = [DOWN]
    limits = QUICK | {"max_retry_after": "2s"}
    async with behind(play, tokens, tmp_path, retry=limits) as (running, upstream):
        play.open.clear()
        admission(running).pause.extend(1.5)
        waiting = asyncio.create_task(get(running))
        await until(lambda: upstream.seen, "the attempt after the first pause")
        admission(running).pause.extend(1.9)
        play.open.set()
        answer = await waiting
        assert len(upstream.seen) == 1

    assert answer.endswith(b"down")
    assert done(running)[0].refused == "upstream_paused"


async def test_pause_ends_with_the_sidecar(tokens: TokenServer, tmp_path: Path) -> None:
    """Nobody waits into a shutdown."""
    async with behind(Play(), tokens, tmp_path) as (running, upstream):
        admission(running).pause.extend(20)
        waiting = [asyncio.create_task(get(running)) for _ in range(3)]
        await until(lambda: running.app.busy == 3, "requests that wait")
        await asyncio.sleep(0.1)
        await asyncio.wait_for(running.app.drain(PATIENCE, SystemClock(), running.events.append), PATIENCE / 2)
        answers = await asyncio.gather(*waiting)
        assert upstream.seen == []

    assert {problem_of(answer)["reason"] for answer in answers} == {"shutting_down"}


async def test_client_that_leaves_a_pause_is_forgotten(tokens: TokenServer, tmp_path: Path) -> None:
    """Its request is never sent."""
    async with behind(Play(), tokens, tmp_path) as (running, upstream):
        admission(running).pause.extend(1)
        _, writer = await asyncio.open_connection("127.0.0.1", running.port("plm"))
        writer.write(b"GET /gone HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await until(lambda: running.app._assembly.busy == 1, "the request")
        reset(writer)
        await until(lambda: running.app._assembly.busy == 0, "its end")
        assert status_of(await get(running)) == 200
        assert [seen.line.split()[1] for seen in upstream.seen] == [b"/items"]

    assert [event.outcome for event in done(running)] == ["client_gone", "passed"]


def on_redis(data: dict[str, Any], redis: Server, folder: Path, **store: Any) -> dict[str, Any]:
    """Return *data* with the store of *redis* and a key that is made once."""
    keys = folder / "keys"
    if not keys.exists():
        keys.write_text(new_key())
        keys.chmod(0o600)
    return data | {"store": {"url": redis.url, "keys": [{"file": str(keys)}], "timeout": "1s"} | store}


async def test_pause_is_for_all_instances(redis_server: Server, tokens: TokenServer, tmp_path: Path) -> None:
    """One gets a 429; another one that looks at the Redis waits as well, to the same moment."""
    play = Play()
    async with recorder(play) as record, contextlib.AsyncExitStack() as stack:
        first, second = [
            await stack.enter_async_context(
                sidecar(on_redis(configuration(record.url, tokens.url, tmp_path / name), redis_server, tmp_path))
            )
            for name in ("one", "two")
        ]
        assert status_of(await get(second)) == 200
        play.first = [slow_down(8)]
        refused = asyncio.create_task(get(first))
        await until(lambda: admission(first).pause.until, "the pause")
        asked = len(play.at)
        end = play.at[-1] + 8
        while not admission(second).pause.until:
            await get(second)
            await asyncio.sleep(0.1)
            assert time.monotonic() < end, "the other has not heard of it"
        assert admission(second).pause.until == pytest.approx(admission(first).pause.until, abs=0.5)
        play.at.clear()
        answers = await asyncio.gather(refused, get(second))
        assert asked

    assert [status_of(answer) for answer in answers] == [200, 200]
    assert min(play.at) >= end - 0.1


async def test_trouble_with_the_store_is_no_trouble_with_pauses(
    redis_server: Server, tokens: TokenServer, tmp_path: Path
) -> None:
    """Redis is gone: the instance that got the 429 waits, and requests are as fast as ever."""
    play = Play()
    async with recorder(play) as record:
        data = on_redis(configuration(record.url, tokens.url, tmp_path / "one"), redis_server, tmp_path)
        async with sidecar(data) as running:
            assert status_of(await get(running)) == 200
            redis_server.kill()
            for _ in range(3):
                assert status_of(await get(running)) == 200
                await asyncio.sleep(0.5)
            play.first = [slow_down(1)]
            assert status_of(await get(running)) == 200
            assert play.at[-1] - play.at[-2] >= 0.99


# The cap.


async def test_cap_holds_and_nobody_starves(tokens: TokenServer, tmp_path: Path) -> None:
    """Sixty requests through two turns, streaming included: in the order they came, two at a time."""
    play = Play()
    async with behind(play, tokens, tmp_path, sessions={"max_in_flight": 2}) as (running, upstream):
        play.open.clear()
        asking = []
        for number in range(60):
            asking.append(asyncio.create_task(get(running, f"/{number}")))
            await until(lambda: running.app._assembly.busy == len(asking), "the request is in line")
        assert len(upstream.seen) == 2
        play.open.set()
        answers = await asyncio.gather(*asking)
        order = [int(seen.line.split()[1][1:]) for seen in upstream.seen]

    assert [status_of(answer) for answer in answers] == [200] * 60
    assert play.most == 2
    assert all(abs(place - number) <= 2 for place, number in enumerate(order))


async def test_turn_that_does_not_come_in_time_is_an_answer(tokens: TokenServer, tmp_path: Path) -> None:
    """After timeout.connect; and who gave up or left takes no turn along."""
    play = Play()
    limits: dict[str, Any] = {"sessions": {"max_in_flight": 1}, "timeout": {"connect": "0.5s"}}
    async with behind(play, tokens, tmp_path, **limits) as (running, upstream):
        hanging = asyncio.create_task(get(running, "/hang"))
        play.open.clear()
        await until(lambda: upstream.seen, "the one that takes the turn")
        problem = problem_of(await get(running))
        assert (problem["status"], problem["reason"]) == (503, "too_many_connections")
        _, writer = await asyncio.open_connection("127.0.0.1", running.port("plm"))
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await until(lambda: running.app._assembly.busy == 2, "one in line")
        writer.close()
        await until(lambda: running.app._assembly.busy == 1, "it left")
        play.open.set()
        assert status_of(await hanging) == 200
        assert status_of(await get(running)) == 200


async def test_pause_that_begins_in_the_line_is_kept(tokens: TokenServer, tmp_path: Path) -> None:
    """Who gets a turn meanwhile waits without it, and has one again at the end."""
    play = Play()
    async with behind(play, tokens, tmp_path, sessions={"max_in_flight": 1}) as (running, upstream):
        play.open.clear()
        first = asyncio.create_task(get(running))
        await until(lambda: upstream.seen, "the one that takes the turn")
        others = [asyncio.create_task(get(running)) for _ in range(3)]
        await until(lambda: running.app._assembly.busy == 4, "the others in line")
        await asyncio.sleep(0.1)
        admission(running).pause.extend(1.5)
        end = time.monotonic() + 1.5
        play.open.set()
        answers = await asyncio.gather(first, *others)

    assert [status_of(answer) for answer in answers] == [200] * 4
    assert min(play.at[1:]) >= end - 0.02
    assert play.most == 1


async def test_turn_is_kept_while_the_answer_streams(tokens: TokenServer, tmp_path: Path) -> None:
    """The upstream is busy with a request until its last byte."""
    release = asyncio.Event()

    async def script(seen: Seen, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
        if b"/stream" in seen.line:
            await release.wait()
        writer.write(b"k")

    async with recorder(script) as record:
        data = configuration(record.url, tokens.url, tmp_path, sessions={"max_in_flight": 1})
        async with sidecar(data) as running:
            streaming = asyncio.create_task(get(running, "/stream"))
            await until(lambda: record.seen, "the first")
            second = asyncio.create_task(get(running))
            await asyncio.sleep(0.3)
            assert len(record.seen) == 1
            release.set()
            assert [status_of(await task) for task in (streaming, second)] == [200, 200]


async def test_wait_between_two_attempts_takes_no_turn(tokens: TokenServer, tmp_path: Path) -> None:
    """Another request goes meanwhile."""
    play = Play()
    play.first = [slow_down(3, b"502 Bad")]
    async with behind(play, tokens, tmp_path, sessions={"max_in_flight": 1}) as (running, upstream):
        waiting = asyncio.create_task(get(running))
        await until(lambda: upstream.seen, "the first attempt")
        assert status_of(await get(running, "/other")) == 200
        assert not waiting.done()
        assert status_of(await waiting) == 200


# What the broker hears.


@pytest.mark.parametrize(("replayed", "last"), [(OK, Sign.FINE), (None, Sign.EXPIRED)])
async def test_broker_hears_what_became_of_each_token(
    tokens: TokenServer, tmp_path: Path, replayed: bytes | None, last: Sign
) -> None:
    """The sign of each answer, and whether it is about the newer one of the same request."""
    play = Play()
    no = b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n"
    scope = b'HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer error="insufficient_scope"\r\nContent-Length: 0\r\n\r\n'
    heard: list[tuple[int, Sign, bool]] = []
    async with behind(play, tokens, tmp_path, retry={"attempts": 1}, renew={"min_interval": 0}) as (running, _):
        broker: Any = running.app.brokers["plm"]
        broker.heard = lambda token, sign, _part, again, **_: heard.append((token.granted, sign, again))
        await until(lambda: broker.status().usable, "the first token")
        first = broker.status().generation
        for answers in ([OK], [scope], [DOWN], [no, replayed or no]):
            play.first = list(answers)
            await get(running)

    assert [event.renewals for event in done(running)] == [0, 0, 0, 1]
    assert heard == [
        (first, Sign.FINE, False),
        (first, Sign.SCOPE, False),
        (first, Sign.FINE, False),
        (first, Sign.EXPIRED, False),
        (first + 1, last, True),
    ]


# A new configuration.


async def test_upstream_that_changed_begins_with_a_closed_breaker(tokens: TokenServer, tmp_path: Path) -> None:
    """And one that did not keeps what it has."""
    play = Play()
    async with behind(play, tokens, tmp_path, retry={"attempts": 1}, breaker={"min_requests": 2}) as (running, record):
        await open_breaker(running, play)
        kept = running.app.settings.model_copy(update={"grace": 7.0})
        await running.app.reload(kept)
        assert changes(running) == ["open"]
        data = configuration(record.url, tokens.url, tmp_path, retry={"attempts": 1}, breaker={"min_requests": 3})
        await running.app.reload(type(kept).model_validate(data))
        assert changes(running) == ["open", "closed"]
        assert (await get(running)).endswith(b"down")
