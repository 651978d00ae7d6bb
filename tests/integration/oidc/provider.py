"""Install and run oidc-provider, an OAuth server that we did not write, and log in to it the way a browser does."""

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

VERSION = "9.13.3"
REDIRECT_URI = "https://client.example/callback"

_SERVER = Path(__file__).with_name("server.mjs")
_FORM_ACTION = re.compile(r'<form[^>]* action="([^"]+)"')
_PROMPT = re.compile(r'name="prompt" value="([a-z]+)"')


@contextlib.contextmanager
def running(clients: list[dict[str, Any]], log: Path) -> Iterator[str]:
    """Run the server on a free port of loopback and give its URL; *log* gets what it says."""
    command = [_tool("node"), str(_SERVER), str(_installed()), json.dumps(clients)]
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], 20)
            url = process.stdout.readline().strip() if ready else ""
            if not url:
                pytest.fail(f"oidc-provider did not start: {log.read_text()}", pytrace=False)
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


def _installed() -> Path:
    """Return where the server is installed; the first use installs it, several at once do no harm."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = caches / "auth-sidecar-tests" / "oidc" / VERSION
    if not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
            _install(Path(scratch) / "new")
            with contextlib.suppress(OSError):  # another run was faster
                (Path(scratch) / "new").rename(home)
    return home


def _install(directory: Path) -> None:
    directory.mkdir()
    options = ["--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(directory)]
    command = [_tool("npm"), "install", *options, f"oidc-provider@{VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.fail(f"oidc-provider {VERSION} cannot be installed by npm: {done.stderr}", pytrace=False)
