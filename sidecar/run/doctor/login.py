"""The credential itself: the shared one, or one that is obtained as any instance does it, and what is to be said of it.

No login is made where a session is shared already, nor where it would end the session of a sidecar that runs.
"""

import asyncio
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from sidecar.clock import Clock, span
from sidecar.errors import Reason, Refusal
from sidecar.events import Renewal
from sidecar.policy.diagnose import Cost, Finding, Standing, diagnose
from sidecar.run.doctor.check import Check, Row, failed, passed, warned
from sidecar.run.systems import System
from sidecar.settings import Upstream
from sidecar.tokens.broker import Broker
from sidecar.tokens.protocols import BrokerStatus
from sidecar.tokens.token import Token

ROWS = {Reason.SEAT_TAKEN: Row.SEAT, Reason.QUOTA_EXHAUSTED: Row.QUOTA}
"""The lines of refusals; of all others it is that of the login."""
_TOLERANCE = 0.05
_SECONDS = 5.0


async def obtain(broker: Broker, heard: "asyncio.Future[Renewal]", clock: Clock, seconds: float) -> Token:
    """Return the token that is shared, or obtain one; raises Refusal after the first attempt that failed.

    *heard*: gets the first failure of an attempt, which is not waited beyond. What the record says is kept to: a
    refused credential is not shown again, a pause is not cut short, the lease is taken.
    """
    getting = asyncio.create_task(broker.token(clock.monotonic() + seconds))
    try:
        both: set[asyncio.Future[Any]] = {getting, heard}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if heard.done():
            failure = heard.result()
            rejected = failure.result == "rejected"
            raise Refusal(Reason.CREDENTIAL_REJECTED if rejected else Reason.TOKEN_UNAVAILABLE, failure.detail)
        return getting.result()
    finally:
        getting.cancel()
        await asyncio.wait({getting})


def refused(refusal: Refusal, name: str, now: float, until: float | None = None) -> Check:
    """Return the line of a refusal of ours, in the words of the findings where there are some."""
    row = ROWS.get(refusal.reason, Row.LOGIN)
    standing = Standing(
        upstream=name,
        state="",
        failure=refusal.detail,
        quota_until=until,
        costs={refusal.reason: Cost(now, now)},
    )
    found = diagnose((standing,), now)
    if not found:
        return failed(row, refusal.detail, f"see docs/operations.md for {refusal.reason}", name)
    (finding,) = found
    end = f" until {_moment(finding.until)}" if finding.until else ""
    return failed(row, f"{finding.what[:-1]}{end}: {finding.cause or 'nothing more is known'}", _steps(finding), name)


def _steps(finding: Finding) -> str:
    if finding.id == Reason.TOKEN_UNAVAILABLE:
        # What it says to look at is told here, and a pause that a login asks for is not to be cut short.
        return (
            "mend what that says; it is tried again by itself, once any pause that was asked for is over, as by a"
            " locked account: set the right secret before that"
        )
    return " ".join(step.text + (f" `{step.command}`" if step.command else "") for step in finding.steps)


def got(
    token: Token, status: BrokerStatus, upstream: Upstream, owner: str, name: str, *, renewed: bool = False
) -> Iterator[Check]:
    """Yield how *token* was come by, and whether others want the seat of its account.

    *renewed*: the upstream refused the one before.
    """
    recipe = upstream.system
    one = recipe is not None and recipe.sessions.per_account == "one"
    what = "session" if token.how == "login" else "token"
    if token.how == "configured":
        yield passed(Row.LOGIN, "nothing is obtained: the credential is shown as it is configured", name)
    elif token.by == owner:
        before = ", after the upstream refused the one that was held" if renewed else ""
        yield passed(Row.LOGIN, f"a {what} was obtained by {token.how}{before}; other instances use it too", name)
    else:
        spared = "; no login was made, as the account has one session" if one else ", and no other was asked for"
        yield passed(Row.LOGIN, f"the {what} that {token.by} obtained is used{spared}", name)
    if one and status.taken:
        times = "once" if status.taken == 1 else f"{status.taken} times in a row"
        yield warned(
            Row.SEAT,
            f"another login has taken the only session of the account {times}, soon after it began",
            "find who else logs in with this account, and give the sidecar an account of its own",
            name,
        )
    elif one:
        yield passed(Row.SEAT, "no other login takes the only session of the account", name)


