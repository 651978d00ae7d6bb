"""A sidecar as a process of its own, as a user starts it: for memory, descriptors, signals and kills."""

import asyncio
import contextlib
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.waiting import PATIENCE


@dataclass
class Running:
    """A started sidecar: its process, its bound addresses, its log file."""

    process: Process
    addresses: dict[str, str]
    log: Path

    def port(self, name: str = "proxy") -> int:
        return int(self.addresses[name].rsplit(":", 1)[1])

    def log_events(self, name: str) -> list[dict[str, Any]]:
        """Return the log lines of one event."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def resident(self) -> float:
        """Return the resident memory in MiB."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        raise AssertionError("no VmRSS")

    @contextlib.asynccontextmanager
    async def peak(self) -> AsyncIterator[list[float]]:
        """Sample the resident memory every 50 ms; the list holds the samples."""
        samples = [self.resident()]

        async def sample() -> None:
            while True:
                await asyncio.sleep(0.05)
                samples.append(self.resident())

        task = asyncio.create_task(sample())
        try:
            yield samples
        finally:
            task.cancel()


@contextlib.asynccontextmanager
async def start_sidecar(
    data: dict[str, Any], folder: Path, log: Path, *arguments: str, source: Path | None = None
) -> AsyncIterator[Running]:
    """Start `auth-sidecar run` with *data* as its file and wait until it is ready; at the end it is terminated.

    *source*: where another version of the package lies, None: this one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.yaml"
    file.write_text(json.dumps(data))
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-O", "-m", "sidecar", "run", "-c", str(file), *arguments),
            cwd=source,
            stdout=PIPE,
            stderr=errors,
        )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = await process.stdout.readline()
        assert line, log.read_text()
        yield Running(process, json.loads(line)["addresses"], log)
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(30):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        # Lets the transport of the pipe close before the loop does.
        await process.communicate()
