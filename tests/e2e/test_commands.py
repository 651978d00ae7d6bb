"""The command line as a user types it, in processes of its own."""

import asyncio
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from sidecar import __version__
from sidecar.emulator import Emulator, Switches
from sidecar.settings.shipped import PRESETS
from tests.canary import canary
from tests.faults.site import metric
from tests.process import start_sidecar
from tests.rig import configuration, raw, status_of
from tests.waiting import PATIENCE, eventually, until


def _run(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sidecar", *arguments]
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(cwd),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        **(env or {}),
    }
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=cwd, env=environment)


def _file(folder: Path, **changes: Any) -> Path:
    data = configuration("https://plm.example.com", "https://plm.example.com/token", folder / "state", **changes)
    file = folder / "config.yaml"
    file.write_text(json.dumps(data))
    return file


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["run", "--set", "upstreams.plm.workers=2"],
            r"upstreams\.plm\.workers: unknown key; expected one of: preset",
        ),
        (
            ["run", "--set", "upstreams.plm.renew.margin=soon"],
            r"upstreams\.plm\.renew\.margin: expected a share such as 20%",
        ),
        (["run", "--set", "listen.proxy=0.0.0.0:8080"], r"listen: proxy is neither loopback nor unix:/path"),
        (["run", "--set", "upstreams.plm.oauth2.client_secret=hunter2"], r"client_secret: expected \{file: PATH\}"),
        (["run", "--set", "store.url=redis://x"], r"store: keys: a Redis store needs at least one"),
        (["run", "--set", "upstreams.plm.tls.ca=/nowhere.pem"], r"tls\.ca /nowhere\.pem cannot be read"),
        (["check", "--set", "broken"], r"--set broken: expected key\.path=value"),
        (["token", "renew", "other"], r"upstream other is not configured; expected one of: plm"),
        (["nonsense"], r"No such command 'nonsense'"),
        (["run", "--nonsense"], r"No such option: --nonsense"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(tmp_path: Path, arguments: list[str], expected: str) -> None:
    """What cannot be used is told in one line with the key path and what is accepted; nothing is served."""
    takes_file = arguments[0] in ("run", "check", "token") and arguments[-1] != "--nonsense"
    options = ["-c", str(_file(tmp_path))] if takes_file else []

    result = _run(*arguments, *options, cwd=tmp_path)

    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert re.search(expected, result.stderr)
    assert "hunter2" not in result.stderr


def test_taken_address_is_one_line_and_exit_2(tmp_path: Path) -> None:
    """A port that is in use is named with its key."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = _run("run", "-c", str(_file(tmp_path)), "--set", f"listen.proxy={address}", cwd=tmp_path)

    assert result.returncode == 2
    assert f"listen.proxy: cannot listen on {address}" in result.stderr
    assert result.stderr.count("\n") == 1


def test_check_prints_the_effective_configuration_without_secrets(tmp_path: Path) -> None:
    """`check` merges file, environment and options, hides secrets, and uses no network."""
    env = {"AUTH_SIDECAR__UPSTREAMS__PLM__RENEW__TIMEOUT": "3s"}

    result = _run("check", "--json", "-c", str(_file(tmp_path)), "--set", "log.level=debug", cwd=tmp_path, env=env)

    shown = json.loads(result.stdout)
    assert result.returncode == 0
    assert shown["upstreams"]["plm"]["renew"]["timeout"] == 3
    assert shown["log"]["level"] == "debug"
    assert shown["upstreams"]["plm"]["oauth2"]["client_secret"] == {"value": "***"}
    assert "CANARY" not in result.stdout + result.stderr


def test_check_prints_a_schema(tmp_path: Path) -> None:
    """`check --schema` prints a JSON Schema that names every top key and needs no file."""
    schema = json.loads(_run("check", "--schema", cwd=tmp_path).stdout)

    assert set(schema["properties"]) == {
        *("listen", "state_dir", "store", "workers", "passthrough", "grace", "limits", "upstreams", "log")
    }
    assert schema["additionalProperties"] is False


def test_keys_new_prints_a_key_that_fits(tmp_path: Path) -> None:
    """Each `keys new` prints one fresh line that the configuration takes as a store key."""
    first, second = (_run("keys", "new", cwd=tmp_path).stdout for _ in range(2))
    (tmp_path / "key").write_text(first)
    keys = json.dumps([{"file": str(tmp_path / "key")}])

    shown = _run("token", "show", "--json", "-c", str(_file(tmp_path)), "--set", f"store.keys={keys}", cwd=tmp_path)

    assert first != second
    assert first.count("\n") == 1
    assert shown.returncode == 0, shown.stderr


def test_every_command_has_help_with_an_example(tmp_path: Path) -> None:
    """`--help` of each command shows an example that starts with the command itself."""
    for command in (
        ["run"],
        ["check"],
        ["demo"],
        ["token", "show"],
        ["token", "renew"],
        ["token", "revoke"],
        ["keys", "new"],
        ["presets"],
    ):
        shown = _run(*command, "--help", cwd=tmp_path)

        assert shown.returncode == 0
        assert "Example:" in shown.stdout
        assert f"auth-sidecar {' '.join(command)}" in " ".join(shown.stdout.split())


@pytest.mark.parametrize("command", [[], ["run"], ["exec"], ["token"], ["token", "show"], ["keys", "rotate"]])
def test_short_option_for_help(tmp_path: Path, command: list[str]) -> None:
    """`-h` is `--help` everywhere; no colour where nobody sees it."""
    short, long = (_run(*command, option, cwd=tmp_path) for option in ("-h", "--help"))

    assert (short.returncode, short.stdout) == (0, long.stdout)
    assert f"Usage: auth-sidecar {' '.join(command)}".rstrip() in short.stdout
    assert "\x1b" not in short.stdout


@pytest.mark.parametrize("before", [[], ["--debug"]])
def test_version(tmp_path: Path, before: list[str]) -> None:
    """It needs no command beside it."""
    shown = _run(*before, "--version", cwd=tmp_path)

    assert (shown.returncode, shown.stdout, shown.stderr) == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("tok", {"token"}), ("token ", {"show", "renew", "revoke"}), ("run --gr", {"--grace"}), ("run --for", set())],
)
def test_shell_completion(tmp_path: Path, typed: str, offered: set[str]) -> None:
    """A shell that asks as the printed script has it ask is offered commands and options, not the hidden ones."""
    printed = _run(cwd=tmp_path, env={"_AUTH_SIDECAR_COMPLETE": "source_bash"}).stdout
    words = f"auth-sidecar {typed}"
    asked = {"_AUTH_SIDECAR_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    shown = _run(cwd=tmp_path, env=asked)

    assert "_AUTH_SIDECAR_COMPLETE=complete_bash" in printed
    assert set(shown.stdout.split()) == offered
    assert (shown.returncode, shown.stderr) == (0, "")


def _plm(plm: Emulator, folder: Path) -> dict[str, Any]:
    oauth2 = {"client_id": plm.client_id, "client_secret": {"value": plm.client_secret}}
    return configuration(plm.base_url, plm.token_url, folder / "state", tls={"ca": str(plm.ca_path)}, oauth2=oauth2)


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
async def test_token_commands_with_and_without_a_running_sidecar(tmp_path: Path, outputs: Path, running: bool) -> None:
    """`token renew`, `show` and `revoke` act on the running sidecar, else on its store, and never print the token."""
    async with Emulator.start(switches=Switches(supplier_lifetime=None)) as plm:
        data = _plm(plm, tmp_path)
        (tmp_path / "config.yaml").write_text(json.dumps(data))

        async def token(action: str) -> dict[str, Any]:
            arguments = ("token", action, "plm", "--json", "-c", str(tmp_path / "config.yaml"))
            result = await asyncio.to_thread(_run, *arguments, cwd=tmp_path)
            assert result.returncode == 0, result.stderr
            assert "canary" not in (result.stdout + result.stderr).lower()
            state: dict[str, Any] = json.loads(result.stdout)["plm"]
            return state

        async def acts() -> None:
            renewed = await token("renew")
            shown = await token("show")
            calls = plm.counters.token_calls.total()
            revoked = await token("revoke")

            assert renewed["state"] == shown["state"] == "valid"
            assert shown["generation"] == renewed["generation"]
            if running:
                # The running sidecar needs a token, so that its timer gets another one soon.
                assert shown["last_renewal"]["trigger"] == "forced"
                assert revoked["state"] == "none" or revoked["generation"] > shown["generation"]
            else:
                assert revoked["state"] == "none"
                assert (await token("show"))["state"] == "none"
                assert plm.counters.token_calls.total() == calls

        if running:
            async with start_sidecar(data, tmp_path, outputs / "token-commands.log"):
                await acts()
        else:
            await acts()


async def test_admin_token_goes_to_no_stranger(tmp_path: Path) -> None:
    """An address in a left-over `run.json` that another process has taken since is not sent the admin token."""
    asked: list[bytes] = []

    async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"status":"ok"}')
        writer.close()

    async with await asyncio.start_server(stranger, "127.0.0.1", 0) as server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        (tmp_path / "state").mkdir()
        (tmp_path / "state/run.json").write_text(json.dumps({"pid": 1, "addresses": {"admin": address}}))
        arguments = ("token", "revoke", "--json", "-c", str(_file(tmp_path)))
        result = await asyncio.to_thread(_run, *arguments, cwd=tmp_path)

    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["plm"]["state"] == "none"
    assert [line.split(b" ")[1] for line in asked] == [b"/livez"]
    assert not any(b"authorization" in line.lower() for line in asked)


async def test_run_announces_serves_and_stops(tmp_path: Path, outputs: Path) -> None:
    """`run` prints one ready line, answers health and status, finishes what is in flight on SIGTERM, and exits 0."""
    async with Emulator.start(switches=Switches(supplier_lifetime=None)) as plm:
        async with start_sidecar(_plm(plm, tmp_path), tmp_path, outputs / "run.log") as sidecar:
            admin = f"http://{sidecar.addresses['admin']}"
            target = plm.base_url.replace("https://", "http://", 1).encode()
            async with httpx.AsyncClient(base_url=admin, trust_env=False, timeout=PATIENCE) as client:
                alive = await client.get("/livez")
                async with asyncio.timeout(PATIENCE):
                    while (await client.get("/readyz")).status_code != 200:
                        await asyncio.sleep(0.05)
                status = (await client.get("/status")).json()
                foreign = await client.get("/status", headers={"Host": "evil.example"})
                unproven = await client.post("/upstreams/plm/renew")
                unknown = await client.get("/nonsense")
                metrics = await client.get("/metrics")
            run_file = json.loads((tmp_path / "state/run.json").read_text())
            plm.change(api_delay=3)
            request = b"GET %b/echo/slow HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % target
            slow = asyncio.create_task(raw(sidecar.port(), request))
            await eventually(lambda: metric(sidecar, "auth_sidecar_in_flight"), 1)
            sidecar.process.send_signal(signal.SIGTERM)
            await until(lambda: sidecar.log_events("drain"), "the signal is heard")
            async with httpx.AsyncClient(base_url=admin, trust_env=False, timeout=PATIENCE) as client:
                stopping = await client.get("/readyz")
            answer = await slow
            code = await sidecar.process.wait()
            refused = False
            try:
                await asyncio.open_connection("127.0.0.1", sidecar.port())
            except ConnectionRefusedError:
                refused = True

    assert alive.status_code == 200
    assert status["upstreams"]["plm"]["state"] == "valid"
    assert (foreign.status_code, unproven.status_code, unknown.status_code) == (403, 401, 404)
    assert b"auth_sidecar_renewals_total{" in metrics.content
    assert run_file["addresses"] == sidecar.addresses
    assert run_file["pid"] == sidecar.process.pid
    assert stopping.status_code == 503
    assert status_of(answer) == 200
    assert code == 0
    assert refused
    assert not (tmp_path / "state/run.json").exists()
    assert len(sidecar.log_events("ready")) == 1
    assert [event["trigger"] for event in sidecar.log_events("renewal")] == ["start"]


async def test_second_signal_ends_at_once(tmp_path: Path, outputs: Path) -> None:
    """A second SIGTERM does not wait for what is in flight."""
    async with Emulator.start(switches=Switches(supplier_lifetime=None)) as plm:
        async with start_sidecar(_plm(plm, tmp_path), tmp_path, outputs / "second-signal.log") as sidecar:
            target = plm.base_url.replace("https://", "http://", 1).encode()
            plm.change(api_delay=30)
            request = b"GET %b/echo/slow HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % target
            slow = asyncio.create_task(raw(sidecar.port(), request))
            await eventually(lambda: metric(sidecar, "auth_sidecar_in_flight"), 1)
            sidecar.process.send_signal(signal.SIGTERM)
            await until(lambda: sidecar.log_events("drain"), "the first one is heard")
            sidecar.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(20):  # of the 25 that the first one leaves
                await sidecar.process.wait()
            assert await slow == b""


async def test_single_upstream_fits_on_the_command_line(tmp_path: Path) -> None:
    """`run --upstream ...` needs no file; secrets in the environment of proxies are not obeyed."""
    async with Emulator.start(switches=Switches(supplier_lifetime=None), tls=False) as plm:
        (tmp_path / "secret").write_text(plm.client_secret)
        options = {
            "--upstream": plm.base_url,
            "--token-url": plm.token_url,
            "--client-id": plm.client_id,
            "--client-secret-file": str(tmp_path / "secret"),
            "--set": f"state_dir={tmp_path / 'state'}",
        }
        sets = ["listen.proxy=127.0.0.1:0", "listen.admin=127.0.0.1:0", "upstreams.upstream.insecure_http=true"]
        arguments = [part for pair in options.items() for part in pair] + [
            part for key in sets for part in ("--set", key)
        ]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sidecar", "run", *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=tmp_path,
            env={
                "HOME": str(tmp_path),
                "HTTP_PROXY": "http://127.0.0.1:9",
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
        )
        assert process.stdout is not None
        ready = json.loads(await process.stdout.readline())
        port = int(ready["addresses"]["proxy"].rsplit(":", 1)[1])
        answer = await raw(
            port, b"GET %b/echo/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % plm.base_url.encode()
        )
        process.terminate()
        await process.communicate()

    assert status_of(answer) == 200
    assert process.returncode == 0


def test_presets_are_listed_and_shown(tmp_path: Path) -> None:
    """The list has ids and titles; one is shown with who says so, what to ask for, what is not so, and a beginning."""
    listed = _run("presets", cwd=tmp_path)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(PRESETS)

    shown = _run("presets", "teamcenter", cwd=tmp_path).stdout
    for part in (
        "# Siemens Teamcenter",
        "JsonRestServices",
        "(seen in vendor code)",
        "PROCESS_MAX_PER_USER",
        "/run/secrets/",
    ):
        assert part in shown
    data = json.loads(_run("presets", "teamcenter", "--json", cwd=tmp_path).stdout)
    assert data["recipe"]["id"] == "teamcenter"
    assert data["configuration"]["upstreams"]["teamcenter"]["preset"] == "teamcenter"

    unknown = _run("presets", "nope", cwd=tmp_path)
    assert unknown.returncode == 2
    assert unknown.stderr == f"auth-sidecar: preset nope: unknown; expected one of {', '.join(PRESETS)}\n"


def test_demo_ends_well(tmp_path: Path) -> None:
    """The demo's script sees no failure over at least two renewals, although tokens are revoked and 429s sent."""
    result = _run("demo", "--seconds", "12", "--lifetime", "4", cwd=tmp_path)

    rows = dict(re.findall(r"^ *(\S.*?)  +(\d+)", result.stdout, re.MULTILINE))
    assert result.returncode == 0, result.stdout + result.stderr
    assert rows["failures the script saw"] == "0"
    assert int(rows["renewals"]) >= 2
    assert int(rows["401s absorbed"]) >= 1
    assert int(rows["429s and 503s absorbed"]) >= 1
    assert canary("") not in result.stdout


def test_the_command_line_begins_light() -> None:
    """Whatever the command, what serves, asks and watches is loaded by those that do so."""
    heavy = "'aiohttp', 'httpx', 'mitmproxy'"
    code = f"import sys, sidecar.cli.main; print([name for name in ({heavy}) if name in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
