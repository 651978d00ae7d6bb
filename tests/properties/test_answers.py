"""What upstreams and issuers answer: any bytes have one meaning, within bounds, and no secret gets into a message."""

import json
import re
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.auth.cures import SUBJECTS
from sidecar.auth.grant import Grant
from sidecar.auth.lifetimes import MAX_LIFETIME
from sidecar.auth.token_answer import read_grant
from sidecar.auth.token_endpoint import Answer
from sidecar.errors import BrokenOff, CredentialRejected, IssuerError, IssuerUnavailable, Misplaced, Unusable
from sidecar.policy.classify import challenges, classify_unauthorized, retry_after
from sidecar.policy.message import Fields
from sidecar.policy.reading import Sign
from sidecar.secret import Secret
from tests.canary import WORD, canary

NOW = 1_700_000_000.0
SECRET = canary("client-secret")

JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=10),
        st.sampled_from([SECRET, f"refused: {SECRET}", "Bearer", "bearer", "3600", "-5", "1e3"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=4,
)
ODD = {
    "access_token": st.one_of(st.just(canary("access")), JSON, st.just("a" * 17_000), st.just("a\r\nb")),
    "token_type": st.one_of(st.sampled_from(["Bearer", "bEaReR", "DPoP"]), JSON),
    "expires_in": JSON,
    "refresh_token": st.one_of(st.just(canary("refresh")), JSON),
    "scope": JSON,
    "error": st.one_of(st.sampled_from([*SUBJECTS, "server_error", "slow_down"]), JSON),
    "error_description": JSON,
    "message": JSON,
    "fault": JSON,
    "extra": JSON,
}
DOCUMENTS = st.fixed_dictionaries({}, optional=ODD)
GRANTS = st.fixed_dictionaries(
    {"access_token": st.just(canary("access")), "token_type": st.just("Bearer")},
    optional={name: ODD[name] for name in ("expires_in", "refresh_token", "scope", "extra")},
)
BODIES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(["error", "access_token", "error_description", "a"]).map(
        lambda name: f"{name}={SECRET}&x".encode()
    ),
    JSON.map(lambda value: json.dumps(value).encode()),
    DOCUMENTS.map(lambda value: json.dumps(value).encode()),
    GRANTS.map(lambda value: json.dumps(value).encode()),
)
FIELDS = st.lists(
    st.tuples(
        st.sampled_from([b"Retry-After", b"Date", b"X-Token-Expires-In", b"Content-Type"]),
        st.one_of(
            st.binary(max_size=12),
            st.sampled_from([b"5", b"-1", b"Wed, 21 Oct 2015 07:28:00 GMT", b"9" * 30]),
            st.just(b"application/x-www-form-urlencoded"),
        ),
    ),
    max_size=4,
).map(tuple)
GRANTS_ASKED = st.sampled_from(["client_credentials", "password", "refresh_token", "jwt_bearer", "token_exchange"])
PROOFS = st.sampled_from(["client_secret_basic", "client_secret_post", "private_key_jwt", "assertion", "none"])


def read(answer: Answer, grant: str = "password", client_auth: str = "client_secret_basic") -> Grant | IssuerError:
    """Return what *answer* means; any other exception comes out."""
    how: dict[str, Any] = {"grant": grant, "client_auth": client_auth, "encoded": True, "hidden": [Secret(SECRET)]}
    try:
        return read_grant(answer, who="issuer", requested_at=NOW, configured=300.0, **how)
    except IssuerError as error:
        return error


@given(st.one_of(st.sampled_from([200, 400, 401]), st.integers(100, 599)), BODIES, FIELDS, GRANTS_ASKED, PROOFS)
@example(200, json.dumps({"access_token": "t", "expires_in": 0}).encode(), (), "password", "none")
@example(400, json.dumps({"error": "invalid_client", "error_description": SECRET}).encode(), (), "password", "none")
@example(404, json.dumps({"error": {"code": SECRET, "message": SECRET}}).encode(), (), "password", "none")
def test_any_answer_is_a_grant_a_refusal_or_weather(
    status: int, body: bytes, fields: Fields, grant: str, client_auth: str
) -> None:
    """Never another exception; a grant is bounded and safe in a header; a message shows no secret, and what to do."""
    found = read(Answer(status=status, fields=fields, body=body), grant, client_auth)
    if isinstance(found, IssuerError):
        assert WORD not in f"{found} {getattr(found, 'error', '')}"
        assert str(found).isprintable()
        assert type(found) in (CredentialRejected, IssuerUnavailable, BrokenOff, Misplaced, Unusable)
        wait = found.retry_after if isinstance(found, IssuerUnavailable) else None
        assert wait is None or wait >= 0
        if status in (400, 401, 403):
            assert isinstance(found, CredentialRejected) or f"answered with {status}: s" in str(found)  # slow_down, say
        if 200 <= status < 300 or status in (500, 502, 504):
            in_words = isinstance(found, CredentialRejected) or f"answered with {status}: " in str(found)
            assert in_words or isinstance(found, BrokenOff | Unusable)
        return
    assert 200 <= status < 300
    assert 0 < found.lifetime <= MAX_LIFETIME
    assert re.fullmatch(r"[\x21-\x7e]{1,16384}", found.values["access_token"].reveal())
    assert found.kept is None or re.fullmatch(r"[\x20-\x7e]+", found.kept.reveal())
    assert found.scope is None or found.scope.isprintable()
    assert found.requested_at == NOW


