"""`auth-sidecar exec` as a user types it: the token, the signals, the terminal, and nothing left behind."""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import pty
import shlex
import shutil
import signal
import sys
import termios
import uuid
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sidecar import __version__
from sidecar.run.exec.client_files import client_files
from sidecar.run.exec.variables import variables
from sidecar.run.join import configuration_hash
from sidecar.settings import effective, load
from tests.process import start_sidecar
from tests.rig import OK, TOKEN, Recorder, Seen, TokenServer, configuration, recorder, token_server
from tests.waiting import PATIENCE, until

ROOT = Path(__file__).parents[2]
COUNT = """
import json, signal, sys, time
seen = []
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGWINCH):
    signal.signal(number, lambda number, frame: seen.append(number))
print("up", flush=True)
deadline = time.monotonic() + 60
while not seen and time.monotonic() < deadline:
    time.sleep(0.02)
time.sleep(0.7)
print(json.dumps(seen), flush=True)
sys.exit(7)
"""
"""Tells which signals came until 0.7 s after the first, and exits 7."""


@dataclass
class Stage:
    """A configuration for an upstream that records, and what it takes to run commands with it."""

    folder: Path
    data: dict[str, Any]
    upstream: Recorder
    tokens: TokenServer
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def environ(self) -> dict[str, str]:
        return {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "PYTHONPATH": str(ROOT),
            "EXEC_TEST": self.mark,
        }

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "sidecar", "exec", "-c", str(self.folder / "config.yaml"), *arguments]

    async def start(self, *arguments: str, env: dict[str, str] | None = None, **options: Any) -> Process:
        """Start `exec` with pipes; *arguments* follow `-c FILE`."""
        pipes = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE} | options
        return await asyncio.create_subprocess_exec(
            *self.command(*arguments), cwd=self.folder, env=self.environ | (env or {}), **pipes
        )

    async def run(self, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
        """Run `exec` to its end; return code, output and error output."""
        process = await self.start(*arguments, env=env)
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    def alive(self) -> dict[int, str]:
        """Return the command lines of all processes that have our mark in their environment, by pid."""
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and f"EXEC_TEST={self.mark}".encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def sidecars(self) -> list[int]:
        return [pid for pid, line in self.alive().items() if "--for-exec" in line]

    async def gone(self, seconds: float = PATIENCE) -> None:
        """Wait until no process with our mark is there."""
        try:
            async with asyncio.timeout(seconds):
                while self.alive():
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pytest.fail(f"left behind: {self.alive()}")


def state(pid: int) -> str:
    """Return the letter that says what a process does."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def line(process: Process) -> str:
    """Return the next line of a command."""
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        return (await process.stdout.readline()).decode().strip()


async def ended(process: Process, seconds: float) -> int:
    """Return the exit code; unlike `wait`, do not wait for whoever else has the pipes."""
    async with asyncio.timeout(seconds):
        while process.returncode is None:
            await asyncio.sleep(0.02)
    return process.returncode


@contextlib.asynccontextmanager
async def staged(folder: Path, **changes: Any) -> AsyncIterator[Stage]:
    async with token_server() as tokens, recorder() as upstream:
        data = configuration(upstream.url, tokens.url, folder / "state") | changes
        (folder / "config.yaml").write_text(json.dumps(data))
        stage = Stage(folder, data, upstream, tokens)
        try:
            yield stage
            await stage.gone()
        finally:
            for pid in stage.alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture
async def stage(tmp_path: Path, outputs: Path, request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """A stage whose processes must all be gone at the end, and whose log must hold no secret."""
    async with staged(tmp_path) as stage:
        yield stage
        if (stage.state / "exec.log").exists():
            shutil.copy(stage.state / "exec.log", outputs / f"{request.node.name.replace('/', '-')}.log")


def authorizations(upstream: Recorder) -> list[list[bytes]]:
    return [seen.values(b"Authorization") for seen in upstream.seen]


async def test_command_gets_a_token_and_only_that(stage: Stage) -> None:
    """An unmodified curl reaches the upstream with our token, not with its own, and says no word about it."""
    code, out, err = await stage.run("--", "curl", "-sS", "-H", "Authorization: Bearer own", f"{stage.upstream.url}/x")

    assert (code, out, err) == (0, "ok", "")
    assert authorizations(stage.upstream) == [[f"Bearer {TOKEN}-1".encode()]]


async def test_other_hosts_are_reached_as_without_us(stage: Stage) -> None:
    """A host that is no upstream gets what the client sent, its own credential too, and never ours."""
    async with recorder() as other:
        command = ["curl", "-sS", "-H", "Authorization: Bearer own", f"http://localhost:{other.port}/x"]
        assert await stage.run("--", *command) == (0, "ok", "")
        assert authorizations(other) == [[b"Bearer own"]]
    assert stage.upstream.seen == []


async def test_environment_is_the_callers_with_the_documented_variables(stage: Stage) -> None:
    """What the caller had stays, our variables come, nothing else does: no PYTHONOPTIMIZE of ours either."""
    given = {"AUTH_SIDECAR__LOG__LEVEL": "info", "NO_PROXY": "other.example,127.0.0.1", "ALL_PROXY": "socks5://x:1"}
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    code, out, err = await stage.run("--", "python3", "-c", show, env=given)

    assert (code, err) == (0, "")
    found = json.loads(out)
    before = stage.environ | given
    wanted = variables(
        found["http_proxy"],
        client_files(stage.state / "ca", before),
        before,
        [("127.0.0.1", stage.upstream.port)],
        {"plm": found["AUTH_SIDECAR_URL_PLM"]},
    )
    expected = {name: value for name, value in (before | wanted).items() if value is not None}
    found.pop("LC_CTYPE", None)  # Python's own
    assert found == expected
    assert found["NO_PROXY"] == "other.example"
    assert found["SSL_CERT_FILE"] == str(stage.state / "ca/bundle.pem")


async def test_reverse_port_has_its_variable(stage: Stage) -> None:
    """A client that ignores proxies has an address to go to."""
    code, out, _ = await stage.run("--", "sh", "-c", 'curl -sS --noproxy "*" "$AUTH_SIDECAR_URL_PLM/items"')

    assert (code, out) == (0, "ok")
    assert [seen.line for seen in stage.upstream.seen] == [b"GET /items HTTP/1.1"]
    assert authorizations(stage.upstream) == [[f"Bearer {TOKEN}-1".encode()]]


async def test_options_of_the_command_are_its_own(stage: Stage) -> None:
    """After the command nothing is read by us, with or without `--` before it."""
    show = "import json, sys; print(json.dumps(sys.argv[1:]))"
    arguments = ["-c", "x", "--set", "--debug", "--help", "--", "-"]
    for before in ([], ["--"]):
        code, out, err = await stage.run(*before, "python3", "-c", show, *arguments)
        assert (code, err) == (0, "")
        assert json.loads(out) == arguments


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["no-such-command"], 127, "auth-sidecar: no-such-command: command not found; expected a program of PATH"),
        (["./no-such-file"], 127, "auth-sidecar: ./no-such-file: command not found; "),
        (["./config.yaml"], 126, "auth-sidecar: ./config.yaml: cannot be executed; expected a program"),
        (["/tmp"], 126, "auth-sidecar: /tmp: cannot be executed; expected a program"),
        ([], 2, "auth-sidecar: exec: missing a command; expected "),
        (["--"], 2, "auth-sidecar: exec: missing a command; expected "),
        (["--nonsense", "true"], 2, "auth-sidecar: No such option: --nonsense See --help."),
        (["--set", "upstreams.plm.nonsense=1", "true"], 2, "auth-sidecar: "),
    ],
)
async def test_what_cannot_be_run_is_told_before_anything_starts(
    stage: Stage, command: list[str], code: int, said: str
) -> None:
    """Exit codes are a shell's, 2 is bad usage or configuration; one line, and no sidecar was needed for it."""
    found, out, err = await stage.run(*command)

    assert (found, out) == (code, "")
    assert err.startswith(said)
    assert err.count("\n") == 1
    assert not stage.state.exists()


async def test_command_in_path_that_is_no_program(stage: Stage) -> None:
    """A file of PATH without its run bit is not the same as none."""
    (stage.folder / "tool").write_text("x")
    code, _, err = await stage.run("tool", env={"PATH": f"{stage.folder}:/usr/bin"})
    assert (code, err) == (126, "auth-sidecar: tool: cannot be executed; expected a program\n")


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("kill -KILL $$", 137), ("kill -TERM $$", 143)])
async def test_exit_code_is_the_commands(stage: Stage, script: str, code: int) -> None:
    """128 + N says that signal N ended it, as a shell would."""
    assert await stage.run("--", "sh", "-c", script) == (code, "", "")


