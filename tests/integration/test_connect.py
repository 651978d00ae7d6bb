"""CONNECT to an upstream: the client's TLS ends here, and the requests inside are served as those of the proxy port."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from sidecar.ca import trust
from sidecar.events import RequestDone, Trouble
from tests.canary import WORD, canary
from tests.rig import (
    OK,
    TOKEN,
    Recorder,
    Rig,
    Seen,
    TokenServer,
    configuration,
    problem_of,
    raw,
    recorder,
    sidecar,
    status_of,
)
from tests.waiting import PATIENCE, until

pytestmark = pytest.mark.usefixtures("both_modes")

STALE = canary("stale").encode()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def upstream(authority: trustme.CA) -> AsyncIterator[Recorder]:
    async with recorder(tls=server_side(authority)) as record:
        yield record


@pytest.fixture
async def rig(upstream: Recorder, tokens: TokenServer, authority: trustme.CA, tmp_path: Path) -> AsyncIterator[Rig]:
    async with sidecar(settings(upstream, tokens, authority, tmp_path)) as running:
        yield running


def server_side(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    return context


def settings(
    upstream: Recorder, tokens: TokenServer, authority: trustme.CA, tmp_path: Path, path: str = "", **more: Any
) -> dict[str, Any]:
    authority.cert_pem.write_to_path(tmp_path / "upstream.pem")
    tls = {"ca": str(tmp_path / "upstream.pem")}
    return configuration(upstream.url + path, tokens.url, tmp_path / "state", tls=tls, **more)


def trusting(tmp_path: Path) -> ssl.SSLContext:
    """Return a client's context that trusts what a client is told to trust, strictly."""
    context = ssl.create_default_context(cafile=str(tmp_path / "state/ca/roots.pem"))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


async def tunnel(rig: Rig, port: int, host: str = "localhost") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a connection after the proxy has said yes to CONNECT."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port())
    writer.write(b"CONNECT %b:%d HTTP/1.1\r\nHost: %b:%d\r\n\r\n" % (host.encode(), port, host.encode(), port))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
    return reader, writer


