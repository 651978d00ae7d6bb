"""Where secrets come from: real files, variables, programs and a real key store; a failure never shows one."""

import asyncio
import copy
import json
import os
import pickle
import signal
import sys
import time
from pathlib import Path

import pytest

from sidecar.clock import SystemClock
from sidecar.errors import ConfigurationError
from sidecar.events import Event, Trouble
from sidecar.run.commands import wait_for_commands
from sidecar.settings import (
    SecretReference,
    Settings,
    check_secrets,
    commands,
    commands_of_start,
    load,
    prime,
    secret_references,
    share_runs,
)
from tests.canary import WORD, canary
from tests.waiting import PATIENCE, until


class OwnedClock(SystemClock):
    """Stands still until it is told to go on."""

    seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> OwnedClock:
    owned = OwnedClock()
    monkeypatch.setattr(commands, "_CLOCK", owned)
    return owned


class Program:
    """A program that does what its body says, and can be told to do something else; it counts its runs."""

    def __init__(self, folder: Path, body: str) -> None:
        self.path = folder / "program"
        self._runs = folder / "runs"
        self._runs.write_bytes(b"")
        self.does(body)

    def does(self, body: str) -> None:
        # A new file each time: one that is being written cannot be run.
        fresh = self.path.with_suffix(".new")
        fresh.write_text(f"#!/bin/sh\necho run >>'{self._runs}'\n{body}\n")
        fresh.chmod(0o755)
        fresh.replace(self.path)

    @property
    def runs(self) -> int:
        return self._runs.read_bytes().count(b"\n")

    def reference(self, *arguments: str) -> SecretReference:
        return SecretReference.model_validate({"command": [str(self.path), *arguments]})


def failure(reference: SecretReference) -> str:
    with pytest.raises(ConfigurationError) as caught:
        reference.read()
    assert WORD not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# Files, variables, plain text.


def test_secret_of_a_file_is_read_anew(tmp_path: Path) -> None:
    """It may have been replaced; one line end goes, nothing else."""
    path = tmp_path / "secret"
    reference = SecretReference(file=path)
    found = []
    for content in (b"one", b"two\n", b"two\r\n", b"two\n\n", b" two ", "t\u00e9".encode()):
        path.write_bytes(content)
        found.append(reference.read().reveal())

    assert found == ["one", "two", "two", "two\n", " two ", "t\u00e9"]


def test_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read when it is asked for, as it is."""
    monkeypatch.setenv("X_SECRET", f"{canary('env')}\n")

    assert SecretReference(env="X_SECRET").read().reveal() == f"{canary('env')}\n"


def test_secret_in_the_file_itself() -> None:
    """As it is written."""
    assert SecretReference(value=canary("inline")).read().reveal() == canary("inline")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({"env": "X_MISSING"}, "secret env X_MISSING is empty or missing; expected a value"),
        ({"env": "X_EMPTY"}, "secret env X_EMPTY is empty or missing; expected a value"),
        ({"env": ""}, "secret env  is empty or missing; expected a value"),
        ({"env": "X_BYTES"}, "secret env X_BYTES cannot be read: not UTF-8"),
        ({"value": ""}, "secret value is empty or missing; expected a value"),
        ({"value": "\ud800CANARY"}, "secret value cannot be read: not UTF-8"),
        ({"file": "empty"}, "secret file empty is empty or missing; expected a value"),
        ({"file": "newline"}, "secret file newline is empty or missing; expected a value"),
        ({"file": "missing"}, "secret file missing cannot be read: No such file or directory"),
        ({"file": "."}, "secret file . cannot be read: Is a directory"),
        ({"file": "binary"}, "secret file binary cannot be read: not UTF-8"),
        ({"file": "large"}, "secret file large is over 64 KiB; expected one secret"),
        ({"file": "/dev/zero"}, "secret file /dev/zero is over 64 KiB; expected one secret"),
        ({"file": "~nobody-of-this-name/x"}, "secret file ~nobody-of-this-name/x cannot be read: not a path"),
        ({"file": "nul\0"}, "secret file nul\0 cannot be read: not a path"),
    ],
)
def test_secret_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: dict[str, str], message: str
) -> None:
    """The source is named and the reason, never the content; every reason is a ConfigurationError."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("X_EMPTY", "")
    monkeypatch.setenv("X_BYTES", f"{canary('bytes')}\udcff")
    contents = {"empty": b"", "newline": b"\n", "binary": b"CANARY\xff", "large": b"CANARY" * 11000}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)

    with pytest.raises(ConfigurationError) as caught:
        SecretReference.model_validate(reference).read()
    assert str(caught.value) == message
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_largest_secret(tmp_path: Path) -> None:
    """64 KiB are read, a byte more is not."""
    path = tmp_path / "secret"
    path.write_bytes(b"x" * 65536)

    assert len(SecretReference(file=path).read().reveal()) == 65536


