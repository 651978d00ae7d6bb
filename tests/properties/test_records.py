"""Records: what one instance stores is what every other reads, on whatever clock, through whatever happened to it."""

import asyncio
import math
import random

from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import SealError, StoreError
from sidecar.events import Event
from sidecar.policy.lifetime import due_at, usable
from sidecar.secret import Secret
from sidecar.settings.values import Margin
from sidecar.tokens.keys import Keys
from sidecar.tokens.memory import MemoryStore
from sidecar.tokens.record import Record
from sidecar.tokens.seal import KeyRing, new_key
from sidecar.tokens.store import MAX_GENERATION, store_key
from sidecar.tokens.token import Revoked, Token
from tests.canary import WORD, canary
from tests.properties.issuers import IDENTITY
from tests.properties.virtual import WALL, VirtualClock, VirtualLoop

KEY = store_key(IDENTITY)
OLD, MIDDLE, NEW = (Secret(new_key()) for _ in range(3))
TEXTS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=20)
TOKENS = st.builds(
    lambda issued, lifetime, forced, **rest: Token(
        issued_at=WALL + issued,
        expires_at=WALL + issued + lifetime,
        forced_at=None if forced is None else WALL + forced,
        **rest,
    ),
    issued=st.integers(-(10**6), 10**6),
    lifetime=st.integers(1, 10**7),
    forced=st.one_of(st.none(), st.integers(-(10**6), 10**6)),
    access_token=TEXTS.map(lambda text: Secret(canary(text))),
    generation=st.integers(1, 1000),
    refresh_token=st.one_of(st.none(), TEXTS.map(lambda text: Secret(canary(text)))),
    scope=st.one_of(st.none(), TEXTS),
    lifetime_source=TEXTS,
    grant=TEXTS,
    trigger=TEXTS,
    refused=st.booleans(),
    by=TEXTS,
)
SKEWS = st.integers(-(10**5), 10**5)


class Skewed(MemoryStore):
    """The store as a machine sees it whose clock is *offset* seconds behind."""

    ahead = 0.0

    @property
    def offset(self) -> float:
        return self.ahead


def record(store: MemoryStore, ring: KeyRing, clock: VirtualClock, events: list[Event]) -> Record:
    return Record("plm", IDENTITY, store, Keys(lambda: ring, clock), owner="test", emit=events.append)


def on_a_loop(loop: VirtualLoop) -> tuple[Skewed, VirtualClock]:
    clock = VirtualClock(loop, random.Random(1))
    return Skewed(clock), clock


@given(TOKENS, SKEWS, SKEWS)
def test_a_record_means_the_same_on_every_clock(token: Token, writer: int, reader: int) -> None:
    """Lifetime and all the rest; the times move by as much as the clocks differ."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        store, clock = on_a_loop(runner.get_loop())  # type: ignore[arg-type]
        events: list[Event] = []
        both = record(store, KeyRing([NEW]), clock, events)
        store.ahead = writer
        assert runner.run(both.write(token)) is True
        store.ahead = reader
        found = runner.run(both.read()).token

    assert found == token.moved(writer - reader)
    assert found is not None
    assert found.lifetime == token.lifetime
    assert events == []


@given(TOKENS, st.integers(0, 400), st.integers(1, 255), st.integers(0, 2))
def test_a_changed_record_is_a_miss_that_is_told(token: Token, position: int, flip: int, kind: int) -> None:
    """Any byte of it, its number, or its name: never another token, never an exception, never a secret in the log."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        store, clock = on_a_loop(runner.get_loop())  # type: ignore[arg-type]
        events: list[Event] = []
        ring = KeyRing([NEW])
        generation, sealed = token.generation, ring.seal(KEY, token.encode())
        if kind == 0:
            place = position % len(sealed)
            sealed = sealed[:place] + bytes([sealed[place] ^ flip]) + sealed[place + 1 :]
        elif kind == 1:
            generation += flip
        else:
            sealed = ring.seal(KEY + "x", token.encode())
        runner.run(store.write(KEY, generation, sealed))
        found = runner.run(record(store, ring, clock, events).read())

    assert found.token is None
    assert not found.broken
    assert found.foreign or found.damaged
    assert len(events) == 1
    assert WORD not in repr(events)


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


@given(st.integers(1, MAX_GENERATION))
def test_a_mark_is_no_token(generation: int) -> None:
    """What says revoked comes back as that, whatever its number."""
    assert Token.decode(Revoked(generation).encode()) == Revoked(generation)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_nothing_but_our_errors_comes_of_any_bytes(sealed: bytes, plain: bytes) -> None:
    """Of a seal and of a record in clear."""
    ring = KeyRing([NEW])
    for read in (lambda: ring.open(KEY, sealed), lambda: Token.decode(ring.open(KEY, ring.seal(KEY, plain)))):
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
