"""The credential in places that are no fields of its own: query, body, and wherever a placeholder of ours stands."""

import json
import re
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape

from sidecar.auth.dialect import Edit, Edited
from sidecar.auth.grant import Values
from sidecar.auth.recipes.bound import Bound, known, plain
from sidecar.auth.recipes.documents import set_at
from sidecar.auth.recipes.matches import any_of
from sidecar.auth.recipes.reading import request_message
from sidecar.auth.recipes.templates import Lookup, Unset, as_jwt, names_in, render, text
from sidecar.policy.coding import decoded
from sidecar.policy.message import Request, value_of
from sidecar.settings.recipe import Send, SetJson

_TEXTS = re.compile(rb"^(text/|application/(.*\+)?(json|xml|x-www-form-urlencoded|soap))", re.IGNORECASE)
_MOST = 64 << 20


def edit_of(bound: Bound, placeholders: tuple[str, ...]) -> Edit | None:
    """Return what puts the credential of *bound* there, None where it is shown in fields of its own alone."""
    recipe = bound.recipe
    sends = bound.sends
    words = tuple(form.encode() for word in placeholders for form in (word, as_jwt(word)) if word)
    swaps = frozenset(recipe.swap) if recipe.shim and words else frozenset()
    shown, bearer = _shown(bound), recipe.login.oauth2 is not None
    if not (swaps or any(send.query or send.json_ for send in sends)):
        return None
    wanted = [(send, send.json_, any_of(send.json_.match, bound.lookup())) for send in sends if send.json_ is not None]

    def looks(request: Request, target: bytes) -> bool:
        if request.length == 0:
            return False
        if "body" in swaps and _TEXTS.match(value_of(request.fields, b"content-type") or b""):
            return True
        return any(
            _is_meant(send, request)
            and (matching.looks or matching.holds(request_message(bound, request, target, None), bound.lookup()))
            for send, _, matching in wanted
        )

    def edit(values: Values, request: Request, target: bytes, body: bytes | None) -> Edited:
        lookup = bound.lookup(_values_of(values, oauth2=bearer))
        real = _real(shown, lookup)
        fields = request.fields
        if real is not None:
            fields = tuple((name, _in_field(name, value, words, real, swaps)) for name, value in fields)
            if "query" in swaps:
                target = _in_query(target, words, real)
        for send in sends:
            if send.query and _is_meant(send, request):
                target = _with_query(target, {name: text(each) for name, each in render(send.query, lookup).items()})
        opened = None if body is None else decoded(body, fields, _MOST)
        if opened is None:
            return Edited(target, fields)
        changed = opened
        if real is not None and "body" in swaps:
            changed = _in_body(changed, words, real, _kind(request))
        for send, put, matching in wanted:
            asked = request_message(bound, request, target, opened)
            if _is_meant(send, request) and matching.holds(asked, lookup):
                changed = _with_json(changed, put, lookup)
        if changed == opened:
            return Edited(target, fields)
        # What was coded goes out plain: nobody need code it again.
        return Edited(target, tuple(pair for pair in fields if pair[0].lower() != b"content-encoding"), changed)

    return Edit(looks, edit)


def _is_meant(send: Send, request: Request) -> bool:
    return send.methods is None or request.method.decode("latin-1").upper() in send.methods


def _shown(bound: Bound) -> str | None:
    """Return the name of the value that a placeholder stands for: the first one that is obtained and shown.

    Where none is, and the recipe itself says where to swap, it is the first that is obtained: clients alone show it.
    """
    recipe = bound.recipe
    if recipe.login.oauth2 is not None:
        return "access_token"
    extracted = [name for step in recipe.login.steps for name in step.get if name != "expires_in"]
    send = recipe.login.send
    places: tuple[Any, ...] = (send.headers, send.query, send.json_.set if send.json_ else {})
    unseen = next(iter(extracted), None) if "swap" in recipe.model_fields_set else None
    return next((name for place in places for name in names_in(place) if name in extracted), unseen)


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


def _in_body(body: bytes, words: tuple[bytes, ...], real: str, kind: bytes) -> bytes:
    """Return *body* with the real value as it is written in a body of this *kind*."""
    if b"x-www-form-urlencoded" in kind:
        real = quote(real, safe="")
    elif b"json" in kind:
        real = json.dumps(real)[1:-1]
    elif b"xml" in kind or b"soap" in kind:
        real = escape(real, {'"': "&quot;", "'": "&apos;"})
    return _replaced(body, words, real.encode())


def _replaced(data: bytes, words: tuple[bytes, ...], real: bytes) -> bytes:
    # The longest first: one may begin with another.
    for word in sorted(words, key=len, reverse=True):
        data = data.replace(word, real)
    return data


def _kind(request: Request) -> bytes:
    return (value_of(request.fields, b"content-type") or b"").lower()


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
