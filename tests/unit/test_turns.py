"""Turns: the cap holds, nobody starves, and none is lost when somebody leaves."""

import asyncio

import pytest

from sidecar.exchange.turns import Turns

LONG = 20.0


async def test_cap_holds_and_the_first_in_line_is_next() -> None:
    """In the order in which they came, and one who comes later does not slip in."""
    turns, served = Turns(2), []

    async def wait(name: int) -> None:
        assert await turns.take(LONG) == 0
        served.append(name)

    assert turns.take_now() == 0
    assert turns.take_now() == 0
    assert turns.take_now() is None
    tasks = [asyncio.ensure_future(wait(number)) for number in range(4)]
    await asyncio.sleep(0)
    assert served == []
    for number in range(4):
        turns.give_back(0)
        assert turns.take_now() is None, "the turn is the one's who waited"
        await asyncio.wait({tasks[number]}, timeout=LONG)
        assert served == list(range(number + 1))
    turns.give_back(0)
    assert turns.take_now() == 0
    assert turns.take_now() is None


async def test_who_waited_long_enough_gets_none() -> None:
    """And the place in line is free again: the turn goes to the next."""
    turns = Turns(1)
    assert turns.take_now() == 0
    assert await turns.take(0.01) is None
    turns.give_back(0)

    assert turns.take_now() == 0


async def test_those_who_gave_up_leave_nothing_behind() -> None:
    """However many come and go while nothing is given back."""
    turns = Turns(1)
    assert turns.take_now() == 0
    for _ in range(5):
        assert await turns.take(0.001) is None

    assert not turns._line


@pytest.mark.parametrize("late", [False, True], ids=["while waiting", "as the turn comes"])
async def test_who_leaves_takes_no_turn_along(late: bool) -> None:
    """Cancelled at the very moment its turn came, it hands it on."""
    turns = Turns(1)
    assert turns.take_now() == 0
    leaves = asyncio.ensure_future(turns.take(LONG))
    stays = asyncio.ensure_future(turns.take(LONG))
    await asyncio.sleep(0)
    if late:
        turns.give_back(0)
        leaves.cancel()
    else:
        leaves.cancel()
        await asyncio.wait({leaves}, timeout=LONG)
        turns.give_back(0)

    assert await asyncio.wait_for(stays, LONG) == 0
    assert leaves.cancelled()
    turns.give_back(0)
    assert turns.take_now() == 0


async def test_a_crowd_is_served_whole_in_order() -> None:
    """A thousand through three turns, each a moment: none starves, never more than three at once."""
    turns, served, under_way, most = Turns(3), [], 0, 0

    async def one(number: int) -> None:
        nonlocal under_way, most
        assert turns.take_now() == 0 or await turns.take(LONG) == 0
        under_way += 1
        most = max(most, under_way)
        served.append(number)
        await asyncio.sleep(0)
        under_way -= 1
        turns.give_back(0)

    async with asyncio.timeout(LONG):
        await asyncio.gather(*(one(number) for number in range(1000)))
    assert served == list(range(1000))
    assert most == 3


async def test_each_session_has_a_cap_of_its_own() -> None:
    """The one with the least under way is next, never one that is full; a turn is given on in the session it is of."""
    turns = Turns(2, sessions=3)
    assert [turns.take_now() for _ in range(7)] == [0, 1, 2, 0, 1, 2, None]
    waiting = asyncio.ensure_future(turns.take(LONG))
    await asyncio.sleep(0)
    turns.give_back(1)
    assert await asyncio.wait_for(waiting, LONG) == 1
    turns.give_back(2)
    turns.give_back(2)
    turns.give_back(0)
    assert [turns.take_now() for _ in range(4)] == [2, 0, 2, None]


async def test_a_session_that_is_not_fit_gets_nothing_while_another_is() -> None:
    """Who finds the fit ones full waits; where none is fit, any will do."""
    unfit = {1}
    turns = Turns(2, 3, lambda number: number not in unfit)
    assert [turns.take_now() for _ in range(5)] == [0, 2, 0, 2, None]
    waiting = asyncio.ensure_future(turns.take(LONG))
    await asyncio.sleep(0)
    assert turns.take_now() is None, "somebody waits"
    turns.give_back(2)
    assert await asyncio.wait_for(waiting, LONG) == 2
    unfit |= {0, 2}
    assert turns.take_now() == 1
