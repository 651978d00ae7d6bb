"""Unmodified scripts against Arena and Teamcenter, each logging in by itself, while sessions die under them."""

import asyncio
import contextlib
import json
import os
import re
import ssl
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from sidecar.emulator.arena import Arena
from sidecar.emulator.system import System, SystemSwitches
from sidecar.emulator.teamcenter import Teamcenter
from sidecar.tokens.seal import new_key
from tests.canary import canary
from tests.clients.packages import modern_node
from tests.redis_servers import Server, redis_of_session, redis_server
from tests.waiting import PATIENCE, until

__all__ = ["redis_of_session", "redis_server"]

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests/clients/systems"
THEIRS = canary("script-password")
CLIENTS = {"requests": "{python} {}.py", "LWP": "perl {}.pl", "curl": "sh {}.sh", "Node": "{node} {}.mjs"}
SYSTEMS: dict[str, type[System]] = {"arena": Arena, "teamcenter": Teamcenter}
CREDENTIALS = {"arena": {"email": System.user, "workspace_id": 898}, "teamcenter": {"user": System.user}}
WITHIN = {"extends": "arena", "sessions": {"stolen": {"within": "1ms"}}}
"""Deaths follow each other faster here than a person logs in: it is no foreign login that ends these sessions."""
SESSION = re.compile(rb"canary-session-\d+|canary-xsrf-\d+")
"""What no script, log or file may show."""


@dataclass
class Stage:
    """A system, and a configuration for it in *folder*."""

    folder: Path
    name: str
    system: Any

    @property
    def base(self) -> str:
        return str(self.system.api_url if self.name == "arena" else self.system.base_url)

    def configure(self, **changes: Any) -> Path:
        """Write a configuration; *changes* of the upstream, or of all by `store`, `listen`, `state_dir`."""
        top = {key: changes.pop(key) for key in ("store", "listen", "state_dir") if key in changes}
        upstream = {
            "base_url": self.base,
            "preset": self.name,
            "credential": CREDENTIALS[self.name] | {"password": {"env": "OURS"}},
            "tls": {"ca": str(self.system.ca_path)},
        }
        if "recipe" in changes:
            del upstream["preset"]
        data = {"state_dir": str(self.folder / "state"), "upstreams": {"plm": upstream | changes}} | top
        data.setdefault("listen", {"proxy": "127.0.0.1:0", "admin": "127.0.0.1:0"})
        file = self.folder / "config.yaml"
        file.write_text(json.dumps(data))
        return file

    def environ(self, password: str | None = None) -> dict[str, str]:
        return {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin:/usr/local/bin",
            "HOME": str(self.folder),
            "PYTHONPATH": str(ROOT),
            "OURS": self.system.password if password is None else password,
            "PASSWORD": THEIRS,
        }

    async def script(self, client: str, run: str, *before: str, **environ: str) -> Process:
        """Start a script, after the command *before*."""
        words = {"{python}": sys.executable, "{node}": modern_node() if client == "Node" else ""}
        command = [words.get(word, word.replace("{}", self.name)) for word in CLIENTS[client].split()]
        return await asyncio.create_subprocess_exec(
            *before, *command, self.base, run, cwd=SCRIPTS, env=self.environ() | environ, stdout=PIPE, stderr=PIPE
        )

    def exec(self, *options: str) -> list[str]:
        return [sys.executable, "-m", "sidecar", "exec", "-c", str(self.folder / "config.yaml"), *options, "--"]


async def report(script: Process) -> tuple[dict[str, Any], bytes]:
    """Return what a script reported, and all that it wrote."""
    async with asyncio.timeout(2 * PATIENCE):
        out, err = await script.communicate()
    assert out, err.decode()
    return json.loads(out.splitlines()[-1]), out + err


@contextlib.asynccontextmanager
async def stage(folder: Path, name: str, **switches: Any) -> AsyncIterator[Stage]:
    async with SYSTEMS[name].start(switches=SystemSwitches(**switches), names=("localhost",)) as system:
        yield Stage(folder, name, system)


@contextlib.asynccontextmanager
async def served(at: Stage, name: str, file: Path, *, password: str | None = None) -> AsyncIterator[dict[str, str]]:
    """Run a sidecar as a process, and yield its addresses; its log lies in the folder."""
    log = at.folder / f"{name}.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sidecar", "run", "-c", str(file)),
            env=at.environ(password),
            stdout=output,
            stderr=output,
        )
    try:
        await until(lambda: b'"ready"' in log.read_bytes() or process.returncode is not None, "a sidecar that serves")
        assert process.returncode is None, log.read_text()
        ready = next(line for line in log.read_text().splitlines() if '"ready"' in line)
        yield json.loads(ready)["addresses"]
    finally:
        if process.returncode is None:
            process.terminate()
            async with asyncio.timeout(PATIENCE):
                await process.wait()


