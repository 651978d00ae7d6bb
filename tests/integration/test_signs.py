"""What answers say of a session: dead, newer here, used up, wrong; and what carries none."""

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.events import RequestDone
from tests.desk import DEAD, JSON, PASSWORD, RECIPE, SESSION, Desk, answer, chunked, configuration, send
from tests.rig import Rig, Seen, problem_of, raw, recorder, sidecar, status_of
from tests.waiting import until

QUICK = {"base": "1ms", "cap": "1ms"}


def with_login(**login: Any) -> dict[str, Any]:
    return RECIPE | {"login": RECIPE["login"] | login}


@contextlib.asynccontextmanager
async def desk(folder: Path, recipe: dict[str, Any] = RECIPE, **upstream: Any) -> AsyncIterator[tuple[Rig, Desk]]:
    says = Desk()
    data_of = {"retry": QUICK} | upstream
    async with recorder(says) as record, sidecar(configuration(record.url, folder, recipe, **data_of)) as rig:
        await until(lambda: says.logins, "the first login")
        yield rig, says


def body_of(told: bytes) -> bytes:
    return told.partition(b"\r\n\r\n")[2]


def done(rig: Rig) -> list[RequestDone]:
    return [event for event in rig.events if isinstance(event, RequestDone)]


def in_session(says: Desk, alive: set[bytes], dead: bytes) -> Any:
    """Return what answers *dead* to requests in sessions that are not *alive*, by their numbers."""
    return lambda seen: answer(b'{"row": 1}') if seen.values(b"x-session")[0][-1:] in alive else dead


@pytest.mark.parametrize("dead", [answer(DEAD), answer(b"", b"", 401)], ids=["200", "401"])
async def test_two_deaths_of_one_request_are_not_seen(tmp_path: Path, dead: bytes) -> None:
    """The second new session lives, and the script has its answer."""
    async with desk(tmp_path) as (rig, says):
        says.says = in_session(says, {b"3"}, dead)
        told = await send(rig, b"POST /rows", b"abc")
        assert (status_of(told), body_of(told)) == (200, b'{"row": 1}')
        assert says.sessions == [b"-1", b"-2", b"-3"]
        assert [seen.body for seen in says.asked] == [b"abc"] * 3
        assert says.logins == 3


async def test_a_death_told_with_200_is_never_passed_on(tmp_path: Path) -> None:
    """Where every new session dies at once, the script gets an answer of ours."""
    async with desk(tmp_path) as (rig, says):
        says.says = lambda _: answer(DEAD)
        told = await send(rig, b"POST /rows", b"abc")
        assert (status_of(told), problem_of(told)["reason"]) == (503, "token_unavailable")
        assert len(says.asked) == 3
        (event,) = done(rig)
        assert (event.visible, event.outcome, event.applied) == (False, "token_unavailable", "")


async def test_a_401_after_all_was_tried_is_passed_on(tmp_path: Path) -> None:
    """As it came."""
    async with desk(tmp_path) as (rig, says):
        says.says = lambda _: answer(b"no", b"X-Own: 1\r\n", 401)
        told = await send(rig, b"POST /rows", b"abc")
        assert (status_of(told), body_of(told)) == (401, b"no")
        assert b"X-Own: 1" in told
        assert len(says.asked) == 3


@pytest.mark.parametrize("dead", [answer(DEAD), answer(b"", b"", 401)], ids=["200", "401"])
async def test_why_there_is_no_other_session_is_told(tmp_path: Path, dead: bytes) -> None:
    """A script cannot log in by itself: a 401 would send it into a loop."""
    async with desk(tmp_path) as (rig, says):
        says.says, says.login = (lambda _: dead), answer(status=400)
        told = await send(rig, b"POST /rows", b"abc")
        assert (status_of(told), problem_of(told)["reason"]) == (502, "credential_rejected")
        assert len(says.asked) == 1


