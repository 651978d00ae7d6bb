"""An upstream's answer, read from its bytes as they come: strict where it protects, else as every client takes it.

A head that cannot be passed on is found before any of it is. RFC 9112 sections 2 to 7.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from sidecar.policy.chunks import ChunkReader
from sidecar.policy.message import Fields

_TEXT = rb"[^\x00-\x08\x0a-\x1f\x7f]*+"
_NAME = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ++([1-9][0-9][0-9])(?: (" + _TEXT + rb"))?\r?\n")
_USUAL_FIELDS = re.compile(rb"(?:" + _NAME + rb": (?![ \t])" + _TEXT + rb"(?<![ \t])\r\n)*+\r\n")
_FIELD = re.compile(rb"(" + _NAME + rb")[ \t]*+:(" + _TEXT + rb")")
_FOLD = re.compile(rb"\r?\n[ \t]++")
_LINE_END = re.compile(rb"\r?\n")
_HEAD_END = re.compile(rb"\n\r?\n")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_START = b"HTTP/1."
_CONTENT_LENGTH = b"content-length"
_FRAMING = frozenset({_CONTENT_LENGTH, b"transfer-encoding", b"connection"})
_SWITCHING_PROTOCOLS, _FINAL, _NO_CONTENT, _NOT_MODIFIED = 101, 200, 204, 304
_MAX_HEAD = 64 << 10
_MAX_FIELDS = 1000
_MAX_INTERIM = 20


class InvalidAnswer(ValueError):
    """The answer cannot be passed on; the message says what is wrong, and quotes nothing of it."""


class AnswerHead(NamedTuple):
    """The head of an answer.

    *length*, *chunked*: where the body ends: after so many bytes (0 where none may come, whatever the fields say), with
    the last chunk, or, with neither, with the connection. *persistent*: this may serve another request afterwards.
    """

    status: int
    reason: bytes
    fields: Fields
    length: int | None
    chunked: bool
    persistent: bool


def parse_answer_head(data: bytes, *, to_head: bool = False) -> AnswerHead:
    """Return the head that *data* is, from the status line to the empty line; *to_head*: it answers a HEAD.

    What is mended: a blank before a colon, folded lines, line feeds alone, a length that is said twice, one beside
    chunks, one in a 204. Raises InvalidAnswer for anything else that is wrong, and for a 101.
    """
    line = _STATUS_LINE.match(data)
    if line is None:
        raise InvalidAnswer("its status line is not that of HTTP/1.1 or HTTP/1.0")
    http11, status = line[1] == b"1", int(line[2])
    if status == _SWITCHING_PROTOCOLS:
        raise InvalidAnswer("it switches protocols unasked")
    fields = _parse_fields(data, line.end())
    lengths, codings, options = _framing(fields)
    chunked = _is_chunked(codings)
    number = _agreed(lengths) if lengths and not chunked else None
    length = None if number is None else int(number)
    empty = status == _NO_CONTENT
    # What follows such an answer may be meant for a reader that believes the other framing.
    ambiguous = (chunked and (bool(lengths) or not http11)) or (empty and (chunked or bool(length)))
    kept = [] if number is None or (empty and length) else [number]
    if kept != lengths:
        fields = _with_length(fields, kept)
    if to_head or empty or status == _NOT_MODIFIED or status < _FINAL:
        length, chunked = 0, False
    stays = b"close" not in options and (http11 or b"keep-alive" in options)
    ends = chunked or length is not None
    return AnswerHead(status, line[3] or b"", fields, length, chunked, stays and ends and not ambiguous)


class AnswerReader:
    """Reads the answer to one request, however it is cut into packets; *to_head*: the request was a HEAD.

    *head*: that of the final answer, None until it is here. *ended*: all of the answer is here. *persistent*: the
    connection may then serve another request; not if anything came after the answer. *fault*: what is wrong with the
    body, empty for nothing.
    """

    __slots__ = ("_begun", "_chunks", "_interim", "_left", "_to_head", "ended", "fault", "head", "persistent")

    def __init__(self, *, to_head: bool) -> None:
        self.head: AnswerHead | None = None
        self.ended = False
        self.persistent = False
        self.fault = ""
        self._to_head = to_head
        self._begun = bytearray()
        self._interim = 0
        self._left: int | None = None
        self._chunks: ChunkReader | None = None

    @property
    def between(self) -> bool:
        """Whether no byte is here that may belong to the final answer."""
        return self.head is None and not self._begun

    def feed(self, data: bytes) -> bytes:
        """Return what *data* brings of the body, empty for nothing; not to be called after the end or a fault.

        Raises InvalidAnswer when the head cannot be passed on.
        """
        if self.head is None:
            data = self._take_head(data)
            if self.head is None:
                return b""
        if self._chunks is not None:
            return self._take_chunks(self._chunks, data)
        if self._left is None:
            return data
        surplus = len(data) - self._left
        if surplus < 0:
            self._left = -surplus
            return data
        self.ended = True
        if surplus:
            self.persistent = False
            return data[: self._left]
        return data

    def feed_end(self) -> bool:
        """Take note that the connection ended, and return whether the answer is whole."""
        self.persistent = False
        if self.head is not None and self._chunks is None and self._left is None:
            self.ended = True
        return self.ended

    def _take_head(self, data: bytes) -> bytes:
        """Drop interim answers, take the head of the final one, and return what follows that."""
        text: bytes | bytearray = data
        at = seen = 0
        if self._begun:
            seen = max(0, len(self._begun) - 2)
            self._begun += data
            text = self._begun
        while (found := _HEAD_END.search(text, max(at, seen))) and found.end() - at <= _MAX_HEAD:
            head = parse_answer_head(bytes(text[at : found.end()]), to_head=self._to_head)
            at = found.end()
            if head.status >= _FINAL:
                self.head, self.persistent, self._left = head, head.persistent, head.length
                if head.chunked:
                    self._chunks = ChunkReader()
                rest = bytes(text[at:])
                self._begun.clear()
                return rest
            self._interim += 1
            if self._interim > _MAX_INTERIM:
                raise InvalidAnswer(f"there are more than {_MAX_INTERIM} interim answers before it")
        if len(text) - at > _MAX_HEAD or found:
            raise InvalidAnswer("its head is over 64 KiB")
        if text is data or at:
            self._begun = bytearray(text[at:])
        if not self._begun.startswith(_START[: len(self._begun)]):
            raise InvalidAnswer("it is not HTTP/1.1 or HTTP/1.0")
        return b""

    def _take_chunks(self, chunks: ChunkReader, data: bytes) -> bytes:
        body = chunks.feed(data)
        self.ended, self.fault = chunks.ended, chunks.fault
        if chunks.rest or chunks.fault:
            self.persistent = False
        return body


def _parse_fields(data: bytes, start: int) -> Fields:
    if _USUAL_FIELDS.fullmatch(data, start):
        pairs = [line.partition(b": ") for line in data[start:].split(b"\r\n")[:-2]]
        fields: Fields = tuple([(name, value) for name, _, value in pairs])
    else:
        fields = _mended_fields(data[start:])
    if len(fields) > _MAX_FIELDS:
        raise InvalidAnswer(f"it has more than {_MAX_FIELDS} fields")
    return fields


def _mended_fields(data: bytes) -> Fields:
    fields = []
    for line in _LINE_END.split(_FOLD.sub(b" ", data))[:-2]:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise InvalidAnswer("a field has a name that is no token, or a control character")
        fields.append((field[1], field[2].strip(b" \t")))
    return tuple(fields)


def _framing(fields: Fields) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Return the lines of Content-Length, and the members of Transfer-Encoding and Connection in lower case."""
    lengths: list[bytes] = []
    codings: list[bytes] = []
    options: list[bytes] = []
    for name, value in fields:
        key = name.lower()
        if key not in _FRAMING:
            continue
        if key == _CONTENT_LENGTH:
            lengths.append(value)
        else:
            (options if key == b"connection" else codings).extend(_members(value))
    return lengths, codings, options


def _members(value: bytes) -> list[bytes]:
    return [member for part in value.lower().split(b",") if (member := part.strip(b" \t"))]


def _is_chunked(codings: Sequence[bytes]) -> bool:
    if codings == [b"chunked"]:
        return True
    if any(coding != b"identity" for coding in codings):
        raise InvalidAnswer("its transfer coding is not chunked alone")
    return False


def _agreed(lengths: Sequence[bytes]) -> bytes:
    """Return the one length that all *lengths* tell."""
    first, *others = (number.strip(b" \t") for value in lengths for number in value.split(b","))
    if any(other != first for other in others) or not _LENGTH.fullmatch(first):
        raise InvalidAnswer("its Content-Length is not one number")
    return first


def _with_length(fields: Fields, kept: list[bytes]) -> Fields:
    """Return *fields* with *kept* for the values of Content-Length, in their first places."""
    values = iter(kept)
    return tuple(
        (name, value)
        for name, old in fields
        if (value := next(values, None) if name.lower() == _CONTENT_LENGTH else old) is not None
    )
