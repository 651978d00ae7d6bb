"""A login taken step by step before somebody's eyes: what was sent, what came, what of it matched; no secret."""

import asyncio
from collections.abc import Callable, Iterator

from sidecar.auth.grant import Anew, Grant
from sidecar.auth.watch import Asked
from sidecar.clock import Clock
from sidecar.errors import ConfigurationError, SidecarError
from sidecar.run.shown import answer_lines, cookie_values, texts_of, without
from sidecar.run.systems import System, system_of
from sidecar.settings import SecretReference, Settings, Upstream

Say = Callable[[str], None]


async def explain_login(settings: Settings, upstream: str | None, say: Say, clock: Clock, *, evict: bool) -> None:
    """Log in to *upstream*, None: the only one, and *say* line by line what happens; log out where that is known.

    *evict*: also where that ends the session that runs. What is obtained is stored nowhere. Raises ConfigurationError
    for an upstream that is not there, or whose login costs more than a login; SidecarError for a login that failed.
    """
    name = _chosen(settings, upstream)
    configured = settings.upstreams[name]
    hidden: list[str] = []

    def tell(line: str) -> None:
        """Let nothing of a peer's move the terminal."""
        say("".join(char if char.isprintable() else "?" for char in line))

    system = system_of(name, configured, clock, None, lambda asked: _tell(asked, hidden, tell))
    _check_cost(name, system, evict=evict)
    issuer = system.issuer
    try:
        await issuer.prime()
        hidden += [secret.read().reveal() for secret in _secrets(configured, system)]
        grant = await issuer.obtain(None, configured.renew.timeout)
        hidden += [text for name, value in grant.values.items() for text in texts_of(name, value.reveal())]
        _tell_grant(grant, system, tell)
        await _log_out(system, grant, configured.renew.timeout, tell)
    except SidecarError as error:
        error.args = (without(str(error), hidden),)
        raise
    finally:
        await issuer.aclose()


def _chosen(settings: Settings, upstream: str | None) -> str:
    known = list(settings.upstreams)
    if upstream is None and len(known) == 1:
        return known[0]
    if upstream not in settings.upstreams:
        what = "which upstream?" if upstream is None else f"upstream {upstream} is not configured;"
        raise ConfigurationError(f"{what} expected one of: {', '.join(known)}")
    return upstream


def _check_cost(name: str, system: System, *, evict: bool) -> None:
    if system.issuer.anew is Anew.ONCE:
        raise ConfigurationError(
            f"upstreams.{name}.oauth2.grant: refresh_token may be presented once only, so it is not tried;"
            f" expected another grant, or: auth-sidecar token renew {name}"
        )
    if system.issuer.anew is Anew.EVICTS and not evict:
        raise ConfigurationError(
            f"upstreams.{name}: its account has one session only, so a login ends the one that runs, and the sidecars"
            " log in again; say --yes if that may be"
        )


def _secrets(upstream: Upstream, system: System) -> Iterator[SecretReference]:
    for holder in (upstream.oauth2, system.oauth2):
        if holder is not None:
            yield from (value for _, value in holder if isinstance(value, SecretReference))
    yield from (value for value in upstream.credential.values() if isinstance(value, SecretReference))


async def _log_out(system: System, grant: Grant, seconds: float, say: Say) -> None:
    try:
        await asyncio.shield(system.issuer.release(grant.values, seconds))
    except SidecarError as error:
        say(f"logout: {error}")


def _tell(asked: Asked, hidden: list[str], say: Say) -> None:
    hidden += [*asked.hidden, *cookie_values(asked.answer)]
    say("")
    say(f"{asked.where}: {without(asked.line, hidden)}")
    if asked.names:
        say(f"  > {', '.join(dict.fromkeys(asked.names))}")
    if asked.body:
        say(f"  > {without(asked.body, hidden)}")
    say(f"  < {asked.status}")
    for line in answer_lines(asked.answer, asked.content, hidden):
        say(f"  < {line}")
    for verdict in asked.verdicts:
        say(f"  {without(verdict, hidden)}")


def _tell_grant(grant: Grant, system: System, say: Say) -> None:
    names = [name for name in grant.values if not name.startswith("=")]
    life = "until it is dead" if grant.lifetime == float("inf") else f"{grant.lifetime:g} s ({grant.source})"
    idle = f", {grant.idle:g} s without use" if grant.idle is not None else ""
    scope = f"; scope {grant.scope or grant.asked}" if grant.scope or grant.asked else ""
    say("")
    say(f"obtained by {grant.how}: {', '.join(names) or 'nothing but what is configured'}; lives {life}{idle}{scope}")
    stripped = sorted(name.decode() for name in system.speak(("",)).strips.headers)
    say(f"taken out of a script's requests: {', '.join(stripped)}")
