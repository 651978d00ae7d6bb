"""A secret that cannot be printed: the only type in which a token, password or key travels."""

import hmac
from typing import NoReturn, final


@final
class Secret:
    """Hold a string that shows itself only through `reveal`.

    `str`, `repr`, formatting and JSON give `Secret(***)` or fail; pickling raises TypeError, so that no
    queue, cache or crash report carries it off. Equality takes constant time. An empty secret is false.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the plain value; call it only where the value goes on the wire or into a cipher."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        ours, theirs = self._value, other._value
        return hmac.compare_digest(ours.encode("utf-8", "surrogatepass"), theirs.encode("utf-8", "surrogatepass"))

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "Secret(***)"

    def __format__(self, spec: str) -> str:
        return "Secret(***)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret cannot be pickled or copied; pass the object itself")
