"""The steps of a login over the network: one after another, with one cookie jar, to no origin that is not named."""

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, unquote, urljoin, urlsplit

from sidecar.auth.recipes.bound import Bound, plain
from sidecar.auth.recipes.documents import MAX_BODY, Document
from sidecar.auth.recipes.jar import Jar, shown, taken, value_in
from sidecar.auth.recipes.matches import Matching, Message, any_of
from sidecar.auth.recipes.outgoing import Outgoing, outgoing_of, read_body
from sidecar.auth.recipes.seen import seen
from sidecar.auth.recipes.sources import find, number
from sidecar.auth.recipes.templates import Lookup, Unset, render, text
from sidecar.auth.recipes.words import path_of, said, unmet
from sidecar.auth.token_endpoint import cause_of
from sidecar.auth.watch import Watch
from sidecar.errors import BrokenOff, CredentialRejected, IssuerUnavailable, Lapsed, Misplaced
from sidecar.policy.classify import retry_after
from sidecar.policy.coding import decoded
from sidecar.policy.message import Fields
from sidecar.policy.routing import parse_base_url
from sidecar.settings.recipe import Send, Step

if TYPE_CHECKING:
    import httpx

_HEADERS = {"User-Agent": "auth-sidecar", "Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close"}
_ASCII = "".join(map(chr, range(0x21, 0x7F)))
_MOVED = frozenset({301, 302, 303, 307, 308})
_AS_GET = frozenset({301, 302, 303})
_BUSY = frozenset({429, 503})
_PAUSE = 60.0
"""Seconds, when the answer that asks for a pause does not say how long."""


@dataclass(frozen=True, slots=True)
class Course:
    """The step at the key path *where*, its matches compiled."""

    where: str
    step: Step
    ok: Matching
    fatal: Matching
    pauses: tuple[Matching, ...]


def course_of(where: str, step: Step, bound: Bound) -> Course:
    """Return *step* ready to be taken."""
    lookup = bound.lookup()
    pauses = tuple(any_of(pause.when, lookup) for pause in step.pause)
    return Course(where, step, any_of(step.ok, lookup), any_of(step.fatal, lookup), pauses)


class Unreached(IssuerUnavailable):
    """Nothing was sent: no account counts that as an attempt."""


