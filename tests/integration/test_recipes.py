"""Systems that nobody has heard of, each in a recipe of its own: their scripts log in by themselves, sessions die."""

import asyncio
import contextlib
import json
import re
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from mitmproxy.proxy import commands
from ruamel.yaml import YAML

from tests import rig as rigs
from tests.canary import WORD, canary
from tests.rig import Rig, sidecar
from tests.waiting import until

OURS = {"user": "svc", "password": canary("ours")}
THEIRS = {"user": "script", "password": canary("theirs")}

KILN = """
recipe: 1
id: kiln
vars: {user: {}, password: {secret: true}}
login:
  steps:
  - request: POST {base}/auth
    form: {user: "{user}", pass: "{password}"}
    ok: {xml: {sid: {regex: .}}}
    get: {sid: {xml: sid}}
    fatal: {xml: {error: "3"}}
  send: {query: {sid: "{sid}"}}
  dead: {xml: {error: "7"}}
shim:
- match: POST {base}/auth
  reply: {type: text/xml, text: "<r><sid>{placeholder}</sid></r>"}
- match: GET {base}/bye
  reply: {type: text/xml, text: <r/>}
logout: GET {base}/bye
"""
"""The session stands in the query; all errors come with 200, in XML."""

LEDGER = """
recipe: 1
id: ledger
vars: {user: {}, password: {secret: true}}
login:
  steps:
  - request: POST {base}/login
    json: {user: "{user}", password: "{password}"}
    ok: {json: {/done: true}}
    get: {key: {json: /key}}
    fatal: {json: {/why: password}}
  send: {json: {match: "POST {base}/*", set: {/auth/key: "{key}"}}, cookies: jar}
  dead: {json: {/why: key}}
csrf:
  steps:
  - request: GET {base}/nonce
    get: {nonce: {header: X-Nonce}}
  send: {headers: {X-Nonce: "{nonce}"}, methods: [POST]}
  dead: {status: 403}
shim:
- match: POST {base}/login
  reply: {json: {done: true, key: "{placeholder}"}, cookies: {node: "{placeholder}"}}
swap: [header, body]
"""
"""The session is a key in the JSON of each request, with a cookie that rolls, and a nonce for writes."""


@dataclass
class Vendor:
    """A system with one session for each login; *alive* are those that live."""

    url: str = ""
    alive: set[str] = field(default_factory=set)
    seen: Counter[str] = field(default_factory=Counter)
    bodies: list[bytes] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    nonce: int = 1
    rolled: int = 0
    forbids: bool = False

    def kill(self) -> None:
        self.alive.clear()

    def log_in(self, who: Any, secret: Any) -> str | None:
        self.seen["login"] += 1
        self.words += [str(who), str(secret)]
        if (who, secret) != (OURS["user"], OURS["password"]):
            return None
        session = canary(f"session-{self.seen['login']}")
        self.alive.add(session)
        return session


def _xml(text: str) -> web.Response:
    return web.Response(text=f'<r xmlns="urn:kiln">{text}</r>', content_type="text/xml")


async def kiln(vendor: Vendor, request: web.BaseRequest) -> web.Response:
    if request.path == "/auth":
        form = await request.post()
        session = vendor.log_in(form.get("user"), form.get("pass"))
        return _xml(f"<sid>{session}</sid>" if session else "<error>3</error>")
    session = request.query.get("sid", "")
    vendor.words += [*request.query.values(), *request.headers.values()]
    if request.path == "/bye":
        vendor.seen["logout"] += 1
        vendor.alive.discard(session)
        return _xml("")
    body = await request.read()
    if session not in vendor.alive:
        return _xml("<error>7</error>")
    vendor.seen[request.method] += 1
    vendor.bodies.append(body)
    return _xml(f"<row>{request.query.get('n', '')}</row><error>0</error>")


