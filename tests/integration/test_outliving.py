"""The main job: requests outlive their tokens, one renewal serves all, and what cannot be helped is passed on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sidecar.emulator import Emulator, Switches
from sidecar.events import LifetimeDiffers, Renewal, RequestDone
from sidecar.exchange import upstream as upstream_module
from tests.process import start_sidecar
from tests.rig import (
    Recorder,
    Rig,
    Script,
    Seen,
    TokenServer,
    configuration,
    problem_of,
    raw,
    recorder,
    sidecar,
    status_of,
    token_server,
)

CLOSE = b"Connection: close\r\n\r\n"


def _plm_configuration(plm: Emulator, state: Path, **upstream: Any) -> dict[str, Any]:
    oauth2 = {"client_id": plm.client_id, "client_secret": {"value": plm.client_secret}, **upstream.pop("oauth2", {})}
    return configuration(plm.base_url, plm.token_url, state, tls={"ca": str(plm.ca_path)}, oauth2=oauth2, **upstream)


def _post(target: bytes, job: str, body: bytes) -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nX-Job-Id: %b\r\nContent-Length: %d\r\n" % (target, job.encode(), len(body))
    return head + CLOSE + body


async def test_500_posts_outlive_tokens_of_3_seconds(tmp_path: Path, outputs: Path) -> None:
    """A new connection per request over several lives: no failure, each executed once, renewed ahead of expiry."""
    switches = Switches(lifetime=3, supplier_lifetime=None)
    async with Emulator.start(switches=switches) as plm:
        data = _plm_configuration(plm, tmp_path / "state")
        target = plm.base_url.replace("https://", "http://", 1).encode()
        async with start_sidecar(data, tmp_path, outputs / "outliving.log") as running:
            loop = asyncio.get_running_loop()
            started = loop.time()
            for number in range(500):
                body = b"supplier %d" % number
                answer = await raw(running.port(), _post(target + b"/echo/x", f"job-{number}", body))
                assert status_of(answer) == 200
                assert b'"length": %d' % len(body) in answer
                await asyncio.sleep(0.015)
            lifetimes = (loop.time() - started) / switches.lifetime

    assert lifetimes > 2
    assert len(plm.counters.jobs) == 500
    assert set(plm.counters.jobs.values()) == {1}
    # A token is renewed at 80 % of its life at the earliest (renew.margin).
    assert plm.counters.token_calls.total() <= lifetimes / 0.8 + 1 + plm.counters.sent[401]
    # A busy machine may be late with a token in its last moments.
    assert plm.counters.sent[401] <= lifetimes / 2
    assert plm.counters.unissued == 0
    assert set(plm.counters.authorization_fields) == {1}


async def test_revoked_tokens_cost_one_renewal(tmp_path: Path) -> None:
    """200 requests at once, all tokens revoked, a slow issuer, 50 clients that leave: one call, no visible 401."""
    async with Emulator.start(switches=Switches(supplier_lifetime=None)) as plm:
        async with sidecar(_plm_configuration(plm, tmp_path)) as rig:
            target = plm.base_url.replace("https://", "http://", 1).encode()
            await raw(rig.port(), _post(target + b"/echo/warm", "warm", b""))
            plm.change(token_delay=2)
            plm.revoke_all()
            calls = plm.counters.token_calls.total()
            requests = [
                asyncio.create_task(raw(rig.port(), _post(target + b"/echo/x", f"job-{number}", b"x" * 500)))
                for number in range(200)
            ]
            await asyncio.sleep(1)
            for leaving in requests[:50]:
                leaving.cancel()
            answers = await asyncio.gather(*requests[50:])

    assert {status_of(answer) for answer in answers} == {200}
    assert plm.counters.token_calls.total() - calls == 1
    assert set(plm.counters.jobs.values()) == {1}
    assert len(plm.counters.jobs) == 151


async def test_scope_with_a_lifetime_of_its_own_is_reported_once(tmp_path: Path) -> None:
    """What the server grants wins over what is configured; one event tells both numbers and the likely cause."""
    switches = Switches(lifetime=3600, supplier_lifetime=900)
    async with Emulator.start(switches=switches) as plm:
        oauth2 = {"scope": "supplier_mgmt offline_access", "lifetime": "60m"}
        async with sidecar(_plm_configuration(plm, tmp_path, oauth2=oauth2)) as rig:
            await rig.app.brokers["plm"].token(asyncio.get_running_loop().time() + 5)
            await rig.app.brokers["plm"].renew()
            status = rig.app.brokers["plm"].status()
    differences = [event for event in rig.events if isinstance(event, LifetimeDiffers)]

    assert status.lifetime == 900
    assert [(event.configured, event.granted) for event in differences] == [(3600, 900)]
    assert "scope" in differences[0].cause
    assert [event.grant for event in rig.events if isinstance(event, Renewal)] == [
        "client_credentials",
        "refresh_token",
    ]


async def test_restart_uses_the_stored_token(tmp_path: Path, outputs: Path) -> None:
    """A new process, also after a kill, makes no token call while the stored token is good; the file shows nothing."""
    async with Emulator.start() as plm:
        data = _plm_configuration(plm, tmp_path / "state")
        target = plm.base_url.replace("https://", "http://", 1).encode()
        for number in range(3):
            async with start_sidecar(data, tmp_path, outputs / "restart.log") as running:
                answer = await raw(running.port(), _post(target + b"/echo/x", f"{number}", b""))
                assert status_of(answer) == 200
                if number == 1:
                    running.process.kill()
        stored = b"".join(path.read_bytes() for path in (tmp_path / "state").glob("store.db*"))

    assert plm.counters.token_calls.total() == 1
    assert b"canary" not in stored
    assert plm.client_id.encode() not in stored


@contextlib.asynccontextmanager
async def _rig(
    tmp_path: Path, script: Script | None = None, **upstream: Any
) -> AsyncIterator[tuple[Rig, Recorder, TokenServer]]:
    async with (
        recorder(script) as record,
        token_server() as issuer,
        sidecar(configuration(record.url, issuer.url, tmp_path, **{"retry": {"base": "1ms"}, **upstream})) as rig,
    ):
        await rig.app.brokers["plm"].token(asyncio.get_running_loop().time() + 5)
        yield rig, record, issuer


def _answering(*answers: bytes) -> Script:
    """Return a script that gives *answers* in turn, the last one from then on."""
    left = list(answers)

    async def answer(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = left.pop(0) if len(left) > 1 else left[0]
        if data:
            writer.write(data)
        else:
            writer.transport.abort()

    return answer


def _response(status: bytes, *fields: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, *fields, b"Content-Length: %d" % len(body), b"", b""]) + body


OK = _response(b"200 OK", body=b"ok")
REFUSED = _response(b"401 Unauthorized", b'WWW-Authenticate: Bearer error="invalid_token"', body=b"old token")


@pytest.mark.parametrize("method", [b"GET", b"POST", b"PATCH", b"DELETE"])
async def test_401_is_replayed_once_with_a_new_token(tmp_path: Path, method: bytes) -> None:
    """Any method is replayed after a renewal, with the same body and the new token."""
    async with _rig(tmp_path, _answering(REFUSED, OK)) as (rig, record, issuer):
        head = b"%b %b/x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n" % (method, record.url.encode())
        answer = await raw(rig.port(), head + CLOSE + b"body")

    first, second = record.seen
    assert status_of(answer) == 200
    assert (first.body, second.body) == (b"body", b"body")
    assert [seen.values(b"authorization")[0][-2:] for seen in record.seen] == [b"-1", b"-2"]
    assert issuer.calls == 2


async def test_second_401_is_passed_on_unchanged(tmp_path: Path) -> None:
    """A token that is refused although it is new does not cause another renewal; the upstream's own answer is given."""
    async with _rig(tmp_path, _answering(REFUSED)) as (rig, record, issuer):
        answer = await raw(rig.port(), b"GET %b/x HTTP/1.1\r\nHost: a\r\n" % record.url.encode() + CLOSE)
        again = await raw(rig.port(), b"GET %b/x HTTP/1.1\r\nHost: a\r\n" % record.url.encode() + CLOSE)

    expected = REFUSED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
    assert answer == expected
    assert b"proxy-status" not in answer.lower()
    assert again == expected
    assert issuer.calls == 2
    assert len(record.seen) == 3


