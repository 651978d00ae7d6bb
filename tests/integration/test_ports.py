"""The ports of a sidecar: who is let in, on TCP and on unix sockets, and the port that commands of `exec` get."""

import asyncio
import base64
import contextlib
import json
import socket
import ssl
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from sidecar.errors import ConfigurationError
from sidecar.events import RequestDone
from sidecar.proxy.sockets import bind
from sidecar.settings import Settings, SocketPath
from tests.canary import WORD, canary
from tests.rig import (
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

CLOSE = b"Connection: close\r\n\r\n"
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
CHALLENGE = b'Proxy-Authenticate: Basic realm="auth-sidecar", charset="UTF-8"\r\n'
USER = "skript"
PASSWORD = canary("ports-pässwörd")
ADMIN = canary("ports-admin-token")
SOON = 30.0


def login(password: str = PASSWORD, scheme: bytes = b"Basic") -> bytes:
    encoded = base64.b64encode(f"{USER}:{password}".encode())
    return b"Proxy-Authorization: %b %b\r\n" % (scheme, encoded)


@pytest.fixture
def data(upstream: Recorder, tokens: TokenServer, tmp_path: Path) -> dict[str, Any]:
    # Called by its name, so that other ports of this machine belong to another host: its address.
    found = configuration(f"http://localhost:{upstream.port}/api", tokens.url, tmp_path / "state")
    found["listen"]["admin_token"] = {"value": ADMIN}
    return found


@pytest.fixture
async def rig(data: dict[str, Any]) -> AsyncIterator[Rig]:
    async with sidecar(data) as running:
        yield running


@pytest.fixture
async def guarded(data: dict[str, Any]) -> AsyncIterator[Rig]:
    data["listen"]["auth"] = {"username": USER, "password": {"value": PASSWORD}}
    data["passthrough"] = ["127.0.0.1"]
    async with sidecar(data) as running:
        yield running


async def over(path: Path, data: bytes) -> bytes:
    """Send *data* to a unix socket and return all that comes until the connection closes."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(data)
        async with asyncio.timeout(SOON):
            return await reader.read()
    finally:
        writer.close()


def get(port: int, *fields: bytes, host: bytes = b"localhost", path: bytes = b"/api/x") -> bytes:
    return b"GET http://%b:%d%b HTTP/1.1\r\nHost: a\r\n" % (host, port, path) + b"".join(fields) + CLOSE


WRONG = [
    b"",
    login("wrong"),
    login("wrong" + canary("tried")),
    login(scheme=b"Bearer"),
    login(scheme=b"Digest"),
    b"Proxy-Authorization: Basic %%%\r\n",
    b"Proxy-Authorization: Basic\r\n",
    b"Proxy-Authorization: " + f"{USER}:{PASSWORD}".encode() + b"\r\n",
    b"Authorization: Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()) + b"\r\n",
]


@pytest.mark.parametrize("wrong", WRONG)
async def test_without_the_password_nothing_is_served(
    guarded: Rig, upstream: Recorder, other: Recorder, wrong: bytes
) -> None:
    """For an upstream, for another host, in absolute-form and by CONNECT: 407 with a challenge, nothing dialled."""
    requests = [
        get(upstream.port, wrong),
        get(other.port, wrong, host=b"127.0.0.1"),
        get(80, wrong, host=b"nowhere.example"),
        b"CONNECT localhost:%d HTTP/1.1\r\nHost: a\r\n" % upstream.port + wrong + b"\r\n",
        b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: a\r\n" % other.port + wrong + b"\r\n",
        b"CONNECT nowhere.example:443 HTTP/1.1\r\nHost: a\r\n" + wrong + b"\r\n",
    ]
    for request in requests:
        answer = await raw(guarded.port(), request)
        assert (status_of(answer), problem_of(answer)["reason"]) == (407, "proxy_auth_required"), request
        assert CHALLENGE in answer
        assert WORD.encode() not in answer

    assert upstream.connections == other.connections == 0
    outcomes = [(event.status, event.outcome) for event in guarded.events if isinstance(event, RequestDone)]
    assert outcomes == [(407, "proxy_auth_required")] * len(requests)


@pytest.mark.parametrize("scheme", [b"Basic", b"basic", b"BASIC"])
async def test_with_the_password_all_is_served(
    guarded: Rig, upstream: Recorder, other: Recorder, scheme: bytes
) -> None:
    """The password is for us: it goes to no host, and into no event."""
    right = login(scheme=scheme)
    served = [
        await raw(guarded.port(), get(upstream.port, right)),
        await raw(guarded.port(), get(other.port, right, host=b"127.0.0.1", path=b"/y")),
    ]
    for port, host in ((upstream.port, b"localhost"), (other.port, b"127.0.0.1")):
        reader, writer = await asyncio.open_connection("127.0.0.1", guarded.port())
        writer.write(b"CONNECT %b:%d HTTP/1.1\r\nHost: a\r\n%b\r\n" % (host, port, right))
        assert await reader.readuntil(b"\r\n\r\n") == ESTABLISHED
        writer.write(b"GET /api/in HTTP/1.1\r\nHost: localhost\r\n\r\n")
        served.append(await reader.readuntil(b"ok"))
        writer.close()

    assert [status_of(answer) for answer in served] == [200] * 4
    assert [seen.line for seen in upstream.seen] == [b"GET /api/x HTTP/1.1", b"GET /api/in HTTP/1.1"]
    assert [seen.line for seen in other.seen] == [b"GET /y HTTP/1.1", b"GET /api/in HTTP/1.1"]
    encoded = right.split()[2]
    for seen in upstream.seen + other.seen:
        assert encoded not in seen.head
        assert not seen.values(b"proxy-authorization")
    told = repr(guarded.events)
    assert WORD not in told
    assert encoded.decode() not in told


async def test_password_is_asked_for_once_per_connect(guarded: Rig, upstream: Recorder) -> None:
    """Inside CONNECT the client speaks as to the upstream: it is not asked again, and what was for us is stripped."""
    reader, writer = await asyncio.open_connection("127.0.0.1", guarded.port())
    writer.write(b"CONNECT localhost:%d HTTP/1.1\r\nHost: a\r\n%b\r\n" % (upstream.port, login()))
    assert await reader.readuntil(b"\r\n\r\n") == ESTABLISHED
    for inner in (b"", login("wrong")):
        writer.write(b"GET /api/in HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % inner)
        assert status_of(await reader.readuntil(b"ok")) == 200
    writer.close()

    assert [seen.values(b"proxy-authorization") for seen in upstream.seen] == [[], []]


async def test_password_holds_for_one_request_only(guarded: Rig, upstream: Recorder) -> None:
    """A connection that was let in once is asked again: another client may share it through a proxy of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", guarded.port())
    target = b"GET http://localhost:%d/api/x HTTP/1.1\r\nHost: a\r\n" % upstream.port
    writer.write(target + login() + b"\r\n")
    assert status_of(await reader.readuntil(b"ok")) == 200
    writer.write(target + CLOSE)
    assert status_of(await reader.read()) == 407
    writer.close()

    assert len(upstream.seen) == 1


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        (b"Content-Length: 5\r\n", b"hello"),
        (b"Content-Length: 300000\r\n", b"x" * 300_000),
        (b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
        (b"", b""),
    ],
)
@pytest.mark.parametrize("together", [True, False])
async def test_connection_is_usable_after_a_407(
    guarded: Rig, upstream: Recorder, framing: bytes, body: bytes, together: bool
) -> None:
    """Clients send the request again on the connection where they were asked; the first body is not taken for it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", guarded.port())
    head = b"POST http://localhost:%d/api/up HTTP/1.1\r\nHost: a\r\n" % upstream.port + framing
    async with asyncio.timeout(SOON):
        writer.write(head + b"\r\n" + (body if together else b""))
        refused = await reader.readuntil(b"}")
        if not together:
            writer.write(body)
        writer.write(head + login() + b"\r\n" + body)
        served = await reader.readuntil(b"ok")
    writer.close()

    assert problem_of(refused)["reason"] == "proxy_auth_required"
    assert served.startswith(b"HTTP/1.1 200")
    assert [seen.body for seen in upstream.seen] == [b"hello" if b"hello" in body else body]


async def test_other_ports_do_not_ask_for_the_password(guarded: Rig, upstream: Recorder) -> None:
    """`listen.auth` is for the proxy port; loopback is what guards the others."""
    assert status_of(await raw(guarded.port("plm"), b"GET /x HTTP/1.1\r\nHost: localhost\r\n" + CLOSE)) == 200
    assert status_of(await raw(guarded.port("admin"), b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + CLOSE)) == 200


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (b"Host: localhost:%d\r\n", 200),
        (b"Host: 127.0.0.1\r\nSec-Fetch-Site: same-origin\r\n", 200),
        (b"Host: 127.0.0.1:%d\r\nOrigin: http://127.0.0.1:%d\r\n", 200),
        (b"Host: 127.0.0.1:%d\r\nOrigin: http://localhost:%d\r\n", 403),
        (b"Host: rebound.example:%d\r\n", 403),
        (b"Host: localhost:%d\r\nOrigin: https://rebound.example\r\n", 403),
        (b"Host: localhost:%d\r\nOrigin: null\r\n", 403),
        (b"Host: localhost:%d\r\nSec-Fetch-Site: cross-site\r\n", 403),
        (b"Host: localhost:%d\r\nSec-Fetch-Site: same-site\r\n", 403),
    ],
)
async def test_reverse_port_serves_no_foreign_page(rig: Rig, upstream: Recorder, fields: bytes, status: int) -> None:
    """What a page of another origin, or of a name that resolves to loopback, sends gets 403 and no credential."""
    fields = fields.replace(b"%d", b"%d" % rig.port("plm"))
    answer = await raw(rig.port("plm"), b"GET /x HTTP/1.1\r\n" + fields + CLOSE)

    assert status_of(answer) == status
    if status == 403:
        assert problem_of(answer)["reason"] == "no_route"
    assert len(upstream.seen) == (status == 200)


async def test_reverse_port_answers_to_the_upstreams_name(data: dict[str, Any], upstream: Recorder) -> None:
    """A client that was given the port as its proxy by hand calls it by the upstream's name, and so may its pages."""
    data["upstreams"]["plm"]["base_url"] = "http://plm.example/api"
    fields = b"Host: plm.example\r\nOrigin: http://plm.example\r\n"
    async with sidecar(data) as rig:
        meant = await raw(rig.port("plm"), b"TRACE /x HTTP/1.1\r\n" + fields + CLOSE)
        other = await raw(rig.port("plm"), b"TRACE /x HTTP/1.1\r\nHost: plm2.example\r\n" + CLOSE)

    assert problem_of(meant)["reason"] == "method_refused"
    assert problem_of(other)["reason"] == "no_route"


