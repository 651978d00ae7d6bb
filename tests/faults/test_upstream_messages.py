"""Answers that are broken, cut, huge or unusual: nothing hangs, and a part is never taken for the whole."""

import asyncio
import http.client
import os
import zlib
from pathlib import Path

from tests.faults.site import GOOD, REFUSED, by_path, closing, request, reset, site
from tests.rig import Script, Seen, problem_of, status_of
from tests.waiting import PATIENCE

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
MIB = 1 << 20


def fetch(port: int, path: str) -> bytes:
    """Return the body of an answer as a usual client reads it; it raises for one that is not complete."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


STARTS = {
    "after-head": SIZED,
    "in-body": SIZED + b"x" * 99,
    "after-chunked-head": CHUNKED,
    "in-chunk": CHUNKED + b"5\r\nhel",
    "between-chunks": CHUNKED + b"5\r\nhello\r\n",
}


async def test_flt_up_11_answer_that_breaks_off_is_broken_for_the_script(tmp_path: Path, log: Path) -> None:
    """The script's connection breaks too, so that a part is never taken for the whole, and nothing is repeated."""

    async def script(seen: Seen, _: Reader, writer: Writer) -> None:
        end, start = seen.line.split()[1].decode().strip("/").split("/")
        writer.write(STARTS[start])
        await writer.drain()
        await asyncio.sleep(0.3)
        (reset if end == "reset" else Writer.close)(writer)

    paths = [f"/{end}/{start}" for end in ("reset", "close") for start in STARTS]
    async with site(tmp_path, log, script) as at:
        fetches = (asyncio.to_thread(fetch, at.running.port("plm"), path) for path in paths)
        outcomes = await asyncio.gather(*fetches, return_exceptions=True)

    taken_for_whole = [
        path
        for path, outcome in zip(paths, outcomes, strict=True)
        if not isinstance(outcome, http.client.HTTPException | ConnectionError)
    ]
    assert taken_for_whole == []
    assert at.count() == len(paths)


EARLY = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"


async def test_flt_up_14_interim_answers_are_not_the_answer(tmp_path: Path, log: Path) -> None:
    """What comes before the answer is dropped, and if nothing follows, or the protocol changes unasked, it is 502."""

    async def script(seen: Seen, _: Reader, writer: Writer) -> None:
        path = seen.line.split()[1]
        if path == b"/switch":
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
            return
        writer.write(EARLY)
        if path == b"/answer":
            writer.write(GOOD)
        else:
            writer.close()

    async with site(tmp_path, log, script) as at:
        answers = {path: await at.send(path, b"POST", body=b"") for path in (b"/answer", b"/nothing", b"/switch")}

    assert answers.pop(b"/answer") == closing(GOOD)
    assert {(status_of(each), problem_of(each)["reason"]) for each in answers.values()} == {
        (502, "upstream_unreachable")
    }
    assert at.count() == 3


LATE = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
BROKEN = {
    "trailers": CHUNKED + b"4\r\nbody\r\n0\r\nX-Late: 1\r\nAuthorization: x\r\n\r\n",
    "chunk size": CHUNKED + b"4\r\nbody\r\nzz\r\nbody\r\n0\r\n\r\n",
    "bytes after the end": b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody" + LATE,
    "two framings": b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 40\r\n\r\nbody",
    "204 with a body": b"HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\n" + LATE,
}


async def test_flt_up_15_broken_framing_is_mended_or_told(tmp_path: Path, log: Path) -> None:
    """The script gets a correct answer, a 502 or a broken connection, and what is left answers no other request."""

    async def script(seen: Seen, _: Reader, writer: Writer) -> None:
        name = seen.line.split()[1].decode().strip("/").replace("-", " ")
        writer.write(BROKEN.get(name, GOOD))

    async with site(tmp_path, log, script) as at:
        for kind in BROKEN:
            path = f"/{kind.replace(' ', '-')}".encode()
            broken = [await at.send(path, b"POST", body=b"") for _ in range(2)]
            after = [await at.send(b"/good") for _ in range(2)]
            assert at.count(path) == 2, kind
            assert all(is_right(kind, answer) for answer in broken), kind
            assert {answer.rpartition(b"\r\n\r\n")[2] for answer in after} == {b"ok"}, kind


