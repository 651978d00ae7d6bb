"""What we rely on below the public surface of mitmproxy and aiohttp: an upgrade that breaks one says which."""

import asyncio
import functools
import inspect
import math
import socket
import ssl

import aiohttp
import h11
import pytest
import trustme
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from h11._readers import ChunkedReader
from h11._receivebuffer import ReceiveBuffer
from mitmproxy import http, version
from mitmproxy.addonmanager import AddonManager
from mitmproxy.addons.tlsconfig import TlsConfig
from mitmproxy.flow import Error
from mitmproxy.proxy import commands, layer, tunnel
from mitmproxy.proxy.layers import http as layers
from mitmproxy.proxy.layers import tls
from mitmproxy.test import tflow
from yarl import URL

from tests.rig import Seen, recorder

MIB = 1 << 20


def test_mitmproxy_is_the_minor_version_we_know() -> None:
    """The pin in pyproject.toml and these contracts belong together."""
    assert version.VERSION.startswith("12.2.")


def test_receive_buffer_gives_lines_and_swallows_an_empty_one() -> None:
    """h11's buffer returns None for an incomplete head, [] for a leading empty line, else the lines."""
    buffer = ReceiveBuffer()
    buffer += b"\r\nGET / HTTP/1.1\r\nHost: a\r\n"

    assert buffer.maybe_extract_lines() == []
    assert buffer.maybe_extract_lines() is None
    buffer += b"\r\nrest"
    assert buffer.maybe_extract_lines() == [b"GET / HTTP/1.1", b"Host: a"]
    assert bytes(buffer) == b"rest"


def test_trailers_come_with_the_end_of_a_chunked_body() -> None:
    """h11's chunked reader drops extensions, hands trailers over in EndOfMessage, and bounds neither."""
    reader = ChunkedReader()
    buffer = ReceiveBuffer()
    buffer += b"3;a=b\r\nabc\r\n0\r\nX-T: " + b"1" * (1 << 20)
    assert isinstance(data := reader(buffer), h11.Data)
    assert bytes(data.data) == b"abc"
    assert reader(buffer) is None
    buffer += b"\r\n\r\n"
    end = reader(buffer)

    assert isinstance(end, h11.EndOfMessage)
    assert end.headers
    assert not buffer


def test_layers_pause_while_a_hook_blocks_and_go_on_with_its_completion() -> None:
    """Every hook of TLS blocks; events for a paused layer wait in order until HookCompleted."""
    hooks = (tls.TlsClienthelloHook, tls.TlsStartClientHook, tls.TlsEstablishedClientHook, tls.TlsFailedClientHook)
    source = inspect.getsource(layer.Layer.handle_event)

    assert all(hook.blocking is True for hook in hooks)
    assert "isinstance(event, events.CommandCompleted)" in source
    assert "self._paused_event_queue.append(event)" in source


def test_tls_layer_takes_the_connection_of_its_hook() -> None:
    """It asks with TlsStartClientHook, uses `ssl_conn` as it is, and closes without one."""
    source = inspect.getsource(tls.TLSLayer.start_tls)

    assert "yield TlsStartClientHook(tls_start)" in source
    assert "self.tls = tls_start.ssl_conn" in source
    assert "if not tls_start.ssl_conn:" in source


def test_tls_layer_hands_what_it_reads_to_event_to_child() -> None:
    """Data, and the end, be it said with close_notify or not: once in any case."""
    assert "event_to_child(events.DataReceived(self.conn, data))" in inspect.getsource(tunnel.TunnelLayer.receive_data)
    assert "event_to_child(events.ConnectionClosed(self.conn))" in inspect.getsource(tls.TLSLayer.receive_data)
    assert "event_to_child(events.ConnectionClosed(self.conn))" in inspect.getsource(tunnel.TunnelLayer.receive_close)
    assert "RECEIVED_SHUTDOWN" in inspect.getsource(tls.TLSLayer.receive_close)


def test_tls_layer_looks_for_a_layer_before_it() -> None:
    """`layers[-2]` has to be there, whatever it is."""
    assert "self.context.layers[-2]" in inspect.getsource(tls.ClientTLSLayer.__init__)