@pytest.mark.parametrize(("site", "status"), [(b"cross-site", 403), (b"same-site", 200), (b"none", 200)])
async def test_proxy_port_gives_no_credential_to_a_foreign_page(
    data: dict[str, Any], upstream: Recorder, other: Recorder, site: bytes, status: int
) -> None:
    """A browser behind the proxy may use every host as before, but no other site uses an upstream through it."""
    data["passthrough"] = ["127.0.0.1"]
    field = b"Sec-Fetch-Site: %b\r\n" % site
    async with sidecar(data) as rig:
        ours = await raw(rig.port(), get(upstream.port, field))
        theirs = await raw(rig.port(), get(other.port, field, host=b"127.0.0.1"))
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port())
        writer.write(b"CONNECT localhost:%d HTTP/1.1\r\nHost: a\r\n\r\n" % upstream.port)
        assert await reader.readuntil(b"\r\n\r\n") == ESTABLISHED
        writer.write(b"GET /api/in HTTP/1.1\r\nHost: localhost\r\n" + field + CLOSE)
        inside = await reader.read()
        writer.close()

    assert (status_of(ours), status_of(theirs), status_of(inside)) == (status, 200, status)
    assert len(upstream.seen) == (2 if status == 200 else 0)
    assert other.seen[0].values(b"sec-fetch-site") == [site]


