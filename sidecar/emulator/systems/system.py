"""What the emulated systems that log in with sessions have in common: serving, sessions, and what is counted."""

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from aiohttp import web

from sidecar.clock import Clock, SystemClock
from sidecar.emulator import answers
from sidecar.emulator.listening import NAMES, authority_of, listen, serving

CONTROL = "/_emulator/"


@dataclass(slots=True)
class Session:
    """One login of *user*; *used*: when it was last used, on the monotonic clock."""

    user: str
    born: float
    used: float


@dataclass(slots=True)
class SystemSwitches:
    """What can be changed while it runs; seconds.

    *idle* and *longest*: how long a session lives without use, and at all. *per_user*: a second login ends the first
    session. *quota*: calls that are left, None: no end. *early*: a request with a dead session is answered before its
    body is read. *odd_status*: what a dead session is told with, None: what is usual. *dies_after*: the numbers of
    calls after which every session is ended. *login_delay*: before a login is answered. *login_faults*: statuses of the
    next logins. *rolls*: each answer sets the session's cookie anew. *gateway*: where a system has one, else plain.
    """

    idle: float = 5400.0
    longest: float = 86400.0
    per_user: bool = False
    quota: int | None = None
    early: bool = False
    odd_status: int | None = None
    login_delay: float = 0.0
    login_faults: list[int] = field(default_factory=list)
    rolls: bool = False
    dies_after: list[int] = field(default_factory=list)
    gateway: bool = True


class System(ABC):
    """A running system; made by `start`. Its `/_emulator/` asks for no credential: loopback only.

    `preset`: the recipe it is emulated for. `logs_out`: it has a logout. `user`, `password`: of the account, or the
    client's id and secret. `counters`: logins, refused_logins, logouts, deaths, calls and more. `rows`: what was
    written, by the id that the client gave, and how often. `shown`: every password and session that a client showed.
    """

    preset: ClassVar[str]
    logs_out: ClassVar[bool] = True
    user = "svc"
    password = "caNARY-svc-password"  # noqa: S105  of an account that exists nowhere else

    def __init__(self, switches: SystemSwitches, clock: Clock) -> None:
        self.switches = switches
        self.clock = clock
        self.base_url = ""
        self.ca_path = Path()
        self.counters: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()
        self.files: dict[str, tuple[bytes, str]] = {}
        self.shown: set[str] = set()
        self.wrong: Counter[str] = Counter()
        self.locked_until = 0.0
        self.sessions: dict[str, Session] = {}
        self._count = 0

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        *,
        switches: SystemSwitches | None = None,
        tls: bool = True,
        host: str = "127.0.0.1",
        port: int = 0,
        names: Sequence[str] = NAMES,
        clock: Clock | None = None,
    ) -> AsyncIterator[Self]:
        """Serve until the context ends; port 0 asks the system for a free one."""
        made = cls(switches or SystemSwitches(), clock or SystemClock())
        async with serving(made._answer, names) as (runner, context, made.ca_path):
            bound = await listen(runner, host, port, context if tls else None)
            made.base_url = f"{'https' if tls else 'http'}://{authority_of(names[0], bound)}"
            yield made

    @property
    def api_url(self) -> str:
        """The base URL of an upstream that is this system."""
        return self.base_url

    @property
    def credential(self) -> dict[str, str]:
        """What a credential of the recipe holds, but for secrets."""
        return {"username": self.user}

    @property
    def secrets(self) -> dict[str, str]:
        """The secrets of a credential of the recipe."""
        return {"password": self.password}

    @property
    def places(self) -> dict[str, str]:
        """Where else a script has to go, by the name of the environment variable that tells it."""
        return {}

    def log_in(self, user: str, password: str) -> str | None:
        """Return a fresh session, None for a wrong password; a second one of a user may end the first."""
        self.shown |= {password}
        if (user, password) != (self.user, self.password):
            self.wrong[user] += 1
            self.counters["refused_logins"] += 1
            return None
        self.counters["logins"] += 1
        return self.open(user)

    def open(self, user: str) -> str:
        """Return a fresh session of *user*."""
        if self.switches.per_user:
            self.sessions = {name: each for name, each in self.sessions.items() if each.user != user}
        self._count += 1
        name = f"canary-session-{self._count:08d}"
        now = self.clock.monotonic()
        self.sessions[name] = Session(user, now, now)
        return name

    def use(self, name: str | None) -> bool:
        """Tell whether the session *name* lives, and note that it was used."""
        session = self.sessions.get(name or "")
        if name:
            self.shown.add(name)
        now, switches = self.clock.monotonic(), self.switches
        if session is None or now - session.used > switches.idle or now - session.born > switches.longest:
            self.counters["refused"] += 1
            return False
        session.used = now
        self.counters["calls"] += 1
        if self.counters["calls"] in self.switches.dies_after:
            self.kill()
        return True

    def kill(self) -> None:
        """End every session."""
        self.counters["deaths"] += bool(self.sessions)
        self.sessions.clear()

    def foreign_login(self) -> str:
        """Log in as somebody else with the same account would."""
        self.counters["foreign_logins"] += 1
        return self.open(self.user)

    def write(self, key: str) -> None:
        """Note that what the client calls *key* was written."""
        self.rows[key] += 1

    def state(self) -> dict[str, Any]:
        """Return what is counted, for `json.dumps`."""
        doubled = sum(1 for number in self.rows.values() if number > 1)
        alive = len(self.sessions)
        return {"counters": dict(self.counters), "rows": len(self.rows), "doubled": doubled, "sessions": alive}

    @abstractmethod
    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request for the system."""

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            if request.path.startswith(CONTROL):
                return await self._control(request, request.path.removeprefix(CONTROL))
            return await self.serve(request)
        except ConnectionError:
            return web.Response()  # the client went away

    async def _control(self, request: web.BaseRequest, action: str) -> web.Response:
        match request.method, action:
            case "GET", "state":
                pass
            case "POST", "kill":
                self.kill()
            case "POST", "foreign":
                self.foreign_login()
            case "POST", "switches":
                for name, value in json.loads(await request.read()).items():
                    setattr(self.switches, name, value)
            case _:
                return answers.error(404, "Expected GET state, or POST kill, foreign or switches.")
        return web.json_response(self.state())


def json_of(body: bytes) -> dict[str, Any]:
    """Return the JSON object of *body*, empty for what is none."""
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
