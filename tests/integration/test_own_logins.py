"""A script's own logins and logouts, which are answered here, at the upstream and at origins that it lends."""

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.events import RequestDone
from tests.desk import PASSWORD, RECIPE, SESSION, THEIRS, Desk, answer, chunked, configuration, send
from tests.rig import Rig, problem_of, raw, recorder, sidecar, status_of

LOGIN = b"password=" + THEIRS.encode()
BY_BODY = RECIPE | {
    "shim": [
        {
            "match": {"method": "POST", "path": "{base}/rpc", "json": {"/do": "login"}},
            "reply": {"json": {"sid": "{placeholder}", "you": "{request:/who}"}},
        }
    ],
    "swap": ["header", "body"],
}
LENT_PORT = 9


def lending(port: int = LENT_PORT, **match: Any) -> dict[str, Any]:
    """Return a recipe whose scripts log in at another origin; what is in *match* must hold as well."""
    wanted = {"method": "POST", "path": f"http://127.0.0.1:{port}/signin"} | match
    return RECIPE | {"shim": [{"match": wanted, "reply": {"json": {"sid": "{placeholder}"}}}]}


@contextlib.asynccontextmanager
async def desk(folder: Path, recipe: dict[str, Any] = RECIPE, **upstream: Any) -> AsyncIterator[tuple[Rig, Desk]]:
    says = Desk()
    async with recorder(says) as record, sidecar(configuration(record.url, folder, recipe, **upstream)) as rig:
        yield rig, says


def body_of(told: bytes) -> Any:
    return json.loads(told.partition(b"\r\n\r\n")[2])


def done(rig: Rig) -> list[RequestDone]:
    return [event for event in rig.events if isinstance(event, RequestDone)]


@pytest.mark.usefixtures("both_modes")
@pytest.mark.parametrize(
    "path", [b"/login", b"//login", b"/./login", b"/x/../login", b"/login;v=1", b"/%6cogin", b"/login?a=1"]
)
async def test_a_login_is_answered_whatever_its_spelling(tmp_path: Path, path: bytes) -> None:
    """What a server would take for the login is one: passed on it would end everybody's session."""
    async with desk(tmp_path) as (rig, says):
        told = await send(rig, b"POST " + path, LOGIN)

        head = told.partition(b"\r\n\r\n")[0].lower()
        assert status_of(told) == 200
        assert THEIRS not in body_of(told)["sid"]
        assert SESSION not in body_of(told)["sid"]
        assert b"cache-control: no-store" in head
        assert b"content-length: " in head
        assert says.asked == []
        (event,) = done(rig)
        assert (event.upstream, event.outcome, event.attempts, event.status) == ("plm", "shim", 0, 200)


@pytest.mark.parametrize("port", ["plm", "proxy"])
async def test_a_login_names_the_address_that_the_script_uses(tmp_path: Path, port: str) -> None:
    """On the proxy port that is the base URL, on a reverse port what the script calls it."""
    async with desk(tmp_path) as (rig, _):
        base = rig.app._assembly.destinations["plm"].pool.origin.url
        line = b"POST /login" if port == "plm" else b"POST %b/login" % base.encode()
        told = await send(rig, line, LOGIN, port=port)
        assert body_of(told)["at"] == ("http://localhost" if port == "plm" else base)


@pytest.mark.usefixtures("both_modes")
async def test_a_connection_goes_on_after_a_login(tmp_path: Path) -> None:
    """Login, logout and a request on one connection; none of the first two is seen by the upstream."""
    async with desk(tmp_path) as (rig, says):
        rest = b"POST /logout HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbye!"
        rest += b"GET /rows HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        told = await send(rig, b"POST /login", LOGIN, more=rest)
        assert told.count(b"HTTP/1.1 200") == 2
        assert told.count(b"HTTP/1.1 204") == 1
        assert [seen.line for seen in says.asked] == [b"GET /rows HTTP/1.1"]


