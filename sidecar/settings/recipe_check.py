"""What in a recipe cannot mean anything: templates, names, patterns, pointers and paths, each with its key path."""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree import ElementPath

from pydantic import BaseModel

from sidecar.settings.template import BUILT_IN, REQUEST, names_in

_PLAIN = frozenset({"id", "title", "time", "unit", "facts", "ask", "type", "unless", "xml", "cookie", "per_account"})
"""Keys under which no template stands."""
_GLOBS = frozenset({"path", "location", "exclude"})
_PATTERNS = frozenset({"regex", "body"})
_ALTERNATIVES = re.compile(r"\{([^{}|]*,[^{}]*)\}")
_POINTER = re.compile(r"(/(\*|\[[^=\]]+=/[^\]]*\]|([^~/\[]|~[01]|\[(?![^\]]*\]))*))*")
_REQUEST_LINE = re.compile(r"[A-Z]+ \S+")


def check(recipe: Any) -> None:
    """Raise ValueError that names the key and what is expected."""
    known = set(recipe.vars) | BUILT_IN
    for step in _steps(recipe):
        known |= step.get.keys() | step.set.keys()
        if not _REQUEST_LINE.fullmatch(step.request):
            raise ValueError(f"{step.request!r}: expected a method and a URL such as POST {{base}}/login")
        if sum(body is not None for body in (step.json_, step.form, step.text)) > 1:
            raise ValueError(f"{step.request}: expected one of json, form and text")
    for path, key, value in _texts(recipe, "", ""):
        try:
            _check_text(path, key, value, known)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    for name, layer in (("login", recipe.login), ("csrf", recipe.csrf)):
        if layer is not None and layer.steps and layer.oauth2 is not None:
            raise ValueError(f"{name}: expected steps or oauth2, not both")


def _steps(recipe: Any) -> Iterator[Any]:
    yield from recipe.login.steps
    if recipe.csrf is not None:
        yield from recipe.csrf.steps
    if recipe.logout is not None:
        yield recipe.logout


def _texts(value: Any, path: str, key: str) -> Iterator[tuple[str, str, str]]:
    """Yield path, key and text of every text in *value*; keys of mappings that are templates or pointers too."""
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            shown = field.alias or name
            if shown not in _PLAIN or (shown == "xml" and isinstance(getattr(value, name), Mapping)):
                yield from _texts(getattr(value, name), f"{path}.{shown}".lstrip("."), shown)
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield f"{path}.{name}", f"{key} key", str(name)
            # What stands in a match under a pointer is a value, whatever the pointer is called.
            yield from _texts(each, f"{path}.{name}", "" if key in ("json", "xml", "form", "header", "query") else name)
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _texts(each, f"{path}.{number}", key)
    elif isinstance(value, str):
        yield path, key, value


def _check_text(path: str, key: str, value: str, known: set[str]) -> None:
    if key in _PATTERNS:
        _check_pattern(value)
        return
    if key == "json" and value.startswith("/") and ".steps." in f".{path}" and ".get." in path:
        _check_pointer(value)
        return
    if key == "json key" and value.startswith("/"):
        _check_pointer(value)
        return
    if key == "xml key":
        try:
            list(ElementPath.xpath_tokenizer(value))
        except (SyntaxError, KeyError):
            raise ValueError("expected a path as ElementTree reads it") from None
        return
    text = _ALTERNATIVES.sub("", value) if key in _GLOBS else value
    for name in names_in(text):
        if name.startswith(REQUEST):
            if not path.startswith("shim."):
                raise ValueError(f"{{{name}}} has a meaning in shim alone: it is the client's request")
        elif name not in known:
            raise ValueError(f"unknown name {name}; expected one of vars, of what get and set give, or {_BUILT_IN}")


_BUILT_IN = ", ".join(sorted(BUILT_IN))


def _check_pattern(text: str) -> None:
    # Late: who has no recipe is spared the memory.
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(text, options)
    except re2.error:
        raise ValueError("expected a pattern in RE2 syntax") from None


def _check_pointer(text: str) -> None:
    if not _POINTER.fullmatch(text):
        raise ValueError("expected a JSON pointer (RFC 6901), with * or [key=/pointer] for elements")