async def test_a_newer_session_that_is_here_costs_no_login(tmp_path: Path) -> None:
    """What was sent in an older one is sent again in the newer one, and that counts as no renewal."""
    release = asyncio.Event()
    says = Desk()

    async def script(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if seen.values(b"x-session") == [f"{SESSION}-1".encode()] and b"/slow" in seen.line:
            await release.wait()
        await says(seen, reader, writer)

    async with recorder(script) as record, sidecar(configuration(record.url, tmp_path)) as rig:
        says.says = in_session(says, {b"2"}, answer(DEAD))
        slow = asyncio.create_task(send(rig, b"POST /slow", b"abc"))
        await until(lambda: any(b"/slow" in seen.line for seen in record.seen), "the slow request")
        assert status_of(await send(rig, b"GET /quick")) == 200
        release.set()
        assert body_of(await slow) == b'{"row": 1}'
        assert says.logins == 2
        event = next(each for each in done(rig) if each.path == "/slow")
        assert (event.attempts, event.renewals) == (2, 0)


async def test_a_death_told_before_the_upload_ended_is_replayed(tmp_path: Path) -> None:
    """The rest of the body is taken and all of it sent in the new session."""
    size, says = 6_000_000, Desk()

    async def script(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"/login" in seen.line or seen.values(b"x-session")[0].endswith(b"-2"):
            seen.body = await reader.readexactly(int(seen.values(b"content-length")[0]))
            await says(seen, reader, writer)
        else:
            writer.write(answer(DEAD))
            await writer.drain()
            await reader.read()

    async with recorder(script, read_body=False) as record, sidecar(configuration(record.url, tmp_path)) as rig:
        told = await send(rig, b"POST /files", b"x" * size)
        assert status_of(told) == 200
        assert [len(seen.body) for seen in says.asked] == [size]


LARGE = 300 << 10


@pytest.mark.parametrize("coded", [False, True])
async def test_what_may_be_large_is_looked_at_too(tmp_path: Path, *, coded: bool) -> None:
    """To the bound of the recipe, though it is more than a connection holds; and a label that lies is survived."""
    recipe = RECIPE | {"peek": {"max": "512KiB", "wait": "1h"}}
    async with desk(tmp_path, recipe) as (rig, says):
        dead = b'{"dead": true, "why": "%b"}' % (b"x" * LARGE)
        fields = JSON + (b"Content-Encoding: gzip\r\n" if coded else b"")
        says.says = in_session(says, {b"2"}, answer(dead, fields))
        assert body_of(await send(rig, b"GET /rows")) == b'{"row": 1}'
        assert says.logins == 2


EXCLUDING = RECIPE | {"exclude": ["/files/*"]}


async def test_what_is_excluded_carries_no_session(tmp_path: Path) -> None:
    """No login is waited for, the script's own credential goes as always, and nothing is looked for in the answer."""
    says = Desk(login=answer(status=400))
    async with recorder(says) as record, sidecar(configuration(record.url, tmp_path, EXCLUDING)) as rig:
        says.says = lambda _: answer(DEAD, JSON + b"X-Session: theirs\r\n")
        told = await send(rig, b"GET /files/1?ticket=2", b"", b"X-Session: own", b"Authorization: own", b"X-Ticket: 3")
        (seen,) = says.asked
        assert (status_of(told), body_of(told)) == (200, DEAD)
        assert seen.line == b"GET /files/1?ticket=2 HTTP/1.1"
        assert seen.values(b"x-ticket") == [b"3"]
        assert seen.values(b"x-session") == seen.values(b"authorization") == []
        assert b"theirs" not in told
        told = await send(rig, b"GET /rows")
        assert problem_of(told)["reason"] == "credential_rejected"


async def test_a_401_to_what_is_excluded_renews_nothing(tmp_path: Path) -> None:
    """It is about the ticket."""
    async with desk(tmp_path, EXCLUDING) as (rig, says):
        says.says = lambda _: answer(b"no", b"", 401)
        assert status_of(await send(rig, b"GET /files/1")) == 401
        assert (says.logins, len(says.asked)) == (1, 1)


async def test_a_pause_asked_for_by_what_is_excluded_is_kept(tmp_path: Path) -> None:
    """`Retry-After` is no matter of credentials: one that is too long to wait for is passed on at once."""
    async with desk(tmp_path, EXCLUDING) as (rig, says):
        says.says = lambda _: answer(b"", b"Retry-After: 3600\r\n", 503)
        assert status_of(await send(rig, b"GET /files/1")) == 503
        assert len(says.asked) == 1


QUOTA = RECIPE | {
    "quota": {
        "remaining": {"header": "X-Left"},
        "reset": {"header": "X-Reset", "time": "%Y-%m-%d"},
        "exhausted": {"status": 429},
    }
}


@pytest.mark.parametrize("said", [b"X-Reset: 2999-01-01\r\n", b"Retry-After: 600\r\n", b""])
async def test_a_used_up_quota_is_passed_on_once(tmp_path: Path, said: bytes) -> None:
    """As it came; then nothing is sent until the reset, whoever asks."""
    async with desk(tmp_path, QUOTA) as (rig, says):
        says.says = lambda _: answer(b"enough", said, 429)
        told = await send(rig, b"GET /rows")
        assert (status_of(told), body_of(told)) == (429, b"enough")
        told = await send(rig, b"GET /rows")
        assert (status_of(told), problem_of(told)["reason"]) == (503, "quota_exhausted")
        seconds = int(told.lower().partition(b"retry-after: ")[2].partition(b"\r\n")[0])
        assert 50 <= seconds <= 2 * 86400
        assert status_of(await send(rig, b"POST /login", b"x")) == 200
        assert len(says.asked) == 1
        assert rig.app._assembly.destinations["plm"].admission.quota_remaining == 0.0


async def test_the_last_of_a_quota_closes_it(tmp_path: Path) -> None:
    """An answer that leaves nothing, and says until when, is passed on; what follows is not sent."""
    async with desk(tmp_path, QUOTA) as (rig, says):
        says.says = lambda _: answer(b"{}", JSON + b"X-Left: 7\r\nX-Reset: 2999-01-01\r\n")
        assert status_of(await send(rig, b"GET /rows")) == 200
        assert rig.app._assembly.destinations["plm"].admission.quota_remaining == 7.0
        says.says = lambda _: answer(b"{}", JSON + b"X-Left: 0\r\nX-Reset: 2999-01-01\r\n")
        assert status_of(await send(rig, b"GET /rows")) == 200
        assert problem_of(await send(rig, b"GET /rows"))["reason"] == "quota_exhausted"
        assert len(says.asked) == 2


async def test_a_wrong_key_is_shown_once(tmp_path: Path) -> None:
    """The upstream's answer is passed on; then nothing is sent until the secret changes."""
    says = Desk(says=lambda _: answer(b"wrong", b"", 401))
    async with recorder(says) as record:
        data = configuration(record.url, tmp_path)
        plm = data["upstreams"]["plm"]
        del plm["recipe"]
        plm |= {"preset": "api-key", "credential": {"key": {"value": PASSWORD}}}
        async with sidecar(data) as rig:
            assert body_of(await send(rig, b"POST /rows", b"abc")) == b"wrong"
            for _ in range(3):
                assert problem_of(await send(rig, b"GET /rows"))["reason"] == "credential_rejected"
            assert len(says.asked) == 1


@pytest.mark.usefixtures("both_modes")
@pytest.mark.parametrize("status", [200, 302, 401, 404, 500])
async def test_what_is_ours_in_an_answer_is_not_the_scripts(tmp_path: Path, status: int) -> None:
    """Cookies of the session and the field that shows it are withheld, whatever the answer."""
    async with desk(tmp_path, with_login(send={"headers": {"X-Session": "{sid}"}, "cookies": "jar"})) as (rig, says):
        cookies = b"SET-COOKIE: a=%b; Path=/\r\nSet-Cookie2: b=%b\r\nx_session: %b\r\n" % ((SESSION.encode(),) * 3)
        says.says = lambda _: answer(b"{}", b"X-Own: 1\r\n" + cookies, status)
        told = await send(rig, b"GET /rows")
        assert status_of(told) == status
        assert b"X-Own: 1" in told
        assert SESSION.encode() not in told


SEARCH = RECIPE | {"retry": {"also": [{"method": "POST", "path": "/search", "json": {"/kind": "read"}}]}}


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize(("kind", "attempts"), [("read", 3), ("write", 1)])
async def test_a_recipe_says_what_may_be_repeated(tmp_path: Path, kind: str, attempts: int, *, coded: bool) -> None:
    """By the body too, compressed or not: a search with POST is a read."""
    async with desk(tmp_path, SEARCH) as (rig, says):
        says.says = lambda _: answer(b"", b"", 503)
        body = json.dumps({"kind": kind}).encode()
        fields = (b"Content-Type: application/json", *([b"Content-Encoding: gzip"] if coded else []))
        await send(rig, b"POST /search", gzip.compress(body) if coded else body, *fields)
        assert len(says.asked) == attempts


INSIDE = with_login(send={"json": {"match": "POST {base}/*", "set": {"/auth/sid": "{sid}"}}})


@pytest.mark.parametrize("framing", ["length", "chunks", "gzip"])
async def test_a_session_in_the_body_is_that_of_the_attempt(tmp_path: Path, framing: str) -> None:
    """The body is written anew for each, with its length, and without a coding."""
    async with desk(tmp_path, INSIDE) as (rig, says):
        says.says = lambda seen: answer(b"{}" if seen.body.count(b"-2") else DEAD)
        body, kind = b'{"row": 1}', b"Content-Type: application/json"
        if framing == "chunks":
            told = await raw(rig.port("plm"), chunked(b"POST /rows", body, kind))
        elif framing == "gzip":
            told = await send(rig, b"POST /rows", gzip.compress(body), kind, b"Content-Encoding: gzip")
        else:
            told = await send(rig, b"POST /rows", body, kind)
        assert status_of(told) == 200
        assert [json.loads(seen.body) for seen in says.asked] == [
            {"row": 1, "auth": {"sid": f"{SESSION}-{number}"}} for number in (1, 2)
        ]
        for seen in says.asked:
            assert seen.values(b"content-length") == [b"%d" % len(seen.body)]
            assert seen.values(b"transfer-encoding") == seen.values(b"content-encoding") == []


@pytest.mark.parametrize("replay", [{"memory": 1000, "spool": 0}, {"memory": 1000, "spool": 1 << 20}])
async def test_a_body_too_long_to_be_written_anew_goes_out_as_it_came(tmp_path: Path, replay: dict[str, int]) -> None:
    """In chunks, so that nobody knew before; every byte of it."""
    async with desk(tmp_path, INSIDE, replay=replay) as (rig, says):
        body = json.dumps({"row": "x" * 200_000}).encode()
        told = await raw(rig.port("plm"), chunked(b"POST /rows", body, b"Content-Type: application/json"))
        assert status_of(told) == 200
        assert [seen.body for seen in says.asked] == [body]


async def test_a_session_is_kept_alive_by_any_request(tmp_path: Path) -> None:
    """The recipe's own, with a body that has a length, in the session that is held."""
    recipe = RECIPE | {"keepalive": {"request": "POST {base}/ping", "json": {"ping": 1}, "every": "1s"}}
    async with desk(tmp_path, recipe) as (rig, says):
        assert status_of(await send(rig, b"GET /rows")) == 200
        await until(lambda: any(b"/ping" in seen.line for seen in says.asked), "the ping")
        ping = next(seen for seen in says.asked if b"/ping" in seen.line)
        assert json.loads(ping.body) == {"ping": 1}
        assert ping.values(b"x-session") == [f"{SESSION}-1".encode()]
        assert ping.values(b"content-length") == [b"%d" % len(ping.body)]
