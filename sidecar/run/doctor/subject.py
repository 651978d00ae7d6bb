"""One credential and the upstreams that have it: who is reached, what the credential is, what upstreams say to it."""

import asyncio
import contextlib
import ssl
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sidecar.errors import ConfigurationError, Reason, Refusal
from sidecar.events import Event, Renewal
from sidecar.policy.routing import Origin, parse_base_url
from sidecar.run.credentials import Credential, Shared, make_broker
from sidecar.run.destinations import make_destination, use_of
from sidecar.run.doctor.asking import Asked, ask
from sidecar.run.doctor.check import Check, Row, Verdict, failed, passed
from sidecar.run.doctor.login import ending, got, granted, lasting, obtain, refused
from sidecar.run.doctor.reaching import Reached, certificate, clocks, reach, unreached
from sidecar.run.systems import System
from sidecar.settings import Settings, Upstream
from sidecar.tokens.broker import Broker

SECONDS = 10.0
"""For each look; a login has `renew.timeout`, if that is longer."""


def in_memory(settings: Settings, upstream: Upstream) -> bool:
    """Tell whether what an instance obtains is seen by no other process."""
    recipe = upstream.system
    return settings.store.url == "memory" or (recipe is not None and recipe.sessions.bound == "address")


async def subject(
    settings: Settings,
    shared: Shared,
    credential: Credential,
    alone: Mapping[str, dict[str, Any]],
    secretless: Container[str | None],
) -> list[Check]:
    """Return all that is to be said of one credential, and of the upstreams that have it.

    *alone*: by upstream, the state of a credential that a running sidecar has in its memory, and that must not be
    obtained here. *secretless*: the upstreams with a secret that cannot be read.
    """
    upstreams = {name: settings.upstreams[name] for name in credential.names}
    first = next(iter(upstreams))
    heard: asyncio.Future[Renewal] = asyncio.get_running_loop().create_future()

    def emit(event: Event) -> None:
        if isinstance(event, Renewal) and event.result != "ok" and not heard.done():
            heard.set_result(event)

    shared = replace(shared, emit=emit)
    try:
        context = await shared.contexts.of(upstreams[first].tls)
    except ConfigurationError as error:
        return [failed(Row.TLS, str(error), f"correct upstreams.{first}.tls", first)]
    issuers = _issuers(upstreams[first], credential.systems[first])
    origins = [*(upstream.origin for upstream in upstreams.values()), *issuers]
    reached = await asyncio.gather(*(reach(each, context, shared.clock, SECONDS) for each in origins))
    by_name = dict(zip(upstreams, reached, strict=False))
    at_issuers = reached[len(upstreams) :]
    found = list(_reaches(by_name, at_issuers, first))
    broker = make_broker(credential, settings, shared)
    try:
        await broker.recall()
        if first in alone:
            return [*found, _left_alone(alone[first], first)]
        # A token endpoint elsewhere needs nothing of the upstream; the steps of a login begin there.
        elsewhere = credential.systems[first].oauth2 is not None and bool(at_issuers)
        needed = at_issuers if elsewhere else [by_name[first], *at_issuers]
        if first in secretless or not (all(map(_there, needed)) or broker.status().usable):
            return found
        seconds = max(SECONDS, upstreams[first].renew.timeout)
        try:
            await obtain(broker, heard, shared.clock, seconds)
        except Refusal as refusal:
            return [*found, refused(refusal, first, shared.clock.now())]
        if (standing := broker.status()).state == "seat_taken":
            detail = (
                f"{standing.taken} sessions in a row were taken soon after they began; no login is made for a while"
            )
            return [*found, refused(Refusal(Reason.SEAT_TAKEN, detail), first, shared.clock.now())]
        reachable = {name: upstream for name, upstream in upstreams.items() if _there(by_name[name])}
        asked = await _asked(reachable, credential, broker, context, shared)
        found += [check for each in asked.values() for check in each.checks]
        if not any(check.verdict is Verdict.FAIL and check.name in (Row.LOGIN, Row.SEAT) for check in found):
            found += _of_token(broker, upstreams[first], credential.systems[first], asked.get(first), shared, first)
        return found
    finally:
        if broker.session and in_memory(settings, upstreams[first]):
            await broker.logout()
        await broker.aclose()


def _issuers(upstream: Upstream, system: System) -> list[Origin]:
    """Return the origins beside the upstream's own where the credential is obtained, as far as that is known."""
    found = [system.oauth2.origin] if system.oauth2 is not None else []
    if system.oauth2 is None and upstream.system is not None:
        for url in map(upstream.plain, upstream.system.trust):
            with contextlib.suppress(ValueError):  # a name in it that only a login knows
                found.append(parse_base_url("/".join(url.split("/")[:3])))
    ours = upstream.origin
    return [each for each in found if (each.scheme, each.host, each.port) != (ours.scheme, ours.host, ours.port)]


def _there(reached: Reached) -> bool:
    return not (reached.fault or reached.distrusted)


def _reaches(upstreams: Mapping[str, Reached], issuers: Sequence[Reached], first: str) -> Iterator[Check]:
    for name, reached in upstreams.items():
        for check in (
            certificate(reached, name),
            unreached(reached, Row.UPSTREAM, name),
            clocks(reached, issuers if name == first else (), name),
        ):
            if check is not None:
                yield check
    for reached in issuers:
        if (check := certificate(reached, first)) is not None:
            yield check
        if (check := unreached(reached, Row.ISSUER, first)) is not None:
            yield check
        elif _there(reached):
            yield passed(Row.ISSUER, f"{reached.origin.authority} answers", first)


async def _asked(
    upstreams: Mapping[str, Upstream], credential: Credential, broker: Broker, context: ssl.SSLContext, shared: Shared
) -> dict[str, Asked]:
    """Ask each of *upstreams* with the credential, side by side."""

    async def one(name: str, upstream: Upstream) -> Asked:
        system = credential.systems[name]
        destination = make_destination(name, upstream, credential, (broker,), context, tuple, shared)
        try:
            use = use_of(upstream, system) or system.probe
            return await ask(name, upstream, system, use, destination, shared.clock, SECONDS)
        finally:
            await destination.admission.aclose()
            await destination.pool.aclose()

    found = await asyncio.gather(*(one(name, upstream) for name, upstream in upstreams.items()))
    return dict(zip(upstreams, found, strict=True))


def _of_token(
    broker: Broker, upstream: Upstream, system: System, asked: Asked | None, shared: Shared, name: str
) -> Iterator[Check]:
    status = broker.status()
    if (token := status.token) is None:
        return
    renewed = asked is not None and asked.renewed
    yield from got(token, status, upstream, shared.owner, name, renewed=renewed)
    yield from granted(token, status, system, name)
    if token.how != "configured":
        use = use_of(upstream, system)
        yield lasting(token, upstream, system, asked.left if asked else None, shared.clock, name)
        yield ending(token, use.every if use else None, name)


def _left_alone(state: Mapping[str, Any], name: str) -> Check:
    """Return what the running sidecar says of its session, which lies in its memory alone."""
    if state.get("usable"):
        what = "the running sidecar has the only session, in its memory; no login was made, which would end it"
        return passed(Row.LOGIN, what, name)
    last = (state.get("last_renewal") or {}).get("detail") or "no more is known"
    return failed(
        Row.LOGIN,
        f"the running sidecar has no session ({state.get('state', 'it gave no answer')}): {last}",
        f"see `auth-sidecar token show {name}`; no login was made here, as it could end another one",
        name,
    )
