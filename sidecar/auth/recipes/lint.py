"""What a recipe that can be read says in vain: steps that are never taken, signals of death that hold for the living.

Nothing is asked over the network: answers are made up as the recipe itself asks for them. What cannot be made up, as
text that a pattern is to match, is not judged.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from sidecar.auth.recipes.bound import Bound, dead_of
from sidecar.auth.recipes.documents import Document, set_at
from sidecar.auth.recipes.matches import Message, any_of, compile_match, glob, url_of
from sidecar.auth.recipes.templates import Lookup, Unset, names_in, render, text
from sidecar.settings.recipe import Layer, Match, Pattern, Source, Step

_GOOD = 200
_OUTAGES = (429, 503)
_ANY = "any/path-of-it"


def lint(bound: Bound) -> list[str]:
    """Return what is in vain, each a key path and a sentence; [] for a recipe that is sound."""
    recipe = bound.recipe
    layers = [("login", recipe.login)] + ([("csrf", recipe.csrf)] if recipe.csrf else [])
    found: list[str] = []
    for name, layer in layers:
        found += _steps(name, layer, {each for each, variable in recipe.vars.items() if not variable.optional})
        found += _signals(name, layer, recipe.login.steps, bound)
    return [*found, *_login(recipe.login, bound), *_shims(bound), *_unused(bound)]


def _steps(name: str, layer: Layer, configured: set[str]) -> Iterator[str]:
    always: set[str] = set()
    for number, step in enumerate(layer.steps):
        path = f"{name}.steps.{number}"
        if step.unless in always:
            yield f"{path}.unless: an earlier step always gives {step.unless}, so this one is never taken"
        elif step.unless in configured:
            yield f"{path}.unless: {step.unless} is one of vars, so this one is always taken; expected a name of get"
        for key, sources in step.get.items():
            for place, source in enumerate(sources[:-1]):
                if _always(source):
                    yield f"{path}.get.{key}.{place}: its else always gives a value, so what follows is never tried"
        if step.unless is None:
            always |= step.set.keys()
            always |= {key for key, sources in step.get.items() if _always(sources[-1])}


def _always(source: Source) -> bool:
    return source.else_ is not None and not list(names_in(source.else_))


def _signals(name: str, layer: Layer, steps: Sequence[Step], bound: Bound) -> Iterator[str]:
    lookup = _public(bound)
    for number, match in enumerate(dead_of(layer)):
        path, dead = f"{name}.dead.{number}" if layer.dead is not None else f"{name}.dead", compile_match(match, lookup)
        if _only_denies(match):
            continue  # what an answer has not is not told by one that is made up
        if dead.holds(_plain(bound), lookup):
            yield f"{path}: holds for any good answer too, so each request would cost a login"
            continue
        if any(dead.holds(_plain(bound, status), lookup) for status in _OUTAGES):
            yield f"{path}: holds for an outage too (503, or 429 of a limit), which would cost a login each time"
        for place, step in enumerate(steps):
            if (answer := _made_up(step, bound)) is not None and dead.holds(answer, lookup):
                yield (
                    f"{path}: also holds for the answer that login.steps.{place}.ok asks for;"
                    " expected what no answer of a living session has"
                )
    for number, match in enumerate(layer.fatal):
        if compile_match(match, lookup).holds(_plain(bound), lookup):
            yield f"{name}.fatal.{number}: holds for any good answer too, so the first one would stop everything"


def _login(login: Layer, bound: Bound) -> Iterator[str]:
    lookup = _public(bound)
    for number, pattern in enumerate(bound.recipe.exclude):
        whole = None
        with contextlib.suppress(Unset):
            whole = glob(pattern, lookup).search(f"{bound.origin.path.decode()}/{_ANY}")
        if whole:
            yield f"exclude.{number}: holds for everything, so that nothing ever carries the session"
    for number, step in enumerate(login.steps):
        if (answer := _made_up(step, bound)) is not None:
            if any(any_of(step.fatal, lookup).holds(_outage(answer, status), lookup) for status in _OUTAGES):
                yield f"login.steps.{number}.fatal: holds for an outage too (503, or 429 of a limit), which would latch"
            if not any_of(step.ok, lookup).looks and any_of(step.fatal, lookup).holds(answer, lookup):
                yield f"login.steps.{number}.fatal: also holds for the answer that ok asks for, and goes first"
            for place, pause in enumerate(step.pause):
                if any_of(pause.when, lookup).holds(answer, lookup):
                    yield f"login.steps.{number}.pause.{place}.when: also holds for the answer that ok asks for"
    send, swap = login.send, bound.recipe.swap
    shown = send.headers or send.basic or send.query or send.json_ or send.cookies == "jar"
    if login.steps and not shown and not (bound.recipe.shim and set(swap) - {"header"}):
        yield "login.send: nothing shows the session that the steps obtain; expected headers, cookies, query or json"


def _shims(bound: Bound) -> Iterator[str]:
    earlier: list[Match] = []
    for number, shim in enumerate(bound.recipe.shim):
        bare = not shim.match.model_dump(exclude={"path", "method"}, exclude_defaults=True)
        if bare and glob(str(shim.match.path), _quoted).search(f"<base>/{_ANY}"):
            yield f"shim.{number}.match: holds for everything, so that nothing would reach the system"
        for place, match in enumerate(earlier):
            if _covers(match, shim.match):
                yield f"shim.{number}.match: shim.{place} holds for all of it, and goes first; this one never answers"
                break
        earlier.append(shim.match)


def _covers(first: Match, second: Match) -> bool:
    """Tell whether *first* holds for whatever *second* holds for, as far as that can be seen."""
    rest = {"path", "method"}
    if first.model_dump(exclude=rest, exclude_defaults=True) not in (
        {},
        second.model_dump(exclude=rest, exclude_defaults=True),
    ):
        return False
    if first.method and not (second.method and set(second.method) <= set(first.method)):
        return False
    # Two names may have one value in one plant, and two in the next.
    try:
        return bool(glob(str(first.path), _quoted).search(text(render(second.path, _quoted))))
    except ValueError:  # alternatives
        return first.path == second.path


def _quoted(name: str) -> str:
    return f"<{name}>"


def _unused(bound: Bound) -> Iterator[str]:
    recipe = bound.recipe
    data = recipe.model_dump(exclude={"facts", "ask", "myths", "title", "vars"}, exclude_defaults=True)
    defaults = [variable.default for variable in recipe.vars.values()]
    layers = [("login", recipe.login)] + ([("csrf", recipe.csrf)] if recipe.csrf else [])
    steps = [(f"{name}.steps.{number}", step) for name, layer in layers for number, step in enumerate(layer.steps)]
    used = (
        {"expires_in"} | {step.unless for _, step in steps if step.unless} | set(_names(data)) | set(_names(defaults))
    )
    if "swap" in recipe.model_fields_set:  # a placeholder stands for the first that is obtained
        used |= {name for step in recipe.login.steps[:1] for name in list(step.get)[:1]}
    for path, step in steps:
        yield from (f"{path}.get.{name}: nothing uses {{{name}}}" for name in step.get if name not in used)
    yield from (f"vars.{name}: nothing uses {{{name}}}" for name in recipe.vars if name not in used)


def _names(value: Any) -> Iterator[str]:
    """Yield all names in braces, whatever the text around them is: a glob has alternatives in braces too."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _names(key)
            yield from _names(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _names(each)
    elif isinstance(value, str):
        for piece in value.split("{")[1:]:
            yield piece.partition("}")[0].partition("|")[0]


def _public(bound: Bound) -> Lookup:
    """Return what gives the values of names, but for secrets: none is read here."""
    look, secret = bound.lookup(), {name for name, variable in bound.recipe.vars.items() if variable.secret}

    def public(name: str) -> Any:
        if name in secret:
            raise Unset
        return look(name)

    return public


def _only_denies(match: Match) -> bool:
    against = match.not_
    return against is not None and not against.status and match.model_fields_set == {"not_"}


def _outage(answer: Message, status: int) -> Message:
    """Return what stands in for *answer* while the system is not to be had."""
    return replace(answer, status=status, document=Document(b""), fields=())


def _plain(bound: Bound, status: int = _GOOD) -> Message:
    """Return an answer such as a living session gets: JSON, and nothing in it that a recipe asks for."""
    request = Message(
        fields=(), document=Document(None), method="GET", url=url_of(bound.origin.scheme, bound.origin.authority, "/")
    )
    return _answer(status, {}, {}, request)


def _made_up(step: Step, bound: Bound) -> Message | None:
    """Return an answer that `ok` of *step* holds for, None if none can be made up."""
    lookup, match = _public(bound), step.ok[0]
    method, _, template = step.request.partition(" ")
    try:
        url = text(render(template.strip(), lookup)).partition("?")[0]
    except Unset:
        return None
    body: dict[str, Any] = {}
    headers = {name: _value(wanted, lookup) for name, wanted in match.header.items()}
    values = {pointer: _value(wanted, lookup) for pointer, wanted in match.json_.items()}
    for pointer, value in values.items():
        set_at(body, pointer, value)
    if match.type is not None:
        headers["content-type"] = match.type
    status = next((int(str(each).replace("xx", "00")) for each in match.status), _GOOD)
    request = Message(fields=(), document=Document(None), method=method, url=url)
    made = _answer(status, headers, body, request)
    return made if compile_match(match, lookup).holds(made, lookup) else None


def _answer(status: int, headers: dict[str, Any], body: dict[str, Any], request: Message) -> Message:
    fields = {"content-type": "application/json"} | {name: text(value) for name, value in headers.items()}
    return Message(
        fields=tuple((name.encode(), value.encode()) for name, value in fields.items()),
        document=Document(json.dumps(body).encode()),
        status=status,
        request=request,
    )


def _value(wanted: Any, lookup: Lookup) -> Any:
    first = wanted[0] if isinstance(wanted, tuple) else wanted
    if isinstance(first, Pattern):
        return re.sub(r"\\(.)", r"\1", first.regex.strip("^$"))  # what most patterns are: text with marks
    try:
        return render(first, lookup)
    except Unset:
        return ""
