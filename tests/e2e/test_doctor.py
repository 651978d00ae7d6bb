"""What `auth-sidecar doctor` says of set-ups that are broken in one way each, and of those that are not."""

import asyncio
import contextlib
import json
import socket
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from sidecar.emulator import Account, Emulator, Switches
from sidecar.emulator.listening import authority_of, listen, serving
from sidecar.emulator.systems.arena import Arena
from sidecar.emulator.systems.system import System, SystemSwitches
from sidecar.emulator.systems.teamcenter import Teamcenter
from sidecar.tokens.seal import new_key
from tests.canary import NEEDLES, canary
from tests.redis_servers import Server, redis_of_session, redis_server
from tests.stage import sidecar_process
from tests.waiting import PATIENCE

__all__ = ["redis_of_session", "redis_server"]

ROOT = Path(__file__).parents[2]
SECRET = canary("client-secret")
PASSWORD = canary("password")
NAMES = ("localhost",)


@dataclass
class Told:
    """What doctor wrote: the rows of `--json`, and how it ended."""

    rows: list[dict[str, Any]]
    code: int

    def wrong(self) -> dict[str, str]:
        """Return verdict by name of every row that is not PASS."""
        return {row["name"]: row["verdict"] for row in self.rows if row["verdict"] != "PASS"}

    def text(self, name: str) -> str:
        """Return what the rows called *name* say, remedy included."""
        return " ".join(f"{row['what']}; {row['remedy']}" for row in self.rows if row["name"] == name)

    def names(self) -> set[str]:
        return {row["name"] for row in self.rows}


