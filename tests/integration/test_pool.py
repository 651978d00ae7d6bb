"""Several sessions at one upstream: each has its own limit, dies by itself, and is shared by all instances."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from sidecar.errors import ConfigurationError
from sidecar.settings import Settings
from sidecar.tokens.seal import new_key
from tests.canary import canary
from tests.redis_servers import Server, redis_of_session, redis_server
from tests.rig import Rig, configuration, sidecar, token_server
from tests.waiting import until

__all__ = ["redis_of_session", "redis_server"]

PASSWORD = canary("pool-password")
RECIPE: dict[str, Any] = {
    "recipe": 1,
    "id": "hall",
    "vars": {"password": {"secret": True}},
    "login": {
        "steps": [
            {
                "request": "POST {base}/login",
                "form": {"password": "{password}", "seat": "seat{slot}"},
                "get": {"sid": {"json": "/sid"}},
                "fatal": {"status": 403},
            }
        ],
        "send": {"headers": {"X-Session": "{sid}"}},
    },
}


class Hall:
    """A system whose sessions take *limit* requests at a time each, and refuse more; *held* seconds each."""

    def __init__(self, limit: int, held: float) -> None:
        self.limit, self.held, self.url = limit, held, ""
        self.sessions: set[str] = set()
        self.seats: Counter[str] = Counter()
        self.under_way: Counter[str] = Counter()
        self.most = 0
        self.over = 0
        self.refuses, self.refused = False, 0
        self.served: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        if request.path == "/login":
            if self.refuses:
                self.refused += 1
                return web.json_response({"error": "BAD_PASSWORD"}, status=403)
            seat = body.decode().partition("seat=")[2]
            self.seats[seat] += 1
            session = f"{canary('hall')}-{sum(self.seats.values())}"
            self.sessions.add(session)
            return web.json_response({"sid": session})
        session = request.headers.get("X-Session", "")
        if session not in self.sessions:
            return web.Response(status=401)
        if self.under_way[session] >= self.limit:
            self.over += 1
            return web.Response(status=429)
        self.under_way[session] += 1
        self.most = max(self.most, sum(self.under_way.values()))
        try:
            await asyncio.sleep(self.held)
        finally:
            self.under_way[session] -= 1
        self.served[session] += 1
        self.rows[body.decode()] += bool(body)
        return web.json_response({})


@contextlib.asynccontextmanager
async def hall(limit: int = 2, held: float = 0.05) -> AsyncIterator[Hall]:
    made = Hall(limit, held)
    runner = web.ServerRunner(web.Server(made), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()


def configured(at: Hall, folder: Path, pool: int, cap: int = 2, **upstream: Any) -> dict[str, Any]:
    plm = {
        "base_url": at.url,
        "insecure_http": True,
        "recipe": RECIPE,
        "credential": {"password": {"value": PASSWORD}},
        "sessions": {"pool": pool, "max_in_flight": cap},
        "timeout": {"connect": "60s"},
    }
    return {
        "state_dir": str(folder),
        "listen": {"proxy": "127.0.0.1:0", "admin": "127.0.0.1:0"},
        "upstreams": {"plm": plm | upstream},
    }


async def crowd(at: Hall, rig: Rig, number: int, name: str = "r") -> list[int]:
    """Send *number* writes at once, and return their statuses."""
    limits = httpx.Limits(max_connections=number)
    proxy = f"http://127.0.0.1:{rig.port()}"
    async with httpx.AsyncClient(proxy=proxy, trust_env=False, timeout=60, limits=limits) as client:
        answers = await asyncio.gather(
            *(client.post(f"{at.url}/rows", content=f"{name}-{each}") for each in range(number))
        )
    return [answer.status_code for answer in answers]


@contextlib.asynccontextmanager
async def serving(data: dict[str, Any]) -> AsyncIterator[Rig]:
    async with sidecar(data) as rig:
        yield rig


@pytest.mark.parametrize(("pool", "most"), [(1, 2), (4, 8)])
async def test_four_sessions_do_four_times_as_much_at_a_time(tmp_path: Path, pool: int, most: int) -> None:
    """And none of them more than its limit allows: nothing is refused, each write is done once."""
    async with hall() as at, serving(configured(at, tmp_path, pool)) as rig:
        assert set(await crowd(at, rig, 64)) == {200}
        assert (at.most, at.over) == (most, 0)
        assert at.seats == ({"seat": 1} if pool == 1 else {f"seat{slot}": 1 for slot in range(pool)})
        assert set(at.rows.values()) == {1}


async def test_one_that_dies_is_renewed_alone(tmp_path: Path) -> None:
    """The others go on; what met it is sent again in its place."""
    async with hall() as at, serving(configured(at, tmp_path, 4)) as rig:
        assert set(await crowd(at, rig, 16)) == {200}
        for number in range(3):
            at.sessions.remove(next(iter(sorted(at.sessions))))
            assert set(await crowd(at, rig, 32, f"d{number}")) == {200}
        assert sum(at.seats.values()) == 7
        assert (at.over, set(at.rows.values())) == (0, {1})


async def test_a_wrong_password_is_tried_once(tmp_path: Path) -> None:
    """By the first session, and by none of the others: so no account is locked."""
    async with hall() as at:
        at.refuses = True
        async with serving(configured(at, tmp_path, 4)) as rig:
            for _ in range(3):
                assert set(await crowd(at, rig, 16)) == {502}
        assert at.refused == 1


async def test_a_password_that_was_changed_is_tried_twice_at_most(tmp_path: Path) -> None:
    """All sessions end, and it is wrong now: the first tries it, and one of the others, however many there are."""
    async with hall() as at, serving(configured(at, tmp_path, 6)) as rig:
        assert set(await crowd(at, rig, 24)) == {200}
        at.sessions.clear()
        at.refuses = True
        for number in range(3):
            assert 200 not in await crowd(at, rig, 24, f"w{number}")
        assert 1 <= at.refused <= 2


async def test_instances_share_the_sessions(tmp_path: Path, redis_server: Server) -> None:
    """Two on one Redis log in four times in all, not eight."""
    key = tmp_path / "key"
    key.write_text(new_key() + "\n")
    store = {"store": {"url": redis_server.url, "keys": [{"file": str(key)}], "timeout": "2s"}}
    async with hall(limit=8) as at:
        one, two = (configured(at, tmp_path / each, 4, cap=4) | store for each in "ab")
        async with serving(one) as first, serving(two) as second:
            found = await asyncio.gather(crowd(at, first, 24, "a"), crowd(at, second, 24, "b"))
            assert {status for each in found for status in each} == {200}
            assert at.seats == {f"seat{slot}": 1 for slot in range(4)}
            assert at.over == 0


async def test_each_session_is_told_of(tmp_path: Path) -> None:
    """The status has them all, a renewal and a revocation are for all of them."""
    async with hall() as at, serving(configured(at, tmp_path, 3)) as rig:
        assert set(await crowd(at, rig, 12)) == {200}
        pool = rig.app.pools["plm"]
        await asyncio.gather(*(broker.renew() for broker in pool))
        assert sum(at.seats.values()) == 6
        async with httpx.AsyncClient(trust_env=False) as operator:
            page = (await operator.get(f"http://{rig.app.addresses['admin']}/status")).json()["upstreams"]["plm"]
        assert [session["state"] for session in page["sessions"]] == ["valid"] * 3
        assert page["state"] == "valid"


async def test_tokens_have_a_pool_too(tmp_path: Path) -> None:
    """Three of one client, each shown to the upstream."""
    shown: Counter[str] = Counter()
    all_shown = asyncio.Event()

    async def api(request: web.BaseRequest) -> web.Response:
        shown[request.headers["Authorization"]] += 1
        if len(shown) == 3:
            all_shown.set()
        await asyncio.wait_for(all_shown.wait(), 30)
        return web.json_response({})

    runner = web.ServerRunner(web.Server(api), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with token_server() as tokens:
            data = configuration(url, tokens.url, tmp_path, sessions={"pool": 3}, insecure_http=True)
            async with serving(data) as rig:
                await until(lambda: all(each.current() for each in rig.app.pools["plm"]), "three tokens")
                proxy = f"http://127.0.0.1:{rig.port()}"
                async with httpx.AsyncClient(proxy=proxy, trust_env=False, timeout=60) as client:
                    answers = await asyncio.gather(*(client.get(f"{url}/x") for _ in range(30)))
            assert {answer.status_code for answer in answers} == {200}
            assert (tokens.calls, len(shown)) == (3, 3)
    finally:
        await runner.cleanup()


async def test_without_a_cap_the_least_busy_is_next(tmp_path: Path) -> None:
    """Requests are spread over all sessions."""
    async with hall(limit=100) as at, serving(configured(at, tmp_path, 4, cap=0)) as rig:
        assert set(await crowd(at, rig, 40)) == {200}
        assert len(at.served) == 4
        assert max(at.served.values()) <= 20


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"recipe": RECIPE | {"sessions": {"per_account": "one"}}},
            "sessions.pool is 4, and its account has one session only",
        ),
        (
            {"recipe": RECIPE | {"login": {"send": {"headers": {"X-Key": "{password}"}}}}},
            "its credential is configured",
        ),
        (
            {
                "recipe": None,
                "credential": {},
                "oauth2": {
                    "token_url": "https://plm.example.com/token",
                    "client_id": "c",
                    "client_secret": {"value": PASSWORD},
                    "grant": "refresh_token",
                    "refresh_token": {"value": PASSWORD},
                },
            },
            "one first refresh token",
        ),
    ],
)
async def test_where_there_is_one_session_only_it_is_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    """By key path, with the reason."""
    async with hall() as at:
        data = configured(at, tmp_path, 4)
        data["upstreams"]["plm"] |= changes
        data["upstreams"]["plm"] = {key: value for key, value in data["upstreams"]["plm"].items() if value is not None}
        with pytest.raises(ValueError, match=told):
            Settings.model_validate(data)


async def test_upstreams_with_one_credential_have_one_pool(tmp_path: Path) -> None:
    """A difference is named."""
    async with hall() as at:
        data = configured(at, tmp_path, 4)
        other = data["upstreams"]["plm"] | {"base_url": f"{at.url}/rows", "sessions": {"pool": 2}}
        data["upstreams"]["other"] = other
        with pytest.raises(ConfigurationError, match=r"upstreams\.other\.sessions\.pool is not that of plm"):
            async with serving(data):
                pass
