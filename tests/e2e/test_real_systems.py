"""Servers and libraries that nobody here wrote, by the recipes of docs/systems/your-own.md, while sessions die."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from ruamel.yaml import YAML

from tests.canary import canary
from tests.clients.packages import python_home
from tests.process import Running, start_sidecar
from tests.waiting import PATIENCE

SCRIPTS = Path(__file__).parents[1] / "clients/systems"
PAGE = Path(__file__).parents[2] / "docs/systems/your-own.md"
OURS = canary("ours-of-the-plant")
THEIRS = canary("theirs-of-the-script")
PARTS = 6
KIWI_SETTINGS = """
import os
from tcms.settings.common import *
DEBUG = False
SECRET_KEY = os.environ["KEY"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["DATABASE"]}}
# Sessions live in the database alone, as in Kiwi's own settings for development: what is deleted there is dead.
CACHES = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
"""
KIWI_NEEDS = [
    "tcms-api==15.0",
    "setuptools==80.9.0",
    "allpairspy==2.5.0",
    "bleach==6.0.0",
    "bleach-allowlist==1.0.3",
    "Django==4.2.2",
    "django-attachments==1.11",
    "django-colorfield==0.8.0",
    "django-contrib-comments==2.2.0",
    "django-extensions==3.2.1",
    "django-grappelli==3.0.6",
    "django-guardian==2.4.0",
    "django-modern-rpc==1.0.1",
    "django-simple-captcha==0.5.17",
    "django-simple-history==3.3.0",
    "django-tree-queries==0.14.0",
    "django-uuslug==2.0.0",
    "django-vinaigrette==2.0.1",
    "jira==3.5.1",
    "Markdown==3.4.3",
    "PyGithub==1.58.2",
    "Pygments==2.15.1",
    "python-bugzilla==3.2.0",
    "python-gitlab==3.14.0",
    "python-redmine==2.4.0",
    "topicaxis-opengraph==0.5",
    "tzdata==2023.3",
]
TRYTON_SETTINGS = "[database]\nuri = sqlite://\npath = {folder}\n[web]\nlisten = 127.0.0.1:{port}\n"


def environ(folder: Path, **more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8"} | more


def run(folder: Path, *command: str, **more: str) -> None:
    done = subprocess.run(
        command, cwd=folder, env=environ(folder, **more), capture_output=True, text=True, timeout=800, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@dataclass
class Vendor:
    """A real server in *folder*; all that goes to and from it goes through a relay, which keeps it."""

    folder: Path
    home: Path
    port: int = field(default_factory=free_port)
    address: str = ""
    asked: bytearray = field(default_factory=bytearray)
    told: bytearray = field(default_factory=bytearray)
    process: Process | None = None
    base = ""
    login = b""
    session = re.compile(rb"")
    sessions = ""
    rows = ""

    @property
    def python(self) -> str:
        return str(self.home / "bin/python")

    @property
    def logins(self) -> int:
        return self.asked.count(self.login)

    def command(self) -> tuple[list[str], dict[str, str]]:
        raise NotImplementedError

    async def start(self) -> None:
        command, more = self.command()
        with (self.folder / "server.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *command, cwd=self.folder, env=environ(self.folder, **more), stdout=log, stderr=log
            )
        async with httpx.AsyncClient(trust_env=False) as client:
            end = time.monotonic() + PATIENCE
            while True:
                assert self.process.returncode is None, (self.folder / "server.log").read_text()[-3000:]
                with contextlib.suppress(httpx.TransportError):
                    await client.get(f"http://127.0.0.1:{self.port}/")
                    return
                assert time.monotonic() < end, "the server does not serve"
                await asyncio.sleep(0.1)

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    def kill(self) -> int:
        """Delete all sessions in the server's own database; return how many there were."""
        with contextlib.closing(sqlite3.connect(self.database, timeout=30)) as database, database:
            return database.execute(f"DELETE FROM {self.sessions}").rowcount

    def written(self) -> Counter[str]:
        with contextlib.closing(sqlite3.connect(self.database, timeout=30)) as database:
            return Counter(
                name for (name,) in database.execute(f"SELECT name FROM {self.rows} WHERE name LIKE 'night-%'")
            )

    @property
    def database(self) -> Path:
        raise NotImplementedError


