"""How an upstream speaks of credentials: how one is shown to it, and what its answers say of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sidecar.policy.classify import classify_unauthorized, retry_after
from sidecar.policy.headers import StripSet, strip_set
from sidecar.policy.message import Fields
from sidecar.policy.reading import FINE, Reading, Sign
from sidecar.secret import Secret
from sidecar.settings import Strip

Values = Mapping[str, Secret]
Dress = Callable[[Values, bytes, bytes], Fields]
"""From a credential's values, the method and the target of a request to the fields that show the credential."""
HoldBack = Callable[[int, Fields], int]
"""From the head of an answer to how many bytes of the body are to be looked at before it goes out; 0: none."""
Read = Callable[[int, Fields, bytes | None, float], Reading]
"""From an answer's head, the beginning of its body and wall time to what it says; None: the body was not looked at."""

_UNAUTHORIZED = 401
_ERRORS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one upstream speaks of credentials; every function is pure.

    *strips*: what of the client's is removed. *hold_back* None: an answer under 400 says nothing of the credential, and
    no body does; such answers are not even read. *ours*: the fields of answers, and the cookies that they set, which
    the client never sees; None: there are none.
    """

    strips: StripSet
    dress: Dress
    read: Read
    hold_back: HoldBack | None = None
    ours: StripSet | None = None


def oauth2_dialect(strip: Strip) -> Dialect:
    """Return the dialect of bearer tokens (RFC 6750), with *strip* added to what is removed."""
    strips = strip_set(strip.headers, strip.cookies, strip.query, strip.keep)
    return Dialect(strips=strips, dress=_dress, read=_read)


def _dress(values: Values, _method: bytes, _target: bytes) -> Fields:
    return ((b"Authorization", b"Bearer " + values["access_token"].reveal().encode("ascii")),)


def _read(status: int, fields: Fields, _body: bytes | None, now: float) -> Reading:
    if status < _ERRORS:
        return FINE
    sign = classify_unauthorized(fields) if status == _UNAUTHORIZED else Sign.FINE
    return Reading(sign, retry_after(fields, now))