def on_sockets(data: dict[str, Any], directory: Path) -> dict[str, Path]:
    """Put every port of *data* on a unix socket in *directory*, and return the paths."""
    paths = {name: directory / f"{name}.sock" for name in ("proxy", "admin", "plm")}
    data["listen"] |= {"proxy": f"unix:{paths['proxy']}", "admin": f"unix:{paths['admin']}"}
    data["upstreams"]["plm"]["listen"] = f"unix:{paths['plm']}"
    return paths


async def test_every_port_serves_on_a_unix_socket(
    data: dict[str, Any], upstream: Recorder, other: Recorder, tmp_path: Path
) -> None:
    """Requests, CONNECT, tunnels, any Host on the reverse port, and the admin port."""
    paths = on_sockets(data, tmp_path)
    data["passthrough"] = ["127.0.0.1"]
    async with sidecar(data) as rig:
        assert rig.app.addresses == {name: f"unix:{path}" for name, path in paths.items()}
        run_file = json.loads((tmp_path / "state/run.json").read_text())
        assert run_file["addresses"] == rig.app.addresses
        answers = [
            await over(paths["proxy"], get(upstream.port)),
            await over(paths["proxy"], get(other.port, host=b"127.0.0.1")),
            await over(paths["plm"], b"GET /y HTTP/1.1\r\nHost: any.example\r\nOrigin: http://any.example\r\n" + CLOSE),
            await over(paths["admin"], b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + CLOSE),
        ]
        for port, host in ((upstream.port, b"localhost"), (other.port, b"127.0.0.1")):
            reader, writer = await asyncio.open_unix_connection(str(paths["proxy"]))
            writer.write(b"CONNECT %b:%d HTTP/1.1\r\nHost: a\r\n\r\n" % (host, port))
            assert await reader.readuntil(b"\r\n\r\n") == ESTABLISHED
            writer.write(b"GET /api/in HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answers.append(await reader.readuntil(b"ok"))
            writer.close()

    assert [status_of(answer) for answer in answers] == [200] * 6
    assert [seen.line.split()[1] for seen in upstream.seen] == [b"/api/x", b"/api/y", b"/api/in"]
    assert all(seen.values(b"authorization") == [f"Bearer {TOKEN}-1".encode()] for seen in upstream.seen)


async def test_tls_is_intercepted_on_a_unix_socket(data: dict[str, Any], tokens: TokenServer, tmp_path: Path) -> None:
    """A client whose proxy is a unix socket is served `https://` like any other."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    paths = on_sockets(data, tmp_path)
    async with recorder(tls=context) as secure:
        data["upstreams"]["plm"] |= {"base_url": secure.url, "tls": {"ca": str(tmp_path / "ca.pem")}}
        async with sidecar(data):
            reader, writer = await asyncio.open_unix_connection(str(paths["proxy"]))
            writer.write(b"CONNECT localhost:%d HTTP/1.1\r\nHost: a\r\n\r\n" % secure.port)
            assert await reader.readuntil(b"\r\n\r\n") == ESTABLISHED
            trusted = ssl.create_default_context(cafile=str(tmp_path / "state/ca/roots.pem"))
            await writer.start_tls(trusted, server_hostname="localhost")
            writer.write(b"GET /x HTTP/1.1\r\nHost: a\r\n" + CLOSE)
            answer = await reader.read()
            writer.close()

    assert answer.endswith(b"ok")
    assert secure.seen[0].values(b"authorization") == [f"Bearer {TOKEN}-1".encode()]


async def test_unix_sockets_are_for_owner_and_group(data: dict[str, Any], tmp_path: Path) -> None:
    """Whoever may open the socket can use the credential, so that others may not."""
    paths = on_sockets(data, tmp_path)
    async with sidecar(data):
        modes = {stat.filemode(path.stat().st_mode) for path in paths.values()}

    assert modes == {"srw-rw----"}


async def test_password_is_asked_for_on_a_unix_socket(data: dict[str, Any], upstream: Recorder, tmp_path: Path) -> None:
    """`listen.auth` holds for the proxy port wherever it is."""
    paths = on_sockets(data, tmp_path)
    data["listen"]["auth"] = {"username": USER, "password": {"value": PASSWORD}}
    async with sidecar(data):
        assert status_of(await over(paths["proxy"], get(upstream.port))) == 407
        assert status_of(await over(paths["proxy"], get(upstream.port, login()))) == 200


async def test_socket_of_a_dead_process_is_replaced(data: dict[str, Any], upstream: Recorder, tmp_path: Path) -> None:
    """What nobody listens on any more is in nobody's way, also when we left it ourselves."""
    paths = on_sockets(data, tmp_path)
    for path in paths.values():
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    for _ in range(2):
        async with sidecar(data):
            assert status_of(await over(paths["proxy"], get(upstream.port))) == 200
            assert status_of(await over(paths["plm"], b"GET /x HTTP/1.1\r\nHost: a\r\n" + CLOSE)) == 200


@pytest.mark.parametrize("name", ["proxy", "admin", "plm"])
async def test_socket_in_use_is_an_error(data: dict[str, Any], tmp_path: Path, name: str) -> None:
    """Another process that listens there keeps its socket, and the operator is told which key it is about."""
    paths = on_sockets(data, tmp_path)
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(str(paths[name]))
        alive.listen()
        with pytest.raises(ConfigurationError, match=f"cannot listen on unix:{paths[name]}: .*expected a free"):
            async with sidecar(data):
                pass
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(paths[name]))


