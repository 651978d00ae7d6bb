"""What an upstream's answer means: every form of challenge and of Retry-After, and whatever else comes."""

import math
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar.policy.classify import challenges, classify_unauthorized, retry_after
from sidecar.policy.reading import Sign

EXPIRED, SCOPE, FOREIGN = Sign.EXPIRED, Sign.SCOPE, Sign.FOREIGN
NOW = 784111777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110


def said(*values: bytes, name: bytes = b"WWW-Authenticate"):
    return tuple((name, value) for value in values)


READ = [
    (b"", []),
    (b"Bearer", [("bearer", {})]),
    (b"bEARER", [("bearer", {})]),
    (b"Bearer ", [("bearer", {})]),
    (b"  Bearer", [("bearer", {})]),
    (b",,Bearer,,", [("bearer", {})]),
    (b"Basic, Bearer", [("basic", {}), ("bearer", {})]),
    (b"Basic,Bearer,Digest", [("basic", {}), ("bearer", {}), ("digest", {})]),
    (b'Bearer realm="x"', [("bearer", {"realm": "x"})]),
    (b"Bearer realm=x", [("bearer", {"realm": "x"})]),
    (b'Bearer realm=""', [("bearer", {"realm": ""})]),
    (b'Bearer REALM="X"', [("bearer", {"realm": "X"})]),
    (b'Bearer realm = "x" , error = "y"', [("bearer", {"realm": "x", "error": "y"})]),
    (b'Bearer realm="x",error="y"', [("bearer", {"realm": "x", "error": "y"})]),
    (b'Bearer realm="x" error="y"', [("bearer", {"realm": "x", "error": "y"})]),
    (b'Bearer ,realm="x"', [("bearer", {"realm": "x"})]),
    (b'Bearer\trealm="x"', [("bearer", {"realm": "x"})]),
    (b'Bearer realm="a, Basic b=c, d"', [("bearer", {"realm": "a, Basic b=c, d"})]),
    (b'Bearer realm="a\\"b\\\\c, Basic"', [("bearer", {"realm": 'a"b\\c, Basic'})]),
    (b'Basic realm="x", Bearer error="y"', [("basic", {"realm": "x"}), ("bearer", {"error": "y"})]),
    (b'Basic realm="x", charset=UTF-8, Bearer', [("basic", {"realm": "x", "charset": "UTF-8"}), ("bearer", {})]),
    (b"Negotiate YWJjZA==", [("negotiate", {})]),
    (b"Negotiate YWJjZA==, Bearer", [("negotiate", {}), ("bearer", {})]),
    (b"Negotiate a/b+c~d._-, Bearer realm=x", [("negotiate", {}), ("bearer", {"realm": "x"})]),
    (b"NTLM , Bearer a==", [("ntlm", {}), ("bearer", {})]),
    (
        b'DPoP algs="ES256 PS256", error="use_dpop_nonce"',
        [("dpop", {"algs": "ES256 PS256", "error": "use_dpop_nonce"})],
    ),
    (b'Digest qop="auth, auth-int", nonce="a=b"', [("digest", {"qop": "auth, auth-int", "nonce": "a=b"})]),
    (b"Bearer error=a, error=b", [("bearer", {"error": "b"})]),
    # what cannot be read is left out, and the rest is read
    (b"@@, Bearer", [("bearer", {})]),
    (b'"Basic", Bearer', [("bearer", {})]),
    (b"realm=x, Bearer", [("bearer", {})]),
    (b'Bearer realm="x', [("bearer", {})]),
    (b'Bearer realm="x\\', [("bearer", {})]),
    (b"Bearer realm=, Basic", [("bearer", {}), ("basic", {})]),
    (b"Bearer =x, Basic", [("bearer", {}), ("basic", {})]),
    (b"Bearer (x), Basic", [("bearer", {}), ("basic", {})]),
    (b"caf\xe9, Bearer", [("bearer", {})]),
    (b'Bearer realm="caf\xe9"', [("bearer", {"realm": "caf\xe9"})]),
]


@pytest.mark.parametrize(("value", "found"), READ)
def test_challenges_are_read(value: bytes, found: list) -> None:
    """RFC 9110 section 11.6.1: commas between challenges and between parameters, quotes, token68, any space."""
    assert challenges(said(value)) == found


def test_fields_are_read_in_order() -> None:
    """Several fields are one list; the name has no case; other fields say nothing."""
    fields = (
        *said(b"Basic"),
        *said(b"Digest", name=b"Proxy-Authenticate"),
        *said(b"Bearer a=b", name=b"www-AUTHENTICATE"),
    )

    assert challenges(fields) == [("basic", {}), ("bearer", {"a": "b"})]


