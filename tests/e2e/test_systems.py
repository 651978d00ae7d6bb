"""Unmodified scripts against the systems that have a preset, each with a login of its own, while sessions die."""

import asyncio
import contextlib
import json
import os
import sys
import time
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import httpx
import pytest

from sidecar.emulator.systems.known import NAMES
from tests.canary import canary
from tests.redis_servers import Server, redis_of_session, redis_server
from tests.stage import (
    SCRIPTED,
    SCRIPTS,
    THEIRS,
    USERS,
    behind,
    clean,
    quick,
    report,
    served,
    stage,
    together,
    two,
    variables,
)
from tests.waiting import PATIENCE

__all__ = ["redis_of_session", "redis_server"]


@pytest.mark.parametrize(("name", "client"), SCRIPTED)
async def test_the_scripts_are_what_people_have(tmp_path: Path, name: str, client: str) -> None:
    """Alone with the vendor each works while its session lives, and fails when that dies."""
    async with stage(tmp_path, name) as at:
        at.system.user = USERS.get(name, "script")
        at.system.password = THEIRS
        ca = str(at.system.ca_path)
        names = ("CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "PERL_LWP_SSL_CA_FILE")
        fine, output = await report(await at.script(client, "direct", **dict.fromkeys(names, ca)))
        assert fine["failures"] == [], output
        assert (at.system.counters["logins"], at.system.counters["logouts"]) == (1, at.system.logs_out)
        at.system.switches.dies_after = [at.system.counters["calls"] + 9]
        broken, _ = await report(await at.script(client, "dying", **dict.fromkeys(names, ca)))
        assert broken["failures"]


@pytest.mark.parametrize(("name", "client"), SCRIPTED)
async def test_five_deaths_are_not_noticed(tmp_path: Path, name: str, client: str) -> None:
    """No failure, every write done once, one login for each death; the vendor meets neither script nor logout."""
    async with stage(tmp_path, name, dies_after=[3, 6, 9, 13, 17]) as at:
        at.configure(**quick(name))
        told, output = await report(await at.script(client, "night", *at.exec()))
        assert told["failures"] == [], output
        counters = at.system.counters
        assert counters["deaths"] == 5
        assert counters["logins"] <= counters["deaths"] + 1
        assert counters["logouts"] == 0
        assert set(at.system.rows.values()) == {1}
        assert sum(" night-" in key for key in at.system.rows) == 12
        assert counters["cookies_at_tickets"] == 0
        clean(at, output)


async def test_the_plain_web_tier_needs_no_gateway(tmp_path: Path) -> None:
    """Without session variables and XSRF, and with a death that is told in XML."""
    async with stage(tmp_path, "teamcenter", dies_after=[4, 8], gateway=False) as at:
        at.system.xml = True
        at.configure()
        told, output = await report(await at.script("requests", "plain", *at.exec()))
        assert told["failures"] == [], output
        assert at.system.counters["logins"] <= 3


async def test_a_cookie_that_rolls_with_each_answer_costs_no_login(tmp_path: Path) -> None:
    """The next request shows the newest one, and the script none of them."""
    async with stage(tmp_path, "teamcenter", rolls=True) as at:
        at.configure()
        told, output = await report(await at.script("requests", "rolls", *at.exec()))
        assert told["failures"] == [], output
        assert at.system.counters["logins"] == 1
        clean(at, output)


async def test_a_reverse_port_answers_the_login_too(tmp_path: Path) -> None:
    """For clients that know no proxy: the base URL is all that is changed."""
    async with stage(tmp_path, "arena", dies_after=[5]) as at:
        file = at.configure(listen={"proxy": "127.0.0.1:0", "admin": "127.0.0.1:0"}, **quick("arena"))
        data = json.loads(file.read_text())
        data["upstreams"]["plm"]["listen"] = "127.0.0.1:0"
        file.write_text(json.dumps(data))
        async with served(at, "one", file) as addresses:
            script = await asyncio.create_subprocess_exec(
                *(sys.executable, "arena.py", f"http://{addresses['plm']}", "reverse"),
                cwd=SCRIPTS,
                env=at.environ(),
                stdout=PIPE,
                stderr=PIPE,
            )
            told, output = await report(script)
            assert told["failures"] == [], output
            assert at.system.counters["logouts"] == 0
        # The last one that ran logs out.
        assert (at.system.counters["logins"], at.system.counters["logouts"]) == (2, 1)
        clean(at, output)


async def test_three_scripts_on_two_sidecars_are_one_session(tmp_path: Path, redis_server: Server) -> None:
    """Also over five deaths; one script logs out before the others are done, and they go on."""
    async with stage(tmp_path, "arena", dies_after=[7, 15, 24, 33, 41]) as at:
        async with two(at, redis_server, **quick("arena")) as addresses:
            found = await together(at, ("requests", "curl", "LWP"), addresses)
            assert [told["failures"] for told, _ in found] == [[], [], []], found
            counters = at.system.counters
            assert counters["deaths"] == 5
            assert counters["logins"] <= 6
            assert (counters["logouts"], set(at.system.rows.values())) == (0, {1})
        assert at.system.counters["logouts"] == 1
        clean(at, *(output for _, output in found))


async def test_without_the_store_nobody_logs_in_twice(tmp_path: Path, redis_server: Server) -> None:
    """The session in memory serves on; one that dies meanwhile is told of by name, and is made up for afterwards."""
    async with (
        stage(tmp_path, "arena") as at,
        two(at, redis_server, **quick("arena"), timeout={"token": "8s"}) as addresses,
    ):
        async with contextlib.AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(behind(each, tmp_path / f"s{number}"))
                for number, each in enumerate(addresses)
            ]
            for client in clients:
                assert (await client.get(f"{at.base}/items")).status_code == 200
            assert at.system.counters["logins"] == 1
            redis_server.freeze()
            try:
                assert (await clients[0].get(f"{at.base}/items")).status_code == 200
                at.system.kill()
                answers = await asyncio.gather(*(client.get(f"{at.base}/items") for client in clients))
                assert [answer.status_code for answer in answers] == [503, 503]
                assert {answer.json()["reason"] for answer in answers} == {"token_unavailable"}
                assert all("store" in answer.json()["detail"] for answer in answers)
                assert at.system.counters["logins"] == 1
            finally:
                redis_server.thaw()
            for client in clients:
                async with asyncio.timeout(PATIENCE):
                    while (await client.get(f"{at.base}/items")).status_code != 200:
                        await asyncio.sleep(0.1)
            assert at.system.counters["logins"] == 2


