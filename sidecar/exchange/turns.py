"""A cap on what is under way at one upstream: who comes when it is reached waits in line, first come, first served."""

import asyncio


class Turns:
    """*limit* turns; one that is given back goes to the longest waiting, never to who has just come."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._line: dict[asyncio.Future[None], None] = {}

    def take_now(self) -> bool:
        """Take a turn if one is free, which is never while somebody waits."""
        if not self._free:
            return False
        self._free -= 1
        return True

    async def take(self, seconds: float) -> bool:
        """Take a turn, waiting for it at most *seconds*; tell whether there was one.

        Cancelled: a turn that came at the same moment goes to the next.
        """
        if self.take_now():
            return True
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line[turn] = None
        try:
            async with asyncio.timeout(seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.give_back()
            if isinstance(error, TimeoutError):
                return False
            raise
        finally:
            self._line.pop(turn, None)
        return True

    def give_back(self) -> None:
        """Give one turn back, to who waits longest."""
        for turn in self._line:
            if not turn.done():
                del self._line[turn]
                turn.set_result(None)
                return
        self._free += 1