class Tryton(Vendor):
    """trytond, with proteus."""

    base = "/plant"
    login = b"common.db.login"
    session = re.compile(rb'"result":\[\d+,"([0-9a-f]{64})"')
    sessions = "ir_session"
    rows = "party_party"

    @classmethod
    def installed(cls) -> Path:
        return python_home("tryton", ["trytond==8.2.1", "trytond-party==8.2.0", "proteus==8.2.0"], prepare=cls.prepare)

    @staticmethod
    def prepare(home: Path) -> None:
        (home / "trytond.conf").write_text(TRYTON_SETTINGS.format(folder=home, port=1))
        (home / "password").write_text(canary("first"))
        (home / "plant.sqlite").touch()
        command = ["bin/trytond-admin", "-c", "trytond.conf", "-d", "plant", "--all", "-u", "party"]
        command += ["--activate-dependencies", "--email", "svc@example.com"]
        run(home, str(home / "bin/python"), *command, TRYTONPASSFILE=str(home / "password"))

    @property
    def database(self) -> Path:
        return self.folder / "plant.sqlite"

    def lay_out(self) -> None:
        shutil.copy(self.home / "plant.sqlite", self.database)
        (self.folder / "trytond.conf").write_text(TRYTON_SETTINGS.format(folder=self.folder, port=self.port))
        (self.folder / "password").write_text(OURS)
        command = [f"{self.home}/bin/trytond-admin", "-c", "trytond.conf", "-d", "plant", "--password"]
        run(self.folder, self.python, *command, TRYTONPASSFILE=str(self.folder / "password"))
        with contextlib.closing(sqlite3.connect(self.database)) as database, database:
            database.execute("UPDATE res_user SET login = 'svc-sync' WHERE login = 'admin'")

    def command(self) -> tuple[list[str], dict[str, str]]:
        return [self.python, f"{self.home}/bin/trytond", "-c", "trytond.conf", "-d", "plant"], {}


class Kiwi(Vendor):
    """Kiwi TCMS, with tcms-api."""

    login = b"Auth.login"
    session = re.compile(rb"sessionid=([a-z0-9]{32});")
    sessions = "django_session"
    rows = "management_product"
    key = "first"

    @classmethod
    def installed(cls) -> Path:
        # The release of django-modern-rpc that it pins is older than Python 3.11.
        # uWSGI, which it wants too, is not what serves here.
        return python_home("kiwi", ["--no-deps", "kiwitcms==12.4"], KIWI_NEEDS, prepare=cls.prepare)

    @staticmethod
    def prepare(home: Path) -> None:
        (home / "plant_settings.py").write_text(KIWI_SETTINGS)
        database = {"DJANGO_SETTINGS_MODULE": "plant_settings", "DATABASE": str(home / "kiwi.sqlite"), "KEY": "none"}
        run(home, str(home / "bin/python"), "-m", "django", "migrate", PYTHONPATH=str(home), **database)

    @property
    def database(self) -> Path:
        return self.folder / "kiwi.sqlite"

    @property
    def variables(self) -> dict[str, str]:
        return {
            "DJANGO_SETTINGS_MODULE": "plant_settings",
            "PYTHONPATH": str(self.folder),
            "DATABASE": str(self.database),
            "KEY": canary(self.key),
        }

    def lay_out(self) -> None:
        shutil.copy(self.home / "kiwi.sqlite", self.database)
        (self.folder / "plant_settings.py").write_text(KIWI_SETTINGS)
        user = ["createsuperuser", "--noinput", "--username", "svc-sync", "--email", "svc@example.com"]
        run(self.folder, self.python, "-m", "django", *user, **self.variables, DJANGO_SUPERUSER_PASSWORD=OURS)

    def command(self) -> tuple[list[str], dict[str, str]]:
        command = ["-m", "django", "runserver", "--noreload", f"127.0.0.1:{self.port}"]
        return [self.python, *command], self.variables

    async def restart_with_another_key(self) -> None:
        """Make all sessions unreadable, as a new SECRET_KEY does."""
        self.key = "second"
        await self.stop()
        await self.start()


