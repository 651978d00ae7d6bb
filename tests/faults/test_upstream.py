"""Upstreams that refuse, throttle, vanish and hang: what a script sees, and what they get to see."""

import asyncio
import hashlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.site import (
    GOOD,
    REFUSED,
    by_path,
    closing,
    in_turn,
    many,
    metric,
    plm_site,
    request,
    reset,
    site,
)
from tests.process import start_sidecar
from tests.rig import Seen, configuration, problem_of, raw, recorder, status_of, token_server
from tests.waiting import PATIENCE, until

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


def generation(seen: Seen) -> bytes:
    """Return the number of the token that a request carried."""
    return seen.values(b"authorization")[0].rpartition(b"-")[2]


# Tokens that are refused.


async def test_flt_up_01_revoked_tokens_cost_one_renewal(tmp_path: Path, log: Path) -> None:
    """One renewal serves all, each request is sent again with its own body, and the script sees no 401."""
    bodies = {str(number): os.urandom(200 + number) for number in range(200)}
    async with plm_site(tmp_path, log) as (running, plm):
        port = running.port("plm")
        assert status_of(await raw(port, request(b"/echo/warm"))) == 200
        plm.change(token_delay=1)
        plm.revoke_all()
        posts = (
            request(b"/echo/x", b"POST", b"X-Job-Id: %b" % job.encode(), body=body) for job, body in bodies.items()
        )
        answers = await asyncio.gather(*(raw(port, post) for post in posts))

    assert {status_of(answer) for answer in answers} == {200}
    digests = [hashlib.sha256(body).hexdigest().encode() for body in bodies.values()]
    assert all(digest in answer for digest, answer in zip(digests, answers, strict=True))
    assert plm.counters.token_calls.total() == 2
    assert plm.counters.jobs == dict.fromkeys(bodies, 1)
    assert plm.counters.sent[401] > 1


async def test_flt_up_02_path_that_refuses_every_token_disturbs_no_other(tmp_path: Path, log: Path) -> None:
    """One renewal is tried per `renew.min_interval`, then its 401 is passed on as it came, and other paths go on."""
    async with site(tmp_path, log, by_path({b"/locked": REFUSED})) as at:
        pairs = [(await at.send(b"/locked"), await at.send(b"/open")) for _ in range(20)]

    assert {locked for locked, _ in pairs} == {closing(REFUSED)}
    assert {status_of(other) for _, other in pairs} == {200}
    assert at.issuer.calls == 2
    assert at.count(b"/locked") == 21


async def test_flt_up_03_late_401_for_an_old_token_causes_no_renewal(tmp_path: Path, log: Path) -> None:
    """The request is sent again with the token that is there already, and the issuer is not asked."""
    late = asyncio.Event()

    async def script(seen: Seen, _: Reader, writer: Writer) -> None:
        if b"/late" in seen.line and generation(seen) == b"1":
            await late.wait()
        writer.write(REFUSED if generation(seen) == b"1" else GOOD)

    async with site(tmp_path, log, script, renew={"min_interval": "0s"}) as at:
        waiting = asyncio.create_task(at.send(b"/late", b"POST", body=b"once"))
        await until(lambda: at.count(b"/late"), "the request that is late")
        prompt = await at.send(b"/prompt")
        late.set()
        answer = await waiting

    assert (status_of(prompt), status_of(answer)) == (200, 200)
    assert [generation(seen) for seen in at.upstream.seen if b"/late" in seen.line] == [b"1", b"2"]
    assert at.issuer.calls == 2


CHALLENGES = {
    "scope": ([b'Bearer realm="a", error="insufficient_scope", scope="write"'], False),
    "nonce": ([b'DPoP error="use_dpop_nonce"'], False),
    "basic": ([b'Basic realm="a"'], True),
    "others": ([b"Negotiate", b'Digest realm="a", nonce="b"'], True),
    "several": ([b'Basic realm="a, b", Bearer error="invalid_token"'], True),
    "broken": ([b'=,;"Bearer'], True),
    "none": ([], True),
}


async def test_flt_up_04_challenge_decides_whether_a_new_token_can_help(tmp_path: Path, log: Path) -> None:
    """Whatever it names gets one new token, but for `insufficient_scope` and a nonce that DPoP asks for."""
    refusals = {}
    for name, (challenges, _) in CHALLENGES.items():
        fields = b"".join(b"WWW-Authenticate: %b\r\n" % challenge for challenge in challenges)
        refusals[name] = b"HTTP/1.1 401 Unauthorized\r\n%bContent-Length: 2\r\n\r\nno" % fields
    tokens: dict[str, bytes] = {}

    async def script(seen: Seen, _: Reader, writer: Writer) -> None:
        name = seen.line.split(b"/")[1].decode()
        old = tokens.setdefault(name, generation(seen)) == generation(seen)
        writer.write(refusals[name] if old else GOOD)

    async with many(tmp_path, log, script, CHALLENGES) as at:
        answers = {name: await at.send(b"/x", b"POST", body=b"once", to=name) for name in CHALLENGES}

    expected = {name: GOOD if renewed else refusals[name] for name, (_, renewed) in CHALLENGES.items()}
    assert answers == {name: closing(answer) for name, answer in expected.items()}
    assert at.issuer.calls == len(CHALLENGES) + sum(renewed for _, renewed in CHALLENGES.values())