def test_secret_file_may_begin_with_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a shell reads it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "secret").write_text("x")

    assert SecretReference(file=Path("~/secret")).read().reveal() == "x"


def test_reference_does_not_show_its_value() -> None:
    """In no print of a model; where it comes from is shown."""
    reference = SecretReference(value=canary("inline"))

    assert WORD not in f"{reference!r} {reference}"
    assert WORD not in reference.where()
    assert "/run/x" in repr(SecretReference(file=Path("/run/x")))
    assert [SecretReference(file=Path("a")).where(), SecretReference(env="B").where()] == ["file a", "env B"]


def test_reference_takes_itself() -> None:
    """A model can be made from models."""
    reference = SecretReference(env="A")

    assert SecretReference.model_validate(reference) == reference


# Commands.


@pytest.mark.parametrize(
    ("body", "secret"),
    [
        ("echo one", "one"),
        ("printf 'one\\r\\n'", "one"),
        ("printf 'one\\n\\n'", "one\n"),
        ("printf ' one '", " one "),
        ("printf 't\\303\\251'", "t\u00e9"),
        ("echo one; exec >&-; exit 0", "one"),
        ("echo 'one $HOME'\\''`x`'", "one $HOME'`x`"),
        ("echo $1,$2", "$HOME a;b,*"),
        ("cat; echo end", "end"),
        ("echo $X_SECRET", canary("environment")),
        ("head -c 65536 /dev/zero | tr '\\0' x", "x" * 65536),
        ("(sleep 60 >/dev/null) & echo one", "one"),
    ],
)
def test_secret_of_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, secret: str) -> None:
    """What it prints less one line end. It has our environment and nothing to read; no shell looks at its arguments."""
    monkeypatch.setenv("X_SECRET", canary("environment"))

    assert Program(tmp_path, body).reference("$HOME a;b", "*").read().reveal() == secret


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (f"echo {canary('out')}; echo {canary('error')} >&2; exit 3", "failed: exit code 3"),
        (f"echo {canary('out')}; kill -9 $$", "failed: signal 9"),
        ("exit 0", "is empty or missing; expected a value"),
        ("echo", "is empty or missing; expected a value"),
        (f"printf '{canary('bytes')}\\377'", "cannot be read: not UTF-8"),
        ("head -c 65537 /dev/zero | tr '\\0' x", "is over 64 KiB; expected one secret"),
        ("head -c 1048576 /dev/zero | tr '\\0' x", "is over 64 KiB; expected one secret"),
        ("exec yes", "is over 64 KiB; expected one secret"),
    ],
)
def test_command_that_gives_no_secret(tmp_path: Path, body: str, message: str) -> None:
    """The program is named and how it ended; nothing of what it said, its arguments not either."""
    program = Program(tmp_path, body)

    assert failure(program.reference(canary("argument"))) == f"secret command {program.path} {message}"


@pytest.mark.parametrize(
    ("program", "reason"),
    [("missing", "No such file or directory"), ("plain", "Permission denied"), (".", "Permission denied")],
)
def test_command_that_cannot_be_run(tmp_path: Path, program: str, reason: str) -> None:
    """The system says why."""
    (tmp_path / "plain").write_text("x")
    path = str(tmp_path / program)

    assert failure(SecretReference(command=(path,))) == f"secret command {path} cannot be run: {reason}"