class Walk:
    """One login under way: `variables` and `jar` grow with each step; a context that gives its connections back.

    *watch* is told of each step's requests and their answers.
    """

    def __init__(
        self, bound: Bound, context: ssl.SSLContext, who: str, now: Callable[[], float], watch: Watch | None = None
    ) -> None:
        self._watch = watch
        self._bound = bound
        self._context = context
        self._who = who
        self._now = now
        self._client: httpx.AsyncClient
        self.variables: dict[str, Any] = {}
        self.jar: Jar = ()

    async def __aenter__(self) -> Self:
        import httpx

        self._client = httpx.AsyncClient(
            verify=self._context,
            trust_env=False,
            follow_redirects=False,
            timeout=None,  # noqa: S113  the caller owns the deadline
            headers=_HEADERS,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def take(self, course: Course, *, shows: Sequence[Send] = (), dead: Matching | None = None) -> None:
        """Take one step; *shows*: how the session it is taken in is shown, *dead*: what says that it is over.

        Raises CredentialRejected, Misplaced for a place that is not named, Lapsed, and IssuerUnavailable.
        """
        step = course.step
        if step.unless is not None and step.unless in self.variables:
            return
        lookup = self._bound.lookup(self._known)
        for name, template in step.set.items():
            self._set(name, template, lookup)
        answer = await self._answer(step, shows, lookup)
        if self._watch is not None:
            for each in seen(course.where, step, answer, self.jar, self._bound, lookup):
                self._watch(each)
        where = f"{self._who}: {step.request.split()[0]} {path_of(answer)} answered {answer.status}"
        code, lacks = said(answer, self._bound), unmet(step.ok, answer, lookup)
        for pause, matching in zip(step.pause, course.pauses, strict=True):
            if matching.holds(answer, lookup):
                rest = pause.for_ or number(pause.wait, answer) or _PAUSE
                raise IssuerUnavailable(
                    f"{where}{said(answer, self._bound)}, asking for a pause of {rest:g} s", retry_after=rest
                )
        good = course.ok.holds(answer, lookup)
        # A body that is what was asked for is no refusal, whatever else it has in it.
        if course.fatal.holds(answer, lookup) and not (good and course.ok.looks):
            told = code or (lacks and f" ({lacks})")
            raise CredentialRejected("", f"{where}: the credential is refused{told}", locks=True)
        if dead is not None and dead.holds(answer, lookup):
            raise Lapsed(f"{where}: the session is over")
        if good:
            self._get(step, answer, lookup)
        elif step.optional:
            self._get(step, None, lookup)
        else:
            wait = retry_after(answer.fields, self._now()) if answer.status in _BUSY else None
            told = f"{where}{code}, which is not what a login is answered with: {lacks}"
            raise IssuerUnavailable(told, retry_after=wait)

    def _known(self, name: str) -> Any:
        if name not in self.variables:
            raise Unset
        return self.variables[name]

    def _set(self, name: str, template: Any, lookup: Lookup) -> None:
        try:
            self.variables[name] = plain(render(template, lookup))
        except Unset:
            self.variables.pop(name, None)

    def _get(self, step: Step, answer: Message | None, lookup: Lookup) -> None:
        for name, sources in step.get.items():
            try:
                value = plain(find(sources, answer, lambda cookie: value_in(self.jar, cookie), lookup))
            except Unset:
                continue
            if isinstance(value, str) and not value.isprintable():
                raise IssuerUnavailable(f"{self._who}: {name} has control characters in it, and cannot be sent")
            self.variables[name] = value

    async def _answer(self, step: Step, shows: Sequence[Send], lookup: Lookup) -> Message:
        try:
            sent = outgoing_of(step, shows, lookup)
        except Unset:
            raise IssuerUnavailable(f"{self._who}: {step.request}: a value that it needs was never found") from None
        answer = await self._send(sent)
        for _ in range(step.follow):
            location = next(iter(answer.header("location")), None)
            if answer.status not in _MOVED or location is None:
                break
            method, body, headers = sent.method, sent.body, sent.headers
            if answer.status in _AS_GET and method not in ("GET", "HEAD"):
                method, body = "GET", b""
                headers = {name: value for name, value in headers.items() if name.lower() != "content-type"}
            sent = Outgoing(method, self._joined(sent.url, location), headers, body)
            answer = replace(await self._send(sent), before=answer)
        return answer

    async def _send(self, sent: Outgoing) -> Message:
        import httpx

        origin, path, query = self._allowed(sent.url)
        target = path + (f"?{query}" if query else "")
        headers = dict(sent.headers)
        secure = origin.startswith("https:")
        host = urlsplit(origin).hostname or ""
        if cookies := shown(self.jar, host, path, secure=secure):
            headers["Cookie"] = cookies
        failure: IssuerUnavailable
        who = f"{self._who}: {sent.method} {path}"
        try:
            async with self._client.stream(
                sent.method,
                origin,
                content=sent.body or None,
                headers=[(name.encode(), value.encode()) for name, value in headers.items()],
                extensions={"target": target.encode()},
            ) as response:
                fields: Fields = tuple(response.headers.raw)
                body = await read_body(response)
        except httpx.ConnectError as error:
            failure = Unreached(f"{who}: cannot be reached: {cause_of(error)}")
        except (httpx.HTTPError, OSError) as error:
            failure = BrokenOff(f"{who}: broke off before its answer was complete: {cause_of(error)}")
        else:
            self.jar = taken(self.jar, host, path, fields)
            request = Message(
                fields=tuple((name.encode(), value.encode()) for name, value in headers.items()),
                document=Document(sent.body),
                method=sent.method,
                url=origin + unquote(path),
                query=query,
            )
            document = Document(decoded(body, fields, MAX_BODY))
            return Message(fields=fields, document=document, status=response.status_code, request=request)
        raise failure  # out here, so that nothing that knows the request hangs on to it

    def _joined(self, url: str, location: str) -> str:
        """Return where *location* leads from *url*; Misplaced when that is no URL."""
        try:
            return urljoin(url, location)
        except ValueError:
            raise Misplaced(f"{self._who}: an answer led to what is no URL") from None

    def _allowed(self, url: str) -> tuple[str, str, str]:
        """Return origin, path and query of *url*; Misplaced when no credential may go there."""
        bound, lookup = self._bound, self._bound.lookup()
        try:
            parts = urlsplit(url)
            origin = parse_base_url(f"{parts.scheme}://{parts.netloc}")
        except ValueError:
            raise Misplaced(f"{self._who}: an answer led to what is no URL") from None
        named = [(bound.origin.scheme, bound.origin.host, bound.origin.port)]
        for template in bound.recipe.trust:
            try:
                trusted = urlsplit(text(render(template, lookup)))
                each = parse_base_url(f"{trusted.scheme}://{trusted.netloc}")
            except (Unset, ValueError):
                continue
            named.append((each.scheme, each.host, each.port))
        if (origin.scheme, origin.host, origin.port) not in named:
            raise Misplaced(
                f"{self._who}: {origin.scheme}://{origin.authority} is neither the base URL's origin nor in trust;"
                " nothing is sent there"
            )
        where = f"{origin.scheme}://{origin.authority}"
        return where, quote(parts.path or "/", safe=_ASCII), quote(parts.query, safe=_ASCII)