def test_socket_of_a_process_that_hangs_is_in_use(tmp_path: Path) -> None:
    """A queue that is full because nobody accepts does not make us wait for a place in it."""
    path = tmp_path / "hung.sock"
    with socket.socket(socket.AF_UNIX) as hung, contextlib.ExitStack() as fillers:
        hung.bind(str(path))
        hung.listen(0)
        for _ in range(4):
            filler = fillers.enter_context(socket.socket(socket.AF_UNIX))
            filler.setblocking(False)
            filler.connect_ex(str(path))
        end = threading.Timer(SOON, hung.shutdown, [socket.SHUT_RDWR])  # for whoever waits for a place
        end.start()
        try:
            with pytest.raises(ConfigurationError, match="expected a free"):
                bind(SocketPath(str(path)), "listen.proxy")
            assert end.is_alive()
        finally:
            end.cancel()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
async def test_what_is_no_socket_is_not_replaced(data: dict[str, Any], tmp_path: Path, kind: str) -> None:
    """A path that was mistyped costs nobody a file."""
    path = on_sockets(data, tmp_path)["proxy"]
    if kind == "directory":
        path.mkdir()
    elif kind == "link":
        (tmp_path / "precious").write_text("precious")
        path.symlink_to(tmp_path / "precious")
    else:
        path.write_text("precious")
    with pytest.raises(ConfigurationError, match=r"listen\.proxy: cannot listen on unix:"):
        async with sidecar(data):
            pass

    assert path.is_dir() if kind == "directory" else path.read_text() == "precious"