def variables(at: Stage, addresses: dict[str, str], state: Path) -> dict[str, str]:
    """Return what a script needs of a sidecar that runs: the proxy's address and its authority."""
    proxy = f"http://{addresses['proxy']}"
    bundle = str(next(state.glob("ca/*bundle*")))
    names = ("CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "PERL_LWP_SSL_CA_FILE")
    return {
        **dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"), proxy),
        **dict.fromkeys(names, bundle),
        "PERL_LWP_ENV_PROXY": "1",
        "NODE_USE_ENV_PROXY": "1",
    }


@contextlib.asynccontextmanager
async def behind(addresses: dict[str, str], state: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client that has a running sidecar for its proxy."""
    trusted = ssl.create_default_context(cafile=str(next(state.glob("ca/*bundle*"))))
    proxy = f"http://{addresses['proxy']}"
    async with httpx.AsyncClient(timeout=PATIENCE, proxy=proxy, verify=trusted, trust_env=False) as client:
        yield client


def clean(at: Stage, *outputs: bytes) -> None:
    """Nothing that is secret is in what was written: neither the vendor's sessions nor anybody's password."""
    files = [path.read_bytes() for path in at.folder.rglob("*") if path.is_file() and path.name != "config.yaml"]
    for content in (*outputs, *files):
        assert not SESSION.search(content), SESSION.search(content)
        assert at.system.password.encode() not in content
    assert THEIRS not in at.system.shown
    alive = re.compile(r"canary-|caNARY-")
    assert not [word for word in at.system.shown if word and not alive.match(word)], "a placeholder reached the vendor"


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("name", SYSTEMS)
async def test_the_scripts_are_what_people_have(tmp_path: Path, name: str, client: str) -> None:
    """Alone with the vendor each works while its session lives, and fails when that dies."""
    async with stage(tmp_path, name) as at:
        at.system.user = "script@plant.example" if name == "arena" else "script"
        at.system.password = THEIRS
        ca = str(at.system.ca_path)
        names = ("CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "PERL_LWP_SSL_CA_FILE")
        fine, output = await report(await at.script(client, "direct", **dict.fromkeys(names, ca)))
        assert fine["failures"] == [], output
        assert (at.system.counters["logins"], at.system.counters["logouts"]) == (1, 1)
        at.system.switches.dies_after = [at.system.counters["calls"] + 9]
        broken, _ = await report(await at.script(client, "dying", **dict.fromkeys(names, ca)))
        assert broken["failures"]


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("name", SYSTEMS)
async def test_five_deaths_are_not_noticed(tmp_path: Path, name: str, client: str) -> None:
    """No failure, every write done once, one login for each death; the vendor meets neither script nor logout."""
    async with stage(tmp_path, name, dies_after=[3, 6, 9, 13, 17]) as at:
        at.configure(**({"recipe": WITHIN} if name == "arena" else {}))
        told, output = await report(await at.script(client, "night", *at.exec()))
        assert told["failures"] == [], output
        counters = at.system.counters
        assert counters["deaths"] == 5
        assert counters["logins"] <= counters["deaths"] + 1
        assert counters["logouts"] == 0
        assert set(at.system.rows.values()) == {1}
        assert sum(key.startswith(("POST night", "item night")) for key in at.system.rows) == 12
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
        file = at.configure(listen={"proxy": "127.0.0.1:0", "admin": "127.0.0.1:0"}, recipe=WITHIN)
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


async def together(at: Stage, names: Sequence[str], addresses: Sequence[dict[str, str]]) -> list[tuple[Any, bytes]]:
    scripts = [
        await at.script(
            client,
            f"run-{number}",
            **variables(at, addresses[number % len(addresses)], at.folder / f"s{number % len(addresses)}"),
        )
        for number, client in enumerate(names)
    ]
    return await asyncio.gather(*(report(script) for script in scripts))


@contextlib.asynccontextmanager
async def two(at: Stage, redis: Server, **changes: Any) -> AsyncIterator[list[dict[str, str]]]:
    """Run two sidecars that share a Redis."""
    key = at.folder / "key"
    key.write_text(new_key() + "\n")
    store = {"url": redis.url, "keys": [{"file": str(key)}], "timeout": "1s"}
    async with contextlib.AsyncExitStack() as stack:
        addresses = []
        for number in range(2):
            file = at.configure(store=store, state_dir=str(at.folder / f"s{number}"), **changes)
            own = at.folder / f"config-{number}.yaml"
            file.rename(own)
            addresses.append(await stack.enter_async_context(served(at, f"sidecar-{number}", own)))
        yield addresses


async def test_three_scripts_on_two_sidecars_are_one_session(tmp_path: Path, redis_server: Server) -> None:
    """Also over five deaths; one script logs out before the others are done, and they go on."""
    async with stage(tmp_path, "arena", dies_after=[7, 15, 24, 33, 41]) as at:
        async with two(at, redis_server, recipe=WITHIN) as addresses:
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
        two(at, redis_server, recipe=WITHIN, timeout={"token": "8s"}) as addresses,
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


@pytest.mark.parametrize("name", SYSTEMS)
async def test_a_wrong_password_is_told_at_the_scripts_login(tmp_path: Path, name: str) -> None:
    """It is tried once, whoever logs in how often: no account is locked."""
    async with stage(tmp_path, name) as at:
        file = at.configure()
        async with served(at, "one", file, password=canary("wrong")) as addresses:
            for _ in range(3):
                script = await at.script("requests", "x", **variables(at, addresses, tmp_path / "state"))
                _, output = await report(script) if name == "teamcenter" else ({}, b"".join(await script.communicate()))
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
