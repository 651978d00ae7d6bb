"""How far an origin is: its name, its port, its certificate and its clock, by a HEAD without any credential."""

import asyncio
import contextlib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from sidecar.auth.lifetimes import issuer_time
from sidecar.auth.token_endpoint import cause_of, open_client
from sidecar.ca.bundle import issuer_of
from sidecar.clock import Clock, span
from sidecar.policy.routing import Origin
from sidecar.run.doctor.check import Check, Row, failed, passed, warned

_AWAY = 30.0
_FAR = 300.0
"""Seconds by which clocks may differ, and from where on signed tokens and expiry dates are wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """How *origin* answered.

    *fault*: why it did not, empty if it did. *distrusted*: what is wrong with its certificate, empty for nothing, and
    *signed_by*: who that says to be from. *skew*: seconds that its clock is ahead of ours, None where it tells no time.
    """

    origin: Origin
    fault: str = ""
    distrusted: str = ""
    signed_by: str = ""
    skew: float | None = None


async def reach(origin: Origin, context: ssl.SSLContext, clock: Clock, seconds: float) -> Reached:
    """Ask *origin* for nothing, and say how that went; nothing is raised."""
    try:
        async with asyncio.timeout(seconds), open_client(context) as client:
            before = clock.now()
            async with client.stream("HEAD", f"{origin.scheme}://{origin.authority}/") as answer:
                date = issuer_time(tuple(answer.headers.raw))
            # A Date has no fractions: the middle of its second is the likeliest moment.
            skew = None if date is None else date + 0.5 - (before + clock.now()) / 2
            return Reached(origin=origin, skew=skew)
    except TimeoutError:
        return Reached(origin=origin, fault=f"no answer within {seconds:g} s")
    except (httpx.HTTPError, OSError) as error:
        if (refused := _refused(error)) is None:
            return Reached(origin=origin, fault=cause_of(error))
    signed_by = ""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(seconds):
            signed_by = issuer_of(await _certificate(origin))
    return Reached(origin=origin, distrusted=refused.verify_message, signed_by=signed_by)


def _refused(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error


async def _certificate(origin: Origin) -> bytes:
    """Return the certificate of *origin* (DER), whoever signed it; nothing is sent over the connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    _, writer = await asyncio.open_connection(origin.host, origin.port, ssl=context, server_hostname=origin.host)
    try:
        found: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return found or b""
    finally:
        writer.transport.abort()


def certificate(reached: Reached, upstream: str) -> Check | None:
    """Return what there is to say of the certificate of an origin; None where none was seen."""
    origin = reached.origin
    if reached.distrusted:
        signed = f"; it was issued by {reached.signed_by}" if reached.signed_by else ""
        return failed(
            Row.TLS,
            f"the certificate of {origin.authority} is not trusted ({reached.distrusted}){signed}",
            f"set upstreams.{upstream}.tls.ca to a file with the certificate of that authority, if it is one of yours",
            upstream,
        )
    if reached.fault or origin.scheme != "https":
        return None
    return passed(Row.TLS, f"the certificate of {origin.authority} is trusted", upstream)


def unreached(reached: Reached, row: Row, upstream: str) -> Check | None:
    """Return why an origin gave no answer at all; None where it gave one, or its certificate was in the way."""
    if not reached.fault:
        return None
    key = "base_url" if row is Row.UPSTREAM else "the address of the login"
    return failed(
        row,
        f"{reached.origin.authority} cannot be reached: {reached.fault}",
        f"check {key}, that it is up, and that name server and firewall let this machine go there",
        upstream,
    )


def clocks(ours: Reached, issuers: Sequence[Reached], upstream: str) -> Check | None:
    """Compare this machine's clock with that of an upstream and of its issuers; None where none tells the time."""
    seen = [each for each in (ours, *issuers) if each.skew is not None]
    if not seen:
        return None
    worst = max(seen, key=lambda each: abs(each.skew or 0.0))
    skew = worst.skew or 0.0
    if abs(skew) <= _AWAY:
        return passed(Row.CLOCK, f"this machine's clock and that of {worst.origin.authority} agree", upstream)
    names = [each.origin.authority for each in seen]
    others = [each for each in seen if each is not worst]
    by = span(abs(skew))
    if others and all(abs((each.skew or 0.0) - skew) <= _AWAY for each in others):
        what = f"this machine's clock is {by} {'behind' if skew > 0 else 'ahead'}: {' and '.join(names)} agree"
        remedy = "set this machine's clock, and have NTP keep it"
    elif others and all(abs(each.skew or 0.0) <= _AWAY for each in others):
        what = f"the clock of {worst.origin.authority} is {by} {_where(skew)} this machine's and that of the others"
        remedy = f"tell who runs {worst.origin.authority}"
    else:
        what = f"this machine's clock is {by} {_where(-skew)} that of {worst.origin.authority}"
        remedy = "see which of the two is wrong; set this machine's clock, and have NTP keep it"
    make = failed if abs(skew) > _FAR else warned
    return make(Row.CLOCK, what, remedy, upstream)


def _where(seconds: float) -> str:
    return "ahead of" if seconds > 0 else "behind"
