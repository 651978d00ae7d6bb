"""`python -m bench.clients`: keep-alive clients that count what wrk does not: each failure, each status, each delay."""

import argparse
import asyncio
import json
import re
import sys
from dataclasses import dataclass, field

from sidecar.clock import Clock, SystemClock

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LIMIT = 1 << 16
_SPREAD = 7919
"""A prime: how long connection n lives looks like chance, and is the same in each run."""

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(slots=True)
class Answers:
    """What clients saw: of each answer when it ended (monotonic), how long it took (s) and its status.

    *failed*: requests that got none. *refused*: connections that could not be made.
    """

    each: list[tuple[float, float, int]] = field(default_factory=list)
    failed: int = 0
    refused: int = 0


async def ask(connection: Connection, port: int, path: str) -> int:
    """Send a GET and read its whole answer; return its status.

    Raises OSError or IncompleteReadError when the connection breaks, ValueError for an answer without a length.
    """
    reader, writer = connection
    writer.write(b"GET %b HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % (path.encode(), port))
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    if length is None:
        raise ValueError("expected an answer with Content-Length")
    await reader.readexactly(int(length[1]))
    return int(head.split(b" ", 2)[1])


async def connect(port: int) -> Connection:
    """Open a connection to loopback."""
    return await asyncio.open_connection("127.0.0.1", port, limit=_LIMIT)


async def run(options: argparse.Namespace, clock: Clock) -> Answers:
    """Run every client until the time is over, each with one request at a time; what is under way then still ends."""
    answers, end = Answers(), clock.monotonic() + options.seconds
    pause = options.connections / options.rate if options.rate else 0.0

    async def client(number: int) -> None:
        generation = number
        await clock.sleep(pause * number / options.connections)
        while clock.monotonic() < end:
            generation += options.connections
            life = generation * _SPREAD % options.lives + 1 if options.lives else sys.maxsize
            try:
                connection = await connect(options.port)
            except OSError:
                answers.refused += 1
                await clock.sleep(0.05)
                continue
            try:
                await _live(connection, life)
            except (OSError, asyncio.IncompleteReadError):
                answers.failed += 1
            finally:
                connection[1].close()

    async def _live(connection: Connection, life: int) -> None:
        for _ in range(life):
            began = clock.monotonic()
            if began >= end:
                return
            status = await ask(connection, options.port, options.path)
            ended = clock.monotonic()
            answers.each.append((ended, ended - began, status))
            if pause:
                await clock.sleep(began + pause - ended)

    async with asyncio.TaskGroup() as group:
        for number in range(options.connections):
            group.create_task(client(number))
    return answers


def main() -> None:
    """Run as the options say; the one line of output is an Answers as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.clients", description="Clients of a port of loopback.")
    parser.add_argument("port", type=int)
    parser.add_argument("--path", default="/")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument(
        "--rate", type=float, default=0.0, help="requests a second of all together; 0: as fast as they can"
    )
    parser.add_argument("--lives", type=int, default=0, help="a connection ends after 1 to so many requests; 0: never")
    answers = asyncio.run(run(parser.parse_args(), SystemClock()))
    sys.stdout.write(json.dumps([answers.each, answers.failed, answers.refused]) + "\n")


if __name__ == "__main__":
    main()
