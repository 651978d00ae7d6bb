"""Upstreams that throttle and are overloaded: waits that they ask for, the budget of retries, the breaker."""

import asyncio
import time
from pathlib import Path

import pytest

from tests.faults.site import GOOD, Site, closing, many, metric, request, reset, site
from tests.rig import Script, Seen, status_of
from tests.waiting import PATIENCE

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
DOWN = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\ndown"


def slow_down(*retry_after: bytes) -> bytes:
    """Return a 429 of a server whose clock is years behind."""
    fields = b"".join(b"Retry-After: %b\r\n" % value for value in retry_after)
    date = b"Date: Fri, 01 Mar 2019 10:00:00 GMT\r\n"
    return b"HTTP/1.1 429 Too Many\r\n%b%bContent-Length: 4\r\n\r\nslow" % (date, fields)


def first(answers: dict[str, bytes], at: dict[str, list[float]]) -> Script:
    """Return a script that gives its answer once to each upstream, then what is good; *at*: when requests came."""

    async def script(seen: Seen, __: Reader, writer: Writer) -> None:
        name = seen.line.split(b"/")[1].split()[0].decode()
        at.setdefault(name, []).append(time.monotonic())
        writer.write(answers[name] if len(at[name]) == 1 else GOOD)

    return script


ASKED = {
    "seconds": ([b"1"], 1.0),
    "date": ([b"Fri, 01 Mar 2019 10:00:01 GMT"], 1.0),
    "old_date": ([b"Friday, 01-Mar-19 10:00:01 GMT"], 1.0),
    "c_date": ([b"Fri Mar  1 10:00:01 2019"], 1.0),
    "two": ([b"1", b"29"], 1.0),
    "zero": ([b"0"], 0.1),
    "past": ([b"Fri, 01 Mar 2019 09:00:00 GMT"], 0.1),
    "negative": ([b"-1"], 0.0),
    "fraction": ([b"1.5"], 0.0),
    "word": ([b"abc"], 0.0),
    "empty": ([b""], 0.0),
    "none": ([], 0.0),
}


async def test_flt_up_06_asked_for_wait_is_kept(tmp_path: Path, log: Path) -> None:
    """A GET waits as long as it says, in seconds or as a date, at least `retry.base`, and nonsense counts as absent."""
    at: dict[str, list[float]] = {}
    script = first({name: slow_down(*values) for name, (values, _) in ASKED.items()}, at)
    async with many(tmp_path, log, script, ASKED) as here:
        answers = await asyncio.gather(*(here.send(to=name) for name in ASKED))

    assert {status_of(answer) for answer in answers} == {200}
    assert {name: len(times) for name, times in at.items()} == dict.fromkeys(ASKED, 2)
    waits = {name: times[1] - times[0] + 0.01 for name, times in at.items()}
    assert {name: wait for name, wait in waits.items() if wait < ASKED[name][1]} == {}
    # A busy machine may be late, but not so late as the longer of the two waits.
    assert {name: wait for name, wait in waits.items() if wait > 20} == {}


LONG = {"huge": b"99999999999", "far": b"Thu, 01 Jan 2099 00:00:00 GMT", "over": b"25"}


async def test_flt_up_06_too_long_a_wait_is_for_the_script(tmp_path: Path, log: Path) -> None:
    """A wait over `retry.max_retry_after` is left to the script, which gets the 429 at once, and nobody else waits."""
    at: dict[str, list[float]] = {}
    refusals = {name: slow_down(value) for name, value in LONG.items()}
    async with many(tmp_path, log, first(refusals, at), LONG, retry={"max_retry_after": "20s"}) as here:
        answers = {name: await here.send(to=name) for name in LONG}
        others = {name: await here.send(b"/other", to=name) for name in LONG}

    assert answers == {name: closing(refusal) for name, refusal in refusals.items()}
    assert {status_of(answer) for answer in others.values()} == {200}
    assert all(times[1] - times[0] < 20 for times in at.values())


async def test_flt_up_06_everybody_waits(tmp_path: Path, log: Path) -> None:
    """A 503 that says when to come back holds all others too, POSTs included, until then."""
    at: dict[str, list[float]] = {}
    script = first({"plm": slow_down(b"2").replace(b"429 Too Many", b"503 Busy")}, at)
    async with many(tmp_path, log, script, ["plm"]) as here:
        refused = await here.send(b"/limited", b"POST", body=b"")
        others = await asyncio.gather(*(here.send(b"/other", b"POST", body=b"") for _ in range(10)))

    assert status_of(refused) == 503
    assert {status_of(answer) for answer in others} == {200}
    began, *later = at["plm"]
    assert len(later) == 10
    assert all(each - began > 1.99 for each in later)


async def hammer(here: Site, answers: list[bytes]) -> None:
    """Ask as fast as can be until there are 500 answers."""
    while len(answers) < 500:
        answers.append(await here.send())
        await asyncio.sleep(0.01)


async def recovery(here: Site, path: bytes = b"/x") -> float:
    """Return how many seconds it took until a request was served."""
    began = time.monotonic()
    while status_of(await here.send(path)) != 200:
        assert time.monotonic() - began < PATIENCE
        await asyncio.sleep(0.05)
    return time.monotonic() - began


def is_open(answer: bytes) -> bool:
    return status_of(answer) == 503 and b"circuit_open" in answer


async def test_flt_up_07_burst_opens_the_breaker_and_closes_again(tmp_path: Path, log: Path) -> None:
    """Retries keep to their budget, then the breaker answers 503 at once, and closes within 10 s of the recovery."""
    down = [True]

    async def script(_: Seen, __: Reader, writer: Writer) -> None:
        writer.write(DOWN if down[0] else GOOD)

    answers: list[bytes] = []
    async with site(tmp_path, log, script) as here:
        await asyncio.gather(*(hammer(here, answers) for _ in range(10)))
        calls = here.count()
        state_in_burst = await metric(here.running, "auth_sidecar_breaker_state")
        down[0] = False
        seconds = await recovery(here)
        state_after = await metric(here.running, "auth_sidecar_breaker_state")

    refused = [answer for answer in answers if is_open(answer)]
    assert {status_of(answer) for answer in answers} == {503}
    assert calls <= 1.2 * len(answers) + 10
    assert calls < 100 < len(refused)
    assert all(b"\r\nRetry-After: " in answer for answer in refused)
    assert (state_in_burst in (1, 2), state_after) == (True, 0)
    assert seconds < 14  # of the 15 of `breaker.open_for`


@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "hangs"])
async def test_flt_up_08_probe_without_an_end_is_not_waited_for(tmp_path: Path, log: Path, leaves: bool) -> None:
    """The next probe goes nevertheless, and the breaker closes."""
    down = [True]

    async def script(seen: Seen, reader: Reader, writer: Writer) -> None:
        if b"/hang" in seen.line:
            await reader.read()
        else:
            writer.write(DOWN if down[0] else GOOD)

    async with site(tmp_path, log, script, breaker={"open_for": "4s"}) as here:
        while not is_open(await here.send()):
            pass
        down[0] = False
        # Whoever asks when a probe is due makes it.
        while not here.count(b"/hang"):
            _, writer = await asyncio.open_connection("127.0.0.1", here.running.port("plm"))
            writer.write(request(b"/hang"))
            await asyncio.sleep(0.05)
            if leaves or not here.count(b"/hang"):
                reset(writer)
        seconds = await recovery(here)
        writer.transport.abort()

    assert seconds < 20  # of the 25 of `timeout.first_byte`
