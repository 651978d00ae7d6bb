"""Answers of our own: every reason has one, it says what it says to programs too, and nothing of anybody else."""

import json
from http import HTTPStatus

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar import errors
from sidecar.errors import (
    REASONS,
    BrokenOff,
    ConfigurationError,
    CredentialRejected,
    IssuerError,
    IssuerUnavailable,
    Lapsed,
    Misplaced,
    Reason,
    Refusal,
    SealError,
    SeatTaken,
    SidecarError,
    StoreError,
    UnknownSeal,
    Unusable,
    UpstreamFailure,
    where,
)
from sidecar.exchange.own_answers import OwnAnswer, own_answer, send_own
from sidecar.policy.message import value_of
from tests.canary import WORD, canary

# RFC 9209 section 2.3: the proxy error types that are registered.
PROXY_ERRORS = {
    "dns_timeout",
    "dns_error",
    "destination_not_found",
    "destination_unavailable",
    "destination_ip_prohibited",
    "destination_ip_unroutable",
    "connection_refused",
    "connection_terminated",
    "connection_timeout",
    "connection_read_timeout",
    "connection_write_timeout",
    "connection_limit_reached",
    "tls_protocol_error",
    "tls_certificate_error",
    "tls_alert_received",
    "http_request_error",
    "http_request_denied",
    "http_response_incomplete",
    "http_response_header_section_size",
    "http_response_header_size",
    "http_response_body_size",
    "http_response_trailer_section_size",
    "http_response_trailer_size",
    "http_response_transfer_coding",
    "http_response_content_coding",
    "http_response_timeout",
    "http_upgrade_failed",
    "http_protocol_error",
    "proxy_internal_response",
    "proxy_internal_error",
    "proxy_configuration_error",
    "proxy_loop_detected",
}

WIRE = {
    Reason.BAD_REQUEST: (400, "http_request_error"),
    Reason.NO_ROUTE: (403, "http_request_denied"),
    Reason.METHOD_REFUSED: (405, "http_request_denied"),
    Reason.REQUEST_TIMEOUT: (408, "http_request_error"),
    Reason.REQUEST_TOO_LARGE: (431, "http_request_error"),
    Reason.PROXY_AUTH_REQUIRED: (407, "http_request_denied"),
    Reason.CREDENTIAL_REJECTED: (502, "proxy_configuration_error"),
    Reason.TOKEN_UNAVAILABLE: (503, "proxy_internal_error"),
    Reason.SEAT_TAKEN: (503, "destination_unavailable"),
    Reason.QUOTA_EXHAUSTED: (503, "destination_unavailable"),
    Reason.CIRCUIT_OPEN: (503, "destination_unavailable"),
    Reason.UPSTREAM_PAUSED: (503, "destination_unavailable"),
    Reason.UPSTREAM_UNREACHABLE: (502, "destination_unavailable"),
    Reason.UPSTREAM_TIMEOUT: (504, "connection_timeout"),
    Reason.TOO_MANY_CONNECTIONS: (503, "connection_limit_reached"),
    Reason.SHUTTING_DOWN: (503, "proxy_internal_error"),
    Reason.INTERNAL: (500, "proxy_internal_error"),
}


def test_reasons_are_complete() -> None:
    """Every reason has its facts and its row here, in the order of the list; values are what a log shows."""
    assert list(REASONS) == list(Reason) == list(WIRE)
    assert {facts.error for facts in REASONS.values()} <= PROXY_ERRORS
    assert len({facts.title for facts in REASONS.values()}) == len(REASONS)
    assert [reason.value for reason in Reason] == [reason.name.lower() for reason in Reason]


