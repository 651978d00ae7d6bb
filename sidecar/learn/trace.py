"""Where the values of requests came from: which earlier answer told them, and where in it."""

import hashlib
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import unescape
from urllib.parse import quote, unquote_plus

from sidecar.learn.seen import Datum, Seen, shown, told

_SHORTEST = 6
"""Characters of a value that is followed; what is shorter turns up by chance."""
_LONGEST = 8192
_LEAST = 4
_SECRET = re.compile(
    r"(pass(wor[dt]|wd|phrase|code)?|pwd|kennwort|secret|api.?key|assertion|pin|t?otp|"
    r"(private|refresh|access|id|api|auth).?token)$",
    re.IGNORECASE,
)
_PARTS = re.compile(r"[/.\[\]]+\d*")
_UNTOLD = frozenset({"date", "content-type", "content-length", "server", "etag", "last-modified", "location", "vary"})
_UNASKED = frozenset(
    {
        *("host", "accept", "accept-encoding", "accept-language", "connection", "content-length", "content-type"),
        *("user-agent", "auth-sidecar-hop", "cache-control", "pragma", "te", "keep-alive", "proxy-connection"),
        *("origin", "referer", "expect", "transfer-encoding", "upgrade-insecure-requests", "range"),
        *("if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "if-range"),
    }
)
"""Fields that every client sends, and that no login needs."""
_PREFERRED: tuple[str, ...] = ("json", "xml", "html", "header", "cookie")


@dataclass(frozen=True, slots=True)
class Echo:
    """A request shows at *place* what the answer *source* told at *origin*, between *before* and *after*."""

    place: Datum = field(repr=False)
    source: int
    origin: Datum = field(repr=False)
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Trace:
    """All that was seen, in order; *echoes* and *shown*, by its place, of each request. *secrets*: names by text."""

    all: Sequence[Seen]
    shown: Sequence[Sequence[Datum]] = field(repr=False)
    echoes: Sequence[Sequence[Echo]] = field(repr=False)
    secrets: Mapping[str, str] = field(repr=False)

    def is_secret(self, value: Datum) -> bool:
        """Tell whether *value* is something that only the script may know."""
        return (
            value.kind == "password"
            or (value.kind != "cookie" and bool(value.text) and any(map(_SECRET.search, _PARTS.split(value.name))))
            or self.filtered(value.text) is not None
        )

    def kept(self) -> frozenset[str]:
        """Return all that the requests showed and that is secret, and what the user named."""
        return frozenset(each.text for shown in self.shown for each in shown if self.is_secret(each)) | {*self.secrets}

    def filtered(self, text: str) -> tuple[str, str] | None:
        """Return the name of the named secret that *text* is made of, and the filter; None if it is none."""
        for secret, name in self.secrets.items():
            for spelled, by in spellings(secret):
                if text == spelled:
                    return name, by
        return None


def traced(seen: Sequence[Seen], secrets: Mapping[str, str]) -> Trace:
    """Return *seen* with the ways of its values; *secrets*: the names of those that the user has named, by text."""
    known: dict[str, list[tuple[int, Datum]]] = {}
    asked_before: set[str] = set()
    all_shown, all_echoes = [], []
    for number, each in enumerate(seen):
        asked = [value for value in shown(each) if value.kind != "header" or value.name.lower() not in _UNASKED]
        all_shown.append(asked)
        all_echoes.append([echo for value in asked if (echo := _echo(value, known)) is not None])
        asked_before |= {value.text for value in asked}
        for value in told(each):
            if value.text in asked_before and value.text not in known:
                continue  # what the script knew by itself is only repeated
            if _SHORTEST <= len(value.text) <= _LONGEST and value.name.lower() not in _UNTOLD:
                known.setdefault(value.text, []).append((number, value))
    return Trace(seen, all_shown, all_echoes, secrets)


def spellings(secret: str) -> list[tuple[str, str]]:
    """Return the forms in which scripts show *secret*, each with the filter of a recipe that makes it."""
    raw = secret.encode()
    return [
        (secret, ""),
        (hashlib.md5(raw, usedforsecurity=False).hexdigest(), "md5"),
        (hashlib.sha256(raw).hexdigest(), "sha256"),
        (b64encode(raw).decode(), "b64"),
        (quote(secret, safe=""), "url"),
    ]


def stands_in(secret: str, text: str) -> bool:
    """Tell whether *secret* stands in *text*, as it is or in any of the spellings that messages have; case is nothing.

    What is shorter than four characters turns up by chance, and never does.
    """
    if len(secret) < _LEAST:
        return False
    views = {text, unescape(text), unquote_plus(text), text.replace("\\", "")}
    words = {spelled for spelled, _ in spellings(secret)}
    return any(word.casefold() in view.casefold() for word in words for view in views)


def _echo(value: Datum, known: Mapping[str, list[tuple[int, Datum]]]) -> Echo | None:
    text = value.text
    if found := known.get(text):
        return Echo(value, *_best(value, found), "", "")
    if value.kind not in ("header", "cookie"):
        return None
    # In a field it may stand behind a scheme, or in a parameter: Bearer x, token="x".
    for word in sorted(re.split(r'[\s,;="]+', text), key=len, reverse=True):
        if len(word) >= _SHORTEST and (found := known.get(word) or known.get(f"{word}==") or known.get(f"{word}=")):
            source, origin = _best(value, found)
            if origin.text in text:
                before, _, after = text.partition(origin.text)
                return Echo(value, source, origin, before, after)
    return None


def _best(value: Datum, found: list[tuple[int, Datum]]) -> tuple[int, Datum]:
    """Return the source that is meant: the first answer, for later ones repeat it, and the likeliest place in it."""
    chosen = found[0][0]
    places = [origin for number, origin in found if number == chosen]
    if value.kind == "cookie":
        places.sort(key=lambda origin: (origin.kind != "cookie", origin.name != value.name))
    else:
        places.sort(key=lambda origin: _PREFERRED.index(origin.kind))
    return chosen, places[0]
