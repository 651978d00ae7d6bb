"""Names for what a recipe must not hold itself: variables of the credential, and values that steps obtain."""

import re
from collections.abc import Sequence
from typing import Any

from sidecar.learn.seen import Datum
from sidecar.learn.trace import Echo, Trace
from sidecar.settings.template import BUILT_IN, EXPIRES_IN

_PERSONAL = re.compile(
    r"(e?mail|user(_?(name|id))?|login|account|tenant|database|db|company|workspace(_?id)?|client_?id|domain|"
    r"site|organi[sz]ation|group|role|scope)$",
    re.IGNORECASE,
)
"""What differs from one user of a system to the next."""
_RANDOM = re.compile(r"(?=[^0-9]*[0-9])(?=[^A-Za-z]*[A-Za-z])[A-Za-z0-9+=_~!*|-]{20,}")
"""What a script would hardly know, were it no secret."""
_SHORTEST = 4
"""Characters of a secret that is looked for inside longer texts."""


class Names:
    """The variables and the values that were obtained, by name; grows as requests are turned into templates.

    `vars` and `credential` are those of the recipe and the configuration, where secrets stand as environment
    variables; `secrets` gives their values, and is for nobody's eyes. `obtained`: the names of what steps obtain.
    """

    def __init__(self, run: Trace, upstream: str) -> None:
        self._run = run
        self._upstream = upstream
        self.vars: dict[str, dict[str, Any]] = {}
        self.credential: dict[str, Any] = {}
        self.secrets: dict[str, str] = {}
        self.obtained: dict[tuple[int, str, str], str] = {}
        self._known: dict[str, str] = {}

    def template(self, value: Datum, echoes: Sequence[Echo]) -> Any:
        """Return what stands for *value* in a recipe: a template, or the text itself; *echoes* of its request."""
        for echo in echoes:
            if echo.place == value:
                return f"{echo.before}{{{self.obtain(echo)}}}{echo.after}"
        if (found := self._run.filtered(value.text)) is not None:
            name, by = found
            return self._secret(self._clean(name), _plain(self._run, name), name) + (f"|{by}}}" if by else "}")
        if value.kind == "header" and value.name.lower() == "authorization":
            scheme, space, word = value.text.partition(" ")
            known = value._replace(name="token", text=word if space else scheme)
            return f"{scheme}{space}{self.secret(known)}" if space else self.secret(known)
        if value.text and (self._run.is_secret(value) or _is_random(value)):
            return self._secret(self._clean(value.last), value.text, None) + "}"
        if not value.text or (not _PERSONAL.search(self._clean(value.last)) and not set("{}") & set(value.text)):
            return self.masked(value.text)
        return "{" + self._plain_variable(self._clean(value.last), value.text) + "}"

    def secret(self, value: Datum) -> str:
        """Return the template of *value*, which is one whatever it is called."""
        found = self._run.filtered(value.text)
        return self._secret(self._clean(value.last), value.text, found[0] if found and not found[1] else None) + "}"

    def masked(self, text: str) -> str:
        """Return *text* with templates for a value that it is, and for the secrets in it."""
        if text in self._known:
            return f"{{{self._known[text]}}}"
        for word in sorted(self.secrets.values(), key=len, reverse=True):
            if len(word) >= _SHORTEST and word in text:
                text = text.replace(word, f"{{{self._known[word]}}}")
        return text

    def obtain(self, echo: Echo) -> str:
        """Return the name of what *echo* shows, which a step obtains."""
        key = (echo.source, echo.origin.kind, echo.origin.name)
        if key not in self.obtained:
            name = self._free(self._clean(echo.origin.last), {*self.vars, *self.obtained.values()})
            self.obtained[key] = name
        return self.obtained[key]

    def _secret(self, name: str, text: str, environ: str | None) -> str:
        """Return the beginning of a template for the secret *text*; *environ*: where it lies already."""
        known = self._known.get(text)
        if known is None:
            known = self._free(name, {*self.vars, *self.obtained.values()})
            self._known[text] = known
            self.vars[known] = {"secret": True}
            place = environ or f"{self._upstream}_{known}".upper()
            self.credential[known] = {"env": place}
            self.secrets[place] = text
        return "{" + known

    def _plain_variable(self, name: str, text: str) -> str:
        known = self._known.get(text)
        if known is None:
            known = self._free(name, {*self.vars, *self.obtained.values()})
            self._known[text] = known
            self.vars[known] = {}
            self.credential[known] = text
        return known

    def number(self, name: str, value: int) -> str:
        """Return a template for the number *value*, which is the user's own."""
        known = self._plain_variable(self._clean(name), str(value))
        self.vars[known] = {"type": "int"}
        self.credential[known] = value
        return f"{{{known}}}"

    def is_personal(self, name: str) -> bool:
        """Tell whether what is called *name* differs from one user to the next."""
        return _PERSONAL.search(self._clean(name)) is not None

    @staticmethod
    def _clean(name: str) -> str:
        spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
        word = re.sub(r"[^a-z0-9]+", "_", spaced.lower()).strip("_")
        return word if word and not word[0].isdigit() else f"value_{word}".rstrip("_")

    @staticmethod
    def _free(name: str, taken: set[str]) -> str:
        tried = (name, *(f"{name}_{number}" for number in range(2, 1000)))
        return next(each for each in tried if each not in taken | BUILT_IN | {EXPIRES_IN})


def _is_random(value: Datum) -> bool:
    words = re.split(r"[\s,;]|(?<=[a-z])=", value.text) if value.kind == "header" else [value.text]
    return any(_RANDOM.fullmatch(word) for word in words)


def _plain(run: Trace, name: str) -> str:
    return next(text for text, known in run.secrets.items() if known == name)
