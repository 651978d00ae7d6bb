"""What `learn` makes of scripts as people have them: it passes its own check, and carries them over deaths."""

import asyncio
import contextlib
import re
import sys
import urllib.parse
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import BasicAuth, web

from tests.canary import canary, leaks
from tests.stage import CLIENTS, ROOT, SESSION, THEIRS, Stage, report, stage
from tests.waiting import PATIENCE

DEATHS = {"arena": [4, 9], "teamcenter": [4, 9]}


def scripted(at: Stage) -> None:
    """Let the account be the one that the scripts have."""
    at.system.user = "script@plant.example" if at.name == "arena" else "script"
    at.system.password = THEIRS


async def learned(at: Stage, client: str, *options: str, code: int = 0) -> tuple[Path, bytes]:
    """Run `learn --check` with the script of *client*; return the file that it wrote, and all that it said."""
    file = at.folder / "learned.yaml"
    words = (
        *(sys.executable, "-m", "sidecar", "learn", "--base-url", at.base, "--out", str(file)),
        *("--ca", str(at.system.ca_path), *options, "--"),
        *("sh", "-c", 'exec "$@"-$$', "sh"),  # its items have other names each time
    )
    script = await at.script(client, "learned", *words)
    async with asyncio.timeout(3 * PATIENCE):
        out, err = await script.communicate()
    assert script.returncode == code, (err + out).decode()
    return file, out + err


@pytest.mark.parametrize("client", ["requests", "LWP", "curl"])
@pytest.mark.parametrize("name", ["arena", "teamcenter"])
async def test_what_is_learned_carries_the_script_over_deaths(tmp_path: Path, name: str, client: str) -> None:
    """Learned in one run, checked in a second, and in a third two sessions die unnoticed; no secret is kept."""
    assert client in CLIENTS
    async with stage(tmp_path, name) as at:
        scripted(at)
        file, said = await learned(at, client, "--check", "--name", "plm")
        assert b"check passed" in said, said.decode()
        text = file.read_text()
        ours = b"".join(line for line in said.splitlines() if line.startswith(b"auth-sidecar"))
        assert not SESSION.search(text.encode() + ours)
        at.system.switches.dies_after = [at.system.counters["calls"] + number for number in DEATHS[name]]
        before = at.system.counters["deaths"], at.system.counters["logins"]
        words = (sys.executable, "-m", "sidecar", "exec", "-c", str(file), "--")
        state = {"AUTH_SIDECAR__STATE_DIR": str(tmp_path / "state"), "PLM_PASSWORD": THEIRS}
        told, output = await report(await at.script(client, "carried", *words, **state))
        assert told["failures"] == [], output
        assert at.system.counters["deaths"] == before[0] + 2
        assert at.system.counters["logins"] == before[1] + 3
        assert not SESSION.search(output)
        assert leaks(tmp_path) == []


SOAP = '<e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/" xmlns="urn:t">{}</e:Envelope>'
SOAP_SCRIPT = """
import os, re, sys, urllib.request
BASE, HEAD = sys.argv[1], {"Content-Type": "text/xml; charset=utf-8", "SOAPAction": '""'}
def call(operation, inside="", session=""):
    header = f"<e:Header><SessionHeader><sessionId>{session}</sessionId></SessionHeader></e:Header>" if session else ""
    text = f'<e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/" xmlns="urn:t">{header}' \\
        f"<e:Body><{operation}>{inside}</{operation}></e:Body></e:Envelope>"
    with urllib.request.urlopen(urllib.request.Request(BASE + "/soap", text.encode(), HEAD)) as answer:
        return answer.read().decode()
told = call("login", f"<username>svc@plant.example</username><password>{os.environ['PASSWORD']}</password>")
session = re.search("<sessionId>(.*?)</sessionId>", told)[1]
for number in range(6):
    assert "<name>Bolt</name>" in call("getPart", f"<id>{number}</id>", session)
call("logout", "", session)
"""


