"""From the lines of a request head to a Request: strict, byte-exact, with our own words for what is wrong.

mitmproxy's reader mends and guesses (it drops a trailing `?`, takes userinfo for an error and echoes it, lets
any size through); a request smuggled past one of us would carry a credential. RFC 9112 sections 2 to 6.
"""

import contextlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from sidecar.errors import Reason, Refusal
from sidecar.policy.headers import normal_name, wants_close
from sidecar.policy.hosts import normal_host
from sidecar.policy.message import Fields, Request
from sidecar.policy.routing import DEFAULT_PORTS, Origin

if TYPE_CHECKING:
    from h11._receivebuffer import ReceiveBuffer

MAX_HEAD = 64 << 10
MAX_FIELDS = 1000

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([!-~\x80-\xff]+) HTTP/1\.([01])")
_FIELD = re.compile(rb"(" + _TOKEN + rb"):([^\x00-\x08\x0a-\x1f\x7f]*)")
_FOLD = re.compile(rb"[ \t]+([^\x00-\x20\x7f][^\x00-\x08\x0a-\x1f\x7f]*)")
_NEVER_FOLDED = frozenset({b"content-length", b"host", b"transfer-encoding"})
_BLANK_LINES = re.compile(rb"(?:\r?\n)+")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_ABSOLUTE = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://([^/?\\]*)([/?].*)?")
_AUTHORITY = re.compile(rb"(\[[0-9A-Fa-f]*:[0-9A-Fa-f:.]*\]|[A-Za-z0-9._~%-]*)(?::([0-9]{0,5}))?")
_MAX_PORT = 65535


class Head(NamedTuple):
    """A request, and what its head asks of the connection."""

    request: Request
    close: bool
    expects_continue: bool


class Connect(NamedTuple):
    """A request for a tunnel (RFC 9110 section 9.3.6); its target is in authority-form."""

    request: Request


def take_head(
    buffer: "ReceiveBuffer", upstream: str | None, origin: Origin | None, max_head: int = MAX_HEAD
) -> Head | Connect | None:
    """Take a head from the front of *buffer*, None while it is not complete; the rest as `parse_head` has it."""
    lines = buffer.maybe_extract_lines()
    if lines == []:
        # RFC 9112 section 2.2: empty lines before a request are ignored; however many, they are looked at once.
        if blank := _BLANK_LINES.match(bytes(buffer)):
            buffer.maybe_extract_at_most(blank.end())
        lines = buffer.maybe_extract_lines()
    if lines is None and len(buffer) <= max_head:
        return None
    if not lines:
        raise Refusal(Reason.REQUEST_TOO_LARGE, f"the head is over {max_head >> 10} KiB")
    return parse_head([bytes(line) for line in lines], upstream, origin, max_head)


def parse_head(
    lines: Sequence[bytes], upstream: str | None, origin: Origin | None, max_head: int = MAX_HEAD
) -> Head | Connect:
    """Return the parsed head; raises Refusal with the answer it deserves.

    *origin* None: the proxy port, which takes absolute-form and CONNECT. With *upstream* it is that of a reverse
    port, else what a client asked for with CONNECT; both take origin-form, and within CONNECT the same origin
    may be named in absolute-form too (RFC 9112 section 3.2.2).
    """
    if sum(map(len, lines)) > max_head or len(lines) > MAX_FIELDS:
        raise Refusal(Reason.REQUEST_TOO_LARGE, f"the head is over {max_head >> 10} KiB or {MAX_FIELDS} fields")
    line = _REQUEST_LINE.fullmatch(lines[0]) if lines else None
    if not line:
        raise _bad("the request line is not that of HTTP/1.1 or HTTP/1.0")
    method, target, minor = line.groups()
    fields = _parse_fields(lines[1:])
    http10 = minor == b"0"
    length, fields = _body_length(fields, http10=http10)
    _check_host(fields, http10=http10)
    if method == b"CONNECT":
        if origin is not None:
            raise Refusal(Reason.NO_ROUTE, "CONNECT is served on the proxy port only; see listen.proxy")
        return _parse_connect(target, fields, length)
    if b"#" in target:
        raise _bad("a target has no fragment")
    if origin is None:
        scheme, host, port, path = _parse_absolute(target)
        if method == b"OPTIONS" and path == b"":
            path = b"*"  # RFC 9112 section 3.2.4: the last proxy says so
        elif not path.startswith(b"/"):
            path = b"/" + path
    else:
        scheme, host, port, path = origin.scheme, origin.host, origin.port, target
        if upstream is None and not target.startswith(b"/") and target != b"*":
            path = _within(target, origin)
        elif not target.startswith(b"/") and target != b"*":
            raise Refusal(Reason.NO_ROUTE, "this is a reverse port; expected a target that starts with /")
    request = Request(
        method=method,
        scheme=scheme,
        host=host,
        port=port,
        target=path,
        fields=fields,
        length=length,
        upstream=upstream,
        http10=http10,
    )
    expects = any(name.lower() == b"expect" and value.lower() == b"100-continue" for name, value in fields)
    return Head(request, http10 or wants_close(fields), expects and not http10)


