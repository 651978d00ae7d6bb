"""Whatever an upstream sends is an answer or a refusal, the same however it is cut, and read as others read it."""

import contextlib
import itertools

import h11
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar.policy.answer import AnswerReader, InvalidAnswer, parse_answer_head
from sidecar.policy.message import Fields

LINES = st.sampled_from(
    [
        *(b"HTTP/1.1 200 OK", b"HTTP/1.0 200 OK", b"HTTP/1.1 204 No", b"HTTP/1.1 304 Not", b"HTTP/1.1 103 Early"),
        *(b"HTTP/1.1 200", b"HTTP/1.1 999 \xdc", b"HTTP/1.1 099 x", b"HTTP/1.1 200 \x01", b"HTTP/2 200", b"ICY 200 OK"),
    ]
)
FIELDS = st.sampled_from(
    [
        *(
            b"Content-Length: 5",
            b"content-length:5",
            b"Content-Length: 0",
            b"Content-Length: 5, 5",
            b"Content-Length: 6",
        ),
        *(b"Transfer-Encoding: chunked", b"transfer-encoding: CHUNKED", b"Transfer-Encoding: gzip, chunked"),
        *(b"Transfer-Encoding: identity", b"Connection: close", b"Connection: keep-alive, x", b"Connection : close"),
        *(b"X: y", b"X:  y \t", b"X:", b"X : y", b" folded", b"X: \xff", b"X: a\x00b", b"X: a\rb", b"no colon", b": z"),
    ]
)
ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n"])
BODIES = st.sampled_from(
    [
        *(b"", b"hello", b"hel", b"hello and more", b"5\r\nhello\r\n0\r\n\r\n", b"5;x\r\nhello\r\n0\r\nT: u\r\n\r\n"),
        *(
            b"5\r\nhello\r\n",
            b"5\r\nhello\r\nZZ\r\n",
            b"0\r\n\r\nmore",
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ),
    ]
)


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """Answers as servers send them, one after another, and as those do that are broken."""
    data = b""
    for _ in range(draw(st.integers(1, 2))):
        data += draw(LINES) + draw(ENDS)
        for field in draw(st.lists(FIELDS, max_size=4)):
            data += field + draw(ENDS)
        data += draw(ENDS) + draw(BODIES)
    return data


Outcome = tuple[object, ...]


def outcome(parts: list[bytes], *, to_head: bool = False) -> Outcome:
    """Return all that can be told of an answer that came in *parts*."""
    reader, body = AnswerReader(to_head=to_head), b""
    for number, part in enumerate(parts):
        if reader.ended or reader.fault:
            # What follows an answer is not fed to it; that there is any ends the connection all the same.
            return (reader.head, body, reader.ended, reader.fault, not any(parts[number:]) and reader.persistent)
        try:
            body += reader.feed(part)
        except InvalidAnswer:
            return ("refused",)
    return (reader.head, body, reader.ended, reader.fault, reader.persistent)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Return *data* in parts, none of them empty."""
    at = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(at)]


@settings(deadline=None, max_examples=400)
@given(answers(), st.lists(st.integers(0, 400), max_size=6), st.booleans())
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", list(range(60)), False)
@example(
    b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", list(range(90)), False
)
def test_the_answer_is_the_same_however_it_is_cut(data: bytes, places: list[int], to_head: bool) -> None:
    """In packets of any size, down to single bytes."""
    whole = outcome([data], to_head=to_head)

    assert outcome(cut(data, places), to_head=to_head) == whole
    assert outcome([bytes([byte]) for byte in data], to_head=to_head) == whole


@settings(deadline=None, max_examples=400)
@given(
    st.one_of(
        st.binary(max_size=200), answers(), st.binary(max_size=60).map(lambda tail: b"HTTP/1.1 200 OK\r\n" + tail)
    )
)
@example(b"")
def test_whatever_comes_is_an_answer_or_a_refusal(data: bytes) -> None:
    """No other exception, no field that could be read in two ways, no byte that was not sent."""
    reader = AnswerReader(to_head=False)
    with contextlib.suppress(InvalidAnswer):
        body = reader.feed(data)
        assert body in data or reader.head is None or reader.head.chunked
        if reader.head is not None:
            assert 200 <= reader.head.status <= 999
            written = b"".join(b"%b: %b\r\n" % field for field in reader.head.fields)
            assert parse_answer_head(b"HTTP/1.1 200 OK\r\n" + written + b"\r\n").fields == reader.head.fields
            assert b"\0" not in written + reader.head.reason
            assert written.count(b"\n") == written.count(b"\r") == len(reader.head.fields)


def read_by_h11(data: bytes, *, to_head: bool) -> tuple[int, Fields, bytes] | None:
    """Return the answer as another parser reads it, up to the end of the connection; None when it refuses it."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="HEAD" if to_head else "GET", target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    connection.receive_data(b"")
    head, body = None, b""
    try:
        while True:
            match connection.next_event():
                case h11.Response() as head:
                    pass
                case h11.Data(data=part):
                    body += bytes(part)
                case h11.EndOfMessage() if head is not None:
                    return head.status_code, tuple(head.headers.raw_items()), body
                case h11.InformationalResponse():
                    pass
                case _:
                    return None
    except h11.RemoteProtocolError:
        return None


@settings(deadline=None, max_examples=400)
@given(answers(), st.booleans())
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", False)
@example(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", False)
def test_what_both_take_another_parser_reads_alike(data: bytes, to_head: bool) -> None:
    """Status, fields and body: where an answer ends must not depend on who reads it."""
    theirs = read_by_h11(data, to_head=to_head)
    reader = AnswerReader(to_head=to_head)
    try:
        body = reader.feed(data)
    except InvalidAnswer:
        return
    if theirs is None or reader.head is None or not reader.feed_end():
        return
    status, fields, content = theirs

    assert (reader.head.status, body) == (status, content)
    # h11 leaves a length beside chunks and one in a 204 where they stand, and spells codings its own way.
    framing = (b"content-length", b"transfer-encoding")
    ours = [field for field in reader.head.fields if field[0].lower() not in framing]
    assert ours == [field for field in fields if field[0].lower() not in framing]