@pytest.mark.parametrize("reason", Reason)
def test_answer_of_a_reason(reason: Reason) -> None:
    """Status, Proxy-Status and problem details, framed, and not to be stored by any cache."""
    status, error = WIRE[reason]
    answer = own_answer(Refusal(reason, "one sentence"))
    names = [name for name, _ in answer.fields]

    assert answer.status == status
    assert answer.reason == HTTPStatus(answer.status).phrase.encode()
    assert value_of(answer.fields, b"content-type") == b"application/problem+json"
    assert value_of(answer.fields, b"content-length") == b"%d" % len(answer.body)
    assert value_of(answer.fields, b"proxy-status") == f"auth-sidecar; error={error}".encode()
    assert value_of(answer.fields, b"cache-control") == b"no-store"
    assert value_of(answer.fields, b"retry-after") == (b"5" if status == 503 else None)
    assert value_of(answer.fields, b"allow") == (b"" if reason is Reason.METHOD_REFUSED else None)
    assert len(set(names)) == len(names)
    assert json.loads(answer.body) == {
        "type": "about:blank",
        "title": REASONS[reason].title,
        "status": status,
        "detail": "one sentence",
        "reason": reason.value,
    }


def test_status_of_a_refusal_comes_first() -> None:
    """A reason may have another status in a case; what belongs to the status follows it."""
    large = own_answer(Refusal(Reason.REQUEST_TOO_LARGE, "x", status=413))
    closing = own_answer(Refusal(Reason.INTERNAL, "x", status=503))

    assert (large.status, json.loads(large.body)["status"]) == (413, 413)
    assert value_of(closing.fields, b"retry-after") == b"5"


@pytest.mark.parametrize(("asked", "said"), [(None, b"5"), (0, b"5"), (1, b"1"), (90, b"90")])
def test_unavailable_always_says_when_to_come_back(asked: int | None, said: bytes) -> None:
    """503 has a Retry-After, at least a second: zero would be an invitation to hammer."""
    answer = own_answer(Refusal(Reason.TOKEN_UNAVAILABLE, "x", retry_after=asked))

    assert value_of(answer.fields, b"retry-after") == said


def test_retry_after_is_for_503_only() -> None:
    """A refusal that time does not mend does not promise it."""
    assert value_of(own_answer(Refusal(Reason.NO_ROUTE, "x", retry_after=9)).fields, b"retry-after") is None


def test_method_refused_names_the_methods() -> None:
    """RFC 9110 section 15.5.6: a 405 must have Allow; nothing else has it from us."""
    refused = own_answer(Refusal(Reason.METHOD_REFUSED, "x", allow="GET, HEAD"))

    assert value_of(refused.fields, b"allow") == b"GET, HEAD"
    assert value_of(own_answer(Refusal(Reason.NO_ROUTE, "x", allow="GET")).fields, b"allow") is None


def parsed(raw: bytes, method: bytes = b"GET") -> tuple[h11.Response, bytes, bool]:
    """Return head, body and whether the connection closes, as another implementation reads them."""
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    reader.send(h11.EndOfMessage())
    reader.receive_data(raw)
    head, body = reader.next_event(), b""
    while isinstance(event := reader.next_event(), h11.Data):
        body += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage)
    return head, body, reader.their_state is h11.MUST_CLOSE


@pytest.mark.parametrize("reason", Reason)
def test_answer_is_valid_http(reason: Reason) -> None:
    """As bytes, for where no exchange takes part, it is one whole message that closes the connection."""
    answer = own_answer(Refusal(reason, "one sentence"))
    head, body, closes = parsed(answer.encode())

    assert (head.status_code, bytes(head.reason), head.http_version) == (answer.status, answer.reason, b"1.1")
    assert head.headers.raw_items() == [*map(tuple, answer.fields), (b"Connection", b"close")]
    assert body == answer.body
    assert closes


def test_answer_to_head_has_no_body() -> None:
    """The length stays that of the body there would be."""
    answer = own_answer(Refusal(Reason.NO_ROUTE, "x"))
    head, body, _ = parsed(answer.encode(head_only=True), b"HEAD")

    assert body == b""
    assert answer.encode() == answer.encode(head_only=True) + answer.body
    assert dict(head.headers)[b"content-length"] == b"%d" % len(answer.body)


@settings(deadline=None)
@given(st.text(), st.sampled_from(Reason))
def test_no_detail_breaks_the_message(detail: str, reason: Reason) -> None:
    """Whatever a detail holds stays inside the JSON: no line end, no byte over ASCII gets out."""
    answer = own_answer(Refusal(reason, detail))

    assert json.loads(answer.body)["detail"] == detail
    assert answer.body.isascii()
    assert b"\n" not in answer.body
    assert all(b"\r" not in value and b"\n" not in value for _, value in answer.fields)