@pytest.mark.parametrize(
    "body",
    [
        "sleep 600 & echo $! >pid; wait",
        "sleep 600 & echo $! >pid; echo one",
        "sleep 600 & echo $! >pid; exec >&-; wait",
        "trap '' TERM; sleep 600 & echo $! >pid; while :; do wait; sleep 1; done",
    ],
    ids=["hangs", "leaves the pipe to a child", "prints nothing more", "ignores SIGTERM"],
)
def test_command_that_takes_too_long_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    """It has 10 s, 2 s here, for all that it does; then its group is gone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "_LIMIT", 2.0)
    program = Program(tmp_path, body)
    began = time.monotonic()

    message = failure(program.reference())

    assert message == f"secret command {program.path} was ended after 2 s; expected it to print a secret"
    assert time.monotonic() - began < PATIENCE
    child = int((tmp_path / "pid").read_text())
    end = time.monotonic() + PATIENCE
    while alive(child):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_left_its_group_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child in a session of its own has the pipe open for longer than we wait."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "_LIMIT", 5.0)
    away = "import os, sys, time; os.setsid(); open('pid', 'w').write(str(os.getpid())); time.sleep(600)"
    program = Program(tmp_path, f'{sys.executable} -c "{away}" & while [ ! -s pid ]; do sleep 0.01; done; wait')

    assert "was ended after 5 s" in failure(program.reference())

    child = int((tmp_path / "pid").read_text())
    assert alive(child)
    os.kill(child, signal.SIGKILL)


def test_command_has_no_terminal_to_ask_on(tmp_path: Path) -> None:
    """One that would ask for a password fails at once, instead of waiting for somebody."""
    assert "failed: exit code" in failure(Program(tmp_path, "read x </dev/tty && echo $x").reference())


# How often a command runs.


async def test_command_runs_once_while_its_secret_is_good(tmp_path: Path, clock: OwnedClock) -> None:
    """However often and however late it is read."""
    program = Program(tmp_path, "echo one")
    reference = program.reference()
    for _ in range(3):
        await prime([reference])
        assert reference.read().reveal() == "one"
        clock.seconds += 100_000

    assert program.runs == 1


async def test_refused_secret_is_asked_for_again_every_five_minutes(tmp_path: Path, clock: OwnedClock) -> None:
    """The first refusal asks at once, others not before 5 minutes have passed since; reading alone never does."""
    program = Program(tmp_path, "echo one")
    reference = program.reference()
    found = []
    for wait in (0, 0, 299, 1):
        clock.seconds += wait
        await prime([reference])
        found.append((reference.read().reveal(), program.runs))
        program.does(f"echo {program.runs}")
        reference.doubt()
        reference.doubt()
        assert reference.read().reveal() == found[-1][0]
    clock.seconds += 300

    assert found == [("one", 1), ("1", 2), ("1", 2), ("2", 3)]


async def test_failing_command_is_tried_again_after_a_growing_pause(tmp_path: Path, clock: OwnedClock) -> None:
    """After 1, 2, 4, 8 and then every 10 s, until it gives a secret; meanwhile every read says why there is none."""
    program = Program(tmp_path, "exit 1")
    reference = program.reference()
    pauses = []
    for seconds in range(60):
        clock.seconds = seconds
        before = program.runs
        await prime([reference])
        assert "failed: exit code 1" in failure(reference)
        pauses += [seconds] * (program.runs - before)
    program.does("echo one")
    clock.seconds = 70
    await prime([reference])

    assert pauses == [0, 1, 3, 7, 15, 25, 35, 45, 55]
    assert reference.read().reveal() == "one"


async def test_command_that_fails_after_a_refusal(tmp_path: Path, clock: OwnedClock) -> None:
    """There is no secret until it works again, which is tried soon; a new row of failures begins with a short pause."""
    program = Program(tmp_path, "exit 1")
    reference = program.reference()
    await prime([reference])
    program.does("echo one")
    clock.seconds += 1
    await prime([reference])
    reference.doubt()
    program.does("exit 2")
    await prime([reference])

    assert "failed: exit code 2" in failure(reference)

    program.does("echo two")
    clock.seconds += 1
    await prime([reference])

    assert reference.read().reveal() == "two"


async def test_prime_does_not_hold_up_the_loop(tmp_path: Path) -> None:
    """What else there is to do is done while commands run, and those run side by side."""
    program = Program(tmp_path, f"while [ ! -e '{tmp_path}/go' ]; do sleep 0.01; done; echo one")
    references = [program.reference(str(number)) for number in range(3)]
    priming = asyncio.create_task(prime(references))
    await until(lambda: program.runs == 3, "all run")

    assert not priming.done()

    (tmp_path / "go").touch()
    await priming

    assert [reference.read().reveal() for reference in references] == ["one"] * 3


async def test_who_comes_while_a_command_runs_waits_for_it(tmp_path: Path) -> None:
    """It runs once for all who need it."""
    program = Program(tmp_path, "sleep 0.3; echo one")
    reference = program.reference()

    await asyncio.gather(*(prime([reference]) for _ in range(4)))

    assert (reference.read().reveal(), program.runs) == ("one", 1)


async def test_prime_leaves_the_rest_alone(tmp_path: Path) -> None:
    """What is read anew each time is neither read nor in doubt."""
    reference = SecretReference(file=tmp_path / "missing")
    reference.doubt()

    await prime([reference, SecretReference(env="X_MISSING")])

    assert not reference.due


def test_what_was_read_makes_no_difference(tmp_path: Path) -> None:
    """Equality, hash, print and dump know where a secret comes from, not what it is; a copy starts without it."""
    program = Program(tmp_path, f"echo {canary('output')}")
    read, unread = program.reference(canary("argument")), program.reference(canary("argument"))
    read.read()
    read.doubt()

    assert read == unread
    assert hash(read) == hash(unread)
    assert program.reference("other") != unread
    assert WORD not in f"{read!r} {read} {read.where()}"
    assert canary("output") not in read.model_dump_json()
    assert pickle.loads(pickle.dumps(read)) == copy.deepcopy(read) == read
    assert "runs" not in json.dumps(SecretReference.model_json_schema())


# The key store.

BACKEND = '''
import json, pathlib
from keyring.backend import KeyringBackend
from keyring.errors import KeyringError

class Stored(KeyringBackend):
    """Entries in a file; `locked` cannot be opened."""

    priority = 1

    def get_password(self, service, user):
        if user == "locked":
            raise KeyringError("CANARY-locked")
        return json.loads(pathlib.Path(__file__).with_name("entries").read_text()).get(f"{service}/{user}")

    def set_password(self, service, user, password):
        raise NotImplementedError
'''


@pytest.fixture
def key_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The entries of a key store that the library `keyring` finds as it finds every other."""
    folder = tmp_path / "backend"
    folder.mkdir()
    (folder / "stored_keys.py").write_text(BACKEND)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "stored_keys.Stored")
    return folder / "entries"