class Soap:
    """A system whose session is an element of a SOAP header."""

    def __init__(self) -> None:
        self.sessions: set[str] = set()
        self.logins = self.calls = self.deaths = 0
        self.dies_after: list[int] = []

    async def serve(self, request: web.BaseRequest) -> web.Response:
        text = (await request.read()).decode()
        if "<login>" in text:
            if THEIRS not in text:
                return self._say("<e:Fault><faultcode>INVALID_LOGIN</faultcode></e:Fault>", 500)
            self.logins += 1
            self.sessions.add(name := canary(f"soap-{self.logins:08d}"))
            return self._say(f"<loginResponse><result><sessionId>{name}</sessionId></result></loginResponse>")
        found = re.search("<sessionId>(.*?)</sessionId>", text)
        if found is None or found[1] not in self.sessions:
            return self._say("<e:Fault><faultcode>sf:INVALID_SESSION_ID</faultcode></e:Fault>", 500)
        if "<logout>" in text:
            self.sessions.discard(found[1])
            return self._say("<logoutResponse/>")
        self.calls += 1
        if self.calls in self.dies_after:
            self.deaths += 1
            self.sessions.clear()
        return self._say("<getPartResponse><name>Bolt</name></getPartResponse>")

    @staticmethod
    def _say(inside: str, status: int = 200) -> web.Response:
        text = SOAP.format(f"<e:Body>{inside}</e:Body>")
        return web.Response(text=text, status=status, content_type="text/xml")


NONCE_SCRIPT = """
import base64, json, os, sys, urllib.request
BASE = sys.argv[1]
word = base64.b64encode(f"svc:{os.environ['PASSWORD']}".encode()).decode()
session = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
def call(method, path, body=None, **fields):
    head = {"Authorization": f"Basic {word}"} | {name.replace("_", "-"): value for name, value in fields.items()}
    data = None if body is None else json.dumps(body).encode()
    return session.open(urllib.request.Request(BASE + path, data, head, method=method))
nonce = call("GET", "/odata/", X_CSRF_Token="Fetch").headers["X-CSRF-Token"]
for number in range(4):
    assert json.load(call("GET", "/odata/Parts"))["d"] == []
    made = call("POST", "/odata/Parts", {"id": number}, X_CSRF_Token=nonce, Content_Type="application/json")
    assert made.status == 201
"""


class Nonce:
    """A system that wants Basic with each request, and with writes a nonce that it hands out."""

    def __init__(self) -> None:
        self.nonces: set[str] = set()
        self.fetched = self.calls = self.deaths = 0
        self.dies_after: list[int] = []

    async def serve(self, request: web.BaseRequest) -> web.Response:
        await request.read()
        if BasicAuth.decode(request.headers.get("Authorization", "Basic Og==")).password != THEIRS:
            return web.json_response({}, status=401, headers={"WWW-Authenticate": "Basic"})
        answer = web.json_response({"d": []}, status=201 if request.method == "POST" else 200)
        shown = request.headers.get("X-CSRF-Token", "")
        if shown == "Fetch":
            self.fetched += 1
            self.nonces.add(name := canary(f"nonce-{self.fetched:08d}"))
            answer.headers["X-CSRF-Token"] = name
            return answer
        if request.method == "POST":
            if shown not in self.nonces:
                return web.json_response({}, status=403, headers={"X-CSRF-Token": "Required"})
            self.calls += 1
            if self.calls in self.dies_after:
                self.deaths += 1
                self.nonces.clear()
        return answer


FORM_SCRIPT = """
import json, os, re, sys, urllib.parse, urllib.request
BASE = sys.argv[1]
session = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
page = session.open(BASE + "/login").read().decode()
seal = re.search('name="seal"', page) and re.search('value="(.*?)" type="hidden"', page)[1]
form = {"username": "svc", "password": os.environ["PASSWORD"], "seal": seal}
with session.open(BASE + "/login", urllib.parse.urlencode(form).encode()) as answer:
    assert answer.url.endswith("/home"), answer.url
for number in range(5):
    assert json.load(session.open(f"{BASE}/items?page={number}"))["rows"] == [1]
"""


class Form:
    """A system for people: a page with a hidden field, a form, a redirect, a cookie; the dead are led to the page."""

    def __init__(self) -> None:
        self.seals: set[str] = set()
        self.sessions: set[str] = set()
        self.logins = self.calls = self.deaths = 0
        self.dies_after: list[int] = []

    async def serve(self, request: web.BaseRequest) -> web.Response:
        given = urllib.parse.parse_qs((await request.read()).decode())
        session = request.cookies.get("sid", "")
        if request.path == "/login" and request.method == "GET":
            self.seals.add(seal := canary(f"seal-{len(self.seals):08d}"))
            page = (
                f'<html><style>a {{ b: c }}</style><form><input value="{seal}" type="hidden" name="seal"></form></html>'
            )
            answer = web.Response(text=page, content_type="text/html")
            if session not in self.sessions:
                answer.headers["Set-Cookie"] = f"sid={canary(f'before-{len(self.seals):08d}')}; Path=/"
            return answer
        if request.path == "/login":
            if given.get("password") != [THEIRS] or given.get("seal", [""])[0] not in self.seals or not session:
                return web.Response(text="<html>Try again</html>", content_type="text/html")
            self.logins += 1
            self.sessions.add(name := canary(f"form-{self.logins:08d}"))
            return web.Response(
                status=302, headers={"Location": "/home", "Set-Cookie": f"sid={name}; Path=/; HttpOnly"}
            )
        if session not in self.sessions:
            return web.Response(status=302, headers={"Location": "/login"})
        if request.path == "/home":
            return web.Response(text="<html>Welcome</html>", content_type="text/html")
        self.calls += 1
        if self.calls in self.dies_after:
            self.deaths += 1
            self.sessions.clear()
        return web.json_response({"rows": [1]})