def _bad(detail: str) -> Refusal:
    return Refusal(Reason.BAD_REQUEST, detail)


def _parse_fields(lines: Sequence[bytes]) -> Fields:
    fields: list[tuple[bytes, bytes]] = []
    for line in lines:
        field = _FIELD.fullmatch(line)  # in one way only: space around the value is not its business
        if field:
            fields.append((field[1], field[2].strip(b" \t")))
        elif (fold := _FOLD.fullmatch(line)) and fields and normal_name(fields[-1][0]) not in _NEVER_FOLDED:
            # RFC 9112 section 5.2; what frames and names the message is never read out of two lines.
            name, value = fields[-1]
            fields[-1] = name, b"%b %b" % (value, fold[1].rstrip(b" \t")) if value else fold[1].rstrip(b" \t")
        else:
            raise _bad("a header field is malformed: a space before the colon, a control character or a folded line")
    return tuple(fields)


def _body_length(fields: Fields, *, http10: bool) -> tuple[int | None, Fields]:
    """Return the body's length, and the fields with one Content-Length where the same was said more than once."""
    lengths = [value for name, value in fields if name.lower() == b"content-length"]
    codings = [value for name, value in fields if name.lower() == b"transfer-encoding"]
    if codings and (lengths or len(codings) > 1 or http10 or codings[0].lower() != b"chunked"):
        raise _bad("Transfer-Encoding must be chunked, once, in HTTP/1.1, and without Content-Length")
    if codings:
        return None, fields
    if not lengths:
        return 0, fields
    # RFC 9110 section 8.6: the same number again, in the same line or another, is that number.
    number, *others = {part.strip(b" \t") for value in lengths for part in value.split(b",")}
    if others or not _LENGTH.fullmatch(number):
        raise _bad("Content-Length must be one number")
    if lengths != [number]:
        fields = _with_one_length(fields, number)
    return int(number), fields


def _with_one_length(fields: Fields, number: bytes) -> Fields:
    """Return *fields* with *number* in the first line of Content-Length, and no other line of it."""
    first = next(index for index, (name, _) in enumerate(fields) if name.lower() == b"content-length")
    others = (field for field in fields[first + 1 :] if field[0].lower() != b"content-length")
    return (*fields[:first], (fields[first][0], number), *others)


def _check_host(fields: Fields, *, http10: bool) -> None:
    hosts = [value for name, value in fields if name.lower() == b"host"]
    if len(hosts) > 1 or (not hosts and not http10):
        raise _bad("expected exactly one Host field")
    if hosts and not _AUTHORITY.fullmatch(hosts[0]):
        raise _bad("the Host field is malformed: expected host or host:port")


def _parse_connect(target: bytes, fields: Fields, length: int | None) -> Connect:
    authority = _AUTHORITY.fullmatch(target)
    port = int(authority[2] or 0) if authority else 0
    if not authority or not authority[1] or not 1 <= port <= _MAX_PORT:
        raise _bad("the target of CONNECT is malformed: expected host:port")
    if length != 0:
        raise _bad("CONNECT has no body")
    host = authority[1].decode("ascii").strip("[]")
    return Connect(Request(method=b"CONNECT", scheme="", host=host, port=port, target=target, fields=fields, length=0))


def _within(target: bytes, origin: Origin) -> bytes:
    """Return the path of an absolute-form target inside CONNECT, which may not name another origin."""
    scheme, host, port, path = _parse_absolute(target)
    with contextlib.suppress(ValueError):  # what is no host is none that CONNECT asked for
        host = normal_host(host)
    if (scheme, host, port) != (origin.scheme, origin.host, origin.port):
        raise Refusal(Reason.NO_ROUTE, "this target is not what CONNECT asked for")
    return path if path.startswith(b"/") else b"/" + path


def _parse_absolute(target: bytes) -> tuple[str, str, int, bytes]:
    absolute = _ABSOLUTE.fullmatch(target)
    if not absolute:
        raise Refusal(
            Reason.NO_ROUTE, "this is a proxy port: expected an absolute target such as http://host/path; see listen"
        )
    scheme = absolute[1].decode("ascii").lower()
    if scheme not in DEFAULT_PORTS:
        raise _bad("the scheme must be http or https")
    # Userinfo is a credential of the client's: gone before anything can show it.
    authority = _AUTHORITY.fullmatch(absolute[2].rpartition(b"@")[2])
    port = int(authority[2] or DEFAULT_PORTS[scheme]) if authority else 0
    if not authority or not authority[1] or not 1 <= port <= _MAX_PORT:
        raise _bad("the target's host or port is malformed")
    return scheme, authority[1].decode("ascii").strip("[]"), port, absolute[3] or b""
