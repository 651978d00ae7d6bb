"""How an upstream speaks of credentials: how one is shown to it, and what its answers say of it."""

from collections.abc import Callable
from dataclasses import dataclass

from sidecar.auth.grant import Values
from sidecar.policy.classify import classify_unauthorized, retry_after
from sidecar.policy.headers import StripSet, strip_set
from sidecar.policy.message import Fields, Request
from sidecar.policy.reading import FINE, Reading, Sign
from sidecar.policy.routing import Origin
from sidecar.settings import Strip

Dress = Callable[[Values, Request, bytes], Fields]
"""From a credential's values, a request and its target at the upstream to the fields that show the credential."""
HoldBack = Callable[[Request, int, Fields], int]
"""From a request and the head of its answer to how many bytes of the body are to be looked at before it goes out.

0: none. The request's target is the one at the upstream.
"""
Read = Callable[[Request, int, Fields, bytes | None, float], Reading]
"""From a request, its answer's head, the whole body and wall time to what it says; None: the body was not looked at."""
Roll = Callable[[Values, Values, Request, Fields], Values | None]
"""From the values that are held, those of a request, that and its answer's fields to what the answer made of the first.

None: it changed nothing. What is held may be of a later answer than the one that was asked with.
"""


@dataclass(frozen=True, slots=True)
class Edited:
    """A request with the credential in other places than fields of its own; *body* None: it stays as it is."""

    target: bytes
    fields: Fields
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Edit:
    """Puts the credential where no field of its own is: query, body, or wherever a placeholder of ours stands.

    *looks*: whether the body of a request must be read whole first (request, target); *edit*: from values, request,
    target and the body, None: it was not read, to what is sent.
    """

    looks: Callable[[Request, bytes], bool]
    edit: Callable[[Values, Request, bytes, bytes | None], Edited]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of a shim's."""

    status: int
    fields: Fields
    body: bytes


@dataclass(frozen=True, slots=True)
class Local:
    """A client's own login or logout, which is answered here.

    *obtains*: the credential is to be there first. *matches* None: it is one whatever its body says; else from the body
    to whether it is. *reply*: from the values, those held now if it *obtains*, else empty, the address under which the
    client sees the base URL, and the request's body. *onward*: the upstream answers, and the reply's fields are put on
    what it says.
    """

    obtains: bool
    matches: Callable[[bytes], bool] | None
    reply: Callable[[Values, str, bytes], Reply]
    onward: bool = False


Shim = Callable[[Request, str], tuple[Local, ...]]
"""From a request and the URL that it is for to what it may be, by all but its body; the first that matches counts."""

_UNAUTHORIZED = 401
_ERRORS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one upstream speaks of credentials; every function is pure.

    *strips*: what of the client's is removed. *hold_back* None: an answer under 400 says nothing of the credential,
    and no body does; such answers are not even read. *peek_seconds*: how long an answer is held back at most.
    *ours*: the fields of answers, and the cookies that they set, which the client never sees; None: there are none.
    *roll* None: no answer changes the credential. *edit* None: it is shown in fields alone. *shim* None: no login
    of the client's is known; *lends*: origins beside the upstream's where such logins go. *excludes*: whether a
    target carries no credential, None: none is so. *repeats*: whether a request may be sent again whatever its
    method, by itself and its body, if that is at hand; None: its method decides. *alone_first*: until the upstream
    has taken the credential once, one request at a time shows it: wrong ones are counted there. *session*: obtained
    by a login: what is dead never reaches the client while there is another way.
    """

    strips: StripSet
    dress: Dress
    read: Read
    hold_back: HoldBack | None = None
    peek_seconds: float = 1.0
    ours: StripSet | None = None
    roll: Roll | None = None
    edit: Edit | None = None
    shim: Shim | None = None
    lends: tuple[Origin, ...] = ()
    excludes: Callable[[bytes], bool] | None = None
    repeats: Callable[[Request, bytes | None], bool | None] | None = None
    session: bool = False
    alone_first: bool = False


def oauth2_dialect(strip: Strip) -> Dialect:
    """Return the dialect of bearer tokens (RFC 6750), with *strip* added to what is removed."""
    strips = strip_set(strip.headers, strip.cookies, strip.query, strip.keep)
    return Dialect(strips=strips, dress=_dress, read=_read)


def _dress(values: Values, _request: Request, _target: bytes) -> Fields:
    return ((b"Authorization", b"Bearer " + values["access_token"].reveal().encode("ascii")),)


def _read(_request: Request, status: int, fields: Fields, _body: bytes | None, now: float) -> Reading:
    if status < _ERRORS:
        return FINE
    sign = classify_unauthorized(fields) if status == _UNAUTHORIZED else Sign.FINE
    return Reading(sign, retry_after(fields, now))