@given(GRANTS, st.dictionaries(st.text("xyz_", min_size=1, max_size=6), JSON, max_size=3))
def test_unknown_members_change_nothing(document: dict[str, Any], more: dict[str, Any]) -> None:
    """RFC 6749 section 5.1: they are ignored, wherever they stand."""

    def meaning(members: dict[str, Any]) -> object:
        found = read(Answer(status=200, fields=(), body=json.dumps(members).encode()))
        return str(found) if isinstance(found, IssuerError) else found

    known = {name: value for name, value in document.items() if name != "extra"}
    assert meaning({**more, **known, **more}) == meaning(known)


@given(st.sampled_from([*SUBJECTS]), st.integers(100, 599), st.dictionaries(st.text(max_size=4), JSON, max_size=2))
def test_an_error_in_words_is_one_whatever_the_status(error: str, status: int, more: dict[str, Any]) -> None:
    """Also beside a token; but an issuer in trouble, or asked too often, speaks of itself."""
    body = json.dumps({**more, "access_token": "t", "token_type": "Bearer", "error": error}).encode()
    found = read(Answer(status=status, fields=(), body=body))
    busy = status in (408, 425, 429) or status >= 500
    assert type(found) is (IssuerUnavailable if busy else CredentialRejected)
    assert busy or getattr(found, "error", None) == error


SKEWS = st.integers(-(10**6), 10**6)


@given(st.integers(0, 10**7), SKEWS, st.sampled_from(["imf", "rfc850", "asctime"]))
def test_a_date_means_the_same_on_any_clock(seconds: int, skew: int, form: str) -> None:
    """All three formats of RFC 9110 section 5.6.7, measured against the upstream's own Date."""
    own = datetime.fromtimestamp(NOW + skew, UTC)
    when = datetime.fromtimestamp(NOW + skew + seconds, UTC)
    text = {
        "imf": format_datetime(when, usegmt=True),
        "rfc850": when.strftime("%A, %d-%b-%y %H:%M:%S GMT"),
        "asctime": when.strftime("%a %b %d %H:%M:%S %Y"),
    }[form]
    fields = ((b"Retry-After", text.encode()), (b"Date", format_datetime(own, usegmt=True).encode()))
    assert retry_after(fields, NOW) == float(seconds)


@given(
    st.lists(st.tuples(st.sampled_from([b"Retry-After", b"Date"]), st.binary(max_size=30)), max_size=4),
    st.floats(0, 4e9),
)
def test_a_wait_is_none_or_not_negative(fields: list[tuple[bytes, bytes]], now: float) -> None:
    """Whatever the upstream sends; NaN is no wait."""
    wait = retry_after(tuple(fields), now)
    assert wait is None or wait >= 0


CHALLENGES = st.lists(
    st.tuples(
        st.sampled_from(["Bearer", "bearer", "Basic", "DPoP", "Negotiate"]),
        st.dictionaries(
            st.sampled_from(["error", "realm", "scope"]), st.sampled_from(["insufficient_scope", "a, b", 'q"', ""])
        ),
    ),
    min_size=1,
    max_size=4,
)


def line(scheme: str, parameters: dict[str, str]) -> bytes:
    quoted = [f'{name}="{value.replace(chr(34), chr(92) + chr(34))}"' for name, value in parameters.items()]
    return f"{scheme} {', '.join(quoted)}".encode()


@given(CHALLENGES, st.integers(0, 4))
def test_challenges_mean_the_same_in_one_field_or_in_several(
    wanted: list[tuple[str, dict[str, str]]], cut: int
) -> None:
    """RFC 9110 section 5.3: a list may be split at its commas; and what it asks for follows from its members."""
    lines = [line(*each) for each in wanted]
    together = ((b"WWW-Authenticate", b", ".join(lines[:cut])), (b"www-authenticate", b" , ".join(lines[cut:])))
    apart = tuple((b"WWW-Authenticate", each) for each in lines)

    assert challenges(together) == challenges(apart) == [(scheme.lower(), rest) for scheme, rest in wanted]
    bearers = [rest for scheme, rest in wanted if scheme.lower() == "bearer"]
    scope = any(rest.get("error") == "insufficient_scope" for rest in bearers)
    expected = Sign.SCOPE if scope else Sign.EXPIRED
    assert classify_unauthorized(together) is expected
