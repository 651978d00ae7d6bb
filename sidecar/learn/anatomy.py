"""Which of the requests are the login, what of its answers later requests show, and which one is the logout."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from sidecar.learn.seen import Datum, Seen, cookies_set
from sidecar.learn.trace import Echo, Trace

_LOGOUT = re.compile(r"(log|sign)[_-]?(out|off)|disconnect|endsession|invalidate", re.IGNORECASE)
_SESSION = re.compile(r"session|log[_-]?in|sign[_-]?in|token|auth", re.IGNORECASE)
_PREPARES = re.compile(r"session|register|connect|select|context|init", re.IGNORECASE)
_NONCE = re.compile(r"csrf|xsrf|crumb|nonce|requestverification", re.IGNORECASE)
_TICKET = re.compile(r"session|token|ticket|sid$", re.IGNORECASE)
_OK = 400
BODY = frozenset({"json", "form", "xml"})


@dataclass(frozen=True, slots=True)
class Carried:
    """What requests show of the session: *echo* is the first one; *nonce*: only writes show it, and it is fetched."""

    echo: Echo
    times: int
    nonce: bool = False


@dataclass(frozen=True, slots=True)
class Anatomy:
    """The parts of a run, by the numbers of its requests.

    *login* None: nothing is obtained. *steps*: the login and all that it needs, in order; *prepares*: those of them
    that gave nothing, and came right behind it. *carried*: what the session is shown by, besides cookies; *jar*:
    cookies too. *constant*: what the script knew, and showed with each request. *ordinary*: all the others.
    """

    run: Trace = field(repr=False)
    login: int | None
    steps: Sequence[int]
    prepares: Sequence[int]
    nonce_step: int | None
    carried: Sequence[Carried] = field(repr=False)
    jar: bool
    constant: Sequence[Datum] = field(repr=False)
    logout: int | None
    ordinary: Sequence[int]

    def words(self) -> frozenset[str]:
        """Return what shows the session: no recipe may have it."""
        found = {each.echo.origin.text for each in self.carried}
        for number in (*self.steps, *([] if self.nonce_step is None else [self.nonce_step])):
            found |= {value for _, value in cookies_set(self.run.all[number])}
        return frozenset(found)


def anatomy_of(run: Trace) -> Anatomy:
    """Return the anatomy of *run*."""
    logout = _logout(run)
    everywhere = _everywhere(run)
    login = _login(run, everywhere)
    after = range(0 if login is None else login + 1, len(run.all))
    ordinary = [number for number in after if number != logout]
    carried = _carried(run, login, ordinary)
    if login is not None:
        # What the session is begun with is no part of it.
        begins = _closure(run, {each.echo.source for each in carried if not each.nonce})
        ordinary = [number for number in ordinary if number not in begins]
        carried = _carried(run, login, ordinary)
    nonces = [each for each in carried if each.nonce]
    nonce_step = nonces[0].echo.source if nonces else None
    needed = {each.echo.source for each in carried if not each.nonce} | ({login} if login is not None else set())
    steps = sorted(_closure(run, needed)) if login is not None else []
    prepares = [] if login is None else _prepares(run, ordinary, nonce_step, steps)
    cookies = [echo for number in ordinary for echo in run.echoes[number] if echo.place.kind == "cookie"]
    return Anatomy(
        run=run,
        login=login,
        steps=sorted({*steps, *prepares}),
        prepares=prepares,
        nonce_step=nonce_step,
        carried=carried,
        jar=any(echo.origin.kind == "cookie" for echo in cookies),
        constant=_constant(run, everywhere),
        logout=logout,
        ordinary=[number for number in ordinary if number not in steps],
    )


def _login(run: Trace, everywhere: frozenset[Datum]) -> int | None:
    """Return the first request with a secret whose answer told what later ones show; None if none told anything."""
    knows = [bool(_known(run, number) - everywhere) for number in range(len(run.all))]
    used: Counter[int] = Counter()
    for echoes, secret in zip(run.echoes, knows, strict=True):
        if not secret:
            used.update({echo.source for echo in echoes})
    for number, each in enumerate(run.all):
        if knows[number] and each.status < _OK and _gave(run, number, used):
            return number
    return None


def _known(run: Trace, number: int) -> set[Datum]:
    """Return the secrets that the request shows and no answer told; what is authorized by one is a login too."""
    told = {echo.place for echo in run.echoes[number]}
    return {
        value
        for value in run.shown[number]
        if value not in told
        and (run.is_secret(value) or (value.kind == "header" and value.name.lower() == "authorization"))
    }


def _gave(run: Trace, number: int, used: Counter[int]) -> bool:
    """Tell whether the answer *number*, or the page that it leads to, told what later requests show."""
    if used[number]:
        return True
    # A form's answer may be a redirect whose own cookie was there before: the session became another by the login.
    return bool(any(echo.place.kind == "cookie" for echo in run.echoes[number]) and not run.all[number].is_read)


def _everywhere(run: Trace) -> frozenset[Datum]:
    """Return what more than half of all requests show, and two at least: that is no login."""
    times = Counter(value for shown in run.shown for value in set(shown))
    return frozenset(value for value, often in times.items() if often > 1 and often * 2 > len(run.all))


def _constant(run: Trace, everywhere: frozenset[Datum]) -> list[Datum]:
    """Return the secrets, and what is beside them, that most requests show though no answer told them."""
    traced = {echo.place for echoes in run.echoes for echo in echoes}
    found: dict[tuple[str, str], Datum] = {}
    for value in (value for shown in run.shown for value in shown if value in everywhere - traced):
        bearer = value.kind == "header" and value.name.lower() == "authorization"
        secret = value.kind in ("header", "query") and run.is_secret(value)
        if bearer or secret or value.kind in ("user", "password"):
            found.setdefault((value.kind, value.name.lower()), value)
    return list(found.values())


def _carried(run: Trace, login: int | None, ordinary: Sequence[int]) -> list[Carried]:
    groups: dict[tuple[str, str, str, str, str], list[tuple[int, Echo]]] = {}
    for number in ordinary:
        for echo in run.echoes[number]:
            if echo.place.kind == "cookie":
                continue
            source = run.all[echo.source]
            name = echo.place.name.lower()
            key = (echo.place.kind, name, source.method, source.path, f"{echo.origin.kind} {echo.origin.name}")
            groups.setdefault(key, []).append((number, echo))
    found = []
    for echoes in groups.values():
        first = echoes[0][1]
        numbers = {number for number, _ in echoes}
        later = [number for number in ordinary if number > first.source]
        writes = [number for number in later if not run.all[number].is_read]
        fetched = login is None or first.source > login
        # A page's cursor is another each time; what shows a session is shown again.
        steady = len(numbers) > 1 and len({echo.origin.text for _, echo in echoes}) * 2 <= len(numbers)
        often = login is not None and steady and len(numbers) * 2 >= len(later)
        likely = _NONCE.search(first.place.name) is not None
        only_writes = all(not run.all[number].is_read for number in numbers)
        nonce = fetched and only_writes and first.place.kind == "header" and (likely or steady)
        if nonce and len(numbers) * 2 >= len(writes):
            found.append(Carried(first, len(numbers), nonce=True))
        elif often or (not fetched and (likely or (first.source == login and first.place.kind == "header"))):
            found.append(Carried(first, len(numbers)))
    return sorted(
        _needed(run, ordinary, _each_place_once(found)), key=lambda each: (each.nonce, each.echo.place.kind in BODY)
    )


def _needed(run: Trace, ordinary: Sequence[int], found: list[Carried]) -> list[Carried]:
    """Return *found* less what bodies show, if the session is shown elsewhere: an account's id is no session."""
    beside = {each.echo.origin.text for each in found if each.echo.place.kind not in BODY and not each.nonce}
    for number in ordinary:
        beside |= {echo.origin.text for echo in run.echoes[number] if echo.place.kind == "cookie"}
    return [
        each
        for each in found
        if each.echo.place.kind not in BODY
        or not beside
        or each.echo.origin.text in beside
        or _TICKET.search(each.echo.place.last)
    ]