@contextlib.asynccontextmanager
async def served(system: "Soap | Nonce | Form | Plain") -> AsyncIterator[str]:
    """Serve an invented system in clear; yield its base URL."""
    runner = web.ServerRunner(web.Server(system.serve))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def command(folder: Path, *words: str, **environ: str) -> tuple[int | None, bytes]:
    """Run the product with *words*; return its exit code and all that it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", *words),
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": str(ROOT), "PASSWORD": THEIRS} | environ,
        cwd=folder,
        stdout=PIPE,
        stderr=STDOUT,
    )
    async with asyncio.timeout(3 * PATIENCE):
        said, _ = await process.communicate()
    return process.returncode, said


@pytest.mark.parametrize(
    ("system", "script", "deaths"),
    [(Soap, SOAP_SCRIPT, [2, 4]), (Nonce, NONCE_SCRIPT, [1, 3]), (Form, FORM_SCRIPT, [2, 4])],
    ids=["soap", "nonce", "form"],
)
async def test_invented_systems(
    tmp_path: Path, system: type[Soap | Nonce | Form], script: str, deaths: list[int]
) -> None:
    """A SOAP header, Basic with a nonce for writes, a form: learned, checked, and carried over two deaths."""
    (file := tmp_path / "sync.py").write_text(script)
    stood = system()
    async with served(stood) as base:
        words = ("--base-url", base, "--name", "plm", "--check", "--", sys.executable, str(file), base)
        code, said = await command(tmp_path, "learn", *words)
        text = (tmp_path / "auth-sidecar.yaml").read_text()
        print(said.decode(), text)
        assert code == 0, said.decode()
        assert b"check passed" in said
        assert leaks(tmp_path) == []
        stood.dies_after = [stood.calls + number for number in deaths]
        state = {"AUTH_SIDECAR__STATE_DIR": str(tmp_path / "state"), "PLM_PASSWORD": THEIRS}
        code, said = await command(tmp_path, "exec", "--", sys.executable, str(file), base, **state)
        assert code == 0, said.decode()
        assert stood.deaths == 2
        assert leaks(tmp_path) == []


PLAIN_SCRIPT = """
import json, os, pathlib, sys, urllib.request
BASE, LOGIN = sys.argv[1].replace("URL", os.environ.get("AUTH_SIDECAR_URL_PLM", "")), sys.argv[2]
if "URL" in sys.argv:
    urllib.request.install_opener(urllib.request.build_opener(urllib.request.ProxyHandler({})))
def call(url, body=None, **head):
    data = None if body is None else json.dumps(body).encode()
    head = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in head.items()}
    with urllib.request.urlopen(urllib.request.Request(url, data, head)) as answer:
        return json.load(answer)
sid = call(LOGIN.replace("URL", BASE) + "/login", {"user": "svc", "password": os.environ["PASSWORD"]})["sid"]
for number in range(4):
    assert call(f"{BASE}/items?page={number}", X_Sid=sid)["rows"] == [1]
print("here is", "the end")
marker = pathlib.Path("once")
if marker.exists():
    sys.exit(3)
if len(sys.argv) > 3:
    marker.touch()
