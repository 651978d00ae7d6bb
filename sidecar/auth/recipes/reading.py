"""What answers say of the credential, by a recipe, and which of them are looked into."""

from sidecar.auth.dialect import HoldBack, Read
from sidecar.auth.recipes.bound import Bound, dead_of
from sidecar.auth.recipes.documents import Document
from sidecar.auth.recipes.matches import Message, any_of, joined, url_of
from sidecar.auth.recipes.sources import number
from sidecar.policy.classify import classify_unauthorized, retry_after
from sidecar.policy.message import Fields, Request, value_of
from sidecar.policy.reading import CSRF, FINE, Quota, Reading, Sign
from sidecar.settings.recipe import Quota as QuotaOf
from sidecar.settings.recipe import Recipe

_ERRORS = 400
_UNAUTHORIZED = 401
_NO_BODY = frozenset({204, 304})
_EVENTS = b"text/event-stream"
_LONGEST = 2 * 86400.0
"""Seconds: no allowance is for longer."""
_UNKNOWN_RESET = 300.0
"""Seconds after which a used up quota is asked for again whose reset nobody tells."""


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


def reader_of(bound: Bound) -> tuple[frozenset[str] | None, Read]:
    """Return the statuses of answers whose bodies are to be looked at, None: any, and what reads an answer."""
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
        if body is None and _is_bare(request, status):
            body = b""  # which was looked at, as it were
        message = Message(fields=fields, document=Document(body), status=status, request=asked)
        if bearer and status == _UNAUTHORIZED and (sign := classify_unauthorized(fields)) is not Sign.EXPIRED:
            return Reading(sign, retry_after(fields, now))
        if dead.holds(message, lookup):
            return Reading(Sign.EXPIRED)
        if lapsed.holds(message, lookup):
            return Reading(Sign.EXPIRED, part=CSRF)
        if fatal.holds(message, lookup):
            return Reading(Sign.REJECTED)
        told = _quota(recipe, message, now)
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
    return joined(matching.statuses for matching in matchings), read


def _quota(recipe: Recipe, message: Message, now: float) -> Quota | None:
    quota = recipe.quota
    if quota is None:
        return None
    limit, remaining = number(quota.limit, message), number(quota.remaining, message)
    if remaining is None and limit is not None and (used := number(quota.used, message)) is not None:
        remaining = max(0.0, limit - used)
    if remaining is None and limit is None:
        return None
    return Quota(remaining=remaining, limit=limit, reset=_reset(quota, message, now), exhausts=bool(quota.exhausted))


def _reset(quota: QuotaOf, message: Message, now: float) -> float | None:
    """Return when the allowance is reset, wall time: sources with a format of time give that, others seconds."""
    for source in quota.reset:
        if (found := number([source], message)) is not None:
            return min(found if source.time is not None else now + found, now + _LONGEST)
    return None


def holder_of(recipe: Recipe, statuses: frozenset[str] | None) -> HoldBack:
    """Return what tells which answers are held back for a look, by `peek`; *statuses*: of those alone, None: of all."""
    types = tuple(name.encode() for name in recipe.peek.types)
    longest = recipe.peek.max_

    def hold_back(request: Request, status: int, fields: Fields) -> int:
        if _is_bare(request, status):
            return 0
        if statuses is not None and statuses.isdisjoint((str(status), f"{status // 100}xx")):
            return 0
        kind = (value_of(fields, b"content-type") or b"").partition(b";")[0].lower()
        if kind == _EVENTS or not (status >= _ERRORS or any(name in kind for name in types)):
            return 0
        length = value_of(fields, b"content-length") or b""
        return 0 if length.isdigit() and int(length) > longest else longest

    return hold_back


def _is_bare(request: Request, status: int) -> bool:
    """Tell whether an answer has no body whatever its head says (RFC 9112 section 6.3)."""
    return request.method == b"HEAD" or status in _NO_BODY
