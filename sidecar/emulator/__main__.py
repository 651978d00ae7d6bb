"""`python -m sidecar.emulator`: the emulator as a process; one JSON line says where it is, SIGTERM ends it."""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from sidecar.emulator.faults import Switches, change
from sidecar.emulator.issuer import Account
from sidecar.emulator.listening import NAMES
from sidecar.emulator.server import Emulator


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; return 0, or 2 after one line on stderr for bad usage."""
    parser = _parser()
    options = parser.parse_args(argv)
    switches = Switches()
    try:
        change(switches, {name: _value(text) for name, text in _switches_of(options).items() if text is not None})
        account = _account(options)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    asyncio.run(_serve(options, switches, account))
    return 0


async def _serve(options: argparse.Namespace, switches: Switches, account: Account) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with Emulator.start(
        switches=switches,
        tls=not options.no_tls,
        plain=options.http,
        host=options.host,
        port=options.port,
        plain_port=options.http_port,
        names=options.name or NAMES,
        account=account,
    ) as emulator:
        addresses = {
            "base_url": emulator.base_url,
            "plain_url": emulator.plain_url,
            "token_url": emulator.token_url,
            "control_url": emulator.control_url,
            "ca_path": str(emulator.ca_path),
            "client_id": emulator.client_id,
            "pid": os.getpid(),
        }
        sys.stdout.write(json.dumps(addresses) + "\n")
        sys.stdout.flush()
        await stopped.wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sidecar.emulator",
        description="Serve an emulated PLM system with short-lived tokens and switchable faults.",
        epilog="example: python -m sidecar.emulator --lifetime 5 --every-429 25",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="port for https; 0 takes a free one")
    parser.add_argument("--http", action="store_true", help="serve http too")
    parser.add_argument("--http-port", type=int, default=0, help="port for http; 0 takes a free one")
    parser.add_argument("--no-tls", action="store_true", help="serve http only")
    parser.add_argument("--name", action="append", help="a name for the certificate; may be repeated")
    parser.add_argument("--client-id", default=Account().client_id)
    parser.add_argument("--client-secret-file", type=Path, help="read the client secret from this file")
    group = parser.add_argument_group("switches", "also to be changed later, by POST to /_emulator/switches")
    for each in fields(Switches):
        shown = json.dumps(each.default)
        group.add_argument("--" + each.name.replace("_", "-"), metavar="VALUE", help=f"default {shown}")
    return parser


def _switches_of(options: argparse.Namespace) -> dict[str, str | None]:
    return {each.name: getattr(options, each.name) for each in fields(Switches)}


def _value(text: str) -> object:
    """Read `5`, `true` and `null` as JSON, anything else as it stands."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _account(options: argparse.Namespace) -> Account:
    if options.client_secret_file is None:
        return Account(client_id=options.client_id)
    secret = options.client_secret_file.read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    if not secret:
        raise ValueError("the client secret file is empty; expected one secret")
    return Account(client_id=options.client_id, client_secret=secret)


if __name__ == "__main__":
    sys.exit(main())