async def ledger(vendor: Vendor, request: web.BaseRequest) -> web.Response:
    given = json.loads(await request.read() or b"{}")
    if request.path == "/login":
        session = vendor.log_in(given.get("user"), given.get("password"))
        answer = web.json_response({"done": True, "key": session} if session else {"done": False, "why": "password"})
        answer.headers["Set-Cookie"] = "node=n0; Path=/"
        return answer
    vendor.words += [json.dumps(given), *request.headers.values()]
    if request.path == "/nonce":
        vendor.seen["nonce"] += 1
        return web.Response(headers={"X-Nonce": f"nonce-{vendor.nonce}"})
    key = given.get("auth", {}).get("key")
    if key not in vendor.alive:
        return web.json_response({"why": "key"})
    if vendor.forbids or request.headers.get("X-Nonce") != f"nonce-{vendor.nonce}":
        vendor.seen["forbidden"] += 1
        return web.json_response({"why": "nonce"}, status=403)
    vendor.seen[request.method] += 1
    vendor.seen[f"node {request.headers.get('Cookie')}"] += 1
    vendor.bodies.append(json.dumps(given["row"]).encode())
    vendor.rolled += 1
    answer = web.json_response({"row": given["row"]})
    answer.headers["Set-Cookie"] = f"node=n{vendor.rolled}; Path=/"
    return answer