@pytest.mark.parametrize(
    "entry", ["plm/sync", "https://plm.example.com/api/sync@example.com", "--help/-x", "plm/t\u00e9", "a b/c d"]
)
def test_secret_of_the_key_store(key_store: Path, entry: str) -> None:
    """The last slash parts service and user; the secret is as it was stored."""
    secret = f" {canary('stored')} \u00e9\u4e2d'\"$"
    key_store.write_text(json.dumps({entry: secret}))

    assert SecretReference(keyring=entry).read().reveal() == secret


@pytest.mark.parametrize("entry", ["plm/other", "plm/locked"])
def test_key_store_without_the_secret(key_store: Path, entry: str) -> None:
    """An entry that is missing and a store that stays closed are told alike, without a word of the store's."""
    key_store.write_text("{}")

    assert failure(SecretReference(keyring=entry)) == f"secret keyring {entry} failed: exit code 1"


async def test_entry_that_comes_later_is_found(key_store: Path, clock: OwnedClock) -> None:
    """As with a command that failed."""
    reference = SecretReference(keyring="plm/sync")
    key_store.write_text("{}")
    failure(reference)
    key_store.write_text(json.dumps({"plm/sync": "one"}))
    clock.seconds += 1
    await prime([reference])

    assert reference.read().reveal() == "one"


