"""An emulated system, unmodified scripts that log in to it, and a configuration of the sidecar between them."""

import asyncio
import contextlib
import json
import re
import ssl
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from sidecar.emulator.systems.known import NAMES, system_class
from sidecar.emulator.systems.system import SystemSwitches
from sidecar.settings.shipped import preset
from sidecar.tokens.seal import new_key
from tests.canary import canary
from tests.clients.packages import modern_node
from tests.redis_servers import Server
from tests.waiting import PATIENCE, until

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "tests/clients/systems"
THEIRS = canary("script-password")
CLIENTS = {"requests": "{python} {}.py", "LWP": "perl {}.pl", "curl": "sh {}.sh", "Node": "{node} {}.mjs"}
SCRIPTED = [
    (name, client)
    for name in NAMES
    for client, command in CLIENTS.items()
    if (SCRIPTS / command.rpartition(" ")[2].replace("{}", name)).exists()
]
USERS = {"arena": "script@plant.example"}
"""Whom the scripts log in as, where it is not `script`."""
SESSION = re.compile(rb"canary-session-\d+|canary-xsrf-\d+")
"""What no script, log or file may show."""


def quick(name: str) -> dict[str, Any]:
    """Return what to change where deaths follow each other fast, and no foreign login or mistake is behind them."""
    recipe = preset(name)
    if recipe.login.oauth2 is not None:
        return {"renew": {"min_interval": 0}}
    if recipe.sessions.per_account == "one":
        return {"recipe": {"extends": name, "sessions": {"stolen": {"within": "1ms"}}}}
    return {}


@dataclass
class Stage:
    """A system, and a configuration for it in *folder*."""

    folder: Path
    name: str
    system: Any

    @property
    def base(self) -> str:
        return str(self.system.api_url)

    def configure(self, **changes: Any) -> Path:
        """Write a configuration; *changes* of the upstream, or of all by `store`, `listen`, `state_dir`."""
        top = {key: changes.pop(key) for key in ("store", "listen", "state_dir") if key in changes}
        upstream = {
            "base_url": self.base,
            "preset": self.name,
            "credential": self.system.credential | {key: {"env": "OURS"} for key in self.system.secrets},
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
            "OURS": next(iter(self.system.secrets.values())) if password is None else password,
            "PASSWORD": THEIRS,
            **self.system.places,
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
    async with system_class(name).start(switches=SystemSwitches(**switches)) as system:
        yield Stage(folder, name, system)


@contextlib.asynccontextmanager
async def sidecar_process(file: Path, log: Path, environ: dict[str, str]) -> AsyncIterator[dict[str, str]]:
    """Run a sidecar of the configuration *file* as a process that writes *log*, and yield its addresses."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sidecar", "run", "-c", str(file)), env=environ, stdout=output, stderr=output
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


@contextlib.asynccontextmanager
async def served(at: Stage, name: str, file: Path, *, password: str | None = None) -> AsyncIterator[dict[str, str]]:
    """Run a sidecar as a process, and yield its addresses; its log lies in the folder."""
    async with sidecar_process(file, at.folder / f"{name}.log", at.environ(password)) as addresses:
        yield addresses


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
        assert not [name for name, secret in at.system.secrets.items() if secret.encode() in content]
    assert THEIRS not in at.system.shown
    alive = re.compile(r"canary-|caNARY-")
    assert not [word for word in at.system.shown if word and not alive.match(word)], "a placeholder reached the vendor"


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
