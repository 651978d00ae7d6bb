"""A client's own logins and logouts, by a recipe: which requests they are, and what they are answered with."""

import contextlib
import json
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from sidecar.auth.dialect import Local, Reply
from sidecar.auth.dialect import Shim as Shims
from sidecar.auth.grant import Values
from sidecar.auth.recipes.bound import Bound, known
from sidecar.auth.recipes.documents import Document
from sidecar.auth.recipes.matches import Matching, Message, compile_match
from sidecar.auth.recipes.templates import Lookup, Unset, names_in, render, text
from sidecar.policy.coding import decoded
from sidecar.policy.message import Fields, Request
from sidecar.policy.routing import Origin, parse_base_url
from sidecar.secret import Secret
from sidecar.settings.recipe import Match, Shim
from sidecar.settings.recipe import Reply as ReplyOf
from sidecar.settings.template import REQUEST

_LONGEST = 64 << 10
_CUTS = frozenset(";,")


def lent(bound: Bound) -> tuple[Origin, ...]:
    """Return the origins beside the base URL's whose logins are answered here."""
    found: dict[Origin, None] = {}
    for shim in bound.recipe.shim:
        if not shim.onward and (origin := _origin(shim.match, bound)) is not None:
            found[origin] = None
    return tuple(found)


def logins_of(bound: Bound) -> frozenset[str]:
    """Return, as a text each, the logins that are answered here at other origins; the same for the same requests."""
    found = set()
    for shim in bound.recipe.shim:
        if shim.match.path is not None and _origin(shim.match, bound) is not None:
            place = text(render(shim.match.path.replace("*", ""), bound.lookup()))
            found.add(f"{place} {shim.match.model_dump_json(exclude={'path'}, exclude_defaults=True)}")
    return frozenset(found)


def shim_of(bound: Bound, placeholders: tuple[str, ...]) -> Shims:
    """Return what finds the logins among a client's requests; the first of *placeholders* is given out."""
    lookup = bound.lookup()
    compiled = [
        (
            shim,
            compile_match(_head(shim.match), lookup),
            compile_match(shim.match, lookup),
            _local(bound, shim, placeholders),
        )
        for shim in bound.recipe.shim
    ]

    def find(request: Request, url: str) -> tuple[Local, ...]:
        # Many servers take a slash at the end for nothing.
        messages = [_message(request, each, None) for each in dict.fromkeys((url, url.rstrip("/")))]
        return tuple(
            Local(
                obtains=obtains,
                matches=_by_body(request, message.url, whole, lookup) if whole.looks else None,
                reply=partial(reply, fields=request.fields),
                onward=shim.onward,
            )
            for shim, head, whole, (obtains, reply) in compiled
            for message in messages
            if head.holds(message, lookup)
        )

    return find


def _head(match: Match) -> Match:
    """Return what of *match* the head of a request tells."""
    against = match.not_
    if against is not None and (against.form or against.json_ or against.xml or against.body is not None):
        against = None
    return match.model_copy(update={"form": {}, "json_": {}, "xml": {}, "body": None, "not_": against})


def _message(request: Request, url: str, body: bytes | None) -> Message:
    return Message(
        fields=request.fields,
        document=Document(body),
        method=request.method.decode("latin-1").upper(),
        url=url,
        query=request.target.decode("latin-1").partition("?")[2],
    )


def _by_body(request: Request, url: str, matching: Matching, lookup: Lookup) -> Any:
    def matches(body: bytes) -> bool:
        return matching.holds(_message(request, url, decoded(body, request.fields, _LONGEST)), lookup)

    return matches


def _local(bound: Bound, shim: Shim, placeholders: tuple[str, ...]) -> tuple[bool, Any]:
    reply = shim.reply
    extracted = {
        name
        for layer in (bound.recipe.login, bound.recipe.csrf)
        if layer is not None
        for step in layer.steps
        for name in (*step.get, *step.set)
    }
    used = set(_names(reply))

    def answer(values: Values, address: str, body: bytes, fields: Fields = ()) -> Reply:
        document = Document(decoded(body, fields, _LONGEST))

        def look(name: str) -> Any:
            if name == "placeholder":
                return placeholders[0]
            if name == "self":
                return address
            if name.startswith(REQUEST):
                found = document.json(name.removeprefix(REQUEST))
                if found and found[0] is not None:
                    return found[0]
                raise Unset
            return known(values)(name)

        def public(name: str) -> Any:
            if isinstance(found := bound.lookup(look)(name), Secret):
                raise Unset  # a client is never told one
            return found

        return _reply(reply, public)

    return bool(used & (extracted | {"placeholder"})), answer


def _names(reply: ReplyOf) -> Iterator[str]:
    for part in (reply.headers, reply.cookies, reply.json_, reply.text or ""):
        yield from names_in(part)


def _reply(reply: ReplyOf, lookup: Lookup) -> Reply:
    body = b""
    fields: list[tuple[bytes, bytes]] = []
    if reply.json_ is not None:
        body = json.dumps(render(reply.json_, lookup)).encode()
    elif reply.text is not None:
        with contextlib.suppress(Unset):
            body = text(render(reply.text, lookup)).encode(errors="replace")
    if reply.json_ is not None or reply.text is not None:
        fields.append((b"Content-Type", reply.type.encode()))
    # What a client sent may stand in it: nothing of that makes another field, or another attribute.
    for name, value in render(reply.headers, lookup).items():
        if (shown := text(value)).isprintable():
            fields.append((name.encode(), shown.encode()))
    for name, value in render(reply.cookies, lookup).items():
        if (shown := text(value)).isprintable() and not _CUTS & set(shown):
            fields.append((b"Set-Cookie", f"{name}={shown}; Path=/".encode()))
    return Reply(reply.status, tuple(fields), body)


def _origin(match: Match, bound: Bound) -> Origin | None:
    if match.path is None:
        return None
    place = match.path.partition("*")[0]
    try:
        parts = urlsplit(text(render(place, bound.lookup())))
        origin = parse_base_url(f"{parts.scheme}://{parts.netloc}")
    except (Unset, ValueError):
        return None
    ours = bound.origin
    if (origin.scheme, origin.host, origin.port) != (ours.scheme, ours.host, ours.port):
        return origin
    # Beside the base URL, a login goes by no route of the upstream.
    return None if f"{parts.path}/".startswith(f"{ours.path.decode()}/") else origin
