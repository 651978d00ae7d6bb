"""What `learn` makes of scripts as people have them: it passes its own check, and carries them over deaths."""

import asyncio
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from tests.canary import leaks
from tests.e2e.test_systems import CLIENTS, SESSION, THEIRS, Stage, report, stage
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
