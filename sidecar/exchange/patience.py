"""How long the upstream side may take: the time-outs of an attempt, and the one deadline of a request."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long one attempt may take, in seconds: to connect, to the first byte of the answer, without progress."""

    connect: float
    first_byte: float
    idle: float


class Deadline:
    """When the first byte of the final answer is due, on the loop's clock; an upload moves it on."""

    __slots__ = ("at",)

    def __init__(self, at: float) -> None:
        self.at = at
