"""What leaves us: the client's credentials never, ours exactly once, everything else byte for byte."""

import dataclasses
from urllib.parse import parse_qsl

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar.policy.headers import (
    CREDENTIAL_PARAMETERS,
    CREDENTIALS,
    HOP_BY_HOP,
    METHOD_FIELDS,
    PATH_FIELDS,
    incoming,
    nominated,
    normal_name,
    outgoing,
    passed_before,
    strip,
    strip_set,
    strip_target,
    untouched,
    values_named,
    wants_close,
    without_credentials,
)
from sidecar.policy.message import Request, value_of
from tests.canary import WORD, canary

VIA = (b"Via", b"1.1 auth-sidecar")
BUILT_IN = strip_set((), (), (), ())
OURS = (b"Authorization", b"Bearer ours")
HOP = (b"Auth-Sidecar-Hop", b"5a0c31f2")
THEIRS = canary("theirs").encode()


def sent(*fields: tuple[bytes, bytes], strips=BUILT_IN, chunked=False, credential=OURS):
    """Return what goes upstream for *fields*, of which Host is the first."""
    return outgoing(
        ((b"Host", b"client"), *fields), strips, host=b"up", hop=HOP[1], credential=(credential,), chunked=chunked
    )


@pytest.mark.parametrize(
    "name",
    [
        b"Authorization",
        b"authorization",
        b"AUTHORIZATION",
        b"aUTHORIZATIOn",
        b"Proxy-Authorization",
        b"proxy_authorization",
        b"Proxy_Authorization",
        b"X-Api-Key",
        b"X_Api_Key",
        b"x-api_key",
    ],
)
def test_credential_of_the_client_is_removed(name: bytes) -> None:
    """However it is spelled, and however many lines there are."""
    assert sent((name, THEIRS), (b"A", b"1"), (name, THEIRS)) == ((b"Host", b"up"), (b"A", b"1"), HOP, OURS)


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP))
def test_hop_by_hop_field_is_removed_both_ways(name: bytes) -> None:
    """A field that is about one connection does not cross to the other, named in Connection or not."""
    spelled = name.title().replace(b"-", b"_")

    assert sent((name, b"x"), (spelled, b"x")) == ((b"Host", b"up"), HOP, OURS)
    assert incoming(((name, b"x"), (spelled, b"x"), (b"A", b"1"))) == ((b"A", b"1"),)


def test_the_hop_by_hop_set_is_complete() -> None:
    """RFC 9110 section 7.6.1, and what else is between two neighbours only."""
    needed = b"connection proxy-connection keep-alive te transfer-encoding upgrade trailer proxy-authenticate".split()

    assert set(needed) | {b"expect", b"http2-settings"} == HOP_BY_HOP
    assert {b"authorization", b"proxy-authorization", b"x-api-key"} == CREDENTIALS
    assert {normal_name(b"access_token")} == CREDENTIAL_PARAMETERS


@pytest.mark.parametrize(
    "connection",
    [b"x-hop", b"X-Hop", b"x_hop", b" x-hop ", b"close, x-hop", b"x-hop,", b",,x-hop\t,", b"keep-alive,X-HOP,te"],
)
def test_nominated_field_is_removed_both_ways(connection: bytes) -> None:
    """What a Connection field names goes with it, in any case and any place of the list."""
    fields = ((b"connection", connection), (b"X-Hop", b"1"), (b"X-Hops", b"2"))

    assert sent(*fields) == ((b"Host", b"up"), (b"X-Hops", b"2"), HOP, OURS)
    assert incoming(fields) == ((b"X-Hops", b"2"),)


def test_all_connection_fields_count() -> None:
    """Several lines are one list."""
    fields = ((b"Connection", b"a"), (b"CONNECTION", b"b"), (b"A", b"1"), (b"B", b"2"), (b"C", b"3"))

    assert nominated(fields) == {b"a", b"b"}
    assert incoming(fields) == ((b"C", b"3"),)


@pytest.mark.parametrize("connection", [b"Authorization", b"authorization, via, host", b"close,AUTHORIZATION"])
def test_our_own_fields_cannot_be_nominated_away(connection: bytes) -> None:
    """First what the client named goes, then ours comes: the other order would send no credential at all."""
    assert sent((b"Connection", connection), (b"Authorization", THEIRS)) == ((b"Host", b"up"), HOP, OURS)


