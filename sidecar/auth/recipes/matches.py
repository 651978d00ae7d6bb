"""What a message is, by a recipe: matches compiled once, then asked of requests and answers."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, unquote

import re2

from sidecar.auth.recipes.documents import Document
from sidecar.auth.recipes.templates import Lookup, Unset, render
from sidecar.policy.headers import normal_name
from sidecar.policy.message import Fields
from sidecar.settings.recipe import Match, Pattern, Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A request, or an answer with the *request* that it answers; *before*: the redirect that led to it.

    *url*: scheme, host and path of a request as sent. *document*: its body, empty when it was not looked at.
    """

    fields: Fields
    document: Document
    method: str = ""
    url: str = ""
    query: str = ""
    status: int = 0
    request: "Message | None" = None
    before: "Message | None" = None

    def header(self, name: str) -> list[str]:
        """Return the values of the fields called *name*, which is compared without case and with `_` as `-`."""
        wanted = normal_name(name.encode())
        return [value.decode("utf-8", "replace") for key, value in self.fields if normal_name(key) == wanted]


Matcher = Callable[[Message, Lookup], bool]
"""Tells whether a message is so; the lookup gives the values of templates in it."""


@dataclass(frozen=True, slots=True)
class Matching:
    """A compiled match. *looks*: it needs a body; then nothing holds that was not looked at.

    *statuses*: of the answers whose bodies it needs, as a recipe writes them; None: of any.
    """

    holds: Matcher = field(repr=False)
    looks: bool
    statuses: frozenset[str] | None = frozenset()


def any_of(matches: Iterable[Match], lookup: Lookup) -> Matching:
    """Return what holds when any of *matches* does, none: never. *lookup* gives the names in paths."""
    compiled = [compile_match(match, lookup) for match in matches]
    return Matching(
        lambda message, names: any(each.holds(message, names) for each in compiled),
        any(each.looks for each in compiled),
        joined(each.statuses for each in compiled),
    )


def joined(parts: Iterable[frozenset[str] | None]) -> frozenset[str] | None:
    """Return the statuses of all *parts*, None if one of them is of any."""
    found: frozenset[str] = frozenset()
    for part in parts:
        if part is None:
            return None
        found |= part
    return found


@cache
def pattern(text: str) -> Any:
    """Return the compiled pattern, in RE2 syntax: it takes linear time whatever it meets."""
    options = re2.Options()
    options.log_errors = False
    return re2.compile(text, options)


def glob(text: str, lookup: Lookup) -> Any:
    """Return a pattern of all that *text* means: `*` for anything, `{a,b}` alternatives, `{name}` a template."""
    return pattern(f"^(?s:{_glob(text, lookup)})$")


def compile_match(match: Match, lookup: Lookup) -> Matching:
    """Return *match* compiled; *lookup* gives the names in paths, which are not known of a credential."""
    tests: list[Matcher] = []
    if match.method:
        methods = frozenset(method.upper() for method in match.method)
        tests.append(lambda message, _: _request(message).method in methods)
    if match.path is not None:
        tests.append(_path(match.path, lookup))
    if match.status:
        statuses = frozenset(str(status) for status in match.status)
        tests.append(lambda message, _: not statuses.isdisjoint({str(message.status), f"{message.status // 100}xx"}))
    if match.type is not None:
        part = match.type.lower()
        tests.append(
            lambda message, _: any(part in value.lower().partition(";")[0] for value in message.header("content-type"))
        )
    if match.location is not None:
        location = glob(match.location, lookup)
        tests.append(lambda message, _: any(location.search(value) for value in message.header("location")))
    places: tuple[tuple[Mapping[str, Value], Callable[[Message, str], list[Any]]], ...] = (
        (match.query, lambda message, name: _parameters(_request(message).query, name)),
        (match.header, Message.header),
        (match.form, lambda message, name: message.document.form.get(name, [])),
        (match.json_, lambda message, name: message.document.json(name)),
        (match.xml, lambda message, name: message.document.xml(name)),
    )
    for wanted, find in places:
        tests += [_held(name, value, find) for name, value in wanted.items()]
    if match.body is not None:
        body = pattern(match.body)
        tests.append(lambda message, _: message.document.text is not None and bool(body.search(message.document.text)))
    looks = bool(match.form or match.json_ or match.xml or match.body is not None)
    if match.request is not None:
        inner = compile_match(match.request, lookup)
        tests.append(lambda message, names: message.request is not None and inner.holds(message.request, names))
    if match.not_ is not None:
        against = compile_match(match.not_, lookup)
        looks = looks or against.looks
        # What was not looked at is not known to be otherwise.
        unseen = against.looks
        tests.append(
            lambda message, names: not (unseen and message.document.data is None) and not against.holds(message, names)
        )
    looked = frozenset(map(str, match.status)) if match.status else None
    return Matching(
        lambda message, names: all(test(message, names) for test in tests), looks, looked if looks else frozenset()
    )


def equals(found: Any, value: Any) -> bool:
    """Tell whether what a message says is *value*: numbers and their texts are the same, as vendors mix them."""
    if found is None or value is None:
        return found is value
    if isinstance(found, bool) or isinstance(value, bool):
        return str(found).lower() == str(value).lower()
    return str(found) == str(value)


def _request(message: Message) -> Message:
    return message.request or message


def _path(text: str, lookup: Lookup) -> Matcher:
    try:
        whole = glob(text, lookup)
        absolute = "://" in _plain(text, lookup)
    except Unset:
        return lambda _message, _names: False

    def holds(message: Message, _: Lookup) -> bool:
        url = _request(message).url
        return bool(whole.search(url if absolute else "/" + url.partition("://")[2].partition("/")[2]))

    return holds


def _plain(text: str, lookup: Lookup) -> str:
    return text if "://" in text else _glob(text, lookup).replace("\\", "")


def _glob(text: str, lookup: Lookup) -> str:
    found, position = [], 0
    while position < len(text):
        char = text[position]
        end = text.find("}", position) if char == "{" else -1
        if char == "*":
            found.append(".*")
        elif end > 0 and "," in text[position:end]:
            found.append(f"(?:{'|'.join(_glob(each, lookup) for each in text[position + 1 : end].split(','))})")
            position = end
        elif end > 0:
            found.append(re2.escape(str(render(text[position : end + 1], lookup))))
            position = end
        else:
            found.append(re2.escape(char))
        position += 1
    return "".join(found)


def _parameters(query: str, name: str) -> list[str]:
    return [value for key, value in parse_qsl(query, keep_blank_values=True) if key == name]


def _held(name: str, wanted: Value, find: Callable[[Message, str], list[Any]]) -> Matcher:
    tests = [_test(each) for each in (wanted if isinstance(wanted, tuple) else (wanted,))]
    return lambda message, names: any(test(value, names) for value in find(message, name) for test in tests)


def _test(wanted: Any) -> Callable[[Any, Lookup], bool]:
    if isinstance(wanted, Pattern):
        compiled = pattern(wanted.regex)
        return lambda value, _: not isinstance(value, dict | list) and bool(compiled.search(_word(value)))
    if isinstance(wanted, str) and "{" in wanted:
        return lambda value, names: _equals_template(value, wanted, names)
    return lambda value, _: equals(value, wanted)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)


def _equals_template(value: Any, wanted: str, names: Lookup) -> bool:
    try:
        return equals(value, render(wanted, names))
    except Unset:
        return False


def url_of(scheme: str, authority: str, path: str) -> str:
    """Return the URL that paths of matches are compared with: without query, percent-decoded."""
    return f"{scheme}://{authority}{unquote(path)}"
