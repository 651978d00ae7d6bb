"""`python -m bench.relay`: bytes between a client and a server, late or slow, in order and complete.

The kernel does a TCP handshake on loopback in no time. Here what the client sends first is held back by *first*, as
if it had waited for the handshake.
"""

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

_CHUNK = 1 << 16
_IN_FLIGHT = 4096
"""Chunks on their way: 256 MiB, more than a delay of 15 ms lets pile up on any machine of today."""


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds that bytes take each way, seconds more for a client's first ones, bytes a second upwards (0: any)."""

    delay: float = 0.0
    first: float = 0.0
    rate: float = 0.0


@contextlib.asynccontextmanager
async def relay(port: int, line: Line) -> AsyncIterator[int]:
    """Relay connections to *port* of loopback while the context is open, and give the port to connect to."""
    clients: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clients.add(writer)
        try:
            await _relay(reader, writer, port, line)
        finally:
            clients.discard(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=_CHUNK)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in clients:
            writer.transport.abort()


async def _relay(down_reader: asyncio.StreamReader, down_writer: asyncio.StreamWriter, port: int, line: Line) -> None:
    try:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port, limit=_CHUNK)
    except OSError:
        down_writer.close()
        return
    try:
        # A reset of either side ends both.
        with contextlib.suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(_one_way(down_reader, up_writer, line, line.first))
                group.create_task(_one_way(up_reader, down_writer, Line(line.delay), 0.0))
    finally:
        up_writer.close()
        down_writer.close()


async def _one_way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: Line, first: float) -> None:
    """Pass on until the end; each chunk when it is due, in the order of the queue."""
    loop = asyncio.get_running_loop()
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_IN_FLIGHT if line.delay else 1)

    async def read() -> None:
        extra = first
        while True:
            chunk = await reader.read(_CHUNK)
            await under_way.put((loop.time() + line.delay + extra, chunk))
            extra = 0.0
            if not chunk:
                return
            if line.rate:
                await asyncio.sleep(len(chunk) / line.rate)

    async def write() -> None:
        while True:
            due, chunk = await under_way.get()
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            if not chunk:
                writer.write_eof()
                return
            writer.write(chunk)
            await writer.drain()

    async with asyncio.TaskGroup() as group:
        group.create_task(read())
        group.create_task(write())


async def _serve(port: int, line: Line) -> None:
    async with relay(port, line) as bound:
        sys.stdout.write(f"{bound}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


def main() -> None:
    """Serve until terminated; the first line of the output is the port."""
    parser = argparse.ArgumentParser(prog="python -m bench.relay", description="Relay to a port of loopback.")
    parser.add_argument("port", type=int)
    for name in ("delay", "first", "rate"):
        parser.add_argument(f"--{name}", type=float, default=0.0)
    options = parser.parse_args()
    asyncio.run(_serve(options.port, Line(options.delay, options.first, options.rate)))


if __name__ == "__main__":
    main()
