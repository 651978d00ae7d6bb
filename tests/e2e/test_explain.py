"""`auth-sidecar explain --login` as a person at night runs it: real processes, real logins, no secret on the screen."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

from sidecar.emulator.server import Emulator
from sidecar.emulator.systems.known import NAMES
from tests.canary import canary
from tests.stage import SESSION, Stage, quick, stage
from tests.waiting import PATIENCE


async def explained(at: Stage, *options: str, password: str | None = None) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", "explain", "--login", "-c", str(at.folder / "config.yaml"), *options),
        env=at.environ(password),
        stdout=PIPE,
        stderr=PIPE,
    )
    async with asyncio.timeout(PATIENCE):
        out, err = await process.communicate()
    assert not SESSION.search(out + err)
    for secret in (password, *at.system.secrets.values()):
        assert secret is None or secret.encode() not in out + err
    return process.returncode or 0, out.decode(), err.decode()


@pytest.mark.parametrize("name", NAMES)
async def test_a_good_login_is_shown_step_by_step(tmp_path: Path, name: str) -> None:
    """Each request and answer, what matched, what was obtained; nothing is kept, nothing of it is a secret."""
    async with stage(tmp_path, name) as at:
        at.configure(**quick(name))
        code, out, err = await explained(at, "--yes")
    assert (code, err) == (0, "")
    assert "obtained by " in out
    assert at.system.counters["logins"] <= 1
    assert not (tmp_path / "state" / "tokens.db").exists()


async def test_what_was_looked_for_is_told(tmp_path: Path) -> None:
    """The values by their places, what says that it is over, and the names of fields and cookies."""
    async with stage(tmp_path, "teamcenter") as at:
        at.configure()
        _, out, _ = await explained(at)
    assert "login.steps.1: POST https://localhost:" in out
    for line in (
        '"credentials": {"user": "svc", "password": "{password}", "group": "",',
        "  > Content-Type, X-XSRF-TOKEN, Cookie",
        "  < Set-Cookie: JSESSIONID=***",
        "  ok: holds",
        "  get xsrf: found, cookie XSRF-TOKEN",
        "  login.dead: none of 3 holds",
        "obtained by login: xsrf, server; lives 28800 s (recipe), 1200 s without use",
    ):
        assert line in out, out
    assert at.system.counters["logouts"] == 1


async def test_a_wrong_password_is_seen_at_its_step(tmp_path: Path) -> None:
    """What was expected, what came in the vendor's words, and which signal held; exit 1."""
    async with stage(tmp_path, "arena") as at:
        at.configure()
        code, out, err = await explained(at, "--yes", password=canary("wrong"))
    assert code == 1
    assert "  ok: does not hold: status: expected 200, got 400" in out
    assert "  get session: not found, json /arenaSessionId, json /arena_session_id" in out
    assert "  fatal 0: holds" in out
    assert "the credential is refused (4001)" in err


async def test_a_seat_is_taken_from_nobody_unasked(tmp_path: Path) -> None:
    """Where an account has one session, a login ends the one that runs."""
    async with stage(tmp_path, "arena") as at:
        at.configure()
        code, out, err = await explained(at)
    assert (code, out) == (2, "")
    assert "say --yes" in err
    assert at.system.counters["logins"] == 0


def tokens(folder: Path, emulator: Emulator, **oauth2: Any) -> None:
    data = {
        "state_dir": str(folder / "state"),
        "upstreams": {
            "plm": {
                "base_url": emulator.base_url,
                "tls": {"ca": str(emulator.ca_path)},
                "oauth2": {
                    "token_url": emulator.token_url,
                    "client_id": emulator.client_id,
                    "client_secret": {"value": emulator.client_secret},
                }
                | oauth2,
            }
        },
    }
    (folder / "config.yaml").write_text(json.dumps(data))


async def command(folder: Path, *options: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", "explain", *options, "-c", str(folder / "config.yaml")),
        stdout=PIPE,
        stderr=PIPE,
    )
    async with asyncio.timeout(PATIENCE):
        out, err = await process.communicate()
    return process.returncode or 0, (out + err).decode()


async def test_a_grant_is_shown_as_a_login_is(tmp_path: Path) -> None:
    """The form without its secrets, the answer without its token, how long it lives."""
    async with Emulator.start() as emulator:
        tokens(tmp_path, emulator, scope="supplier_mgmt")
        code, out = await command(tmp_path, "--login")
        assert code == 0, out
        assert f"oauth2: POST {emulator.token_url}" in out
        assert "grant_type=client_credentials&scope=supplier_mgmt" in out
        assert '"token_type": "Bearer"' in out
        assert "obtained by client_credentials: access_token; lives " in out
        assert emulator.client_secret not in out


async def test_a_first_refresh_token_is_not_burnt(tmp_path: Path) -> None:
    """It may be presented once only; the command that may do it is named."""
    async with Emulator.start() as emulator:
        tokens(tmp_path, emulator, grant="refresh_token", refresh_token={"value": canary("first")})
        code, out = await command(tmp_path, "--login", "plm")
    assert code == 2
    assert "token renew plm" in out


@pytest.mark.parametrize(
    ("options", "told"),
    [(("--login", "nobody"), "upstream nobody is not configured; expected one of: plm"), ((), "expected --login")],
)
async def test_a_slip_is_told(tmp_path: Path, options: tuple[str, ...], told: str) -> None:
    """One line, exit 2."""
    async with Emulator.start() as emulator:
        tokens(tmp_path, emulator)
        code, out = await command(tmp_path, *options)
    assert code == 2
    assert told in out
