"""A login taken step by step before somebody's eyes: what was sent, what came, what of it matched; no secret."""

import asyncio
import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import quote, quote_plus

from sidecar.auth.grant import JAR, Anew, Grant
from sidecar.auth.watch import Asked
from sidecar.clock import Clock
from sidecar.errors import ConfigurationError, SidecarError
from sidecar.policy.message import Fields
from sidecar.run.systems import System, system_of
from sidecar.settings import SecretReference, Settings, Upstream

Say = Callable[[str], None]

_STARS = "***"
_LONGEST = 2000
"""Characters of a body."""
_PLAIN = frozenset(
    {
        "accept",
        "accept-encoding",
        "content-length",
        "content-type",
        "date",
        "location",
        "retry-after",
        "server",
        "user-agent",
    }
)
"""Fields whose values are shown, but for secrets in them; of all others the names."""
_OPAQUE = re.compile(r"(?<![\w+=~-])(?=[\w+=~-]*\d)[\w+=~-]{16,}")
"""What looks like a session or a token, wherever it stands in a message."""
_SHORTEST = 3


async def explain_login(settings: Settings, upstream: str | None, say: Say, clock: Clock, *, evict: bool) -> None:
    """Log in to *upstream*, None: the only one, and *say* line by line what happens; log out where that is known.

    *evict*: also where that ends the session that runs. What is obtained is stored nowhere. Raises ConfigurationError
    for an upstream that is not there, or whose login costs more than a login; SidecarError for a login that failed.
    """
    name = _chosen(settings, upstream)
    configured = settings.upstreams[name]
    hidden: list[str] = []
    system = system_of(name, configured, clock, None, lambda asked: _tell(asked, hidden, say))
    _check_cost(name, system, evict=evict)
    issuer = system.issuer
    try:
        await issuer.prime()
        hidden += [form for secret in _secrets(configured, system) for form in _forms(secret.read().reveal())]
        grant = await issuer.obtain(None, configured.renew.timeout)
        hidden += [form for name, value in grant.values.items() for form in _forms(value.reveal(), jar=name == JAR)]
        _tell_grant(grant, system, say)
        await _log_out(system, grant, configured.renew.timeout, say)
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
    hidden += [form for value in asked.hidden for form in _forms(value)]
    say("")
    say(f"{asked.where}: {asked.method} {_masked(asked.url, hidden)}")
    for line in _message(asked.fields, asked.body, hidden):
        say(f"  > {line}")
    say(f"  < {asked.status}")
    for line in _message(asked.answer, asked.content, hidden):
        say(f"  < {line}")
    for verdict in asked.verdicts:
        say(f"  {_masked(verdict, hidden)}")


def _message(fields: Fields, body: bytes, hidden: Iterable[str]) -> Iterator[str]:
    for name, value in fields:
        shown = name.decode("latin-1")
        if shown.lower() in _PLAIN:
            yield f"{shown}: {_shown(value.decode('latin-1'), hidden)}"
        elif shown.lower() in ("set-cookie", "cookie"):
            cookies = [each.partition(b"=")[0].strip().decode("latin-1") for each in value.split(b";")]
            named = cookies if shown.lower() == "cookie" else cookies[:1]
            yield f"{shown}: {'; '.join(f'{cookie}={_STARS}' for cookie in named)}"
        else:
            yield f"{shown}: {_STARS}"
    if body:
        text = _shown(body[: 4 * _LONGEST].decode("utf-8", "replace"), hidden)
        shown = "".join(char if char.isprintable() else " " for char in text)
        yield shown[:_LONGEST] + (" ..." if len(shown) > _LONGEST or len(body) > 4 * _LONGEST else "")


def _tell_grant(grant: Grant, system: System, say: Say) -> None:
    names = [name for name in grant.values if not name.startswith("=")]
    life = "until it is dead" if grant.lifetime == float("inf") else f"{grant.lifetime:g} s ({grant.source})"
    idle = f", {grant.idle:g} s without use" if grant.idle is not None else ""
    scope = f"; scope {grant.scope or grant.asked}" if grant.scope or grant.asked else ""
    say("")
    say(f"obtained by {grant.how}: {', '.join(names) or 'nothing but what is configured'}; lives {life}{idle}{scope}")
    stripped = sorted(name.decode() for name in system.speak(("",)).strips.headers)
    say(f"taken out of a script's requests: {', '.join(stripped)}")


def _forms(secret: str, *, jar: bool = False) -> Iterator[str]:
    """Yield *secret* as it may stand in a message: as it is, percent-encoded, in JSON, in base64, and its parts.

    *jar*: it is one, of which the cookies' values alone are secret.
    """
    texts = {secret}
    try:
        told = json.loads(secret)
    except ValueError:
        told = secret
    if jar:
        texts, told = set(), [cookie[1] for cookie in told]
    texts |= {each for each in _leaves(told) if len(each) >= _SHORTEST}
    for text in texts:
        yield from {
            text,
            quote(text, safe=""),
            quote_plus(text),
            json.dumps(text)[1:-1],
            b64encode(text.encode()).decode(),
        }


def _leaves(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for each in value.values():
            yield from _leaves(each)
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(each)
    elif isinstance(value, str):
        yield value


def _masked(text: str, hidden: Iterable[str]) -> str:
    for word in sorted(set(hidden), key=len, reverse=True):
        if len(word) >= _SHORTEST:
            text = text.replace(word, _STARS)
    return text


def _shown(text: str, hidden: Iterable[str]) -> str:
    """Return *text* without what is hidden, and without what looks like a session or a token."""
    return _OPAQUE.sub(_STARS, _masked(text, hidden))
