"""Seals and keys: what goes in comes out, and nothing else does."""

import os
import re
import stat
import string
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import ConfigurationError, SealError, UnknownSeal
from sidecar.exchange.spool import BlockSeal
from sidecar.secret import Secret
from sidecar.tokens import seal
from sidecar.tokens.seal import EphemeralSeal, KeyRing, Keys, load_or_create_key_file, new_key, parse_keys
from tests.canary import canary
from tests.unit.broker_rig import FakeClock

ZERO_KEY = "A" * 43  # 32 zero bytes
OLD, NEW = Secret(new_key()), Secret(new_key())
RING = KeyRing([NEW, OLD])
NAME = "auth-sidecar:token:1"


@given(name=st.text(st.characters(codec="utf-8")), data=st.binary(max_size=300))
def test_what_is_sealed_opens_under_its_name(name: str, data: bytes) -> None:
    """Any bytes come back under any name, and do not show in between."""
    sealed = RING.seal(name, data)
    assert RING.open(name, sealed) == data
    assert len(data) < 4 or data not in sealed


def test_format_is_kept() -> None:
    """A record sealed by the first release opens for ever: version, key id, nonce, AES-256-GCM over all of them."""
    sealed = bytes.fromhex("01b83168a9d4ce61adef98cfcec0e2cfbbf925eda462f5edaf5abcf761e7565cf70a3b40ebcf680ffa")
    assert KeyRing([Secret(ZERO_KEY)]).open(NAME, sealed) == b"data"


def test_same_data_never_looks_the_same() -> None:
    """The nonce is random: nobody sees that a token did not change."""
    one, two = RING.seal(NAME, b"data"), RING.seal(NAME, b"data")
    assert one[:9] == two[:9]
    assert one[9:21] != two[9:21]
    assert one[21:] != two[21:]


def test_a_moved_record_does_not_open() -> None:
    """The name is part of the seal: one credential's record is of no use under another's key."""
    with pytest.raises(SealError, match="moved from another name"):
        RING.open(NAME + "x", RING.seal(NAME, b"data"))


@given(position=st.integers(0, 40), bit=st.integers(0, 7))
def test_a_damaged_record_does_not_open(position: int, bit: int) -> None:
    """Not one bit can change, wherever it is."""
    sealed = bytearray(RING.seal(NAME, b"data"))
    sealed[position] ^= 1 << bit
    with pytest.raises(SealError):
        RING.open(NAME, bytes(sealed))


@given(length=st.integers(0, 40))
def test_a_cut_record_does_not_open(length: int) -> None:
    """A record that was cut is an error of ours, never a crash."""
    with pytest.raises(SealError):
        RING.open(NAME, RING.seal(NAME, b"data")[:length])


def test_an_unknown_version_says_so() -> None:
    """A record of a later release is told from a damaged one."""
    with pytest.raises(SealError, match="unknown version"):
        RING.open(NAME, b"\x02" + RING.seal(NAME, b"data")[1:])


def test_an_unknown_key_says_so() -> None:
    """A record sealed with a key we lack is told from a damaged one, by the key's id, not the key."""
    with pytest.raises(SealError, match="key we do not have") as caught:
        KeyRing([OLD]).open(NAME, KeyRing([NEW]).seal(NAME, b"data"))
    assert NEW.reveal() not in str(caught.value)


def test_newest_key_seals_and_every_key_opens() -> None:
    """Rotation: records of the old key still open, new ones are sealed with the first."""
    assert RING.open(NAME, KeyRing([OLD]).seal(NAME, b"data")) == b"data"
    assert KeyRing([NEW]).open(NAME, RING.seal(NAME, b"data")) == b"data"


def test_a_ring_needs_a_key() -> None:
    """No key at all is a mistake of the configuration."""
    with pytest.raises(ConfigurationError, match="no store key"):
        KeyRing([])
    with pytest.raises(ConfigurationError, match="no store key"):
        parse_keys([Secret("# nothing here\n\n")])


def test_a_ring_does_not_show_its_keys() -> None:
    """Neither the ring nor anything it holds prints a key."""
    assert NEW.reveal() not in f"{RING!r} {vars(RING)!r}"


def test_a_new_key_fits_a_key_file() -> None:
    """What is printed is one line of 32 random bytes that is read back."""
    key = new_key()
    assert key != new_key()
    assert set(key) <= set(string.ascii_letters + string.digits + "-_")
    assert parse_keys([Secret(key)]).open(NAME, parse_keys([Secret(f"{key}=")]).seal(NAME, b"data")) == b"data"


def test_keys_are_read_in_order() -> None:
    """Newest first: the order of the sources, then of their lines; blanks, comments and line ends do not count."""
    keys = [new_key() for _ in range(3)]
    ring = parse_keys([Secret(f"\n# first\r\n  {keys[0]}  \r\n{keys[1]}\n"), Secret(keys[2])])
    assert KeyRing([Secret(keys[0])]).open(NAME, ring.seal(NAME, b"data")) == b"data"
    for key in keys:
        assert ring.open(NAME, KeyRing([Secret(key)]).seal(NAME, b"data")) == b"data"


