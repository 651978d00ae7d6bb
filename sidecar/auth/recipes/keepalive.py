"""The request that keeps a session alive, by a recipe."""

import json
from urllib.parse import urlencode, urlsplit

from sidecar.auth.recipes.bound import Bound
from sidecar.auth.recipes.outgoing import opened
from sidecar.auth.recipes.templates import render, text
from sidecar.policy.idleness import Use

_WITHIN = 6
"""After so many of them without a request of a client's nobody uses the session."""


def use_of(bound: Bound) -> Use | None:
    """Return the request; None where the recipe has none, or has it never sent. Raises Unset for an unknown value."""
    found = request_of(bound)
    return found if found is not None and found.every > 0 else None


def request_of(bound: Bound) -> Use | None:
    """Return the request, sent by itself or never; None where the recipe has none. Raises Unset."""
    wanted = bound.recipe.keepalive
    if wanted is None:
        return None
    lookup = bound.lookup()
    method, _, url = wanted.request.partition(" ")
    parts = urlsplit(text(render(url.strip(), lookup)))
    fields = [(name.encode(), text(value).encode()) for name, value in render(wanted.headers, lookup).items()]
    body = b""
    if wanted.json_ is not None:
        body, kind = json.dumps(opened(render(wanted.json_, lookup))).encode(), b"application/json"
    elif wanted.form is not None:
        body = urlencode({name: text(value) for name, value in render(wanted.form, lookup).items()}).encode()
        kind = b"application/x-www-form-urlencoded"
    if body:
        fields.append((b"Content-Type", kind))
    return Use(
        target=(parts.path + (f"?{parts.query}" if parts.query else "")).encode(),
        every=wanted.every,
        within=wanted.every * _WITHIN,
        method=method.encode(),
        fields=tuple(fields),
        body=body,
    )
