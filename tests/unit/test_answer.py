"""The head and the end of an answer: what cannot be passed on is refused, what every client takes is taken."""

import collections
import contextlib
import math
import time

import pytest

from sidecar.policy.answer import AnswerReader, InvalidAnswer, parse_answer_head
from tests.canary import WORD, canary

OK = b"HTTP/1.1 200 OK\r\n"
SIZED = b"Content-Length: 5\r\n"


def read(data: bytes, *, to_head: bool = False) -> AnswerReader:
    """Return the reader after an answer that came in one packet."""
    reader = AnswerReader(to_head=to_head)
    reader.feed(data)
    return reader


STATUS_LINES = {
    b"HTTP/1.1 200 OK": (200, b"OK"),
    b"HTTP/1.0 404 Not  Found": (404, b"Not  Found"),
    b"HTTP/1.1 200": (200, b""),
    b"HTTP/1.1 200 ": (200, b""),
    b"HTTP/1.1  200 OK": (200, b"OK"),
    b"HTTP/1.1 600 Odd": (600, b"Odd"),
    b"HTTP/1.1 999 Odd": (999, b"Odd"),
    b"HTTP/1.1 103 Early Hints": (103, b"Early Hints"),
    b"HTTP/1.1 200 \xdcml\t\xff": (200, b"\xdcml\t\xff"),
}


@pytest.mark.parametrize(("line", "expected"), STATUS_LINES.items())
def test_status_line_is_taken(line: bytes, expected: tuple[int, bytes]) -> None:
    """Any three digits from 100, with any reason, or none."""
    assert parse_answer_head(line + b"\r\n\r\n")[:2] == expected


@pytest.mark.parametrize(
    "line",
    [
        b"HTTP/1.1 099 Odd",
        b"HTTP/1.1 1000 Odd",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 +20 OK",
        b"HTTP/1.1 \xd9\xa2\xd9\xa0\xd9\xa0 OK",
        b"HTTP/1.1 200OK",
        b"HTTP/1.1\t200 OK",
        b"HTTP/1.1",
        b"HTTP/1.10 200 OK",
        b"HTTP/1.2 200 OK",
        b"HTTP/2.0 200 OK",
        b"HTTP/2 200",
        b"http/1.1 200 OK",
        b" HTTP/1.1 200 OK",
        b"\r\nHTTP/1.1 200 OK",
        b"ICY 200 OK",
        b"SSH-2.0-OpenSSH_9.6",
        b"hello",
        b"",
        b"HTTP/1.1 200 O\x00K",
        b"HTTP/1.1 200 O\x01K",
        b"HTTP/1.1 200 O\rK",
        b"HTTP/1.1 200 O\x7fK",
    ],
)
def test_status_line_is_refused(line: bytes) -> None:
    """Another protocol, another number of digits, a control character in the reason."""
    with pytest.raises(InvalidAnswer):
        read(line + b"\r\n" + SIZED + b"\r\nhello")


FIELDS = {
    b"A: b\r\n": [(b"A", b"b")],
    b"": [],
    b"a:b\r\nA:  b \t\r\nA:\tb\r\n": [(b"a", b"b"), (b"A", b"b"), (b"A", b"b")],
    b"A:\r\nB: \r\nC: : \r\n": [(b"A", b""), (b"B", b""), (b"C", b":")],
    b"!#$%&'*+-.^_`|~09Az: 1\r\n": [(b"!#$%&'*+-.^_`|~09Az", b"1")],
    b"A: \x80\xff\xc3\xa4\tb\r\n": [(b"A", b"\x80\xff\xc3\xa4\tb")],
    b"A : b\r\nC\t \t:d\r\n": [(b"A", b"b"), (b"C", b"d")],
    b"A: b\r\n c\r\n\t  d\r\nE: f\r\n": [(b"A", b"b c d"), (b"E", b"f")],
    b"A:\r\n b\r\nC: d\r\n \r\n": [(b"A", b"b"), (b"C", b"d")],
    b"A: b\nC: d\n e\n": [(b"A", b"b"), (b"C", b"d e")],
    b"A: b\r\nC: d\n": [(b"A", b"b"), (b"C", b"d")],
    b"A: b: c\r\nD::e\r\n": [(b"A", b"b: c"), (b"D", b":e")],
}


