"""Which methods are sent on, whether the request line says them or a field."""

from sidecar.errors import Reason, Refusal
from sidecar.policy.headers import METHOD_FIELDS, values_named
from sidecar.policy.message import Request

_READING = frozenset({b"GET", b"HEAD", b"OPTIONS"})
_NEVER_SENT_ON = frozenset({b"CONNECT", b"DEBUG", b"TRACE", b"TRACK"})


def check_method(request: Request, *, read_only: bool = False) -> None:
    """Raise Refusal when the method is not one to send on; *read_only*: when it is not GET, HEAD or OPTIONS.

    There a field that means another method is refused as that method is; one without a value means none.
    """
    if read_only and not (request.method in _READING and _READING.issuperset(_meant(request))):
        raise Refusal(Reason.METHOD_REFUSED, "this upstream is configured read-only", allow="GET, HEAD, OPTIONS")
    if request.method.upper() in _NEVER_SENT_ON:
        # RFC 9110 section 9.3.8: TRACE sends a credential back. TRACK is its twin, DEBUG attaches a debugger.
        raise Refusal(
            Reason.METHOD_REFUSED, "this method is not forwarded", allow="GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE"
        )


def _meant(request: Request) -> set[bytes]:
    return {value.upper() for value in values_named(request.fields, METHOD_FIELDS) if value}