async def test_flt_up_05_forbidden_is_the_scripts_own_affair(tmp_path: Path, log: Path) -> None:
    """It is passed on at once, causes no renewal, and however many come, no breaker opens."""
    forbidden = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"
    async with site(tmp_path, log, by_path({b"/forbidden": forbidden})) as at:
        answers = [await at.send(b"/forbidden") for _ in range(40)]
        allowed = await at.send(b"/allowed")
        breaker = await metric(at.running, "auth_sidecar_breaker_state")

    assert set(answers) == {closing(forbidden)}
    assert status_of(allowed) == 200
    assert (at.count(b"/forbidden"), at.issuer.calls, breaker) == (40, 1, 0)


# Upstreams that are not there.


async def attempts_at(base_url: str, folder: Path, log: Path, **upstream: Any) -> tuple[bytes, int, float]:
    """Return the answer to a POST, the attempts that the log tells of, and the seconds that it took."""
    async with token_server() as issuer:
        data = configuration(base_url, issuer.url, folder / "state", retry={"base": "1ms"}, **upstream)
        async with start_sidecar(data, folder, log) as running:
            began = time.monotonic()
            answer = await raw(running.port("plm"), request(b"/x", b"POST", body=b"once"))
            seconds = time.monotonic() - began
    return answer, running.log_events("request")[0]["attempts"], seconds


async def test_flt_up_09_closed_port_is_a_502(tmp_path: Path, log: Path) -> None:
    """A closed port is tried three times, for any method since nothing was sent, then the script gets 502."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        answer, attempts, _ = await attempts_at(url, tmp_path, log)

    assert (status_of(answer), problem_of(answer)["reason"]) == (502, "upstream_unreachable")
    assert attempts == 3


async def test_flt_up_09_port_that_takes_no_connection_is_a_504(tmp_path: Path, log: Path) -> None:
    """One that takes no connection is given up after `timeout.connect` each time, then the script gets 504."""
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        # The kernel leaves a connection alone that does not fit into the queue of a server that takes none.
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for client in (first, second):
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        answer, attempts, seconds = await attempts_at(url, tmp_path, log, timeout={"connect": "400ms"})

    assert (status_of(answer), problem_of(answer)["reason"]) == (504, "upstream_timeout")
    assert attempts == 3
    assert seconds > 1.1


# Upstreams that break off.


@pytest.mark.parametrize(("method", "status", "seen"), [(b"GET", 200, 2), (b"PUT", 200, 2), (b"POST", 502, 1)])
async def test_flt_up_10_reset_before_the_answer_repeats_what_may_be_repeated(
    tmp_path: Path, log: Path, method: bytes, status: int, seen: int
) -> None:
    """GET, PUT and the like are sent again, a POST is not, since it may have been done, and the script gets 502."""
    async with site(tmp_path, log, in_turn(b"", GOOD)) as at:
        answer = await at.send(b"/x", method, body=b"body")

    assert status_of(answer) == status
    assert at.count() == seen
    if status == 502:
        assert problem_of(answer)["reason"] == "upstream_unreachable"


def close(writer: Writer) -> None:
    """End a connection with FIN."""
    writer.close()


@pytest.mark.parametrize(
    ("method", "end", "status", "seen"),
    [
        pytest.param(b"GET", close, 200, 2, id="GET, close"),
        pytest.param(b"GET", reset, 200, 2, id="GET, reset"),
        pytest.param(b"POST", close, 502, 1, id="POST, close"),
        pytest.param(b"POST", reset, 502, 1, id="POST, reset"),
    ],
)
async def test_flt_up_12_idle_connection_that_dies_in_use(
    tmp_path: Path, log: Path, method: bytes, end: Callable[[Writer], None], status: int, seen: int
) -> None:
    """A GET is sent again at once on a new connection, beyond `retry.attempts`, a POST is not and gets 502."""
    used: set[Writer] = set()

    async def script(_: Seen, __: Reader, writer: Writer) -> None:
        if writer in used:
            end(writer)
        else:
            used.add(writer)
            writer.write(GOOD)

    async with site(tmp_path, log, script, retry={"attempts": 1}) as at:
        assert status_of(await at.send(b"/warm")) == 200
        answer = await at.send(b"/x", method, body=b"")

    assert status_of(answer) == status
    assert at.count(b"/x") == seen
    assert at.upstream.connections == seen


@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_flt_up_13_silence_is_a_504(tmp_path: Path, log: Path, method: bytes) -> None:
    """After `timeout.first_byte` the script gets 504, for a write with the word that its outcome is unknown."""

    async def script(_: Seen, reader: Reader, __: Writer) -> None:
        await reader.read()

    settings = {"timeout": {"first_byte": "400ms"}, "retry": {"base": "1ms"}}
    async with site(tmp_path, log, script, **settings) as at:
        began = time.monotonic()
        answer = await at.send(b"/x", method, body=b"")
        seconds = time.monotonic() - began

    assert (status_of(answer), problem_of(answer)["reason"]) == (504, "upstream_timeout")
    assert problem_of(answer).get("outcome") == (None if method == b"GET" else "unknown")
    assert at.count() == 1
    assert seconds > 0.39


# Where the credential may go.


async def test_flt_up_21_redirect_is_never_followed(tmp_path: Path, log: Path) -> None:
    """It is passed on with its `Location`, and the other host gets neither a connection nor the token."""
    async with recorder() as other:
        moved = {
            b"/%b" % status: b"HTTP/1.1 %b X\r\nLocation: %b/next\r\nContent-Length: 0\r\n\r\n"
            % (status, other.url.encode())
            for status in (b"301", b"302", b"303", b"307", b"308")
        }
        async with site(tmp_path, log, by_path(moved)) as at:
            answers = {path: await at.send(path) for path in moved}

    assert answers == {path: closing(answer) for path, answer in moved.items()}
    assert other.connections == 0


RESOLVER = """
import socket
from pathlib import Path

