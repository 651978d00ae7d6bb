"""The record of a credential: what goes in comes out, a newer version is told from damage, and no error shows it."""

import json
import math
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import SealError, StoreError, UnknownSeal
from sidecar.secret import Secret
from sidecar.tokens.record import Presented, Record, Rejection, to_former
from sidecar.tokens.store import MAX_GENERATION
from sidecar.tokens.token import Token
from tests.canary import WORD, canary

TOKEN = Token(
    values={"access_token": Secret(canary("access"))},
    issued_at=1_700_000_000.0,
    expires_at=1_700_000_300.0,
    granted=7,
    scope="a b",
    missing="c",
    source="expires_in",
    how="client_credentials",
    trigger="due",
    by="host/1",
)
REJECTION = Rejection(
    at=1_700_000_001.5,
    secrets=canary("fingerprint"),
    salt="salt",
    error="invalid_client",
    message="the issuer said no",
    count=3,
    until=1_700_000_900.0,
    skew=-7.5,
)
RECORD = Record(
    generation=9,
    token=TOKEN,
    kept=Secret(canary("refresh")),
    rotates=True,
    claimed=True,
    revoked=False,
    presented=Presented(by="host/1", lost=True),
    forced_at=1_600_000_000.5,
    not_before=1_700_000_100.0,
    rejection=REJECTION,
)
FORMAT = (
    b'{"schema":2,"generation":9,"token":{"values":{"access_token":"CANARY-access"},"issued_at":1700000000.0,'
    b'"expires_at":1700000300.0,"granted":7,"scope":"a b","missing":"c","source":"expires_in",'
    b'"how":"client_credentials","trigger":"due","by":"host/1"},"kept":"CANARY-refresh","rotates":true,"claimed":true,'
    b'"revoked":false,"presented":{"by":"host/1","lost":true},"forced_at":1600000000.5,"not_before":1700000100.0,'
    b'"rejection":{"at":1700000001.5,"secrets":"CANARY-fingerprint","salt":"salt","error":"invalid_client",'
    b'"message":"the issuer said no","count":3,"until":1700000900.0,"skew":-7.5}}'
)
FORMER = (
    b'{"schema":1,"access_token":"CANARY-access","issued_at":1700000000,"expires_at":1.7000003e9,"generation":9,'
    b'"refresh_token":"CANARY-refresh","scope":"a b","lifetime_source":"expires_in","grant":"client_credentials",'
    b'"trigger":"due","forced_at":1600000000.5,"refused":true,"by":"host/1","access_generation":7,"later":{}}'
)

TEXTS = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.isprintable)
SECRETS = TEXTS.map(Secret)
TIMES = st.floats(0, 1e12)
COUNTS = st.integers(1, MAX_GENERATION)


def _tokens() -> st.SearchStrategy[Token]:
    return st.builds(
        lambda times, **values: Token(issued_at=min(times), expires_at=max(times), **values),
        st.sets(TIMES, min_size=2, max_size=2),
        values=st.dictionaries(TEXTS, SECRETS, min_size=1, max_size=3),
        granted=COUNTS,
        scope=st.none() | TEXTS,
        missing=st.just("") | TEXTS,
        source=TEXTS,
        how=TEXTS,
        trigger=TEXTS,
        by=TEXTS,
    )


def _rejections() -> st.SearchStrategy[Rejection]:
    return st.builds(
        Rejection,
        at=TIMES,
        secrets=TEXTS,
        salt=TEXTS,
        error=st.just("") | TEXTS,
        message=TEXTS,
        count=COUNTS,
        until=st.none() | TIMES,
        skew=st.floats(-1e9, 1e9),
    )


RECORDS = st.builds(
    Record,
    generation=COUNTS,
    token=st.none() | _tokens(),
    kept=st.none() | SECRETS,
    rotates=st.none() | st.booleans(),
    claimed=st.booleans(),
    revoked=st.booleans(),
    presented=st.none() | st.builds(Presented, by=TEXTS, lost=st.booleans()),
    forced_at=st.none() | TIMES,
    not_before=st.none() | TIMES,
    rejection=st.none() | _rejections(),
)


@given(record=RECORDS)
def test_a_record_comes_back_as_it_was(record: Record) -> None:
    """Every record survives the store, to the last bit of its times."""
    assert Record.decode(record.encode()) == record