async def test_a_script_without_a_first_line_is_one_for_sh(stage: Stage) -> None:
    """As `execvp` does; one whose interpreter is missing cannot be run, and the sidecar goes too."""
    (stage.folder / "plain").write_text('echo "$0 $1"; exit 3')
    (stage.folder / "broken").write_text("#!/no/such/shell\n")
    for name in ("plain", "broken"):
        (stage.folder / name).chmod(0o755)

    assert await stage.run("./plain", "x") == (3, "./plain x\n", "")
    code, out, err = await stage.run("./broken")
    assert (code, out) == (126, "")
    assert err == "auth-sidecar: ./broken: cannot be executed: No such file or directory; expected a program\n"


async def test_a_sidecar_that_does_not_start_says_why(stage: Stage) -> None:
    """Its one line becomes ours, and so does its exit code; the command is not run."""
    code, out, err = await stage.run("--set", "store.keys=[{file: /no/such}]", "--", "touch", "ran")

    assert (code, out) == (2, "")
    assert err == "auth-sidecar: store.keys.0: secret file /no/such cannot be read: No such file or directory\n"
    assert not (stage.folder / "ran").exists()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGWINCH"])
async def test_a_signal_is_passed_on_once(stage: Stage, name: str) -> None:
    """What somebody sends to us reaches the command once, and its exit code is still its own."""
    process = await stage.start("--", "python3", "-c", COUNT)
    assert await line(process) == "up"
    process.send_signal(getattr(signal, name))

    assert json.loads(await line(process)) == [getattr(signal, name)]
    assert await process.wait() == 7
    await process.communicate()


