"""The cookies of a session, with the host and path rules of a browser (RFC 6265), as plain values.

They last until the server ends them: what dies of age alone is told by the answer that says so.
"""

import json
import re
from dataclasses import astuple, dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

from sidecar.policy.message import Fields, value_of

_MOST = 50
_LONGEST = 4096
_WHOLE = 24 << 10
_SET = frozenset({b"set-cookie"})
_PRINTABLE = re.compile(r"[\x20-\x7e]*")
_LONG_AGO = 978307200.0  # 2001-01-01


@dataclass(frozen=True, slots=True)
class Cookie:
    """One cookie; *host_only*: it goes to *domain* itself alone."""

    name: str
    value: str
    domain: str
    host_only: bool
    path: str
    secure: bool


Jar = tuple[Cookie, ...]


def from_text(text: str) -> Jar:
    """Return the jar of what `to_text` gave."""
    return tuple(Cookie(*each) for each in json.loads(text))


def to_text(jar: Jar) -> str:
    """Return *jar* as text: the same for the same cookies."""
    return json.dumps([astuple(cookie) for cookie in jar], separators=(",", ":"))


def taken(jar: Jar, host: str, path: str, fields: Fields) -> Jar:
    """Return *jar* after an answer of *host* to a request for *path*, with what its Set-Cookie fields add and end.

    What breaks the rules is left out, and so is what a browser would not keep for its size; 50 are kept at most.
    """
    now = _moment((value_of(fields, b"date") or b"").decode("latin-1"))
    cookies = {(each.name, each.domain, each.path): each for each in jar}
    for name, value in fields:
        if name.lower() not in _SET or (set_now := _parsed(value.decode("utf-8", "replace"), host, path, now)) is None:
            continue
        cookie, ended = set_now
        key = (cookie.name, cookie.domain, cookie.path)
        cookies.pop(key, None)  # so that the newest stands last
        if not ended:
            cookies[key] = cookie
    kept = tuple(cookies.values())[-_MOST:]
    while len(to_text(kept)) > _WHOLE:
        kept = kept[1:]
    return kept


def shown(jar: Jar, host: str, path: str, *, secure: bool) -> str:
    """Return the Cookie field for a request to *host* and *path*, empty when none goes there."""
    fit = [each for each in jar if _goes(each, host, path) and (secure or not each.secure)]
    fit.sort(key=lambda each: -len(each.path))
    return "; ".join(f"{each.name}={each.value}" for each in fit)


def value_in(jar: Jar, name: str) -> str | None:
    """Return the value of the cookie *name*, the newest if there are several, None without one."""
    return next((each.value for each in reversed(jar) if each.name == name), None)


def _parsed(line: str, host: str, path: str, now: float | None) -> tuple[Cookie, bool] | None:
    pair, *attributes = line.split(";")
    name, equals, value = pair.partition("=")
    name, value = name.strip(), value.strip()
    if not equals or not name or len(name) + len(value) > _LONGEST or not _PRINTABLE.fullmatch(name + value):
        return None
    found: dict[str, str] = {}
    for attribute in attributes:
        key, _, given = attribute.partition("=")
        found[key.strip().lower()] = given.strip()
    domain = found.get("domain", "").lower().lstrip(".")
    host = host.lower()
    if domain and domain != host and ("." not in domain or not host.endswith(f".{domain}") or _is_address(host)):
        return None
    where = found.get("path", "")
    if not where.startswith("/"):
        where = path.partition("?")[0].rpartition("/")[0] or "/"
    cookie = Cookie(name, value, domain or host, not domain, where, "secure" in found)
    return cookie, _ended(found, now)


def _ended(attributes: dict[str, str], now: float | None) -> bool:
    """Tell whether a cookie is ended by its age, or by a date before *now*, the answer's own; None: it has none."""
    if age := attributes.get("max-age"):
        return age.startswith("-") or age.strip("0") == ""
    moment = _moment(attributes.get("expires", "").replace("-", " "))
    # Any other age is the server's own affair: it says when the session is over.
    return moment is not None and moment <= (_LONG_AGO if now is None else now)


def _moment(text: str) -> float | None:
    try:
        when = parsedate_to_datetime(text)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _is_address(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


def _goes(cookie: Cookie, host: str, path: str) -> bool:
    host = host.lower()
    if cookie.domain != host and (cookie.host_only or not host.endswith(f".{cookie.domain}")):
        return False
    path = path.partition("?")[0] or "/"
    return path == cookie.path or (
        path.startswith(cookie.path) and (cookie.path.endswith("/") or path[len(cookie.path)] == "/")
    )
