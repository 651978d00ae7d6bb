"""What was learned as a YAML text with comments; none of it may hold what was secret."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sidecar.errors import SidecarError
from sidecar.learn.recipe import Learned, Where
from sidecar.learn.trace import stands_in
from sidecar.settings.yaml_text import parse

_PLAIN = re.compile(r"[A-Za-z/.][A-Za-z0-9_./ -]*[A-Za-z0-9_/]|[A-Za-z]")
_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]")


def written(found: Learned, words: Iterable[str]) -> str:
    """Return the configuration; raises SidecarError if one of *words* or of its secrets stands in it, however spelled.

    And if it would be read as anything but what was learned.
    """
    said = [*(f"found: {line}" for line in found.found), *(f"not seen: {line}" for line in found.unseen)]
    head = [
        "# Written by `auth-sidecar learn`. `seen`: it happened in the run. `provoked`: in a request made for it.",
        "# `guessed`: nothing says so; look at it.",
        *(f"# {one_line(line)}" for line in said),
        "upstreams:",
        f"  {found.name}:",
    ]
    text = "\n".join([*head, *_mapping(found.upstream, 4, (), found.notes)]) + "\n"
    secrets = {*words, *found.secrets.values(), *found.kept}
    for place, leaf in [
        *_leaves(found.upstream, ""),
        *(("a comment", each) for each in [*said, *found.notes.values()]),
    ]:
        if any(stands_in(word, leaf) for word in secrets):
            raise SidecarError(f"learn: a secret of the run would stand in what is written, at {place}; it is not")
    try:
        same = parse(text) == {"upstreams": {found.name: found.upstream}}
    except ValueError:
        same = False
    if not same:
        raise SidecarError("learn: what was seen cannot be written so that it is read as it was meant; it is not")
    return text


def one_line(text: str) -> str:
    """Return *text* as it may stand in a comment or on a terminal: what a peer sent ends no line, and moves nothing."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _leaves(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield place or "the top", str(key)
            yield from _leaves(each, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _leaves(each, f"{place}.{number}")
    elif value is not None and not isinstance(value, bool):
        yield place, str(value)


def _mapping(data: Mapping[str, Any], indent: int, at: Where, notes: Mapping[Where, str]) -> Iterator[str]:
    pad = " " * indent
    for key, value in data.items():
        if (note := notes.get((*at, key))) is not None:
            yield f"{pad}# {one_line(note)}"
        name = f"{pad}{_scalar(key)}:"
        if isinstance(value, Mapping) and value and not _is_flat(value, indent, at, key, notes):
            yield name
            yield from _mapping(value, indent + 2, (*at, key), notes)
        elif isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
            yield name
            yield from _list(value, indent, (*at, key), notes)
        else:
            yield f"{name} {_flow(value)}"


def _list(items: list[Any], indent: int, at: Where, notes: Mapping[Where, str]) -> Iterator[str]:
    pad = " " * indent
    for number, item in enumerate(items):
        if not isinstance(item, Mapping) or not item:
            yield f"{pad}- {_flow(item)}"
            continue
        first, *rest = _mapping(item, indent + 2, (*at, number), notes)
        yield f"{pad}- {first.lstrip()}"
        yield from rest


def _is_flat(value: Mapping[str, Any], indent: int, at: Where, key: str, notes: Mapping[Where, str]) -> bool:
    noted = any(path[: len(at) + 1] == (*at, key) and len(path) > len(at) + 1 for path in notes)
    return not noted and indent + len(key) + len(_flow(value)) < 110  # noqa: PLR2004  what a screen shows


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_scalar(key)}: {_flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(each) for each in value) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS and not value.startswith("."):
        return value
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
