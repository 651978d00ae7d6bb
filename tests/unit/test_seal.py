"""Seals, keys and the record of a token: what goes in comes out, and nothing else does."""

import base64
import os
import stat
import string
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import ConfigurationError, SealError, StoreError
from sidecar.exchange.spool import BlockSeal
from sidecar.secret import Secret
from sidecar.tokens import seal
from sidecar.tokens.seal import EphemeralSeal, KeyRing, load_or_create_key_file, new_key, parse_keys
from sidecar.tokens.store import MAX_GENERATION
from sidecar.tokens.token import Token
from tests.canary import WORD, canary

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


TOKEN = Token(
    access_token=Secret(canary("access")),
    issued_at=1_700_000_000.0,
    expires_at=1_700_000_300.0,
    generation=7,
    refresh_token=Secret(canary("refresh")),
    scope="a b",
    lifetime_source="expires_in",
    grant="client_credentials",
    trigger="due",
    forced_at=1_600_000_000.5,
    refused=True,
)
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.isprintable)
TIMES = st.floats(0, 1e12)


@given(
    token=st.builds(
        lambda times, **fields: Token(issued_at=min(times), expires_at=max(times), **fields),
        st.sets(TIMES, min_size=2, max_size=2),
        access_token=TEXTS.map(Secret),
        generation=st.integers(1, MAX_GENERATION),
        refresh_token=st.none() | TEXTS.map(Secret),
        scope=st.none() | TEXTS,
        lifetime_source=TEXTS,
        grant=TEXTS,
        trigger=TEXTS,
        forced_at=st.none() | TIMES,
        refused=st.booleans(),
    )
)
def test_a_record_comes_back_as_it_was(token: Token) -> None:
    """Every token that can be granted survives the store, to the last bit of its times."""
    assert Token.decode(token.encode()) == token


def test_record_format_is_kept() -> None:
    """A record of the first release is read for ever; what a later one adds is ignored."""
    plain = (
        b'{"schema":1,"access_token":"CANARY-access","issued_at":1700000000,"expires_at":1.7000003e9,"generation":7,'
        b'"refresh_token":"CANARY-refresh","scope":"a b","lifetime_source":"expires_in","grant":"client_credentials",'
        b'"trigger":"due","forced_at":1600000000.5,"refused":true,"later":{}}'
    )
    assert Token.decode(plain) == TOKEN
    assert Token.decode(TOKEN.encode()) == TOKEN


@pytest.mark.parametrize(
    ("field", "texts"),
    [
        ("schema", ["0", "2", '"1"', "null"]),
        ("access_token", ["null", '""', "1", '["a"]', '"a\\r\\nb"', '"a\\u0000"', '"\\ud800"']),
        ("issued_at", ["null", "-1", "true", '"1"', "1e999", "NaN", "1" + "0" * 400, "1700000300"]),
        ("expires_at", ["null", "1699999999", "1700000000", "Infinity", "1e999", "[]"]),
        ("generation", ["null", "0", "-1", "1.0", "true", str(MAX_GENERATION + 1), '"7"']),
        ("refresh_token", ['""', "7", "false", '"a\\nb"']),
        ("scope", ["7", '"a\\nb"']),
        ("lifetime_source", ["null", '""']),
        ("grant", ["null", "{}"]),
        ("trigger", ["null", "1"]),
        ("forced_at", ['"now"', "-1", "NaN", "1e999"]),
        ("refused", ["null", "0", '"no"']),
    ],
)
def test_a_record_of_wrong_types_or_bounds_is_refused(field: str, texts: list[str]) -> None:
    """Whoever could write a record cannot make us use what we would never write; the error shows no content."""
    import json

    plain = json.loads(TOKEN.encode())
    for text in texts:
        rest = json.dumps({name: value for name, value in plain.items() if name != field})
        with pytest.raises(StoreError) as caught:
            Token.decode(f'{rest[:-1]}, "{field}": {text}}}'.encode())
        assert WORD not in str(caught.value)


@given(data=st.binary() | st.sampled_from([b"[1]", b"7", b'"x"', b"[" * 100_000, b"{}", b"null"]))
def test_anything_else_is_no_record(data: bytes) -> None:
    """Whatever bytes come out of a store, the only error is StoreError."""
    with pytest.raises(StoreError):
        Token.decode(data)


def test_a_token_does_not_show_its_secrets() -> None:
    """Printing a token gives neither of its two secrets away."""
    assert WORD not in f"{TOKEN} {TOKEN!r}"


def test_lifetime_is_what_was_granted() -> None:
    """The lifetime counts from the request for the token."""
    assert TOKEN.lifetime == 300.0


def test_a_token_without_an_end_is_not_written() -> None:
    """What could not be read back is not encoded."""
    with pytest.raises(ValueError, match="JSON"):
        replace(TOKEN, expires_at=float("inf")).encode()


def test_the_newest_key_makes_the_key_of_fingerprints() -> None:
    """Those who have it agree, whatever older keys they have, and it gives nothing of the key away."""
    newest, older = Secret(new_key()), Secret(new_key())
    made = KeyRing([newest]).fingerprint_key

    assert KeyRing([newest, older]).fingerprint_key == made
    assert KeyRing([older, newest]).fingerprint_key != made
    assert made not in base64.urlsafe_b64decode(newest.reveal() + "=")
    assert KeyRing([newest]).seal("name", b"")[1:9] not in made
