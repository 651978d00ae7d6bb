"""One request with the credential, on the way of every request: what the upstream says to it."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from sidecar.clock import Clock
from sidecar.errors import Reason, Refusal
from sidecar.exchange.destination import Destination
from sidecar.exchange.keepalive import errand_of
from sidecar.exchange.rounds import Rounds
from sidecar.policy.idleness import Use
from sidecar.policy.message import Fields, value_of
from sidecar.run.doctor.check import Check, Row, failed, passed, warned
from sidecar.run.doctor.login import ROWS, refused
from sidecar.run.systems import System
from sidecar.settings import Upstream

_MOVED = frozenset({301, 302, 303, 307, 308})
_MISSING = frozenset({404, 410})
_UNAUTHORIZED, _FORBIDDEN, _TOO_MANY, _SERVER_ERRORS = 401, 403, 429, 500
_CREDENTIAL = frozenset({Reason.CREDENTIAL_REJECTED, Reason.TOKEN_UNAVAILABLE, *ROWS})


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of it; *left*: the seconds that the upstream gives the token (X-Token-Expires-In), None: it is silent.

    *renewed*: the token was refused, and a newer one used.
    """

    checks: tuple[Check, ...]
    left: float | None = None
    renewed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The answer, and what is to be known to judge it.

    *fresh*: the credential was obtained for this request. *refused*: it did not do. *spent*: the quota is used up.
    *wanted*: configuration or recipe name the request. *proven*: the base URL is known to be right.
    """

    line: str
    status: int
    fields: Fields
    fresh: bool
    refused: bool
    spent: bool
    wanted: bool
    proven: bool


def request_of(upstream: Upstream, use: Use | None) -> Use:
    """Return the request: the one that keeps the session alive, else a GET of the base URL."""
    return use or Use(target=upstream.origin.path + b"/", every=0.0, within=0.0)


async def ask(
    name: str,
    upstream: Upstream,
    system: System,
    use: Use | None,
    destination: Destination,
    clock: Clock,
    seconds: float,
) -> Asked:
    """Make the request once, as one of a client's would be made; nothing is sent while the quota is used up."""
    quota = destination.admission.quota
    try:
        async with asyncio.timeout(seconds):
            if quota is not None:
                await quota.refresh()
            asked = await _ask(name, upstream, system, use, destination, clock)
            for moment in (destination.admission.pause, quota):
                if moment is not None:
                    await moment.told()
    except TimeoutError:
        remedy = "see what keeps it; scripts wait as long, see timeout.first_byte"
        return Asked((failed(Row.UPSTREAM, f"no answer within {seconds:g} s", remedy, name),))
    except Refusal as refusal:
        until = clock.now() + destination.admission.quota_left(clock.monotonic())
        if refusal.reason in _CREDENTIAL:
            return Asked((refused(refusal, name, clock.now(), until),))
        remedy = "check base_url, and that the upstream serves"
        return Asked((failed(Row.UPSTREAM, f"{refusal.reason}: {refusal.detail}", remedy, name),))
    return Asked((*asked.checks, *_quota(name, destination, clock)), asked.left, asked.renewed)


async def _ask(
    name: str, upstream: Upstream, system: System, use: Use | None, destination: Destination, clock: Clock
) -> Asked:
    errand = errand_of(name, request_of(upstream, use), destination, clock)
    try:
        answer = await Rounds(b"doctor", clock).run(errand)
    finally:
        destination.admission.leave(errand.tally)
    await answer.settle()
    answer.close()
    target = errand.way.target.partition(b"?")[0].decode("latin-1")
    told = Told(
        line=f"{errand.request.method.decode()} {target}",
        status=answer.status,
        fields=answer.fields,
        fresh=bool(errand.tally.renewals),
        refused=errand.tally.visible,
        spent=destination.admission.quota_left(clock.monotonic()) > 0,
        wanted=use is not None,
        proven=use is None and _proven(upstream, system),
    )
    return Asked(tuple(said(name, upstream, told)), _left(answer.fields), told.fresh)


def _proven(upstream: Upstream, system: System) -> bool:
    """Tell whether the base URL need not be asked for by itself: a login below it was answered, or it has no path."""
    recipe = upstream.system
    below = recipe is not None and any("{base}/" in step.request for step in recipe.login.steps)
    return (below and system.oauth2 is None) or not upstream.origin.path


def said(name: str, upstream: Upstream, told: Told) -> Iterator[Check]:
    """Yield what an answer says of the credential, of the upstream and of its address."""
    status, line = told.status, told.line
    what = f"{line} with the credential was answered with {status}"
    if status == _FORBIDDEN:
        remedy = "grant the account what it is to do, or set keepalive.path to a path that it may read"
        yield warned(Row.UPSTREAM, f"{what}: the credential is taken, and may not do this", remedy, name)
        return
    if told.refused or status == _UNAUTHORIZED:
        which = "a fresh credential" if told.fresh else "the credential"
        remedy = "check that base_url and issuer belong together, audience and scope, and that the account is let in"
        yield failed(Row.UPSTREAM, f"{what}: the upstream refuses {which}", remedy, name)
        return
    if status == _TOO_MANY and not told.spent:
        yield warned(Row.UPSTREAM, f"{what}: it is asked too often", "send less; see retry.max_retry_after", name)
        return
    if status >= _SERVER_ERRORS:
        yield warned(Row.UPSTREAM, f"{what}: it is in trouble", "ask who runs it", name)
        return
    little = ", which says little of the credential: nothing is there to be read" if status in _MISSING else ""
    yield passed(Row.UPSTREAM, what + little, name)
    location = (value_of(told.fields, b"location") or b"").decode("latin-1")
    if status in _MOVED and (host := _elsewhere(upstream, location)):
        remedy = "set base_url to the address that serves this tenant, or check that the account is let in there"
        yield warned(Row.BASE_URL, f"{line} leads to another host, {host}", remedy, name)
    elif status in _MISSING and not told.proven:
        key = "keepalive.path" if told.wanted else "base_url; or set keepalive.path, and that is asked for"
        what = f"{line} was answered with {status}: nothing is there"
        yield warned(Row.BASE_URL, what, f"check upstreams.{name}.{key}", name)
    else:
        yield passed(Row.BASE_URL, f"{upstream.origin.url} answers itself", name)


def _elsewhere(upstream: Upstream, location: str) -> str:
    with contextlib.suppress(ValueError):
        host = urlsplit(urljoin(upstream.origin.url + "/", location)).hostname or ""
        return "" if host == upstream.origin.host else host
    return "what is no URL"


def _left(fields: Fields) -> float | None:
    try:
        found = float((value_of(fields, b"x-token-expires-in") or b"").decode("latin-1"))
    except ValueError:
        return None
    return found if 0 <= found < float("inf") else None


def _quota(name: str, destination: Destination, clock: Clock) -> Iterator[Check]:
    admission = destination.admission
    left = admission.quota_left(clock.monotonic())
    if left > 0:
        refusal = Refusal(Reason.QUOTA_EXHAUSTED, "the upstream says so")
        yield refused(refusal, name, clock.now(), clock.now() + left)
    elif admission.quota_remaining == 0:
        remedy = "wait for its reset, or ask the vendor for a larger one"
        yield warned(Row.QUOTA, "nothing is left of the quota", remedy, name)
    elif admission.quota_remaining is not None:
        yield passed(Row.QUOTA, f"{admission.quota_remaining:g} calls are left", name)