def _each_place_once(found: list[Carried]) -> list[Carried]:
    """Return *found* with one source for each place, the one that was used most."""
    best: dict[tuple[str, str], Carried] = {}
    for each in found:
        place = each.echo.place
        key = (place.kind, place.name.lower())
        if key not in best or best[key].times < each.times:
            best[key] = each
    return list(best.values())


def _closure(run: Trace, needed: set[int]) -> set[int]:
    """Return *needed*, and the requests whose answers they could not have been made without."""
    found: set[int] = set()
    waiting = sorted(needed)
    while waiting:
        number = waiting.pop()
        if number not in found:
            found.add(number)
            waiting += [echo.source for echo in run.echoes[number]]
    return found


def _prepares(run: Trace, ordinary: Sequence[int], nonce_step: int | None, steps: Sequence[int]) -> list[int]:
    """Return the requests right behind the login that seem to make its session ready: made once, and named so."""
    often = Counter((each.method, each.path) for each in run.all)
    found = []
    for number in ordinary:
        each = run.all[number]
        if number in steps:
            continue
        once = often[each.method, each.path] == 1
        if not (once and _PREPARES.search(each.path) and each.status < _OK and number != nonce_step):
            break
        found.append(number)
    return found


def _logout(run: Trace) -> int | None:
    """Return the last request that says in its path, query or body that it ends a session."""
    for number in range(len(run.all) - 1, 0, -1):
        each = run.all[number]
        if each.status < _OK and is_logout(each):
            return number
    return None


def is_logout(seen: Seen) -> bool:
    """Tell whether *seen* says that it ends a session."""
    if seen.method == "DELETE" and _SESSION.search(seen.path.rstrip("/").rpartition("/")[2]):
        return True
    if _LOGOUT.search(seen.path) or _LOGOUT.search(seen.url.partition("?")[2]):
        return True
    return re.search(rb"<(?:[\w.-]+:)?(?i:log_?(?:out|off)|sign_?(?:out|off))[\s/>]", seen.body or b"") is not None


def nothing_in(run: Trace) -> str:
    """Return why no recipe comes of *run*, which has no login."""
    if any(run.is_secret(value) for shown in run.shown for value in shown):
        return "a password was seen, and no answer to it that told what later requests show"
    return "no login was seen among the requests; name what is secret by --secret ENV_NAME if it has an odd name"
