"""The dialect of a recipe: how the credential is shown, and what answers say of it."""

from collections.abc import Callable, Mapping
from typing import Any

from sidecar.auth.dialect import Dialect, HoldBack, Read
from sidecar.auth.grant import Values
from sidecar.auth.recipes.bound import JAR, Bound, as_values, known
from sidecar.auth.recipes.documents import Document
from sidecar.auth.recipes.editing import edit_of
from sidecar.auth.recipes.jar import from_text, shown, taken, to_text, value_in
from sidecar.auth.recipes.login import dead_of
from sidecar.auth.recipes.matches import Message, any_of, glob, url_of
from sidecar.auth.recipes.shims import lent, shim_of
from sidecar.auth.recipes.sources import number
from sidecar.auth.recipes.steps import basic
from sidecar.auth.recipes.templates import Lookup, Unset, render, text
from sidecar.policy.classify import classify_unauthorized, retry_after
from sidecar.policy.headers import StripSet, normal_name, strip_set
from sidecar.policy.message import Fields, Request, value_of
from sidecar.policy.reading import CSRF, FINE, Quota, Reading, Sign
from sidecar.secret import Secret
from sidecar.settings import Strip
from sidecar.settings.recipe import Recipe, Send

_ERRORS = 400
_UNAUTHORIZED = 401
_NO_BODY = frozenset({204, 304})
_EVENTS = b"text/event-stream"
_UNKNOWN_RESET = 300.0
"""Seconds after which a used up quota is asked for again whose reset nobody tells."""


def recipe_dialect(bound: Bound, strip: Strip, placeholders: tuple[str, ...]) -> Dialect:
    """Return the dialect of *bound*; *strip*: more that is removed; *placeholders*: what stands for the credential.

    The first placeholder is given out, all are recognised. Raises ConfigurationError when a secret cannot be read.
    """
    recipe = bound.recipe
    lookup = bound.lookup()
    sends = [recipe.login.send, *([recipe.csrf.send] if recipe.csrf else [])]
    names = _header_names(recipe, sends, lookup)
    jar = any(send.cookies == "jar" for send in sends)
    excluded = [glob(path, lookup) for path in recipe.exclude]
    looks, read = _reader(bound)
    rolls = jar or any(source.cookie for sources in _gets(recipe) for source in sources)
    always = looks or rolls or recipe.quota is not None
    also, never = any_of(recipe.retry.also, lookup), any_of(recipe.retry.never, lookup)

    def repeats(request: Request, body: bytes | None) -> bool | None:
        message = request_message(bound, request, request.target, body)
        if never.holds(message, lookup):
            return False
        return True if also.holds(message, lookup) else None

    return Dialect(
        strips=_strips(recipe, strip, sends, names, jar=jar),
        dress=_dresser(bound),
        read=read,
        hold_back=_holder(recipe) if looks else (lambda *_: 0) if always else None,
        peek_seconds=recipe.peek.wait,
        ours=_ours(names, jar=jar),
        roll=_roller(bound) if rolls else None,
        edit=edit_of(bound, placeholders),
        shim=shim_of(bound, placeholders) if recipe.shim else None,
        lends=lent(bound),
        excludes=_excluder(excluded) if excluded else None,
        repeats=repeats if recipe.retry.also or recipe.retry.never else None,
        session=bool(recipe.login.steps),
    )


def request_message(bound: Bound, request: Request, target: bytes, body: bytes | None) -> Message:
    """Return a client's request as matches look at it, with its target at the upstream."""
    path, _, query = target.decode("latin-1").partition("?")
    return Message(
        fields=request.fields,
        document=Document(body),
        method=request.method.decode("latin-1").upper(),
        url=url_of(bound.origin.scheme, bound.origin.authority, path),
        query=query,
    )


def _header_names(recipe: Recipe, sends: list[Send], lookup: Lookup) -> frozenset[str]:
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


def _strips(recipe: Recipe, strip: Strip, sends: list[Send], names: frozenset[str], *, jar: bool) -> StripSet:
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
    fields = {normal_name(name.encode()) for name in names} - {b"authorization"}
    if jar:
        fields |= {b"set-cookie", b"set-cookie2"}
    cookies = frozenset(name.encode() for name in names if name != "Authorization")
    return StripSet(frozenset(fields), cookies, frozenset()) if fields else None