@pytest.mark.parametrize("name", [b"Host", b"Content-Length", b"content_length"])
def test_framing_cannot_be_nominated_away(name: bytes) -> None:
    """Without them the message would be another one to the upstream."""
    length = (b"Content-Length", b"5")

    assert sent((b"Connection", name), length) == ((b"Host", b"up"), length, HOP, OURS)
    assert incoming(((b"Connection", name), length)) == (length,)


def test_field_that_only_looks_like_connection_names_nothing() -> None:
    """The field is Connection, to us as to every server that reads it."""
    assert nominated(((b"X-Connection", b"a"), (b"Proxy-Connection", b"b"))) == frozenset()


@pytest.mark.parametrize(
    ("value", "closes"),
    [
        (b"close", True),
        (b"Close", True),
        (b"CLOSE", True),
        (b"keep-alive, close", True),
        (b" close ,", True),
        (b"closed", False),
        (b"not close", False),
        (b"keep-alive", False),
        (b"", False),
    ],
)
def test_wish_to_close_is_understood(value: bytes, closes: bool) -> None:
    """RFC 9112 section 9.6: an option of Connection, in any case."""
    assert wants_close(((b"CONNECTION", value),)) is closes
    assert wants_close(((b"X-Close", value),)) is False


def test_everything_else_stays() -> None:
    """Order, spelling, duplicates, empty values, non-ASCII bytes: as they were, between Host and ours."""
    fields = (
        (b"x-LOWER-Upper", b"1"),
        (b"Accept", b"a"),
        (b"accept", b"b"),
        (b"Accept", b"a"),
        (b"Empty", b""),
        (b"Latin", b"caf\xe9 \xff"),
        (b"X-Forwarded-For", b"1.2.3.4"),
        (b"Authorization-X", b"stays"),
        (b"X-Authorization", b"stays"),
        (b"Cookie", b"a=1;  b=2"),
        (b"Idempotency-Key", b"k"),
        (b"Content-Length", b"5"),
    )

    assert sent(*fields) == ((b"Host", b"up"), *fields, HOP, OURS)


def test_host_keeps_its_place_and_spelling() -> None:
    """Its value is the upstream's, whatever the client said."""
    fields = ((b"A", b"1"), (b"hOST", b"evil"), (b"B", b"2"))
    result = outgoing(fields, BUILT_IN, host=b"up:8443", hop=b"v", credential=(OURS,), chunked=False)

    assert result == ((b"A", b"1"), (b"hOST", b"up:8443"), (b"B", b"2"), (b"Auth-Sidecar-Hop", b"v"), OURS)


def test_missing_host_goes_first() -> None:
    """HTTP/1.0 has none; HTTP/1.1 must have one."""
    result = outgoing(((b"A", b"1"),), BUILT_IN, host=b"up", hop=b"v", credential=(OURS,), chunked=False)

    assert result == ((b"Host", b"up"), (b"A", b"1"), (b"Auth-Sidecar-Hop", b"v"), OURS)


def test_chunked_body_is_framed_anew() -> None:
    """The client's Transfer-Encoding is about its connection; ours is added when the body has no length."""
    chunked = (b"Transfer-Encoding", b"chunked")

    assert sent((b"transfer-encoding", b"chunked"), chunked=True) == ((b"Host", b"up"), chunked, HOP, OURS)
    assert chunked not in sent((b"Transfer_Encoding", b"chunked"))


@pytest.mark.parametrize("name", [b"Content_Length", b"content_length", b"CONTENT_LENGTH"])
def test_field_that_some_servers_take_for_the_length_is_removed(name: bytes) -> None:
    """Who folds `_` to `-` would read another length than we did; the real field stays."""
    length = (b"content-LENGTH", b"5")

    assert sent((name, b"44")) == ((b"Host", b"up"), HOP, OURS)
    assert sent((name, b"44"), length, (name, b"5")) == ((b"Host", b"up"), length, HOP, OURS)
    assert untouched(((b"Host", b"a"), (name, b"44")), host=b"a", hop=HOP[1], chunked=False) == ((b"Host", b"a"), HOP)


def test_values_of_fields_by_several_names() -> None:
    """In any spelling, all of them, in order."""
    fields = ((b"X-Original-URL", b"/a"), (b"Original-URL", b"/b"), (b"x_rewrite_url", b"/c"), (b"X-Rewrite-Ur", b"/d"))

    assert values_named(fields, PATH_FIELDS) == [b"/a", b"/c"]
    assert values_named((*fields, (b"", b"")), METHOD_FIELDS) == []
    assert all(name.startswith(b"x") and name == normal_name(name) for name in PATH_FIELDS | METHOD_FIELDS)