async def relayed(vendor: Vendor, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, kept: bytearray) -> None:
        while data := await source.read(65536):
            kept += data
            sink.write(data)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()

    with contextlib.closing(writer), contextlib.suppress(OSError):
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", vendor.port)
        with contextlib.closing(upstream_writer):
            await asyncio.gather(
                pump(reader, upstream_writer, vendor.asked), pump(upstream_reader, writer, vendor.told)
            )


@contextlib.asynccontextmanager
async def serving(kind: Any, folder: Path) -> AsyncIterator[Any]:
    home = await asyncio.to_thread(kind.installed)
    (folder / "vendor").mkdir()
    vendor = kind(folder / "vendor", home)
    await asyncio.to_thread(vendor.lay_out)
    relay = await asyncio.start_server(lambda *streams: relayed(vendor, *streams), "127.0.0.1", 0)
    vendor.address = f"http://127.0.0.1:{relay.sockets[0].getsockname()[1]}"
    try:
        await vendor.start()
        yield vendor
    finally:
        relay.close()
        await vendor.stop()


def written_down(vendor: Any, password: str, state: Path) -> dict[str, Any]:
    """Return a configuration with the page's recipe, as it stands there."""
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    name = type(vendor).__name__.lower()
    upstream = next(
        found
        for block in blocks
        if (found := YAML(typ="safe", pure=True).load(block)["upstreams"].get(name)) is not None
    )
    upstream |= {"base_url": vendor.address + vendor.base, "insecure_http": True, "listen": "127.0.0.1:0"}
    upstream["credential"]["password"] = {"value": password}
    return {
        "state_dir": str(state),
        "listen": {"proxy": "127.0.0.1:0", "admin": "127.0.0.1:0"},
        "upstreams": {name: upstream},
    }


@contextlib.asynccontextmanager
async def before(vendor: Any, folder: Path, dead: Any = None) -> AsyncIterator[tuple[Running, str]]:
    """Run a sidecar before *vendor*, and yield it and the URL of its reverse port; *dead* instead of the page's."""
    data = written_down(vendor, OURS, folder / "state")
    if dead is not None:
        data["upstreams"][type(vendor).__name__.lower()]["recipe"]["login"]["dead"] = dead
    async with start_sidecar(data, folder / "sidecar", folder / "log" / "sidecar.log") as running:
        yield running, f"http://127.0.0.1:{running.port(type(vendor).__name__.lower())}"


Between = Callable[[int], Awaitable[None]]


async def night(vendor: Any, url: str, between: Between) -> dict[str, Any]:
    """Run the library's script; *between* is called with the number of each part before it."""
    script = await asyncio.create_subprocess_exec(
        *(vendor.python, f"{type(vendor).__name__.lower()}.py", url, THEIRS),
        cwd=SCRIPTS,
        env=environ(vendor.folder),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )
    assert script.stdin is not None
    assert script.stdout is not None
    try:
        async with asyncio.timeout(2 * PATIENCE):
            async for line in script.stdout:
                said = json.loads(line)
                if "failures" in said:
                    return dict(said)
                await between(said["part"])
                script.stdin.write(b"on\n" if said["part"] < PARTS else b"end\n")
        assert script.stderr is not None
        raise AssertionError((await script.stderr.read()).decode())
    finally:
        with contextlib.suppress(ProcessLookupError):
            script.kill()
        await script.communicate()