def _dresser(bound: Bound) -> Callable[[Values, Request, bytes], Fields]:
    recipe, configured = bound.recipe, bound.lookup()
    layers = [recipe.login.send, *([recipe.csrf.send] if recipe.csrf else [])]
    bearer = recipe.login.oauth2 is not None
    secure = bound.origin.scheme == "https"

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
        if JAR in values:
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


def _reader(bound: Bound) -> tuple[bool, Read]:
    """Return whether bodies are to be looked at, and what reads an answer."""
    recipe, lookup = bound.recipe, bound.lookup()
    dead = any_of(dead_of(recipe.login), lookup)
    lapsed = any_of(dead_of(recipe.csrf), lookup) if recipe.csrf else any_of((), lookup)
    fatal = any_of(recipe.login.fatal if not recipe.login.steps else (), lookup)
    quota = recipe.quota
    exhausted = any_of(quota.exhausted if quota else (), lookup)
    throttles = [(any_of(throttle.when, lookup), throttle) for throttle in recipe.throttle]
    bearer = recipe.login.oauth2 is not None and recipe.login.dead is None

    def read(request: Request, status: int, fields: Fields, body: bytes | None, now: float) -> Reading:
        asked = request_message(bound, request, request.target, None)
        message = Message(fields=fields, document=Document(body), status=status, request=asked)
        if bearer and status == _UNAUTHORIZED and (sign := classify_unauthorized(fields)) is not Sign.EXPIRED:
            return Reading(sign, retry_after(fields, now))
        if dead.holds(message, lookup):
            return Reading(Sign.EXPIRED)
        if lapsed.holds(message, lookup):
            return Reading(Sign.EXPIRED, part=CSRF)
        if fatal.holds(message, lookup):
            return Reading(Sign.REJECTED)
        told = _quota(recipe, message)
        if exhausted.holds(message, lookup):
            wait = told.reset - now if told and told.reset else retry_after(fields, now)
            return Reading(Sign.EXHAUSTED, wait if wait and wait > 0 else _UNKNOWN_RESET, quota=told)
        for matching, throttle in throttles:
            if matching.holds(message, lookup):
                asked_for = number(throttle.wait, message) if throttle.wait else retry_after(fields, now)
                return Reading(Sign.THROTTLED, min(asked_for or 1.0, throttle.max_), quota=told)
        if status < _ERRORS:
            return FINE if told is None else Reading(Sign.FINE, quota=told)
        return Reading(Sign.FINE, retry_after(fields, now), quota=told)

    matchings = (dead, lapsed, fatal, exhausted, *(matching for matching, _ in throttles))
    return any(matching.looks for matching in matchings), read


def _quota(recipe: Recipe, message: Message) -> Quota | None:
    quota = recipe.quota
    if quota is None:
        return None
    limit, remaining = number(quota.limit, message), number(quota.remaining, message)
    if remaining is None and limit is not None and (used := number(quota.used, message)) is not None:
        remaining = max(0.0, limit - used)
    if remaining is None and limit is None:
        return None
    return Quota(remaining=remaining, limit=limit, reset=_reset(recipe, message), exhausts=bool(quota.exhausted))


def _reset(recipe: Recipe, message: Message) -> float | None:
    return number(recipe.quota.reset, message) if recipe.quota else None


def _holder(recipe: Recipe) -> HoldBack:
    types = tuple(name.encode() for name in recipe.peek.types)
    longest = recipe.peek.max_

    def hold_back(request: Request, status: int, fields: Fields) -> int:
        if request.method == b"HEAD" or status in _NO_BODY:
            return 0
        kind = (value_of(fields, b"content-type") or b"").partition(b";")[0].lower()
        if kind == _EVENTS or not (status >= _ERRORS or any(name in kind for name in types)):
            return 0
        length = value_of(fields, b"content-length") or b""
        return 0 if length.isdigit() and int(length) > longest else longest

    return hold_back


def _roller(bound: Bound) -> Callable[[Values, Request, Fields], Values | None]:
    recipe = bound.recipe
    follow = {
        name: source.cookie
        for gets in _named_gets(recipe)
        for name, sources in gets.items()
        for source in sources
        if source.cookie is not None
    }

    def roll(values: Values, request: Request, fields: Fields) -> Values | None:
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