ask = socket.getaddrinfo


def answer(host, *arguments, **options):
    return ask(Path({file!r}).read_text() if host in ("plm.test", b"plm.test") else host, *arguments, **options)


socket.getaddrinfo = answer
"""


async def test_flt_up_22_new_address_is_used_within_a_minute(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch, fake_time: dict[str, str]
) -> None:
    """Though the old address still serves, the new one is used within a minute and the 10 s that a name is kept."""
    address = tmp_path / "address"
    address.write_text("127.0.0.1")
    (tmp_path / "sitecustomize.py").write_text(RESOLVER.format(file=str(address)))
    async with recorder() as old, token_server() as issuer:
        # The other loopback address stands for another machine.
        moved = asyncio.Event()

        async def serve(_: Reader, writer: Writer) -> None:
            moved.set()
            writer.write(GOOD)
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.2", old.port):
            patient = {"connect": "5m", "first_byte": "10m"}
            renew = {"timeout": "5m"}
            data = configuration(
                f"http://plm.test:{old.port}", issuer.url, tmp_path / "state", timeout=patient, renew=renew
            )
            for name, value in fake_time.items():
                monkeypatch.setenv(name, value)
            monkeypatch.setenv("FAKETIME", "+0 x10")
            monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
            async with start_sidecar(data, tmp_path, log) as running:
                assert status_of(await raw(running.port("plm"), request(b"/x"))) == 200
                address.write_text("127.0.0.2")
                began, statuses = time.monotonic(), set()
                while not moved.is_set():
                    assert time.monotonic() - began < PATIENCE
                    statuses.add(status_of(await raw(running.port("plm"), request(b"/x"))))
                    await asyncio.sleep(0.1)
                faked = (time.monotonic() - began) * 10

    assert statuses == {200}
    assert old.connections < len(old.seen)
    assert faked < 200


async def test_flt_up_23_token_in_an_answer_goes_to_the_script_only(tmp_path: Path, log: Path) -> None:
    """It reaches the script as the upstream sent it, but no log and no answer of our own, and TRACE is refused."""

    async def echo(seen: Seen, _: Reader, writer: Writer) -> None:
        token = seen.values(b"authorization")[0]
        if b"/broken" in seen.line:
            writer.write(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % token)
        elif b"/cut" in seen.line:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + token)
            writer.close()
        else:
            writer.write(b"HTTP/1.1 400 Bad\r\nX-You: %b\r\nContent-Length: %d\r\n\r\n" % (token, len(token)) + token)

    async with site(tmp_path, log, echo) as at:
        echoed = await at.send(b"/x")
        own = [await at.send(b"/broken", b"POST", body=b""), await at.send(b"/x", b"TRACE")]
        await at.send(b"/cut")
        seen = [each.line.split()[0] for each in at.upstream.seen]
        await until(lambda: len(at.running.log_events("request")) == 4, "the log")

    assert echoed.count(at.upstream.seen[0].values(b"authorization")[0]) == 2
    assert [status_of(answer) for answer in own] == [502, 405]
    assert not any(b"CANARY" in answer for answer in own)
    assert "CANARY" not in log.read_text()
    assert b"TRACE" not in seen