async def test_a_login_fails_when_ours_does(tmp_path: Path) -> None:
    """The script sees at its login that the credential is refused, and its logout still works."""
    async with desk(tmp_path) as (rig, says):
        says.login = answer(status=400)
        told = await send(rig, b"POST /login", LOGIN)
        assert (status_of(told), problem_of(told)["reason"]) == (502, "credential_rejected")
        assert status_of(await send(rig, b"POST /logout")) == 204


async def test_a_read_only_upstream_has_logins(tmp_path: Path) -> None:
    """They write nothing; other writes are refused."""
    async with desk(tmp_path, read_only=True) as (rig, _):
        assert status_of(await send(rig, b"POST /login", LOGIN)) == 200
        assert status_of(await send(rig, b"POST /rows", LOGIN)) == 405


async def test_an_answer_to_head_has_no_body(tmp_path: Path) -> None:
    """Its length is that of the answer to GET."""
    recipe = RECIPE | {"shim": [{"match": "HEAD|GET {base}/session", "reply": {"text": "here"}}]}
    async with desk(tmp_path, recipe) as (rig, _):
        told = await send(rig, b"HEAD /session")
        assert b"Content-Length: 4" in told
        assert told.endswith(b"\r\n\r\n")


@pytest.mark.usefixtures("both_modes")
@pytest.mark.parametrize("replay", [{}, {"memory": 0, "spool": 0}], ids=["kept", "kept nowhere"])
@pytest.mark.parametrize("coded", [False, True])
async def test_a_login_is_known_by_its_body(tmp_path: Path, replay: dict[str, int], *, coded: bool) -> None:
    """Compressed or not, and wherever bodies are kept."""
    async with desk(tmp_path, BY_BODY, **({"replay": replay} if replay else {})) as (rig, says):
        body = json.dumps({"do": "login", "who": "me"}).encode()
        fields = (b"Content-Type: application/json", *([b"Content-Encoding: gzip"] if coded else []))
        told = await send(rig, b"POST /rpc", gzip.compress(body) if coded else body, *fields)
        assert body_of(told)["you"] == "me"
        assert says.asked == []


@pytest.mark.usefixtures("both_modes")
@pytest.mark.parametrize("replay", [{}, {"memory": 0, "spool": 0}], ids=["kept", "kept nowhere"])
@pytest.mark.parametrize("size", [2, 60_000, 70_000, 3_000_000])
async def test_what_is_no_login_after_all_goes_on_whole(tmp_path: Path, replay: dict[str, int], size: int) -> None:
    """Chunks that were read to see what they are, or that are too many to be a login, all arrive."""
    async with desk(tmp_path, BY_BODY, **({"replay": replay} if replay else {})) as (rig, says):
        body = json.dumps({"do": "x" * size}).encode()
        told = await raw(rig.port("plm"), chunked(b"POST /rpc", body, b"Content-Type: application/json"))
        assert status_of(told) == 200
        assert [seen.body for seen in says.asked] == [body]


@pytest.mark.parametrize("scheme", [b"http", b"https"])
async def test_a_login_at_a_lent_origin_is_answered(tmp_path: Path, scheme: bytes) -> None:
    """In absolute form as in CONNECT; anything else there has no route."""
    async with desk(tmp_path, lending()) as (rig, says):
        at = b"%b://127.0.0.1:%d" % (scheme, LENT_PORT)
        told = await send(rig, b"POST %b/signin" % at, LOGIN, port="proxy")
        assert status_of(told) == 200
        other = await send(rig, b"POST %b/other" % at, LOGIN, port="proxy")
        assert (status_of(other), problem_of(other)["reason"]) == (403, "no_route")
        assert says.asked == []
        assert [(event.upstream, event.outcome) for event in done(rig)] == [("plm", "shim"), ("", "no_route")]


