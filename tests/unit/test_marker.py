"""What a machine notes of a refresh token that may be presented once: real files."""

import os
import stat
from pathlib import Path

import pytest

from sidecar.errors import StoreError
from sidecar.secret import Secret
from sidecar.tokens.marker import Marker
from tests.canary import canary, leaks

FIRST = Secret(canary("first"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "presented"


def mark_of(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


async def test_what_was_noted_is_there_after_a_restart(folder: Path) -> None:
    """The newest generation, in a folder that only this user can read; the token is not in it, nor in its name."""
    assert await Marker(folder, FIRST).read() == 0
    assert not folder.exists()
    marker = Marker(folder, FIRST)
    await marker.write(7)
    await marker.write(12)
    assert await marker.read() == await Marker(folder, FIRST).read() == 12
    assert mark_of(folder).read_text() == "12\n"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(mark_of(folder).stat().st_mode) == 0o600
    assert leaks(folder.parent) == []
    assert "CANARY" not in mark_of(folder).name


async def test_each_first_token_has_a_mark_of_its_own(folder: Path) -> None:
    """A new login begins anew."""
    await Marker(folder, FIRST).write(7)
    assert await Marker(folder, Secret(canary("other"))).read() == 0


async def test_a_mark_only_grows(folder: Path) -> None:
    """An older generation, or the same, is no news; nothing is written for it."""
    marker = Marker(folder, FIRST)
    await marker.write(7)
    before = mark_of(folder).stat()
    await marker.write(7)
    await marker.write(3)
    other = Marker(folder, FIRST)
    await other.write(6)
    assert mark_of(folder).stat().st_mtime_ns == before.st_mtime_ns
    assert mark_of(folder).stat().st_ino == before.st_ino
    assert await marker.read() == await other.read() == 7


async def test_a_mark_is_that_of_every_process_of_the_machine(folder: Path) -> None:
    """What another one noted, or took back, is seen; and no slower one writes a lower number over it."""
    marker, other = Marker(folder, FIRST), Marker(folder, FIRST)
    await marker.write(7)
    assert await other.read() == 7
    await other.write(99)
    await marker.write(8)
    assert await marker.read() == 99
    await marker.forget()
    assert await other.read() == 0


async def test_what_was_not_taken_is_forgotten(folder: Path) -> None:
    """In memory and on the disk; twice does no harm, and it can be noted again."""
    marker = Marker(folder, FIRST)
    await marker.write(7)
    await marker.forget()
    await marker.forget()
    assert await marker.read() == await Marker(folder, FIRST).read() == 0
    assert list(folder.iterdir()) == []
    await marker.write(3)
    assert await Marker(folder, FIRST).read() == 3


async def test_a_power_cut_leaves_the_old_mark_or_the_new(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new one is on the disk before it has its name, and its name before the token is presented."""
    marker = Marker(folder, FIRST)
    await marker.write(1)
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        steps.append("fsync folder" if target == folder else f"fsync {target.read_text().strip()}")
        fsync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        assert self.parent == folder
        steps.append("name")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    await marker.write(2)
    assert steps == ["fsync 2", "name", "fsync folder"]


async def test_a_mark_leaves_no_file_open(folder: Path) -> None:
    """Each renewal writes one."""
    marker = Marker(folder, FIRST)
    await marker.write(1)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for generation in range(2, 20):
        await marker.write(generation)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 5


async def test_a_mark_that_could_not_be_written_is_not_known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk: the error names the file and what is expected, and the next time it is tried again."""
    marker = Marker(folder, FIRST)
    await marker.write(1)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match=r"No space left on device; expected a state_dir that this user can write"):
            await marker.write(2)
    assert await marker.read() == 1
    assert mark_of(folder).read_text() == "1\n"
    await marker.write(2)
    assert await Marker(folder, FIRST).read() == 2


async def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    """A volume that is not mounted."""
    (tmp_path / "presented").symlink_to(tmp_path / "not-mounted")
    marker = Marker(tmp_path / "presented", FIRST)
    with pytest.raises(StoreError, match=str(tmp_path)):
        await marker.write(1)


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\xff\xfe", b"7.5"], ids=repr)
async def test_a_mark_that_cannot_be_read_is_an_error(folder: Path, content: bytes) -> None:
    """It may say that a token is spent; the content is not told."""
    await Marker(folder, FIRST).write(7)
    mark_of(folder).write_bytes(content)
    marker = Marker(folder, FIRST)
    with pytest.raises(StoreError, match=r": not a number; expected a number, the newest generation seen$") as caught:
        await marker.read()
    assert mark_of(folder).name in str(caught.value)
    with pytest.raises(StoreError):
        await marker.write(8)
    assert mark_of(folder).read_bytes() == content


async def test_a_mark_that_cannot_be_opened_is_an_error(folder: Path) -> None:
    """It is there: that is not the same as none."""
    await Marker(folder, FIRST).write(7)
    mark = mark_of(folder)
    mark.unlink()
    mark.mkdir()
    marker = Marker(folder, FIRST)
    with pytest.raises(StoreError, match="Is a directory"):
        await marker.read()
    with pytest.raises(StoreError, match="Is a directory"):
        await marker.forget()