def is_right(kind: str, answer: bytes) -> bool:
    """Tell whether *answer* is a correct one, broken off, or one of our own, and holds nothing that it must not."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"X-Late" in answer or b"poison" in answer:
        return False
    match status_of(answer):
        case 502:
            return bool(problem_of(answer)["reason"] == "upstream_unreachable")
        case 204:
            return (kind, body) == ("204 with a body", b"")
        case 200 if b"chunked" in head.lower():
            ended = body.endswith(b"0\r\n\r\n")
            return body == b"4\r\nbody\r\n0\r\n\r\n" if ended else kind == "chunk size"
    return (body, kind) == (b"body", "bytes after the end")


async def test_flt_up_15_body_after_the_answer_to_a_head(tmp_path: Path, log: Path) -> None:
    """A body that follows the answer to a HEAD is never taken for another answer."""
    async with site(tmp_path, log, by_path({b"/broken": b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n" + LATE})) as at:
        answers = [await at.send(b"/broken", b"HEAD"), await at.send(b"/good")]

    assert status_of(answers[0]) in (200, 502)
    assert not any(b"poison" in answer for answer in answers)
    assert answers[1].endswith(b"ok")


HUGE = {
    "a megabyte": b"X: " + b"y" * MIB + b"\r\n",
    "10000 fields": b"".join(b"X-%d: y\r\n" % number for number in range(10_000)),
    "many large fields": b"".join(b"X-%d: %b\r\n" % (number, b"y" * 1000) for number in range(100)),
    "NUL": b"X-One: a\0b\r\n",
    "no name": b": a\r\n",
    "coding": b"X-One: a\r\nTransfer-Encoding: gzip, chunked\r\n",
}


async def test_flt_up_16_head_that_cannot_be_read_is_a_502(tmp_path: Path, log: Path) -> None:
    """The script gets 502 without any byte of it, memory stays where it is, and the next request is served."""
    heads = {
        f"/{kind.replace(' ', '-')}".encode(): b"HTTP/1.1 200 OK\r\n%bContent-Length: 2\r\n\r\nno" % fields
        for kind, fields in HUGE.items()
    }
    async with site(tmp_path, log, by_path(heads)) as at:
        await at.send(b"/good")
        before = at.running.resident()
        answers = {path: [await at.send(path, b"POST", body=b"") for _ in range(3)] for path in heads}
        grown = at.running.resident() - before
        after = await at.send(b"/good")

    for path, each in answers.items():
        assert {(status_of(answer), problem_of(answer)["reason"]) for answer in each} == {(502, "upstream_unreachable")}
        assert not any(b"X-One" in answer or b"yyy" in answer for answer in each)
        assert at.count(path) == 3
    assert status_of(after) == 200
    assert grown < 16


async def test_flt_up_16_folded_lines_are_joined(tmp_path: Path, log: Path) -> None:
    """Folded lines become one line, and a blank before the colon goes."""
    folded = b"HTTP/1.1 200 OK\r\nX-One: a\r\n b\r\n c\r\nX-Two : d\r\nContent-Length: 2\r\n\r\nok"
    async with site(tmp_path, log, by_path({b"/folded": folded})) as at:
        answer = await at.send(b"/folded")

    assert status_of(answer) == 200
    assert b"\r\nX-One: a b c\r\nX-Two: d\r\n" in answer


async def test_flt_up_18_large_answer_waits_for_a_slow_script(tmp_path: Path, log: Path) -> None:
    """The upstream is held back while the script does not read, memory stays flat, and the script gets every byte."""
    size, sent = 256 * MIB, [0]

    async def script(_: Seen, __: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while sent[0] < size:
            writer.write(bytes([sent[0] // MIB % 251]) * MIB)
            sent[0] += MIB
            await writer.drain()

    async with site(tmp_path, log, script) as at:
        reader, writer = await asyncio.open_connection("127.0.0.1", at.running.port("plm"), limit=MIB)
        async with at.running.peak() as samples:
            writer.write(request(b"/large"))
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(2)
            held_back = sent[0]
            got, check, wanted = 0, 0, 0
            async with asyncio.timeout(2 * PATIENCE):
                while data := await reader.read(4 * MIB):
                    got, check = got + len(data), zlib.crc32(data, check)
        writer.close()
    for number in range(256):
        wanted = zlib.crc32(bytes([number % 251]) * MIB, wanted)

    assert held_back < 64 * MIB
    assert (got, check) == (size, wanted)
    assert max(samples) - samples[0] < 48
    assert at.count() == 1


async def test_flt_up_19_refused_upload_does_not_hang(tmp_path: Path, log: Path) -> None:
    """One that was not kept for a replay gets its 401 while it is still sent, one that was kept is sent again whole."""

    async def script(seen: Seen, reader: Reader, writer: Writer) -> None:
        if seen.values(b"content-length"):
            seen.body = await reader.readexactly(int(seen.values(b"content-length")[0]))
            old = seen.values(b"authorization")[0].endswith(b"-1")
            writer.write(REFUSED if old else GOOD)
            return
        await reader.readexactly(2 * MIB)
        writer.write(REFUSED)
        await writer.drain()
        # Until the sidecar has gone: unread bytes would turn the end of this connection into a reset.
        while await reader.read(MIB):
            pass

    replay = {"memory": "64KiB", "spool": "1MiB"}
    async with site(tmp_path, log, script, read_body=False, replay=replay) as at:
        reader, writer = await asyncio.open_connection("127.0.0.1", at.running.port("plm"))
        writer.write(b"POST /endless HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")

        async def upload() -> None:
            while True:
                writer.write(b"10000\r\n%b\r\n" % bytes(1 << 16))
                await writer.drain()

        sending = asyncio.create_task(upload())
        async with asyncio.timeout(PATIENCE):
            endless = await reader.readuntil(b"no...")
        sending.cancel()
        await asyncio.wait({sending})
        writer.close()
        body = os.urandom(512 << 10)
        kept = await at.send(b"/kept", b"POST", body=body)

    assert status_of(endless) == 401
    assert at.count(b"/endless") == 1
    assert status_of(kept) == 200
    assert [seen.body for seen in at.upstream.seen if b"/kept" in seen.line] == [body, body]


def _answer(status: bytes, *fields: bytes, body: bytes | None = b"") -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, *fields, b"", b""]) + (body or b"")


PACKED = os.urandom(5000)
UNUSUAL = {
    **{
        f"/{coding}": _answer(
            b"200 OK", b"Content-Encoding: %b" % coding.encode(), b"Content-Length: 5000", body=PACKED
        )
        for coding in ("gzip", "br", "zstd", "deflate")
    },
    "/range": _answer(
        b"206 Partial Content", b"Content-Range: bytes 0-4999/90000", b"Content-Length: 5000", body=PACKED
    ),
    "/same": _answer(b"304 Not Modified", b'ETag: "7"', b"Content-Length: 5000"),
    "/head": _answer(b"200 OK", b"Content-Type: x/y", b"Content-Length: 5000"),
}


async def test_flt_up_20_bytes_stay_as_they_are(tmp_path: Path, log: Path) -> None:
    """Compressed bodies, ranges, 304 and HEAD are passed on byte for byte, with the script's own fields."""
    script: Script = by_path({path.encode(): answer for path, answer in UNUSUAL.items()})
    asked = (b"Accept-Encoding: br;q=0.5, gzip", b"Range: bytes=0-4999", b'If-None-Match: "7"')
    async with site(tmp_path, log, script) as at:
        answers = {
            path: await at.send(path.encode(), b"HEAD" if path == "/head" else b"GET", *asked) for path in UNUSUAL
        }

    closing = {
        path: answer.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1) for path, answer in UNUSUAL.items()
    }
    assert answers == closing
    assert all(set(asked) <= set(seen.fields) for seen in at.upstream.seen)


async def test_flt_up_20_events_are_not_held_back(tmp_path: Path, log: Path) -> None:
    """Each event of a stream reaches the script before the next one is sent."""
    got = asyncio.Event()

    async def script(_: Seen, __: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for number in range(3):
            writer.write(b"data: %d\n\n" % number)
            await writer.drain()
            async with asyncio.timeout(PATIENCE):
                await got.wait()
            got.clear()
        writer.close()

    async with site(tmp_path, log, script) as at:
        reader, writer = await asyncio.open_connection("127.0.0.1", at.running.port("plm"))
        writer.write(request(b"/events"))
        async with asyncio.timeout(PATIENCE):
            for number in range(3):
                await reader.readuntil(b"data: %d\n" % number)
                got.set()
            end = await reader.read()
        writer.close()

    assert b"data" not in end
