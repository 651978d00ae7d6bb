"""Answers as `explain --login` shows them: what is wrong can be read, and nothing of a secret."""

import json

import pytest

from sidecar.auth.grant import JAR
from sidecar.run.shown import answer_lines, cookie_values, texts_of, without

JSON = ((b"Content-Type", b"application/json"),)
XML = ((b"Content-Type", b"text/xml"),)


def body(content: bytes, *hidden: str, fields: tuple[tuple[bytes, bytes], ...] = JSON) -> str:
    return list(answer_lines(fields, content, hidden))[-1]


@pytest.mark.parametrize(
    "content",
    [
        b'{"status": 400, "errors": [{"code": 4001, "message": "The email or password is wrong."}]}',
        b'{".QName": "http://teamcenter.com/Schemas/Core/2011-06/Session.LoginResponse", "ok": true, "x": null}',
        b'{"responseStatus": "FAILURE", "errors": [{"type": "INVALID_SESSION_ID"}], "token_type": "Bearer"}',
    ],
)
def test_what_says_what_is_wrong_is_shown(content: bytes) -> None:
    """Codes, constants, addresses and sentences."""
    assert json.loads(body(content)) == json.loads(content)


@pytest.mark.parametrize(
    ("content", "hidden"),
    [
        (b'{"t":"abcd\\/efgh\\/ijkl"}', "abcd/efgh/ijkl"),
        (b'{"t":"ab\\u0063d-ticket"}', "abcd-ticket"),
        (b'{"refresh_token":"onlyletters","session":{"id":"abc"}}', ""),
        (b'{"a":"longonlyletterssessionvaluewithoutdigits","b":"s3cr3t-9x"}', ""),
        (b'{"message":"the password HunterTwo of HUNTERTWO is wrong"}', "HunterTwo"),
        (b'{"message":"your ticket is k3y-abcdefgh"}', ""),
        ('{"m":"Schl\u00fcsselx"}'.encode("utf-16"), "Schl\u00fcsselx"),
    ],
)
def test_a_secret_in_json_is_not_shown(content: bytes, hidden: str) -> None:
    """However it is spelled, and if nothing but its name or its look says so."""
    shown = body(content, *([hidden] if hidden else []))
    for word in ("efgh", 'ticket"', "onlyletters", 'abc"', "longonly", "s3cr3t", "unterTwo", "UNTERTWO", "k3y", "ssel"):
        assert word not in shown


def test_a_secret_in_xml_is_not_shown() -> None:
    """In elements, in attributes, with entities; the rest is."""
    told = b'<a key="k-12345"><t>ab&amp;cd-ticket</t><code>WRONG_USER</code><note>It is wrong.</note></a>'
    shown = body(told, "ab&cd-ticket", fields=XML)
    assert shown == '<a key="***"><t>***</t><code>WRONG_USER</code><note>It is wrong.</note></a>'


@pytest.mark.parametrize("content", [b"<html><script>var t='abcdef-1'</script></html>", b"token abcdef-1", b"\xff\xfe"])
def test_of_other_bodies_the_length_is_told(content: bytes) -> None:
    """A page or a text may hold anything."""
    fields = ((b"Content-Type", b"text/html; charset=utf-8"),)
    assert body(content, fields=fields) == f"{len(content)} bytes of text/html"


def test_fields_are_named_and_few_are_shown() -> None:
    """A cookie by its name, a Location without what may be a session, a date as it is."""
    fields = (
        (b"Set-Cookie", b"SID=abcdefgh; Path=/"),
        (b"Set-Cookie", b"onlyvaluesecret"),
        (b"Location", b"/home;jsessionid=abcdefgh?ticket=ST-1"),
        (b"Server", b"a\x1b[31mb"),
        (b"Date", b"Fri, 27 Nov 2026 16:00:00 GMT"),
    )
    assert list(answer_lines(fields, b"", ())) == [
        "Set-Cookie: SID=***",
        "Set-Cookie: =***",
        "Location: /home",
        "Server: ***",
        "Date: Fri, 27 Nov 2026 16:00:00 GMT",
    ]
    assert list(cookie_values(fields)) == ["abcdefgh", "onlyvaluesecret"]


def test_what_is_hidden_is_hidden_as_urls_have_it() -> None:
    """And in any case; what is shorter than three characters is not looked for."""
    assert without("a=x%2Fy%2bz&b=X/Y+Z", ["x/y+z"]) == "a=***&b=***"
    assert without("an ad", ["a"]) == "an ad"


def test_of_a_jar_the_values_are_secret() -> None:
    """Not the hosts, which stand in every line."""
    jar = json.dumps([["SID", "abcdefgh", "localhost", True, "/"]])
    assert list(texts_of(JAR, jar)) == ["abcdefgh"]
    assert list(texts_of("server", json.dumps({"id": "pool-1"}))) == ["pool-1"]
