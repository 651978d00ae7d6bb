"""How an upstream speaks of bearer tokens: what shows one, and what its answers say."""

import pytest

from sidecar.auth.dialect import oauth2_dialect
from sidecar.policy.headers import CREDENTIALS
from sidecar.policy.message import Fields, Request
from sidecar.policy.reading import FINE, Reading, Sign
from sidecar.secret import Secret
from sidecar.settings import Strip
from tests.canary import canary

TOKEN = canary("token")
REQUEST = Request(method=b"POST", scheme="https", host="x", port=443, target=b"/x?y", fields=(), length=0)
BEARER = oauth2_dialect(Strip())
SCOPE = (b"WWW-Authenticate", b'Bearer error="insufficient_scope"')
WAIT = (b"Retry-After", b"7")


def test_a_token_is_shown_in_one_field() -> None:
    """RFC 6750 section 2.1, whatever the request."""
    shown = BEARER.dress({"access_token": Secret(TOKEN)}, REQUEST, REQUEST.target)

    assert shown == ((b"Authorization", b"Bearer " + TOKEN.encode()),)


def test_what_is_configured_is_stripped_too() -> None:
    """`strip` adds to the built-in set and takes from it."""
    strips = oauth2_dialect(Strip(headers=("X-Mine",), cookies=("sid",), query=("key",), keep=("x-api-key",))).strips

    assert strips.headers == (CREDENTIALS | {b"x-mine"}) - {b"x-api-key"}
    assert (strips.cookies, b"key" in strips.query) == ({b"sid"}, True)


def test_nothing_is_held_back_and_nothing_is_ours_alone() -> None:
    """Answers stream at once, and all of them is the client's: none of it is a credential."""
    assert (BEARER.hold_back, BEARER.ours) == (None, None)


@pytest.mark.parametrize(
    ("status", "fields", "reading"),
    [
        (200, (), FINE),
        (302, (WAIT,), FINE),
        (399, (SCOPE,), FINE),
        (401, (), Reading(Sign.EXPIRED)),
        (401, (WAIT,), Reading(Sign.EXPIRED, 7.0)),
        (401, (SCOPE,), Reading(Sign.SCOPE)),
        (401, ((b"WWW-Authenticate", b'DPoP error="use_dpop_nonce"'),), Reading(Sign.FOREIGN)),
        (403, (SCOPE,), FINE),
        (429, (WAIT,), Reading(Sign.FINE, 7.0)),
        (503, ((b"Retry-After", b"Sun, 06 Nov 1994 08:50:37 GMT"),), Reading(Sign.FINE, 60.0)),
        (500, (), FINE),
    ],
)
@pytest.mark.parametrize("body", [None, b"", b'{"code": 401}'])
def test_the_head_says_it_all(status: int, fields: Fields, reading: Reading, body: bytes | None) -> None:
    """A 401 alone is about the credential; how often and how soon again is the policy's affair; a body says nothing."""
    assert BEARER.read(REQUEST, status, fields, body, 784111777.0) == reading
