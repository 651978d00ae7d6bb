"""A step of a recipe as the request that is sent."""

import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from sidecar.auth.recipes.documents import MAX_BODY
from sidecar.auth.recipes.templates import Lookup, render, text
from sidecar.secret import Secret
from sidecar.settings.recipe import Send, Step

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request of a login; it may hold a password."""

    method: str
    url: str = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)


def outgoing_of(step: Step, shows: Sequence[Send], lookup: Lookup) -> Outgoing:
    """Return *step* as it is sent; *shows*: how the session it is taken in is shown. Raises Unset."""
    method, _, template = step.request.partition(" ")
    url = text(render(template.strip(), lookup))
    headers: dict[str, str] = {}
    for send in shows:
        if send.methods is None or method.upper() in send.methods:
            if send.basic is not None:
                headers["Authorization"] = basic(*(text(render(part, lookup)) for part in send.basic))
            headers |= {name: text(value) for name, value in render(send.headers, lookup).items()}
            if parameters := render(send.query, lookup):
                url += ("&" if "?" in url else "?") + urlencode({name: text(each) for name, each in parameters.items()})
    headers |= {name: text(value) for name, value in render(step.headers, lookup).items()}
    body = b""
    if step.basic is not None:
        headers["Authorization"] = basic(*(text(render(part, lookup)) for part in step.basic))
    if step.json_ is not None:
        body = json.dumps(opened(render(step.json_, lookup))).encode()
        headers = {"Content-Type": "application/json"} | headers
    elif step.form is not None:
        body = urlencode({name: text(value) for name, value in render(step.form, lookup).items()}).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded"} | headers
    elif step.text is not None:
        body = text(render(step.text, lookup)).encode()
        headers = {"Content-Type": "text/plain; charset=utf-8"} | headers
    return Outgoing(method.upper(), url, headers, body)


def basic(user: str, password: str) -> str:
    """Return the value of an Authorization field for HTTP Basic (RFC 7617), in UTF-8."""
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


def opened(value: Any) -> Any:
    """Return *value* with the texts of secrets in it, for what goes to the system."""
    if isinstance(value, dict):
        return {name: opened(each) for name, each in value.items()}
    if isinstance(value, list):
        return [opened(each) for each in value]
    return value.reveal() if isinstance(value, Secret) else value


async def read_body(response: "httpx.Response") -> bytes:
    """Return the body of the answer, coded as it came; no more of it than is looked into."""
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > MAX_BODY:
            break
    return bytes(body[:MAX_BODY])