@pytest.mark.parametrize("name", NAMES)
async def test_a_wrong_password_is_told_at_the_scripts_login(tmp_path: Path, name: str) -> None:
    """It is tried once, whoever logs in how often: no account is locked."""
    async with stage(tmp_path, name) as at:
        file = at.configure()
        async with served(at, "one", file, password=canary("wrong")) as addresses:
            for _ in range(3):
                script = await at.script("requests", "x", **variables(at, addresses, tmp_path / "state"))
                output = b"".join(await script.communicate())
                assert b"502" in output
                assert b"credential_rejected" in output
            assert at.system.counters["refused_logins"] == 1
            assert at.system.counters["logins"] == 0


async def test_another_login_again_and_again_is_told_in_words(tmp_path: Path) -> None:
    """Five logins at most, then nobody fights for the seat: the script, the log and the status say why."""
    async with stage(tmp_path, "arena") as at:
        async with served(at, "one", at.configure()) as addresses:
            async with behind(addresses, tmp_path / "state") as client:
                for _ in range(12):
                    answer = await client.get(f"{at.base}/items")
                    if answer.status_code != 200:
                        break
                    at.system.foreign_login()
                assert (answer.status_code, answer.json()["reason"]) == (503, "seat_taken")
                assert "another login" in answer.json()["detail"]
                assert int(answer.headers["Retry-After"]) <= 30
                assert at.system.counters["logins"] <= 5
            async with httpx.AsyncClient(trust_env=False) as operator:
                page = (await operator.get(f"http://{addresses['admin']}/status")).json()
                metrics = (await operator.get(f"http://{addresses['admin']}/metrics")).text
            assert page["upstreams"]["plm"]["state"] == "seat_taken"
            (finding,) = page["findings"]
            assert finding["id"] == "seat_taken"
            assert "another login" in finding["what"]
            assert 'auth_sidecar_credential_state{state="seat_taken",upstream="plm"} 1.0' in metrics
        assert "another login" in (tmp_path / "one.log").read_text()


