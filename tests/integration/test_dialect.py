"""An upstream that says in its bodies what became of the credential: looked at before they go out, as they came."""

import asyncio
import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mitmproxy.proxy import commands

from sidecar.clock import SystemClock
from sidecar.events import RequestDone, Trouble
from sidecar.exchange.keepalive import keep_alive
from sidecar.policy.headers import StripSet
from sidecar.policy.idleness import Use
from sidecar.policy.message import Fields, Request
from sidecar.policy.reading import FINE, Reading
from tests import rig as rigs
from tests.canary import WORD, canary
from tests.dialects import LIMIT, speak
from tests.rig import Recorder, Rig, Seen, TokenServer, configuration, raw, recorder, sidecar, status_of
from tests.waiting import PATIENCE, until

DEAD = b'{"code": 401, "error": "the session is over"}'
FINE_BODY = b'{"code": 200, "items": [1, 2, 3]}'
JSON = b"Content-Type: application/json\r\n"
SESSION = canary("session").encode()
QUICK = {"base": "1ms", "cap": "1ms"}


def plain(body: bytes, fields: bytes = JSON, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d X\r\n%bContent-Length: %d\r\n\r\n%b" % (status, fields, len(body), body)


def chunked(body: bytes, fields: bytes = JSON) -> bytes:
    parts = [body[:3], body[3:20], body[20:]]
    return b"HTTP/1.1 200 X\r\n%bTransfer-Encoding: chunked\r\n\r\n%b0\r\nX-Trailer: 1\r\n\r\n" % (
        fields,
        b"".join(b"%x;ext=1\r\n%b\r\n" % (len(part), part) for part in parts if part),
    )


def closed(body: bytes, fields: bytes = JSON) -> bytes:
    return b"HTTP/1.0 200 X\r\n%b\r\n%b" % (fields, body)


def coded(coding: bytes, encode: Callable[[bytes], bytes], wrap: Callable[..., bytes] = plain) -> Callable[..., bytes]:
    return lambda body: wrap(encode(body), b"%bContent-Encoding: %b\r\n" % (JSON, coding))


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


FRAMINGS: dict[str, Callable[..., bytes]] = {
    "length": plain,
    "chunks": chunked,
    "close": closed,
    "gzip": coded(b"gzip", gzip.compress),
    "x-gzip": coded(b"X-GZip", gzip.compress),
    "deflate": coded(b"deflate", zlib.compress),
    "raw deflate": coded(b"deflate", raw_deflate),
    "gzip in chunks": coded(b"gzip", gzip.compress, chunked),
    "gzip, close": coded(b"gzip", gzip.compress, closed),
}


def answering(*answers: bytes) -> rigs.Script:
    """Return an upstream that gives *answers* in turn, then the last one for ever."""
    left = list(answers)

    async def script(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = left.pop(0) if len(left) > 1 else left[0]
        writer.write(answer)
        await writer.drain()
        if answer.startswith(b"HTTP/1.0"):
            writer.close()

    return script


def settings(record: Recorder, tokens: TokenServer, folder: Path, **upstream: Any) -> dict[str, Any]:
    return configuration(record.url, tokens.url, folder, **{"renew": {"min_interval": 0}, "retry": QUICK} | upstream)


async def send(rig: Rig, method: bytes = b"POST", *fields: bytes, path: bytes = b"/x") -> bytes:
    head = b"".join(b"%b\r\n" % field for field in (b"Host: localhost", b"Connection: close", *fields))
    return await raw(rig.port("plm"), b"%b %b HTTP/1.1\r\n%bContent-Length: 3\r\n\r\nabc" % (method, path, head))


def body_of(answer: bytes) -> bytes:
    """Return the body of *answer* without its chunks."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size.partition(b";")[0], 16)
        whole, body = whole + body[:length], body[length + 2 :] if length else b""
    return whole


def done(rig: Rig) -> list[RequestDone]:
    return [event for event in rig.events if isinstance(event, RequestDone)]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold back for an hour what is held back, so that what comes at once was not."""
    monkeypatch.setattr("sidecar.exchange.answer._GATHER_SECONDS", 3600.0)


@pytest.mark.usefixtures("both_modes")
@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_a_body_that_says_expired_is_renewed_and_replayed(
    tokens: TokenServer, tmp_path: Path, framing: str, method: bytes
) -> None:
    """As a 401 is, for any method: the script gets what the newer credential brings, as it came."""
    dead, fine = FRAMINGS[framing](DEAD), FRAMINGS[framing](FINE_BODY)
    async with recorder(answering(dead, fine)) as record:
        async with sidecar(settings(record, tokens, tmp_path)) as rig:
            speak(rig)
            told = await send(rig, method)
            (event,) = done(rig)

    first, second = (seen.values(b"authorization") for seen in record.seen)
    assert len(first) == len(second) == 1
    assert first != second
    assert [seen.body for seen in record.seen] == [b"abc", b"abc"]
    assert (status_of(told), body_of(told)) == (200, body_of(fine))
    assert tokens.calls == 2
    assert (event.verdicts, event.unauthorized, event.visible) == (("renew", "pass"), 1, False)


@pytest.mark.usefixtures("both_modes")
@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("body", [b"", b"{}", FINE_BODY, b'{"code": 4'], ids=["empty", "short", "fine", "begins alike"])
async def test_what_was_held_back_goes_out_as_it_came(
    tokens: TokenServer, tmp_path: Path, framing: str, body: bytes
) -> None:
    """The same head and the same bytes as without a look, and one request."""
    async with recorder(answering(FRAMINGS[framing](body))) as record:
        async with sidecar(settings(record, tokens, tmp_path)) as rig:
            before = await send(rig)
            speak(rig)
            after = await send(rig)

    assert after.partition(b"\r\n\r\n")[0] == before.partition(b"\r\n\r\n")[0]
    assert body_of(after) == body_of(before)
    assert status_of(after) == 200
    assert len(record.seen) == 2


@pytest.mark.usefixtures("both_modes", "patient")
async def test_a_large_body_is_held_back_to_its_bound_only(tokens: TokenServer, tmp_path: Path) -> None:
    """However much a dialect wants: 64 KiB are in memory when the answer begins to go out; all of it comes."""
    release, size = asyncio.Event(), 1 << 20

    async def script(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(plain(b"x" * size)[: -size + (64 << 10)])
        await writer.drain()
        await release.wait()
        writer.write(b"x" * (size - (64 << 10)))

    async with recorder(script) as record:
        async with sidecar(settings(record, tokens, tmp_path)) as rig:
            speak(rig, hold_back=lambda *_: 1 << 30)
            head, rest = await begin(rig, release)

    assert head.startswith(b"HTTP/1.1 200 X")
    assert rest == b"x" * size


async def begin(rig: Rig, release: asyncio.Event, *fields: bytes) -> tuple[bytes, bytes]:
    """Return the head of an answer as soon as it is here, and what comes once the upstream was let go on."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port("plm"))
    lines = b"".join(b"%b\r\n" % field for field in (b"Host: localhost", b"Connection: close", *fields))
    writer.write(b"GET /x HTTP/1.1\r\n%b\r\n" % lines)
    try:
        async with asyncio.timeout(PATIENCE):
            head = await reader.readuntil(b"\r\n\r\n")
            release.set()
            return head, await reader.read()
    finally:
        writer.close()


async def test_a_sign_beyond_what_is_looked_at_is_none(tokens: TokenServer, tmp_path: Path) -> None:
    """Though it may be here already: so many blanks before it pass, and so does it."""
    body = b" " * LIMIT + DEAD
    async with recorder(answering(plain(body))) as record:
        async with sidecar(settings(record, tokens, tmp_path)) as rig:
            speak(rig)
            told = await send(rig)

    assert body_of(told) == body
    assert len(record.seen) == 1


@pytest.mark.usefixtures("both_modes")
async def test_a_drip_is_held_back_for_a_second(tokens: TokenServer, tmp_path: Path) -> None:
    """Bytes that come one by one do not begin the second anew; the drip ends only when the script has the head."""
    release = asyncio.Event()

    async def script(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 X\r\n%bTransfer-Encoding: chunked\r\n\r\n" % JSON)
        while not release.is_set():
            writer.write(b"1\r\n{\r\n")
            await writer.drain()
            await asyncio.sleep(0.05)
        writer.write(b"0\r\n\r\n")

    async with recorder(script) as record:
        async with sidecar(settings(record, tokens, tmp_path)) as rig:
            speak(rig)
            began = asyncio.get_running_loop().time()
            head, rest = await begin(rig, release)
            took = asyncio.get_running_loop().time() - began

    assert status_of(head) == 200
    assert rest.endswith(b"0\r\n\r\n")
    assert took >= 1.0


@pytest.mark.usefixtures("both_modes", "patient")
@pytest.mark.parametrize(
    "disposition",
    [b"attachment", b"ATTACHMENT; filename=session.json", b"attachment;filename*=UTF-8''a.json", b"filename=x", b"x"],
)
async def test_what_is_meant_for_a_file_is_never_held_back(
    tokens: TokenServer, tmp_path: Path, disposition: bytes
) -> None:
    """A JSON document that begins like the end of a session is a document; unknown types are attachments."""
    release = asyncio.Event()

    async def script(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        whole = plain(DEAD, b"%bContent-Disposition: %b\r\n" % (JSON, disposition))
        writer.write(whole[:-20])
        await writer.drain()
        await release.wait()
        writer.write(whole[-20:])

    async with recorder(script) as record:
        async with sidecar(settings(record, tokens, tmp_path)) as rig:
            speak(rig)
            _, rest = await begin(rig, release)

    assert rest == DEAD
    assert len(record.seen) == 1


async def test_what_is_meant_for_the_eye_is_looked_at(tokens: TokenServer, tmp_path: Path) -> None:
    """`inline` says nothing but that."""
    fields = b"%bContent-Disposition: inline; filename=x\r\n" % JSON
    async with recorder(answering(plain(DEAD, fields), plain(FINE_BODY, fields))) as record:
        async with sidecar(settings(record, tokens, tmp_path)) as rig:
            speak(rig)
            assert body_of(await send(rig)) == FINE_BODY


@pytest.mark.usefixtures("both_modes", "patient")
@pytest.mark.parametrize(
    ("method", "answer"),
    [
        (b"HEAD", b"HTTP/1.1 200 X\r\n%bContent-Length: 100\r\n\r\n" % JSON),
        (b"HEAD", b"HTTP/1.1 200 X\r\n%bTransfer-Encoding: chunked\r\n\r\n" % JSON),
        (b"GET", b"HTTP/1.1 204 X\r\n%b\r\n" % JSON),
        (b"GET", b"HTTP/1.1 304 X\r\n%bContent-Length: 100\r\n\r\n" % JSON),
        (b"GET", b"HTTP/1.1 200 X\r\n%bContent-Length: 0\r\n\r\n" % JSON),
    ],
)
async def test_where_no_body_may_come_none_is_waited_for(
    tokens: TokenServer, tmp_path: Path, method: bytes, answer: bytes
) -> None:
    """The answer goes out at once."""
    async with recorder(answering(answer)) as record:
        async with sidecar(settings(record, tokens, tmp_path)) as rig:
            speak(rig)
            told = await send(rig, method)

    assert status_of(told) == int(answer.split(b" ")[1])
    assert body_of(told) == b""


BROKEN = {
    "early end": plain(DEAD)[:-5],
    "a whole sign, then the end": plain(DEAD + b" " * 99)[:-50],
    "early end in chunks": chunked(DEAD)[:-40],
    "no last chunk": b"HTTP/1.1 200 X\r\n%bTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (JSON, len(DEAD), DEAD),
    "not chunks": b"HTTP/1.1 200 X\r\n%bTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n@" % (JSON, len(DEAD), DEAD),
}


@pytest.mark.usefixtures("both_modes")
@pytest.mark.parametrize("ends", [True, False], ids=["closed", "silent"])
@pytest.mark.parametrize("broken", BROKEN)
async def test_an_answer_that_breaks_off_is_told_as_without_a_look(
    tokens: TokenServer, tmp_path: Path, broken: str, ends: bool
) -> None:
    """Whatever it says: what came goes out, and is cut off; nothing is repeated."""

    async def script(_: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(BROKEN[broken])
        await writer.drain()
        if not ends:
            await reader.read()
        writer.close()

    async with recorder(script) as record:
        async with sidecar(settings(record, tokens, tmp_path, timeout={"idle": "200ms"})) as rig:
            before = await send(rig)
            speak(rig)
            after = await send(rig)
            events = done(rig)
            troubles = [
                event.detail for event in rig.events if isinstance(event, Trouble) and event.where == "upstream plm"
            ]

    assert (status_of(after), body_of(after)) == (status_of(before), body_of(before))
    assert len(record.seen) == 2
    assert events[0].outcome == events[1].outcome
    assert events[0].outcome in ("upstream_unreachable", "upstream_timeout")
    first, second = troubles
    assert first == second


@pytest.mark.usefixtures("patient")
async def test_a_client_that_leaves_meanwhile_ends_the_look(tokens: TokenServer, tmp_path: Path) -> None:
    """The connection to the upstream is given up with it."""
    gone = asyncio.Event()

    async def script(_: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(plain(FINE_BODY)[:-5])
        await reader.read()
        gone.set()

    async with recorder(script) as record:
        async with sidecar(settings(record, tokens, tmp_path)) as rig:
            speak(rig)
            client = asyncio.create_task(send(rig))
            await until(lambda: record.seen, "the request")
            client.cancel()
            await asyncio.wait_for(gone.wait(), PATIENCE)
            await until(lambda: done(rig), "the end")

    assert done(rig)[0].outcome == "client_gone"


async def test_the_second_sign_is_the_scripts(tokens: TokenServer, tmp_path: Path) -> None:
    """As the second 401 is: it goes out as it came, counts as seen, and the credential as not taken."""
    async with recorder(answering(plain(DEAD))) as record:
        async with sidecar(settings(record, tokens, tmp_path)) as rig:
            speak(rig)
            told = await send(rig)
            verdicts = rig.app.brokers["plm"].verdicts
            taken, row = verdicts.token, verdicts._row.count
            record.script = answering(plain(FINE_BODY))
            await send(rig)
            (first, second) = done(rig)

    assert told.partition(b"\r\n\r\n")[2] == DEAD
    assert (first.status, first.unauthorized, first.visible) == (200, 2, True)
    assert (taken, row) == (None, 1)
    assert (second.unauthorized, verdicts._row.count) == (0, 0)
    assert verdicts.token is not None


@pytest.mark.parametrize(
    ("code", "verdicts", "sent"),
    [(429, ("200", "pass"), 2), (403, ("pass",), 1), (509, ("pass",), 1), (418, ("pass",), 1)],
)
async def test_other_signs(
    tokens: TokenServer, tmp_path: Path, code: int, verdicts: tuple[str, ...], sent: int
) -> None:
    """Too much is sent again, a POST too, since nothing was done; no newer credential is got for any of them."""
    body = b'{"code": %d}' % code
    async with recorder(answering(plain(body), plain(FINE_BODY))) as record:
        async with sidecar(settings(record, tokens, tmp_path)) as rig:
            speak(rig)
            told = await send(rig)
            (event,) = done(rig)

    assert body_of(told) == (FINE_BODY if sent == 2 else body)
    assert (event.verdicts, len(record.seen), tokens.calls) == (verdicts, sent, 1)


@pytest.mark.parametrize(
    ("accepted", "asked"),
    [
        ([], []),
        ([b"gzip, deflate, br;q=0.9, zstd"], [b"gzip, deflate"]),
        ([b"gzip;q=1.0,deflate;q=0.6,identity;q=0.3"], [b"gzip;q=1.0,deflate;q=0.6,identity;q=0.3"]),
        ([b"br"], [b"identity"]),
        ([b"BR, *"], [b"identity"]),
        ([b""], [b"identity"]),
        ([b"zstd", b"X-GZIP"], [b"identity", b"X-GZIP"]),
    ],
)
async def test_only_what_can_be_looked_into_is_asked_for(
    tokens: TokenServer, tmp_path: Path, accepted: list[bytes], asked: list[bytes]
) -> None:
    """In Accept-Encoding, and where the dialect looks alone."""
    async with recorder() as record:
        async with sidecar(settings(record, tokens, tmp_path)) as rig:
            fields = [b"Accept-Encoding: %b" % value for value in accepted]
            await send(rig, b"GET", *fields)
            speak(rig)
            await send(rig, b"GET", *fields)

    assert [seen.values(b"accept-encoding") for seen in record.seen] == [accepted, asked]


@pytest.mark.parametrize(
    ("coding", "data"),
    [
        (b"br", DEAD),
        (b"gzip, gzip", gzip.compress(gzip.compress(DEAD))),
        (b"gzip", gzip.compress(DEAD)[:12]),
        (b"deflate", b"\x78\x9c" + DEAD),
        (b"gzip", b""),
    ],
    ids=["br", "twice", "a beginning", "no deflate", "empty"],
)
async def test_what_cannot_be_read_passes(tokens: TokenServer, tmp_path: Path, coding: bytes, data: bytes) -> None:
    """Another coding, two of them, or not all of one: as it came."""
    fields = b"%bContent-Encoding: %b\r\n" % (JSON, coding)
    async with recorder(answering(plain(data, fields))) as record:
        async with sidecar(settings(record, tokens, tmp_path)) as rig:
            speak(rig)
            told = await send(rig)

    assert told.partition(b"\r\n\r\n")[2] == data
    assert len(record.seen) == 1


async def test_a_label_that_lies_is_survived(tokens: TokenServer, tmp_path: Path) -> None:
    """Some servers say gzip and send it plain: that the credential is dead is found all the same."""
    lying = plain(DEAD, b"%bContent-Encoding: gzip\r\n" % JSON)
    async with recorder(answering(lying, plain(FINE_BODY))) as record:
        async with sidecar(settings(record, tokens, tmp_path)) as rig:
            speak(rig)
            told = await send(rig)

    assert told.endswith(FINE_BODY)
    assert len(record.seen) == 2


async def test_a_bomb_costs_no_more_than_the_bound(tokens: TokenServer, tmp_path: Path) -> None:
    """What becomes more than is looked at is not looked at: a beginning could say what the whole does not."""
    bomb, looked = gzip.compress(b" " * (2 << 20)), []
    assert len(bomb) < LIMIT

    def read(_: Request, __: int, ___: Fields, body: bytes | None, ____: float) -> Reading:
        looked.append(body)
        return FINE

    async with recorder(answering(plain(bomb, JSON + b"Content-Encoding: gzip\r\n"))) as record:
        async with sidecar(settings(record, tokens, tmp_path)) as rig:
            speak(rig, read=read)
            told = await send(rig)

    assert looked == [None]
    assert told.partition(b"\r\n\r\n")[2] == bomb


# --- what the script never sees ------------------------------------------------------------------------------------

OURS = StripSet(frozenset({b"x-session"}), frozenset({b"SID"}), frozenset())
SHOWN = b"Set-Cookie: lang=en; Path=/\r\nX-Sessions: 1\r\nset-cookie: sid=other-name\r\n"
HIDDEN = (
    b"Set-Cookie: SID=%b; Path=/; HttpOnly\r\nset-cookie: SID = %b\r\nSet_Cookie: SID=%b\r\n"
    b"Set-Cookie2: SID=%b; Version=1\r\nSet-Cookie: a=1; Path=/, SID=%b\r\n"
    b"X-Session: %b\r\nx_SESSION: %b\r\n"
) % ((SESSION,) * 7)
LATE = b"HTTP/1.1 200 X\r\n%bTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n%b\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        plain(FINE_BODY, JSON + HIDDEN + SHOWN),
        plain(DEAD, JSON + HIDDEN + SHOWN),
        *(plain(b"no", HIDDEN + SHOWN, status) for status in (302, 401, 403, 404, 429, 500, 503)),
        b"HTTP/1.1 103 X\r\n%b\r\n" % HIDDEN + plain(b"ok", SHOWN),
        LATE % (SHOWN, HIDDEN),
    ],
    ids=["fine", "dead", "302", "401", "403", "404", "429", "500", "503", "interim", "trailers"],
)
async def test_what_is_ours_is_never_shown(
    tokens: TokenServer, tmp_path: Path, answer: bytes, both_modes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in a good answer, a refused one, an interim one or its trailers, nor to an addon; everything else is."""
    flows: list[Any] = []

    async def look(hook: commands.StartHook) -> None:
        flows.extend(hook.args())

    if both_modes == "addons":
        monkeypatch.setattr(rigs, "dispatch", look)
    async with recorder(answering(answer)) as record:
        async with sidecar(settings(record, tokens, tmp_path)) as rig:
            speak(rig, ours=OURS)
            told = await send(rig)

    assert WORD.encode() not in told
    assert told.partition(b"\r\n\r\n")[0].count(b"\r\n") >= SHOWN.count(b"\r\n")
    assert all(line in told for line in SHOWN.split(b"\r\n"))
    responses = [flow.response for flow in flows if getattr(flow, "response", None)]
    assert bool(responses) == (both_modes == "addons")
    assert not any(WORD in str(response.headers) for response in responses)


async def test_a_credential_may_be_several_fields(tokens: TokenServer, tmp_path: Path) -> None:
    """Each is there once, and none of the script's of that name; the dialect knows method and target."""

    def dress(values: Any, request: Request, target: bytes) -> Fields:
        return (b"X-Session", values["access_token"].reveal().encode()), (b"X-Signed", request.method + b" " + target)

    async with recorder() as record:
        async with sidecar(settings(record, tokens, tmp_path)) as rig:
            speak(rig, dress=dress)
            theirs = (b"x_session: %b" % SESSION, b"X-SIGNED: %b" % SESSION, b"Authorization: %b" % SESSION)
            await send(rig, b"PUT", *theirs, path=b"/a?b=1&access_token=x")

    (seen,) = record.seen
    assert seen.fields[-1] == b"X-Signed: PUT /a?b=1"
    assert seen.fields[-2].startswith(b"X-Session: ")
    assert SESSION not in seen.head
    assert seen.values(b"authorization") == []


async def test_keepalive_tells_that_its_path_refuses_the_credential(tokens: TokenServer, tmp_path: Path) -> None:
    """Whatever the status says."""
    kept = {"path": "/kept", "every": "100ms", "only_if_used_within": "1h"}

    async def script(seen: Seen, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(plain(DEAD if b" /kept " in seen.line else FINE_BODY))

    def troubles(rig: Rig) -> list[str]:
        return [event.detail for event in rig.events if isinstance(event, Trouble) and "keepalive" in event.where]

    async with recorder(script) as record:
        async with sidecar(settings(record, tokens, tmp_path, keepalive=kept)) as rig:
            speak(rig)
            rig.app._assembly.destinations["plm"].broker.beside(_kept_alive(rig), "another keepalive")
            await send(rig)
            await until(lambda: troubles(rig), "the trouble")

    assert troubles(rig)[0].startswith("GET /kept: answered with 200, ")
    assert "expected a path that this credential may use" in troubles(rig)[0]


async def _kept_alive(rig: Rig) -> None:
    """Keep the credential alive by the destination that the test made."""
    made = rig.app._assembly
    rounds = made.proxy.exchange.rounds
    use = Use(target=b"/kept", every=0.1, within=3600.0)
    await keep_alive("plm", use, made.destinations["plm"], rounds, SystemClock(), rig.events.append)
