"""Install and run OAuth servers for Node.js that we did not write, and log in to one the way a browser does."""

import contextlib
import json
import os
import re
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

OIDC_PROVIDER = "oidc-provider", "9.13.3"
OAUTH2_SERVER = "@node-oauth/oauth2-server", "5.3.0"
REDIRECT_URI = "https://client.example/callback"

_SERVER = Path(__file__).with_name("server.mjs")
_FORM_ACTION = re.compile(r'<form[^>]* action="([^"]+)"')
_PROMPT = re.compile(r'name="prompt" value="([a-z]+)"')


@contextlib.contextmanager
def running(clients: list[dict[str, Any]], log: Path) -> Iterator[str]:
    """Run oidc-provider on a free port of loopback and give its URL; *log* gets what it says."""
    command = [_tool("node"), str(_SERVER), str(_installed(*OIDC_PROVIDER)), json.dumps(clients)]
    with _serving(command, log) as url:
        yield url


@contextlib.contextmanager
def running_oauth2_server(client: dict[str, Any], user: dict[str, str], log: Path) -> Iterator[str]:
    """Run @node-oauth/oauth2-server for one client and one user, and give the URL of its token endpoint."""
    text = json.dumps({"client": client, "user": user})
    script = str(_SERVER.with_name("node.mjs"))
    with _serving([_tool("node"), script, str(_installed(*OAUTH2_SERVER)), text], log) as url:
        yield f"{url}/token"


@contextlib.contextmanager
def _serving(command: list[str], log: Path) -> Iterator[str]:
    """Run a program that prints its URL when it serves."""
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], 20)
            url = process.stdout.readline().strip() if ready else ""
            if not url:
                pytest.fail(f"{command[1]} did not start: {log.read_text()}", pytrace=False)
            yield url
        finally:
            process.terminate()


async def log_in(url: str, client_id: str, client_secret: str) -> dict[str, Any]:
    """Return what the authorization code flow gives to the client for a user who agrees to everything."""
    query = {
        "client_id": client_id,
        "response_type": "code",
        "redirect_uri": REDIRECT_URI,
        "scope": "openid offline_access",
        "prompt": "consent",
    }
    async with httpx.AsyncClient(trust_env=False, base_url=url) as browser:
        response = await browser.get("/auth", params=query)
        for _ in range(20):
            if response.is_redirect:
                location = response.headers["location"]
                if location.startswith(REDIRECT_URI):
                    break
                response = await browser.get(location)
            else:
                action, prompt = _FORM_ACTION.search(response.text), _PROMPT.search(response.text)
                assert action is not None, response.text
                assert prompt is not None, response.text
                form = {"prompt": prompt[1], "login": "user", "password": "any"}
                response = await browser.post(action[1], data=form)
        code = parse_qs(urlsplit(response.headers["location"]).query)["code"][0]
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT_URI}
        response = await browser.post("/token", data=form, auth=(client_id, client_secret))
        tokens: dict[str, Any] = response.raise_for_status().json()
        return tokens


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.fail(
            f"{name} is not on PATH: the tests against a real OAuth server need Node.js 20 or newer with npm;"
            " install it, from the system's package manager for instance",
            pytrace=False,
        )
    return path


def _installed(package: str, version: str) -> Path:
    """Return where a package is installed; the first use installs it, several at once do no harm."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = caches / "auth-sidecar-tests" / package.replace("/", "-") / version
    if not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
            _install(Path(scratch) / "new", f"{package}@{version}")
            with contextlib.suppress(OSError):  # another run was faster
                (Path(scratch) / "new").rename(home)
    return home


def _install(directory: Path, package: str) -> None:
    directory.mkdir()
    options = ["--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(directory)]
    command = [_tool("npm"), "install", *options, package]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.fail(f"{package} cannot be installed by npm: {done.stderr}", pytrace=False)