async def test_a_stopped_command_hears_a_request_to_end(stage: Stage) -> None:
    """SIGTERM for a command that stands still sets it going, so that it can end."""
    process = await stage.start("--", "python3", "-c", COUNT)
    assert await line(process) == "up"
    [pid] = [pid for pid, shown in stage.alive().items() if shown.startswith("python3")]
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: state(pid) == "T", "it stands still")
    process.terminate()

    assert json.loads(await line(process)) == [signal.SIGTERM]
    assert await process.wait() == 7
    await process.communicate()


async def test_signals_of_the_caller_hold_for_the_command(stage: Stage) -> None:
    """What nohup had ignored stays ignored; nothing that we block stays blocked."""
    show = ["grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status"]  # not through sh, which may clear them itself
    _, alone, _ = await _shell(stage, f"trap '' HUP; {_quoted(show)}")
    code, out, err = await _shell(stage, f"trap '' HUP; {_quoted(stage.command('--', *show))}")

    assert (code, err) == (0, "")
    assert out == alone


async def test_nobody_survives_our_kill(stage: Stage) -> None:
    """SIGKILL leaves us no word to say; the command and the sidecar end all the same."""
    process = await stage.start("--", "sh", "-c", "echo up; exec sleep 60")
    assert await line(process) == "up"
    assert len(stage.sidecars()) == 1
    process.kill()
    await process.wait()

    await stage.gone()
    await process.communicate()