async def test_socket_that_cannot_be_made_is_an_error(data: dict[str, Any], tmp_path: Path) -> None:
    """A directory that does not exist is told, and nothing else stays bound."""
    paths = on_sockets(data, tmp_path)
    data["upstreams"]["plm"]["listen"] = f"unix:{tmp_path}/missing/plm.sock"
    with pytest.raises(ConfigurationError, match=r"upstreams\.plm\.listen: .*No such file"):
        async with sidecar(data):
            pass

    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
        client.connect(str(paths["proxy"]))


async def exec_port(rig: Rig, *, authorization: bytes = b"Bearer " + ADMIN.encode(), fields: bytes = b"") -> bytes:
    request = b"POST /exec HTTP/1.1\r\nHost: localhost\r\nAuthorization: %b\r\n%bContent-Length: 0\r\n"
    return await raw(rig.port("admin"), request % (authorization, fields) + CLOSE)


def port_in(answer: bytes) -> int:
    assert status_of(answer) == 200
    found: str = json.loads(answer.partition(b"\r\n\r\n")[2])["proxy"]
    address, _, port = found.rpartition(":")
    assert address == "127.0.0.1"
    return int(port)


@pytest.mark.parametrize(
    "authorization",
    [b"", b"Bearer", b"Bearer ", b"Bearer wrong", b"Basic " + ADMIN.encode(), ADMIN.encode()[:-1], b"Bearer \xff\xfe"],
)
async def test_exec_port_is_not_opened_without_the_admin_token(rig: Rig, authorization: bytes) -> None:
    """A port that passes every host through is opened only for who may read our files."""
    answer = await exec_port(rig, authorization=authorization)

    assert status_of(answer) == 401
    assert b"127.0.0.1" not in answer
    assert WORD.encode() not in answer


