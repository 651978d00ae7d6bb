"""Reading the configuration again: on SIGHUP, and when its file or a file that it names has changed.

Files are looked at every two seconds, by what they are now: Kubernetes does not write a file anew but points a
symbolic link elsewhere.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

from sidecar.clock import Clock
from sidecar.errors import ConfigurationError
from sidecar.events import Emit, Reload
from sidecar.run.app import App
from sidecar.settings import Settings, check_secrets, commands_of_start, files_of, prime, share_runs

_LOOK_SECONDS = 2.0

Stamp = tuple[int, int, int] | None
"""Inode, time of the last change and size of a file, None when it cannot be seen."""


class Reloader:
    """Keeps *app* at what *read* returns; *file* is the configuration file, None when there is none."""

    def __init__(self, app: App, read: Callable[[], Settings], file: Path | None, *, clock: Clock, emit: Emit) -> None:
        self._app = app
        self._read = read
        self._file = file
        self._clock = clock
        self._emit = emit
        self._reading = asyncio.Lock()
        self._stamps: dict[Path, Stamp] = {}
        self._watch_files()

    async def watch(self) -> None:
        """Reload whenever a file has changed, until cancelled."""
        while True:
            await self._clock.sleep(_LOOK_SECONDS)
            stamps = self._look()
            if changed := {path for path in stamps if stamps[path] != self._stamps.get(path)}:
                # Whoever writes several files should be done with all; the next look sees what comes later.
                self._stamps = stamps
                await self.reload(changed)

    async def reload(self, changed: set[Path] | None = None) -> None:
        """Read the configuration and serve it; one that cannot be used is told of, and the old one stays.

        *changed*: files whose content is new, None: any may be.
        """
        async with self._reading:  # who reads last has the newest
            if changed is None:
                self._stamps = self._look()
            try:
                settings, named = await asyncio.to_thread(self._read_all)
                await prime(reference for _, reference in commands_of_start(settings))
                files = named if changed is None else changed
                if changed is not None and settings == self._app.settings and not files & named:
                    self._done("unchanged", "")
                    return
                await self._app.reload(settings, files)
            except ConfigurationError as error:
                self._app.refused = str(error)
                self._emit(Reload(result="refused", detail=str(error)))
                return
            self._done("ok", ", ".join(sorted(settings.upstreams)))

    def _read_all(self) -> tuple[Settings, set[Path]]:
        """Return the configuration as it is now, and its files: off the loop, as many upstreams take a while."""
        settings = self._read()
        check_secrets(settings)
        share_runs(self._app.settings, settings)
        return settings, files_of(settings)

    def _done(self, result: str, detail: str) -> None:
        self._app.refused = ""
        self._watch_files()
        self._emit(Reload(result=result, detail=detail))

    def _watch_files(self) -> None:
        """Watch the files of the configuration in effect; those watched before since they were looked at last."""
        files = files_of(self._app.settings) | ({self._file} if self._file else set())
        self._stamps = {path: self._stamps[path] if path in self._stamps else _stamp(path) for path in files}

    def _look(self) -> dict[Path, Stamp]:
        return {path: _stamp(path) for path in self._stamps}


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
