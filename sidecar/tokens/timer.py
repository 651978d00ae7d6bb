"""The one timer of a credential: it gets the first token, renews when due, and looks at the store now and then."""

import asyncio

from sidecar.clock import Clock
from sidecar.settings import Renew
from sidecar.tokens.holding import Holding
from sidecar.tokens.renewal import Renewing
from sidecar.tokens.waiting import Changes

_SOON = 5.0
"""Seconds between two looks at a store that may have a token that we lack."""
_AT_ONCE = 1.0
"""The same while the store lacks ours."""
_TURN = 1.0
"""Seconds after which a first renewal lets the next begin: a slow issuer is not to hold up all the others."""


async def keep_fresh(
    holding: Holding,
    renewing: Renewing,
    changes: Changes,
    settings: Renew,
    clock: Clock,
    *,
    turns: asyncio.Semaphore,
    shared: bool,
) -> None:
    """Get a token if none is usable, then renew whenever it is due, until cancelled; not due with `check_every` 0.

    A session that is not used, or was taken by another login, is left to the next request that needs it.

    The first of these, and each look, waits for one of *turns*, which many share; a request that needs a token does
    not. *shared*: the store may forget, so look at it often.
    """
    if not holding.fresh():
        async with turns:
            if holding.usable() is None:
                renewing.start("start")
            elif settings.check_every > 0 and not holding.fresh():
                renewing.start("due")
            await changes.until(lambda: not renewing.attempting, clock.monotonic() + _TURN)
    while settings.check_every > 0:
        await renewing.prime()
        if holding.fresh():
            renewing.settle()
        elif not holding.resting:
            renewing.start("due")
        await _rest(holding, renewing, changes, settings, clock, turns=turns, shared=shared)


async def _rest(
    holding: Holding,
    renewing: Renewing,
    changes: Changes,
    settings: Renew,
    clock: Clock,
    *,
    turns: asyncio.Semaphore,
    shared: bool,
) -> None:
    """Sleep until the token is due or was exchanged, but at most `check_every`, then look at the store."""
    held, rejected = holding.held, renewing.rejected
    often = _SOON if rejected or shared else settings.check_every
    longest = min(settings.check_every, _AT_ONCE if holding.unsaved and not holding.unreadable else often)
    left = held.until_due(clock) if held else 0.0
    pause = min(left, longest) if left > 0 else longest
    moved = await changes.until(
        lambda: holding.held is not held or renewing.rejected != rejected, clock.monotonic() + pause
    )
    if not moved and not renewing.attempting and (holding.fresh() or renewing.running or renewing.rejected):
        async with turns:  # the timers of many may have begun together, and a store's time-out is short
            await holding.look()
