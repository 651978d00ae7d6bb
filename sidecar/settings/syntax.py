"""The small languages inside a recipe: patterns, pointers, paths, statuses. Each raises ValueError with a sentence."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any
from xml.etree import ElementTree as ET

from pydantic import AfterValidator, BeforeValidator

from sidecar.settings import template
from sidecar.settings.values import parse_duration

_POINTER = re.compile(r"(?:/(?:\*|\[[^=\[\]/]+=(?:/[^\[\]]*)\]|(?:[^~/\[\]]|~[01])*))*")
_STATUS = re.compile(r"[1-5]xx")
_ALTERNATIVES = re.compile(r"\{[^{}]*,[^{}]*\}")
_METHODS = re.compile(r"[A-Z]+(?:\|[A-Z]+)*")
_STATUSES = range(100, 600)
_MAX_PATTERN = 1000


def several(value: Any) -> Any:
    """Return *value* as a list if it is none."""
    return value if isinstance(value, list | tuple) else (value,)


def _pattern(text: str) -> str:
    _groups(text)
    return text


def _capturing(text: str) -> str:
    if _groups(text) != 1:
        raise ValueError("expected a pattern with exactly one group (...), which is the value")
    return text


def _groups(text: str) -> int:
    if len(text) > _MAX_PATTERN:
        raise ValueError(f"expected a pattern of at most {_MAX_PATTERN} characters")
    import re2  # late: who has no recipe is spared it

    options = re2.Options()
    options.log_errors = False
    try:
        return int(re2.compile(text, options).groups)
    except re2.error:
        raise ValueError("expected a pattern in RE2 syntax, without look-around and back references") from None


def _pointer(text: str) -> str:
    if not _POINTER.fullmatch(text):
        raise ValueError("expected a pointer such as /errors/*/code (RFC 6901, with * and [key=/pointer])")
    return text


def _xml_path(text: str) -> str:
    try:
        ET.Element("x").findall(text)
    except (SyntaxError, KeyError, ValueError, TypeError, IndexError):  # its parser stumbles over some
        raise ValueError("expected a path that ElementTree knows, such as .//sessionId") from None
    return text


def _time_format(text: str) -> str:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    try:
        datetime.strptime(moment.strftime(text), text)  # noqa: DTZ007  a test of the format
    except (ValueError, re.error):
        raise ValueError("expected a format of strptime, such as %Y-%m-%dT%H:%M:%S%z") from None
    return text


def _status(value: Any) -> Any:
    if isinstance(value, bool) or not (value in _STATUSES if isinstance(value, int) else _STATUS.fullmatch(str(value))):
        raise ValueError("expected a status such as 401, or 4xx")
    return value


def _time_to_live(value: Any) -> Any:
    return value if isinstance(value, str) and "{" in value else parse_duration(value)


def request_line(text: str) -> tuple[tuple[str, ...], str]:
    """Return the methods and the rest of `PUT|POST {base}/logout`."""
    methods, _, path = text.partition(" ")
    if not _METHODS.fullmatch(methods) or not path or path != path.strip() or any(map(str.isspace, path)):
        raise ValueError("expected METHOD and a URL or path, such as POST {base}/login")
    return tuple(methods.split("|")), path


def _one_request(text: str) -> str:
    methods, url = request_line(text)
    if len(methods) != 1 or not (url.startswith("{") or "://" in url):
        raise ValueError("expected one METHOD and a URL, such as POST {base}/login")
    return text


def glob_names(text: str) -> Iterator[template.Field]:
    """Yield the templates in a glob; what stands in braces with a comma are alternatives."""
    yield from template.fields(_ALTERNATIVES.sub("", text))


def texts(value: Any) -> Iterator[str]:
    """Yield every text inside a YAML value; of mappings the values."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from texts(inner)


Re2 = Annotated[str, AfterValidator(_pattern)]
Capture = Annotated[str, AfterValidator(_capturing)]
"""A pattern whose one group is the value."""
Pointer = Annotated[str, AfterValidator(_pointer)]
XmlPath = Annotated[str, AfterValidator(_xml_path)]
TimeFormat = Annotated[str, AfterValidator(_time_format)]
Status = Annotated[int | str, BeforeValidator(_status)]
TimeToLive = Annotated[float | str, BeforeValidator(_time_to_live)]
"""A duration, or a template of one."""
RequestLine = Annotated[str, AfterValidator(_one_request)]