@contextlib.asynccontextmanager
async def inside(
    rig: Rig, upstream: Recorder, context: ssl.SSLContext
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Return a TLS connection inside CONNECT to the upstream."""
    reader, writer = await tunnel(rig, upstream.port)
    await writer.start_tls(context, server_hostname="localhost")
    try:
        yield reader, writer
    finally:
        writer.close()


async def answer_of(reader: asyncio.StreamReader) -> bytes:
    """Return one answer with a Content-Length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return head + await reader.readexactly(length)


async def test_request_inside_gets_our_credential(rig: Rig, upstream: Recorder, tmp_path: Path) -> None:
    """The client's own is gone, ours is there once, and everything else is as it was."""
    async with inside(rig, upstream, trusting(tmp_path)) as (reader, writer):
        writer.write(
            b"GET /items?a=%41 HTTP/1.1\r\nhOST: localhost\r\nAuthorization: Bearer " + STALE + b"\r\nX: 1\r\n\r\n"
        )
        answer = await answer_of(reader)

    seen = upstream.seen[0]
    assert answer == OK
    assert seen.line == b"GET /items?a=%41 HTTP/1.1"
    assert seen.fields[:2] == [b"hOST: localhost:%d" % upstream.port, b"X: 1"]
    assert seen.values(b"Authorization") == [f"Bearer {TOKEN}-1".encode()]
    assert STALE not in seen.head


async def test_connection_inside_is_kept(rig: Rig, upstream: Recorder, tmp_path: Path) -> None:
    """One handshake for many requests, pipelined ones as well, on one connection to the upstream."""
    async with inside(rig, upstream, trusting(tmp_path)) as (reader, writer):
        for number in range(3):
            writer.write(b"GET /%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % number)
            assert await answer_of(reader) == OK
        writer.write(b"".join(b"GET /p%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % number for number in range(3)))
        for _ in range(3):
            assert await answer_of(reader) == OK

    assert [seen.line.split()[1] for seen in upstream.seen] == [b"/0", b"/1", b"/2", b"/p0", b"/p1", b"/p2"]
    assert upstream.connections == 1


async def test_body_is_waited_for_inside(rig: Rig, upstream: Recorder, tmp_path: Path) -> None:
    """100 Continue goes through the client's TLS as well, and then the body."""
    async with inside(rig, upstream, trusting(tmp_path)) as (reader, writer):
        writer.write(b"POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"body")
        assert await answer_of(reader) == OK

    assert upstream.seen[0].body == b"body"


async def test_answer_before_the_body_is_complete(tokens: TokenServer, authority: trustme.CA, tmp_path: Path) -> None:
    """A client that is still uploading gets the whole answer, with the end of its chunks."""

    async def refuse(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 413 Too Large\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n")

    async with recorder(refuse, read_body=False, tls=server_side(authority)) as record:
        async with sidecar(settings(record, tokens, authority, tmp_path)) as rig:
            async with inside(rig, record, trusting(tmp_path)) as (reader, writer):
                writer.write(b"POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\npart")
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readuntil(b"0\r\n\r\n")

    assert status_of(head) == 413
    assert body == b"2\r\nno\r\n0\r\n\r\n"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_end_of_an_answer_is_told_from_a_cut(
    rig: Rig, upstream: Recorder, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """Where the end of the stream is the end of the body, close_notify comes first (RFC 8446 section 6.1)."""
    context = trusting(tmp_path)
    context.maximum_version = version

    def get() -> bytes:
        with socket.create_connection(("127.0.0.1", rig.port()), timeout=10) as plain:
            plain.sendall(b"CONNECT localhost:%d HTTP/1.0\r\n\r\n" % upstream.port)
            assert plain.recv(100).startswith(b"HTTP/1.1 200")
            with context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False) as secure:
                secure.sendall(b"GET /old HTTP/1.0\r\n\r\n")
                answer = b""
                while part := secure.recv(65536):  # a cut would raise SSLEOFError
                    answer += part
                return answer

    assert (await asyncio.to_thread(get)).endswith(b"\r\n\r\nok")


async def test_plain_http_inside_connect(rig: Rig, upstream: Recorder) -> None:
    """Some clients ask for a tunnel for `http://` too; it is upgraded as it would be without one."""
    reader, writer = await tunnel(rig, upstream.port)
    writer.write(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = await answer_of(reader)
    writer.close()

    assert answer == OK
    assert upstream.seen[0].values(b"Authorization") == [f"Bearer {TOKEN}-1".encode()]


async def test_what_comes_with_connect_is_not_lost(rig: Rig, upstream: Recorder) -> None:
    """A client may send on before it has read our yes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port())
    writer.write(
        b"CONNECT localhost:%d HTTP/1.1\r\nHost: a\r\n\r\nGET /early HTTP/1.1\r\nHost: a\r\n\r\n" % upstream.port
    )
    await reader.readuntil(b"\r\n\r\n")
    answer = await answer_of(reader)
    writer.close()

    assert answer == OK
    assert upstream.seen[0].line == b"GET /early HTTP/1.1"


async def test_certificate_is_for_the_host_that_was_asked_for(rig: Rig, upstream: Recorder, tmp_path: Path) -> None:
    """One name, an elliptic curve, a day; ALPN says HTTP/1.1 even to a client that would like HTTP/2."""
    context = trusting(tmp_path)
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with inside(rig, upstream, context) as (_, writer):
        secure = writer.get_extra_info("ssl_object")
        leaf = x509.load_der_x509_certificate(secure.getpeercert(binary_form=True))
        protocol = secure.selected_alpn_protocol()

    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName("localhost")]
    assert isinstance(leaf.public_key(), ec.EllipticCurvePublicKey)
    assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds() <= 25 * 3600
    assert protocol == "http/1.1"


async def test_base_path_holds_inside(
    upstream: Recorder, tokens: TokenServer, authority: trustme.CA, tmp_path: Path
) -> None:
    """A path beside it is refused, though the host is the upstream's."""
    async with sidecar(settings(upstream, tokens, authority, tmp_path, path="/v1")) as rig:
        async with inside(rig, upstream, trusting(tmp_path)) as (reader, writer):
            writer.write(b"GET /v2/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
            refused = await answer_of(reader)
            writer.write(b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
            served = await answer_of(reader)

    assert problem_of(refused)["reason"] == "no_route"
    assert served == OK
    assert [seen.line for seen in upstream.seen] == [b"GET /v1/x HTTP/1.1"]


REFUSED = [
    "other.example:443",
    "localhost:1",
    "localhost:22",
    "localhost:443",
    "localhost.evil.example:{upstream}",
    "127.0.0.1:{upstream}",
    "[::1]:{upstream}",
    "127.0.0.1:{admin}",
    "localhost:{admin}",
    "localhost:{proxy}",
    "169.254.169.254:80",
    "[::ffff:169.254.169.254]:80",
    "2852039166:80",
    "[fe80::1]:443",
]


@pytest.mark.parametrize("target", REFUSED)
async def test_nothing_else_can_be_reached(
    rig: Rig, upstream: Recorder, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """403 before any connection is tried, for other hosts, other ports, our own ports and cloud metadata."""
    await until(lambda: rig.app.brokers["plm"].status().usable, "the first token")
    dialled: list[Any] = []
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(type(loop), "sock_connect", lambda *args: dialled.append(args))
    monkeypatch.setattr(type(loop), "getaddrinfo", lambda *args, **_: dialled.append(args))
    named = target.format(upstream=upstream.port, admin=rig.port("admin"), proxy=rig.port()).encode()

    def ask() -> bytes:
        with socket.create_connection(("127.0.0.1", rig.port()), timeout=10) as client:
            client.sendall(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (named, named))
            return b"".join(iter(lambda: client.recv(65536), b""))

    answer = await asyncio.to_thread(ask)
    events = [event for event in rig.events if isinstance(event, RequestDone)]

    assert (status_of(answer), problem_of(answer)["reason"]) == (403, "no_route")
    assert dialled == []
    assert upstream.connections == 0
    assert [(event.method, event.path, event.status) for event in events] == [("CONNECT", named.decode(), 403)]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", 400),
        (b"\x00\x01\x02\x03\r\n\r\n", 400),
        (b"EHLO localhost\r\n\r\n", 400),
        (b"\x80\x2e\x01\x00\x02\r\n\r\n", 400),
        (b"CONNECT localhost:1 HTTP/1.1\r\nHost: a\r\n\r\n", 403),
        (b"GET https://other.example/ HTTP/1.1\r\nHost: a\r\n\r\n", 403),
    ],
)
async def test_raw_bytes_go_nowhere(rig: Rig, upstream: Recorder, sent: bytes, status: int) -> None:
    """What is neither TLS nor a request for this upstream ends here."""
    reader, writer = await tunnel(rig, upstream.port)
    writer.write(sent)
    answer = await reader.read()
    writer.close()

    assert status_of(answer) == status
    assert upstream.connections == 0


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x00\x05hello", b"\x16\x03\x01" + b"\xff" * (70 << 10)])
async def test_broken_handshake_ends_the_connection(
    upstream: Recorder, tokens: TokenServer, authority: trustme.CA, tmp_path: Path, sent: bytes
) -> None:
    """A ClientHello that makes no sense, or that never ends, is not kept, and the log says that it failed."""
    data = settings(upstream, tokens, authority, tmp_path) | {"limits": {"header_timeout": "2s"}}
    async with sidecar(data) as rig:
        reader, writer = await tunnel(rig, upstream.port)
        writer.write(sent)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()

        await asyncio.sleep(0)
        assert any(isinstance(event, Trouble) and event.where.startswith("CONNECT localhost") for event in rig.events)
    assert upstream.connections == 0


async def test_silent_tunnel_is_ended(
    upstream: Recorder, tokens: TokenServer, authority: trustme.CA, tmp_path: Path
) -> None:
    """The time to begin a handshake is bounded; once it stands, the connection may idle as any other."""
    data = settings(upstream, tokens, authority, tmp_path) | {"limits": {"header_timeout": "2s"}}
    async with sidecar(data) as rig:
        reader, writer = await tunnel(rig, upstream.port)
        async with inside(rig, upstream, trusting(tmp_path)) as (secure_reader, secure_writer):
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
            await asyncio.sleep(0.5)
            secure_writer.write(b"GET /late HTTP/1.1\r\nHost: a\r\n\r\n")
            assert await answer_of(secure_reader) == OK
        writer.close()


async def test_client_that_does_not_trust_us_is_told_of(rig: Rig, upstream: Recorder) -> None:
    """The script has an error of its own; the log has ours, with what to do."""
    _, writer = await tunnel(rig, upstream.port)
    with pytest.raises(ssl.SSLCertVerificationError):
        await writer.start_tls(ssl.create_default_context(), server_hostname="localhost")
    writer.close()

    def told() -> list[Trouble]:
        return [event for event in rig.events if isinstance(event, Trouble) and "CONNECT" in event.where]

    await until(told, "the log")
    troubles = told()

    assert troubles[0].where == f"CONNECT localhost:{upstream.port}"
    assert "does it trust the bundle of the local CA?" in troubles[0].detail


async def test_fault_of_the_authority_closes(
    rig: Rig, upstream: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a certificate there is no TLS, and no request either."""

    def boom(*_: object) -> None:
        raise RuntimeError(canary("fault"))

    monkeypatch.setattr(trust, "server_context", boom)
    _, writer = await tunnel(rig, upstream.port)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await writer.start_tls(trusting(tmp_path), server_hostname="localhost")
    writer.close()

    assert upstream.connections == 0
    assert WORD not in repr(rig.events)


async def test_many_tunnels_leave_nothing_behind(rig: Rig, upstream: Recorder, tmp_path: Path) -> None:
    """Whether they end well, in the middle of the handshake, or before it."""
    context = trusting(tmp_path)

    async def once(number: int) -> None:
        if number % 3 == 0:
            _, writer = await tunnel(rig, upstream.port)
            writer.close()
            return
        async with inside(rig, upstream, context) as (reader, writer):
            if number % 3 == 1:
                writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                assert await answer_of(reader) == OK

    def left() -> tuple[int, int]:
        return len(asyncio.all_tasks()), len(list(Path("/proc/self/fd").iterdir()))

    for number in range(6):
        await once(number)
    await asyncio.sleep(0.3)
    tasks, descriptors = left()
    for number in range(90):
        await once(number)

    await until(lambda: left()[0] <= tasks and left()[1] <= descriptors, "nothing left")


async def test_refused_connect_says_so_once(rig: Rig) -> None:
    """The answer is whole, and the connection is closed after it."""
    answer = await raw(rig.port(), b"CONNECT other.example:443 HTTP/1.1\r\nHost: a\r\n\r\n")

    assert status_of(answer) == 403
    assert b"\r\nConnection: close\r\n" in answer