def test_the_format_is_kept() -> None:
    """A record of this release is read for ever; what a later one adds is ignored."""
    written = FORMAT.replace(b'"scope"', b'"idle":null,"since":null,"scope"', 1)
    assert RECORD.encode() == written[:-1] + b',"taken":0,"seat_free":null}'
    assert Record.decode(RECORD.encode()) == Record.decode(FORMAT) == RECORD
    assert Record.decode(FORMAT[:-1] + b',"later":{"x":1}}') == RECORD


def test_what_is_not_there_is_as_if_never_known() -> None:
    """Of a record only its number is needed."""
    assert Record.decode(b'{"schema":2,"generation":4}') == Record(generation=4)


def test_a_session_without_an_end_is_kept() -> None:
    """Its end is null in the record, which is JSON whatever reads it; with it what ends it, and what was taken."""
    token = replace(TOKEN, expires_at=math.inf, idle=5400.0, since=6, how="login", source="recipe")
    session = Record(generation=9, token=token, taken=2, seat_free=1_700_000_030.0)
    assert b'"expires_at":null' in session.encode()
    assert Record.decode(session.encode()) == session
    assert session.moved(7.5).token == replace(token, issued_at=token.issued_at + 7.5)
    assert session.moved(7.5).seat_free == 1_700_000_037.5


def test_a_record_of_the_release_before_is_read() -> None:
    """All was the token's then; whether its access token was refused is no longer kept."""
    token = replace(TOKEN, missing="")
    kept, forced_at = Secret(canary("refresh")), 1_600_000_000.5
    assert Record.decode(FORMER) == Record(generation=9, token=token, kept=kept, forced_at=forced_at)
    plain = json.loads(FORMER)
    for name in ("access_generation", "by", "scope", "refresh_token", "forced_at"):
        del plain[name]
    old = Record.decode(json.dumps(plain).encode())
    assert old == Record(generation=9, token=replace(token, granted=9, by="?", scope=None))
    revoked = Record.decode(b'{"schema":1,"revoked":true,"generation":4}')
    assert revoked == Record(generation=4, revoked=True)


@given(record=RECORDS)
def test_what_the_release_before_is_shown_is_read_back(record: Record) -> None:
    """Its instances renew with it, and ours take over what they wrote."""
    if record.token is not None and "access_token" not in record.token.values:
        record = replace(record, token=replace(record.token, values={"access_token": Secret("x")}))
    if record.token is not None:
        values = {"access_token": record.token.values["access_token"]}
        record = replace(record, token=replace(record.token, values=values, missing=""))
    back = Record.decode(to_former(record, canary("key")))
    assert back.generation == record.generation
    if record.token is not None:
        assert (back.token, back.kept, back.forced_at) == (record.token, record.kept, record.forced_at)
        assert not back.revoked
    elif record.kept is not None:
        assert back.kept == record.kept
        assert back.token is not None
        assert back.token.expires_at == 1.0
    else:
        assert back == Record(generation=record.generation, revoked=True)


def _with(path: str, text: str, plain: bytes = FORMAT) -> bytes:
    """Return *plain* with the member at *path* replaced by *text*, which need not be of JSON's types."""
    whole = json.loads(plain)
    *parents, name = path.split(".")
    place = whole
    for parent in parents:
        place = place[parent]
    place[name] = "HERE"
    return json.dumps(whole).replace('"HERE"', text).encode()


WRONG = {
    "generation": ["null", "0", "-1", "1.0", "true", str(MAX_GENERATION + 1), '"7"'],
    "token": ["7", "[]", "{}", '"CANARY"'],
    "token.values": ["{}", "null", '["CANARY"]', '{"access_token":null}', '{"access_token":""}', '{"access_token":7}'],
    "token.values.access_token": ['"CANARY\\r\\nb"', '"CANARY\\u0000"', '"\\ud800CANARY"'],
    "token.issued_at": ["null", "-1", "true", '"1"', "1e999", "NaN", "1" + "0" * 400, "1700000300", "1700000301"],
    "token.expires_at": ["1699999999", "1700000000", "Infinity", "1e999", "[]"],
    "token.granted": ["null", "0", "-1", "1.0", "true", str(MAX_GENERATION + 1)],
    "token.scope": ["7", "[]"],
    "token.by": ["null", "7"],
    "kept": ['""', "7", "false", '"CANARY\\nb"'],
    "rotates": ['"perhaps"', "2", "[]"],
    "claimed": ['"perhaps"', "2", "null"],
    "revoked": ['"perhaps"', "2", "null"],
    "presented": ["7", "{}", '"CANARY"', '{"by":7}'],
    "forced_at": ['"now"', "-1", "NaN", "1e999"],
    "not_before": ['"now"', "-1", "NaN", "1e999"],
    "rejection": ["7", "{}", '"CANARY"'],
    "rejection.until": ['"never"', "-1", "NaN"],
    "rejection.count": ["0", "null", "1.5", "-1"],
    "rejection.skew": ["NaN", "null", '"1"'],
    "rejection.secrets": ["null", "7"],
}