async def test_a_used_up_quota_is_asked_for_once(tmp_path: Path, redis_server: Server) -> None:
    """The vendor's own 429 goes out once; then both instances wait for the reset, whose date is no date of HTTP."""
    async with stage(tmp_path, "arena", quota=3) as at, two(at, redis_server) as addresses:
        async with contextlib.AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(behind(each, tmp_path / f"s{number}"))
                for number, each in enumerate(addresses)
            ]
            statuses = [(await clients[0].get(f"{at.base}/items")).status_code for _ in range(3)]
            assert statuses == [200, 200, 200]
            ends = [await clients[0].get(f"{at.base}/items") for _ in range(4)]
            reasons = [answer.json().get("reason") for answer in ends]
            assert reasons.count("quota_exhausted") >= 3
            assert at.system.counters["over_quota"] <= 1
            assert 0 < int(ends[-1].headers["Retry-After"]) <= 3700
            until_ = time.monotonic() + PATIENCE
            while (await clients[1].get(f"{at.base}/items")).json().get("reason") != "quota_exhausted":
                assert time.monotonic() < until_
            assert at.system.counters["over_quota"] <= 2
            async with httpx.AsyncClient(trust_env=False) as operator:
                metrics = (await operator.get(f"http://{addresses[0]['admin']}/metrics")).text
                page = (await operator.get(f"http://{addresses[0]['admin']}/status")).json()
            assert 'auth_sidecar_quota_remaining{upstream="plm"} 0.0' in metrics
            assert page["upstreams"]["plm"]["quota"]["remaining"] == 0
            assert page["upstreams"]["plm"]["quota"]["exhausted_until"] > time.time()


async def test_an_expiry_in_a_200_never_reaches_the_script(tmp_path: Path) -> None:
    """A file that begins like one does, and an answer that drips goes on after a second."""
    async with stage(tmp_path, "teamcenter") as at:
        async with served(at, "one", at.configure()) as addresses:
            async with behind(addresses, tmp_path / "state") as client:
                service = f"{at.base}/tc/JsonRestServices"
                given: dict[str, Any] = {"header": {}, "body": {"file": "expired.json"}}
                ticket = (
                    await client.post(f"{service}/Core-2006-03-FileManagement/getFileReadTickets", json=given)
                ).json()
                got = await client.get(f"{at.base}/fms/fmsdownload/x", params={"ticket": ticket["ticket"]})
                assert got.json()[".QName"].endswith("InvalidUserException")
                assert at.system.counters["logins"] == 1
                at.system.kill()
                answers = await asyncio.gather(
                    *(
                        client.post(f"{service}/Core-2006-03-DataManagement/getProperties", json={"body": {}})
                        for _ in range(8)
                    )
                )
                assert all(len(answer.json()["rows"]) == 25 for answer in answers)
                assert at.system.counters["logins"] == 2
                began = time.monotonic()
                async with client.stream(
                    "POST", f"{service}/Core-2006-03-DataManagement/report", json={"body": {}}
                ) as drip:
                    parts = [(time.monotonic() - began, part) async for part in drip.aiter_raw()]
                assert json.loads(b"".join(part for _, part in parts))["rows"] == list(range(7))
                # The vendor takes three seconds in all: the first of it was here long before the last.
                assert parts[-1][0] - parts[0][0] > 1.0


async def test_a_killed_session_under_load_is_renewed_once(tmp_path: Path) -> None:
    """Large and coded requests, answers that come before their bodies were read, a death that meets a renewal."""
    async with stage(tmp_path, "teamcenter", early=True, login_delay=0.5) as at:
        async with served(at, "one", at.configure()) as addresses:
            async with behind(addresses, tmp_path / "state") as client:
                url = f"{at.base}/tc/JsonRestServices/Core-2006-03-DataManagement/createItems"

                async def create(number: int) -> Any:
                    body = json.dumps(
                        {"body": {"items": [{"id": f"n{number}"}], "filler": "x" * (number % 3) * 400_000}}
                    )
                    return await client.post(url, content=body, headers={"Content-Type": "application/json"})

                answers = []
                for death in range(5):
                    first = [asyncio.create_task(create(8 * death + number)) for number in range(4)]
                    at.system.kill()
                    await asyncio.sleep(0.25)
                    first += [asyncio.create_task(create(8 * death + 4 + number)) for number in range(4)]
                    answers += await asyncio.gather(*first)
                assert [answer.json().get("output") is not None for answer in answers] == [True] * 40
                assert (len(at.system.rows), set(at.system.rows.values())) == (40, {1})
                assert at.system.counters["logins"] <= 6


def test_the_environment_has_the_clients() -> None:
    """Each of the four is really run."""
    paths = os.environ["PATH"].split(":")
    for program in ("perl", "curl", "node"):
        assert any((Path(path) / program).exists() for path in paths), program
