"""A cap on what is under way in each session of an upstream: who comes when it is reached waits in line."""

import asyncio
from collections.abc import Callable


class Turns:
    """*limit* turns in each of so many *sessions*, 0: any number; first come, first served.

    A turn is the number of the session that it is of: that with the least under way of those that are *fit*, and of the
    others only while none is. One that is given back goes to the longest waiting, never to who has just come.
    """

    def __init__(self, limit: int, sessions: int = 1, fit: Callable[[int], bool] = lambda _: True) -> None:
        self._limit = limit
        self._under_way = [0] * sessions
        self._fit = fit
        self._line: dict[asyncio.Future[int], None] = {}

    def take_now(self) -> int | None:
        """Take a turn if one is free, which is never while somebody waits."""
        return None if any(not waiting.done() for waiting in self._line) else self._next()

    def _next(self) -> int | None:
        numbers = list(range(len(self._under_way)))
        if len(numbers) > 1:
            numbers = [number for number in numbers if self._fit(number)] or numbers
        free = [number for number in numbers if not self._limit or self._under_way[number] < self._limit]
        if not free:
            return None
        turn = min(free, key=self._under_way.__getitem__)
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
        """Give *turn* back; who waits longest gets what is free now."""
        self._under_way[turn] -= 1
        for waiting in list(self._line):
            if not waiting.done():
                if (free := self._next()) is None:
                    return
                del self._line[waiting]
                waiting.set_result(free)
