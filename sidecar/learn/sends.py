"""How a session is shown, as the `send` of a recipe, and what an answer says of a login."""

import re
from collections.abc import Sequence
from typing import Any

from sidecar.learn.anatomy import BODY, Anatomy, Carried
from sidecar.learn.names import Names
from sidecar.learn.seen import Seen, document_of, pointed

_OUTCOME = re.compile(r"^(\.?qname|.*type|status|success|result|ok)$", re.IGNORECASE)
_SHORT = 200


def send_of(anatomy: Anatomy, names: Names, carried: Sequence[Carried]) -> dict[str, Any]:
    """Return the `send` that shows *carried*, and cookies where the run has any; bodies are no part of it."""
    send: dict[str, Any] = {}
    for each in carried:
        place = each.echo.place
        if place.kind in BODY:
            names.obtain(each.echo)
            continue
        key = "headers" if place.kind == "header" else "query"
        send.setdefault(key, {})[place.name] = f"{each.echo.before}{{{names.obtain(each.echo)}}}{each.echo.after}"
    if anatomy.jar and anatomy.login is not None:
        send["cookies"] = "jar"
    return send


def constant_of(anatomy: Anatomy, names: Names) -> dict[str, Any]:
    """Return the `send` of what the script knew by itself."""
    send: dict[str, Any] = {}
    basic = {value.kind: value for value in anatomy.constant if value.kind in ("user", "password")}
    if len(basic) > 1:
        send["basic"] = [names.template(basic["user"], ()), names.template(basic["password"], ())]
    for value in anatomy.constant:
        if value.kind == "header":
            scheme, space, word = value.text.rpartition(" ")
            template = names.secret(value._replace(name="token" if space else value.name, text=word))
            send.setdefault("headers", {})[value.name] = f"{scheme}{space}{template}"
        elif value.kind == "query":
            send.setdefault("query", {})[value.name] = names.secret(value)
    return send


def how_shown(anatomy: Anatomy) -> str:
    """Return a note of the places in which the session is shown."""
    places = [f"{each.echo.place.kind} {each.echo.place.name}" for each in anatomy.carried if not each.nonce]
    places += ["cookies"] if anatomy.jar else []
    return f"seen: the session is shown in {', '.join(places) or 'nothing that was seen'}"


def says_fine(seen: Seen) -> dict[str, Any]:
    """Return what names the outcome at the top of a JSON answer, none where a status does."""
    document = document_of(seen.answer_body)
    if not isinstance(document, dict):
        return {}
    return {
        pointed("", name): value
        for name, value in document.items()
        if _OUTCOME.match(name)
        and isinstance(value, str | bool)
        and len(str(value)) < _SHORT
        and not set("{}") & set(str(value))
        and name.lower() not in ("token_type", "tokentype")
    }