@pytest.mark.parametrize(("lines", "expected"), FIELDS.items())
@pytest.mark.parametrize("usual", [True, False], ids=["usual", "mended"])
def test_fields_are_taken(lines: bytes, expected: list[tuple[bytes, bytes]], usual: bool) -> None:
    """In order and spelling; without blanks around them, folded lines joined; alike beside a line that is mended."""
    odd = b"" if usual else b"Odd : x\r\n"
    found = parse_answer_head(OK + lines + odd + b"\r\n").fields

    assert list(found) == expected + ([] if usual else [(b"Odd", b"x")])


@pytest.mark.parametrize(
    "line",
    [
        b": b",
        b" A: b",
        b"\tA: b",
        b"A",
        b"A B: c",
        b"A@B: c",
        b"A(b): c",
        b"A\xc3\xb6: c",
        b"A\x00: c",
        b"A: b\x00c",
        b"A: b\x01c",
        b"A: b\x0bc",
        b"A: b\x1bc",
        b"A: b\x7fc",
        b"A: b\rc",
        b"A: b\r",
        b"\r",
    ],
)
def test_field_is_refused(line: bytes) -> None:
    """A name that is no token, a control character in a value, a folded line with nothing before it."""
    with pytest.raises(InvalidAnswer):
        parse_answer_head(OK + line + b"\r\n" + SIZED + b"\r\n")


LENGTHS = {
    (b"5",): 5,
    (b"0",): 0,
    (b"05",): 5,
    (b"5", b"5"): 5,
    (b"5, 5",): 5,
    (b"5,5", b"5"): 5,
    (b"999999999999999999",): 999999999999999999,
}


@pytest.mark.parametrize(("values", "expected"), LENGTHS.items())
def test_length_is_one_number(values: tuple[bytes, ...], expected: int) -> None:
    """However often it is said; once is how it is passed on, where it first stood."""
    lines = b"".join(b"Content-length: %b\r\n" % value for value in values)
    head = parse_answer_head(OK + lines + b"Last: 1\r\n\r\n")

    assert (head.length, head.chunked, head.persistent) == (expected, False, True)
    assert head.fields == ((b"Content-length", values[0].split(b",")[0]), (b"Last", b"1"))


@pytest.mark.parametrize(
    "values",
    [
        (b"5", b"6"),
        (b"5, 6",),
        (b"5, 05",),
        (b"5,",),
        (b"",),
        (b"+5",),
        (b"-5",),
        (b"0x5",),
        (b"5 5",),
        (b"5;",),
        (b"1e3",),
        (b"1000000000000000000",),
        (b"\xd9\xa5",),
        (b"5_0",),
    ],
)
def test_length_is_refused(values: tuple[bytes, ...]) -> None:
    """Two lengths, or none at all: where the answer ends would be a guess."""
    with pytest.raises(InvalidAnswer):
        parse_answer_head(OK + b"".join(b"Content-Length: %b\r\n" % value for value in values) + b"\r\n")


@pytest.mark.parametrize("coding", [b"chunked", b"CHUNKED", b"chunked,", b" chunked ", b"\r\n chunked"])
def test_chunks_are_the_one_coding(coding: bytes) -> None:
    """In any case, and whatever the list looks like."""
    head = parse_answer_head(OK + b"Transfer-Encoding:" + coding + b"\r\n\r\n")

    assert (head.length, head.chunked, head.persistent) == (None, True, True)


@pytest.mark.parametrize("coding", [b"identity", b"Identity", b"", b","])
def test_no_coding_is_none(coding: bytes) -> None:
    """`identity` says nothing, and so does an empty list."""
    head = parse_answer_head(OK + b"Transfer-Encoding: " + coding + b"\r\n" + SIZED + b"\r\n")

    assert (head.length, head.chunked, head.persistent) == (5, False, True)


@pytest.mark.parametrize(
    "coding",
    [
        *(b"gzip", b"gzip, chunked", b"chunked, gzip", b"chunked, identity", b"identity, chunked", b"chunked, chunked"),
        *(b"chunked\r\nTransfer-Encoding: chunked", b"xchunked", b"chunked;q=1", b'"chunked"'),
    ],
)
def test_coding_is_refused(coding: bytes) -> None:
    """A body that we would have to decode cannot be passed on as it came."""
    with pytest.raises(InvalidAnswer):
        parse_answer_head(OK + b"Transfer-Encoding: " + coding + b"\r\n\r\n")


@pytest.mark.parametrize(
    "lines", [SIZED + b"TE: x\r\nTransfer-Encoding: chunked\r\n", b"Transfer-Encoding: chunked\r\n" + SIZED]
)
def test_chunks_win_over_a_length(lines: bytes) -> None:
    """The length goes, whatever it says, and the connection after it (RFC 9112 section 6.3)."""
    head = parse_answer_head(OK + lines + b"Content-Length: nonsense\r\n\r\n")

    assert (head.length, head.chunked, head.persistent) == (None, True, False)
    assert b"Content-Length" not in dict(head.fields)


