"""Which methods are sent on, in the request line or in a field that means another."""

import pytest

from sidecar.errors import Reason, Refusal
from sidecar.policy.message import Request
from sidecar.policy.methods import check_method


def refusal(method: bytes, *fields: tuple[bytes, bytes], read_only: bool) -> Refusal | None:
    request = Request(method=method, scheme="https", host="h", port=443, target=b"/", fields=fields, length=0)
    try:
        check_method(request, read_only=read_only)
    except Refusal as refused:
        return refused
    return None


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"POST", b"DELETE", b"PATCH", b"get", b"M-SEARCH"])
def test_method_is_sent_on(method: bytes) -> None:
    """Any, spelled as it is; a read-only upstream gets those that read, and methods have case."""
    assert refusal(method, read_only=False) is None
    refused = refusal(method, read_only=True)

    assert (refused is None) is (method in (b"GET", b"HEAD", b"OPTIONS"))
    if refused:
        assert (refused.reason, refused.allow) == (Reason.METHOD_REFUSED, "GET, HEAD, OPTIONS")


@pytest.mark.parametrize("method", [b"TRACE", b"Trace", b"TRACK", b"track", b"DEBUG", b"dEBUG", b"CONNECT", b"connect"])
def test_method_that_shows_a_credential_or_a_debugger_is_refused(method: bytes) -> None:
    """In any case, since some servers do not look at it."""
    for read_only in (False, True):
        refused = refusal(method, read_only=read_only)

        assert refused is not None
        assert refused.reason is Reason.METHOD_REFUSED
        assert method not in refused.allow.encode().split(b", ")


@pytest.mark.parametrize(
    "name", [b"X-HTTP-Method-Override", b"X-HTTP-Method", b"X-Method-Override", b"x_http_method_OVERRIDE"]
)
@pytest.mark.parametrize(
    ("values", "reads"),
    [
        ((b"DELETE",), False),
        ((b"delete",), False),
        ((b"GET",), True),
        ((b"get",), True),
        ((b"HEAD",), True),
        ((b"OPTIONS",), True),
        ((b"",), True),
        ((b"GET", b"PUT"), False),
        ((b"GET, DELETE",), False),
        ((b"GET;DELETE",), False),
        ((b"WHATEVER",), False),
    ],
)
def test_read_only_holds_for_the_method_that_a_field_means(name: bytes, values: tuple[bytes, ...], reads: bool) -> None:
    """Frameworks take the request for one with that method; elsewhere that is the client's business."""
    fields = tuple((name, value) for value in values)
    refused = refusal(b"GET", *fields, read_only=True)

    assert (refused is None) is reads
    assert refused is None or refused.reason is Reason.METHOD_REFUSED
    assert refusal(b"POST", *fields, read_only=False) is None