@contextlib.asynccontextmanager
async def served(speak: Callable[[Vendor, web.BaseRequest], Awaitable[web.Response]]) -> AsyncIterator[Vendor]:
    vendor = Vendor()
    runner = web.ServerRunner(web.Server(lambda request: speak(vendor, request)), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    vendor.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield vendor
    finally:
        await runner.cleanup()


def settings(vendor: Vendor, recipe: str, state_dir: Path, **credential: Any) -> dict[str, Any]:
    given = {"user": OURS["user"], "password": {"value": OURS["password"]}} | credential
    odd = {
        "base_url": vendor.url,
        "insecure_http": True,
        "listen": "127.0.0.1:0",
        "recipe": YAML(typ="safe", pure=True).load(recipe),
        "credential": given,
    }
    return {
        "state_dir": str(state_dir),
        "listen": {"proxy": "127.0.0.1:0", "admin": "127.0.0.1:0"},
        "upstreams": {"odd": odd},
    }


@contextlib.asynccontextmanager
async def client(rig: Rig, port: str, vendor: Vendor) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a script: through the proxy port, or with a reverse port as its base URL."""
    address = f"http://127.0.0.1:{rig.port(port)}"
    options = {"proxy": address, "base_url": vendor.url} if port == "proxy" else {"base_url": address}
    async with httpx.AsyncClient(trust_env=False, timeout=60, **options) as script:  # type: ignore[arg-type]
        yield script


@pytest.mark.parametrize("port", ["proxy", "odd"])
async def test_a_session_in_the_query_dies_unseen(tmp_path: Path, port: str) -> None:
    """The script logs in, works over three deaths, and logs out; the vendor sees one account, and no logout by it."""
    async with (
        served(kiln) as vendor,
        sidecar(settings(vendor, KILN, tmp_path)) as rig,
        client(rig, port, vendor) as at,
    ):
        answer = await at.post("/auth", data={"user": THEIRS["user"], "pass": THEIRS["password"]})
        placeholder = answer.text.partition("<sid>")[2].partition("</sid>")[0]
        assert answer.status_code == 200
        assert placeholder
        for number in range(12):
            if number % 4 == 2:
                vendor.kill()
            answer = await at.post("/rows", params={"sid": placeholder, "n": number}, content=b"row %d" % number)
            assert f"<row>{number}</row>" in answer.text
        assert (await at.get("/bye", params={"sid": placeholder})).status_code == 200
        assert vendor.seen == {"login": 4, "POST": 12}
        assert vendor.bodies == [b"row %d" % number for number in range(12)]
        assert not {THEIRS["user"], THEIRS["password"], placeholder} & set(vendor.words)
    assert vendor.seen["logout"] == 1  # our own, at the end
    assert vendor.alive == set()


async def test_a_wrong_password_is_tried_once(tmp_path: Path) -> None:
    """The script is told so at its login, and every request after it too; a person has to see to it."""
    data = settings(Vendor(), KILN, tmp_path)
    async with served(kiln) as vendor:
        data["upstreams"]["odd"] |= {"base_url": vendor.url}
        data["upstreams"]["odd"]["credential"]["password"] = {"value": canary("wrong")}
        async with sidecar(data) as rig, client(rig, "proxy", vendor) as at:
            for _ in range(3):
                answer = await at.post("/auth", data={"user": "x", "pass": "y"})
                assert (answer.status_code, answer.json()["reason"]) == (502, "credential_rejected")
                answer = await at.get("/rows")
                assert (answer.status_code, answer.json()["reason"]) == (502, "credential_rejected")
            assert vendor.seen == {"login": 1}
            async with httpx.AsyncClient(trust_env=False) as operator:
                page = (await operator.get(f"http://127.0.0.1:{rig.port('admin')}/status")).json()
            assert [finding["id"] for finding in page["findings"]] == ["credential_rejected"]
            assert page["findings"][0]["severity"] == "page"


async def test_a_key_in_the_body_with_a_nonce_and_a_cookie_that_rolls(tmp_path: Path) -> None:
    """Each is replaced when it dies, and nothing else: a new nonce is no new login, a rolled cookie neither."""
    async with served(ledger) as vendor, sidecar(settings(vendor, LEDGER, tmp_path)) as rig:
        async with client(rig, "proxy", vendor) as at:
            told = (await at.post("/login", json=THEIRS)).json()
            for number in range(9):
                if number == 3:
                    vendor.nonce += 1
                if number == 6:
                    vendor.kill()
                answer = await at.post("/rows", json={"auth": {"key": told["key"]}, "row": number})
                assert (answer.status_code, answer.json()) == (200, {"row": number})
                assert "set-cookie" not in answer.headers
            assert vendor.bodies == [str(number).encode() for number in range(9)]
            assert vendor.seen["login"] == 2
            assert vendor.seen["forbidden"] == 1
            assert [name for name in vendor.seen if name.startswith("node ")][:3] == [
                "node node=n0",
                "node node=n1",
                "node node=n2",
            ]
            assert not any(told["key"] in word or THEIRS["password"] in word for word in vendor.words)


async def test_a_plain_403_is_no_death(tmp_path: Path) -> None:
    """The nonce is fetched again, is the same, and so the answer is the script's: it may not do that."""
    async with served(ledger) as vendor, sidecar(settings(vendor, LEDGER, tmp_path)) as rig:
        async with client(rig, "proxy", vendor) as at:
            vendor.forbids = True
            answer = await at.post("/rows", json={"row": 1})
            assert (answer.status_code, answer.json()) == (403, {"why": "nonce"})
            assert (vendor.seen["forbidden"], vendor.seen["login"], vendor.seen["POST"]) == (1, 1, 0)


async def tally(vendor: Vendor, request: web.BaseRequest) -> web.Response:
    """Answer as the tutorial of docs/recipes.md has captured it."""
    given = json.loads(await request.read() or b"{}")
    if request.path == "/api/session":
        session = vendor.log_in(given.get("name"), given.get("word"))
        if session is None:
            return web.json_response({"error": {"code": "BAD_LOGIN"}}, status=403)
        return web.json_response({"ticket": session, "ttl": 1800})
    if request.headers.get("X-Ticket") not in vendor.alive:
        return web.json_response({"error": {"code": "NO_SESSION"}})
    vendor.seen[request.method] += 1
    return web.json_response({"parts": []})


async def test_the_recipe_of_the_tutorial_works(tmp_path: Path) -> None:
    """What a reader builds in half an hour serves a script over the death of its session, and a wrong password."""
    page = (Path(__file__).parents[2] / "docs/recipes.md").read_text()
    text = next(block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "tally" in block)
    written = YAML(typ="safe", pure=True).load(text)["upstreams"]["tally"]
    async with served(tally) as vendor:
        data = settings(vendor, KILN, tmp_path)
        for word, statuses in ((OURS["password"], [200, 200]), (canary("wrong"), [502, 502])):
            credential = {"name": OURS["user"], "word": {"value": word}}
            odd = written | {"base_url": f"{vendor.url}/api", "insecure_http": True, "credential": credential}
            data["upstreams"] = {"odd": odd}
            data["state_dir"] = str(tmp_path / word)
            async with sidecar(data) as rig, client(rig, "proxy", vendor) as at:
                told = await at.post("/api/session", json={"name": "theirs", "word": "old"})
                assert told.status_code == statuses[0]
                vendor.kill()
                answer = await at.get("/api/parts", headers={"X-Ticket": told.json().get("ticket", "")})
                assert answer.status_code == statuses[1]
                assert (answer.json() == {"parts": []}) is (statuses[1] == 200)
        assert vendor.seen == {"login": 3, "GET": 1}


async def counting(vendor: Vendor, request: web.BaseRequest) -> web.Response:
    """Want HTTP Basic, and count wrong passwords."""
    right = b64encode(f"svc:{OURS['password']}".encode()).decode()
    fine = request.headers.get("Authorization") == f"Basic {right}"
    vendor.seen["fine" if fine else "wrong"] += 1
    await asyncio.sleep(0.05)
    return web.json_response({}, status=200 if fine else 401)


@pytest.mark.parametrize(
    ("word", "seen", "statuses"), [("ours", {"fine": 10}, {200}), ("wrong", {"wrong": 1}, {401, 502})]
)
async def test_a_password_is_not_tried_by_many_at_once(
    tmp_path: Path, word: str, seen: dict[str, int], statuses: set[int]
) -> None:
    """The first request shows it alone: ten wrong ones in a moment would lock the account."""
    async with served(counting) as vendor:
        data = settings(vendor, KILN, tmp_path)
        del data["upstreams"]["odd"]["recipe"]
        credential = {"username": "svc", "password": {"value": canary(word)}}
        data["upstreams"]["odd"] |= {"preset": "basic", "credential": credential}
        async with sidecar(data) as rig, client(rig, "proxy", vendor) as at:
            answers = await asyncio.gather(*(at.get("/x") for _ in range(10)))
        assert {answer.status_code for answer in answers} == statuses
        assert vendor.seen == seen


async def test_many_at_once_make_one_login(tmp_path: Path) -> None:
    """Thirty requests meet one death: one login for all, each write done once."""
    async with (
        served(kiln) as vendor,
        sidecar(settings(vendor, KILN, tmp_path)) as rig,
        client(rig, "proxy", vendor) as at,
    ):
        await until(lambda: vendor.seen["login"] == 1, "the first login")
        vendor.kill()
        answers = await asyncio.gather(*(at.post("/rows", params={"n": n}, content=b"%d" % n) for n in range(30)))
        assert all(f"<row>{number}</row>" in answer.text for number, answer in enumerate(answers))
        assert vendor.seen == {"login": 2, "POST": 30}
        assert sorted(map(int, vendor.bodies)) == list(range(30))


async def test_addons_see_no_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vendor may say the session back in any body: in flows stars stand for it, in the answer it stays."""
    flows: list[Any] = []

    async def look(hook: commands.StartHook) -> None:
        flows.append(hook.args()[0])

    async def echo(vendor: Vendor, request: web.BaseRequest) -> web.Response:
        if request.path == "/auth":
            return await kiln(vendor, request)
        return _xml(f"<said>{request.query.get('sid')}</said>")

    monkeypatch.setattr(rigs, "dispatch", look)
    async with served(echo) as vendor, sidecar(settings(vendor, KILN, tmp_path)) as rig:
        async with client(rig, "proxy", vendor) as at:
            assert canary("session-1") in (await at.get("/rows")).text
    shown = [flow for flow in flows if getattr(flow, "response", None)]
    assert shown
    for flow in shown:
        assert WORD not in f"{flow.request.url}{flow.request.headers}{flow.response.headers}{flow.response.text}"
