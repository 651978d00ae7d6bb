"""A cap on what is under way in each session of an upstream: who comes when it is reached waits in line."""

import asyncio
from collections.abc import Callable


class Turns:
    """*limit* turns in each of so many *sessions*, 0: any number; first come, first served.

    A turn is the number of the session that it is of: that with the least under way, of those that are *fit* if one of
    them has room. One that is given back goes to the longest waiting, never to who has just come.
    """

    def __init__(self, limit: int, sessions: int = 1, fit: Callable[[int], bool] = lambda _: True) -> None:
        self._limit = limit
        self._under_way = [0] * sessions
        self._fit = fit
        self._line: dict[asyncio.Future[int], None] = {}

    def take_now(self) -> int | None:
        """Take a turn if one is free, which is never while somebody waits."""
        free = [number for number, busy in enumerate(self._under_way) if not self._limit or busy < self._limit]
        if not free:
            return None
        turn = min(free, key=lambda number: (not self._fit(number), self._under_way[number]))
        self._under_way[turn] += 1
        return turn

    async def take(self, seconds: float) -> int | None:
        """Take a turn, waiting for it at most *seconds*; None: there was none.

        Cancelled: a turn that came at the same moment goes to the next.
        """
        if (now := self.take_now()) is not None:
            return now
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._line[turn] = None
        try:
            async with asyncio.timeout(seconds):
                return await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.give_back(turn.result())
            if isinstance(error, TimeoutError):
                return None
            raise
        finally:
            self._line.pop(turn, None)

    def give_back(self, turn: int) -> None:
        """Give *turn* back, to who waits longest."""
        for waiting in self._line:
            if not waiting.done():
                del self._line[waiting]
                waiting.set_result(turn)
                return
        self._under_way[turn] -= 1
