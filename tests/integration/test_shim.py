"""Logins that are answered here: at another origin than the API, on every port, and what they must not do."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sidecar.clock import SystemClock
from sidecar.emulator.systems.arena import Arena, ArenaTokens
from sidecar.emulator.systems.system import SystemSwitches
from sidecar.errors import ConfigurationError
from sidecar.events import RequestDone
from sidecar.run.credentials import credentials
from sidecar.run.systems import hosts_of
from sidecar.settings import Settings
from tests.canary import canary
from tests.rig import Rig, raw, sidecar, status_of

THEIRS = canary("their-client-secret")


@contextlib.asynccontextmanager
async def arena(**switches: Any) -> AsyncIterator[tuple[Arena, Arena]]:
    """Yield the API, and the host where its tokens are obtained."""
    async with (
        Arena.start(switches=SystemSwitches(**switches), names=("localhost",)) as api,
        ArenaTokens.start(names=("127.0.0.1",)) as sso,
    ):
        sso.sessions = api.sessions
        yield api, sso


def bundle(folder: Path, *systems: Arena) -> str:
    path = folder / "vendors.pem"
    path.write_bytes(b"".join(system.ca_path.read_bytes() for system in systems))
    return str(path)


def settings(api: Arena, sso: Arena, folder: Path, **changes: Any) -> dict[str, Any]:
    upstream = {
        "base_url": api.api_url,
        "preset": "arena-oauth",
        "tls": {"ca": bundle(folder, api, sso)},
        "credential": {
            "client_id": sso.user,
            "client_secret": {"value": sso.password},
            "workspace_id": 1,
            "token_url": f"{sso.base_url}/oauth2/token",
        },
    }
    return {
        "state_dir": str(folder / "state"),
        "listen": {"proxy": "127.0.0.1:0", "admin": "127.0.0.1:0"},
        "upstreams": {"arena": upstream | changes},
    }


@contextlib.asynccontextmanager
async def script(rig: Rig, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    trusted = ssl.create_default_context(cafile=str(folder / "state/ca/bundle.pem"))
    async with httpx.AsyncClient(
        proxy=f"http://127.0.0.1:{rig.port()}", verify=trusted, trust_env=False, timeout=60
    ) as client:
        yield client


FORM = {"grant_type": "client_credentials", "client_id": "theirs", "client_secret": THEIRS, "workspace_id": "9"}


async def test_a_login_at_another_origin_is_answered_here(tmp_path: Path) -> None:
    """Over CONNECT, with a certificate of ours; the token that the script got works, and is none."""
    async with arena() as (api, sso), sidecar(settings(api, sso, tmp_path)) as rig, script(rig, tmp_path) as client:
        told = (await client.post(f"{sso.base_url}/oauth2/token", data=FORM)).json()
        assert (told["token_type"], told["expires_in"]) == ("Bearer", 5399)
        asked = {"Authorization": f"Bearer {told['access_token']}"}
        assert (await client.get(f"{api.api_url}/items", headers=asked)).status_code == 200
        assert sso.counters["logins"] == 1
        assert THEIRS not in sso.shown | api.shown
        assert told["access_token"] not in api.shown
        ends = [event for event in rig.events if isinstance(event, RequestDone)]
        assert [(event.outcome, event.upstream, event.attempts) for event in ends][:1] == [("shim", "arena", 0)]


async def test_anything_else_at_that_origin_goes_nowhere(tmp_path: Path) -> None:
    """It is no upstream; its host is intercepted for logins alone."""
    async with arena() as (api, sso), sidecar(settings(api, sso, tmp_path)) as rig, script(rig, tmp_path) as client:
        for method, path in (("GET", "/oauth2/token"), ("POST", "/other")):
            answer = await client.request(method, sso.base_url + path)
            assert (answer.status_code, answer.json()["reason"]) == (403, "no_route")
        assert sso.counters["refused_logins"] == 0


async def test_under_exec_the_rest_of_that_origin_passes(tmp_path: Path) -> None:
    """The command's other affairs there are its own."""
    async with arena() as (api, sso), sidecar(settings(api, sso, tmp_path)) as rig:
        port = int((await rig.app.exec_port()).rsplit(":", 1)[1])
        plain = sso.base_url.replace("https://", "").encode()
        answer = await raw(port, b"GET https://%b/other HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % plain)
        # The emulated host has a certificate that nobody trusts: it was really asked.
        assert status_of(answer) == 502
        assert b"upstream_unreachable" in answer


async def test_a_login_on_a_reverse_port_and_a_large_body(tmp_path: Path) -> None:
    """A body that is no login's goes on whole, though it was looked at; HEAD has no body; onward the vendor answers."""
    recipe = {
        "extends": "arena",
        "shim": [
            {
                "match": {"method": "POST", "path": "{base}/items", "body": "<login"},
                "reply": {"json": {"s": "{placeholder}"}},
            },
            {
                "match": "GET {base}/items",
                "reply": {"headers": {"X-At": "{self}"}, "cookies": {"c": "1"}},
                "onward": True,
            },
            {"match": {"path": "{base}/who"}, "reply": {"json": {"at": "{self}"}, "headers": {"X-A": "1"}}},
        ],
    }
    async with arena() as (api, sso):
        credential = {"email": api.user, "password": {"value": api.password}}
        data = settings(api, sso, tmp_path, preset=None, recipe=recipe, credential=credential, listen="127.0.0.1:0")
        async with sidecar(data) as rig:
            base = f"http://127.0.0.1:{rig.port('arena')}"
            async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
                assert "s" in (await client.post(f"{base}/items", content=b"<login/>")).json()
                answers = await asyncio.gather(
                    *(
                        client.post(f"{base}/items", json={"number": size, "x": "y" * size})
                        for size in (10, 70_000, 900_000)
                    )
                )
                assert [answer.status_code for answer in answers] == [201, 201, 201]
                assert (await client.get(f"{base}/who")).json() == {"at": base}
                page = await client.get(f"{base}/items")
                assert (page.json()["count"], page.headers["X-At"], page.cookies["c"]) == (20, base, "1")
                head = await client.head(f"{base}/who")
                assert (head.status_code, head.content, head.headers["X-A"], head.headers["Cache-Control"]) == (
                    200,
                    b"",
                    "1",
                    "no-store",
                )
            assert set(api.rows.values()) == {1}


async def test_two_base_urls_of_one_account_are_one_session(tmp_path: Path) -> None:
    """/v1 and /v2 of a vendor: one broker, one login; another password for the same account is refused by name."""
    async with arena() as (api, sso):
        credential = {"email": api.user, "password": {"value": api.password}}
        data = settings(api, sso, tmp_path, preset="arena", credential=credential)
        first = data["upstreams"]["arena"]
        data["upstreams"]["other"] = first | {"base_url": f"{api.base_url}/v1/items"}
        async with sidecar(data) as rig, script(rig, tmp_path) as client:
            assert rig.app.brokers["arena"] is rig.app.brokers["other"]
            assert (await client.get(f"{api.api_url}/files/x/content")).status_code == 404
            assert api.counters["logins"] == 1
        data["upstreams"]["other"] = data["upstreams"]["other"] | {
            "credential": {"email": api.user, "password": {"env": "OTHER"}}
        }
        with pytest.raises(ConfigurationError, match=r"upstreams\.other\.credential\.password is not that of arena"):
            credentials(Settings.model_validate(data), SystemClock())


async def test_two_upstreams_that_answer_the_same_login_are_refused(tmp_path: Path) -> None:
    """Nobody could tell whose it is; what the form says may tell them apart."""
    async with arena() as (api, sso), arena() as (other, _):
        data = settings(api, sso, tmp_path)
        one = data["upstreams"]["arena"]
        two = one | {"base_url": other.api_url, "credential": one["credential"] | {"client_id": "second"}}
        data["upstreams"]["second"] = two
        with pytest.raises(ConfigurationError, match=r"upstreams\.second.*arena.*same login"):
            credentials(Settings.model_validate(data), SystemClock())
        for name, client in (("arena", "a"), ("second", "b")):
            each = data["upstreams"][name]
            shim = [
                {
                    "match": {"method": "POST", "path": "{token_url}", "form": {"client_id": client}},
                    "reply": {"json": {"access_token": "{placeholder}"}},
                }
            ]
            data["upstreams"][name] = {key: value for key, value in each.items() if key != "preset"} | {
                "recipe": {"extends": "arena-oauth", "shim": shim}
            }
        assert len(credentials(Settings.model_validate(data), SystemClock())) == 2
        hosts = hosts_of(Settings.model_validate(data), SystemClock())
        assert ("127.0.0.1", int(sso.base_url.rsplit(":", 1)[1])) in hosts