@pytest.mark.parametrize(("path", "text"), [(path, text) for path, texts in WRONG.items() for text in texts])
def test_a_record_of_wrong_types_or_bounds_is_refused(path: str, text: str) -> None:
    """Whoever could write a record cannot make us use what we would never write; the error shows no content."""
    with pytest.raises(StoreError) as caught:
        Record.decode(_with(path, text))
    assert not isinstance(caught.value, SealError)
    assert WORD not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("access_token", ["null", '""', "1", '["CANARY"]', '"CANARY\\r\\nb"']),
        ("issued_at", ["null", "-1", '"1"', "1700000300"]),
        ("expires_at", ["null", "1700000000", "Infinity"]),
        ("generation", ["null", "0", "1.0", '"7"']),
        ("refresh_token", ['""', "7"]),
        ("scope", ["7"]),
        ("lifetime_source", ["null", "{}"]),
        ("grant", ["null", "{}"]),
        ("forced_at", ['"now"', "-1"]),
        ("access_generation", ['"7"', "-1", "1.5"]),
    ],
)
def test_a_wrong_record_of_the_release_before_is_refused(name: str, texts: list[str]) -> None:
    """By the same bounds."""
    for text in texts:
        with pytest.raises(StoreError) as caught:
            Record.decode(_with(name, text, FORMER))
        assert WORD not in str(caught.value)


@pytest.mark.parametrize("name", ["access_token", "issued_at", "generation", "lifetime_source", "grant", "trigger"])
def test_a_record_of_the_release_before_that_lacks_something_is_refused(name: str) -> None:
    """As one that was never whole."""
    plain = json.loads(FORMER)
    del plain[name]
    with pytest.raises(StoreError):
        Record.decode(json.dumps(plain).encode())


@pytest.mark.parametrize("schema", ["0", "3", '"2"', "null", "[2]", "{}"])
def test_a_record_of_a_newer_version_is_told_from_damage(schema: str) -> None:
    """It serves others, so that it is left alone."""
    with pytest.raises(UnknownSeal, match="unknown schema"):
        Record.decode(_with("schema", schema))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)
MEMBERS = st.sampled_from([*(field.name for field in fields(Record)), "access_token", "issued_at", "grant"])


@given(
    data=st.binary()
    | st.sampled_from([b"[1]", b"7", b'"x"', b"[" * 100_000, b"{}", b"null", b'{"schema":2}', b'{"schema":1}'])
    | JSON.map(lambda value: json.dumps(value).encode())
)
def test_anything_else_is_no_record(data: bytes) -> None:
    """Whatever bytes come out of a store, the only error is StoreError."""
    with pytest.raises(StoreError):
        Record.decode(data)


@given(schema=st.sampled_from([1, 2]), members=st.dictionaries(MEMBERS, JSON))
def test_members_of_any_kind_are_no_other_error(schema: int, members: dict[str, object]) -> None:
    """A record, or StoreError: nothing in between."""
    try:
        record = Record.decode(json.dumps({"schema": schema} | members).encode())
    except StoreError:
        return
    assert Record.decode(record.encode()) == record


def test_a_record_does_not_show_its_secrets() -> None:
    """Printing one gives neither token away."""
    shown = f"{replace(RECORD, rejection=None)} {RECORD.token!r}"
    assert WORD not in shown


def test_a_lifetime_is_what_was_granted() -> None:
    """It counts from the request for the token."""
    assert TOKEN.lifetime == 300.0


@given(record=RECORDS, seconds=st.integers(-1000, 1000).map(float))
def test_a_record_moves_whole(record: Record, seconds: float) -> None:
    """Each moment in it is read by the other clock, and nothing else changes."""
    moved = record.moved(seconds)
    before, after = json.loads(record.encode()), json.loads(moved.encode())
    for place in ("", "token", "rejection"):
        was, now = (before, after) if not place else (before[place] or {}, after[place] or {})
        for name in ("issued_at", "expires_at", "forced_at", "not_before", "at", "until"):
            if was.get(name) is not None:
                assert now.pop(name) == was.pop(name) + seconds
    assert after == before


def test_a_record_that_does_not_move_is_the_same() -> None:
    """Most stores are on this machine."""
    assert RECORD.moved(0.0) is RECORD
