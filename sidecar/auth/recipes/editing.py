"""The credential in places that are no fields of its own: query, body, and wherever a placeholder of ours stands."""

import json
import re
from typing import Any
from urllib.parse import quote

from sidecar.auth.dialect import Edit, Edited
from sidecar.auth.grant import Values
from sidecar.auth.recipes.bound import Bound, known, plain
from sidecar.auth.recipes.documents import Document, set_at
from sidecar.auth.recipes.matches import Message, any_of, url_of
from sidecar.auth.recipes.templates import Lookup, Unset, as_jwt, names_in, render, text
from sidecar.policy.coding import decoded
from sidecar.policy.message import Request, value_of
from sidecar.settings.recipe import SetJson

_TEXTS = re.compile(rb"^(text/|application/(.*\+)?(json|xml|x-www-form-urlencoded|soap))", re.IGNORECASE)
_MOST = 64 << 20


def edit_of(bound: Bound, placeholders: tuple[str, ...]) -> Edit | None:
    """Return what puts the credential of *bound* there, None where it is shown in fields of its own alone."""
    recipe = bound.recipe
    send = recipe.login.send
    words = tuple(form.encode() for word in placeholders for form in (word, as_jwt(word)) if word)
    swaps = frozenset(recipe.swap) if recipe.shim and words else frozenset()
    shown = _shown(bound)
    if not (swaps or send.query or send.json_):
        return None
    wanted = any_of(send.json_.match, bound.lookup()) if send.json_ is not None else None

    def request_of(request: Request, target: bytes, body: bytes | None) -> Message:
        path, _, query = target.decode("latin-1").partition("?")
        return Message(
            fields=request.fields,
            document=Document(body),
            method=request.method.decode("latin-1").upper(),
            url=url_of(bound.origin.scheme, bound.origin.authority, path),
            query=query,
        )

    def looks(request: Request, target: bytes) -> bool:
        if request.length == 0:
            return False
        if "body" in swaps and _TEXTS.match(value_of(request.fields, b"content-type") or b""):
            return True
        return wanted is not None and (wanted.looks or wanted.holds(request_of(request, target, None), bound.lookup()))

    def edit(values: Values, request: Request, target: bytes, body: bytes | None) -> Edited:
        lookup = bound.lookup(_values_of(values, oauth2=recipe.login.oauth2 is not None))
        real = _real(shown, lookup)
        fields = request.fields
        if real is not None:
            fields = tuple((name, _in_field(name, value, words, real, swaps)) for name, value in fields)
            if "query" in swaps:
                target = _in_query(target, words, real)
        if send.query:
            target = _with_query(target, {name: text(each) for name, each in render(send.query, lookup).items()})
        if body is None:
            return Edited(target, fields)
        opened = decoded(body, fields, _MOST)
        if opened is None:
            return Edited(target, fields)
        changed = opened
        if real is not None and "body" in swaps:
            changed = _in_body(changed, words, real, form=_is_form(request))
        if send.json_ is not None and wanted and wanted.holds(request_of(request, target, opened), lookup):
            changed = _with_json(changed, send.json_, lookup)
        if changed == opened:
            return Edited(target, fields)
        # What was coded goes out plain: nobody need code it again.
        return Edited(target, tuple(pair for pair in fields if pair[0].lower() != b"content-encoding"), changed)

    return Edit(looks, edit)


def _shown(bound: Bound) -> str | None:
    """Return the name of the value that a placeholder stands for: the first one that is obtained and shown."""
    recipe = bound.recipe
    if recipe.login.oauth2 is not None:
        return "access_token"
    extracted = {name for step in recipe.login.steps for name in step.get}
    send = recipe.login.send
    places: tuple[Any, ...] = (send.headers, send.query, send.json_.set if send.json_ else {})
    return next((name for place in places for name in names_in(place) if name in extracted), None)


def _values_of(values: Values, *, oauth2: bool) -> Lookup:
    if not oauth2:
        return known(values)

    def look(name: str) -> Any:
        if name not in values:
            raise Unset
        return values[name]

    return look


def _real(name: str | None, lookup: Lookup) -> str | None:
    try:
        return None if name is None else text(plain(lookup(name)))
    except Unset:
        return None


def _in_field(name: bytes, value: bytes, words: tuple[bytes, ...], real: str, swaps: frozenset[str]) -> bytes:
    place = "cookie" if name.lower() == b"cookie" else "header"
    return _replaced(value, words, real.encode()) if place in swaps else value


def _in_query(target: bytes, words: tuple[bytes, ...], real: str) -> bytes:
    path, mark, query = target.partition(b"?")
    return path + mark + _replaced(query, words, quote(real, safe="").encode())


def _in_body(body: bytes, words: tuple[bytes, ...], real: str, *, form: bool) -> bytes:
    return _replaced(body, words, quote(real, safe="").encode() if form else real.encode())


def _replaced(data: bytes, words: tuple[bytes, ...], real: bytes) -> bytes:
    # The longest first: one may begin with another.
    for word in sorted(words, key=len, reverse=True):
        data = data.replace(word, real)
    return data


def _is_form(request: Request) -> bool:
    return b"x-www-form-urlencoded" in (value_of(request.fields, b"content-type") or b"").lower()


def _with_query(target: bytes, parameters: dict[str, str]) -> bytes:
    more = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in parameters.items()).encode()
    if not more:
        return target
    path, _, query = target.partition(b"?")
    return path + b"?" + (query + b"&" if query else b"") + more


def _with_json(body: bytes, wanted: SetJson, lookup: Lookup) -> bytes:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return body
    for pointer, value in render(wanted.set, lookup).items():
        set_at(document, pointer, plain(value))
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
