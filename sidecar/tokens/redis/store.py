"""The shared token store in Redis."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from sidecar.clock import Clock, SystemClock
from sidecar.errors import ConfigurationError, StoreError
from sidecar.secret import Secret
from sidecar.tokens.redis.client import AT_ONCE, CLEAN_UP, Line, fault_in, options
from sidecar.tokens.redis.faults import SILENT, Fault
from sidecar.tokens.redis.outage import Outage
from sidecar.tokens.redis.scripts import ANNOUNCE, ANNOUNCED, READ, RELEASE, TAKE, WRITE
from sidecar.tokens.redis.url import Layout, parse_url
from sidecar.tokens.store import MAX_INSTANCES, Stored, checked, checked_name, lease_key

INSTANCES = "auth-sidecar:instances"

_IDLE = 30.0
"""Seconds without use after which connections are made anew: firewalls forget them without a word."""

_ASK_AGAIN = 3.0
"""Seconds after which Sentinels are asked again: a master that is replaced in peace serves on for a while."""

_SKEW = 1.0
"""Seconds that the server's clock may differ from ours, or from what is noted, before that is noted."""


class RedisStore:
    """Records, leases and instances in Redis; *url*, *username* and what *password* returns as `parse_url` has them.

    The password is asked for again for each set of connections, so that it may change; if it cannot be read then, the
    last one serves.
    *timeout*: seconds that a call may take, connecting included. No call is tried again. After two failures in
    a row calls fail at once, but for a probe now and then. Any failure gives up the connections it met, so that no
    late answer is taken for another's, and the next call looks for the master anew. A cancelled call goes on by
    itself to its end. *ca*: a PEM file, trusted beside the public roots. Reading it, and the URL, may raise
    ConfigurationError; with TLS that takes tens of milliseconds, so make it off the loop.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        username: str | None = None,
        password: Callable[[], Secret] | None = None,
        ca: Path | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._password = password
        self._target = parse_url(url, username=username, password=password and password())
        self._options = options(self._target, timeout, ca)
        self._timeout = timeout
        self._clock = clock or SystemClock()
        self._outage = Outage(self._clock)
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._line: Line | None = None
        self._made_at = self._used_at = 0.0
        self._first = 0
        self._last = Fault("")
        self._offset = 0.0
        self._closed = False

    @property
    def offset(self) -> float:
        """How far the server's clock is ahead, in seconds; 0 below a second, and it moves in steps of a second."""
        return self._offset

    async def read(self, key: str) -> Stored:
        """Return what lies under *key*."""
        generation, sealed = await self._call(READ, (key,))
        return Stored(int(generation), sealed)

    async def take(self, key: str, owner: str, ttl: float) -> tuple[bool, Stored]:
        """Take the lease, or extend it; return whether it is *owner*'s now, and what lies under *key*."""
        generation, sealed, ours = await self._call(TAKE, (key, lease_key(key)), owner, _ms(ttl))
        return ours == 1, Stored(int(generation), sealed)

    async def write(self, key: str, sealed: bytes, generation: int, *, after: int, release: str = "") -> bool:
        """Write over the generation *after* only, and end *release*'s lease; False: nothing has changed."""
        keys = (key, lease_key(key)) if release else (key,)
        return await self._call(WRITE, keys, after, generation, checked(sealed), release) == [1]

    async def release(self, key: str, owner: str) -> None:
        """Give the lease back; one that is not *owner*'s stays."""
        await self._call(RELEASE, (lease_key(key),), owner)

    async def announce(self, instance: str, sealed: bytes, ttl: float) -> None:
        """Leave word of an instance for *ttl* seconds; again: in place of the last."""
        if await self._call(ANNOUNCE, (INSTANCES,), checked_name(instance), checked(sealed), _ms(ttl)) != [1]:
            raise StoreError(f"{self._target}: {INSTANCES} has word of {MAX_INSTANCES} instances already")

    async def announced(self) -> dict[str, bytes]:
        """Return the word of every instance whose time is not over."""
        found = await self._call(ANNOUNCED, (INSTANCES,))
        names = (name.decode("utf-8", "replace") for name in found[::2])
        return dict(zip(names, found[1::2], strict=True))

    async def aclose(self) -> None:
        """Let calls under way end, at most *timeout*, and close every connection; twice does no harm."""
        self._closed = True
        await self._settled()
        if self._line is not None:
            self._retire(self._line)
        await self._settled()

    async def _settled(self) -> None:
        """Wait until no command and no closing is under way; each of them is bounded by itself."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _call(self, script: str, keys: tuple[str, ...], *args: str | bytes | int) -> list[Any]:
        """Return what *script* answers after what all answer; in a task of its own, which no caller can cut off."""
        if self._closed:
            raise StoreError(f"{self._target}: the store is closed")
        ticket = self._outage.enter()
        if ticket is None:
            what = f"{self._last.what}; not asked again for {self._outage.left:.0f} s"
            raise StoreError(f"{self._target}: {what}", silent=self._last.what == SILENT)
        task = self._spawn(self._command(ticket, script, keys, *args))
        await asyncio.wait({task}, timeout=self._timeout + CLEAN_UP)
        if not task.done():
            raise StoreError(f"{self._target}: {SILENT}", silent=True)
        return task.result()

    async def _command(self, ticket: int, script: str, keys: tuple[str, ...], *args: str | bytes | int) -> list[Any]:
        line: Line | None = None
        fault = Fault("was cut off")
        try:
            async with asyncio.timeout(self._timeout), self._slots:
                line = self._take()
                sent = self._clock.monotonic()
                answer = self._checked(await line.evaluate(script, keys, *args), keys[0], sent)
            fault = Fault("", answered=True)
            return answer
        except Exception as error:  # noqa: BLE001  whatever a client or a server does, the store is in trouble
            fault = fault_in(error)
            self._last = replace(fault, what=fault.what.replace("{key}", " or ".join(keys)))
            self._first += not fault.answered
            raise StoreError(f"{self._target}: {self._last.what}", silent=fault.what == SILENT) from None
        finally:
            note = self._outage.succeeded if fault.answered else self._outage.failed
            note(ticket)
            if line is not None:
                line.users -= 1
                if line.spent or not fault.answered or fault.elsewhere:
                    self._retire(line)

    def _checked(self, answer: list[Any], key: str, sent: float) -> list[Any]:
        """Take the time from *answer*, and return the rest; ValueError if it is about another key."""
        seconds, micros, about, *rest = answer
        if about != key.encode():
            raise ValueError("an answer about another key")
        trip = self._clock.monotonic() - sent
        ahead = int(seconds) + int(micros) / 1e6 - (self._clock.now() - trip / 2)
        if abs(ahead - self._offset) > _SKEW + trip / 2:
            self._offset = ahead if abs(ahead) > _SKEW else 0.0
        return rest

    def _take(self) -> Line:
        """Return the line for a command; a new one if there is none, or it is stale."""
        now = self._clock.monotonic()
        idle = now - self._used_at > _IDLE
        old = now - self._made_at > _ASK_AGAIN and self._target.layout is Layout.SENTINEL
        if self._line is not None and (idle or old):
            self._retire(self._line)
        if self._line is None:
            if self._password is not None:
                # One that cannot be read is half-way through a change; the next connection sees the rest of it.
                with contextlib.suppress(ConfigurationError):
                    self._options["password"] = self._password().reveal()
            self._line = Line(self._target, self._options, self._first)
            self._made_at = now
        self._line.users += 1
        self._used_at = now
        return self._line

    def _retire(self, line: Line) -> None:
        """Let nobody take *line* any more, and close it when its last user is gone."""
        if self._line is line:
            self._line = None
        line.spent = True
        if line.users == 0:
            self._spawn(line.aclose())

    def _spawn[T](self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work, name="redis")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may have left


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