def granted(token: Token, status: BrokerStatus, system: System, name: str) -> Iterator[Check]:
    """Yield whether the scope is that which was asked for, and whether a refresh token came."""
    oauth2 = system.oauth2
    if oauth2 is None:
        return
    asked = (oauth2.scope or "").split()
    if token.missing:
        yield failed(
            Row.SCOPE,
            f"granted: {token.scope or 'nothing'}; asked for and not granted: {token.missing}",
            f"have the issuer grant {token.missing} to client and user, or take it out of the scope",
            name,
        )
    elif asked:
        yield passed(Row.SCOPE, f"granted as asked for: {token.scope or ' '.join(asked)}", name)
    if status.kept:
        yield passed(Row.REFRESH, "a refresh token is held for the next renewal", name)
    elif "offline_access" in asked:
        yield warned(
            Row.REFRESH,
            f"the scope asks for offline_access, and no refresh token came; each renewal uses {oauth2.grant}",
            "have the issuer give refresh tokens to this client, or take offline_access out of the scope",
            name,
        )
    else:
        yield passed(Row.REFRESH, f"no refresh token; each renewal uses the grant {oauth2.grant}", name)


def lasting(token: Token, upstream: Upstream, system: System, left: float | None, clock: Clock, name: str) -> Check:
    """Compare the lifetime that is configured with what was granted, and with what the upstream says is *left*."""
    if token.lifetime == math.inf:
        return passed(Row.LIFETIME, "no end is told: it is used until the upstream says that it is over", name)
    told = f"granted {span(token.lifetime)} ({token.source})"
    configured, key = _configured(upstream, system)
    ours = token.expires_at - clock.now()
    if configured is not None and token.lifetime < configured * (1 - _TOLERANCE):
        remedy = f"renewals follow what is granted; set {key} to {span(token.lifetime)}, or have the issuer raise it"
        return warned(Row.LIFETIME, f"{told}, configured {span(configured)}", remedy, name)
    if left is not None and left < ours - max(_SECONDS, _TOLERANCE * token.lifetime):
        remedy = "ask the vendor what ends it sooner; such a 401 is renewed for, and the request repeated"
        what = f"{told}, and {span(ours)} are left of it, but the upstream says {span(left)}"
        return warned(Row.LIFETIME, what, remedy, name)
    margin = upstream.renew.margin
    wanted = token.lifetime * margin.share if margin.share is not None else (margin.seconds or 0.0)
    if wanted > token.lifetime / 2:
        remedy = f"set upstreams.{name}.renew.margin to at most {span(token.lifetime / 2)}, or a share such as 20%"
        what = f"{told}; renew.margin is {span(wanted)}, over half of that, so that half is used"
        return warned(Row.LIFETIME, what, remedy, name)
    return passed(Row.LIFETIME, told, name)


def _configured(upstream: Upstream, system: System) -> tuple[float | None, str]:
    if (oauth2 := system.oauth2) is not None:
        return (oauth2.lifetime if "lifetime" in oauth2.model_fields_set else None), "oauth2.lifetime"
    longest = upstream.system.login.life.max_ if upstream.system is not None else None
    return (longest if isinstance(longest, float) else None), "login.life.max"


def ending(token: Token, every: float | None, name: str) -> Check:
    """Say whether use moves the end; *every*: how often the session is kept alive, None: never."""
    if token.idle is None:
        absolute = token.lifetime < math.inf
        what = f"absolute, by what was granted: {_moment(token.expires_at)}" if absolute else "none is known"
        return passed(Row.EXPIRY, what, name)
    end = f", and in any case after {span(token.lifetime)}" if token.lifetime < math.inf else ""
    what = f"sliding: {span(token.idle)} after the last use{end}"
    if every is not None and every >= token.idle:
        remedy = f"set upstreams.{name}.keepalive.every below {span(token.idle)}"
        return warned(Row.EXPIRY, f"{what}; the keep-alive comes every {span(every)}, which is too late", remedy, name)
    return passed(Row.EXPIRY, what, name)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
