"""Records: what one instance stores is what every other reads, on whatever clock, through whatever happened to it."""

import asyncio
import math
import random

from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import SealError, StoreError
from sidecar.policy.lifetime import due_at, usable
from sidecar.secret import Secret
from sidecar.settings.values import Margin
from sidecar.tokens.memory import MemoryStore
from sidecar.tokens.record import Presented, Record, Rejection
from sidecar.tokens.seal import KeyRing, new_key
from sidecar.tokens.sealed import SealedRecord, Unreadable
from sidecar.tokens.store import store_key
from sidecar.tokens.token import Token
from tests.canary import WORD, canary
from tests.properties.virtual import WALL, VirtualClock, VirtualLoop

IDENTITY = canary("client-id")
KEY = store_key(IDENTITY)
OLD, MIDDLE, NEW = (Secret(new_key()) for _ in range(3))
TEXTS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=20)
SECRETS = TEXTS.map(lambda text: Secret(canary(text)))
MOMENTS = st.integers(-(10**6), 10**6).map(lambda seconds: WALL + seconds)
GENERATIONS = st.integers(1, 1000)


def maybe[T](values: st.SearchStrategy[T]) -> st.SearchStrategy[T | None]:
    return st.one_of(st.none(), values)


TOKENS = st.builds(
    lambda issued_at, lifetime, **rest: Token(issued_at=issued_at, expires_at=issued_at + lifetime, **rest),
    issued_at=MOMENTS,
    lifetime=st.integers(1, 10**7),
    values=st.dictionaries(TEXTS, SECRETS, min_size=1, max_size=3),
    granted=GENERATIONS,
    scope=maybe(TEXTS),
    missing=TEXTS,
    source=TEXTS,
    how=TEXTS,
    trigger=TEXTS,
    by=TEXTS,
)
RECORDS = st.builds(
    Record,
    generation=GENERATIONS,
    token=maybe(TOKENS),
    kept=maybe(SECRETS),
    rotates=maybe(st.booleans()),
    claimed=st.booleans(),
    revoked=st.booleans(),
    presented=maybe(st.builds(Presented, by=TEXTS, lost=st.booleans())),
    forced_at=maybe(MOMENTS),
    not_before=maybe(MOMENTS),
    rejection=maybe(
        st.builds(
            Rejection,
            at=MOMENTS,
            secrets=TEXTS,
            salt=TEXTS,
            error=TEXTS,
            message=TEXTS,
            count=GENERATIONS,
            until=maybe(MOMENTS),
            skew=st.floats(-1e6, 1e6),
        )
    ),
)
SKEWS = st.integers(-(10**5), 10**5)


class Skewed(MemoryStore):
    """The store as a machine sees it whose clock is *offset* seconds behind."""

    ahead = 0.0

    @property
    def offset(self) -> float:
        return self.ahead


def sealed_record(store: MemoryStore, ring: KeyRing) -> SealedRecord:
    return SealedRecord(lambda: IDENTITY, store, ring, owner="test")  # type: ignore[arg-type]


def on_a_loop(runner: asyncio.Runner) -> Skewed:
    return Skewed(VirtualClock(runner.get_loop(), random.Random(1)))  # type: ignore[arg-type]


@given(RECORDS, SKEWS, SKEWS)
def test_a_record_means_the_same_on_every_clock(record: Record, writer: int, reader: int) -> None:
    """All that is in it; the times move by as much as the clocks differ."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        store = on_a_loop(runner)
        both = sealed_record(store, KeyRing([NEW]))
        store.ahead = writer
        assert runner.run(both.write(record, after=0)) is True
        store.ahead = reader
        found = runner.run(both.read())

    assert found == record.moved(writer - reader)
    if record.token is not None:
        assert isinstance(found, Record)
        assert found.token is not None
        assert found.token.lifetime == record.token.lifetime


@given(RECORDS, st.integers(0, 400), st.integers(1, 255), st.integers(0, 2))
def test_a_changed_record_is_told_from_none(record: Record, position: int, flip: int, kind: int) -> None:
    """Any byte of it, its number, or its name: never another record, never none, never a secret in what is said."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        store, ring = on_a_loop(runner), KeyRing([NEW])
        generation, sealed = record.generation, ring.seal(KEY, record.encode())
        if kind == 0:
            place = position % len(sealed)
            sealed = sealed[:place] + bytes([sealed[place] ^ flip]) + sealed[place + 1 :]
        elif kind == 1:
            generation += flip
        else:
            sealed = ring.seal(KEY + "x", record.encode())
        runner.run(store.write(KEY, sealed, generation, after=0))
        found = runner.run(sealed_record(store, ring).read())

    assert isinstance(found, Unreadable)
    assert found.generation == generation
    assert found.foreign == (kind == 0 and place < 9)  # version and key id come first
    assert WORD not in repr(found)


@given(
    st.lists(st.sampled_from([OLD, MIDDLE, NEW]), min_size=1, max_size=3, unique_by=Secret.reveal),
    st.binary(max_size=40),
)
def test_what_any_key_sealed_a_ring_with_that_key_opens(keys: list[Secret], data: bytes) -> None:
    """Whatever the order of the keys; a ring without it knows that the record is not its own."""
    ring, newest = KeyRing(keys), KeyRing(keys[:1])
    for key in (OLD, MIDDLE, NEW):
        sealed = KeyRing([key]).seal(KEY, data)
        if key in keys:
            assert ring.open(KEY, sealed) == data
    assert newest.open(KEY, ring.seal(KEY, data)) == data


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_nothing_but_our_errors_comes_of_any_bytes(sealed: bytes, plain: bytes) -> None:
    """Of a seal and of a record in clear."""
    ring = KeyRing([NEW])
    for read in (lambda: ring.open(KEY, sealed), lambda: Record.decode(ring.open(KEY, ring.seal(KEY, plain)))):
        try:
            read()
        except (SealError, StoreError):
            continue
        raise AssertionError("random bytes were taken for a record")


@given(
    lifetime=st.floats(1, 10**7),
    share=st.floats(0, 1),
    jitter=st.floats(0, 1, exclude_max=True),
    seconds=st.one_of(st.none(), st.floats(0, 10**8)),
)
def test_a_token_is_due_while_it_can_still_be_used(
    lifetime: float, share: float, jitter: float, seconds: float | None
) -> None:
    """Whatever the margin, and not before half of its life; a margin that was set leaves half of itself at least."""
    margin = Margin(None, seconds) if seconds is not None else Margin(share, None)
    of = margin.of(lifetime)
    due = due_at(WALL + lifetime, of, jitter)

    assert WALL + lifetime / 2 <= due or math.isclose(due, WALL + lifetime / 2, rel_tol=1e-9)
    assert due <= WALL + lifetime - of / 2
    if of > 2 * min(5.0, 0.05 * lifetime) + 0.001:
        assert usable(due, WALL, WALL + lifetime)