@pytest.mark.parametrize(
    "refusal",
    [
        _response(b"403 Forbidden"),
        _response(b"401 Unauthorized", b'WWW-Authenticate: Bearer error="insufficient_scope"'),
        _response(b"401 Unauthorized", b'WWW-Authenticate: DPoP error="use_dpop_nonce"'),
    ],
    ids=["403", "scope", "dpop"],
)
async def test_what_a_new_token_cannot_help_is_passed_on(tmp_path: Path, refusal: bytes) -> None:
    """403, insufficient_scope and a nonce that DPoP asks for cause no renewal."""
    async with _rig(tmp_path, _answering(refusal)) as (rig, record, issuer):
        answer = await raw(rig.port(), b"GET %b/x HTTP/1.1\r\nHost: a\r\n" % record.url.encode() + CLOSE)

    assert status_of(answer) == status_of(refusal)
    assert len(record.seen) == 1
    assert issuer.calls == 1


async def test_401_passes_when_the_renewal_fails(tmp_path: Path) -> None:
    """An issuer that now refuses the credential leaves the client with the upstream's own 401."""
    async with _rig(tmp_path, _answering(REFUSED)) as (rig, record, issuer):
        issuer.status = 401
        answer = await raw(rig.port(), b"GET %b/x HTTP/1.1\r\nHost: a\r\n" % record.url.encode() + CLOSE)

    assert status_of(answer) == 401
    assert answer.endswith(b"old token")
    assert len(record.seen) == 1