def test_tls_layer_collects_the_client_hello_in_a_buffer() -> None:
    """Without a limit of its own, until `client_hello_parsed`; we put one before it."""
    source = inspect.getsource(tls.ClientTLSLayer.receive_handshake_data)

    assert "self.recv_buffer.extend(data)" in source
    assert "self.client_hello_parsed = True" in source
    assert tls.ClientTLSLayer.client_hello_parsed is False


def test_certificates_of_mitmproxy_give_way_to_ours() -> None:
    """With its addons beside us, its own `tls_start_client` does nothing once a connection is there."""
    assert "if tls_start.ssl_conn is not None:" in inspect.getsource(TlsConfig.tls_start_client)


def test_tls_layer_encrypts_without_an_event() -> None:
    """`send_data` and `tls_interact` yield what is to be written, so that they may be called outside of an event."""
    assert "self.tls.sendall(data)" in inspect.getsource(tls.TLSLayer.send_data)
    assert "yield commands.SendData(self.conn, data)" in inspect.getsource(tls.TLSLayer.tls_interact)


def test_hooks_of_a_flow_are_data() -> None:
    """Anybody can make one and dispatch it: a name, and the flow as its only argument."""
    names = ("requestheaders", "request", "responseheaders", "response", "error")
    kinds = (
        layers.HttpRequestHeadersHook,
        layers.HttpRequestHook,
        layers.HttpResponseHeadersHook,
        layers.HttpResponseHook,
        layers.HttpErrorHook,
    )
    flow = tflow.tflow()

    assert tuple(kind.name for kind in kinds) == names
    assert all(issubclass(kind, commands.StartHook) and kind(flow).args() == [flow] for kind in kinds)


def test_killed_flow_says_so() -> None:
    """`kill` works on a live flow, and is told by the message of its error."""
    flow = tflow.tflow()
    flow.live = True
    flow.kill()

    assert flow.error is not None
    assert flow.error.msg == Error.KILLED_MESSAGE


def test_addon_manager_hides_what_an_addon_raises() -> None:
    """`trigger_event` logs it only; `invoke_addon`, which it calls for each addon of `chain`, lets it out."""
    source = inspect.getsource(AddonManager.trigger_event)

    assert "for i in self.chain:" in source
    assert "with safecall():" in source
    assert "await self.invoke_addon(i, event)" in source
    assert "safecall" not in inspect.getsource(AddonManager.invoke_addon)


def test_content_of_a_message_is_decoded_and_encoded_again() -> None:
    """`raw_content` is what was sent; `content` looks into it, raises ValueError where that fails, and encodes."""
    message = http.Response.make(200, b"plain", {"content-encoding": "gzip"})
    assert message.raw_content != b"plain"
    message.content = b"other"
    assert message.get_content() == b"other"
    message.raw_content = b"not gzip"
    with pytest.raises(ValueError, match="gzip"):
        message.get_content()


async def test_stream_protocol_does_without_a_stream() -> None:
    """asyncio's protocol has flow control for a StreamWriter; data and ends may be taken past its stream."""
    loop = asyncio.get_running_loop()
    made: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()

    class Bare(asyncio.StreamReaderProtocol):
        def __init__(self) -> None:
            super().__init__(None)  # type: ignore[arg-type]

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            assert isinstance(transport, asyncio.Transport)
            made.put_nowait(asyncio.StreamWriter(transport, self, None, loop))

        def eof_received(self) -> bool:
            return True

    async with await loop.create_server(Bare, "127.0.0.1", 0) as server:
        _, client = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer = await made.get()
        writer.transport.set_write_buffer_limits(0)
        writer.write(bytes(16 << 20))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await writer.drain()
        client.transport.abort()
        with pytest.raises(ConnectionError):
            await writer.drain()
        with pytest.raises(ConnectionError):
            await writer.wait_closed()


def test_aiohttp_is_the_minor_version_we_know() -> None:
    """The pin in pyproject.toml and these contracts belong together."""
    assert aiohttp.__version__.startswith("3.14.")


