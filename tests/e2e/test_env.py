"""`auth-sidecar env`: the variables of a running sidecar, in the words of a shell."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.canary import canary
from tests.process import start_sidecar
from tests.rig import TOKEN, configuration, recorder, token_server

ROOT = Path(__file__).parents[2]


async def _run(folder: Path, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    base = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": str(ROOT)}
    return await asyncio.to_thread(
        subprocess.run,
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=folder,
        env=base | environ,
    )


def _env(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "sidecar", "env", "-c", str(folder / "config.yaml"), *options]


@pytest.mark.parametrize("shell", ["sh", "fish"])
async def test_a_shell_that_evaluates_it_reaches_the_upstream(tmp_path: Path, outputs: Path, shell: str) -> None:
    """An unmodified curl gets our token; evaluated twice, nothing grows; the configuration need not be the same."""
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    folder = tmp_path / "it's a $dir"
    async with token_server() as tokens, recorder() as upstream:
        data = configuration(upstream.url, tokens.url, folder / "state")
        async with start_sidecar(data, folder, outputs / f"env-{shell}.log") as running:
            show = "import json, os; print(json.dumps(dict(os.environ)))"
            command = f"{sys.executable} -m sidecar env -c config.yaml --set log.level=debug --shell {shell}"
            evaluate = f'eval "$({command})"' if shell == "sh" else f"{command} | source"
            script = f"{evaluate}; {evaluate}; curl -sS {upstream.url}/x; echo; exec {sys.executable} -c '{show}'"
            found = await _run(folder, shell, *(["--no-config"] if shell == "fish" else []), "-c", script, NO_PROXY="*")

    assert (found.returncode, found.stderr) == (0, "")
    answer, _, shown = found.stdout.partition("\n")
    environ = json.loads(shown)
    assert answer == "ok"
    assert upstream.seen[0].values(b"Authorization") == [f"Bearer {TOKEN}-1".encode()]
    assert environ["https_proxy"] == f"http://{running.addresses['proxy']}"
    assert environ["AUTH_SIDECAR_URL_PLM"] == f"http://{running.addresses['plm']}"
    assert "NO_PROXY" not in environ
    assert environ["JAVA_TOOL_OPTIONS"].count("-Dhttp.proxyHost") == 1
    assert Path(environ["SSL_CERT_FILE"]) == folder / "state/ca/bundle.pem"
    assert Path(environ["SYSTEM_WGETRC"]).is_file()


async def test_without_a_running_sidecar_it_says_so(tmp_path: Path) -> None:
    """One line, exit 1, nothing to evaluate."""
    data = configuration("https://plm.example.com", "https://plm.example.com/token", tmp_path / "state")
    (tmp_path / "config.yaml").write_text(json.dumps(data))

    found = await _run(tmp_path, *_env(tmp_path))

    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr == (
        f"auth-sidecar: no sidecar runs with state_dir {tmp_path}/state; start it with auth-sidecar run\n"
    )


async def test_proxy_of_every_address_with_a_password(tmp_path: Path, outputs: Path) -> None:
    """A wildcard is shown as loopback, with the login that the port asks for; docker gets nothing of the caller's."""
    password = canary("proxy") + ":/@ %"
    async with token_server() as tokens, recorder() as upstream:
        data = configuration(upstream.url, tokens.url, tmp_path / "state")
        data["listen"] |= {"proxy": "0.0.0.0:0", "auth": {"username": "app", "password": {"value": password}}}
        async with start_sidecar(data, tmp_path, outputs / "env-wildcard.log") as running:
            found = await _run(tmp_path, *_env(tmp_path, "--shell", "docker"), NO_PROXY="a.org", JAVA_TOOL_OPTIONS="-X")
            lines = [line.partition("=") for line in found.stdout.splitlines() if not line.startswith("#")]
            environ = {name: value for name, _, value in lines}
            fetched = await _run(tmp_path, "curl", "-sS", f"{upstream.url}/x", **environ)

    assert found.returncode == 0, found.stderr
    assert environ["HTTP_PROXY"] == f"http://app:{canary('proxy')}%3A%2F%40%20%25@127.0.0.1:{running.port()}"
    assert "NO_PROXY" not in environ
    assert environ["JAVA_TOOL_OPTIONS"].startswith("-Dhttp.proxyHost=127.0.0.1 ")
    assert f"{tmp_path}/state/ca:{tmp_path}/state/ca:ro" in found.stdout
    assert fetched.stdout == "ok"
    assert upstream.seen[0].values(b"Authorization") == [f"Bearer {TOKEN}-1".encode()]


async def test_a_unix_socket_has_no_variable(tmp_path: Path, outputs: Path) -> None:
    """What no client can use is told in one line."""
    async with token_server() as tokens, recorder() as upstream:
        data: dict[str, Any] = configuration(upstream.url, tokens.url, tmp_path / "state")
        data["listen"]["proxy"] = f"unix:{tmp_path}/p"
        async with start_sidecar(data, tmp_path, outputs / "env-unix.log"):
            found = await _run(tmp_path, *_env(tmp_path))
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr == (
        f"auth-sidecar: listen.proxy is unix:{tmp_path}/p, which no proxy variable can name; expected host:port\n"
    )


@pytest.mark.parametrize("command", ["exec", "env"])
async def test_help_shows_an_example(tmp_path: Path, command: str) -> None:
    """Also that `env` prints a password."""
    shown = await _run(tmp_path, sys.executable, "-m", "sidecar", command, "--help")
    text = " ".join(shown.stdout.split())
    assert f"Example: {'auth-sidecar exec' if command == 'exec' else 'eval'}" in text
    assert "--for-exec" not in text
    assert command == "exec" or "with the proxy's password" in text
    assert os.linesep in shown.stdout