BODILESS = {
    "204": (b"HTTP/1.1 204 No\r\n\r\n", False, True, []),
    "204 with a length": (b"HTTP/1.1 204 No\r\n" + SIZED + b"\r\n", False, False, []),
    "204 with none": (b"HTTP/1.1 204 No\r\nContent-Length: 0\r\n\r\n", False, True, [b"0"]),
    "204 in chunks": (b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n", False, False, []),
    "304": (b"HTTP/1.1 304 Not\r\n" + SIZED + b"\r\n", False, True, [b"5"]),
    "HEAD": (OK + SIZED + b"\r\n", True, True, [b"5"]),
    "HEAD in chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", True, True, []),
    "HEAD until the end": (OK + b"\r\n", True, True, []),
    "HEAD with both": (OK + SIZED + b"Transfer-Encoding: chunked\r\n\r\n", True, False, []),
}


@pytest.mark.parametrize(("data", "to_head", "persistent", "lengths"), BODILESS.values(), ids=BODILESS)
def test_answer_without_a_body(data: bytes, to_head: bool, persistent: bool, lengths: list[bytes]) -> None:
    """It ends with its head; where its fields promise a body that may come all the same, the connection does too."""
    reader = read(data, to_head=to_head)

    assert reader.ended
    assert reader.head is not None
    assert (reader.head.length, reader.head.chunked, reader.persistent) == (0, False, persistent)
    assert [value for name, value in reader.head.fields if name == b"Content-Length"] == lengths


PERSISTENT = {
    b"HTTP/1.1 200 OK\r\n": True,
    b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n": True,
    b"HTTP/1.1 200 OK\r\nConnection: close\r\n": False,
    b"HTTP/1.1 200 OK\r\nConnection: Foo, Close\r\n": False,
    b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nConnection: close\r\n": False,
    b"HTTP/1.1 200 OK\r\nConnection: closed\r\n": True,
    b"HTTP/1.0 200 OK\r\n": False,
    b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n": True,
    b"HTTP/1.0 200 OK\r\nConnection: keep-alive, close\r\n": False,
}


@pytest.mark.parametrize(("start", "expected"), PERSISTENT.items())
def test_connection_stays_when_the_answer_says_so(start: bytes, expected: bool) -> None:
    """HTTP/1.1 unless it says close, HTTP/1.0 only if it says keep-alive (RFC 9112 section 9.3)."""
    assert read(start + SIZED + b"\r\nhello").persistent is expected


def test_chunks_in_http10_end_the_connection() -> None:
    """They are taken for chunks, as every client does, but nobody knows what follows (RFC 9112 section 6.1)."""
    reader = read(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")

    assert (reader.ended, reader.persistent) == (True, False)


@pytest.mark.parametrize(
    ("start", "ended_before", "ended"),
    [
        (OK + SIZED + b"\r\nhell", False, False),
        (OK + SIZED + b"\r\nhello", True, True),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", False, False),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", False, False),
        (OK + b"\r\nhello", False, True),
        (OK + b"\r\n", False, True),
        (b"HTTP/1.0 200 OK\r\n\r\n", False, True),
        (OK, False, False),
        (b"", False, False),
        (b"HTTP/1.1 100 Continue\r\n\r\n", False, False),
    ],
)
def test_end_of_the_connection(start: bytes, ended_before: bool, ended: bool) -> None:
    """It ends the answer only where neither length nor chunks do, and then nothing is left to keep."""
    reader = read(start)

    assert reader.ended is ended_before
    assert reader.feed_end() is ended
    assert (reader.ended, reader.persistent) == (ended, False)


@pytest.mark.parametrize(
    "data",
    [
        OK + SIZED + b"\r\nhello",
        OK + b"Content-Length: 0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 204 No\r\n\r\n",
        b"HTTP/1.1 304 Not\r\n\r\n",
    ],
)
def test_what_follows_an_answer_is_not_of_it(data: bytes) -> None:
    """It is dropped, and the connection is not used again."""
    usual, followed = AnswerReader(to_head=False), AnswerReader(to_head=False)

    assert usual.feed(data) == followed.feed(data + OK + b"\r\npoison")
    assert (usual.ended, usual.persistent) == (True, True)
    assert (followed.ended, followed.persistent) == (True, False)