def test_module_of_the_working_directory_is_no_key_store(
    key_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write a file where the sidecar was started does not thereby run code in it."""
    key_store.write_text(json.dumps({"plm/sync": "one"}))
    (tmp_path / "keyring.py").write_text("print('other')")
    monkeypatch.chdir(tmp_path)

    assert SecretReference(keyring="plm/sync").read().reveal() == "one"


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra of the distribution, which is what one installs."""
    monkeypatch.setitem(sys.modules, "keyring", None)

    assert failure(SecretReference(keyring="plm/sync")) == (
        "secret keyring plm/sync cannot be read: no library for it; expected auth-sidecar[keyring]"
    )


# All secrets of a configuration.


def configured(folder: Path, **secrets: object) -> Settings:
    """Return a configuration with *secrets*: client_secret, and admin_token."""
    oauth2 = {"token_url": "https://plm.example.com/t", "client_id": "sync", "client_secret": secrets["client_secret"]}
    return load(
        base={
            "state_dir": str(folder / "state"),
            "listen": {"admin_token": secrets.get("admin_token")},
            "upstreams": {"plm": {"base_url": "https://plm.example.com", "oauth2": oauth2}},
        },
        environ={"AUTH_SIDECAR_CONFIG": ""},
    )


def test_looking_at_a_configuration_runs_no_command(tmp_path: Path) -> None:
    """Not when it is loaded, nor when its secrets are checked: what cannot be asked now is waited for."""
    program = Program(tmp_path, "exit 1")
    command = {"command": [str(program.path), canary("argument")]}

    check_secrets(configured(tmp_path, client_secret=command, admin_token={"keyring": "plm/none"}))

    assert program.runs == 0


async def test_reload_runs_no_command_again(tmp_path: Path) -> None:
    """The same command has the runs that it had before, and those to come; another one has its own."""
    program = Program(tmp_path, "echo one")
    command = {"command": [str(program.path)]}
    before = configured(tmp_path, client_secret=command, admin_token=command)
    await prime(reference for _, reference in secret_references(before))
    ran = program.runs
    after = configured(tmp_path, client_secret=command, admin_token={"command": [str(program.path), "other"]})

    share_runs(before, after)
    same, other = (after.upstreams["plm"].oauth2.client_secret, after.listen.admin_token)

    assert same is not None
    assert other is not None
    assert (same.due, other.due) == (False, True)
    assert [path for path, _ in commands_of_start(after)] == ["listen.admin_token"]
    assert (same.read().reveal(), program.runs) == ("one", ran)


async def test_start_waits_for_the_commands_of_ports_and_store(tmp_path: Path) -> None:
    """Each failure is told once; a command of a credential is left to the requests that need it."""
    program, other = Program(tmp_path, "exit 1"), tmp_path / "other"
    other.mkdir()
    credential = Program(other, "exit 1")
    settings = configured(
        tmp_path, admin_token={"command": [str(program.path)]}, client_secret={"command": [str(credential.path)]}
    )
    events: list[Event] = []

    class Impatient(SystemClock):
        waits = 0

        async def sleep(self, seconds: float) -> None:
            self.waits += 1
            assert seconds > 0
            assert self.waits < 1000
            if self.waits == 3:
                program.does("echo one")
            await asyncio.sleep(0.02)

    clock = Impatient()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "_FIRST_PAUSE", 0.0)
        await wait_for_commands(settings, clock, events.append)

    assert clock.waits >= 3
    assert settings.listen.admin_token is not None
    assert settings.listen.admin_token.read().reveal() == "one"
    assert credential.runs == 0
    assert [event.detail for event in events if isinstance(event, Trouble)] == [
        f"listen.admin_token: secret command {program.path} failed: exit code 1; waiting for it"
    ]


async def test_start_without_commands_waits_for_nothing(tmp_path: Path) -> None:
    """Nothing is read: what is wrong with a file is told elsewhere."""
    events: list[Event] = []

    await wait_for_commands(configured(tmp_path, client_secret={"env": "X_MISSING"}), SystemClock(), events.append)

    assert events == []
