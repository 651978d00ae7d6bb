"""A step of a login as those see it who look on: each request and answer, and what was looked for in the last."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sidecar.auth.recipes.bound import Bound, dead_of
from sidecar.auth.recipes.jar import Jar, value_in
from sidecar.auth.recipes.matches import Message
from sidecar.auth.recipes.sources import find
from sidecar.auth.recipes.templates import Lookup, Unset, text
from sidecar.auth.recipes.words import unmet
from sidecar.auth.watch import Asked
from sidecar.settings.recipe import Match, Source, Step
from sidecar.settings.template import Field, parse


def seen(where: str, step: Step, answer: Message, jar: Jar, bound: Bound, lookup: Lookup) -> Iterator[Asked]:
    """Yield the requests of *step*, redirects first; *jar*: as the last answer left it."""
    verdicts, hidden = _verdicts(step, answer, jar, bound, lookup)
    hops = [answer]
    while (earlier := hops[0].before) is not None:
        hops.insert(0, earlier)
    for hop in hops:
        request = hop.request or hop
        yield Asked(
            where=where,
            # What an answer led to may have a session in its path, and a ticket behind it.
            line=f"{request.method} {request.url.partition(';')[0]}" if hop.before else as_written(step.request, bound),
            names=tuple(name.decode("latin-1") for name, _ in request.fields),
            body="" if hop.before else _body(step, bound),
            status=hop.status,
            answer=hop.fields,
            content=hop.document.data or b"",
            hidden=tuple(hidden),
            verdicts=tuple(verdicts) if hop is answer else ("followed: a redirect",),
        )


def as_written(template: str, bound: Bound) -> str:
    """Return *template* with what is no secret filled in; all else stays as the recipe writes it."""
    public = bound.public_texts()
    return "".join(
        part if isinstance(part, str) else public.get(part.name, _field(part)) if not part.filters else _field(part)
        for part in parse(template)
    )


def _field(field: Field) -> str:
    return "{" + "|".join((field.name, *field.filters)) + "}"


def _body(step: Step, bound: Bound) -> str:
    given = step.json_ if step.json_ is not None else step.form if step.form is not None else step.text
    if given is None:
        return ""

    def shown(value: Any) -> Any:
        if isinstance(value, str):
            return as_written(value, bound)
        if isinstance(value, Mapping):
            return {as_written(name, bound): shown(each) for name, each in value.items()}
        return [shown(each) for each in value] if isinstance(value, list | tuple) else value

    return str(shown(given)) if isinstance(given, str) else json.dumps(shown(given))


def _verdicts(step: Step, answer: Message, jar: Jar, bound: Bound, lookup: Lookup) -> tuple[list[str], list[str]]:
    lacks = unmet(step.ok, answer, lookup)
    found = [f"ok: {'does not hold: ' + lacks if lacks else 'holds'}"]
    hidden = []
    for name, sources in step.get.items():
        value, place = _found(sources, answer, jar, lookup)
        hidden += [] if place is None else [value]
        found.append(f"get {name}: {f'found, {place}' if place else f'not found, {_places(sources)}'}")
    for number, pause in enumerate(step.pause):
        found.append(f"pause {number}: {_word(pause.when, answer, lookup)}")
    found += [f"fatal {number}: {_word([match], answer, lookup)}" for number, match in enumerate(step.fatal)]
    dead = dead_of(bound.recipe.login)
    holding = [str(number) for number, match in enumerate(dead) if _word([match], answer, lookup) == "holds"]
    found.append(f"login.dead: {' and '.join(holding) + ' of ' if holding else 'none of '}{len(dead)} holds")
    return found, hidden


def _found(sources: Sequence[Source], answer: Message, jar: Jar, lookup: Lookup) -> tuple[str, str | None]:
    """Return the value that *sources* give, and the place that it came from; None: there is none."""
    for source in sources:
        for place, each in ((_places([source]), source.model_copy(update={"else_": None})), ("else", source)):
            with contextlib.suppress(Unset):
                return text(find([each], answer, lambda cookie: value_in(jar, cookie), lookup)), place
    return "", None


def _word(matches: Sequence[Match], answer: Message, lookup: Lookup) -> str:
    return "does not hold" if unmet(matches, answer, lookup) else "holds"


def _places(sources: Sequence[Source]) -> str:
    found = []
    for source in sources:
        named = ((name, getattr(source, name)) for name in ("json_", "xml", "header", "cookie", "body"))
        found.append(next((f"{name.rstrip('_')} {where}" for name, where in named if where is not None), "else"))
    return ", ".join(found)
