"""`learn`: a command is run once with what it does in clear sight, and what that teaches is written; then replayed."""

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sidecar.clock import SystemClock
from sidecar.errors import ConfigurationError, SidecarError
from sidecar.events import Event, Renewal, RequestDone, Trouble
from sidecar.learn.anatomy import Anatomy, anatomy_of
from sidecar.learn.beside import Beside, beside
from sidecar.learn.death import Death, probe_of, seen_in, told_by
from sidecar.learn.document import one_line, written
from sidecar.learn.order import Order, checked, watching
from sidecar.learn.recipe import Learned, learned
from sidecar.learn.trace import traced
from sidecar.learn.watch import Watch
from sidecar.run.credentials import credentials
from sidecar.run.exec.supervise import Missing, find_command
from sidecar.run.systems import doubts_of
from sidecar.settings import load

_REVERSE = "127.0.0.1:8090"


@dataclass(slots=True)
class _Heard:
    """What a sidecar told of: requests, logins and troubles."""

    requests: list[RequestDone] = field(default_factory=list)
    renewals: list[Renewal] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if isinstance(event, RequestDone):
            self.requests.append(event)
        elif isinstance(event, Renewal):
            self.renewals.append(event)
        elif isinstance(event, Trouble):
            self.troubles.append(event.detail)


def learn(order: Order) -> int:
    """Run the command of *order*, write what was learned, and return 0; 1 if nothing was, or the check failed.

    Nothing that was seen is kept but what is written. Raises ConfigurationError before the command is run, and
    SidecarError for what cannot be written.
    """
    base, name, secrets = checked(order)
    program = find_command(order.command[0], os.environ)
    if isinstance(program, Missing):
        raise ConfigurationError(f"learn: {program.problem}")
    with tempfile.TemporaryDirectory(prefix="auth-sidecar-") as folder:
        found, text = asyncio.run(_learn(order, base, name, secrets, program, Path(folder)))
        file = Path(folder) / "learned.yaml"
        file.write_text(text, encoding="utf-8")
        _sound(file)
        _give(order.out, text)
        _say(*(f"found: {line}" for line in found.found), *(f"not seen: {line}" for line in found.unseen))
        if order.out is not None:
            _say(f"written: {order.out}; look at what is marked guessed")
        for place in found.secrets:
            _say(f"it reads a secret from the environment variable {place}")
        return _check(order, file, found, program, Path(folder)) if order.check else 0


async def _learn(
    order: Order, base: str, name: str, secrets: Mapping[str, str], program: str, folder: Path
) -> tuple[Learned, str]:
    watch, heard = Watch(), _Heard()
    settings = watching(order, base, name, folder)
    async with beside(settings, heard, watch, os.environ) as around:
        code = await around.run(program, order.command, quiet=order.out is None)
        if code:
            _say(f"{order.command[0]} ended with code {code}: what it did until then is all there is to learn from")
        seen = watch.seen()
        if not seen:
            raise SidecarError(_unseen(order, name, heard))
        anatomy = anatomy_of(traced(seen, secrets))
        death = seen_in(anatomy) or await _provoked(anatomy, around, watch)
    elsewhere = sum(not each.upstream for each in heard.requests)
    if elsewhere:
        _say(f"{elsewhere} requests and tunnels went to other hosts unseen; if the login is there, name it by --also")
    if watch.passed:
        _say(f"{watch.passed} requests in the middle of the run were too many to be looked at")
    more: dict[str, Any] = {"tls": {"ca": str(order.ca.absolute())}} if order.ca is not None else {}
    more |= {"listen": _REVERSE} if watch.reverse else {}
    try:
        found = learned(anatomy, name=name, base=base, death=death, more=more)
    except ValueError as error:
        raise SidecarError(f"learn: {len(seen)} requests were seen, and no recipe comes of them: {error}") from None
    return found, written(found, anatomy.words())