def test_credential_may_be_another_field() -> None:
    """Then the client's lines of that name go as well, in every spelling, and Authorization goes all the same."""
    ours = (b"X-Session_Id", b"ours")
    fields = ((b"x-session-id", THEIRS), (b"X_SESSION_ID", THEIRS), (b"Authorization", THEIRS), (b"X-Session", b"1"))

    assert sent(*fields, credential=ours) == ((b"Host", b"up"), (b"X-Session", b"1"), HOP, ours)


def test_more_can_be_stripped_and_some_kept() -> None:
    """`strip` adds to the built-in set; `keep` takes from all of it."""
    strips = strip_set(["X_Session", "Token"], [], [], ["x_api_key", "TOKEN"])
    fields = ((b"X-Session", THEIRS), (b"x-session", THEIRS), (b"X-Api-Key", b"kept"), (b"Token", b"kept"))

    assert sent(*fields, strips=strips) == ((b"Host", b"up"), *fields[2:], HOP, OURS)


def test_our_field_cannot_be_kept() -> None:
    """Even if `keep` names it, what is injected is there once."""
    strips = strip_set([], [], [], ["authorization"])

    assert sent((b"authorization", THEIRS), strips=strips) == ((b"Host", b"up"), HOP, OURS)


@pytest.mark.parametrize(
    ("cookie", "left"),
    [
        (b"sid=CANARY", None),
        (b" sid = CANARY ", None),
        (b"sid", None),
        (b"sid=CANARY; a=1", b"a=1"),
        (b"a=1; sid=CANARY", b"a=1"),
        (b"a=1; sid=CANARY; b=2", b"a=1; b=2"),
        (b"a=1;sid=CANARY;  b=2", b"a=1;  b=2"),
        (b"sid=CANARY; sid=CANARY", None),
        (b"tok=CANARY; sid=CANARY", None),
        (b"Sid=1", b"Sid=1"),
        (b"sid2=1; xsid=2", b"sid2=1; xsid=2"),
        (b"a=sid", b"a=sid"),
        (b"a=1; b=2;", b"a=1; b=2;"),
        (b"", b""),
    ],
)
def test_cookie_is_removed_by_name(cookie: bytes, left: bytes | None) -> None:
    """The named cookies go, the line too if nothing is left; the others stay as they were. Cookie names have case."""
    strips = strip_set([], ["sid", "tok"], [], [])

    assert strip(((b"cooKIE", cookie), (b"X-Cookie", b"sid=1")), strips) == (
        *([] if left is None else [(b"cooKIE", left)]),
        (b"X-Cookie", b"sid=1"),
    )


@pytest.mark.parametrize(
    ("target", "left"),
    [
        (b"/a", b"/a"),
        (b"/a?", b"/a?"),
        (b"/a??", b"/a??"),
        (b"/a?access_token=CANARY", b"/a"),
        (b"/a?access_token", b"/a"),
        (b"/a?access_token=", b"/a"),
        (b"/a?b=1&access_token=CANARY", b"/a?b=1"),
        (b"/a?access_token=CANARY&b=1", b"/a?b=1"),
        (b"/a?b=1&access_token=CANARY&c=2", b"/a?b=1&c=2"),
        (b"/a?access_token=CANARY&access_token=CANARY", b"/a"),
        (b"/a?b=1;access_token=CANARY", b"/a?b=1"),
        (b"/a?access_token=CANARY;b=1&c=2", b"/a?b=1&c=2"),
        (b"/a?b=1&access_token=CANARY;c=2", b"/a?b=1;c=2"),
        (b"/a?Access_Token=CANARY", b"/a"),
        (b"/a?ACCESS_TOKEN=CANARY", b"/a"),
        (b"/a?access-token=CANARY", b"/a"),
        (b"/a?%61ccess_token=CANARY", b"/a"),
        (b"/a?access%5ftoken=CANARY", b"/a"),
        (b"/a?access%5Ftoken=CANARY", b"/a"),
        (b"/a?+access_token=CANARY", b"/a"),
        (b"/a?access_token%20=CANARY", b"/a"),
        (b"/a?&access_token=CANARY&", b"/a?&"),
        (b"/a?&&b&&", b"/a?&&b&&"),
        (b"/a?b=1&&c=%zz%2F/?d", b"/a?b=1&&c=%zz%2F/?d"),
        (b"/a?b=access_token", b"/a?b=access_token"),
        (b"/a?b=access_token=1", b"/a?b=access_token=1"),
        (b"/a?access_token2=1&xaccess_token=2", b"/a?access_token2=1&xaccess_token=2"),
        (b"/a?$expand=Items($select=a;$top=5)&x", b"/a?$expand=Items($select=a;$top=5)&x"),
        (b"/access_token=1/b?c", b"/access_token=1/b?c"),
        (b"/caf\xe9?\xff=\xfe", b"/caf\xe9?\xff=\xfe"),
    ],
)
def test_credential_parameter_is_removed_from_the_query(target: bytes, left: bytes) -> None:
    """However its name is written; every other byte stays, in order."""
    assert strip_target(target, BUILT_IN) == left


