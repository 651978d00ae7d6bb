"""What `token show` makes of a state, for people at a terminal and for programs at a pipe."""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from typing import Any

import pytest

ONE, OTHER = "worker-5d9c7bfb6f-2xk8q.plm.svc/1-a0b1c2", "worker-5d9c7bfb6f-9vnwz.plm.svc/1-d3e4f5"
STATE: dict[str, Any] = {
    "state": "valid",
    "expires_at": 1_700_000_000.0,
    "expires_in": 252.4,
    "lifetime": 90_000.0,
    "generation": 12,
    "renewed_by": ONE,
    "instances": {ONE: 12, OTHER: 11},
    "last_renewal": {
        "at": 1_699_999_000.0,
        "trigger": "due",
        "result": "unavailable",
        "seconds": 0.1,
        "detail": "it [said] 503, " + "again and " * 20 + "https://plm.example.com/" + "x" * 90,
    },
}
PROGRAM = """
import json, sys, types
import sidecar.cli.token as token
token.load = lambda *_, **__: None
sys.modules["sidecar.run.operator"] = types.SimpleNamespace(act=lambda *_: json.loads(sys.argv[1]))
token.show()
"""


def shown(states: dict[str, Any], columns: int | None) -> list[str]:
    """Return the lines that `token show` prints for *states*: at a terminal of so many columns, None: into a pipe."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(states)]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    if columns is None:
        output = subprocess.run(command, env=environment | {"COLUMNS": "40"}, stdout=subprocess.PIPE, check=True).stdout
        return output.decode().splitlines()
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen(command, env=environment, stdout=theirs) as process:
        os.close(theirs)
        output = b""
        try:
            while chunk := os.read(ours, 65536):
                output += chunk
        except OSError:  # how Linux says that the other end is gone
            pass
    os.close(ours)
    assert process.returncode == 0
    return output.decode().splitlines()


def test_a_pipe_gets_whole_lines_that_begin_with_the_name() -> None:
    """Each upstream has its name and state at a line's start and three lines, of any length, whatever COLUMNS says."""
    lines = shown({"plm": STATE, "arena": {**STATE, "last_renewal": None}}, None)

    assert lines[:2] == [
        "plm: valid, expires in 4m 12s, 2023-11-14 22:13:20Z, lifetime 1d 1h",
        f"  generation 12, got by {ONE}, used by {ONE}: 12, {OTHER}: 11",
    ]
    assert lines[2].startswith("  last renewal here 2023-11-14 21:56:40Z due: unavailable it [said] 503, again and")
    assert [line.split(":")[0] for line in lines if not line.startswith(" ")] == ["plm", "arena"]
    assert len(lines) == 5


@pytest.mark.parametrize("columns", [80, 60])
def test_no_line_is_longer_than_the_terminal(columns: int) -> None:
    """What is longer goes on in the next line, further in, and nothing is left out."""
    lines = shown({"plm": STATE}, columns)

    assert max(map(len, lines)) <= columns
    assert [line for line in lines if not line.startswith("  ")] == [lines[0]]
    assert "".join("".join(lines).split()) == "".join("".join(shown({"plm": STATE}, None)).split())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"expires_in": -7265.0}, "plm: valid, expired 2h 1m ago, 2023-11-14 22:13:20Z, lifetime 1d 1h"),
        ({"state": "none", "expires_in": None, "expires_at": None, "lifetime": None}, "plm: none"),
        ({"expires_in": 0.2}, "plm: valid, expires in 0s, 2023-11-14 22:13:20Z, lifetime 1d 1h"),
        ({"renewed_by": None, "instances": {}}, "  generation 12, got by nobody, used by nobody"),
        ({"last_renewal": None, "detail": "invalid_client"}, "  last failure: invalid_client"),
        ({"scope": {"granted": "a b", "missing": None}}, "  scope a b"),
        ({"scope": {"granted": "a", "missing": "b c"}}, "  scope a, narrower than asked: no b c"),
        ({"scope": {"granted": "", "missing": "b"}}, "  scope of nothing, narrower than asked: no b"),
        ({"sealed_with": {"key": 2, "id": "0a1b"}}, "  sealed with key 0a1b, number 2 of the ring"),
        ({"sealed_with": {"key": None, "id": "0a1b"}}, "  sealed with key 0a1b, one that the ring lacks"),
    ],
)
def test_lines_that_depend_on_the_state(changes: dict[str, Any], expected: str) -> None:
    """What is not known has no words, and what is out of the ordinary has."""
    assert expected in shown({"plm": {**STATE, **changes}}, None)


def test_nothing_is_said_of_what_is_as_usual() -> None:
    """A scope that the issuer did not name is the one asked for; a state without a token has neither scope nor seal."""
    usual = {**STATE, "scope": {"granted": None, "missing": None}, "sealed_with": None}

    assert shown({"plm": usual}, None) == shown({"plm": {**STATE, "scope": None}}, None) == shown({"plm": STATE}, None)


def test_failure_of_the_last_renewal_is_told_once() -> None:
    """A detail that the state has beside the last renewal's own is not repeated, and stands in for one without."""
    last = {**STATE["last_renewal"], "detail": ""}
    lines = shown({"plm": {**STATE, "last_renewal": last, "detail": "no answer"}}, None)

    assert lines[2] == "  last renewal here 2023-11-14 21:56:40Z due: unavailable no answer"
    assert not any("last failure" in line for line in lines)