class Recorder:
    """A client that notes what it gets."""

    def __init__(self) -> None:
        self.got: list[object] = []

    async def start(
        self, status: int, reason: bytes, fields, *, chunked: bool, data: bytes = b"", end: bool = False
    ) -> None:
        self.got.append((status, reason, fields, chunked, data, end))

    async def send(self, data: bytes) -> None:
        self.got.append(data)

    async def end(self) -> None:
        self.got.append("end")

    async def abort(self) -> None:
        self.got.append("abort")


async def test_client_gets_it_whole() -> None:
    """Head with a length, body and end, at once."""
    client = Recorder()
    refusal = Refusal(Reason.NO_ROUTE, "x")
    await send_own(client, refusal)
    answer = own_answer(refusal)

    assert client.got == [(403, answer.reason, answer.fields, False, answer.body, True)]


def test_an_answer_cannot_change() -> None:
    """It may be kept and sent again."""
    answer = OwnAnswer(200, b"OK", (), b"")

    with pytest.raises(AttributeError):
        answer.status = 500


def test_refusal_tells_the_log_what_it_tells_the_client() -> None:
    """Its text is the reason and the sentence; what was not said is none."""
    refusal = Refusal(Reason.NO_ROUTE, "one sentence")

    assert str(refusal) == "no_route: one sentence"
    assert (refusal.reason, refusal.detail) == (Reason.NO_ROUTE, "one sentence")
    assert (refusal.status, refusal.retry_after, refusal.allow) == (None, None, "")


def test_exceptions_form_the_tree_that_is_drawn() -> None:
    """Two catch points: Refusal at the edge to the client, SidecarError at the edge to the operator."""
    tree = {
        SidecarError: Exception,
        ConfigurationError: SidecarError,
        Refusal: SidecarError,
        IssuerError: SidecarError,
        CredentialRejected: IssuerError,
        IssuerUnavailable: IssuerError,
        BrokenOff: IssuerUnavailable,
        Lapsed: IssuerUnavailable,
        SeatTaken: IssuerUnavailable,
        Misplaced: IssuerUnavailable,
        Unusable: IssuerUnavailable,
        UpstreamFailure: SidecarError,
        StoreError: SidecarError,
        SealError: StoreError,
        UnknownSeal: SealError,
    }

    assert {kind: kind.__base__ for kind in tree} == tree
    assert {
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)
    } == set(tree)
    assert all(kind.__name__ in errors.__doc__ for kind in tree)


def test_exceptions_carry_what_is_decided_by() -> None:
    """Plain facts beside the message; none of them is said unless it was given."""
    rejected = CredentialRejected("invalid_client", "the issuer says no")
    unavailable = IssuerUnavailable("later", retry_after=2.5)
    failure = UpstreamFailure("cut off", sent=True, reused=True, timeout=True, prohibited=True)
    plain = UpstreamFailure("refused", sent=False)

    assert (rejected.error, str(rejected)) == ("invalid_client", "the issuer says no")
    assert (unavailable.retry_after, str(unavailable)) == (2.5, "later")
    assert IssuerUnavailable("later").retry_after is None
    assert (failure.sent, failure.reused, failure.timeout, failure.prohibited) == (True, True, True, True)
    assert (plain.sent, plain.reused, plain.timeout, plain.prohibited) == (False, False, False, False)
    assert str(failure) == "cut off"


def test_place_of_a_bug_shows_no_value() -> None:
    """File and line of the innermost frame, and nothing of what was in it."""

    def outer(secret: str) -> None:
        inner(secret)

    def inner(secret: str) -> None:
        raise ValueError(secret)

    with pytest.raises(ValueError, match=WORD) as caught:
        outer(canary("token"))
    line = inner.__code__.co_firstlineno + 1

    assert where(caught.value) == f"test_own_answers.py:{line}"
    assert where(ValueError(canary("token"))) == "unknown place"
