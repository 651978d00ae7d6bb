"""The record of one credential: what outlives a restart and is shared. It knows no clock, no store and no key."""

import json
from dataclasses import dataclass, replace
from typing import Annotated, Any, Self

from pydantic import Field, TypeAdapter, ValidationError

from sidecar.errors import StoreError, UnknownSeal
from sidecar.secret import Secret
from sidecar.tokens.store import MAX_GENERATION
from sidecar.tokens.token import Generation, Kept, Moment, Token

SCHEMA = 2
FORMER = 1
"""The schema of the release before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """An issuer's no to a credential: *secrets* is the fingerprint of what was refused, made with *salt*.

    *count*: how often in a row. *until*: no instance asks with the same secrets before; None: never. *skew*: seconds
    that the issuer's clock was ahead of ours, 0.0 when that was little.
    """

    at: Moment
    secrets: str
    salt: str
    error: str
    message: str
    count: Generation
    until: Moment | None
    skew: Annotated[float, Field(strict=True, allow_inf_nan=False)] = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Presented:
    """A refresh token was sent *by* an instance, and nothing else is known of it; *lost*: no whole answer came."""

    by: str
    lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known of a credential; *generation* grows with every write, 0: there is no record.

    *token* None: none yet, or none any more. *kept*: what only the next obtain may use, a refresh token. *rotates*:
    whether the issuer gives another one with each answer, None: not known yet. *claimed*: the configured first one was
    presented. *revoked*: an operator dropped what was there. *forced_at*: when a 401 last forced a renewal.
    *not_before*: the issuer asked all to wait until then. *taken*: how many logins in a row were taken by another one
    soon; *seat_free*: no login before, because of that. Times are wall seconds.
    """

    generation: Annotated[int, Field(ge=0, le=MAX_GENERATION, strict=True)] = 0
    token: Token | None = None
    kept: Kept | None = None
    rotates: bool | None = None
    claimed: bool = False
    revoked: bool = False
    presented: Presented | None = None
    forced_at: Moment | None = None
    not_before: Moment | None = None
    rejection: Rejection | None = None
    taken: Annotated[int, Field(ge=0, le=MAX_GENERATION, strict=True)] = 0
    seat_free: Moment | None = None

    def moved(self, seconds: float) -> Self:
        """Return the record as a clock reads it that is *seconds* ahead."""
        if seconds == 0:
            return self
        said = self.rejection
        if said is not None:
            said = replace(said, at=said.at + seconds, until=_later(said.until, seconds))
        return replace(
            self,
            token=self.token.moved(seconds) if self.token else None,
            forced_at=_later(self.forced_at, seconds),
            not_before=_later(self.not_before, seconds),
            seat_free=_later(self.seat_free, seconds),
            rejection=said,
        )

    def encode(self) -> bytes:
        """Return the record in clear, secrets included: for a seal, nothing else."""
        return json.dumps({"schema": SCHEMA} | _RECORD.dump_python(self, mode="json"), separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes) -> "Record":
        """Return the record; raises StoreError, without its content, for any other type or bound.

        Schema 1, of the release before, is read too; any other is UnknownSeal: a newer version of ours may have
        written it.
        """
        try:
            plain = json.loads(data)
            schema = plain["schema"]
            if schema == FORMER:
                plain = _from_former(plain)
            elif schema != SCHEMA:
                raise UnknownSeal("token record: unknown schema")
            record = _RECORD.validate_python(plain)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise StoreError(f"token record: {where} is missing, of a wrong type or out of bounds") from None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise StoreError("token record: not a JSON object of ours") from None
        if record.generation < 1 or (record.token and record.token.lifetime <= 0):
            raise StoreError("token record: a generation or a lifetime that is not above 0")
        return record


_OVER = {"access_token": Secret("none")}
_RECORD = TypeAdapter(Record)


def to_former(record: Record, of: str) -> bytes:
    """Return *record* in schema 1, for instances of the release before; *of*: what it is the record of, here.

    They know no refresh token without an access token: one that is over goes with it. Neither is a revocation.
    """
    token = record.token
    if token is None and record.kept is not None:
        token = Token(values=_OVER, issued_at=0.0, expires_at=1.0, granted=record.generation)
    if token is None:
        return json.dumps({"schema": FORMER, "revoked": True, "generation": record.generation, "of": of}).encode()
    plain = {
        "schema": FORMER,
        "access_token": token.values["access_token"].reveal(),
        "issued_at": token.issued_at,
        "expires_at": token.expires_at,
        "generation": record.generation,
        "refresh_token": record.kept.reveal() if record.kept else None,
        "scope": token.scope,
        "lifetime_source": token.source,
        "grant": token.how,
        "trigger": token.trigger,
        "forced_at": record.forced_at,
        "refused": False,
        "by": token.by,
        "access_generation": token.granted,
        "of": of,
    }
    return json.dumps(plain).encode()


def _from_former(plain: dict[str, Any]) -> dict[str, Any]:
    """Return the members of a record from those of schema 1, in which all was the token's."""
    if plain.get("revoked") is True:
        return {"generation": plain["generation"], "revoked": True}
    if plain["expires_at"] is None:
        raise ValueError("a token without an end")
    token = {
        "values": {"access_token": plain["access_token"]},
        "issued_at": plain["issued_at"],
        "expires_at": plain["expires_at"],
        "granted": plain.get("access_generation") or plain["generation"],
        "scope": plain.get("scope"),
        "source": plain["lifetime_source"],
        "how": plain["grant"],
        "trigger": plain["trigger"],
        "by": plain.get("by", "?"),
    }
    own = {"generation": plain["generation"], "kept": plain.get("refresh_token"), "forced_at": plain.get("forced_at")}
    return {"token": token, **own}


def _later(moment: float | None, seconds: float) -> float | None:
    return None if moment is None else moment + seconds