CHALLENGED = [
    ((), EXPIRED),
    ((b"",), EXPIRED),
    ((b"@@@",), EXPIRED),
    ((b'realm="x"',), EXPIRED),
    ((b"Bearer",), EXPIRED),
    ((b'Bearer realm="x", error="invalid_token", error_description="expired"',), EXPIRED),
    ((b'Bearer error="invalid_request"',), EXPIRED),
    ((b"bearer error=invalid_token",), EXPIRED),
    ((b'Bearer error="insufficient_scope"',), SCOPE),
    ((b'BEARER ERROR="Insufficient_Scope"',), SCOPE),
    ((b"Bearer error=insufficient_scope",), SCOPE),
    ((b'Bearer realm="x", scope="a b", error="insufficient_scope"',), SCOPE),
    ((b'Basic realm="x", Bearer error="insufficient_scope"',), SCOPE),
    ((b'Bearer error="invalid_token", Bearer error="insufficient_scope"',), SCOPE),
    ((b'Bearer error="invalid_token"', b'Bearer error="insufficient_scope"'), SCOPE),
    ((b'Bearer realm="error=insufficient_scope"',), EXPIRED),
    ((b'Bearer error_description="insufficient_scope"',), EXPIRED),
    ((b'Bearer realm="x, error=\\"insufficient_scope\\""',), EXPIRED),
    ((b'Basic error="insufficient_scope"',), EXPIRED),
    ((b'Basic error="insufficient_scope", Bearer',), EXPIRED),
    ((b'Basic realm="x"',), EXPIRED),
    ((b"Basic", b"Digest nonce=a"), EXPIRED),
    ((b"Negotiate",), EXPIRED),
    ((b"Negotiate abc==",), EXPIRED),
    ((b'Basic realm="Bearer"',), EXPIRED),
    ((b'Basic realm="a, Bearer"',), EXPIRED),
    ((b'DPoP error="use_dpop_nonce"',), FOREIGN),
    ((b'DPoP error="use_dpop_nonce"', b"Bearer"), EXPIRED),
    ((b"Token",), EXPIRED),
    ((b'OAuth realm="https://plm.example"',), EXPIRED),
    ((b"Session",), EXPIRED),
    ((b'DPoP error="invalid_token", algs="ES256"',), EXPIRED),
    ((b'DPoP algs="ES256", Bearer error="invalid_token"',), EXPIRED),
    ((b"Basic, Bearer",), EXPIRED),
    ((b"Basic", b"Bearer"), EXPIRED),
    ((b"Bearer", b"Basic"), EXPIRED),
    ((b"BearerX",), EXPIRED),
    ((b"Basic", b"@@@"), EXPIRED),
]


@pytest.mark.parametrize(("values", "sign"), CHALLENGED)
def test_unauthorized_is_classified(values: tuple[bytes, ...], sign: Sign) -> None:
    """Whatever is named, or nothing, a new token may help; not for a scope, nor a nonce that DPoP alone asks for."""
    assert classify_unauthorized(said(*values)) is sign


def test_only_the_beginning_of_a_challenge_is_read() -> None:
    """A field of a hostile upstream costs a bounded time."""
    assert challenges(said(b" " * 8192 + b"Bearer")) == []
    assert challenges(said(b" " * 8186 + b"Bearer")) == [("bearer", {})]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.one_of(st.binary(max_size=30), st.text('Bbe="\\, ar', max_size=20).map(str.encode)), max_size=4))
@example([b"a" * 9000, b'"' * 9000, b"," * 9000, b'a="' * 3000])
def test_no_challenge_makes_it_crash(values: list[bytes]) -> None:
    """Whatever an upstream sends is classified, in time that grows with its length only."""
    found = challenges(said(*values))

    assert classify_unauthorized(said(*values)) in (EXPIRED, SCOPE, FOREIGN)
    assert all(scheme == scheme.lower() and name == name.lower() for scheme, rest in found for name in rest)


WORDS = st.text("abcDEF-_1", min_size=1, max_size=6)
QUOTED = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=8)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(WORDS, st.dictionaries(WORDS.map(str.lower), QUOTED, max_size=3)), min_size=1, max_size=4))
def test_what_is_written_right_is_read_right(wanted) -> None:
    """Challenges with quoted parameters, all in one line, come back as they were."""
    escaped = [
        (
            scheme,
            [
                f'{name}="{value.replace(chr(92), chr(92) * 2).replace(chr(34), chr(92) + chr(34))}"'
                for name, value in rest.items()
            ],
        )
        for scheme, rest in wanted
    ]
    line = ", ".join(f"{scheme} {', '.join(rest)}" for scheme, rest in escaped)

    assert challenges(said(line.encode("latin-1"))) == [(scheme.lower(), rest) for scheme, rest in wanted]


