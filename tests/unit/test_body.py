"""A request body: every attempt sees every byte from the first, or an error; never a part that looks whole."""

import asyncio
import errno
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.exchange import body as body_module
from sidecar.exchange.body import ClientGone, RequestBody
from sidecar.exchange.spool import Spool
from sidecar.tokens.seal import EphemeralSeal

MARK = 256 << 10
PIECE = 64 << 10


class ListSpool:
    """A spool in memory that counts what happens to it; *room* bytes fit, then the disk is full."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.parts: list[bytes] = []
        self.room = room
        self.closed = 0

    def append(self, data: bytes) -> None:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.parts.append(data)

    def read(self):
        for part in list(self.parts):
            if self.closed:
                raise ValueError("I/O operation on closed file")
            yield part

    def close(self) -> None:
        self.closed += 1


class Spools:
    """Opens spools, and keeps them for a look."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.opened: list[ListSpool] = []

    def __call__(self) -> ListSpool:
        self.opened.append(ListSpool(self.room))
        return self.opened[-1]


def no_spool() -> Spool:
    raise OSError(errno.ENOSPC, "No space left on device")


def unwanted() -> None:
    """Nobody waits for 100 Continue."""


def make(
    length: int | None = None,
    *,
    memory: int = 1 << 20,
    spool: int = 1 << 20,
    open_spool: Callable = no_spool,
    wanted: Callable[[], None] = unwanted,
) -> RequestBody:
    body = RequestBody(length, open_spool=open_spool, wanted=wanted)
    body.keep(memory, spool)
    return body


async def read(body: RequestBody) -> bytes:
    return b"".join([data async for data in body.chunks()])


async def read_some(body: RequestBody, count: int) -> list[bytes]:
    """Read *count* parts, then give the attempt up."""
    parts = []
    reader = body.chunks()
    async for data in reader:
        parts.append(data)
        if len(parts) == count:
            break
    await reader.aclose()
    return parts


def feed(body: RequestBody, *parts: bytes) -> None:
    for part in parts:
        body.feed(part)
    body.feed_end()


