"""What an operator does to a credential, and the end of the sidecar: a new one now, none any more, a logout."""

import asyncio
import math

from sidecar.clock import Clock
from sidecar.errors import IssuerError, IssuerUnavailable, SidecarError, StoreError
from sidecar.events import Emit, Trouble
from sidecar.tokens.holding import Holding
from sidecar.tokens.protocols import Issuer, Spawn
from sidecar.tokens.renewal import Renewing
from sidecar.tokens.token import Token
from sidecar.tokens.waiting import Changes


class Acts:
    """The acts on the credential of the upstream *name*; *patience*: seconds that a logout may take."""

    def __init__(
        self,
        name: str,
        issuer: Issuer,
        holding: Holding,
        renewing: Renewing,
        changes: Changes,
        *,
        patience: float,
        clock: Clock,
        emit: Emit,
        spawn: Spawn,
    ) -> None:
        self._name = name
        self._issuer = issuer
        self._holding = holding
        self._renewing = renewing
        self._changes = changes
        self._patience = patience
        self._clock = clock
        self._emit = emit
        self._spawn = spawn

    async def renew(self) -> Token:
        """Do what `Broker.renew` does."""
        holding, renewing = self._holding, self._renewing
        login, failures = holding.login, renewing.failures

        def newer() -> Token | None:
            return holding.token if holding.login > login else None

        renewing.force()
        await self._changes.until(
            lambda: renewing.failures > failures or not renewing.running or newer() is not None, math.inf
        )
        if token := newer():
            return token
        if renewing.failure is not None and renewing.failures > failures:
            raise renewing.failure
        raise IssuerUnavailable("the renewal was cut off")

    async def revoke(self, *, logout: bool) -> None:
        """Drop the token here and in the store, given up and, with *logout*, logged out. Raises StoreError."""
        token = self._holding.token
        self._holding.held = None  # at once: nobody who wakes meanwhile gets it
        await self._renewing.stop(0.0)
        if logout and token is not None:
            await self._release(token)
        await self._holding.drop()

    async def logout(self) -> None:
        """End the session that is held, at the other side and in the store; trouble is told, not raised."""
        await self._renewing.stop(self._patience)
        if self._holding.token is not None:
            try:
                await self.revoke(logout=not self._holding.refused and self._holding.lasts())
            except StoreError as error:
                self._holding.report("write", error)

    async def _release(self, token: Token) -> None:
        task = self._spawn(self._told(token), "logout")
        nap = self._spawn(self._clock.sleep(self._patience), "patience")
        await asyncio.wait({task, nap}, return_when=asyncio.FIRST_COMPLETED)
        nap.cancel()
        if not task.done():
            task.cancel()
            self._tell(f"no answer within {self._patience:g} s")

    async def _told(self, token: Token) -> None:
        try:
            await self._issuer.release(token.values, self._patience)
        except SidecarError as error:
            self._tell(str(error) if isinstance(error, IssuerError) else type(error).__name__)

    def _tell(self, detail: str) -> None:
        self._emit(Trouble(where=f"logout of {self._name}", detail=detail))
