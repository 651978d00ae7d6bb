"""What becomes of a credential's record when the issuer has granted something, or nothing. Pure."""

from dataclasses import replace

from sidecar.auth.grant import Grant
from sidecar.secret import Secret
from sidecar.tokens.record import Record
from sidecar.tokens.token import Token


def granted(grant: Grant, presented: Secret | None, draft: Record, trigger: str, *, by: str, now: float) -> Record:
    """Return the record after *grant*, in the place of *draft*, in which it stands that *presented* was sent.

    *now*: wall time. Its generation, and its token's, are still to be given.
    """
    rotates = draft.rotates
    if presented is not None:
        rotates = grant.kept is not None and grant.kept != presented
    token = Token(
        values=grant.values,
        issued_at=grant.requested_at,
        expires_at=grant.requested_at + grant.lifetime,
        granted=max(1, draft.generation),
        idle=grant.idle,
        scope=grant.scope,
        missing=_missing(grant),
        source=grant.source,
        how=grant.how,
        trigger=trigger,
        by=by,
    )
    return Record(
        generation=draft.generation,
        token=token,
        # RFC 6749 section 6: a new one replaces the old, none keeps it; but not one that was left aside in doubt.
        kept=grant.kept or presented,
        rotates=rotates,
        claimed=draft.claimed,
        taken=draft.taken,
        forced_at=now if trigger == "unauthorized" else draft.forced_at,
    )


def untaken(draft: Record, before: Record) -> Record:
    """Return *draft* when the issuer took nothing of what was presented: it is as well known as *before*."""
    presented = before.presented if draft.kept == before.kept else None
    return replace(draft, presented=presented, claimed=before.claimed)


def noted(record: Record, held: Record) -> Record:
    """Return *held* with what *record* says of the next obtain."""
    known = {name: getattr(record, name) for name in ("rejection", "not_before", "taken", "seat_free")}
    return replace(held, **known)


def _missing(grant: Grant) -> str:
    """Return what of the scope asked for was not granted; empty when the issuer named none, which means all of it."""
    if grant.scope is None or grant.asked is None:
        return ""
    return " ".join(sorted(set(grant.asked.split()) - set(grant.scope.split())))