@dataclass
class Place:
    """A folder with a configuration in it."""

    folder: Path

    def write(self, upstream: Mapping[str, Any], **top: Any) -> None:
        listen = {"proxy": "127.0.0.1:0", "admin": "127.0.0.1:0"}
        data = {"state_dir": str(self.folder / "state"), "listen": listen, "upstreams": {"plm": upstream}} | top
        (self.folder / "config.yaml").write_text(json.dumps(data))

    def environ(self, **more: str) -> dict[str, str]:
        given = {"OURS": System.password, "SECRET": SECRET, "PASSWORD": PASSWORD}
        return {"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "PYTHONPATH": str(ROOT)} | given | more

    async def doctor(self, *words: str, **environ: str) -> Told:
        """Run it as a process; no secret may be in what it writes, whichever way that is."""
        code, out = await self.run("--json", *words, **environ)
        return Told(json.loads(out), code)

    async def run(self, *words: str, **environ: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sidecar", "doctor", "-c", str(self.folder / "config.yaml"), *words),
            env=self.environ(**environ),
            stdout=PIPE,
            stderr=PIPE,
        )
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate()
        assert not any(needle in out + err for needle in NEEDLES), out
        assert process.returncode is not None
        return process.returncode, out.decode() if not err else err.decode()


@contextlib.asynccontextmanager
async def issuer(**switches: Any) -> AsyncIterator[Emulator]:
    account = Account(client_secret=SECRET, password=PASSWORD)
    async with Emulator.start(switches=Switches(**switches), account=account, names=NAMES) as emulator:
        yield emulator


def plm(emulator: Emulator, ca: Path | None = None, token_url: str = "", **oauth2: Any) -> dict[str, Any]:
    """Return a good upstream; *oauth2*: what is otherwise there."""
    return {
        "base_url": emulator.base_url,
        "oauth2": {
            "token_url": token_url or emulator.token_url,
            "client_id": emulator.client_id,
            "client_secret": {"env": "SECRET"},
        }
        | oauth2,
        "keepalive": {"path": "/api/v1/health", "every": "10m", "only_if_used_within": "1h"},
        "tls": {"ca": str(ca or emulator.ca_path)},
    }


def arena(system: Arena, **more: Any) -> dict[str, Any]:
    return {
        "base_url": system.api_url,
        "preset": "arena",
        "credential": {"email": System.user, "workspace_id": 898, "password": {"env": "OURS"}},
        "tls": {"ca": str(system.ca_path)},
    } | more


def fleet(folder: Path, server: Server) -> dict[str, Any]:
    """Return a store that instances share."""
    (folder / "key").write_text(new_key() + "\n")
    return {"url": server.url, "keys": [{"file": str(folder / "key")}], "timeout": "1s"}


def together(folder: Path, *authorities: Path) -> Path:
    """Return one file of several authorities."""
    made = folder / "ca.pem"
    made.write_text("".join(path.read_text() for path in authorities))
    return made


async def test_a_healthy_token_endpoint_has_nothing_to_tell(tmp_path: Path, redis_server: Server) -> None:
    """Every line is PASS, one token is obtained, and the next doctor uses it."""
    place = Place(tmp_path)
    async with issuer(supplier_lifetime=None) as emulator:
        place.write(plm(emulator, scope="api offline_access", lifetime="1h"), store=fleet(tmp_path, redis_server))
        told = await place.doctor()
        assert (told.wrong(), told.code) == ({}, 0)
        every = {"configuration", "secrets", "state_dir", "proxy", "store", "tls", "clock", "login", "scope", "refresh"}
        assert told.names() == every | {"lifetime", "expiry", "upstream", "base_url"}
        again = await place.doctor("plm")
        assert again.wrong() == {}
        assert "no other was asked for" in again.text("login")
        assert emulator.counters.tokens_issued == 1


async def test_a_healthy_session_is_logged_in_to_once(tmp_path: Path) -> None:
    """The account has one session: the second doctor uses that of the first, and says so."""
    place = Place(tmp_path)
    async with Arena.start(names=NAMES) as system:
        place.write(arena(system))
        assert (await place.doctor()).wrong() == {}
        told = await place.doctor()
        assert (told.wrong(), told.code) == ({}, 0)
        assert "no login was made" in told.text("login")
        assert {"seat", "quota"} <= told.names()
        assert (system.counters["logins"], system.counters["logouts"]) == (1, 0)


async def test_who_runs_is_not_disturbed(tmp_path: Path, redis_server: Server) -> None:
    """Three at once, beside a sidecar that has not logged in yet: all use one session, and it goes on."""
    place = Place(tmp_path)
    async with Arena.start(switches=SystemSwitches(login_delay=1.0), names=NAMES) as system:
        place.write(arena(system, listen="127.0.0.1:0"), store=fleet(tmp_path, redis_server))
        async with (
            served(place) as addresses,
            httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client,
        ):
            found = await asyncio.gather(*(place.doctor() for _ in range(3)))
            assert [told.wrong() for told in found] == [{}] * 3
            assert (await client.get(f"http://{addresses['plm']}/items")).status_code == 200
            assert (system.counters["logins"], system.counters["logouts"]) == (1, 0)


async def test_a_token_that_was_revoked_is_no_fault(tmp_path: Path) -> None:
    """The upstream refuses the one that is held: another is obtained, as for any request, and it says so."""
    place = Place(tmp_path)
    async with issuer() as emulator:
        place.write(plm(emulator))
        assert (await place.doctor()).wrong() == {}
        emulator.revoke_all()
        told = await place.doctor()
        assert told.wrong() == {}
        assert "after the upstream refused the one that was held" in told.text("login")
        assert emulator.counters.tokens_issued == 2


async def test_a_healthy_gateway_is_asked_what_its_recipe_knows(tmp_path: Path) -> None:
    """The request that could keep a session alive is used, though it is never sent by itself."""
    place = Place(tmp_path)
    async with Teamcenter.start(names=NAMES) as system:
        place.write(
            {
                "base_url": system.base_url,
                "preset": "teamcenter",
                "credential": {"user": System.user, "password": {"env": "OURS"}},
                "tls": {"ca": str(system.ca_path)},
            }
        )
        told = await place.doctor()
    assert (told.wrong(), told.code) == ({}, 0)
    assert "getTCSessionInfo with the credential was answered with 200" in told.text("upstream")


async def test_a_key_that_is_wrong(tmp_path: Path) -> None:
    """Nothing is obtained: the upstream itself says no."""
    place = Place(tmp_path)
    async with issuer() as emulator:
        upstream = {
            "base_url": f"{emulator.base_url}/echo",
            "preset": "api-key",
            "credential": {"key": {"env": "SECRET"}},
        }
        place.write(upstream | {"tls": {"ca": str(emulator.ca_path)}})
        told = await place.doctor()
    assert told.wrong() == {"upstream": "FAIL"}
    assert "refuses the credential" in told.text("upstream")


async def test_lines_are_for_people(tmp_path: Path) -> None:
    """A line for each, with verdict, upstream, name, what and remedy."""
    place = Place(tmp_path)
    async with issuer() as emulator:
        place.write(plm(emulator))
        code, out = await place.run(SECRET=canary("wrong"))
    lines = out.splitlines()
    assert code == 1
    assert "PASS  secrets: 1 can be read" in lines
    (line,) = (line for line in lines if line.startswith("FAIL"))
    assert line.startswith("FAIL  plm login: ")
    assert "auth-sidecar token renew plm" in line


async def test_a_wrong_password(tmp_path: Path) -> None:
    """It is tried once, however often doctor is run: no account is locked."""
    place = Place(tmp_path)
    async with Arena.start(names=NAMES) as system:
        place.write(arena(system))
        for _ in range(3):
            told = await place.doctor(OURS=canary("wrong"))
            assert (told.wrong(), told.code) == ({"login": "FAIL"}, 1)
            assert "4001" in told.text("login")
            assert "refused" in told.text("login")
        assert system.counters["refused_logins"] == 1


async def test_a_password_that_was_changed_while_the_session_lived(tmp_path: Path) -> None:
    """The shared session is dead, and no other is had: nothing good is said of what is gone."""
    place = Place(tmp_path)
    async with Arena.start(names=NAMES) as system:
        place.write(arena(system))
        assert (await place.doctor()).wrong() == {}
        system.password = canary("changed")
        system.kill()
        told = await place.doctor()
    assert told.wrong() == {"login": "FAIL"}
    assert [row["verdict"] for row in told.rows if row["name"] == "login"] == ["FAIL"]
    assert not {"lifetime", "expiry", "seat"} & told.names()


async def test_a_wrong_client_secret(tmp_path: Path) -> None:
    """The issuer's own word is told, and what to check."""
    place = Place(tmp_path)
    async with issuer() as emulator:
        place.write(plm(emulator))
        told = await place.doctor(SECRET=canary("wrong"))
    assert told.wrong() == {"login": "FAIL"}
    assert "invalid_client" in told.text("login")


async def test_an_issuer_in_trouble_is_asked_once(tmp_path: Path) -> None:
    """What it answers is told at once; a sidecar would go on asking."""
    place = Place(tmp_path)
    async with issuer(token_fault=503) as emulator:
        place.write(plm(emulator))
        told = await place.doctor()
        assert sum(emulator.counters.token_calls.values()) == 1
    assert told.wrong() == {"login": "FAIL"}
    assert "answered with 503" in told.text("login")
    assert "renew" not in told.text("login")


async def test_a_locked_account(tmp_path: Path) -> None:
    """What the login says is told with its code, and how long to wait."""
    place = Place(tmp_path)
    async with Arena.start(names=NAMES) as system:
        system.locked_until = system.clock.monotonic() + 300
        place.write(arena(system))
        told = await place.doctor()
    assert told.wrong() == {"login": "FAIL"}
    assert "(4083)" in told.text("login")
    assert "locked account" in told.text("login")


@pytest.mark.parametrize(("ahead", "verdict", "by"), [(3600, "FAIL", "1h"), (-90, "WARN", "1m"), (20, None, "agree")])
async def test_a_clock_that_is_off(tmp_path: Path, ahead: float, verdict: str | None, by: str) -> None:
    """Issuer and upstream agree, so that it is this machine's."""
    place = Place(tmp_path)
    async with issuer(ahead=ahead) as one, issuer(ahead=ahead) as other:
        ca = together(tmp_path, one.ca_path, other.ca_path)
        place.write(plm(one, ca, other.token_url))
        # The token of the other is refused here: what is of interest is the clock.
        told = await place.doctor()
    wrong = told.wrong()
    assert wrong.pop("upstream") == "FAIL"
    assert wrong == ({} if verdict is None else {"clock": verdict})
    assert by in told.text("clock")
    if verdict:
        assert f"this machine's clock is {by}" in told.text("clock")
        assert ("behind" if ahead > 0 else "ahead") in told.text("clock")


async def test_a_scope_that_is_missing(tmp_path: Path) -> None:
    """A token came, and serves for less than was asked for."""
    place = Place(tmp_path)
    async with issuer(withheld_scope="supplier_mgmt") as emulator:
        place.write(plm(emulator, scope="api supplier_mgmt"))
        told = await place.doctor()
    assert told.wrong() == {"scope": "FAIL"}
    assert "supplier_mgmt" in told.text("scope")


async def test_a_lifetime_shorter_than_configured(tmp_path: Path) -> None:
    """Both are told, and who says so."""
    place = Place(tmp_path)
    async with issuer(supplier_lifetime=900) as emulator:
        place.write(plm(emulator, scope="supplier_mgmt", lifetime="1h"))
        told = await place.doctor()
    assert told.wrong() == {"lifetime": "WARN"}
    assert "granted 15m (expires_in), configured 1h" in told.text("lifetime")
    assert told.code == 0


async def test_a_lifetime_that_the_upstream_cuts(tmp_path: Path) -> None:
    """What the issuer promises is not what the upstream counts."""
    place = Place(tmp_path)
    async with issuer(lifetime=600, claimed_expires_in=3600) as emulator:
        place.write(plm(emulator))
        told = await place.doctor()
    assert told.wrong() == {"lifetime": "WARN"}
    assert "granted 1h" in told.text("lifetime")
    assert "the upstream says" in told.text("lifetime")


async def test_a_margin_over_half(tmp_path: Path) -> None:
    """It is cut to half, and said."""
    place = Place(tmp_path)
    async with issuer(lifetime=600) as emulator:
        place.write(plm(emulator) | {"renew": {"margin": "8m"}})
        told = await place.doctor()
    assert told.wrong() == {"lifetime": "WARN"}
    assert "renew.margin is 8m" in told.text("lifetime")


async def test_an_authority_that_is_not_trusted(tmp_path: Path) -> None:
    """Who issued the certificate is told, and which key is missing."""
    place = Place(tmp_path)
    async with issuer() as emulator:
        upstream = plm(emulator)
        del upstream["tls"]
        place.write(upstream)
        told = await place.doctor()
    assert told.wrong() == {"tls": "FAIL"}
    assert "upstreams.plm.tls.ca" in told.text("tls")
    assert "issued by O=auth-s" in told.text("tls")


async def test_proxies_in_the_way(tmp_path: Path) -> None:
    """One that hides the upstream from scripts, and one that the sidecar does not use."""
    place = Place(tmp_path)
    async with issuer() as emulator:
        place.write(plm(emulator))
        hidden = await place.doctor(NO_PROXY="example.org,localhost")
        another = await place.doctor(HTTPS_PROXY=f"http://user:{canary('proxy')}@proxy.example:3128")
        other_scheme = await place.doctor(HTTP_PROXY="http://proxy.example:3128")
    assert hidden.wrong() == another.wrong() == {"proxy": "WARN"}
    assert "NO_PROXY has localhost" in hidden.text("proxy")
    assert "proxy.example:3128" in another.text("proxy")
    assert "upstreams are reached directly" in another.text("proxy")
    assert other_scheme.wrong() == {}


async def test_a_store_that_is_down(tmp_path: Path, redis_server: Server) -> None:
    """All that does not need it is as good as ever."""
    place = Place(tmp_path)
    async with issuer() as emulator:
        place.write(plm(emulator), store=fleet(tmp_path, redis_server))
        redis_server.kill()
        told = await place.doctor()
    assert told.wrong() == {"store": "FAIL"}
    assert "refused the connection" in told.text("store")
    assert "store.url" in told.text("store")


async def test_a_store_that_is_silent(tmp_path: Path, redis_server: Server) -> None:
    """It holds nobody up; a session is not begun without it, and that is told as well."""
    place = Place(tmp_path)
    async with Arena.start(names=NAMES) as system:
        place.write(arena(system), store=fleet(tmp_path, redis_server))
        redis_server.freeze()
        try:
            async with asyncio.timeout(30):
                told = await place.doctor()
        finally:
            redis_server.thaw()
        assert told.wrong() == {"store": "FAIL", "login": "FAIL"}
        assert "store.timeout" in told.text("store")
        assert "without the store" in told.text("login")
        assert system.counters["logins"] == 0


async def test_a_store_that_takes_nothing(tmp_path: Path, redis_server: Server) -> None:
    """It answers, and has no room for a write."""
    place = Place(tmp_path)
    async with issuer() as emulator:
        place.write(plm(emulator), store=fleet(tmp_path, redis_server))
        redis_server.command("CONFIG", "SET", "maxmemory", "1")
        try:
            told = await place.doctor()
        finally:
            redis_server.command("CONFIG", "SET", "maxmemory", "0")
    assert told.wrong() == {"store": "FAIL"}
    assert "maxmemory" in told.text("store")


async def test_a_store_that_permits_no_lease(tmp_path: Path, redis_server: Server) -> None:
    """Words are taken, leases are not: two instances would log in at once."""
    place, user = Place(tmp_path), canary("user")
    allowed = ("~auth-sidecar:instances", "~auth-sidecar:token:*", "+@all")
    redis_server.command("ACL", "SETUSER", "sync", "reset", "on", f">{user}", *allowed)
    try:
        async with issuer() as emulator:
            store = fleet(tmp_path, redis_server) | {"username": "sync", "password": {"env": "PASSWORD"}}
            place.write(plm(emulator), store=store)
            told = await place.doctor(PASSWORD=user)
    finally:
        redis_server.command("ACL", "DELUSER", "sync")
    assert told.wrong() == {"store": "FAIL"}
    assert "ACL" in told.text("store")


async def test_a_key_that_others_do_not_have(tmp_path: Path, redis_server: Server) -> None:
    """The record is there, and nothing opens it."""
    place = Place(tmp_path)
    async with issuer() as emulator:
        place.write(plm(emulator), store=fleet(tmp_path, redis_server))
        assert (await place.doctor()).wrong() == {}
        (tmp_path / "key").write_text(new_key() + "\n")
        told = await place.doctor()
    assert told.wrong() == {"store": "FAIL"}
    assert "store.keys" in told.text("store")
    assert redis_server.command("HLEN", "auth-sidecar:instances") <= 1


async def test_a_quota_that_is_gone(tmp_path: Path, redis_server: Server) -> None:
    """It is asked once; until when it is used up is told, and the next doctor sends nothing."""
    place = Place(tmp_path)
    async with Arena.start(switches=SystemSwitches(quota=0), names=NAMES) as system:
        place.write(arena(system), store=fleet(tmp_path, redis_server))
        for _ in range(2):
            told = await place.doctor()
            assert told.wrong() == {"quota": "FAIL"}
            assert "until 20" in told.text("quota")
        assert system.counters["over_quota"] == 1
        assert system.counters["logins"] == 1


async def test_a_seat_that_another_program_takes(tmp_path: Path) -> None:
    """A sidecar runs and lets go of the seat; doctor says why, and does not log in either."""
    place = Place(tmp_path)
    async with Arena.start(names=NAMES) as system:
        place.write(arena(system, listen="127.0.0.1:0"))
        async with (
            served(place) as addresses,
            httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client,
        ):
            while (answer := await client.get(f"http://{addresses['plm']}/items")).status_code == 200:
                system.foreign_login()
            assert answer.json()["reason"] == "seat_taken"
            before = system.counters["logins"], system.counters["refused"]
            told = await place.doctor()
        assert told.wrong() == {"seat": "FAIL"}
        assert "another login" in told.text("seat")
        assert (system.counters["logins"], system.counters["refused"]) == before


async def test_a_seat_that_was_just_taken(tmp_path: Path) -> None:
    """The first time it is a warning: the session is taken back, as any sidecar would."""
    place = Place(tmp_path)
    async with Arena.start(names=NAMES) as system:
        recipe = {"extends": "arena", "sessions": {"stolen": {"within": "5m"}}}
        upstream = arena(system, recipe=recipe)
        del upstream["preset"]
        place.write(upstream)
        assert (await place.doctor()).wrong() == {}
        system.foreign_login()
        told = await place.doctor()
    assert told.wrong() == {"seat": "WARN"}
    assert "once" in told.text("seat")


async def test_an_issuer_that_cannot_be_reached(tmp_path: Path) -> None:
    """The upstream is well; who issues tokens is not there."""
    place = Place(tmp_path)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        closed = f"https://localhost:{nobody.getsockname()[1]}/token"
        async with issuer() as emulator:
            place.write(plm(emulator, token_url=closed))
            refused = await place.doctor()
            place.write(plm(emulator, token_url="https://nobody.invalid/token"))
            unknown = await place.doctor()
    assert refused.wrong() == unknown.wrong() == {"issuer": "FAIL"}
    assert "Connection refused" in refused.text("issuer")
    assert "cannot be resolved" in unknown.text("issuer")


async def test_an_upstream_that_cannot_be_reached(tmp_path: Path) -> None:
    """The other way round: the token is obtained."""
    place = Place(tmp_path)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        async with issuer() as emulator:
            place.write(plm(emulator) | {"base_url": f"https://localhost:{nobody.getsockname()[1]}"})
            told = await place.doctor()
    assert told.wrong() == {"upstream": "FAIL"}
    assert "Connection refused" in told.text("upstream")
    assert "login" in told.names()


async def test_an_upstream_that_refuses_a_fresh_token(tmp_path: Path) -> None:
    """The token is real, and of another issuer than the upstream trusts."""
    place = Place(tmp_path)
    async with issuer() as one, issuer() as other:
        place.write(plm(one, together(tmp_path, one.ca_path, other.ca_path), other.token_url))
        told = await place.doctor()
    assert told.wrong() == {"upstream": "FAIL"}
    assert "the upstream refuses a fresh credential" in told.text("upstream")


VAULT = {
    "recipe": 1,
    "id": "vault",
    "vars": {"password": {"secret": True}},
    "login": {
        "steps": [
            {
                "request": "POST {base}/login",
                "form": {"password": "{password}"},
                "ok": {"status": 200, "json": {"/tenant": "{host}"}},
                "get": {"sid": {"json": "/sid"}},
            }
        ],
        "send": {"headers": {"X-Session": "{sid}"}},
    },
}


@contextlib.asynccontextmanager
async def tenant(name: str, leads: str = "") -> AsyncIterator[tuple[str, Path]]:
    """Serve a system of the tenant *name* under localhost; all but its login *leads* elsewhere."""

    async def answer(request: web.BaseRequest) -> web.Response:
        if request.path == "/api/login":
            return web.json_response({"tenant": name, "sid": canary("sid")})
        return web.Response(status=302, headers={"Location": leads}) if leads else web.json_response({})

    async with serving(answer, NAMES) as (runner, context, ca):
        yield f"https://{authority_of('localhost', await listen(runner, '127.0.0.1', 0, context))}/api", ca


def vault(url: str, ca: Path) -> dict[str, Any]:
    credential = {"password": {"env": "PASSWORD"}}
    return {"base_url": url, "recipe": VAULT, "credential": credential, "tls": {"ca": str(ca)}}


async def test_a_base_url_of_another_tenant(tmp_path: Path) -> None:
    """The login is answered by another one: what was expected is told, and what came."""
    place = Place(tmp_path)
    async with tenant("other.example") as (url, ca):
        place.write(vault(url, ca))
        told = await place.doctor()
    assert told.wrong() == {"login": "FAIL"}
    assert "json /tenant: expected localhost, got other.example" in told.text("login")


async def test_a_base_url_that_leads_elsewhere(tmp_path: Path) -> None:
    """The login is right; what is asked for lies on another host."""
    place = Place(tmp_path)
    async with tenant("localhost", "https://sso.example/login?next=1") as (url, ca):
        place.write(vault(url, ca))
        told = await place.doctor()
    assert told.wrong() == {"base_url": "WARN"}
    assert "sso.example" in told.text("base_url")


async def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    """The base URL has a path too many."""
    place = Place(tmp_path)
    async with issuer() as emulator:
        upstream = plm(emulator) | {"base_url": f"{emulator.base_url}/api/v7"}
        del upstream["keepalive"]
        place.write(upstream)
        told = await place.doctor()
    assert told.wrong() == {"base_url": "WARN"}
    assert "404" in told.text("base_url")


async def test_what_cannot_be_read(tmp_path: Path) -> None:
    """A configuration that is none, and a secret that is not there: by key path, without a call."""
    place = Place(tmp_path)
    async with issuer() as emulator:
        upstream = plm(emulator)
        upstream["oauth2"]["client_secret"] = {"file": str(tmp_path / "nothing")}
        place.write(upstream)
        told = await place.doctor()
        assert told.wrong() == {"secrets": "FAIL"}
        assert "upstreams.plm.oauth2.client_secret" in told.text("secrets")
        place.write(upstream | {"colour": "green"})
        broken = await place.doctor()
    assert (broken.wrong(), broken.code) == ({"configuration": "FAIL"}, 1)
    assert "upstreams.plm.colour" in broken.text("configuration")
    assert sum(emulator.counters.token_calls.values()) == 0


async def test_a_state_directory_or_a_key_that_is_not_there(tmp_path: Path, redis_server: Server) -> None:
    """Each is one line: what needs it is not looked at."""
    place = Place(tmp_path)
    async with issuer() as emulator:
        (tmp_path / "file").write_text("")
        place.write(plm(emulator), state_dir=str(tmp_path / "file"))
        assert (await place.doctor()).wrong() == {"state_dir": "FAIL"}
        place.write(plm(emulator), store=fleet(tmp_path, redis_server))
        (tmp_path / "key").unlink()
        told = await place.doctor()
    assert told.wrong() == {"secrets": "FAIL"}
    assert "store.keys.0" in told.text("secrets")


async def test_an_unknown_upstream_is_bad_usage(tmp_path: Path) -> None:
    """Exit 2, and those that there are."""
    place = Place(tmp_path)
    async with issuer() as emulator:
        place.write(plm(emulator))
        code, said = await place.run("other")
    assert code == 2
    assert "plm" in said


async def test_a_session_in_memory_is_not_taken_from_who_runs(tmp_path: Path) -> None:
    """With `store.url: memory` another login would end the session of the sidecar: it is asked instead."""
    place = Place(tmp_path)
    async with Arena.start(names=NAMES) as system:
        place.write(arena(system, listen="127.0.0.1:0"), store={"url": "memory"})
        async with (
            served(place) as addresses,
            httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client,
        ):
            assert (await client.get(f"http://{addresses['plm']}/items")).status_code == 200
            told = await place.doctor()
            assert told.wrong() == {}
            assert "the running sidecar has the only session" in told.text("login")
            assert system.counters["logins"] == 1
        # Nobody runs: the session that is begun then is ended as well.
        logouts = system.counters["logouts"]
        assert (await place.doctor()).wrong() == {}
        assert (system.counters["logins"], system.counters["logouts"]) == (2, logouts + 1)


def served(place: Place) -> contextlib.AbstractAsyncContextManager[dict[str, str]]:
    """Run a sidecar as a process, and give its addresses."""
    return sidecar_process(place.folder / "config.yaml", place.folder / "sidecar.log", place.environ())
