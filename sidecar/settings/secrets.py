"""Where secrets come from: files, the environment, commands, the desktop's key store, or the configuration itself.

A command may take seconds, so that an event loop must not wait for it: `read` gives what the last run gave, and `prime`
runs in threads what is due.
"""

import asyncio
import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    WithJsonSchema,
    model_validator,
)

from sidecar.errors import ConfigurationError
from sidecar.secret import Secret
from sidecar.settings.commands import MAX_OUTPUT, Runs, output

EXPECTED = "expected {file: PATH}, {env: NAME}, {command: [ARG, ...]}, {keyring: SERVICE/USER} or {value: TEXT}"

_ASK_KEYRING = (sys.executable, "-P", "-X", "utf8", "-m", "keyring", "get", "--")


def parse_command(value: Any) -> tuple[str, ...]:
    """Return a program and its arguments, all of them text: nothing is split, expanded or given to a shell."""
    words = tuple(value) if isinstance(value, list | tuple) else ()
    if not words or not words[0] or not all(isinstance(word, str) and "\0" not in word for word in words):
        raise ValueError("expected a list of a program and its arguments, each a text")
    return words


def parse_keyring(value: Any) -> str:
    """Return `SERVICE/USER` as it is; the last slash parts them, as a service may be a URL."""
    service, _, user = value.rpartition("/") if isinstance(value, str) else ("", "", "")
    if not service or not user or "\0" in value:
        raise ValueError("expected SERVICE/USER")
    return str(value)


Command = Annotated[
    tuple[str, ...],
    BeforeValidator(parse_command),
    WithJsonSchema(
        {
            "type": "array",
            "items": {"type": "string"},
            "minItems": 1,
            "examples": [["vault", "kv", "get", "-field=secret", "kv/plm"]],
        }
    ),
]
Keyring = Annotated[
    str, BeforeValidator(parse_keyring), WithJsonSchema({"type": "string", "examples": ["plm.example.com/sync"]})
]


class SecretReference(BaseModel):
    """Where a secret lives: `{file: PATH}`, `{env: NAME}`, `{command: [ARG, ...]}`, `{keyring: SERVICE/USER}` or
    `{value: "..."}`; never a plain string.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    file: Path | None = None
    env: str | None = None
    command: Command | None = Field(default=None, repr=False)
    keyring: Keyring | None = None
    value: str | None = Field(default=None, repr=False)
    _runs: Runs = PrivateAttr(default_factory=Runs)

    @model_validator(mode="before")
    @classmethod
    def _not_plain(cls, data: Any) -> Any:
        if not isinstance(data, dict | SecretReference):
            raise ValueError(f"{EXPECTED}, not a plain value")  # noqa: TRY004
        return data

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(getattr(self, source) is not None for source in type(self).model_fields) != 1:
            raise ValueError(f"expected exactly one of {', '.join(type(self).model_fields)}")
        return self

    @property
    def slow(self) -> bool:
        """Whether a program is asked for it, so that an event loop needs `prime` before `read`."""
        return self.command is not None or self.keyring is not None

    def read(self) -> Secret:
        """Return the secret as it is now; a file is read anew each time, one trailing line end is dropped.

        A command, or a key store, gives what its last run gave; only the first time this runs it, and waits.
        Raises ConfigurationError, without the content, when it is missing, empty, not UTF-8 or over 64 KiB, and
        when the command failed.
        """
        if not self.slow:
            return self._read()
        if not self._runs.outcome:
            self.run()
        if isinstance(self._runs.outcome, str):
            raise ConfigurationError(self._runs.outcome)
        return self._runs.outcome

    @property
    def due(self) -> bool:
        """Whether `run` would do something."""
        return self.slow and self._runs.is_due()

    def run(self) -> None:
        """Run the command if it is due, and wait for it: 10 s at most."""
        self._runs.run(self._read)

    def doubt(self) -> None:
        """Note that the secret was refused: `prime` runs its command again, at most every 5 minutes for this reason.

        What is read anew each time needs no such note, and takes none.
        """
        self._runs.doubted = self.slow

    def share(self, same: "SecretReference") -> None:
        """Take part in the runs of an equal reference from now on."""
        self._runs = same._runs  # noqa: SLF001  our own

    def where(self) -> str:
        """Name the source, never the value."""
        if self.file is not None:
            return f"file {self.file}"
        if self.command is not None:
            return f"command {self.command[0]}"
        if self.keyring is not None:
            return f"keyring {self.keyring}"
        return "value" if self.env is None else f"env {self.env}"

    def _read(self) -> Secret:
        if self.value is not None:
            data = self.value.encode("utf-8", "surrogatepass")
        elif self.env is not None:
            data = os.fsencode(os.environ.get(self.env, ""))
        elif self.command is not None:
            data = self._line(output(self.command, f"secret {self.where()}"))
        elif self.keyring is not None:
            data = self._line(output(self._asking(self.keyring), f"secret {self.where()}"))
        else:
            data = self._line(self._content(Path(str(self.file))))
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise self._unreadable("not UTF-8") from None
        if not text:
            raise ConfigurationError(f"secret {self.where()} is empty or missing; expected a value")
        return Secret(text)

    def _content(self, path: Path) -> bytes:
        try:
            with path.expanduser().open("rb") as stream:
                return stream.read(MAX_OUTPUT + 1)
        except (OSError, RuntimeError, ValueError) as error:
            # No home directory is a RuntimeError, a NUL in a path a ValueError.
            raise self._unreadable((error.strerror if isinstance(error, OSError) else None) or "not a path") from None

    def _line(self, data: bytes) -> bytes:
        if len(data) > MAX_OUTPUT:
            raise ConfigurationError(f"secret {self.where()} is over {MAX_OUTPUT >> 10} KiB; expected one secret")
        return data.removesuffix(b"\n").removesuffix(b"\r")

    def _asking(self, entry: str) -> Sequence[str]:
        """Return the command that asks the key store: it may block, or wait for somebody, and so must be ended."""
        if importlib.util.find_spec("keyring") is None:
            raise self._unreadable("no library for it; expected auth-sidecar[keyring]")
        service, _, user = entry.rpartition("/")
        return (*_ASK_KEYRING, service, user)

    def _unreadable(self, reason: str) -> ConfigurationError:
        return ConfigurationError(f"secret {self.where()} cannot be read: {reason}")


async def prime(references: Iterable[SecretReference]) -> None:
    """Run every command among *references* that is due, in threads, so that `read` waits for none of them.

    A failure is raised by `read`. When this is cancelled, what runs already ends by itself and counts.
    """
    await asyncio.gather(*(asyncio.to_thread(reference.run) for reference in references if reference.due))
