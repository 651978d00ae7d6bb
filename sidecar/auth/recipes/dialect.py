"""The dialect of a recipe: how the credential is shown, and what answers say of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sidecar.auth.dialect import Dialect
from sidecar.auth.grant import JAR, Values
from sidecar.auth.recipes.bound import Bound, as_values, known
from sidecar.auth.recipes.documents import MAX_BODY
from sidecar.auth.recipes.editing import edit_of
from sidecar.auth.recipes.jar import from_text, shown, taken, to_text, value_in
from sidecar.auth.recipes.matches import any_of, glob
from sidecar.auth.recipes.outgoing import basic
from sidecar.auth.recipes.reading import holder_of, reader_of, request_message
from sidecar.auth.recipes.shims import lent, shim_of
from sidecar.auth.recipes.templates import Lookup, Unset, render, text
from sidecar.policy.coding import decoded
from sidecar.policy.headers import StripSet, normal_name, strip_set
from sidecar.policy.message import Fields, Request
from sidecar.secret import Secret
from sidecar.settings import Strip
from sidecar.settings.recipe import Recipe, Send


def recipe_dialect(bound: Bound, strip: Strip, placeholders: tuple[str, ...]) -> Dialect:
    """Return the dialect of *bound*; *strip*: more that is removed; *placeholders*: what stands for the credential.

    The first placeholder is given out, all are recognised. Raises ConfigurationError when a secret cannot be read.
    """
    recipe = bound.recipe
    lookup = bound.lookup()
    sends = bound.sends
    names = _header_names(recipe, sends, lookup)
    jar = any(send.cookies == "jar" for send in sends)
    excluded = [glob(path, lookup) for path in recipe.exclude]
    statuses, read = reader_of(bound)
    looks = statuses is None or bool(statuses)
    rolls = jar or any(source.cookie for sources in _gets(recipe) for source in sources)
    always = looks or rolls or recipe.quota is not None
    also, never = any_of(recipe.retry.also, lookup), any_of(recipe.retry.never, lookup)

    def repeats(request: Request, body: bytes | None) -> bool | None:
        plain = None if body is None else decoded(body, request.fields, MAX_BODY)
        message = request_message(bound, request, request.target, plain)
        if never.holds(message, lookup):
            return False
        return True if also.holds(message, lookup) else None

    return Dialect(
        strips=_strips(recipe, strip, sends, names, jar=jar),
        dress=_dresser(bound),
        read=read,
        hold_back=holder_of(recipe, statuses) if looks else (lambda *_: 0) if always else None,
        peek_seconds=recipe.peek.wait,
        ours=_ours(names, jar=jar),
        roll=_roller(bound) if rolls else None,
        edit=edit_of(bound, placeholders),
        shim=shim_of(bound, placeholders) if recipe.shim else None,
        lends=lent(bound),
        excludes=_excluder(excluded) if excluded else None,
        repeats=repeats if recipe.retry.also or recipe.retry.never else None,
        session=bool(recipe.login.steps),
        alone_first=bool(recipe.login.fatal) and not recipe.login.steps,
    )


def _header_names(recipe: Recipe, sends: Sequence[Send], lookup: Lookup) -> frozenset[str]:
    """Return the fields that show the credential, as far as their names are known before it is there."""
    names = {"Authorization"} if any(send.basic for send in sends) or recipe.login.oauth2 is not None else set()
    elses = {name: source.else_ for gets in _named_gets(recipe) for name, sources in gets.items() for source in sources}

    def look(name: str) -> Any:
        if isinstance(elses.get(name), str):
            return elses[name]
        return lookup(name)

    for send in sends:
        for template in send.headers:
            try:
                names.add(text(render(template, look)))
            except Unset:
                continue
    return frozenset(names)


def _named_gets(recipe: Recipe) -> list[Mapping[str, Any]]:
    steps = [*recipe.login.steps, *(recipe.csrf.steps if recipe.csrf else ())]
    return [step.get for step in steps]


def _gets(recipe: Recipe) -> list[Any]:
    return [sources for gets in _named_gets(recipe) for sources in gets.values()]


def _strips(recipe: Recipe, strip: Strip, sends: Sequence[Send], names: frozenset[str], *, jar: bool) -> StripSet:
    """Return what is removed: what the credential is shown in, in whatever place, and what else is named."""
    parameters = {name for send in sends for name in send.query}
    return strip_set(
        [*strip.headers, *recipe.strip.headers, *names, *(["Cookie"] if jar else [])],
        # A dead cookie may win over a live field.
        [*strip.cookies, *recipe.strip.cookies, *(name for name in names if name != "Authorization")],
        [*strip.query, *recipe.strip.query, *parameters],
        strip.keep,
    )


def _ours(names: frozenset[str], *, jar: bool) -> StripSet | None:
    fields = {normal_name(name.encode()) for name in names}
    if jar:
        fields |= {b"set-cookie", b"set-cookie2"}
    cookies = frozenset(name.encode() for name in names if name != "Authorization")
    return StripSet(frozenset(fields), cookies, frozenset()) if fields else None


def _dresser(bound: Bound) -> Callable[[Values, Request, bytes], Fields]:
    recipe, configured = bound.recipe, bound.lookup()
    layers = bound.sends
    bearer = recipe.login.oauth2 is not None
    secure = bound.origin.scheme == "https"
    jar = any(send.cookies == "jar" for send in layers)

    def dress(values: Values, request: Request, target: bytes) -> Fields:
        found: list[tuple[bytes, bytes]] = []
        if bearer:
            found.append((b"Authorization", b"Bearer " + values["access_token"].reveal().encode("ascii")))
        lookup = configured if bearer else bound.lookup(known(values))
        method = request.method.decode("latin-1").upper()
        for send in layers:
            if send.methods is not None and method not in send.methods:
                continue
            if send.basic is not None:
                pair = [text(render(part, lookup)) for part in send.basic]
                found.append((b"Authorization", basic(*pair).encode()))
            for name, value in render(send.headers, lookup).items():
                found.append((name.encode(), text(value).encode()))
        if jar and JAR in values:
            path = target.decode("latin-1")
            if cookies := shown(from_text(values[JAR].reveal()), bound.origin.host, path, secure=secure):
                found.append((b"Cookie", cookies.encode()))
        if recipe.add:
            there = {normal_name(name) for name, _ in request.fields}
            for name, value in render(recipe.add, lookup).items():
                if normal_name(name.encode()) not in there:
                    found.append((name.encode(), text(value).encode()))
        return tuple(found)

    return dress


def _roller(bound: Bound) -> Callable[[Values, Values, Request, Fields], Values | None]:
    recipe = bound.recipe
    follow = {
        name: source.cookie
        for gets in _named_gets(recipe)
        for name, sources in gets.items()
        for source in sources
        if source.cookie is not None
    }
    fetched = {name for step in (recipe.csrf.steps if recipe.csrf else ()) for name in step.get} - follow.keys()

    def roll(values: Values, used: Values, request: Request, fields: Fields) -> Values | None:
        if any(values.get(name) != used.get(name) for name in fetched):
            return None  # cookies of a session that is left: what was fetched since is good in another
        before = from_text(values[JAR].reveal()) if JAR in values else ()
        after = taken(before, bound.origin.host, request.target.decode("latin-1"), fields)
        if after == before:
            return None
        changed = dict(values) | {JAR: Secret(to_text(after))}
        for name, cookie in follow.items():
            if (value := value_in(after, cookie)) is not None:
                changed |= as_values({name: value})
        return changed

    return roll


def _excluder(patterns: list[Any]) -> Callable[[bytes], bool]:
    def excludes(target: bytes) -> bool:
        path = target.decode("latin-1").partition("?")[0]
        return any(pattern.search(path) for pattern in patterns)

    return excludes
