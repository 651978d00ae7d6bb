"""A token as an issuer granted it. It knows no clock, no store and no key."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Self

from pydantic import Field, PlainSerializer, PlainValidator, WrapValidator

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
End = Annotated[
    float,
    Field(ge=0, strict=True, allow_inf_nan=False),
    WrapValidator(lambda end, check: math.inf if end is None else check(end)),
    PlainSerializer(lambda end: None if end == math.inf else end),
]
"""Wall seconds; math.inf, which a record has as null: no end is known."""
Generation = Annotated[int, Field(ge=1, le=MAX_GENERATION, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What is shown to an upstream, and how long.

    *values*: named secrets; for OAuth `access_token` alone. *issued_at*: when it was asked for. *expires_at* math.inf:
    it lives until an upstream says otherwise. *granted*: the generation of the record that first held it; it only grows
    per credential. *idle*: seconds without use after which it is over, None: however long it is not used. *since*: the
    generation of the first token of the login that it belongs to, None: its own; a later one has other values, and the
    same times. *scope* None: the one asked for. *missing*: what of the scope asked for was not granted. *source*: what
    told the lifetime. *how*: the OAuth grant that gave it, or login. *trigger*: why (start, due, demand, unauthorized,
    forced). *by*: the instance that got it.
    """

    values: Annotated[Mapping[str, Kept], Field(min_length=1)]
    issued_at: Moment
    expires_at: End
    granted: Generation
    idle: Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)] | None = None
    since: Generation | None = None
    scope: str | None = None
    missing: str = ""
    source: str = "?"
    how: str = "?"
    trigger: str = "?"
    by: str = "?"

    @property
    def lifetime(self) -> float:
        """How long it was granted for, in seconds; math.inf without an end."""
        return self.expires_at - self.issued_at

    @property
    def login(self) -> int:
        """The generation of the first token of its login: of two logins, the later one's is greater."""
        return self.since or self.granted

    def same_login(self, other: "Token") -> bool:
        """Tell whether both came of one login: what is different has been rolled, or fetched anew, in it."""
        return (self.login, self.by) == (other.login, other.by)

    def moved(self, seconds: float) -> Self:
        """Return the token as a clock reads it that is *seconds* ahead."""
        return replace(self, issued_at=self.issued_at + seconds, expires_at=self.expires_at + seconds)
