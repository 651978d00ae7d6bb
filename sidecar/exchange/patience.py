"""How long the upstream side may take."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long one attempt may take, in seconds: to connect, to the first byte of the answer, without progress."""

    connect: float
    first_byte: float
    idle: float