async def test_interrupt_during_the_start_leaves_nothing(stage: Stage) -> None:
    """SIGINT before the command runs ends all, and the exit code says so."""
    process = await stage.start("--", "sleep", "60")
    await until(stage.sidecars, "its sidecar")
    process.send_signal(signal.SIGINT)

    assert await asyncio.wait_for(process.wait(), PATIENCE) == 130
    await process.communicate()


async def test_a_sidecar_that_dies_is_reported_and_the_command_goes_on(stage: Stage) -> None:
    """One line on standard error; exit code and output stay the command's."""
    process = await stage.start("--", "sh", "-c", "echo up; read word; echo $word; exit 5")
    assert await line(process) == "up"
    [pid] = stage.sidecars()
    assert {Path(f"/proc/{pid}/fd/{number}").readlink() for number in (1, 2)} == {stage.state / "exec.log"}
    os.kill(pid, signal.SIGKILL)
    assert process.stderr is not None
    said = await asyncio.wait_for(process.stderr.readline(), PATIENCE)
    assert not Path(f"/proc/{pid}").exists()
    out, rest = await process.communicate(b"on\n")

    assert said == b"auth-sidecar: the sidecar ended with code 137, see exec.log in state_dir; sh goes on without it\n"
    assert (process.returncode, out, rest) == (5, b"on\n", b"")


async def test_grandchildren_do_not_hold_us(stage: Stage) -> None:
    """A process that the command left behind has its pipes, and we end with the command."""
    process = await stage.start("--", "sh", "-c", "sleep 100 & echo $!")
    left = int(await line(process))
    try:
        assert await ended(process, PATIENCE) == 0
        assert list(stage.alive()) == [left]
    finally:
        os.kill(left, signal.SIGKILL)
        await process.communicate()


