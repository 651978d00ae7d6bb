"""Reads a YAML text of bounded size into plain data."""

import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

_MAX_VALUES = 100_000
_MAX_DEPTH = 50
_UNQUOTED = re.compile(r"""(?:[^"']|'[^']')*""")
"""What a message of the YAML reader says before it quotes more than a character of the text."""


def parse(text: str) -> Any:
    """Return the data of a YAML text; ValueError says where it is wrong, without a word of it: it may hold secrets."""
    yaml = YAML(typ="safe", pure=True)
    yaml.composer.warn_double_anchors = False  # the warning would quote the text
    try:
        data = yaml.load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        said = _UNQUOTED.match(error.problem or "")
        raise ValueError(f"line {line}: {said[0].strip() if said else ''}") from None
    except Exception:  # noqa: BLE001  the reader raises KeyError, AssertionError, RecursionError and more
        raise ValueError("it cannot be read, or is nested too deeply") from None
    _check_size(data)
    return data


def _check_size(data: Any) -> None:
    """Raise ValueError for data that is small as text and huge, or endless, once its aliases are followed."""
    level, count = [data], 0
    for _ in range(_MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
            count += len(inner)
            if count > _MAX_VALUES:
                raise ValueError(f"it has over {_MAX_VALUES} values, with its aliases")
            below.extend(inner)
        level = below
    if level:
        raise ValueError(f"it is nested deeper than {_MAX_DEPTH}")