def test_more_parameters_can_be_stripped_and_kept() -> None:
    """Names compare as those of fields do: without case, `_` as `-`."""
    strips = strip_set([], [], ["Api-Key"], ["Access-Token"])

    assert strip_target(b"/?api_key=CANARY&access_token=kept&API%2DKEY=CANARY", strips) == b"/?access_token=kept"


SPELLINGS = st.sampled_from(
    [b"authorization", b"AUTHORIZATION", b"Proxy-Authorization", b"proxy_authorization", b"X-Api-Key", b"x_API_key"]
)
OTHER = st.tuples(st.sampled_from([b"a", b"X", b"x-y", b"X_Y", b"Date", b"Via", b"te"]), st.binary(max_size=3))
CREDENTIAL = st.tuples(SPELLINGS, st.just(b"Bearer " + THEIRS))
CONNECTION = st.tuples(
    st.sampled_from([b"Connection", b"connection", b"CONNECTION"]),
    st.lists(st.sampled_from([b"close", b"Authorization", b"via", b"host", b"a", b"X", b"", b" "])).map(b",".join),
)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.one_of(OTHER, CREDENTIAL, CREDENTIAL, CONNECTION), max_size=12), st.booleans())
@example([(b"Connection", b"authorization"), (b"Authorization", THEIRS)], False)
def test_there_is_exactly_one_credential_whatever_the_client_sent(fields, chunked: bool) -> None:
    """One Authorization, ours, last; none of the client's values; one Host, the upstream's."""
    result = sent(*fields, chunked=chunked)

    assert result[-2:] == (HOP, OURS)
    assert [name for name, _ in result if normal_name(name) == b"authorization"] == [b"Authorization"]
    assert not any(WORD.encode() in value for _, value in result)
    assert next(value for name, value in result if name.lower() == b"host") == b"up"
    assert not any(name.lower() in (b"connection", b"proxy-authorization", b"x-api-key") for name, _ in result)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.one_of(OTHER, CREDENTIAL, CONNECTION), max_size=12))
def test_what_stays_is_what_was_there_in_order(fields) -> None:
    """Stripping only takes away, never adds, changes or moves; twice is once."""
    kept = strip(tuple(fields), BUILT_IN)
    left = iter(fields)

    assert all(field in left for field in kept)
    assert strip(kept, BUILT_IN) == kept
    assert set(fields) - set(kept) <= {
        field for field in fields if normal_name(field[0]) in HOP_BY_HOP | CREDENTIALS | nominated(tuple(fields))
    }


@settings(deadline=None, max_examples=300)
@given(st.text("a&;=?%/_-5fF+", max_size=12), st.lists(st.sampled_from(["access_token=CANARY", "b=1", ""]), max_size=4))
def test_no_server_finds_a_credential_parameter(text: str, parts: list[str]) -> None:
    """Read as forms are, with `&` or `;`, the query has no parameter of that name; without one it is unchanged."""
    target = f"/p?{text}&{'&'.join(parts)}".encode()
    left = strip_target(target, BUILT_IN)

    for separator in "&;":
        names = [name for name, _ in parse_qsl(left.partition(b"?")[2].decode(), True, separator=separator)]
        assert "access_token" not in {name.partition("&")[0].lower() for name in names}
    assert strip_target(left, BUILT_IN) == left
    assert left == target or b"token" in target