async def test_connector_bounds_the_making_of_a_connection() -> None:
    """Its time-out covers the TLS handshake too, is exact with a high threshold, and ends in TimeoutError."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connector = aiohttp.TCPConnector(limit=0)
        target = ClientRequest("GET", URL(f"https://127.0.0.1:{silent.getsockname()[1]}"), loop=loop)
        began = loop.time()
        with pytest.raises(TimeoutError):
            await connector.connect(target, [], aiohttp.ClientTimeout(connect=0.3, ceil_threshold=math.inf))
        await connector.close()

    assert loop.time() - began >= 0.3


class Watched(ResponseHandler):
    """A protocol of ours, which counts what the connector hands on to it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.came = b""

    def data_received(self, data: bytes) -> None:
        self.came += data


async def test_connector_makes_connections_with_a_protocol_of_ours() -> None:
    """Its `_factory` makes them, without a session; released they are given out again, closed they are not."""
    loop = asyncio.get_running_loop()
    async with recorder() as upstream:
        connector = aiohttp.TCPConnector(limit=0)
        connector._factory = functools.partial(Watched, loop)
        target = ClientRequest("GET", URL(upstream.url), loop=loop)
        protocols = []
        for end in ("release", "close", "release"):
            connection = await connector.connect(target, [], aiohttp.ClientTimeout())
            protocol = connection.protocol
            assert isinstance(protocol, Watched)
            assert protocol.is_connected()
            assert protocol.transport is connection.transport
            protocols.append(protocol)
            before = len(protocol.came)
            protocol.transport.write(b"get /raw? HTTP/1.1\r\nHost: a\r\n\r\n")
            async with asyncio.timeout(20):
                while len(protocol.came) == before:
                    await asyncio.sleep(0.001)
            getattr(connection, end)()
            assert protocol.is_connected() == (end == "release")
        await connector.close()

    assert protocols[0] is protocols[1] is not protocols[2]
    assert not protocols[2].is_connected()
    assert upstream.seen[0].line == b"get /raw? HTTP/1.1"


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_what_waits_to_be_sent_can_be_seen(secure: bool) -> None:
    """`_drain_helper` waits while the peer takes nothing; in TLS the bytes wait in the transport below."""

    async def silent(_: Seen, __: object, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()
        await over.wait()
        raise ConnectionError

    over, authority = asyncio.Event(), trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    async with recorder(silent, read_body=False, tls=server if secure else None) as upstream:
        connector = aiohttp.TCPConnector()
        target = ClientRequest("GET", URL(upstream.url), loop=asyncio.get_running_loop(), ssl=client)
        connection = await connector.connect(target, [], aiohttp.ClientTimeout())
        protocol, transport = connection.protocol, connection.transport
        assert protocol is not None
        assert transport is not None
        transport.write(b"PUT / HTTP/1.1\r\n\r\n" + bytes(32 << 20))
        waiting = asyncio.create_task(protocol._drain_helper())
        await asyncio.sleep(0.1)
        below = transport._ssl_protocol._transport if secure else transport
        left = below.get_write_buffer_size()
        stalled = protocol.writing_paused and not waiting.done()
        protocol.abort()
        over.set()
        await asyncio.wait([waiting])
        connection.close()
        await connector.close()

    assert left > MIB
    assert stalled or secure
    assert secure or isinstance(waiting.exception(), OSError)


async def test_socket_factory_sees_the_address_before_it_is_dialled() -> None:
    """The connector asks our factory for the socket of every address, literals included."""
    asked = []

    def refuse(info: tuple[object, ...]) -> object:
        asked.append(info[4])
        raise OSError("refused by us")

    connector = aiohttp.TCPConnector(socket_factory=refuse)
    target = ClientRequest("GET", URL("http://127.0.0.1:9/"), loop=asyncio.get_running_loop())
    with pytest.raises(aiohttp.ClientConnectorError):
        await connector.connect(target, [], aiohttp.ClientTimeout())
    await connector.close()

    assert asked == [("127.0.0.1", 9)]