@pytest.mark.parametrize(
    "bad", [canary("key"), "A" * 42, "A" * 44, "A" * 43 + "==", "+" * 43, "ä" * 43, "A" * 20 + " " + "A" * 22]
)
def test_a_bad_key_is_named_by_its_place(bad: str) -> None:
    """The message says where the key is, never what it is."""
    with pytest.raises(ConfigurationError, match=r"^store\.keys\.1: line 3 is not a store key") as caught:
        parse_keys([OLD, Secret(f"# comment\n{new_key()}\n{bad}")])
    assert bad not in str(caught.value)
    with pytest.raises(ConfigurationError, match=r"^store key 2 is not a store key"):
        KeyRing([OLD, Secret(bad)])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_key_file_is_made_once(tmp_path: Path) -> None:
    """The first call writes a key that only we can read, later ones find it; nothing else is left."""
    path = tmp_path / "a" / "b" / "store.key"
    umask = os.umask(0)
    try:
        text = load_or_create_key_file(path)
    finally:
        os.umask(umask)
    assert load_or_create_key_file(path) == text
    assert isinstance(parse_keys([text]), KeyRing)
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert list(path.parent.iterdir()) == [path]


def test_processes_agree_on_one_key(tmp_path: Path) -> None:
    """Whoever starts at the same moment, all use the key of the first."""
    for attempt in range(20):
        path, together = tmp_path / f"{attempt}.key", Barrier(8)

        def start(path: Path = path, together: Barrier = together) -> str:
            together.wait()
            return load_or_create_key_file(path).reveal()

        with ThreadPoolExecutor(8) as threads:
            assert len({future.result() for future in [threads.submit(start) for _ in range(8)]}) == 1


def test_a_key_written_meanwhile_counts(tmp_path: Path) -> None:
    """A key that appears between the look and the write is not replaced."""
    path = tmp_path / "store.key"
    path.write_text(OLD.reveal())
    seal._create_key_file(path)
    assert path.read_text() == OLD.reveal()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o644])
def test_a_key_file_open_to_others_is_refused(tmp_path: Path, bits: int) -> None:
    """A key that others can read is theirs too; the message says the remedy."""
    path = tmp_path / "store.key"
    path.write_text(OLD.reveal())
    path.chmod(bits)
    with pytest.raises(ConfigurationError, match="chmod 600") as caught:
        load_or_create_key_file(path)
    assert OLD.reveal() not in str(caught.value)


def test_a_key_file_that_cannot_be_used_is_a_configuration_error(tmp_path: Path) -> None:
    """A directory, a file in place of its directory, bytes that are no text: one line, no traceback."""
    (tmp_path / "file").write_bytes(b"\xff")
    (tmp_path / "file").chmod(0o600)
    for path, reason in ((tmp_path, "directory"), (tmp_path / "file" / "key", "exists"), (tmp_path / "file", "UTF")):
        with pytest.raises(ConfigurationError, match=f"^key file .*{reason}"):
            load_or_create_key_file(path)


def test_key_file_reading_is_bounded(tmp_path: Path) -> None:
    """A file that is no key file is not read whole."""
    path = tmp_path / "store.key"
    path.write_text("x" * (1 << 20))
    path.chmod(0o600)
    assert len(load_or_create_key_file(path).reveal()) == 64 << 10


@given(number=st.integers(0, 2**40), data=st.binary(max_size=300))
def test_a_block_opens_under_its_number(number: int, data: bytes) -> None:
    """A block of the spool comes back under its own number only, and only from its own spool."""
    blocks: BlockSeal = EphemeralSeal()
    sealed = blocks.seal(number, data)
    assert blocks.open(number, sealed) == data
    assert len(data) < 4 or data not in sealed
    with pytest.raises(SealError, match=f"block {number + 1} "):
        blocks.open(number + 1, sealed)
    with pytest.raises(SealError):
        EphemeralSeal().open(number, sealed)


@given(length=st.integers(0, 31))
def test_a_cut_block_does_not_open(length: int) -> None:
    """A block cut anywhere is an error of ours, never a crash."""
    blocks = EphemeralSeal()
    with pytest.raises(SealError):
        blocks.open(7, blocks.seal(7, b"data")[:length])


def test_a_block_sealed_again_looks_different() -> None:
    """A number may be used again: the nonce is not made of it."""
    blocks = EphemeralSeal()
    assert blocks.seal(0, b"data")[:12] != blocks.seal(0, b"data")[:12]


# the keys of a running process