@given(st.binary(max_size=40))
def test_query_without_credentials_is_never_touched(query: bytes) -> None:
    """Any bytes: a form is none of our business."""
    target = b"/p?" + query

    assert strip_target(target, strip_set([], [], [], ["access_token"])) == target


def test_what_is_shown_of_a_request_holds_no_credential() -> None:
    """Neither the fields nor the parameters that are stripped, and no cookie at all; the rest is what was sent."""
    shown = (b"Accept", b"x"), (b"Connection", b"close"), (b"X-Api-Keys", b"1")
    hidden = [
        (name, THEIRS) for name in (b"authorization", b"Proxy_Authorization", b"x-API-key", b"COOKIE", b"X_Session")
    ]
    request = Request(
        method=b"GET",
        scheme="https",
        host="h",
        port=443,
        target=b"/a?b=1&access_token=CANARY&sid=CANARY",
        fields=(shown[0], *hidden, *shown[1:]),
        length=None,
        upstream="u",
        http10=True,
    )
    result = without_credentials(request, strip_set(["X-Session"], [], ["sid"], []))

    assert result == dataclasses.replace(request, fields=shown, target=b"/a?b=1")
    assert WORD not in repr(result)


def test_passed_through_request_keeps_the_credentials_of_the_client() -> None:
    """Each of them, in its place and spelling, beside everything else; none of ours is added."""
    kept = (
        (b"authorization", THEIRS),
        (b"X-Dup", b"1"),
        (b"X_Api_Key", THEIRS),
        (b"Cookie", b"a=" + THEIRS),
        (b"x-dup", b"\xff"),
    )

    assert untouched(((b"Host", b"client"), *kept), host=b"other", hop=HOP[1], chunked=False) == (
        (b"Host", b"other"),
        *kept,
        HOP,
    )


@pytest.mark.parametrize("name", [*sorted(HOP_BY_HOP), b"proxy-authorization", b"x-nominated"])
def test_passed_through_request_loses_what_was_for_us(name: bytes) -> None:
    """What is about one connection, in any spelling, and the password of the proxy."""
    fields = ((b"Connection", b"X-Nominated"), (name, b"x"), (name.title().replace(b"-", b"_"), b"x"), (b"A", b"1"))

    assert untouched(fields, host=b"other", hop=HOP[1], chunked=True) == (
        (b"Host", b"other"),
        (b"A", b"1"),
        (b"Transfer-Encoding", b"chunked"),
        HOP,
    )


@pytest.mark.parametrize("name", [b"X-Api-Key", b" x_api_KEY\t", b"x-api_key"])
def test_names_have_one_form_for_comparison(name: bytes) -> None:
    """Case, `_` for `-` and space around do not make another name."""
    assert normal_name(name) == b"x-api-key"


def test_first_field_of_a_name_counts() -> None:
    """Where a value is asked for, the name has no case, and no field is not an empty one."""
    fields = ((b"a", b""), (b"DATE", b"1"), (b"Date", b"2"))

    assert value_of(fields, b"date") == b"1"
    assert value_of(fields, b"a") == b""
    assert value_of(fields, b"b") is None


def test_via_is_added_only_when_asked_for() -> None:
    """Before the hop and the credential; those of others stay in front, so that a chain of proxies is told in order."""
    theirs = ((b"Via", b"1.0 fred"), (b"via", b"1.1 next"))
    told = outgoing(theirs, BUILT_IN, host=b"up", hop=HOP[1], credential=(OURS,), chunked=False, via=True)
    assert told == ((b"Host", b"up"), *theirs, VIA, HOP, OURS)
    assert sent(*theirs) == ((b"Host", b"up"), *theirs, HOP, OURS)


@pytest.mark.parametrize("name", [b"Auth-Sidecar-Hop", b"auth_sidecar_hop", b"AUTH-SIDECAR-HOP"])
def test_own_hop_is_known_again(name: bytes) -> None:
    """In any spelling of the name, on any line, and in a line that another proxy made of several."""
    for fields in [((name, HOP[1]),), ((name, b"0badcafe"), (name, HOP[1])), ((name, b"0badcafe, " + HOP[1]),)]:
        assert passed_before(fields, HOP[1])
    for fields in [(), ((name, b"0badcafe"),), ((b"X-Hop", HOP[1]),), ((b"Via", HOP[1]),)]:
        assert not passed_before(fields, HOP[1])
