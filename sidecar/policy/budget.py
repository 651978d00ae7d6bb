"""The budget of retries: a share of the requests, so that retries never multiply the load of an upstream in trouble.

Every request deposits, every retry withdraws; what was deposited is good for ten seconds.
"""

from sidecar.policy.rolling import Rolling

FLOOR = 10
"""Retries that are always allowed in ten seconds: a script alone must not go without."""
_SECONDS = 10


class Budget:
    """At most *share* of the requests of ten seconds are retried in these ten seconds, or FLOOR if that is more.

    For any ten seconds, wherever they begin: retries are counted over one second more than requests. A replay with
    a newer token and the second try on a new connection after a stale one are none of its business.
    """

    __slots__ = ("_requests", "_retries", "_share")

    def __init__(self, share: float) -> None:
        self._share = share
        self._requests = Rolling(_SECONDS, _SECONDS)
        self._retries = Rolling(_SECONDS + 1, _SECONDS + 1)

    def deposit(self, now: float) -> None:
        """Take note of a request of a client; *now* in seconds that do not go back."""
        self._requests.add(now)

    def left(self, now: float) -> bool:
        """Tell whether there is a retry left in the budget."""
        return self._retries.total(now) + 1 <= max(FLOOR, self._share * self._requests.total(now))

    def withdraw(self, now: float) -> None:
        """Take a retry out of the budget."""
        self._retries.add(now)