async def test_exec_port_is_not_opened_for_a_page(rig: Rig) -> None:
    """A page in a browser is refused before its token is looked at, and so is another method."""
    for fields in (b"Origin: http://localhost\r\n", b"Sec-Fetch-Site: cross-site\r\n"):
        assert status_of(await exec_port(rig, fields=fields)) == 403
    get_it = b"GET /exec HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n" % ADMIN.encode() + CLOSE
    assert status_of(await raw(rig.port("admin"), get_it)) == 405


async def test_exec_port_is_the_same_each_time(rig: Rig) -> None:
    """Commands share one port, also those that ask at the same moment, and it is none of the others."""
    at_once = await asyncio.gather(*(exec_port(rig) for _ in range(8)))
    later = await exec_port(rig)

    ports = {port_in(answer) for answer in (*at_once, later)}
    assert len(ports) == 1
    assert ports.isdisjoint({rig.port("proxy"), rig.port("admin"), rig.port("plm")})
    assert "exec" not in rig.app.addresses


async def test_exec_port_serves_at_once_for_all_who_ask(rig: Rig, upstream: Recorder) -> None:
    """Each of those who asked at the same moment can use the port as soon as it has the answer."""

    async def use() -> int:
        port = port_in(await exec_port(rig))
        return status_of(await raw(port, get(upstream.port), wait=SOON))

    assert await asyncio.gather(*(use() for _ in range(8))) == [200] * 8


async def test_exec_port_gives_the_credential_to_upstreams(rig: Rig, upstream: Recorder, tokens: TokenServer) -> None:
    """The same token as on the proxy port: there is one broker per upstream."""
    port = port_in(await exec_port(rig))
    answers = [await raw(port, get(upstream.port)), await raw(rig.port(), get(upstream.port))]

    assert [status_of(answer) for answer in answers] == [200, 200]
    assert [seen.values(b"authorization") for seen in upstream.seen] == [[f"Bearer {TOKEN}-1".encode()]] * 2
    assert tokens.calls == 1