async def settle(task: asyncio.Task) -> None:
    """Let *task* run as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()


async def test_body_in_memory_is_sent_again() -> None:
    """The second attempt, and the third, sees what the first saw."""
    body = make()
    feed(body, b"one", b"two")

    assert [await read(body) for _ in range(3)] == [b"onetwo"] * 3
    assert body.replayable


async def test_body_over_the_memory_goes_to_the_spool() -> None:
    """In order, and only what does not fit; the spool is opened when it is needed."""
    spools = Spools()
    body = make(memory=6, spool=100, open_spool=spools)
    body.feed(b"123456")
    assert (await read_some(body, 1)) == [b"123456"]
    assert spools.opened == []
    body.feed(b"7")
    assert (await read_some(body, 2)) == [b"123456", b"7"]
    feed(body, b"8", b"9")

    assert await read(body) == b"123456789"
    assert await read(body) == b"123456789"
    assert [part for spool in spools.opened for part in spool.parts] == [b"7", b"89"]
    assert body.replayable


async def test_what_follows_the_spool_stays_behind_it() -> None:
    """A small part after a large one must not slip in front of it, though memory would hold it."""
    spools = Spools()
    body = make(memory=6, spool=100, open_spool=spools)
    body.feed(b"a" * 10)
    await read_some(body, 1)
    feed(body, b"b")

    assert await read(body) == b"a" * 10 + b"b"
    assert await read(body) == b"a" * 10 + b"b"


@pytest.mark.parametrize(("size", "kept"), [(30, True), (31, False)])
async def test_body_over_both_is_sent_but_not_kept(size: int, kept: bool) -> None:
    """The attempt under way gets all of it; another could not."""
    spools = Spools()
    body = make(memory=10, spool=20, open_spool=spools)
    feed(body, b"x" * 8, b"y" * (size - 8))

    assert len(await read(body)) == size
    assert body.replayable is kept
    assert [spool.closed for spool in spools.opened] in ([0] if kept else [], [0] if kept else [1])
    if not kept:
        with pytest.raises(RuntimeError, match="was not kept and cannot be sent again"):
            await read(body)


async def test_overflow_frees_what_was_kept() -> None:
    """From the first byte that finds no place on, nothing is held."""
    spools = Spools()
    body = make(memory=4, spool=4, open_spool=spools)
    for part in (b"aaaa", b"bbbb", b"c"):
        body.feed(part)
        await read_some_live(body, part)
    feed(body, b"d" * 4)
    body_left = bytes(body._memory)
    body.discard()

    assert [spool.closed for spool in spools.opened] == [1]
    assert body_left == b""
    assert not body.replayable
    assert body.whole() is None


async def read_some_live(body: RequestBody, last: bytes) -> None:
    """Read until *last* has come, then give the attempt up."""
    reader = body.chunks()
    async for data in reader:
        if data == last:
            break
    await reader.aclose()


@pytest.mark.parametrize(
    ("length", "kept"), [(0, True), (10, True), (30, True), (31, False), (1 << 40, False), (None, True)]
)
def test_declared_length_decides_at_once(length: int | None, kept: bool) -> None:
    """A body that cannot fit is not copied at all; it can be sent once."""
    body = make(length, memory=10, spool=20)

    assert body.kept_whole is kept
    assert body.replayable
    assert body.complete is (length == 0)


async def test_body_that_is_not_kept_is_sent_once() -> None:
    """Until it has begun it is replayable: nothing of it is gone."""
    body = make(31, memory=10, spool=20)
    body.feed(b"x" * 8)
    assert body.replayable
    reader = body.chunks()
    first = await anext(reader)
    held = bytes(body._memory)
    feed(body, b"y" * 23)

    assert first + b"".join([data async for data in reader]) == b"x" * 8 + b"y" * 23
    assert not body.replayable
    assert held == b""


async def test_body_that_is_not_kept_is_never_given_whole() -> None:
    """Not even if less comes than was declared: nobody could send it again."""
    body = make(31, memory=10, spool=20)
    feed(body, b"x" * 8)

    assert body.whole() is None
    assert await read(body) == b"x" * 8


@pytest.mark.parametrize("room", [0, 5, 12])
async def test_full_disk_ends_keeping_not_sending(room: int) -> None:
    """The client notices nothing; a replay is no longer possible, and the spool is given back."""
    spools = Spools(room)
    body = make(memory=4, spool=1000, open_spool=spools)
    sent = []
    for part in (b"aaaa", b"bbbbb", b"ccccc", b"ddddd"):
        body.feed(part)
        if body.replayable:
            sent = await read_some(body, len(sent) + 1)

    assert b"".join(sent).startswith(b"aaaa")
    assert not body.replayable
    assert [spool.closed for spool in spools.opened] == [1]


async def test_spool_that_cannot_be_opened_ends_keeping_not_sending() -> None:
    """No directory, no descriptor: the same as a full disk."""
    body = make(memory=4, spool=1000, open_spool=no_spool)
    feed(body, b"x" * 5)

    assert await read(body) == b"x" * 5
    assert not body.replayable


async def test_real_spool(tmp_path: Path) -> None:
    """Sealed on disk, and back, for two attempts."""
    body = make(memory=1000, spool=10 << 20, open_spool=lambda: Spool(tmp_path, EphemeralSeal()))
    parts = [bytes([number]) * 70_000 for number in range(20)]
    feed(body, *parts)

    assert await read(body) == b"".join(parts)
    assert await read(body) == b"".join(parts)
    body.discard()


async def test_attempt_that_is_cancelled_loses_nothing() -> None:
    """In mid-read, while it waits, and after a part it had not used yet."""
    body = make()
    body.feed(b"one")
    task = asyncio.create_task(read(body))
    await settle(task)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    body.feed(b"two")
    await read_some(body, 2)
    feed(body, b"three")

    assert task.cancelled()
    assert await read(body) == b"onetwothree"


async def test_part_that_was_handed_out_is_kept_already() -> None:
    """An attempt may die with it in hand."""
    body = make()
    body.feed(b"one")
    reader = body.chunks()
    assert await anext(reader) == b"one"
    other = body.chunks()

    assert await anext(other) == b"one"
    await reader.aclose()
    await other.aclose()


async def test_body_is_sent_as_it_comes() -> None:
    """The first part goes out before the second is there."""
    body = make()
    reader = body.chunks()
    body.feed(b"one")
    first = await anext(reader)
    waiting = asyncio.ensure_future(anext(reader))
    await settle(waiting)
    body.feed(b"two")
    second = await waiting
    body.feed_end()

    assert [first, second, *[data async for data in reader]] == [b"one", b"two"]


async def test_late_end_is_noticed() -> None:
    """A reader that waits is woken by the end as well."""
    body = make()
    body.feed(b"one")
    task = asyncio.create_task(read(body))
    await settle(task)
    body.feed_end()

    assert await task == b"one"


async def test_small_parts_are_joined() -> None:
    """One write for many small ones, up to a limit; a large one goes as it is."""
    body = make()
    feed(body, *[b"x" * 1000] * 100, b"y" * (PIECE * 2))
    sizes = [len(data) async for data in body.chunks()]

    assert sum(sizes) == 100_000 + PIECE * 2
    assert sizes[0] == 66_000
    assert len(sizes) == 2


async def test_kept_part_is_sent_in_pieces() -> None:
    """A replay does not hand out a megabyte at once."""
    body = make()
    feed(body, b"x" * (PIECE * 2 + 5))
    await read(body)

    assert [len(data) async for data in body.chunks()] == [PIECE, PIECE, 5]


async def test_nothing_is_never_handed_out() -> None:
    """An empty part would end a chunked body."""
    body = make()
    feed(body, b"", b"one", b"", b"two")
    parts = [data async for data in body.chunks()]

    assert all(parts)
    assert b"".join(parts) == b"onetwo"


async def test_empty_body() -> None:
    """No byte, no part, and whole at once."""
    for body in (make(0), make(None)):
        body.feed_end()

        assert await read(body) == b""
        assert body.whole() == b""
        assert body.replayable


@pytest.mark.parametrize(
    ("fed", "complete", "whole"), [(b"123456", True, b"123456"), (b"1234567", True, None), (b"12", False, None)]
)
async def test_whole_body_is_given_when_it_is_in_memory(fed: bytes, complete: bool, whole: bytes | None) -> None:
    """One write with the head: only if all of it is here, and fits into memory."""
    body = make(memory=6)
    body.feed(fed[:3])
    body.feed(fed[3:])
    if complete:
        body.feed_end()

    assert body.whole() == whole
    assert body.whole() == whole
    body.feed_end()
    assert await read(body) == fed


async def test_whole_body_is_given_again_after_it_was_streamed() -> None:
    """The second attempt of a small body is one write."""
    body = make()
    feed(body, b"one", b"two")
    await read(body)

    assert body.whole() == b"onetwo"
    assert body.whole() == b"onetwo"


async def test_whole_counts_what_is_kept_and_what_waits() -> None:
    """Together they must fit."""
    body = make(memory=6, open_spool=Spools())
    body.feed(b"1234")
    await read_some(body, 1)
    feed(body, b"567")

    assert body.whole() is None
    assert await read(body) == b"1234567"


async def test_given_whole_counts_as_begun() -> None:
    """After it was given out it is kept, so that a second attempt can be made."""
    body = make(5)
    feed(body, b"12345")
    assert body.whole() == b"12345"

    assert body.replayable
    assert not body.full
    assert await read(body) == b"12345"


async def test_body_is_asked_for_once_when_it_is_wanted() -> None:
    """100 Continue goes out when the upstream is there to take the body, and never twice."""
    asked = []
    body = make(wanted=lambda: asked.append(1))
    reader = body.chunks()
    assert asked == []
    waiting = asyncio.ensure_future(anext(reader))
    await settle(waiting)
    assert asked == [1]
    feed(body, b"one")
    await waiting
    await reader.aclose()
    await read(body)

    assert asked == [1]


async def test_body_that_is_here_is_not_asked_for() -> None:
    """A client that did not wait gets no 100 Continue."""
    asked = []
    body = make(wanted=lambda: asked.append(1))
    feed(body, b"one")

    assert body.whole() == b"one"
    assert asked == []


async def test_reader_that_is_behind_holds_the_feeder() -> None:
    """Over the mark there is no room until a reader has taken enough."""
    body = make()
    body.feed(b"x" * (MARK - 1))
    assert not body.full
    await asyncio.wait_for(body.room(), 10)
    body.feed(b"x")
    body.feed(b"x" * 1000)
    waiting = asyncio.create_task(body.room())
    await settle(waiting)
    full = body.full
    await read_some(body, 1)
    await asyncio.wait_for(waiting, 10)

    assert full
    assert not body.full


async def test_room_comes_back_only_below_the_mark() -> None:
    """One small part taken from a great pile is not enough."""
    body = make(memory=10 << 20)
    for _ in range(8):
        body.feed(b"x" * PIECE)
    reader = body.chunks()
    await anext(reader)
    waiting = asyncio.create_task(body.room())
    await settle(waiting)
    still_full = body.full
    for _ in range(4):
        await anext(reader)

    assert still_full
    assert not body.full
    await asyncio.wait_for(waiting, 10)
    await reader.aclose()


@pytest.mark.parametrize("end", ["discard", "fail"])
async def test_feeder_is_let_go_when_the_body_is_given_up(end: str) -> None:
    """Nobody waits for room that nobody makes; what comes later is dropped."""
    body = make()
    body.feed(b"x" * MARK)
    waiting = asyncio.create_task(body.room())
    await settle(waiting)
    getattr(body, end)()
    await asyncio.wait_for(waiting, 10)
    body.feed(b"y" * MARK)

    assert not body.full
    assert not body._live
    assert body._live_size == 0


@pytest.mark.parametrize(("end", "error"), [("discard", RuntimeError), ("fail", ClientGone)])
@pytest.mark.parametrize("complete", [False, True])
async def test_reader_never_sees_a_part_as_the_whole(end: str, error: type[Exception], complete: bool) -> None:
    """Given up while it is read, in memory, spool or as it comes: an error, no early end and no empty part."""
    spools = Spools()
    parts = [b"a" * 100, b"b" * 100, b"c" * 100]
    for taken in range(1, 4):
        body = make(memory=100, spool=1000, open_spool=spools)
        for part in parts:
            body.feed(part)
            await read_some_live(body, part)
        if complete:
            body.feed_end()
        reader = body.chunks()
        got = [await anext(reader) for _ in range(taken)]
        getattr(body, end)()

        with pytest.raises(error):
            await anext(reader)
        assert got == parts[:taken]


@pytest.mark.parametrize(("end", "error"), [("discard", RuntimeError), ("fail", ClientGone)])
async def test_reader_of_a_complete_body_is_stopped(end: str, error: type[Exception]) -> None:
    """What had come and waited is gone: the end of it is no end of the body."""
    body = make()
    feed(body, b"x" * PIECE, b"y" * PIECE)
    reader = body.chunks()
    await anext(reader)
    getattr(body, end)()

    with pytest.raises(error):
        await anext(reader)


@pytest.mark.parametrize(("end", "error"), [("discard", RuntimeError), ("fail", ClientGone)])
async def test_reader_in_the_middle_of_memory_is_stopped(end: str, error: type[Exception]) -> None:
    """Memory is freed under it: what it would get are empty parts, and one of those ends a chunked body."""
    body = make()
    feed(body, b"x" * (3 * PIECE))
    await read(body)
    reader = body.chunks()
    await anext(reader)
    getattr(body, end)()

    with pytest.raises(error):
        await anext(reader)


@pytest.mark.parametrize(("end", "error"), [("discard", RuntimeError), ("fail", ClientGone)])
async def test_waiting_reader_is_woken(end: str, error: type[Exception]) -> None:
    """It does not wait for a client that has gone."""
    body = make()
    task = asyncio.create_task(read(body))
    await settle(task)
    getattr(body, end)()

    with pytest.raises(error):
        await asyncio.wait_for(task, 10)


@pytest.mark.parametrize(("end", "error"), [("discard", RuntimeError), ("fail", ClientGone)])
async def test_body_that_was_given_up_is_not_sent(end: str, error: type[Exception]) -> None:
    """An attempt that begins too late gets an error at once, begun or not, and nothing is held."""
    spools = Spools()
    for begun in (False, True):
        body = make(memory=3, open_spool=spools)
        for part in (b"one", b"two"):
            body.feed(part)
            if begun:
                await read_some_live(body, part)
        body.feed_end()
        getattr(body, end)()
        getattr(body, end)()

        assert not body.replayable
        assert body.whole() is None
        with pytest.raises(error):
            await read(body)
        assert bytes(body._memory) == b""
    assert [spool.closed for spool in spools.opened] == [1]


async def test_client_that_left_is_told_from_a_body_that_is_gone() -> None:
    """A client that leaves after the answer was decided has left all the same."""
    body = make()
    body.discard()
    body.fail()

    with pytest.raises(ClientGone):
        await read(body)


async def test_until_told_nothing_is_kept() -> None:
    """Before `keep`, a body has one way: out."""
    body = RequestBody(1, open_spool=no_spool, wanted=unwanted)
    feed(body, b"1")
    empty = RequestBody(0, open_spool=no_spool, wanted=unwanted)

    assert body.whole() is None
    assert await read(body) == b"1"
    assert not body.replayable
    assert [empty.whole(), await read(empty), await read(empty)] == [b""] * 3


PARTS = st.lists(st.binary(max_size=40), max_size=12)


@settings(deadline=None, max_examples=150)
@given(
    parts=PARTS,
    memory=st.integers(0, 60),
    spool=st.integers(0, 200),
    room=st.integers(0, 300),
    declared=st.booleans(),
    cuts=st.lists(st.integers(0, 8), max_size=4),
)
def test_every_attempt_sees_every_byte_or_none_can_be_made(
    parts, memory: int, spool: int, room: int, declared: bool, cuts
) -> None:
    """Whatever the parts, the limits, the disk and the points where attempts are given up."""
    whole = b"".join(parts)
    spools = Spools(room)

    async def run() -> None:
        body = make(len(whole) if declared else None, memory=memory, spool=spool, open_spool=spools)
        feeding = asyncio.create_task(feed_slowly(body))
        for cut in cuts:
            if not body.replayable:
                break
            seen = b""
            reader = body.chunks()
            async for data in take(reader, cut):
                assert data
                seen += data
            await reader.aclose()
            assert whole.startswith(seen)
        if body.replayable:
            assert await read(body) == whole
        await feeding
        fits = len(whole) <= memory + spool and (len(whole) <= memory or room >= len(whole))
        assert body.replayable or not fits
        if body.replayable and body.kept_whole:
            assert await read(body) == whole
            assert body.whole() == (whole if len(whole) <= memory else None)
        assert len(body._memory) <= memory
        body.discard()

    async def feed_slowly(body: RequestBody) -> None:
        for number, part in enumerate(parts):
            if number % 3 == 1:
                await asyncio.sleep(0)
            body.feed(part)
        await asyncio.sleep(0)
        body.feed_end()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body_module, "_PIECE", 16)
        patch.setattr(body_module, "_HIGH_WATER", 64)
        asyncio.run(run())

    assert all(opened.closed for opened in spools.opened)


async def take(reader, count: int):
    """Yield up to *count* parts of *reader*."""
    for _ in itertools.repeat(None, count):
        try:
            yield await anext(reader)
        except StopAsyncIteration:
            return


@pytest.mark.parametrize(("memory", "spool"), [(0, 0), (10, 0), (10, 1000), (1000, 0)])
@pytest.mark.parametrize("size", [0, 5, 50, 51, 500])
@pytest.mark.parametrize("declared", [True, False])
async def test_what_was_gathered_is_sent_all_the_same(memory: int, spool: int, size: int, *, declared: bool) -> None:
    """Gathered or too long for that, declared or in chunks, wherever bodies are kept: every byte goes out."""
    body = make(size if declared else None, memory=memory, spool=spool, open_spool=Spools())
    data = bytes(range(256)) * 2
    for at in range(0, size, 7):
        body.feed(data[at : min(size, at + 7)])
    body.feed_end()
    for _ in range(2):
        assert await body.gather(50) == (data[:size] if size <= 50 else None)
    assert b"".join([part async for part in body.chunks()]) == data[:size]


async def test_what_cannot_be_sent_again_is_not_gathered() -> None:
    """A body that was sent and not kept has no beginning any more."""
    body = make(memory=0)
    body.feed(b"x" * 9)
    body.feed_end()
    assert b"".join([part async for part in body.chunks()]) == b"x" * 9
    assert await body.gather(50) is None