async def test_large_401_is_passed_on_whole(tmp_path: Path) -> None:
    """A refusal with a large body survives a failed renewal, although it was put aside meanwhile."""
    large = _response(b"401 Unauthorized", body=b"z" * (1 << 20))
    async with _rig(tmp_path, _answering(large)) as (rig, record, issuer):
        issuer.status = 401
        answer = await raw(rig.port(), b"GET %b/x HTTP/1.1\r\nHost: a\r\n" % record.url.encode() + CLOSE)

    assert answer.endswith(b"z" * (1 << 20))


@pytest.mark.parametrize(
    ("method", "first", "expected", "attempts"),
    [
        (b"GET", _response(b"503 Busy"), 200, 2),
        (b"PUT", _response(b"429 Slow", b"Retry-After: 0"), 200, 2),
        (b"POST", _response(b"503 Busy"), 503, 1),
        (b"POST", _response(b"429 Slow", b"Retry-After: 0"), 200, 2),
        (b"DELETE", _response(b"503 Busy"), 503, 1),
        (b"POST", _response(b"421 Misdirected"), 200, 2),
        (b"GET", _response(b"500 Oops"), 500, 1),
        (b"GET", _response(b"503 Busy", b"Retry-After: 3600"), 503, 1),
        (b"GET", b"", 200, 2),
        (b"POST", b"", 502, 1),
    ],
)
async def test_retries_follow_the_table(
    tmp_path: Path, method: bytes, first: bytes, expected: int, attempts: int
) -> None:
    """What may be repeated is, with backoff; what may have been applied is not."""
    async with _rig(tmp_path, _answering(first, OK)) as (rig, record, _):
        head = b"%b %b/x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n" % (method, record.url.encode())
        answer = await raw(rig.port(), head + CLOSE)

    assert status_of(answer) == expected
    assert len(record.seen) == attempts


async def test_last_answer_of_the_upstream_is_what_the_client_gets(tmp_path: Path) -> None:
    """When every attempt fails, the client gets the upstream's own last answer, body included."""
    last = _response(b"503 Third", b"Retry-After: 0", body=b"third")
    answers = _answering(_response(b"503 First", body=b"first"), _response(b"502 Second"), last, OK)
    async with _rig(tmp_path, answers) as (rig, record, _):
        answer = await raw(rig.port(), b"GET %b/x HTTP/1.1\r\nHost: a\r\n" % record.url.encode() + CLOSE)

    assert answer == last.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
    assert len(record.seen) == 3


