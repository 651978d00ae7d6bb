"""The spool: a file nobody can find or read, that gives back what was put in, as often as asked."""

import errno
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import SealError
from sidecar.exchange import spool as spool_module
from sidecar.exchange.spool import Spool
from sidecar.tokens.seal import EphemeralSeal
from tests.canary import WORD, canary

BLOCK = 256 << 10
SEALED = BLOCK + 28  # nonce and tag


class Numbers:
    """A seal that shows what it was asked for: the number in front, each byte turned."""

    def __init__(self) -> None:
        self.sealed: list[int] = []

    def seal(self, number: int, data: bytes) -> bytes:
        self.sealed.append(number)
        return b"%4d" % number + bytes(byte ^ 0xFF for byte in data)

    def open(self, number: int, sealed: bytes) -> bytes:
        if sealed[:4] != b"%4d" % number:
            raise SealError("moved")
        return bytes(byte ^ 0xFF for byte in sealed[4:])


def on_disk(spool: Spool) -> bytes:
    """Return what somebody with the descriptor would see."""
    descriptor = spool._file.fileno()
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def text(size: int) -> bytes:
    """Return *size* bytes that say everywhere what they are."""
    return (canary("body").encode() * (size // 11 + 1))[:size]


def test_everything_comes_back_twice(tmp_path: Path) -> None:
    """In order, whatever the sizes of the parts; the second time too."""
    spool = Spool(tmp_path, EphemeralSeal())
    parts = [text(5), text(BLOCK - 5), text(3 * BLOCK + 7), b"", text(1)]
    for part in parts:
        spool.append(part)
    first, second = list(spool.read()), list(spool.read())
    spool.close()

    assert b"".join(first) == b"".join(parts)
    assert second == first
    assert [len(block) for block in first] == [BLOCK] * 4 + [8]


def test_nothing_of_it_is_on_disk_in_plain(tmp_path: Path) -> None:
    """Neither while it is written nor after: what the file holds is sealed from the first byte on."""
    spool = Spool(tmp_path, EphemeralSeal())
    seen = []
    for _ in range(9):
        spool.append(text(BLOCK // 4))
        seen.append(on_disk(spool))
    spool.close()

    assert [len(data) for data in seen] == [SEALED * ((count + 1) // 4) for count in range(9)]
    assert not any(WORD.encode() in data for data in seen)


def test_only_sealed_bytes_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No write call ever gets a plain byte, not even for a moment."""
    spool = Spool(tmp_path, EphemeralSeal())
    written: list[bytes] = []

    class Recorder:
        def __init__(self, file) -> None:
            self.file = file

        def write(self, data) -> int:
            written.append(bytes(data))
            return self.file.write(data)

        def __getattr__(self, name: str):
            return getattr(self.file, name)

    monkeypatch.setattr(spool, "_file", Recorder(spool._file))
    spool.append(text(2 * BLOCK + 99))
    spool.close()

    assert [len(data) for data in written] == [SEALED, SEALED]
    assert not any(WORD.encode() in data for data in written)


def test_it_has_no_name(tmp_path: Path) -> None:
    """Nobody finds it in the directory, and nothing is left when the process is killed."""
    spool = Spool(tmp_path, EphemeralSeal())
    spool.append(text(2 * BLOCK))
    found, links = list(tmp_path.iterdir()), os.fstat(spool._file.fileno()).st_nlink
    spool.close()

    assert found == list(tmp_path.iterdir()) == []
    assert links == 0


def test_it_lies_in_the_given_directory(tmp_path: Path) -> None:
    """Not in the system's, which may be shared or in memory; if it is not there, that is an OSError."""
    spool = Spool(tmp_path, EphemeralSeal())
    device = os.fstat(spool._file.fileno()).st_dev
    spool.close()

    assert device == tmp_path.stat().st_dev
    with pytest.raises(OSError, match="No such file"):
        Spool(tmp_path / "missing", EphemeralSeal())


def test_less_than_a_block_waits_in_memory(tmp_path: Path) -> None:
    """A small rest is not written, and is read all the same."""
    spool = Spool(tmp_path, EphemeralSeal())
    spool.append(text(BLOCK - 1))
    before = on_disk(spool)
    read = list(spool.read())
    spool.append(b"x")
    after = on_disk(spool)
    spool.close()

    assert before == b""
    assert read == [text(BLOCK - 1)]
    assert len(after) == SEALED


def test_blocks_are_numbered(tmp_path: Path) -> None:
    """Each is sealed and opened under its place, so that none can be exchanged."""
    seal = Numbers()
    spool = Spool(tmp_path, seal)
    spool.append(text(3 * BLOCK))
    read = b"".join(spool.read())
    spool.close()

    assert seal.sealed == [0, 1, 2]
    assert read == text(3 * BLOCK)


def test_a_block_that_was_changed_is_not_read(tmp_path: Path) -> None:
    """Who can write to the descriptor cannot change what the upstream gets."""
    spool = Spool(tmp_path, EphemeralSeal())
    spool.append(text(2 * BLOCK))
    first, second = on_disk(spool)[:SEALED], on_disk(spool)[SEALED:]
    os.pwrite(spool._file.fileno(), second + first, 0)

    with pytest.raises(SealError):
        list(spool.read())
    spool.close()


def test_what_is_appended_while_reading_is_not_part_of_it(tmp_path: Path) -> None:
    """A reader gets what there was when it began; the next one gets all."""
    spool = Spool(tmp_path, EphemeralSeal())
    spool.append(text(2 * BLOCK + 5))
    reader = spool.read()
    got = next(reader)
    spool.append(text(BLOCK))
    got += b"".join(reader)
    everything = b"".join(spool.read())
    spool.close()

    assert got == text(2 * BLOCK + 5)
    assert everything == text(2 * BLOCK + 5) + text(BLOCK)


def test_readers_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Two at once, and a writer between them."""
    spool = Spool(tmp_path, Numbers())
    spool.append(b"a" * BLOCK + b"b" * BLOCK)
    one, other = spool.read(), spool.read()
    order = [next(one)[:1], next(other)[:1]]
    spool.append(b"c" * BLOCK)
    order += [next(one)[:1], next(other)[:1]]
    last = [block[:1] for block in spool.read()]
    spool.close()

    assert order == [b"a", b"a", b"b", b"b"]
    assert last == [b"a", b"b", b"c"]


class FullDisk:
    """A file that takes *room* bytes, a few at a time, and then no more."""

    def __init__(self, file, room: int, step: int = 100_000) -> None:
        self.file, self.room, self.step = file, room, step

    def write(self, data) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = min(len(data), self.room, self.step)
        self.room -= count
        return self.file.write(data[:count])

    def __getattr__(self, name: str):
        return getattr(self.file, name)


def test_short_writes_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk may take less than it was given."""
    spool = Spool(tmp_path, EphemeralSeal())
    monkeypatch.setattr(spool, "_file", FullDisk(spool._file, 10 * BLOCK, step=1000))
    spool.append(text(2 * BLOCK))
    read = b"".join(spool.read())
    spool.close()

    assert read == text(2 * BLOCK)


def test_full_disk_is_an_error_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was appended before stays readable, and when there is room again it goes on."""
    spool = Spool(tmp_path, EphemeralSeal())
    full = FullDisk(spool._file, SEALED + 1000)
    monkeypatch.setattr(spool, "_file", full)
    spool.append(text(BLOCK) + b"tail")
    with pytest.raises(OSError, match="No space left"):
        spool.append(text(BLOCK))
    read = b"".join(spool.read())
    full.room = 10 * BLOCK
    spool.append(b"more" * BLOCK)
    again = b"".join(spool.read())
    spool.close()

    assert read == text(BLOCK) + b"tail" + text(BLOCK)
    assert again == read + b"more" * BLOCK


def test_closing_gives_everything_back(tmp_path: Path) -> None:
    """Memory and descriptor; twice does no harm."""
    spool = Spool(tmp_path, EphemeralSeal())
    spool.append(text(BLOCK + 5))
    file = spool._file
    spool.close()
    spool.close()

    assert file.closed
    assert not spool._pending


@settings(deadline=None, max_examples=60)
@given(st.lists(st.binary(max_size=30), max_size=20))
def test_any_parts_come_back(parts: list[bytes]) -> None:
    """With blocks of eight bytes, so that every boundary is met."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool_module, "_BLOCK", 8)
        spool = Spool(Path(tempfile.gettempdir()), EphemeralSeal())
        for part in parts:
            spool.append(part)
        read = list(spool.read())
        size = len(on_disk(spool))
        spool.close()
    whole = b"".join(parts)

    assert b"".join(read) == whole
    assert all(read)
    assert size == len(whole) // 8 * 36
