"""Variables in the words of a shell: one line each, for it to evaluate."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

Shell = Literal["sh", "fish", "powershell", "docker"]

_POWERSHELL_QUOTE = re.compile("(['\u2018\u2019\u201a\u201b])")
"""PowerShell takes typographic quotes for straight ones."""


def render(shell: Shell, values: Mapping[str, str | None], state_dir: Path) -> str:
    """Return the lines that set *values*, and unset what is None; *state_dir* holds the files that they name."""
    if shell == "docker":
        return "".join(
            [
                "# For docker run --network host --env-file FILE; mount the files at the same place:\n",
                f"# --volume {shlex.quote(f'{state_dir}/ca:{state_dir}/ca:ro')}\n",
                *(f"{name}={value}\n" for name, value in values.items() if value is not None),
            ]
        )
    lines = {"sh": _sh, "fish": _fish, "powershell": _powershell}
    return "".join(f"{lines[shell](name, value)}\n" for name, value in values.items())


def _sh(name: str, value: str | None) -> str:
    return f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}"


def _fish(name: str, value: str | None) -> str:
    if value is None:
        return f"set --erase {name}"
    return f"set --global --export {name} '{re.sub(r"(['\\])", r'\\\1', value)}'"


def _powershell(name: str, value: str | None) -> str:
    if value is None:
        return f"Remove-Item Env:{name} -ErrorAction SilentlyContinue"
    return f"$env:{name} = '{_POWERSHELL_QUOTE.sub(r'\1\1', value)}'"
