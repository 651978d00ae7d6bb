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
from h11._receivebuffer import ReceiveBuffer
from mitmproxy import version
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.addons.tlsconfig import TlsConfig
from mitmproxy.connection import ConnectionState, Server
from mitmproxy.options import Options
from mitmproxy.proxy import commands, events, layer, server, tunnel
from mitmproxy.proxy.layers import http as layers
from mitmproxy.proxy.layers import tls
from mitmproxy.proxy.layers.http._http1 import Http1Server, make_body_reader
from yarl import URL

from sidecar.proxy.bridge import StartExchange
from sidecar.proxy.listener import proxy_options
from tests.rig import Seen, recorder

MIB = 1 << 20


def test_mitmproxy_is_the_minor_version_we_know() -> None:
    """The pin in pyproject.toml and these contracts belong together."""
    assert version.VERSION.startswith("12.2.")


def test_options_of_the_layers_are_as_we_set_them() -> None:
    """HTTP/2, raw TCP, WebSocket, eager dialling and body copies are off; header validation is on."""
    options = proxy_options(75.0)

    assert not any((options.http2, options.http3, options.rawtcp, options.websocket, options.store_streamed_bodies))
    assert options.connection_strategy == "lazy"
    assert options.validate_inbound_headers is True
    assert options.stream_large_bodies is None
    assert options.tcp_timeout == 75


def test_options_of_the_layers_are_those_that_mitmproxy_defines() -> None:
    """Its addon defines them for the layers; ours are the same, without importing all of its addons."""
    theirs = Options()
    Proxyserver().load(theirs)

    assert proxy_options(75.0).keys() == theirs.keys()


def test_handler_asks_its_layer_and_logs_a_crash_with_exc_info() -> None:
    """What a layer raises comes out through `log(exc_info=True)`: our signal to fail closed."""
    source = inspect.getsource(server.ConnectionHandler.server_event)

    assert "self.layer.handle_event(event)" in source
    assert 'self.log(f"mitmproxy has crashed!", logging.ERROR, exc_info=True)' in source


def test_handler_waits_in_drain_writers_between_reads() -> None:
    """After each read mitmproxy awaits `drain_writers`: where we hold a client back."""
    assert "await self.drain_writers()" in inspect.getsource(server.ConnectionHandler.handle_connection)


def test_http_layer_asks_get_connection_and_keeps_connections() -> None:
    """`HttpLayer` takes a client layer put into `connections` beforehand and calls `get_connection` by name."""
    assert list(inspect.signature(layers.HttpLayer.get_connection).parameters) == ["self", "event", "reuse"]
    assert "self.connections.setdefault(self.context.client, http_conn)" in inspect.getsource(
        layers.HttpLayer._handle_event
    )


def test_start_exchange_is_a_hook_that_does_not_block() -> None:
    """mitmproxy starts a hook as a task and goes on when it is not blocking."""
    assert issubclass(StartExchange, commands.StartHook)
    assert StartExchange.blocking is False


def test_virtual_server_is_connected_without_a_socket() -> None:
    """A `Server` in state OPEN counts as connected, and commands for it are dropped as for a closed one."""
    virtual = Server(address=None, state=ConnectionState.OPEN)

    assert virtual.connected
    assert "command.connection not in self.transports" in inspect.getsource(server.ConnectionHandler.server_event)


def test_connection_events_of_ours_reach_the_layer_of_their_connection() -> None:
    """`HttpLayer` routes any ConnectionEvent by its connection."""
    source = inspect.getsource(layers.HttpLayer._handle_event)

    assert issubclass(events.DataReceived, events.ConnectionEvent)
    assert "handler = self.connections[event.connection]" in source


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
    """h11's chunked reader hands trailers over in EndOfMessage, which mitmproxy cannot take."""
    reader = make_body_reader(None)
    buffer = ReceiveBuffer()
    buffer += b"0\r\nX-T: 1\r\n\r\n"
    end = reader(buffer)

    assert isinstance(end, h11.EndOfMessage)
    assert end.headers
    assert "NotImplementedError" in inspect.getsource(Http1Server.read_body)


def test_layers_pause_and_queue_while_a_hook_blocks() -> None:
    """Events for a paused layer wait in order; what the exchange delivers early is not lost."""
    assert "_paused_event_queue" in inspect.getsource(layer.Layer.handle_event)


def test_handler_asks_the_layer_it_has_at_each_event() -> None:
    """So after CONNECT another layer can take the place of the first."""
    assert inspect.getsource(server.ConnectionHandler.server_event).count("self.layer") == 1


def test_tls_layer_takes_the_connection_of_its_hook() -> None:
    """It asks with TlsStartClientHook, uses `ssl_conn` as it is, closes without one, and has the child it is given."""
    source = inspect.getsource(tls.TLSLayer.start_tls)

    assert "yield TlsStartClientHook(tls_start)" in source
    assert "self.tls = tls_start.ssl_conn" in source
    assert "if not tls_start.ssl_conn:" in source
    assert "self.child_layer.handle_event(event)" in inspect.getsource(tunnel.TunnelLayer.event_to_child)


def test_tls_layer_collects_the_client_hello_in_a_buffer() -> None:
    """Without a limit of its own, until `client_hello_parsed`; we put one before it."""
    source = inspect.getsource(tls.ClientTLSLayer.receive_handshake_data)

    assert "self.recv_buffer.extend(data)" in source
    assert "self.client_hello_parsed = True" in source
    assert tls.ClientTLSLayer.client_hello_parsed is False


def test_tls_layer_says_no_goodbye() -> None:
    """It leaves close_notify out; ours says it."""
    assert ".shutdown(" not in inspect.getsource(tls.TLSLayer.send_close)


def test_certificates_of_mitmproxy_give_way_to_ours() -> None:
    """With its addons beside us, its own `tls_start_client` does nothing once a connection is there."""
    assert "if tls_start.ssl_conn is not None:" in inspect.getsource(TlsConfig.tls_start_client)


def test_tls_layer_encrypts_without_an_event() -> None:
    """`send_data` and `send_close` yield what is to be written, so that they may be called outside of an event."""
    assert "self.tls.sendall(data)" in inspect.getsource(tls.TLSLayer.send_data)
    assert "yield commands.SendData(self.conn, data)" in inspect.getsource(tls.TLSLayer.tls_interact)


def test_tls_layer_hands_foreign_events_to_its_child() -> None:
    """An event that is not about a connection passes, once the handshake is over."""
    assert "else:\n            yield from self.event_to_child(event)" in inspect.getsource(
        tunnel.TunnelLayer._handle_event
    )


def test_http_layer_hands_events_to_the_client_side() -> None:
    """What is sent with SendHttp reaches the layer of that connection as it is."""
    source = inspect.getsource(layers.HttpLayer.event_to_child)

    assert "conn = self.connections[command.connection]" in source
    assert "yield from self.event_to_child(conn, command.event)" in source


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