async def test_answer_then_silence_gives_the_answer(tmp_path: Path) -> None:
    """An upstream that answered 503 and then broke off leaves its 503, not an error of ours."""
    async with _rig(tmp_path, _answering(_response(b"503 Busy", body=b"busy"), b"")) as (rig, record, _):
        answer = await raw(rig.port(), b"GET %b/x HTTP/1.1\r\nHost: a\r\n" % record.url.encode() + CLOSE)

    assert status_of(answer) == 503
    assert answer.endswith(b"busy")


async def test_connection_that_went_stale_is_replaced(tmp_path: Path) -> None:
    """An idle connection that the upstream closed is not used for the next request, a POST included."""

    async def answer_and_close(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await writer.drain()
        writer.close()

    async with _rig(tmp_path, answer_and_close) as (rig, record, _):
        head = b"POST %b/x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n" % record.url.encode()
        answers = []
        for _number in range(5):
            answers.append(await raw(rig.port(), head + CLOSE))
            await asyncio.sleep(0.02)

    assert [status_of(answer) for answer in answers] == [200] * 5


async def test_connections_are_shared_between_clients(tmp_path: Path) -> None:
    """Clients that open a connection per request share one warm connection to the upstream."""
    async with _rig(tmp_path) as (rig, record, _):
        for _number in range(20):
            await raw(rig.port(), b"GET %b/x HTTP/1.1\r\nHost: a\r\n" % record.url.encode() + CLOSE)

    assert len(record.seen) == 20
    assert record.connections == 1


async def test_misdirected_request_gets_a_new_connection(tmp_path: Path) -> None:
    """421 is repeated, also for a POST, on a connection that did not lead to the server that said so."""
    async with _rig(tmp_path, _answering(OK, _response(b"421 Misdirected"), OK)) as (rig, record, _):
        head = b"POST %b/x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n" % record.url.encode()
        answers = [await raw(rig.port(), head + CLOSE) for _number in range(2)]

    assert [status_of(answer) for answer in answers] == [200, 200]
    assert len(record.seen) == 3
    assert record.connections == 2


async def test_silent_upstream_is_a_504(tmp_path: Path) -> None:
    """An upstream that takes the request and says nothing is given up at its deadline; a POST is not repeated."""

    async def silent(_: Seen, __: asyncio.StreamReader, ___: asyncio.StreamWriter) -> None:
        await asyncio.sleep(1.5)

    async with _rig(tmp_path, silent, timeout={"first_byte": "300ms"}) as (rig, record, _):
        answer = await raw(
            rig.port(), b"POST %b/x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n" % record.url.encode() + CLOSE
        )

    assert status_of(answer) == 504
    assert problem_of(answer)["reason"] == "upstream_timeout"
    assert len(record.seen) == 1


async def test_upstream_that_stalls_in_mid_answer_is_cut(tmp_path: Path) -> None:
    """A body without progress for the idle time-out ends the client's connection, not cleanly."""

    async def stall(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await writer.drain()
        await asyncio.sleep(1.5)

    async with _rig(tmp_path, stall, timeout={"idle": "300ms"}) as (rig, record, _):
        answer = await raw(rig.port(), b"GET %b/x HTTP/1.1\r\nHost: a\r\n" % record.url.encode() + CLOSE)
        done = [event for event in rig.events if isinstance(event, RequestDone)]

    assert not answer.endswith(b"half" + b"x" * 6)
    assert done[-1].outcome == "upstream_timeout"


@pytest.mark.parametrize(
    ("status", "expected"), [(401, ("credential_rejected", 502)), (500, ("token_unavailable", 503))]
)
async def test_without_a_token_nothing_is_sent(tmp_path: Path, status: int, expected: tuple[str, int]) -> None:
    """A refused credential is 502 at once, an issuer that is down 503 with Retry-After; the upstream sees nothing."""
    async with recorder() as record, token_server() as issuer:
        issuer.status = status
        data = configuration(record.url, issuer.url, tmp_path, timeout={"token": "1s"})
        async with sidecar(data) as rig:
            answer = await raw(rig.port(), b"GET %b/x HTTP/1.1\r\nHost: a\r\n" % record.url.encode() + CLOSE)
            ready = await _get(rig, "/readyz")

    problem = problem_of(answer)
    assert (problem["reason"], status_of(answer)) == expected
    assert (b"Retry-After: " in answer) == (expected[1] == 503)
    assert record.bytes_in == 0
    assert ready.status_code == 503


async def test_our_own_listeners_are_no_upstream(tmp_path: Path) -> None:
    """A base URL that resolves to our admin port gets a 502, and the admin port no connection."""
    async with token_server() as issuer:
        probe = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        port = probe.sockets[0].getsockname()[1]
        probe.close()
        await probe.wait_closed()
        data = configuration(f"http://localhost:{port}", issuer.url, tmp_path)
        data["listen"]["admin"] = f"127.0.0.1:{port}"
        async with sidecar(data) as rig:
            answer = await raw(rig.port(), b"GET http://localhost:%d/status HTTP/1.1\r\nHost: a\r\n" % port + CLOSE)

    assert status_of(answer) == 502
    assert problem_of(answer)["reason"] == "upstream_unreachable"


async def test_addresses_outside_the_configured_ones_are_not_dialled(tmp_path: Path) -> None:
    """With `addresses` set, a name that resolves elsewhere is not connected to."""
    async with _rig(tmp_path, addresses=["192.0.2.0/24"]) as (rig, record, _):
        answer = await raw(rig.port(), b"GET %b/x HTTP/1.1\r\nHost: a\r\n" % record.url.encode() + CLOSE)

        done = [event for event in rig.events if isinstance(event, RequestDone)]

    assert problem_of(answer)["reason"] == "upstream_unreachable"
    assert record.connections == 0
    assert done[-1].attempts == 1


async def test_unreachable_upstream_is_a_502(tmp_path: Path) -> None:
    """A refused connection is tried as often as configured, a POST too since nothing was sent, then 502."""
    async with (
        token_server() as issuer,
        sidecar(configuration("http://127.0.0.1:9", issuer.url, tmp_path / "b", retry={"base": "1ms"})) as rig,
    ):
        head = b"POST http://127.0.0.1:9/x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n"
        answer = await raw(rig.port(), head + CLOSE)
        done = [event for event in rig.events if isinstance(event, RequestDone)]

    assert problem_of(answer)["reason"] == "upstream_unreachable"
    assert done[-1].attempts == 3


async def _get(rig: Rig, path: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.get(f"http://{rig.app.addresses['admin']}{path}")


@pytest.mark.parametrize(("method", "expected"), [(b"GET", 200), (b"POST", 502)])
async def test_connection_that_dies_under_a_request(tmp_path: Path, method: bytes, expected: int) -> None:
    """A pooled connection that breaks before any answer: an idempotent request goes again at once, on a new one."""
    async with _rig(tmp_path, _answering(OK, OK, b"", OK), retry={"attempts": 1}) as (rig, record, _):
        head = b"%b %b/x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n"
        warm = [await raw(rig.port(), head % (b"GET", record.url.encode()) + CLOSE) for _number in range(2)]
        answer = await raw(rig.port(), head % (method, record.url.encode()) + CLOSE)

    assert [status_of(each) for each in warm] == [200, 200]
    assert status_of(answer) == expected
    assert len(record.seen) == (4 if expected == 200 else 3)
    assert record.connections == (2 if expected == 200 else 1)


async def test_old_connections_are_retired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is not used beyond its age, so that a change of address is seen."""
    monkeypatch.setattr(upstream_module, "_RETIRE_AFTER", 0.0)
    async with _rig(tmp_path) as (rig, record, _):
        for _number in range(3):
            await raw(rig.port(), b"GET %b/x HTTP/1.1\r\nHost: a\r\n" % record.url.encode() + CLOSE)

    assert record.connections == 3