@pytest.mark.parametrize(("number", "taken"), [(0, True), (20, True), (21, False), (5000, False)])
def test_interim_answers_are_dropped(number: int, taken: bool) -> None:
    """Up to twenty of them, with fields of their own."""
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    if taken:
        reader = read(interim * number + OK + SIZED + b"\r\nhello")
        assert reader.head is not None
        assert (reader.head.status, reader.head.fields, reader.persistent) == (200, ((b"Content-Length", b"5"),), True)
    else:
        with pytest.raises(InvalidAnswer, match="interim"):
            read(interim * number)


def test_protocol_is_not_switched() -> None:
    """Nobody asked for it, and what follows is no HTTP."""
    with pytest.raises(InvalidAnswer, match="switches"):
        read(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")


def test_interim_answer_is_nothing_of_the_answer() -> None:
    """`between` is for telling when the final answer begins."""
    reader = AnswerReader(to_head=False)
    found = [reader.between]
    for part in (b"HTTP/1.1 100", b" Continue\r\n\r\n", b"H", b"TTP/1.1 200 OK\r\n\r\n"):
        reader.feed(part)
        found.append(reader.between)

    assert found == [True, False, True, False, False]


@pytest.mark.parametrize(
    ("head", "taken"),
    [
        (OK + b"A: " + b"b" * ((64 << 10) - len(OK) - 7) + b"\r\n\r\n", True),
        (OK + b"A: " + b"b" * ((64 << 10) - len(OK) - 6) + b"\r\n\r\n", False),
        (OK + b"A: " + b"b" * (64 << 10), False),
        (OK + b"A: b\r\n" * 1000 + b"\r\n", True),
        (OK + b"A: b\r\n" * 1001 + b"\r\n", False),
        (OK + b"A : b\r\n" * 1001 + b"\r\n", False),
    ],
)
def test_size_of_a_head_is_bounded(head: bytes, taken: bool) -> None:
    """64 KiB and a thousand fields; what is over is refused without its end, in one packet or in many."""
    for size in (len(head), 1000):
        reader = AnswerReader(to_head=False)
        parts = [head[at : at + size] for at in range(0, len(head), size)]
        if taken:
            assert [reader.feed(part) for part in parts] == [b""] * len(parts)
            assert reader.head is not None
        else:
            with pytest.raises(InvalidAnswer, match=r"64 KiB|1000"):
                collections.deque(map(reader.feed, parts), 0)


@pytest.mark.parametrize("start", [b"h", b"\r\n", b"HTTP/2", b"HTTP/1 ", b"\x16\x03\x01", b"220 smtp", b"\x00"])
def test_another_protocol_is_refused_at_once(start: bytes) -> None:
    """Without waiting for the end of a line that may never come."""
    with pytest.raises(InvalidAnswer):
        read(start)


def test_faults_quote_nothing() -> None:
    """What an upstream sends may be a credential, and what is wrong is told to clients and logs."""
    secret = canary("answer").encode()
    for data in (
        secret,
        b"HTTP/1.1 " + secret + b"\r\n\r\n",
        OK + secret + b"\r\n\r\n",
        OK + b"A: \x00" + secret + b"\r\n\r\n",
        OK + b"Content-Length: " + secret + b"\r\n\r\n",
        OK + b"Transfer-Encoding: " + secret + b"\r\n\r\n",
    ):
        with pytest.raises(InvalidAnswer) as caught:
            read(data)
        assert WORD not in str(caught.value)


@pytest.mark.parametrize(
    "head",
    [
        OK + b"A:" + b" " * 60_000 + b"\x00\r\n\r\n",
        OK + b"A" * 60_000 + b"\r\n\r\n",
        OK + b"A: b\r\n" + b" \r\n" * 20_000 + b"\r\n",
        OK + b"A: " + b"b " * 30_000 + b"\r\n\r\n",
        OK + b"Content-Length: " + b"5," * 30_000 + b"5\r\n\r\n",
        b"HTTP/1.1" + b" " * 60_000 + b"\r\n\r\n",
        OK + b"A: " + b"\r" * 60_000 + b"\r\n\r\n",
    ],
)
def test_reading_a_head_takes_time_in_proportion(head: bytes) -> None:
    """None that an upstream can send keeps a processor busy: a hundred times the usual time is far from a second."""
    began, best = time.process_time(), math.inf
    for _ in range(3):
        with contextlib.suppress(InvalidAnswer):
            parse_answer_head(head)
        best, began = min(best, time.process_time() - began), time.process_time()

    assert best < 0.5
