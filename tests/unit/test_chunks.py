"""Chunks: what is in them comes out, however they are cut into packets, and what is wrong ends it."""

import h11
import pytest
from h11._receivebuffer import ReceiveBuffer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mitmproxy.proxy.layers.http._http1 import make_body_reader

from sidecar.policy.chunks import LAST_CHUNK, ChunkReader, chunk

GOOD = {
    b"0\r\n\r\n": b"",
    b"5\r\nhello\r\n0\r\n\r\n": b"hello",
    b'5;a=b;c="\xc3\xa4 d"\r\nhello\r\n0;x\r\n\r\n': b"hello",
    b"5 \t\r\nhello\r\n0  \r\n\r\n": b"hello",
    b"00000000000000aF\r\n%b\r\n000\r\n\r\n" % bytes(175): bytes(175),
    b"1\r\n\r\r\n1\r\n\n\r\n2\r\n\r\n\r\n0\r\n\r\n": b"\r\n\r\n",
    b"1\r\na\r\n0\r\nX-T: 1\r\nAuthorization: x\r\n\r\n": b"a",
    b"0\r\nX: " + b"y" * 16_000 + b"\r\n\r\n": b"",
    b"1;" + b"x" * 4000 + b"\r\na\r\n0\r\n\r\n": b"a",
}


def take(reader: ChunkReader, data: bytes, size: int) -> bytes:
    """Return what comes out of *data*, fed in packets of *size*."""
    body, at = b"", 0
    while at < len(data) and not (reader.ended or reader.fault):
        body += reader.feed(data[at : at + size])
        at += size
    return body


@pytest.mark.parametrize(("data", "body"), GOOD.items())
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 20])
def test_content_comes_out(data: bytes, body: bytes, size: int) -> None:
    """Without sizes, extensions and trailers, and what follows is left."""
    reader = ChunkReader()

    assert take(reader, data, size) == body
    assert (reader.ended, reader.fault, reader.rest) == (True, "", b"")
    whole = ChunkReader()
    assert whole.feed(data + b"next") == body
    assert (whole.ended, whole.rest) == (True, b"next")


BAD = {
    b"\r\n": b"",
    b" 5\r\nhello": b"",
    b"0x5\r\nhello": b"",
    b"+5\r\nhello": b"",
    b"-1\r\n": b"",
    b"5\nhello\n0\n\n": b"",
    b"5\r\r\nhello": b"",
    b"5;a\x00\r\nhello": b"",
    b"5 a\r\nhello": b"",
    b"00000000000000005\r\nhello": b"",
    b"5\r\nhello0\r\n\r\n": b"hello",
    b"5\r\nhello\n0\n\n": b"hello",
    b"5\r\nhello\r\nZZ\r\n": b"hello",
    b"5\r\nhello\r\n\r\n": b"hello",
    b"1\r\na\r\n0\r\nX: y\n\r\n": b"a",
    b"1\r\na\r\n0\r\n\n": b"a",
    b"0\r\n" + b"X: y\r\n" * 3000: b"",
    b"0\r\nX: " + b"y" * (17 << 10): b"",
    b"1;" + b"x" * 4095: b"",
    b"1;" + b"x" * 4095 + b"\r\na\r\n0\r\n\r\n": b"",
}


@pytest.mark.parametrize(("data", "body"), BAD.items())
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 20])
def test_fault_ends_it(data: bytes, body: bytes, size: int) -> None:
    """What was good before it has come out, what follows has not, and the end is never reached."""
    reader = ChunkReader()

    assert take(reader, data, size) == body
    assert reader.fault
    assert not reader.ended


def test_content_comes_as_soon_as_it_is_here() -> None:
    """A chunk need not be whole for that."""
    reader = ChunkReader()

    assert [reader.feed(part) for part in (b"A\r\n01", b"2345", b"6789", b"\r", b"\n0\r\n\r", b"\n")] == [
        *(b"01", b"2345", b"6789", b"", b"", b"")
    ]
    assert reader.ended


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(1, 60))
@example([b"", b"a"], 1)
def test_what_is_put_into_chunks_comes_out(parts: list[bytes], size: int) -> None:
    """An empty part is no chunk: it would be the last."""
    reader = ChunkReader()
    body = take(reader, b"".join(map(chunk, parts)) + LAST_CHUNK, size)

    assert (body, reader.ended, reader.rest) == (b"".join(parts), True, b"")


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.sampled_from([b"0", b"1", b"a", b"5", b"\r\n", b"\r", b"\n", b";", b" ", b"hello", b"x: y", b"0\r\n\r\n"]),
        max_size=12,
    ),
    st.integers(1, 9),
)
@example([b"1", b"\r\n", b"a", b"\r\n", b"0\r\n\r\n"], 3)
def test_what_we_take_another_reader_takes_alike(pieces: list[bytes], size: int) -> None:
    """Held against h11's: where both see the end, the content is the same; it refuses more trailers, we more sizes."""
    data = b"".join(pieces)
    ours = ChunkReader()
    body = take(ours, data, size)
    theirs, buffer, read = make_body_reader(None), ReceiveBuffer(), b""
    buffer += data
    event: h11.Event | None = None
    try:
        while isinstance(event := theirs(buffer), h11.Data):
            read += bytes(event.data)
    except h11.ProtocolError:
        assert not ours.ended or b"\n0" in b"\n" + data
        assert body.startswith(read) or ours.fault
    else:
        assert ours.ended or ours.fault or event is None
        assert read == body if ours.ended else read.startswith(body)
