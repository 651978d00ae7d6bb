"""A request that was seen as a step of a recipe: what it asks, with templates, and what it obtains."""

import re
from collections.abc import Mapping, Sequence
from html import escape as html_escape
from typing import Any
from urllib.parse import unquote_plus, urlsplit
from xml.sax.saxutils import escape

from sidecar.learn.anatomy import Anatomy
from sidecar.learn.names import Names
from sidecar.learn.seen import (
    Datum,
    Seen,
    document_of,
    field_of,
    form_of,
    pointed,
    text_of,
    told,
    word_of,
)
from sidecar.learn.trace import Trace


def without_parameters(url: str, instead: str = "") -> str:
    """Return *url* with *instead* of what stands behind a semicolon in its path, as `;jsessionid=`."""
    return re.sub(r";[^/]*", instead, url)


def place_of(url: str, base: str) -> str:
    """Return *url* without its query as recipes write it."""
    plain = without_parameters(url.partition("?")[0])
    if plain == base or plain.startswith(base.rstrip("/") + "/"):
        return "{base}" + plain[len(base.rstrip("/")) :]
    parts, ours = urlsplit(plain), urlsplit(base)
    elsewhere = (parts.scheme, parts.netloc) != (ours.scheme, ours.netloc)
    return plain if elsewhere else "{origin}" + parts.path


def step_of(anatomy: Anatomy, number: int, names: Names, base: str) -> dict[str, Any]:
    """Return the request *number* of *anatomy* as a step; what it obtains is added when all requests are known."""
    run, seen = anatomy.run, anatomy.run.all[number]
    step: dict[str, Any] = {"request": f"{seen.method} {place_of(seen.url, base)}{_query(run, number, names)}"}
    headers = _headers(run, number, names) | _whence(run, seen, base)
    basic = [names.template(value, ()) for value in run.shown[number] if value.kind in ("user", "password")]
    body = body_of(run, number, names)
    if "text" in body and (kind := field_of(seen.fields, "content-type")):
        headers["Content-Type"] = kind
    if headers:
        step["headers"] = headers
    if basic:
        step["basic"] = basic
    return step | body


def body_of(run: Trace, number: int, names: Names) -> dict[str, Any]:
    """Return the body of a request as the key of a step, none without one."""
    seen, echoes = run.all[number], run.echoes[number]

    def leaf(value: Any, pointer: str) -> Any:
        if isinstance(value, dict):
            return {name: leaf(each, pointed(pointer, name)) for name, each in value.items()}
        if isinstance(value, list):
            return [leaf(each, pointed(pointer, index)) for index, each in enumerate(value)]
        word = word_of(value)
        if word is None:
            return value
        place = Datum("json", pointer, word)
        if isinstance(value, int) and not run.is_secret(place):
            return names.number(place.last, value) if names.is_personal(place.last) else value
        return names.template(place, echoes)

    if not seen.body:
        return {}
    if (pairs := form_of(seen.body, seen.fields)) is not None:
        return {"form": {name: names.template(Datum("form", name, text), echoes) for name, text in pairs}}
    if (document := document_of(seen.body)) is not None:
        return {"json": leaf(document, "")}
    return {"text": _text(run, number, names)}


def _text(run: Trace, number: int, names: Names) -> str:
    text = text_of(run.all[number].body)
    for value in run.shown[number]:
        if value.kind == "xml" and value.text:
            template = names.template(value, run.echoes[number])
            if template != value.text:
                before, shown = text, template.replace("}", "|xml}")
                for spelled in in_xml(value.text):
                    if value.name.startswith("@"):
                        text = re.sub(rf"""=\s*(["']){re.escape(spelled)}\1""", lambda _: f'="{shown}"', text)  # noqa: B023
                    text = text.replace(f">{spelled}<", f">{shown}<")
                if text == before:
                    raise ValueError(f"its {value.last} is spelled in the body so that no template can stand for it")
    return text


def in_xml(text: str) -> set[str]:
    """Return the ways in which scripts write *text* into an element."""
    found = {escape(text), html_escape(text), html_escape(text, quote=False)}
    return found | {each.encode("ascii", "xmlcharrefreplace").decode() for each in found} | {f"<![CDATA[{text}]]>"}


def _headers(run: Trace, number: int, names: Names) -> dict[str, str]:
    return {
        value.name: names.template(value, run.echoes[number])
        for value in run.shown[number]
        if value.kind == "header" and value.name.lower() != "cookie"
    }


def _whence(run: Trace, seen: Seen, base: str) -> dict[str, str]:
    """Return the fields that say where a request is from: some systems look at them to tell forged ones."""
    found = {}
    for name, value in seen.fields:
        if name.lower() in ("origin", "referer") and re.fullmatch(r"https?://[\w.:/%-]+", value):
            place, root = place_of(value.rstrip("/"), base), urlsplit(value)
            # A page that the run never asked for may have a session in its path.
            known = name.lower() == "referer" and any(each.path == root.path for each in run.all)
            found[name] = place if known else "{origin}" if place.startswith("{") else f"{root.scheme}://{root.netloc}"
    return found


def _query(run: Trace, number: int, names: Names) -> str:
    query = urlsplit(run.all[number].url).query
    if not query:
        return ""
    for value in run.shown[number]:
        if value.kind == "query":
            template = names.template(value, run.echoes[number])
            name, equals, text = next(
                (each for part in query.split("&") if unquote_plus((each := part.partition("="))[0]) == value.name),
                ("", "", ""),
            )
            if template != value.text and text:
                query = query.replace(f"{name}{equals}{text}", f"{name}={template.replace('}', '|url}')}")
    return f"?{query}"


def source_of(origin: Datum, answer: Seen) -> dict[str, Any]:
    """Return the source of a recipe that finds *origin* in *answer*."""
    if origin.kind == "html":
        name, value = rf"""name=["']{re.escape(origin.name)}["']""", r"""(?:value|content)=["']([^"']+)["']"""
        forward, backward = rf"{name}[^>]*?{value}", rf"{value}[^>]*?{name}"
        return {"body": forward if re.search(forward, text_of(answer.answer_body)) else backward}
    if origin.kind == "xml":
        last = origin.name.rpartition("/")[2]
        alike = [each for each in told(answer) if each.kind == "xml" and each.name.endswith(f"/{last}")]
        return {"xml": f".//{last}" if len(alike) == 1 else origin.name}
    return {origin.kind: origin.name}


def obtained(anatomy: Anatomy, number: int, names: Names) -> dict[str, Any]:
    """Return what the step *number* obtains, by name, with its sources."""
    answer = anatomy.run.all[number]
    return {
        name: source_of(Datum(kind, where, ""), answer)  # type: ignore[arg-type]
        for (source, kind, where), name in names.obtained.items()
        if source == number
    }


def origins_of(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the origins that *steps* name besides that of the base URL."""
    urls = [urlsplit(step["request"].partition(" ")[2]) for step in steps if step]
    return sorted({f"{url.scheme}://{url.netloc}" for url in urls if url.scheme in ("http", "https")})