async def _provoked(anatomy: Anatomy, around: Beside, watch: Watch) -> Death | None:
    """Return what the system says of a dead session: of the one that was logged out, else of a broken one."""
    probe = probe_of(anatomy)
    if anatomy.login is None or probe is None:
        return None
    good, broken = probe
    for asked in ([good] if anatomy.logout is not None else []) + [broken]:
        before = len(watch.seen())
        await around.ask(asked)
        answers = watch.seen()[before:]
        if answers and (found := told_by(anatomy, good, answers[-1], logged_out=asked is good)) is not None:
            return found
    return None


def _check(order: Order, file: Path, found: Learned, program: str, folder: Path) -> int:
    """Run the command again, through what was learned; 0 if it went well."""
    heard = _Heard()
    overrides = [f"state_dir={folder / 'check'}", "store.url=memory", f"upstreams.{found.name}.listen=127.0.0.1:0"]

    environ = dict(os.environ)  # the command's, without what is held for the sidecar

    async def again() -> int:
        async with beside(load(file, overrides=overrides, environ={}), heard, None, environ) as around:
            return await around.run(program, order.command, quiet=order.out is None)

    with _held(found.secrets):
        code = asyncio.run(again())
    ours = [each for each in heard.requests if each.upstream == found.name]
    logins = sum(each.result == "ok" for each in heard.renewals)
    shimmed = sum(each.outcome == "shim" for each in ours)
    has_steps = bool(found.upstream["recipe"]["login"].get("steps"))
    faults = [each.detail or each.result for each in heard.renewals if each.result != "ok"]
    faults += [f"{order.command[0]} ended with code {code}"] if code else []
    faults += ["no request came through"] if not ours else []
    faults += ["the script's own login was not answered by the sidecar"] if has_steps and not shimmed else []
    if ours and shimmed == len(ours):
        faults.append("each of its requests was answered by the sidecar, and none by the system")
    faults += ["the sidecar never logged in"] if has_steps and not logins else []
    own = sorted({each.outcome for each in ours} - {"passed", "shim", "client_gone"})
    faults += [f"requests were refused by the sidecar: {', '.join(own)}"] if own else []
    refused = sum(each.visible for each in ours)
    faults += [f"{refused} requests were told that their credential did not do"] if refused else []
    _say(
        f"check: {order.command[0]} ended with code {code}; {len(ours)} requests, {logins} logins of the sidecar, "
        f"{shimmed} logins and logouts of the script answered here"
    )
    _say(f"check failed: {'; '.join(dict.fromkeys(faults))}" if faults else "check passed")
    return 1 if faults else 0


def _sound(file: Path) -> None:
    """Raise SidecarError if what was learned is no configuration."""
    try:
        settings = load(file, environ={})
        credentials(settings, SystemClock(), read=False)
        if doubts := doubts_of(settings):
            raise ConfigurationError(f"configuration: {doubts[0]}")
    except ConfigurationError as error:
        where = str(error).partition(": ")[2] or str(error)
        raise SidecarError(f"learn: what was seen cannot be said in a recipe: {where}") from None


def _give(out: Path | None, text: str) -> None:
    if out is None:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    try:
        with out.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise SidecarError(f"{out}: cannot be written: {error.strerror}") from None


def _unseen(order: Order, name: str, heard: _Heard) -> str:
    why = f"; {heard.troubles[-1]}" if heard.troubles else ""
    return (
        f"learn: nothing was seen: {order.command[0]} sent no request to {order.base_url} that was answered{why}. "
        f"A command that reads no proxy variables can be given $AUTH_SIDECAR_URL_{name.upper()} for its base URL"
    )


@contextlib.contextmanager
def _held(secrets: Mapping[str, str]) -> Iterator[None]:
    """Let *secrets* be in our own environment for a while."""
    before = dict(os.environ)
    os.environ.update(secrets)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _say(*lines: str) -> None:
    for line in lines:
        sys.stderr.write(f"auth-sidecar: {one_line(line)}\n")
    sys.stderr.flush()