class Files:
    """Key files, the ring that is read of them, and how often it was."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.file = folder / "keys"
        self.file.write_text(OLD.reveal())
        self.reads = 0
        self.keys = Keys(self._read, self.clock, [self.file])

    def change(self, *keys: Secret) -> None:
        self.file.write_text("\n".join(key.reveal() for key in keys))

    def _read(self) -> KeyRing:
        self.reads += 1
        return parse_keys([Secret(self.file.read_text())])


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_keys_are_read_when_their_file_changed(files: Files) -> None:
    """A newest key that was put first seals what is sealed a second later; records of the one before still open."""
    old = files.keys.seal(NAME, b"data")
    files.change(NEW, OLD)
    assert KeyRing([OLD]).open(NAME, files.keys.seal(NAME, b"data")) == b"data"
    files.clock.mono += 1
    assert KeyRing([NEW]).open(NAME, files.keys.seal(NAME, b"data")) == b"data"
    assert files.keys.place(old) == RING.place(old)
    assert files.keys.open(NAME, old) == b"data"


def test_a_place_is_told_by_the_files_of_this_moment(files: Files) -> None:
    """Who has just put a new key first is not told that the old one is the newest, and takes it out."""
    old = files.keys.seal(NAME, b"data")
    assert files.keys.place(old)[0] == 1
    files.change(NEW, OLD)
    assert files.keys.place(old)[0] == 2


def test_keys_that_did_not_change_are_not_read(files: Files) -> None:
    """However often they are used: a thousand credentials share them."""
    sealed = files.keys.seal(NAME, b"data")
    for _ in range(10):
        files.clock.mono += 10
        files.keys.open(NAME, files.keys.seal(NAME, b"data"))
    with pytest.raises(UnknownSeal):
        files.keys.open(NAME, KeyRing([NEW]).seal(NAME, b"data"))
    assert files.reads == 1
    files.change(NEW, OLD)
    files.clock.mono += 10
    for _ in range(10):
        files.keys.open(NAME, sealed)
    assert files.reads == 2


def test_the_files_are_looked_at_once_a_second(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at each use."""
    looks = 0
    stat = Path.stat

    def counted(self: Path, **options: bool) -> os.stat_result:
        nonlocal looks
        looks += 1
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", counted)
    files.clock.mono += 1
    for _ in range(10):
        files.keys.seal(NAME, b"data")
    assert looks == 1
    files.clock.mono += 0.9
    files.keys.seal(NAME, b"data")
    assert looks == 1
    files.clock.mono += 0.1
    files.keys.seal(NAME, b"data")
    assert looks == 2


def test_a_record_that_no_key_opens_makes_them_look_at_once(files: Files) -> None:
    """Another instance may have the new key first."""
    files.change(NEW, OLD)
    assert files.keys.open(NAME, KeyRing([NEW]).seal(NAME, b"data")) == b"data"
    assert files.reads == 2


def test_a_damaged_record_is_no_reason_to_look(files: Files) -> None:
    """Another key would not help."""
    files.change(NEW, OLD)
    with pytest.raises(SealError):
        files.keys.open(NAME, files.keys.seal(NAME, b"data")[:-1])
    assert files.reads == 1


@pytest.mark.parametrize("half", ["", "no key", None], ids=["empty", "rubbish", "gone"])
def test_keys_that_cannot_be_read_leave_the_old(files: Files, half: str | None) -> None:
    """Half-way through a change; the rest of it is seen at a later look, whenever it comes."""
    if half is None:
        files.file.unlink()
        files.keys._read = _missing
    else:
        files.file.write_text(half)
    files.clock.mono += 1
    assert KeyRing([OLD]).open(NAME, files.keys.seal(NAME, b"data")) == b"data"
    files.keys._read = files._read
    files.change(NEW, OLD)
    files.clock.mono += 1
    assert KeyRing([NEW]).open(NAME, files.keys.seal(NAME, b"data")) == b"data"


def _missing() -> KeyRing:
    raise ConfigurationError("no such file")


def test_the_first_read_of_keys_must_do(tmp_path: Path) -> None:
    """A process does not start with keys that cannot be read."""
    with pytest.raises(ConfigurationError):
        Keys(_missing, FakeClock(), [tmp_path / "keys"])


def test_a_place_names_the_key(files: Files) -> None:
    """1 is the newest; a key that is none of ours has an id and no place."""
    ring = KeyRing([NEW, OLD])
    newest, older = (KeyRing([key]).seal(NAME, b"data") for key in (NEW, OLD))
    foreign = KeyRing([Secret(new_key())]).seal(NAME, b"data")
    assert ring.place(newest) == (1, newest[1:9].hex())
    assert ring.place(older) == (2, older[1:9].hex())
    assert ring.place(foreign) == (None, foreign[1:9].hex())
    assert files.keys.place(older) == (1, older[1:9].hex())


def test_what_stands_for_a_text_is_the_same_wherever_the_keys_are() -> None:
    """One for each key, newest first, so that what an older key made is still known; and none without the key."""
    old, new = Secret(new_key()), Secret(new_key())
    both = KeyRing([new, old]).tags("plm")
    assert both == (*KeyRing([new]).tags("plm"), *KeyRing([old]).tags("plm"))
    assert len(set(both)) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", tag) for tag in both)
    assert KeyRing([new]).tags("erp") != KeyRing([new]).tags("plm")
