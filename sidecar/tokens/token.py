"""The record of a token: what outlives a restart and is shared. It knows no clock, no store and no key."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Self

from sidecar.errors import StoreError, UnknownSeal
from sidecar.secret import Secret
from sidecar.tokens.store import MAX_GENERATION

_SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token as an issuer granted it; times are wall seconds.

    *issued_at*: when it was asked for. *generation* only grows per credential. *grant*: what gave it.
    *trigger*: why (start, due, demand, unauthorized, forced). *forced_at*: when a 401 last forced a renewal,
    carried over from older records. *refused*: an upstream said 401 to it and no renewal has succeeded since.
    *by*: the instance that got it. *access_generation*: that of the record which first had its access token, where
    this one has another refresh token only; else None.
    """

    access_token: Secret
    issued_at: float
    expires_at: float
    generation: int
    refresh_token: Secret | None
    scope: str | None
    lifetime_source: str
    grant: str
    trigger: str
    forced_at: float | None
    refused: bool = False
    by: str = "?"
    access_generation: int | None = None

    @property
    def values(self) -> dict[str, Secret]:
        """What is shown to the upstream, by name."""
        return {"access_token": self.access_token}

    @property
    def granted(self) -> int:
        """The generation that the access token came with."""
        return self.access_generation or self.generation

    @property
    def lifetime(self) -> float:
        """How long it was granted for, in seconds."""
        return self.expires_at - self.issued_at

    def encode(self) -> bytes:
        """Return the record in clear, secrets included: for a seal, nothing else."""
        plain = {
            "schema": _SCHEMA,
            "access_token": self.access_token.reveal(),
            "issued_at": self.issued_at,
            "expires_at": self.expires_at,
            "generation": self.generation,
            "refresh_token": self.refresh_token.reveal() if self.refresh_token else None,
            "scope": self.scope,
            "lifetime_source": self.lifetime_source,
            "grant": self.grant,
            "trigger": self.trigger,
            "forced_at": self.forced_at,
            "refused": self.refused,
            "by": self.by,
            "access_generation": self.access_generation,
        }
        return json.dumps(plain, allow_nan=False, separators=(",", ":")).encode()

    def moved(self, seconds: float) -> Self:
        """Return the token as a clock reads it that is *seconds* ahead."""
        forced_at = None if self.forced_at is None else self.forced_at + seconds
        return replace(
            self, issued_at=self.issued_at + seconds, expires_at=self.expires_at + seconds, forced_at=forced_at
        )

    @classmethod
    def decode(cls, data: bytes) -> "Self | Revoked":
        """Return the record; raises StoreError, without its content, for any other type or bound.

        Another schema is UnknownSeal: a newer version of ours may have written it.
        """
        plain = _json_object(data)
        if plain.get("revoked") is True:
            return Revoked(_field(plain, "generation", _generation))
        issued_at = _field(plain, "issued_at", _time)
        expires_at = _field(plain, "expires_at", _time)
        if expires_at <= issued_at:
            raise StoreError("token record: expires_at is not after issued_at")
        return cls(
            access_token=Secret(_field(plain, "access_token", _text)),
            issued_at=issued_at,
            expires_at=expires_at,
            generation=_field(plain, "generation", _generation),
            refresh_token=None if plain.get("refresh_token") is None else Secret(_field(plain, "refresh_token", _text)),
            scope=None if plain.get("scope") is None else _field(plain, "scope", _text),
            lifetime_source=_field(plain, "lifetime_source", _text),
            grant=_field(plain, "grant", _text),
            trigger=_field(plain, "trigger", _text),
            forced_at=None if plain.get("forced_at") is None else _field(plain, "forced_at", _time),
            refused=_field(plain, "refused", _flag),
            by=_field(plain, "by", _text) if "by" in plain else "?",
            access_generation=None
            if plain.get("access_generation") is None
            else _field(plain, "access_generation", _generation),
        )


@dataclass(frozen=True, slots=True)
class Revoked:
    """The record that says: every token up to *generation* was dropped by an operator."""

    generation: int

    def encode(self) -> bytes:
        """Return the record in clear."""
        return json.dumps({"schema": _SCHEMA, "revoked": True, "generation": self.generation}).encode()


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        plain = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise StoreError("token record: not JSON") from None
    if not isinstance(plain, dict):
        raise StoreError("token record: not an object")
    if plain.get("schema") != _SCHEMA:
        raise UnknownSeal("token record: unknown schema")
    return plain


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _field[T](plain: dict[str, Any], name: str, check: Callable[[Any], T | None]) -> T:
    value = check(plain.get(name))
    if value is None:
        raise StoreError(f"token record: {name} is missing, of a wrong type or out of bounds")
    return value


def _text(value: Any) -> str | None:
    # Printable: a control character in a token would be a header injection.
    return value if isinstance(value, str) and value and value.isprintable() else None


def _time(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        seconds = float(value)
    except OverflowError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _generation(value: Any) -> int | None:
    return value if type(value) is int and 1 <= value <= MAX_GENERATION else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None
