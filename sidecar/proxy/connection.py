"""One client connection: mitmproxy's handler with our layers, and the exchange running beside them."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from mitmproxy.proxy import commands, layer, mode_specs
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.tls import TlsEstablishedClientHook, TlsFailedClientHook, TlsStartClientHook
from mitmproxy.proxy.server import LiveConnectionHandler

from sidecar.errors import REASONS, Reason, Refusal, where
from sidecar.events import Trouble
from sidecar.exchange.answers import FAULT, own_answer, send_own
from sidecar.exchange.body import ClientGone, RequestBody
from sidecar.exchange.destination import Client
from sidecar.exchange.tally import Tally
from sidecar.policy.message import Request
from sidecar.policy.routing import Origin
from sidecar.proxy.bridge import BridgedHttpLayer, StartExchange
from sidecar.proxy.connect import InterceptedTls, StartTunnel, run_tunnel, start_tls, tls_failed
from sidecar.proxy.direct import DirectHttp
from sidecar.proxy.head import Head
from sidecar.proxy.port import Port
from sidecar.proxy.tunnel import Tunnel

_LINGER_SECONDS = 10.0
_PIPELINE = 64 << 10
_REGULAR = mode_specs.ProxyMode.parse("regular")


class ClientConnection(LiveConnectionHandler):
    """mitmproxy's connection handler; its layers see the client's side only."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, current: Callable[[], Port]) -> None:
        """Serve *reader* and *writer*; *current* gives the port as it is configured when a request comes."""
        self.port = port = current()
        super().__init__(reader, writer, port.options, _REGULAR)
        self._current = current
        self.writer = writer
        self.draining = False
        context = self.layer.context
        context.layers.clear()
        self.http = self.http_layer(context, None)
        self.layer: layer.Layer = self.http
        self.tls: InterceptedTls | None = None
        self.gate = port.gate
        self.asked: Origin | None = None
        self.tunnel: Tunnel | None = None
        self.body = RequestBody(0, open_spool=port.open_spool, wanted=lambda: None)
        self._task: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._timer: asyncio.TimerHandle | None = None
        self._failure: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether an exchange is under way, or a tunnel in which something moves."""
        return self._task is not None and not (self.tunnel and self.tunnel.quiet)

    async def handle_client(self) -> None:
        """Serve the connection to its end; nothing of it is left running."""
        try:
            await super().handle_client()
        finally:
            self.client_left()
            self.set_timer(None)
            # mitmproxy forgets to when its handler is cancelled while it closes.
            self.writer.close()

    async def handle_hook(self, hook: commands.StartHook) -> None:
        """Run the exchange, or hand mitmproxy's hooks on; what raises here closes, never lets through."""
        match hook:
            case StartExchange():
                # What came with the head is fed first, so that a small body goes out in one write with it.
                await asyncio.sleep(0)
                await self._run_exchange(hook.head, hook.body, hook.client)
                return
            case StartTunnel():
                await run_tunnel(self, hook.tunnel)
                return
            case TlsStartClientHook():
                start_tls(self, hook.data)
            case TlsEstablishedClientHook():
                self.set_timer(None)
            case TlsFailedClientHook():
                tls_failed(self, hook.data)
        if self.port.dispatch is not None:
            try:
                with self.timeout_watchdog.disarm():
                    await self.port.dispatch(hook)
            except Exception as error:  # noqa: BLE001  fail closed: the exchange will refuse
                self.failed(error)

    def http_layer(self, context: Context, origin: Origin | None) -> DirectHttp | BridgedHttpLayer:
        """Return what serves HTTP here; mitmproxy's streams cost half of the CPU, and only flows need them."""
        return (DirectHttp if self.port.dispatch is None else BridgedHttpLayer)(context, self, origin)

    def take_port(self) -> Port:
        """Return the port as it is configured now; the request that begins sees no other."""
        self.port = self._current()
        if self.asked is None:
            self.gate = self.port.gate
        return self.port

    def drain(self) -> None:
        """Close when the exchange under way has ended, at once when there is none."""
        self.draining = True
        if self._task is None:
            self.finish()

    def new_body(self, head: Head, proceed: Callable[[], None]) -> RequestBody:
        """Make room for the body of the request that begins; *proceed* asks a client that waits for it."""
        self.body = RequestBody(
            head.request.length,
            open_spool=self.port.open_spool,
            wanted=proceed if head.expects_continue else lambda: None,
        )
        return self.body

    def begin(self, head: Head, body: RequestBody, client: Client) -> None:
        """Start the exchange of a request, beside the layers."""
        task = asyncio.get_running_loop().create_task(self._run_exchange(head, body, client))
        # An eager one may be over already.
        self._task = None if task.done() else task

    def request_complete(self) -> None:
        """The body is complete; a client that was late with it is not hurried any more."""
        self.body.feed_end()
        self.set_timer(None)

    def client_left(self) -> None:
        """End the exchange under way, if any; a renewal it waits for goes on."""
        self.body.fail()
        if self._task is not None:
            self._task.cancel()

    def failed(self, error: BaseException) -> None:
        """Note a fault of ours: no request of this connection goes upstream any more."""
        self._failure = error
        self.port.emit(Trouble(where="proxy", detail=f"bug: {type(error).__name__} at {where(error)}"))

    def refused(self, refusal: Refusal, request: Request | None = None) -> None:
        """Report a request that was answered before an exchange began."""
        now = self.port.clock.monotonic()
        status = refusal.status or REASONS[refusal.reason].status
        tally = Tally(now, upstream=self.port.upstream or "", status=status, outcome=refusal.reason)
        self.port.emit(tally.done(request, now))

    def head_pending(self, pending: bool) -> None:
        """Start or stop the time a client has to complete its head."""
        if not pending and self._timer is not None:
            self.set_timer(None)
        elif pending and self._timer is None:
            self.set_timer(self.port.limits.header_timeout, self._head_is_late)

    async def _run_exchange(self, head: Head, body: RequestBody, client: Client) -> None:
        request = head.request
        with self.under_way():
            try:
                if self._failure is not None:
                    raise Refusal(Reason.INTERNAL, FAULT)
                self.gate.check(request.fields, ours=not self.port.beside.takes(request.host))
                await self.port.exchange.run(request, body, client)
            except Refusal as refusal:
                body.discard()
                self.refused(refusal, request)
                await send_own(client, refusal)

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """Mark the time of an exchange; a fault in it ends the connection."""
        task = self._task = asyncio.current_task()
        self._idle.clear()
        try:
            with self.timeout_watchdog.disarm():
                yield
        except ClientGone:
            pass
        except Exception as error:  # noqa: BLE001  fail closed
            self.failed(error)
            self._end_with(Refusal(Reason.INTERNAL, FAULT))
        finally:
            # A pipelined request may have begun already, while the end of this one's answer was written.
            if self._task is task:
                self._task = None
                self._idle.set()
                if self.draining:
                    self.finish()

    def write(self, data: bytes) -> None:
        """Write *data* to the client, past the layers but for TLS."""
        if not self.writer.is_closing():
            self.writer.write(data if self.tls is None else self.tls.encrypted(data))

    def finish(self) -> None:
        """Close the connection when all that was written is out."""
        if self.tls is not None and not self.writer.is_closing():
            self.writer.write(self.tls.farewell())
        self.writer.close()

    def hurry(self) -> None:
        """Give a client that is still uploading though it has its answer a few seconds to end."""
        self.set_timer(_LINGER_SECONDS)

    def abort(self) -> None:
        """Close the connection at once, whatever is under way."""
        self.writer.transport.abort()
        if self.tunnel is not None:
            # Reading may wait for the host, which may never take more.
            self.client_left()

    async def drain_writers(self) -> None:
        """Hold reading while there is no room; mitmproxy waits for the client here, which ties upload to download."""
        if self.tunnel is not None:
            await self.tunnel.room()
        while self.body.full:
            await self.body.room()
        while self.http.waiting > _PIPELINE and self.busy:
            await self._idle.wait()

    def log(self, message: str, level: int = 0, exc_info: object = None) -> None:
        """Drop mitmproxy's messages, which quote raw bytes; a crash of its layers ends the connection."""
        del message, level
        if exc_info:
            error = exc_info[1] if isinstance(exc_info, tuple) else None
            self.failed(error if isinstance(error, BaseException) else RuntimeError("a layer failed"))
            self.client_left()
            self._end_with(Refusal(Reason.INTERNAL, FAULT))

    def _end_with(self, refusal: Refusal) -> None:
        """End the connection past the layers, which may be broken or still wait; with an answer if none was begun."""
        if self.http.answering or self.client.tls or self.tunnel or self.writer.is_closing():
            self.abort()
            return
        self.writer.write(own_answer(refusal).encode())
        self.writer.close()

    def _head_is_late(self) -> None:
        refusal = Refusal(Reason.REQUEST_TIMEOUT, "the head of the request did not come in time")
        self.refused(refusal)
        self._end_with(refusal)

    def set_timer(self, seconds: float | None, end: Callable[[], None] | None = None) -> None:
        """End the connection in *seconds*, by *end* or at once, unless set anew; None: let it live."""
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = None if seconds is None else loop.call_later(seconds, end or self.abort)
