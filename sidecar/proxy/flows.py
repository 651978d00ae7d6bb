"""Flows for addons, beside the exchange: a copy of a request and its answer, and mitmproxy's hooks with it.

Until the request has been sent an addon may answer in the place of the upstream (`flow.response`), and at every hook
it may end the connection (`flow.kill`). Whatever else it changes is not sent. docs/debugging.md has what is shown.
"""

import asyncio
import contextlib
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from mitmproxy import http
from mitmproxy.connection import Client, Server
from mitmproxy.flow import Error
from mitmproxy.proxy import commands
from mitmproxy.proxy.layers import http as hooks

from sidecar.errors import Reason, Refusal, where
from sidecar.events import Trouble
from sidecar.exchange.body import ClientGone, RequestBody
from sidecar.exchange.own_answers import FAULT
from sidecar.policy import headers
from sidecar.policy.message import Fields
from sidecar.proxy.head import Head
from sidecar.proxy.port import Port
from sidecar.proxy.reply import Reply

_SHOWN = 1 << 20
_SPARE = 64 << 10
"""Copied beyond what is shown: of a credential that is cut in two the first half would not be known for one."""
_GATHER_SECONDS = 1.0


class _Copy:
    """The beginning of a body."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._size = 0

    def add(self, data: bytes) -> None:
        self._size += len(data)
        self._data += data[: max(0, _SHOWN + _SPARE - len(self._data))]

    def show(self, message: http.Message, mask: Callable[[bytes], bytes]) -> str:
        """Make it the content of *message*; return what is missing there, in words."""
        cut = self._size > _SHOWN
        message.raw_content = data = bytes(self._data)
        if "content-encoding" not in message.headers:
            message.raw_content = mask(data)[:_SHOWN]
            return f"only the first {_SHOWN >> 20} MiB of {self._size} bytes are shown" if cut else ""
        with contextlib.suppress(ValueError, TypeError):
            if not cut:
                if (masked := mask(content := message.get_content() or b"")) != content:
                    message.content = masked
                return ""
        # What cannot be looked into may hold anything.
        message.raw_content = None
        return f"a compressed body of {self._size} bytes is not shown"


class CopiedBody(RequestBody):
    """A request body of which a copy is kept to be shown."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.copy = _Copy()

    def feed(self, data: bytes) -> None:
        """Copy what the client sent, and add it."""
        self.copy.add(data)
        super().feed(data)

    async def gathered(self) -> None:
        """Wait until the body is complete, or as much is here as fits, or a second has passed; before it is read."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GATHER_SECONDS):
                while not (self.complete or self.full):
                    self._changed.clear()
                    await self._changed.wait()


async def show(port: Port, client: Client, head: Head, body: CopiedBody, reply: Reply) -> None:
    """Run an exchange, or let an addon answer; raises Refusal when one failed before it, ClientGone when it killed."""
    view = _View(port, client, head, body, reply)
    try:
        if await view.asked():
            body.discard()
            await view.mocked()
        else:
            await port.exchange.run(head.request, body, view)
    finally:
        await view.over()


class _View:
    """The client of one exchange, with a flow that shows what passes."""

    def __init__(self, port: Port, client: Client, head: Head, body: CopiedBody, reply: Reply) -> None:
        self._port = port
        self._waits = head.expects_continue
        self._body = body
        self._reply = reply
        self._answer = _Copy()
        self._response: http.Response
        self._told = False
        self.patience = reply.patience
        self.abort = reply.abort
        shown = port.show(head.request)
        self._mask = port.mask.beside(head.request, shown)
        version = b"HTTP/1.0" if shown.http10 else b"HTTP/1.1"
        line = (shown.host, shown.port, shown.method, shown.scheme.encode(), b"", self._mask(shown.target), version)
        self._flow = http.HTTPFlow(client, Server(address=(shown.host, shown.port)), live=True)
        self._flow.request = http.Request(*line, self._headers(shown.fields), None, None, port.clock.now(), None)

    async def asked(self) -> bool:
        """Show the request, its body too unless the client waits for a word; tell whether an addon answers it."""
        await self._tell(hooks.HttpRequestHeadersHook(self._flow))
        if not self._waits:
            await self._body.gathered()
        self._show_request()
        self._flow.request.timestamp_end = self._port.clock.now()
        await self._tell(hooks.HttpRequestHook(self._flow))
        return self._flow.response is not None

    async def mocked(self) -> None:
        """Send an addon's answer."""
        self._told = True
        await self._tell(hooks.HttpResponseHook(self._flow))
        if (answer := self._flow.response) is not None:
            status, reason, data = answer.status_code, answer.data.reason, answer.raw_content or b""
            fields = [pair for pair in headers.incoming(answer.headers.fields) if pair[0].lower() != b"content-length"]
            if status != HTTPStatus.NO_CONTENT:
                fields.append((b"Content-Length", b"%d" % len(data)))
            await self._reply.start(status, reason, tuple(fields), chunked=False, data=data, end=True)

    async def start(
        self, status: int, reason: bytes, fields: Fields, *, chunked: bool, data: bytes = b"", end: bool = False
    ) -> None:
        """Show the head, and all of it if that is the end, before it is sent."""
        now, shown = self._port.clock.now(), self._headers(fields)
        self._response = http.Response(b"HTTP/1.1", status, self._mask(reason), shown, None, None, now, None)
        self._flow.response = self._response
        await self._tell(hooks.HttpResponseHeadersHook(self._flow))
        self._answer.add(data)
        if end:
            await self._show_answer()
        self._reply.patience = self.patience
        await self._reply.start(status, reason, fields, chunked=chunked, data=data, end=end)

    async def send(self, data: bytes) -> None:
        """Copy a part of the body, and send it."""
        await self._check_killed()
        self._answer.add(data)
        await self._reply.send(data)

    async def end(self) -> None:
        """Show the whole answer, and end it."""
        await self._show_answer()
        await self._reply.end()

    async def over(self) -> None:
        """Tell the end of a flow that has had no whole answer, and forget it."""
        if not self._told:
            self._show_request()
            self._flow.error = self._flow.error or Error("there was no whole answer, or nobody to take it")
            with contextlib.suppress(ClientGone):
                await self._tell(hooks.HttpErrorHook(self._flow))
        self._flow.live = False

    def _headers(self, fields: Fields) -> http.Headers:
        return http.Headers([(name, self._mask(value)) for name, value in fields])

    def _show_request(self) -> str:
        missing = self._body.copy.show(self._flow.request, self._mask)
        return missing and f"request: {missing}"

    async def _show_answer(self) -> None:
        missing = self._answer.show(self._response, self._mask)
        notes = (self._flow.comment, self._show_request(), missing and f"answer: {missing}")
        self._flow.comment = "; ".join(filter(None, notes))
        self._response.timestamp_end = self._port.clock.now()
        self._told = True
        await self._tell(hooks.HttpResponseHook(self._flow))

    async def _tell(self, hook: commands.StartHook) -> None:
        """Tell the addons of *hook*; raises what came of it: a Refusal of the request, or ClientGone."""
        try:
            if self._port.dispatch is not None:
                await self._port.dispatch(hook)
        except Exception as error:  # noqa: BLE001  an addon's
            detail = f"{hook.name}: {type(error).__name__} at {where(error)}"
            self._port.emit(Trouble(where="addon", detail=detail))
            if isinstance(hook, hooks.HttpRequestHeadersHook | hooks.HttpRequestHook):
                raise Refusal(Reason.INTERNAL, FAULT) from None
        await self._check_killed()

    async def _check_killed(self) -> None:
        if self._flow.error is not None and self._flow.error.msg == Error.KILLED_MESSAGE:
            await self.abort()
            raise ClientGone
