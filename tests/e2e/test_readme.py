"""Every command of the README runs, from the top of the checkout, as a reader would type it."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```sh\n(.*?)^```", (TOP / "README.md").read_text(), re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_the_readme_runs(command: str) -> None:
    """A command that a reader copies ends with 0; `make test`, which runs this, is only looked at."""
    typed = command.replace("make test", "make --dry-run test")

    result = subprocess.run(
        [shutil.which("bash") or "sh", "-euc", f"make --silent install && {typed}"],
        cwd=TOP,
        env={
            name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "VIRTUAL_ENV")
        },
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr


def test_readme_has_its_two_commands() -> None:
    """The demo and the tests are what a stranger types, in this order."""
    assert [command for command in COMMANDS if command.startswith("make ")] == ["make demo", "make test"]