def clean(vendor: Vendor, folder: Path) -> None:
    """Nothing secret is in a log of the sidecar, and nothing of the script's reached the vendor."""
    sessions = set(vendor.session.findall(bytes(vendor.told)))
    assert len(sessions) == vendor.logins
    log = b"".join(file.read_bytes() for file in (folder / "log").iterdir())
    assert b'"ready"' in log
    for secret in (*sessions, OURS.encode(), THEIRS.encode()):
        assert secret not in log
    assert THEIRS.encode() not in vendor.asked


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("kind", [Tryton, Kiwi])
async def test_deaths_are_not_noticed(tmp_path: Path, kind: Any) -> None:
    """Sessions are deleted in the server's database: no failure, each write once, one login for each death."""
    (tmp_path / "log").mkdir()
    async with serving(kind, tmp_path) as vendor:
        async with before(vendor, tmp_path) as (_, url):
            deaths = 0

            async def kill(number: int) -> None:
                nonlocal deaths
                if 0 < number < PARTS:
                    assert vendor.kill() == 1
                    deaths += 1

            told = await night(vendor, url, kill)
            assert told["failures"] == [], (tmp_path / "vendor/server.log").read_text()[-2000:]
            assert deaths == PARTS - 1
            assert vendor.logins <= deaths + 1
            assert vendor.written() == {f"night-{part}-{row}": 1 for part in range(PARTS) for row in range(4)}
        assert vendor.kill() == 0  # the sidecar has logged out of the last session
        clean(vendor, tmp_path)


@pytest.mark.timeout(1500)
async def test_a_new_secret_key_is_made_up_for_by_hand(tmp_path: Path) -> None:
    """No sign tells this death from a missing permission: `token renew`, as the page says, and the script goes on."""
    (tmp_path / "log").mkdir()
    async with serving(Kiwi, tmp_path) as vendor, before(vendor, tmp_path) as (running, url):

        async def restart(number: int) -> None:
            if number == 2:
                await vendor.restart_with_another_key()
                config = tmp_path / "sidecar/config.yaml"
                command = [sys.executable, "-m", "sidecar", "token", "renew", "kiwi", "-c", str(config)]
                addresses = json.loads(config.read_text())
                addresses["listen"]["admin"] = running.addresses["admin"]
                config.write_text(json.dumps(addresses))
                done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stderr

        told = await night(vendor, url, restart)
        assert told["failures"] == []
        assert vendor.logins == 2
        assert set(vendor.written().values()) == {1}
        clean(vendor, tmp_path)


@pytest.mark.timeout(1500)
async def test_a_missing_permission_is_not_fought_with_logins(tmp_path: Path) -> None:
    """Its fault reads like a death; the script gets it each time, and the logins stay few."""
    (tmp_path / "log").mkdir()
    call = "<methodCall><methodName>Product.filter</methodName><params><param><value><struct/></value></param>"
    call += "</params></methodCall>"
    async with serving(Kiwi, tmp_path) as vendor:
        with contextlib.closing(sqlite3.connect(vendor.database)) as database, database:
            database.execute("UPDATE auth_user SET is_superuser = 0")
        async with before(vendor, tmp_path) as (_, url), httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as script:
            for _ in range(12):
                answer = await script.post(f"{url}/xml-rpc/", content=call, headers={"Content-Type": "text/xml"})
                assert "Authentication failed when calling" in answer.text
            assert vendor.logins == 1


@pytest.mark.timeout(1500)
async def test_the_fault_alone_is_no_sign_of_a_death(tmp_path: Path) -> None:
    """As the page says: it would take a missing permission for a death, with logins for nothing and a 503."""
    (tmp_path / "log").mkdir()
    call = "<methodCall><methodName>Product.filter</methodName><params><param><value><struct/></value></param>"
    call += "</params></methodCall>"
    async with serving(Kiwi, tmp_path) as vendor:
        with contextlib.closing(sqlite3.connect(vendor.database)) as database, database:
            database.execute("UPDATE auth_user SET is_superuser = 0")
        dead = {"body": "Authentication failed when calling"}
        async with before(vendor, tmp_path, dead) as (_, url):
            async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as script:
                answer = await script.post(f"{url}/xml-rpc/", content=call, headers={"Content-Type": "text/xml"})
            assert answer.status_code == 503
            assert vendor.logins > 1
