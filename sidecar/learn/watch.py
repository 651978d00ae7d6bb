"""What goes by is kept, within bounds, in memory alone: requests and answers of one command."""

import re
from collections import deque
from dataclasses import dataclass, field

from sidecar.exchange.body import RequestBody
from sidecar.exchange.destination import Client
from sidecar.learn.seen import Pairs, Seen
from sidecar.policy.coding import decoded
from sidecar.policy.message import Fields, Request, value_of
from sidecar.policy.routing import Route

_LONGEST = 256 << 10
_LAST_LONGEST = 16 << 10
_FIRST, _LAST = 1500, 500
_MOST = 64 << 20
_TEXTS = re.compile(rb"^$|^text/|json|xml|x-www-form-urlencoded|soap", re.IGNORECASE)
_EVENTS = b"text/event-stream"


@dataclass(slots=True)
class _Record:
    """One exchange under way; `status` 0: it has no answer yet."""

    request: Request
    url: str
    body: bytes | None
    longest: int
    status: int = 0
    fields: Fields = ()
    answer: bytearray | None = field(default_factory=bytearray)


class Watch:
    """Keeps the first exchanges, and the last ones, where a logout is; those between pass unseen, as `passed` counts.

    `reverse`: whether one came by a reverse port.

    A body is kept if it is a text of at most 256 KiB; all of them together are bounded too.
    """

    def __init__(self) -> None:
        self._first: list[_Record] = []
        self._last: deque[_Record] = deque(maxlen=_LAST)
        self.passed = 0
        self.reverse = False

    async def __call__(self, way: Route, request: Request, body: RequestBody, client: Client) -> Client:
        """Note *request*, which goes *way*, and return the client that notes its answer."""
        self.reverse |= request.upstream is not None
        early = len(self._first) < _FIRST
        held = sum(len(each.body or b"") + len(each.answer or b"") for each in self._first)
        longest = min(_LONGEST, max(0, _MOST - held)) if early else _LAST_LONGEST
        record = _Record(request, f"{way.origin.scheme}://{way.origin.authority}{_text(way.target)}", None, longest)
        if early:
            self._first.append(record)
        else:
            self.passed += len(self._last) == _LAST
            self._last.append(record)
        if _TEXTS.search(value_of(request.fields, b"content-type") or b""):
            record.body = await body.gather(longest)
        return _Watched(client, record)

    def seen(self) -> list[Seen]:
        """Return what was answered, in the order of the requests."""
        return [_seen(each) for each in (*self._first, *self._last) if each.status]


class _Watched:
    """A client whose answer is noted on its way."""

    def __init__(self, client: Client, record: _Record) -> None:
        self._client = client
        self._record = record

    @property
    def patience(self) -> float:
        return self._client.patience

    @patience.setter
    def patience(self, seconds: float) -> None:
        self._client.patience = seconds

    async def start(
        self, status: int, reason: bytes, fields: Fields, *, chunked: bool, data: bytes = b"", end: bool = False
    ) -> None:
        kind = value_of(fields, b"content-type") or b""
        self._record.status, self._record.fields = status, fields
        if not _TEXTS.search(kind) or kind.lower().startswith(_EVENTS):
            self._record.answer = None
        self._note(data)
        await self._client.start(status, reason, fields, chunked=chunked, data=data, end=end)

    async def send(self, data: bytes) -> None:
        self._note(data)
        await self._client.send(data)

    async def end(self) -> None:
        await self._client.end()

    async def abort(self) -> None:
        await self._client.abort()

    def _note(self, data: bytes) -> None:
        record = self._record
        if record.answer is None:
            return
        if len(record.answer) + len(data) > record.longest:
            record.answer = None
            return
        record.answer += data


def _seen(record: _Record) -> Seen:
    request = record.request
    return Seen(
        method=_text(request.method).upper(),
        url=record.url,
        fields=_pairs(request.fields),
        body=None if record.body is None else decoded(record.body, request.fields, _LONGEST),
        status=record.status,
        answer_fields=_pairs(record.fields),
        answer_body=None if record.answer is None else decoded(bytes(record.answer), record.fields, _LONGEST),
    )


def _pairs(fields: Fields) -> Pairs:
    return tuple((_text(name), _text(value)) for name, value in fields)


def _text(data: bytes) -> str:
    return data.decode("latin-1")
