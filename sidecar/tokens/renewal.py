"""Getting new tokens from an issuer: one call at a time, patient while it is down, silent once it said no."""

import asyncio
import math
from collections.abc import Callable

from sidecar.clock import Clock
from sidecar.errors import ConfigurationError, CredentialRejected, IssuerError, IssuerUnavailable, SeatTaken
from sidecar.events import Emit, Renewal
from sidecar.policy import pauses
from sidecar.tokens.difference import Differences
from sidecar.tokens.holding import Holding
from sidecar.tokens.obtaining import Obtaining
from sidecar.tokens.protocols import Issuer, LastRenewal, Spawn
from sidecar.tokens.record import Rejection
from sidecar.tokens.rejection import Latch, Waiting, said, tell
from sidecar.tokens.token import Token

_CAP = 30.0
_CAP_WITHOUT = 8.0
"""The longest wait while there is no token to serve with: the issuer's return is to be noticed within ten seconds."""


class Renewing:
    """The renewals of one credential.

    A campaign is one task that tries until there is a fresh token, the credential is rejected, or it is stopped.
    *session*: what was refused serves nobody. `running`: there is one. `barred`: none may start. `failures` counts the
    attempts that failed, and `failure` is the last one. `next_at`: the monotonic moment of the next one while it waits.
    """

    def __init__(
        self,
        name: str,
        issuer: Issuer,
        holding: Holding,
        obtaining: Obtaining,
        configured_lifetime: float | None,
        *,
        clock: Clock,
        emit: Emit,
        spawn: Spawn,
        changed: Callable[[], None],
        session: bool = False,
    ) -> None:
        self._name = name
        self._issuer = issuer
        self._holding = holding
        self._obtaining = obtaining
        self._latch = Latch(issuer, holding, clock)
        self._differences = Differences(name, configured_lifetime, emit)
        self._clock = clock
        self._emit = emit
        self._spawn = spawn
        self._changed = changed
        self._session = session
        self._trigger = ""
        self._task: asyncio.Task[None] | None = None
        self._pause: asyncio.Task[None] | None = None
        self.running = False
        self.barred = False
        self.failures = 0
        self.failure: IssuerError | None = None
        self.last: LastRenewal | None = None
        self.next_at = 0.0

    @property
    def rejected(self) -> bool:
        """Whether the credential was rejected, as far as is known without a look, and nobody had a token since."""
        return self._latch.rejected

    @property
    def attempting(self) -> bool:
        """Whether an attempt is under way, or about to be; a campaign that waits to try again has none."""
        return self.running and self._pause is None

    def hopeless(self, deadline: float) -> bool:
        """Tell whether it is known that no attempt of ours is made before *deadline* (monotonic clock)."""
        asked = isinstance(self.failure, IssuerUnavailable) and self.failure.retry_after is not None
        return self._pause is not None and asked and self.next_at > deadline

    def can_start(self) -> bool:
        """Tell whether `start` would start."""
        return not (self.running or self.barred or self._latch.stands())

    def start(self, trigger: str) -> None:
        """Start a campaign; does nothing while one runs, nor for a rejected credential but now and then."""
        if self.can_start():
            # First this, then the task: an eager one runs to its first await before spawn returns.
            self.running = True
            self._trigger = trigger
            self._task = self._spawn(self._campaign(), "renewal")

    def reject(self, no: Rejection) -> None:
        """Take note that an upstream refused the credential itself."""
        self._latch.set(no, self._holding.login)
        self.failure = CredentialRejected(no.error, no.message)
        self._changed()

    def force(self) -> None:
        """Start an operator's renewal, rejected or not; one that waits to try again tries now."""
        self._latch.lift()
        self.next_at = 0.0
        if self._pause is None:
            self.start("forced")
        else:
            self._trigger = "forced"
            self._pause.cancel()

    async def prime(self) -> None:
        """Have the secrets of a rejected credential looked at where that takes time."""
        if self.rejected:
            await self._issuer.prime()

    def settle(self) -> None:
        """End a campaign that waits to try again if there is a fresh token: another instance got one."""
        if self._pause is not None and self._holding.fresh():
            self.next_at = 0.0
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
        attempts = 0
        try:
            while True:
                if (left := self.next_at - self._clock.monotonic()) > 0:
                    await self._wait(left)
                try:
                    await self._attempt()
                except SeatTaken:
                    return  # who needs it asks again
                except IssuerUnavailable as error:
                    attempts += 1
                    self.next_at = self._clock.monotonic() + self._delay(error, attempts)
                    if self.barred or self._holding.fresh():
                        if error.retry_after is None:
                            self.next_at = 0.0
                        return
                else:
                    return
        except IssuerError:
            pass  # reported and kept by _attempt
        finally:
            self.running = False
            self._changed()

    async def _attempt(self) -> None:
        try:
            if self._trigger == "forced":
                await self._holding.look()  # what another instance got before the operator asked is not what was meant
            before = self._holding.login

            def needed() -> bool:
                forced = self._trigger == "forced" and self._holding.login == before
                return forced or not self._holding.fresh()

            if needed():
                await self._renew(needed)
        except IssuerError as error:
            self.failure = error
            self.failures += 1
            if self._trigger == "forced":  # the operator was told; what goes on is for those who need a token
                self._trigger = "demand"
            raise
        finally:
            # A refused token is handed out again when no better one could be had: other endpoints may take it.
            self._holding.withheld = False
            self._changed()

    async def _renew(self, needed: Callable[[], bool]) -> None:
        login = self._holding.login
        try:
            obtained = await self._obtaining.obtain(self._trigger, needed, self._latch.void)
        except IssuerUnavailable as error:
            if not isinstance(error, Waiting | SeatTaken):
                self._report("unavailable", str(error))
            raise
        except (CredentialRejected, ConfigurationError) as error:
            no, refusal = self._obtaining.rejection, error
            if isinstance(error, ConfigurationError):
                refusal = CredentialRejected("configuration", str(error))
                no = said(refusal, None, "", self._issuer.fingerprint(""), self._clock)
            await self._holding.look()
            if not needed():  # another instance was faster, or has another secret
                return
            if no is not None:
                self._latch.set(no, login)
                shown = isinstance(error, CredentialRejected) and error.shown
                if shown and (token := self._holding.token) is not None:
                    await tell(no, token, self._holding)
            self._report("rejected", str(refusal))
            raise refusal from None
        except asyncio.CancelledError:
            self._report("unavailable", "cut off")
            raise
        except Exception as error:
            # A bug of an issuer is no reason to stop asking it: the next answer may be one it understands.
            self._report("unavailable", detail := f"internal error: {type(error).__name__}")
            raise IssuerUnavailable(detail) from error
        if obtained is not None:
            self._latch.lift()
            self._report("ok", "", obtained.token)
            self._differences.tell(obtained.grant, obtained.token.missing)

    def _delay(self, error: IssuerUnavailable, attempts: int) -> float:
        served = self._holding.usable() and not (self._session and self._holding.refused)
        cap = _CAP if served else _CAP_WITHOUT
        return max(pauses.weather(attempts, self._clock.jitter(), cap), error.retry_after or 0.0)

    async def _wait(self, seconds: float) -> None:
        self._pause = self._spawn(self._clock.sleep(seconds), "backoff")
        self._changed()
        try:
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
                generation=self._holding.granted,
                lifetime=token.lifetime if token and token.lifetime < math.inf else 0.0,
                grant=token.how if token else "",
                detail=detail,
            )
        )
