"""A token as an issuer granted it. It knows no clock, no store and no key."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Self

from pydantic import Field, PlainSerializer, PlainValidator

from sidecar.secret import Secret
from sidecar.tokens.store import MAX_GENERATION


def _printable(value: object) -> Secret:
    # Printable: a control character in a token would be a header injection.
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError("expected printable text")
    return Secret(value)


Kept = Annotated[Secret, PlainValidator(_printable), PlainSerializer(lambda secret: secret.reveal())]
"""A secret as a record holds it."""
Moment = Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)]
"""Wall seconds."""
Generation = Annotated[int, Field(ge=1, le=MAX_GENERATION, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What is shown to an upstream, and how long.

    *values*: named secrets; for OAuth `access_token` alone. *issued_at*: when it was asked for. *granted*: the
    generation of the record that first held it; it only grows per credential. *scope* None: the one asked for.
    *missing*: what of the scope asked for was not granted. *source*: what told the lifetime. *how*: the OAuth grant
    that gave it. *trigger*: why (start, due, demand, unauthorized, forced). *by*: the instance that got it.
    """

    values: Annotated[Mapping[str, Kept], Field(min_length=1)]
    issued_at: Moment
    expires_at: Moment
    granted: Generation
    scope: str | None = None
    missing: str = ""
    source: str = "?"
    how: str = "?"
    trigger: str = "?"
    by: str = "?"

    @property
    def lifetime(self) -> float:
        """How long it was granted for, in seconds."""
        return self.expires_at - self.issued_at

    def moved(self, seconds: float) -> Self:
        """Return the token as a clock reads it that is *seconds* ahead."""
        return replace(self, issued_at=self.issued_at + seconds, expires_at=self.expires_at + seconds)