async def test_a_further_signal_ends_the_wait_for_requests_in_flight(stage: Stage) -> None:
    """The sidecar finishes what is under way after the command ended, unless we are told again."""

    async def never(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    stage.upstream.script = never
    process = await stage.start("--", "sh", "-c", f"curl -sS {stage.upstream.url}/slow & echo $!; read word; exit 3")
    curl = int(await line(process))
    try:
        await until(lambda: stage.upstream.seen, "the request")
        assert process.stdin is not None
        process.stdin.write(b"on\n")
        await asyncio.sleep(1)
        assert process.returncode is None
        assert len(stage.sidecars()) == 1
        process.terminate()
        assert await ended(process, 20) == 3  # of the 25 that a request gets
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(curl, signal.SIGKILL)
        await process.communicate()


async def test_requests_in_flight_are_finished_after_the_command(stage: Stage) -> None:
    """Without a further signal the answer still arrives."""
    ready = asyncio.Event()

    async def slow(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ready.wait()
        writer.write(OK)

    stage.upstream.script = slow
    script = f"curl -sS -o answer {stage.upstream.url}/slow & echo $$; read word; exit 3"
    process = await stage.start("--", "sh", "-c", script)
    command = int(await line(process))
    await until(lambda: stage.upstream.seen, "the request")
    assert process.stdin is not None
    process.stdin.write(b"on\n")
    await until(lambda: command not in stage.alive(), "the end of the command")
    assert process.returncode is None
    ready.set()

    assert await ended(process, PATIENCE) == 3
    assert await process.communicate() == (b"", b"")
    assert (stage.folder / "answer").read_text() == "ok"


def _quoted(command: list[str]) -> str:
    return shlex.join(command)


async def _shell(stage: Stage, script: str, **options: Any) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", script), cwd=stage.folder, env=stage.environ, stdout=PIPE, stderr=PIPE, **options
    )
    async with asyncio.timeout(PATIENCE):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_a_reader_that_has_enough_ends_the_command(stage: Stage) -> None:
    """In a pipeline, SIGPIPE is the command's to die of."""
    code, out, err = await _shell(stage, f"({_quoted(stage.command('--', 'yes'))}; echo $? >&2) | head -1")
    assert (code, out, err) == (0, "y\n", "141\n")


async def test_output_waits_for_its_reader(stage: Stage) -> None:
    """Ten megabytes go through a pipe that is read late, whole."""
    process = await stage.start("--", "sh", "-c", "echo up >&2; head -c 10000000 /dev/zero")
    assert process.stderr is not None
    assert await asyncio.wait_for(process.stderr.readline(), PATIENCE) == b"up\n"
    await asyncio.sleep(1)
    out, err = await process.communicate()
    assert (process.returncode, len(out), err) == (0, 10_000_000, b"")


@pytest.mark.parametrize(
    ("redirection", "expected"), [("</dev/null", "/dev/null\n"), ("<&-", "closed\n"), ("<&- 2>&-", "closed\n")]
)
async def test_closed_streams_are_the_commands_too(stage: Stage, redirection: str, expected: str) -> None:
    """No file of ours takes the place of a closed standard stream."""
    inner = "readlink /proc/self/fd/0 || echo closed"
    assert await _shell(stage, f"{_quoted(stage.command('--', 'sh', '-c', inner))} {redirection}") == (0, expected, "")


async def test_output_that_is_closed_does_no_harm(stage: Stage) -> None:
    """The exit code arrives although nobody can be told anything."""
    command = _quoted(stage.command("--", "sh", "-c", "exit 4"))
    assert await _shell(stage, f"{command} <&- >&- 2>&-") == (4, "", "")


async def test_input_is_the_commands(stage: Stage) -> None:
    """What comes on standard input is read by the command alone."""
    process = await stage.start("--", "cat")
    out, err = await process.communicate(b"one\ntwo")
    assert (process.returncode, out, err) == (0, b"one\ntwo", b"")


class Terminal:
    """A pseudo terminal with a process that has it as its own."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        self.seen = ""

    async def start(self, stage: Stage, *command: str) -> Process:
        def own() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        return await asyncio.create_subprocess_exec(
            *command,
            cwd=stage.folder,
            env=stage.environ | {"TERM": "dumb", "PS1": "$ ", "HISTFILE": ""},
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
            start_new_session=True,
            preexec_fn=own,
        )

    async def until(self, text: str, seconds: float = PATIENCE) -> None:
        """Read until *text* was shown; what was before it is forgotten."""
        os.set_blocking(self.ours, False)
        async with asyncio.timeout(seconds):
            while text not in self.seen:
                with contextlib.suppress(BlockingIOError):
                    self.seen += os.read(self.ours, 1 << 16).decode()
                await asyncio.sleep(0.02)
        self.seen = self.seen.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def close(self) -> None:
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def terminal() -> Any:
    terminal = Terminal()
    yield terminal
    terminal.close()


async def test_ctrl_c_reaches_the_command_once(stage: Stage, terminal: Terminal) -> None:
    """The terminal tells the command itself; we add nothing, wait for it, and leave the terminal as it was."""
    before = termios.tcgetattr(terminal.theirs)
    process = await terminal.start(stage, *stage.command("--", "python3", "-c", COUNT))
    await terminal.until("up")
    terminal.type("\x03")
    await terminal.until(f"[{int(signal.SIGINT)}]")

    assert await asyncio.wait_for(process.wait(), PATIENCE) == 7
    assert termios.tcgetattr(terminal.theirs) == before


async def test_ctrl_z_stops_and_fg_goes_on(stage: Stage, terminal: Terminal) -> None:
    """A shell's job control has the command and us as one job; the sidecar serves on in between."""
    shell = await terminal.start(stage, "bash", "--norc", "--noprofile", "-i")
    fetch = f"curl -sS {stage.upstream.url}/x"
    script = f"echo be''gun; read word; {fetch}; exit 6"
    terminal.type(_quoted(stage.command("--", "sh", "-c", script)) + "; echo code=$?\n")
    await terminal.until("begun")
    terminal.type("\x1a")
    await terminal.until("Stopped")
    [pid] = stage.sidecars()
    assert state(pid) in "SR"
    terminal.type("fg\n")
    await terminal.until("exec")
    terminal.type("on\n")
    await terminal.until("ok")
    # The job was two: what follows `;` ran when it stopped, so its code is asked for again.
    terminal.type("echo code=$?\n")
    await terminal.until("code=6")
    terminal.type("exit\n")

    await asyncio.wait_for(shell.wait(), PATIENCE)
    assert authorizations(stage.upstream) == [[f"Bearer {TOKEN}-1".encode()]]


async def test_the_end_of_the_terminal_reaches_the_command(stage: Stage, terminal: Terminal) -> None:
    """A hang-up goes to the leader only, so that we pass it on when we are it."""
    script = "import signal, sys, time\nsignal.signal(1, lambda *_: (open('hung-up', 'a').write('x'), sys.exit()))\n"
    process = await terminal.start(
        stage, *stage.command("--", "python3", "-c", f"{script}print('up', flush=True)\ntime.sleep(30)")
    )
    await terminal.until("up")
    os.close(terminal.ours)
    await asyncio.wait_for(process.wait(), PATIENCE)
    terminal.ours = os.open(os.devnull, os.O_RDONLY)

    assert (stage.folder / "hung-up").read_text() == "x"


async def test_a_running_sidecar_of_the_same_configuration_is_joined(stage: Stage, outputs: Path) -> None:
    """One token call in all; the request is in its log; other hosts pass; it runs on when the command has ended."""
    async with start_sidecar(stage.data, stage.folder, outputs / "exec-joined.log") as running, recorder() as other:
        script = f"curl -sS {stage.upstream.url}/joined && curl -sS http://localhost:{other.port}/other"
        code, out, err = await stage.run("--", "sh", "-c", f"{script}; echo $AUTH_SIDECAR_URL_PLM $http_proxy")
        assert stage.sidecars() == []
        await stage.run("--", "curl", "-sS", f"{stage.upstream.url}/again")
        await until(lambda: len(running.log_events("request")) == 3, "the log")

        assert (code, err) == (0, "")
        assert out.startswith(f"okokhttp://{running.addresses['plm']} http://127.0.0.1:")
        assert running.addresses["proxy"] not in out
        assert [event["path"] for event in running.log_events("request") if event["upstream"] == "plm"] == [
            "/joined",
            "/again",
        ]
        assert running.process.returncode is None
        told = json.loads((stage.state / "run.json").read_text())
        assert told["pid"] == running.process.pid
        parts = [__version__, effective(load(stage.folder / "config.yaml"))]
        canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
        assert told["configuration"] == hashlib.sha256(canonical.encode()).hexdigest()
    assert stage.tokens.calls == 1
    assert len(other.seen) == 1


async def test_another_configuration_gets_a_sidecar_of_its_own(stage: Stage, outputs: Path) -> None:
    """A sidecar that would behave otherwise is not used, and not disturbed."""
    async with start_sidecar(stage.data, stage.folder, outputs / "exec-other.log") as running:
        before = (stage.state / "run.json").read_text()
        options = ["--set", "upstreams.plm.read_only=true"]
        code, out, _ = await stage.run(*options, "--", "curl", "-sS", "-X", "POST", f"{stage.upstream.url}/x")

        assert code == 0
        assert json.loads(out)["reason"] == "method_refused"
        assert (stage.state / "run.json").read_text() == before
        assert running.log_events("request") == []


async def test_an_address_that_somebody_else_took_is_not_joined(stage: Stage, outputs: Path) -> None:
    """A left-over `run.json` of a killed sidecar: whoever answers there now is told nothing, and not used."""
    log = outputs / "exec-stale.log"
    async with start_sidecar(stage.data, stage.folder, log) as running:
        content = json.loads((stage.state / "run.json").read_text())
        running.process.kill()
        await running.process.wait()

    async def answer(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = b'{"pid": 1, "proxy": "127.0.0.1:9"}'
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async with recorder(answer) as stranger:
        content["addresses"]["admin"] = f"127.0.0.1:{stranger.port}"
        (stage.state / "run.json").write_text(json.dumps(content))
        assert await stage.run("--", "curl", "-sS", f"{stage.upstream.url}/x") == (0, "ok", "")
    assert [seen.line.split()[1] for seen in stranger.seen] == [b"/livez"]
    assert authorizations(stranger) == [[]]


async def test_a_sidecar_that_goes_while_we_join_is_replaced(stage: Stage) -> None:
    """It answered `/livez` and then no more: a private one serves the command."""

    async def half(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if seen.line.startswith(b"GET /livez"):
            body = json.dumps({"pid": os.getpid()}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        else:
            writer.close()

    async with recorder(half) as dying:
        stage.state.mkdir()
        content = {
            "pid": os.getpid(),
            "addresses": {"admin": f"127.0.0.1:{dying.port}", "proxy": "127.0.0.1:9"},
            "configuration": configuration_hash(load(stage.folder / "config.yaml")),
        }
        (stage.state / "run.json").write_text(json.dumps(content))
        assert await stage.run("--", "curl", "-sS", f"{stage.upstream.url}/x") == (0, "ok", "")
    assert [seen.line for seen in dying.seen] == [b"GET /livez HTTP/1.1", b"POST /exec HTTP/1.1"]


async def test_two_at_once_and_one_inside_another(stage: Stage) -> None:
    """Concurrent and nested commands each have their sidecar; none disturbs another."""
    fetch = ["curl", "-sS", f"{stage.upstream.url}/x"]
    nested = stage.run("--", *stage.command("--", *fetch))
    assert await asyncio.gather(stage.run("--", *fetch), stage.run("--", *fetch), nested) == [(0, "ok", "")] * 3
    assert [len(values) for values in authorizations(stage.upstream)] == [1, 1, 1]
    assert all(values[0].startswith(f"Bearer {TOKEN}-".encode()) for values in authorizations(stage.upstream))


async def test_tokens_in_memory_serve_a_command(tmp_path: Path) -> None:
    """Store `memory` needs no file, and each command a token of its own."""
    async with staged(tmp_path, store={"url": "memory"}) as stage:
        assert await stage.run("--", "curl", "-sS", f"{stage.upstream.url}/x") == (0, "ok", "")
        assert not (stage.state / "store.db").exists()


async def test_a_secret_of_the_environment_is_found(stage: Stage) -> None:
    """`{env: NAME}` is the caller's environment, for the sidecar as for the command."""
    option = "upstreams.plm.oauth2.client_secret={env: RIG}"
    code, out, err = await stage.run(
        "--set", option, "--", "sh", "-c", f"curl -sS {stage.upstream.url}/$RIG", env={"RIG": "r"}
    )
    assert (code, out, err) == (0, "ok", "")
    assert stage.upstream.seen[0].line == b"GET /r HTTP/1.1"


async def test_modules_beside_the_script_are_not_ours(stage: Stage) -> None:
    """A `json.py` in the current directory is the script's business."""
    (stage.folder / "json.py").write_text("raise SystemExit('taken')")
    (stage.folder / "aiohttp.py").write_text("raise SystemExit('taken')")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", *stage.command("--", "echo", "ok")[1:]),
        cwd=stage.folder,
        env=stage.environ,
        stdout=PIPE,
        stderr=PIPE,
    )
    assert await process.communicate() == (b"ok\n", b"")


async def test_log_is_private_and_bounded(stage: Stage) -> None:
    """What the sidecar has to say goes to a 0600 file, which is started anew over 1 MiB."""
    stage.state.mkdir()
    log = stage.state / "exec.log"
    log.write_bytes(b"x" * ((1 << 20) + 1))
    assert await stage.run("--", "curl", "-sS", f"{stage.upstream.url}/x") == (0, "ok", "")
    assert await stage.run("--", "true") == (0, "", "")

    events = [json.loads(entry)["event"] for entry in log.read_text().splitlines()]
    assert events.count("ready") == 2
    assert events.count("request") == 1
    assert log.stat().st_mode & 0o777 == 0o600
    assert (stage.state / "exec.log.1").stat().st_size == (1 << 20) + 1