"""


class Plain:
    """A system with a session in a field of its own; *login*: where sessions come from, itself by default."""

    def __init__(self) -> None:
        self.logins = 0
        self.sessions: set[str] = set()

    async def serve(self, request: web.BaseRequest) -> web.Response:
        body = await request.read()
        if request.path == "/login":
            if THEIRS.encode() not in body:
                return web.json_response({}, status=403)
            self.logins += 1
            self.sessions.add(name := canary(f"plain-{self.logins:08d}"))
            return web.json_response({"sid": name})
        known = request.headers.get("X-Sid") in self.sessions
        return web.json_response({"rows": [1]} if known else {"error": "NO_SESSION"}, status=200 if known else 403)


@contextlib.asynccontextmanager
async def plain(folder: Path) -> AsyncIterator[tuple[Plain, str, list[str]]]:
    """Yield a system, its base URL, and the words of a script for it, which wants a base URL and one for the login."""
    (folder / "sync.py").write_text(PLAIN_SCRIPT)
    stood = Plain()
    async with served(stood) as base:
        yield stood, base, [sys.executable, str(folder / "sync.py")]


async def test_a_script_that_knows_no_proxy_is_given_the_reverse_port(tmp_path: Path) -> None:
    """Its variable leads there, when learning, when checking, and with what was written."""
    async with plain(tmp_path) as (stood, base, script):
        words = ("--base-url", base, "--name", "plm", "--check", "--", *script, "URL", "URL")
        code, said = await command(tmp_path, "learn", *words)
        assert code == 0, said.decode()
        state = {"AUTH_SIDECAR__STATE_DIR": str(tmp_path / "state"), "PLM_PASSWORD": THEIRS}
        code, said = await command(tmp_path, "exec", "--", *script, "URL", "URL", **state)
        assert code == 0, said.decode()
        assert stood.logins == 3


async def test_a_login_at_another_host_is_looked_at_if_it_is_named(tmp_path: Path) -> None:
    """Without `--also` it goes by unseen, which is said; with it the check passes."""
    async with plain(tmp_path) as (stood, base, script), served(stood) as second:
        other = second.replace("127.0.0.1", "localhost")
        words = ["--base-url", base, "--name", "plm", "--check", "--", *script, base, other]
        code, said = await command(tmp_path, "learn", *words)
        assert code == 1
        assert b"went to other hosts unseen; if the login is there, name it by --also" in said
        assert not (tmp_path / "auth-sidecar.yaml").exists()
        code, said = await command(tmp_path, "learn", "--also", other, *words)
        assert code == 0, said.decode()
        assert leaks(tmp_path) == []


async def test_a_check_that_fails_says_why(tmp_path: Path) -> None:
    """What was learned stays for a look; the exit code is 1."""
    async with plain(tmp_path) as (_, base, script):
        words = ("--base-url", base, "--name", "plm", "--check", "--", *script, base, base, "once")
        code, said = await command(tmp_path, "learn", *words)
        assert code == 1
        assert b"check failed: " + script[0].encode() + b" ended with code 3" in said
        assert (tmp_path / "auth-sidecar.yaml").exists()


async def test_nothing_is_overwritten_or_run_in_vain(tmp_path: Path) -> None:
    """A file that is there, a command that is not, a URL that is none: exit 2 before anything is run."""
    (tmp_path / "there.yaml").write_text("mine")
    base = ("--base-url", "https://plm.example.com")
    touch = ("--", "touch", str(tmp_path / "ran"))
    for words, why in (
        ((*base, "--out", "there.yaml", *touch), b"there.yaml: is there already"),
        ((*base, "--", "no-such-command"), b"no-such-command: command not found"),
        (("--base-url", "plm.example.com", *touch), b"--base-url: expected a URL"),
        ((*base, "--secret", "UNSET", *touch), b"--secret UNSET: the environment variable is not set"),
        ((*base,), b"missing a command"),
        (touch, b"missing --base-url"),
    ):
        code, said = await command(tmp_path, "learn", *words)
        assert (code, why in said) == (2, True), said.decode()
    assert not (tmp_path / "ran").exists()
    assert (tmp_path / "there.yaml").read_text() == "mine"


async def test_a_command_that_asks_nothing_teaches_nothing(tmp_path: Path) -> None:
    """Exit 1, and what may be done is said."""
    code, said = await command(tmp_path, "learn", "--base-url", "https://plm.example.com", "--", "true")
    assert code == 1
    assert b"nothing was seen: true sent no request to https://plm.example.com" in said
    assert b"$AUTH_SIDECAR_URL_PLM" in said
    assert list(tmp_path.glob("*.yaml")) == []


async def test_standard_output_holds_the_configuration_alone(tmp_path: Path) -> None:
    """What the script says goes to standard error."""
    async with plain(tmp_path) as (_, base, script):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sidecar", "learn", "--base-url", base, "--out", "-", "--", *script, base, base),
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "PASSWORD": THEIRS},
            cwd=tmp_path,
            stdout=PIPE,
            stderr=PIPE,
        )
        async with asyncio.timeout(3 * PATIENCE):
            out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        assert out.startswith(b"# Written by `auth-sidecar learn`")
        assert b"here is the end" not in out
        assert b"here is the end" in err
        assert b"/error: NO_SESSION" in out  # provoked with a broken session: there was no logout
