"""Getting new tokens from an issuer: one call at a time, patient while it is down, silent once it said no."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from sidecar.clock import Clock
from sidecar.errors import ConfigurationError, CredentialRejected, IssuerError, IssuerUnavailable
from sidecar.events import Emit, Renewal
from sidecar.tokens.difference import difference
from sidecar.tokens.holding import Holding
from sidecar.tokens.obtaining import KeptBack, Obtaining
from sidecar.tokens.protocols import LastRenewal, Spawn
from sidecar.tokens.rejection import ASK_AGAIN, AlreadyRejected, Rejection
from sidecar.tokens.token import Token

if TYPE_CHECKING:
    from tenacity import RetryCallState

_BASE = 1.0
_CAP = 30.0
_CAP_WITHOUT = 8.0
"""The longest wait while there is no token to serve with: the issuer's return is to be noticed within ten seconds."""
_MAX_RETRY_AFTER = 3600.0
"""An issuer that asks for more silence than this is asked again anyway: a day off is a mistake of its."""
_MOMENT = 0.1
"""Seconds, so that what is waited for has come about when it is looked at."""


class Renewing:
    """The renewals of one credential.

    A campaign is one task that tries until there is a fresh token, the credential is rejected, or it is
    stopped. `running`: there is one. `barred`: none may start. `failures` counts the attempts that failed.
    """

    def __init__(
        self,
        name: str,
        holding: Holding,
        obtaining: Obtaining,
        rejection: Rejection,
        configured_lifetime: float | None,
        *,
        clock: Clock,
        emit: Emit,
        spawn: Spawn,
        changed: Callable[[], None],
    ) -> None:
        self._name = name
        self._holding = holding
        self._obtaining = obtaining
        self._rejection = rejection
        self._configured_lifetime = configured_lifetime
        self._clock = clock
        self._emit = emit
        self._spawn = spawn
        self._changed = changed
        self._trigger = ""
        self._task: asyncio.Task[None] | None = None
        self._pause: asyncio.Task[None] | None = None
        self._quiet_until = 0.0
        self._differences: set[tuple[float, float]] = set()
        self.running = False
        self.barred = False
        self.failures = 0
        self.failure: IssuerError | None = None
        self.last: LastRenewal | None = None
        self.next_at = 0.0

    @property
    def rejected(self) -> bool:
        """Whether the credential was rejected, as far as is known without a look, and nobody had a token since."""
        newer = self._holding.generation > self._rejection.generation and self._holding.fresh()
        return self._rejection.latched and not newer

    @property
    def attempting(self) -> bool:
        """Whether an attempt is under way, or about to be; a campaign that waits to try again has none."""
        return self.running and self._pause is None

    def can_start(self) -> bool:
        """Tell whether `start` would start."""
        return not (self.running or self.barred or self._rejection.stands())

    def start(self, trigger: str) -> None:
        """Start a campaign; does nothing while one runs, nor for a rejected credential but now and then."""
        if self.can_start():
            # First this, then the task: an eager one runs to its first await before spawn returns.
            self.running = True
            self._trigger = trigger
            self._task = self._spawn(self._campaign(), "renewal")

    def force(self) -> None:
        """Start an operator's renewal, rejected or not; one that waits to try again tries now."""
        self._rejection.lift()
        self._quiet_until = 0.0
        if self._pause is None:
            self.start("forced")
        else:
            self._trigger = "forced"
            self._pause.cancel()

    def settle(self) -> None:
        """End a campaign that waits to try again if there is a fresh token: another instance got one."""
        if self._pause is not None and self._holding.fresh():
            self._pause.cancel()

    async def stop(self, patience: float) -> None:
        """Bar new campaigns and end the running one; an attempt under way is given *patience* seconds."""
        self.barred = True
        if self._task is not None and self.attempting and not self._obtaining.elsewhere:
            nap = self._spawn(self._clock.sleep(patience), "patience")
            await asyncio.wait({self._task, nap}, return_when=asyncio.FIRST_COMPLETED)
            nap.cancel()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})
        self.running = False  # a task cancelled before its first step runs no line of its own

    async def _campaign(self) -> None:
        from tenacity import AsyncRetrying, retry_if_exception_type  # late, as no renewal comes before a start is over

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(IssuerUnavailable),
            wait=self._delay,
            sleep=self._back_off,
            stop=lambda _: self.barred or self._holding.fresh(),
            reraise=True,
        )
        try:
            if (left := self._quiet_until - self._clock.monotonic()) > 0:
                await self._wait(left)
            await retrying(self._attempt)
        except IssuerError:
            pass  # reported and kept by _attempt
        finally:
            self.running = False
            self._changed()

    async def _attempt(self) -> None:
        try:
            await self._holding.reread()
            before = self._holding.generation

            def needed() -> bool:
                forced = self._trigger == "forced" and self._holding.generation == before
                return forced or not self._holding.fresh()

            if needed():
                await self._renew(needed)
        except IssuerError as error:
            self.failure = error
            self.failures += 1
            raise
        finally:
            # A refused token is handed out again when no better one could be had: other endpoints may take it.
            self._holding.withheld = False
            self._changed()

    async def _renew(self, needed: Callable[[], bool]) -> None:
        secrets = self._rejection.fingerprint()
        try:
            obtained = await self._obtaining.obtain(self._trigger, needed)
        except IssuerUnavailable as error:
            self._report("unavailable", str(error))
            raise
        except (CredentialRejected, ConfigurationError) as error:
            generation = self._holding.generation
            await self._holding.reread()
            if not needed():  # another instance was faster, or has another secret
                return
            if self._holding.generation > generation:
                self._report("unavailable", "another instance exchanged the refresh token meanwhile")
                raise IssuerUnavailable("another instance exchanged the refresh token meanwhile") from error
            left = error.left if isinstance(error, AlreadyRejected) else ASK_AGAIN
            self._rejection.latch(secrets, generation, left)
            self._report("rejected", str(error))
            if isinstance(error, ConfigurationError):
                raise CredentialRejected("configuration", str(error)) from error
            raise
        except asyncio.CancelledError:
            self._report("unavailable", "cut off")
            raise
        except Exception as error:
            # A bug of an issuer is no reason to stop asking it: the next answer may be one it understands.
            self._report("unavailable", detail := f"internal error: {type(error).__name__}")
            raise IssuerUnavailable(detail) from error
        if obtained is None:
            return
        self._rejection.lift()
        self._report("ok", "", obtained.token)
        differs = difference(self._name, self._configured_lifetime, obtained.grant)
        if differs is not None and (pair := (differs.configured, round(differs.granted))) not in self._differences:
            self._differences.add(pair)
            self._emit(differs)

    def _delay(self, state: "RetryCallState") -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after if isinstance(error, IssuerUnavailable) else None
        cap = _CAP if self._holding.usable() else _CAP_WITHOUT
        wait = backoff(state.attempt_number, asked, self._clock.jitter(), cap)
        if isinstance(error, KeptBack) and (left := self._holding.until_last_minutes()) > 0:
            wait = min(wait, left + _MOMENT)  # they may be shorter than a backoff
        return wait

    async def _back_off(self, seconds: float) -> None:
        if isinstance(self.failure, IssuerUnavailable) and self.failure.retry_after:
            self._quiet_until = self._clock.monotonic() + seconds
            await self._wait(seconds, for_all=True)
        else:
            await self._wait(seconds)

    async def _wait(self, seconds: float, *, for_all: bool = False) -> None:
        self.next_at = self._clock.monotonic() + seconds
        self._pause = self._spawn(self._clock.sleep(seconds), "backoff")
        try:
            if for_all:
                await self._obtaining.pause(seconds)
            await asyncio.wait({self._pause})
        finally:
            self._pause.cancel()
            self._pause = None

    def _report(self, result: str, detail: str, token: Token | None = None) -> None:
        seconds = self._clock.monotonic() - self._obtaining.called_at
        self.last = LastRenewal(
            time=self._clock.now(), trigger=self._trigger, result=result, seconds=seconds, detail=detail
        )
        self._emit(
            Renewal(
                upstream=self._name,
                trigger=self._trigger,
                result=result,
                seconds=seconds,
                generation=token.generation if token else self._holding.generation,
                lifetime=token.lifetime if token else 0.0,
                grant=token.grant if token else "",
                detail=detail,
            )
        )


def backoff(attempts: int, retry_after: float | None, jitter: float, cap: float = _CAP) -> float:
    """Return the seconds to wait after so many *attempts*: full jitter up to *cap*, or what the issuer asked for."""
    wait = min(cap, _BASE * 2.0 ** min(attempts - 1, 10)) * jitter
    return wait if retry_after is None else max(wait, min(retry_after, _MAX_RETRY_AFTER))