WAITS = [
    (b"0", 0.0),
    (b"2", 2.0),
    (b"120", 120.0),
    (b"1.5", 1.5),
    (b"0.25", 0.25),
    (b" 7 ", 7.0),
    (b"0000000000000000005", 5.0),
    (b"99999999999", 99999999999.0),
    (b"9" * 400, math.inf),
    # the three formats of RFC 9110 section 5.6.7
    (b"Sun, 06 Nov 1994 08:50:37 GMT", 60.0),
    (b"Sunday, 06-Nov-94 08:50:37 GMT", 60.0),
    (b"Sun Nov  6 08:50:37 1994", 60.0),
    (b"Sun, 06 Nov 1994 09:50:37 +0100", 60.0),
    (b"sun, 06 nov 1994 08:50:37 gmt", 60.0),
    (b"Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
    (b"Sun, 06 Nov 1994 08:49:36 GMT", 0.0),
    (b"Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
    (b"Thu, 01 Jan 2099 00:00:00 GMT", 4070908800.0 - NOW),
    # unreadable: as if it were not there
    (b"", None),
    (b"-1", None),
    (b"+1", None),
    (b"-1.5", None),
    (b"1.", None),
    (b".5", None),
    (b"1.5.2", None),
    (b"1e3", None),
    (b"0x10", None),
    (b"1,2", None),
    (b"1 s", None),
    (b"abc", None),
    (b"inf", None),
    (b"nan", None),
    (b"\xb2", None),  # a digit to Python, not to HTTP
    (b"\xd9\xa2", None),
    (b"1994-11-06T08:50:37Z", None),
    (b"Sun, 32 Nov 1994 08:50:37 GMT", None),
    (b"Sun, 06 Nov 1994 25:50:37 GMT", None),
    (b"Sun, 06 Nov 99999 08:50:37 GMT", None),
    (b"Sun, 06 Nov 1994 08:50:37 +9999999", None),
]


@pytest.mark.parametrize(("value", "seconds"), WAITS)
def test_retry_after_is_read(value: bytes, seconds: float | None) -> None:
    """Seconds, or a date in one of three formats; the past is no wait; nonsense is no answer."""
    assert retry_after(((b"retry-AFTER", value),), NOW) == seconds


def test_no_retry_after_asks_for_nothing() -> None:
    """Other fields that look like it do not count."""
    assert retry_after(((b"X-Retry-After", b"5"), (b"RateLimit-Reset", b"5")), NOW) is None


def test_first_retry_after_counts() -> None:
    """Also when it cannot be read: whoever sends two is confused, and a normal wait is the safe answer."""
    assert retry_after(((b"Retry-After", b"1"), (b"Retry-After", b"9")), NOW) == 1.0
    assert retry_after(((b"Retry-After", b"x"), (b"Retry-After", b"9")), NOW) is None


@pytest.mark.parametrize("skew", [-86400.0, -1.0, 0.0, 1.0, 86400.0])
def test_date_is_compared_with_the_upstreams_own(skew: float) -> None:
    """Both dates are by the same clock: ours may be wrong as much as it likes."""
    fields = (
        (b"Retry-After", b"Sun, 06 Nov 1994 08:50:37 GMT"),
        (b"dATE", b"Sun, 06 Nov 1994 08:50:07 GMT"),
    )

    assert retry_after(fields, NOW + skew) == 30.0


def test_unreadable_date_leaves_our_clock() -> None:
    """A Date that cannot be read is as good as none."""
    fields = ((b"Date", b"now"), (b"Retry-After", b"Sun, 06 Nov 1994 08:50:37 GMT"))

    assert retry_after(fields, NOW) == 60.0
    assert retry_after(fields, NOW + 100) == 0.0


def test_seconds_do_not_depend_on_any_clock() -> None:
    """Only a date is compared with one."""
    assert retry_after(((b"Retry-After", b"5"), (b"Date", b"Sun, 06 Nov 1994 08:50:37 GMT")), 0.0) == 5.0


@settings(deadline=None)
@given(st.integers(0, 253370764800))
def test_every_date_is_read(when: int) -> None:
    """What HTTP writes we read, to the second, and never ask for less than no wait."""
    value = format_datetime(datetime.fromtimestamp(when, UTC), usegmt=True).encode()

    assert retry_after(((b"Retry-After", value),), NOW) == max(0.0, when - NOW)


DATE_WORDS = [
    "Sun",
    "Sun,",
    "06",
    "Nov",
    "1994",
    "08:49:37",
    "GMT",
    "+0000",
    "-9999",
    "94",
    "06-Nov-94",
    "-",
    ":",
    "(",
    '"',
]


@settings(deadline=None, max_examples=300)
@given(
    st.one_of(st.binary(max_size=40), st.lists(st.sampled_from(DATE_WORDS), max_size=7).map(" ".join).map(str.encode))
)
def test_no_retry_after_makes_it_crash(value: bytes) -> None:
    """Whatever an upstream sends is a wait of zero or more, or none."""
    for fields in (((b"Retry-After", value),), ((b"Date", value), (b"Retry-After", b"Sun, 06 Nov 1994 08:50:37 GMT"))):
        seconds = retry_after(fields, NOW)

        assert seconds is None or seconds >= 0.0