async def test_a_login_that_fails_at_a_lent_origin_is_the_upstreams(tmp_path: Path) -> None:
    """It is told under the name of the upstream whose login it is."""
    async with desk(tmp_path, lending()) as (rig, says):
        says.login = answer(status=400)
        told = await send(rig, b"POST http://127.0.0.1:%d/signin" % LENT_PORT, LOGIN, port="proxy")
        assert problem_of(told)["reason"] == "credential_rejected"
        assert [(event.upstream, event.outcome) for event in done(rig)] == [("plm", "credential_rejected")]
        assert rig.app._assembly.proxy.exchange._in_flight["plm"] == 0


async def test_a_lent_origin_may_be_an_upstream(tmp_path: Path) -> None:
    """Its requests go there, with its own credential; only the login of the other is answered."""
    says = Desk()
    async with recorder(says) as record, recorder(says) as other:
        data = configuration(record.url, tmp_path, lending(other.port))
        plain = {"base_url": other.url, "insecure_http": True, "preset": "api-key"}
        data["upstreams"]["other"] = plain | {"credential": {"key": {"value": PASSWORD}}}
        async with sidecar(data) as rig:
            told = await send(rig, b"POST %b/signin" % other.url.encode(), LOGIN, port="proxy")
            assert "sid" in body_of(told)
            told = await send(rig, b"GET %b/rows" % other.url.encode(), port="proxy")
            assert status_of(told) == 200
            assert says.asked[-1].values(b"x-api-key") == [PASSWORD.encode()]


async def test_two_upstreams_lend_one_origin(tmp_path: Path) -> None:
    """Each is asked in turn, and the one whose login it is answers."""
    says = Desk()
    async with recorder(says) as record:
        data = configuration(record.url, tmp_path, lending(form={"tenant": "a"}))
        second = configuration(record.url + "/b", tmp_path, lending(form={"tenant": "b"}) | {"id": "second"})
        data["upstreams"]["second"] = second["upstreams"]["plm"]
        async with sidecar(data) as rig:
            at = b"POST http://127.0.0.1:%d/signin" % LENT_PORT
            for tenant in (b"b", b"a"):
                form = b"Content-Type: application/x-www-form-urlencoded"
                assert status_of(await send(rig, at, b"tenant=" + tenant, form, port="proxy")) == 200
            assert [event.upstream for event in done(rig)] == ["second", "plm"]


@pytest.mark.parametrize("size", [2, 70_000, 3_000_000])
async def test_beside_its_logins_a_lent_origin_is_passed_through_for_commands(tmp_path: Path, size: int) -> None:
    """As every host is under `exec`, with the script's credential: all that was read to see what it is arrives too."""
    says = Desk()
    async with recorder(says) as record, recorder(says) as other:
        recipe = lending(other.port, json={"/do": "login"})
        data = configuration(record.url, tmp_path, recipe)
        data["upstreams"]["plm"]["base_url"] = f"http://localhost:{record.port}"
        async with sidecar(data, for_exec=True) as rig:
            body = json.dumps({"do": "x" * size}).encode()
            line = b"POST http://127.0.0.1:%d/signin" % other.port
            told = await raw(rig.port(), chunked(line, body, b"Authorization: own", b"Content-Type: application/json"))
            assert status_of(told) == 200
            assert [(seen.body, seen.values(b"authorization")) for seen in says.asked] == [(body, [b"own"])]


async def test_many_logins_are_one(tmp_path: Path) -> None:
    """Scripts that start together cause one login."""
    async with desk(tmp_path) as (rig, says):
        told = await asyncio.gather(*(send(rig, b"POST /login", LOGIN) for _ in range(20)))
        assert {status_of(each) for each in told} == {200}
        assert len({body_of(each)["sid"] for each in told}) == 1
        assert says.logins == 1


async def test_a_large_login_that_needs_no_look_is_answered(tmp_path: Path) -> None:
    """What the script still sends is dropped, within bounds."""
    async with desk(tmp_path) as (rig, says):
        told = await send(rig, b"POST /login", b"x" * 3_000_000)
        assert status_of(told) == 200
        assert says.asked == []