async def _tunnelled(port: int, other: Recorder) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: a\r\n\r\n" % other.port)
        head = await reader.readuntil(b"\r\n\r\n")
        if head == ESTABLISHED:
            writer.write(b"GET /t HTTP/1.1\r\nHost: a\r\n\r\n")
            await reader.readuntil(b"ok")
        return head
    finally:
        writer.close()


async def test_exec_port_tunnels_to_other_hosts(rig: Rig, other: Recorder) -> None:
    """A command's other `https://` hosts work there, while the proxy port still refuses them."""
    assert status_of(await _tunnelled(rig.port(), other)) == 403
    port = port_in(await exec_port(rig))

    assert status_of(await _tunnelled(port, other)) == 200
    assert status_of(await _tunnelled(rig.port(), other)) == 403


async def test_exec_port_forwards_to_other_hosts(rig: Rig, other: Recorder) -> None:
    """A command's other `http://` hosts work there, while the proxy port still refuses them."""
    request = get(other.port, host=b"127.0.0.1")
    assert status_of(await raw(rig.port(), request)) == 403
    port = port_in(await exec_port(rig))

    assert status_of(await raw(port, request)) == 200
    assert status_of(await raw(rig.port(), request)) == 403
    assert len(other.seen) == 1


async def test_exec_port_asks_for_the_password(guarded: Rig, upstream: Recorder, other: Recorder) -> None:
    """`listen.auth` holds there too."""
    port = port_in(await exec_port(guarded))

    assert status_of(await raw(port, get(upstream.port))) == 407
    assert status_of(await raw(port, get(upstream.port, login()))) == 200
    assert status_of(await raw(port, get(other.port, host=b"127.0.0.1"))) == 407


async def test_exec_port_is_one_of_ours(rig: Rig) -> None:
    """No request is passed through into it, from itself neither."""
    port = port_in(await exec_port(rig))

    for asked in (rig.port(), port):
        for target in (port, rig.port("admin")):
            assert problem_of(await raw(asked, get(target, host=b"127.0.0.1")))["reason"] == "no_route"
            answer = await raw(asked, b"CONNECT [::1]:%d HTTP/1.1\r\nHost: a\r\n" % target + CLOSE)
            assert problem_of(answer)["reason"] == "no_route"


async def test_exec_port_is_drained_like_the_others(data: dict[str, Any], upstream: Recorder) -> None:
    """A command's request that is under way when the sidecar stops gets its answer."""
    asked = asyncio.Event()

    async def slow(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await asyncio.sleep(0.5)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    upstream.script = slow
    async with sidecar(data) as rig:
        port = port_in(await exec_port(rig))
        answer = asyncio.create_task(raw(port, get(upstream.port)))
        await asked.wait()

    assert (await answer).endswith(b"ok")


async def test_exec_port_closes_with_the_sidecar(data: dict[str, Any]) -> None:
    """Nothing listens there afterwards."""
    async with sidecar(data) as rig:
        port = port_in(await exec_port(rig))
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_upstream_called_exec_does_not_get_in_the_way(data: dict[str, Any], other: Recorder) -> None:
    """The name is refused, or the port for commands is a proxy port all the same."""
    data["upstreams"] = {"exec": data["upstreams"]["plm"]}
    with contextlib.suppress(ValueError):
        Settings.model_validate(data)
        async with sidecar(data) as rig:
            port = port_in(await exec_port(rig))
            assert port != rig.port("exec")
            assert status_of(await _tunnelled(port, other)) == 200


async def test_exec_port_is_there_when_the_proxy_is_a_unix_socket(
    data: dict[str, Any], upstream: Recorder, tmp_path: Path
) -> None:
    """A command finds its proxy in a variable, which can name no unix socket."""
    paths = on_sockets(data, tmp_path)
    request = b"POST /exec HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n" % ADMIN.encode() + CLOSE
    async with sidecar(data):
        port = port_in(await over(paths["admin"], request))
        assert status_of(await raw(port, get(upstream.port))) == 200
