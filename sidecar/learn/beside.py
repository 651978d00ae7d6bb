"""A command with a sidecar of our own process beside it, which looks at what it does."""

import asyncio
import contextlib
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sidecar.clock import SystemClock
from sidecar.errors import SidecarError
from sidecar.events import Emit
from sidecar.exchange.exchange import Watch
from sidecar.learn.seen import Seen
from sidecar.run.exec.execute import client_environment
from sidecar.run.running import running
from sidecar.settings import Settings

_PROBE_SECONDS = 30.0
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP)
_UNSENT = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "accept-encoding", "auth-sidecar-hop", "expect"}
)


@dataclass(frozen=True, slots=True)
class Beside:
    """A sidecar that serves for commands: the *environ* that leads them to it, and its own *proxy* and *bundle*."""

    environ: Mapping[str, str]
    proxy: str
    bundle: Path

    async def run(self, program: str, command: Sequence[str], *, quiet: bool) -> int:
        """Run *command* until it ends and return its exit code, 128 + N if signal N ended it.

        *quiet*: what it says goes to standard error. A signal that we get is passed on; the terminal's own reach it
        without us. Raises SidecarError when it cannot be started.
        """
        try:
            child = await asyncio.create_subprocess_exec(
                command[0],
                *command[1:],
                executable=program,
                env=dict(self.environ),
                stdout=sys.stderr.fileno() if quiet else None,
            )
        except OSError as error:
            raise SidecarError(f"{command[0]}: cannot be executed: {error.strerror}; expected a program") from None
        with _signals(child):
            code = await child.wait()
        return code if code >= 0 else 128 - code

    async def ask(self, seen: Seen) -> None:
        """Send the request of *seen* once, as the command would have; its answer goes by as the others did."""
        import httpx

        trusted = ssl.create_default_context(cafile=str(self.bundle))
        fields = [(name, value) for name, value in seen.fields if name.lower() not in _UNSENT]
        try:
            async with httpx.AsyncClient(
                proxy=self.proxy, verify=trusted, trust_env=False, timeout=_PROBE_SECONDS
            ) as client:
                request = client.build_request(seen.method, seen.url, content=seen.body)
                kept = [(name, value) for name, value in request.headers.items() if name in ("host", "content-length")]
                request.headers = httpx.Headers([*kept, *fields])
                async with asyncio.timeout(_PROBE_SECONDS):
                    await client.send(request)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, TimeoutError):
            return


@contextlib.asynccontextmanager
async def beside(
    settings: Settings, tell: Emit, watch: Watch | None, environ: Mapping[str, str]
) -> AsyncIterator[Beside]:
    """Serve *settings* on free ports while the context is open, for commands that would have *environ*.

    *tell* gets the events, *watch* the requests.
    """
    async with running(settings, clock=SystemClock(), emit=tell, for_exec=True, watch=watch) as app:
        changes = client_environment(settings, app.addresses, environ)
        wanted = {name: value for name, value in {**environ, **changes}.items() if value is not None}
        yield Beside(wanted, changes["http_proxy"] or "", settings.state_dir / "ca" / "bundle.pem")


@contextlib.contextmanager
def _signals(child: asyncio.subprocess.Process) -> Iterator[None]:
    loop = asyncio.get_running_loop()

    def pass_on(number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(number)

    before = {number: signal.getsignal(number) for number in _PASSED_ON}
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # the terminal sends it to both of us
    for number in _PASSED_ON:
        loop.add_signal_handler(number, pass_on, number)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
