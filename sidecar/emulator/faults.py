"""What the emulator does wrong on purpose, and what it counted. Knows no HTTP and no token.

Faults follow the number of the request, not chance, so that a test says beforehand which request meets one.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass

Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
ErrorStatus = Annotated[int, Field(ge=400, le=599)]


@checked_dataclass(kw_only=True, config=ConfigDict(extra="forbid", validate_assignment=True))
class Switches:
    """How the emulator behaves; every field may be assigned while it runs, a value of a wrong type is refused.

    A change of a lifetime counts for tokens issued from then on. `every_*`: each k-th API request, 0 means
    never; faults come before the check of the token and before anything is executed.
    """

    lifetime: Seconds = 3600.0
    """Of an access token."""
    supplier_lifetime: Seconds | None = 900.0
    """Of a token with scope `supplier_mgmt`, if that is shorter than *lifetime*; None: no such surprise."""
    idle_window: Seconds | None = None
    """A token ends when it was not used for so long, whatever `expires_in` promised; None: no sliding window."""
    absolute_timeout: Seconds | None = None
    """With an idle window: the end that use cannot move, from the issue on; None: the token's lifetime."""
    refresh_lifetime: Seconds = 86400.0
    rotate_refresh: bool = False
    """Each refresh gives a new refresh token; a second use of an old one revokes the whole grant."""
    omit_expires_in: bool = False
    claimed_expires_in: int | None = None
    """An `expires_in` that is a lie."""
    withheld_scope: str = ""
    """What is not granted although it was asked for."""

    ahead: float = 0.0
    """Seconds by which the Date of every answer is ahead."""
    token_delay: Seconds = 0.0
    token_fault: int | str | None = None
    """A status (500), an error code of RFC 6749 section 5.2 (`invalid_client`), `garbage` (a page instead of JSON)
    or `drop` (the token is issued, its answer lost)."""
    token_fault_times: Count | None = None
    """The fault ends after so many calls; None: it stays."""

    api_delay: Seconds = 0.0
    every_401: Count = 0
    every_429: Count = 0
    every_500: Count = 0
    every_503: Count = 0
    fail_next: Count = 0
    """So many API requests from now on get *fail_status*; counts down."""
    fail_status: ErrorStatus = 503
    drop_next: Count = 0
    """The connection of so many API requests from now on is reset; counts down."""
    drop_every: Count = 0
    drop_after: bool = False
    """A dropped request is executed first, only its answer is lost."""
    retry_after: Count | None = 1
    """Retry-After of a 429, in seconds; None: without."""
    retry_after_503: Count | None = None


def change(switches: Switches, values: Mapping[str, object]) -> None:
    """Set the fields in *values*, all or none; strings such as `"5"` are read as numbers.

    Raises ValueError (pydantic's ValidationError) for an unknown name or a wrong value.
    """
    wanted = Switches(**{**asdict(switches), **values})
    for each in fields(wanted):
        setattr(switches, each.name, getattr(wanted, each.name))


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one API request instead of its execution; *status* None: the connection is dropped."""

    status: int | None
    retry_after: int | None = None


def next_fault(switches: Switches, number: int) -> Fault | None:
    """Return what befalls API request *number* (from 1), None if nothing; the `*_next` fields count down."""
    if switches.drop_next:
        switches.drop_next -= 1
        return Fault(None)
    if switches.fail_next:
        switches.fail_next -= 1
        return _fault(switches, switches.fail_status)
    if _hits(number, switches.drop_every):
        return Fault(None)
    table = {401: switches.every_401, 429: switches.every_429, 503: switches.every_503, 500: switches.every_500}
    return next((_fault(switches, status) for status, every in table.items() if _hits(number, every)), None)


def next_token_fault(switches: Switches) -> str | None:
    """Return what befalls this call of the token endpoint, None if nothing; *token_fault_times* counts down."""
    if switches.token_fault is None or switches.token_fault_times == 0:
        return None
    if switches.token_fault_times is not None:
        switches.token_fault_times -= 1
    return str(switches.token_fault)


def _fault(switches: Switches, status: int) -> Fault:
    return Fault(status, {429: switches.retry_after, 503: switches.retry_after_503}.get(status))


def _hits(number: int, every: int) -> bool:
    return bool(every) and number % every == 0


@dataclass(slots=True)
class Counters:
    """What the emulator saw; tokens are kept as digests only."""

    token_calls: Counter[str] = field(default_factory=Counter)
    """Calls of the token endpoint by `grant_type`; anything it does not know is `other`."""
    token_sent: Counter[int] = field(default_factory=Counter)
    """Answers of the token endpoint by status."""
    token_concurrent_max: int = 0
    tokens_issued: int = 0
    api_requests: int = 0
    sent: Counter[int] = field(default_factory=Counter)
    """Answers to API requests by status: `sent[401]`."""
    dropped: int = 0
    executed: Counter[str] = field(default_factory=Counter)
    """What was really done, by `METHOD /path`."""
    jobs: Counter[str] = field(default_factory=Counter)
    """What was really done, by X-Job-Id, else Idempotency-Key; the emulator never drops a duplicate."""
    authorization_fields: Counter[int] = field(default_factory=Counter)
    """API requests by their number of Authorization fields."""
    unissued: int = 0
    """API requests with a credential that was never issued here: a client's own that came through."""
    seen: set[bytes] = field(default_factory=set, repr=False)

    @property
    def tokens_seen(self) -> int:
        """How many different credentials API requests carried."""
        return len(self.seen)

    def note_authorization(self, values: list[str], *, issued: bool) -> None:
        """Count the Authorization fields of an API request."""
        self.authorization_fields[len(values)] += 1
        self.unissued += bool(values) and not issued
        self.seen.update(sha256(value.encode("utf-8", "surrogateescape")).digest() for value in values)

    def as_json(self) -> dict[str, object]:
        """Return the counters for `json.dumps`."""
        plain = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "seen"}
        return plain | {"tokens_seen": self.tokens_seen}

    def reset(self) -> None:
        """Set everything to zero, in place: who holds this object goes on reading it."""
        fresh = Counters()
        for each in fields(self):
            setattr(self, each.name, getattr(fresh, each.name))
