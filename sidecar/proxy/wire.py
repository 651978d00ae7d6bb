"""What HTTP/1 needs of the connection under it, and how a connection is cut so that its other end notices."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Protocol

from mitmproxy.connection import Client

from sidecar.proxy.connect import Inside

_AT_ONCE = struct.pack("ii", 1, 0)


class Wire(Protocol):
    """One client connection, below HTTP; *draining*: it is to end with the request that is under way."""

    draining: bool

    @property
    def client(self) -> Client:
        """The client as mitmproxy knows it."""

    def write(self, data: bytes) -> None:
        """Send *data*; after the end of the connection it is dropped."""

    async def room(self, patience: float, *, empty: bool = False) -> None:
        """Wait until it takes more, *empty*: all; raises ClientGone when it left or took nothing for *patience* s."""

    def hurry(self, seconds: float | None, end: Callable[[], None] | None = None) -> None:
        """Call *end* in *seconds*, None: abort, unless it is called anew before; with None nothing will happen."""

    def finish(self, *, linger: float = 0.0) -> None:
        """Close when all is out; what the client is still sending is dropped for *linger* seconds.

        With bytes that nobody has read the system would reset the connection, and the client lose its answer.
        """

    def abort(self, *, cut: bool = False) -> None:
        """Close at once; *cut*: with a reset, where an end would look like that of the answer."""

    def enter(self, inside: Inside, sent: bytes) -> None:
        """Leave HTTP for what CONNECT asked for; *sent*: what the client sent already."""


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, since FIN looks like an end; what was not sent yet is lost. Closed already: nothing happens."""
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    writer.transport.abort()
