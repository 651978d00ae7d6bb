"""From the course of a run to the recipe and the configuration that carry the same script, every guess marked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from sidecar.learn.course import Carried, Course
from sidecar.learn.names import Names
from sidecar.learn.seen import Seen, document_of, field_of, pointed, told
from sidecar.learn.steps import match_of, obtained, place_of, reply_of, source_of, step_of

_OUTCOME = re.compile(r"^(\.?qname|.*type|status|success|result|ok)$", re.IGNORECASE)
_LIFETIME = frozenset({"expires_in", "expiresIn", "expires-in"})
_WRITES = ("POST", "PUT", "PATCH", "DELETE", "MERGE")
_BODY = frozenset({"json", "form", "xml"})
_MOVED = range(300, 400)
_SHORT = 200
_FETCHED = 4096

Where = tuple[str | int, ...]
"""A path of keys in the configuration of the upstream."""


@dataclass(frozen=True, slots=True)
class Death:
    """How an answer tells that the session is over: *matches* of a recipe, and how that came to be known."""

    matches: list[dict[str, Any]]
    how: str


@dataclass(frozen=True, slots=True)
class Learned:
    """What is written: the *upstream* of a configuration, and a comment for each of the *notes*' paths.

    *secrets*: the values of the environment variables that it names. *found*, *unseen*: what is to be said of it.
    """

    name: str
    upstream: dict[str, Any]
    notes: Mapping[Where, str]
    secrets: Mapping[str, str] = field(repr=False)
    found: Sequence[str]
    unseen: Sequence[str]


def learned(
    course: Course,
    *,
    name: str,
    base: str,
    death: Death | None = None,
    more: Mapping[str, Any] | None = None,
) -> Learned:
    """Return what *course* teaches of the system at *base*; *death* None: none was seen; *more* keys of the upstream.

    Raises ValueError when nothing was shown that a sidecar could show.
    """
    made = _Making(course, name, base, death)
    return made.all(dict(more or {}))


class _Making:
    """A recipe in the making, with its notes."""

    def __init__(self, course: Course, name: str, base: str, death: Death | None) -> None:
        self.course = course
        self.name = name
        self.base = base.rstrip("/")
        self.death = death
        self.names = Names(course.run, name)
        self.notes: dict[Where, str] = {}
        self.found: list[str] = []
        self.unseen: list[str] = []

    def all(self, more: dict[str, Any]) -> Learned:
        course = self.course
        if course.login is None and not course.constant:
            raise ValueError(_nothing(course))
        # What a step obtains is known when all that show it are written.
        logout = self._logout()
        login = self._login()
        csrf = self._csrf()
        if any(source not in (*course.steps, course.nonce_step) for source, _, _ in self.names.obtained):
            raise ValueError("what the login or the logout shows came from requests that are no part of it")
        shim = self._shim()
        recipe: dict[str, Any] = {
            "recipe": 1,
            "id": self.name.replace("_", "-"),
            "title": f"{urlsplit(self.base).hostname}, learned from one run",
        }
        if self.names.vars:
            recipe["vars"] = self.names.vars
        recipe["login"] = login
        if csrf:
            recipe["csrf"] = csrf
        if shim:
            recipe["shim"] = shim
        swap = ["header", *(["body"] if any(each.use.place.kind in _BODY for each in course.carried) else [])]
        if len(swap) > 1:
            recipe["swap"] = swap
            self.notes["recipe", "swap"] = "seen: the script puts the session into its bodies; a placeholder there"
        if logout:
            recipe["logout"] = logout
        recipe["facts"] = {"inferred": ["all of it, from one run that was watched"]}
        upstream: dict[str, Any] = {"base_url": self.base}
        if self.base.startswith("http://"):
            upstream["insecure_http"] = True
        upstream |= more
        upstream["credential"] = self.names.credential
        upstream["recipe"] = recipe
        self._tell_the_rest()
        return Learned(self.name, upstream, self.notes, self.names.secrets, self.found, self.unseen)

    def _login(self) -> dict[str, Any]:
        course, run = self.course, self.course.run
        # Before the steps are written: they name what they obtain.
        send = self._send([each for each in course.carried if not each.nonce])
        at: Where = ("recipe", "login")
        layer: dict[str, Any] = {}
        if course.login is None:
            send |= self._constant()
            self.notes[(*at, "send")] = "seen: shown with most requests, and told by no answer"
            self.found.append("no login: the credential itself is shown with each request")
            return self._first_look(send) | {"send": send, "fatal": {"status": 401}}
        written = [(number, step_of(course, number, self.names, self.base)) for number in course.steps]
        steps: list[dict[str, Any]] = []
        for number, step in written:
            steps.append(step | self._outcome(number, (*at, "steps", len(steps))))
        layer["steps"] = steps
        layer["send"] = send
        self.notes[(*at, "send")] = self._how_shown()
        layer["dead"] = self._dead()
        seen = run.all[course.login]
        self.found.append(f"login: {seen.method} {urlsplit(seen.url).path}, answered {seen.status}")
        self.found.append(self._how_shown().removeprefix("seen: "))
        self.unseen.append("how a wrong password is answered: fatal is a guess, try it once with an account to spare")
        self.unseen.append("how long a session lives: set login.life if you know it")
        return layer

    def _first_look(self, send: dict[str, Any]) -> dict[str, Any]:
        """Return the login that a nonce lives in where there is none: the request that fetches it, and its cookies."""
        course = self.course
        if course.nonce_step is None:
            return {}
        seen = course.run.all[course.nonce_step]
        if course.jar:
            send["cookies"] = "jar"
        shown = {key: send[key] for key in ("basic", "headers") if key in send}
        self.notes["recipe", "login", "steps"] = "guessed: a nonce needs a session to live in, which this begins"
        request = f"{seen.method} {place_of(seen.url, self.base)}"
        return {"steps": [{"request": request} | shown | {"ok": {"status": seen.status}, "fatal": {"status": 401}}]}

    def _outcome(self, number: int, at: Where) -> dict[str, Any]:
        """Return what a step's answer must be, and what it gives."""
        course, seen = self.course, self.course.run.all[number]
        get = obtained(course, number, self.names)
        if number == course.login:
            for value in told(seen):
                if value.kind == "json" and value.last in _LIFETIME and value.text.isdigit():
                    get["expires_in"] = source_of(value, seen)
        found: dict[str, Any] = {"optional": True} if number in course.prepares else {}
        if number in course.prepares:
            self.notes[(*at, "optional")] = "guessed: it came right behind the login, and may make the session ready"
        ok: dict[str, Any] = {"status": seen.status}
        if seen.status in _MOVED and (location := field_of(seen.answer_fields, "location")):
            ok["location"] = "*" + urlsplit(location).path.replace("{", "?").replace("}", "?")
        if number == course.login and (told_by := _says_fine(seen)):
            ok["json"] = told_by
            self.notes[(*at, "ok")] = "guessed: what the answer calls itself when the login is granted"
        found["ok"] = ok
        if get:
            found["get"] = get
            self.notes[(*at, "get")] = "seen: later requests show it"
        if number == course.login:
            refused: list[dict[str, Any]] = [{"status": [400, 401, 403]}]
            if len(ok) > 1:
                # Only what speaks as the login does: a page of a system that is being mended is no refusal.
                spoken = {"type": "json"} if "json" in ok else {}
                refused.append(
                    {"status": seen.status} | spoken | {"not": {key: ok[key] for key in ok if key != "status"}}
                )
            found["fatal"] = refused
            self.notes[(*at, "fatal")] = "guessed: a wrong password was not seen; after it no login is tried again"
        return found

    def _send(self, carried: Sequence[Carried]) -> dict[str, Any]:
        send: dict[str, Any] = {}
        for each in carried:
            place = each.use.place
            text = f"{each.use.before}{{{self.names.obtain(each.use)}}}{each.use.after}"
            if place.kind in ("header", "query"):
                send.setdefault("headers" if place.kind == "header" else "query", {})[place.name] = text
        if self.course.jar and self.course.login is not None:
            send["cookies"] = "jar"
        return send

    def _constant(self) -> dict[str, Any]:
        send: dict[str, Any] = {}
        basic = [value for value in self.course.constant if value.kind in ("user", "password")]
        if basic:
            by_kind = {value.kind: value for value in basic}
            send["basic"] = [self.names.template(by_kind[kind], ()) for kind in ("user", "password")]
        for value in self.course.constant:
            if value.kind == "header":
                scheme, space, word = value.text.rpartition(" ")
                secret = value._replace(name="token" if space else value.name, text=word)
                template = self.names.secret(secret)
                send.setdefault("headers", {})[value.name] = f"{scheme}{space}{template}"
            elif value.kind == "query":
                send.setdefault("query", {})[value.name] = self.names.secret(value)
        return send

    def _csrf(self) -> dict[str, Any]:
        course = self.course
        nonces = [each for each in course.carried if each.nonce]
        if not nonces or course.nonce_step is None:
            return {}
        send = self._send(nonces)
        send.pop("cookies", None)
        step = step_of(course, course.nonce_step, self.names, self.base)
        # The session's own fields are shown by the login.
        shown = {each.use.place.name.lower() for each in course.carried} | {"authorization"}
        nonce = nonces[0].use.origin.name.lower()
        headers = step.pop("headers", {})
        kept = {key: value for key, value in headers.items() if key.lower() not in shown or key.lower() == nonce}
        step.pop("basic", None)
        answer = course.run.all[course.nonce_step]
        step |= ({"headers": kept} if kept else {}) | {"ok": {"status": answer.status}}
        step["get"] = obtained(course, course.nonce_step, self.names)
        send["methods"] = list(_WRITES)
        if course.jar:
            send["cookies"] = "jar"
        name = nonces[0].use.place.name
        self.found.append(f"CSRF: {name}, told by {answer.method} {answer.path}")
        self.notes["recipe", "csrf"] = f"seen: writes show {name}, which an earlier answer told"
        self.notes["recipe", "csrf", "dead"] = "guessed: its death was not seen"
        self.notes["recipe", "csrf", "send"] = "guessed: all methods that write, not only those seen"
        return {"steps": [step], "send": send, "dead": {"status": 403}}

    def _dead(self) -> list[dict[str, Any]]:
        at: Where = ("recipe", "login", "dead")
        if self.death is None:
            self.notes[at] = "guessed: no death was seen, and nothing could be asked that is safe to ask"
            self.unseen.append("the death of a session: dead is the usual 401")
            return [{"status": 401}]
        self.notes[at] = self.death.how
        self.found.append(f"death: {self.death.how.partition(': ')[2]}")
        return self.death.matches

    def _logout(self) -> dict[str, Any]:
        course = self.course
        if course.logout is None:
            self.unseen.append("a logout: sessions are left to end by themselves")
            return {}
        seen = course.run.all[course.logout]
        step = step_of(course, course.logout, self.names, self.base) if course.login is not None else {}
        shown = {each.use.place.name.lower() for each in course.carried} | {"authorization"}
        headers = {key: value for key, value in step.pop("headers", {}).items() if key.lower() not in shown}
        if step:
            step = {**step, **({"headers": headers} if headers else {}), "ok": {"status": ["2xx", "3xx", 401]}}
        self.notes["recipe", "logout"] = "seen"
        self.found.append(f"logout: {seen.method} {urlsplit(seen.url).path}")
        return step

    def _shim(self) -> list[dict[str, Any]]:
        course = self.course
        numbers = [number for number in course.steps if number not in course.prepares and self._answerable(number)]
        if course.logout is not None and course.login is not None:
            numbers.append(course.logout)
        found: list[dict[str, Any]] = [{"match": match_of(course, number, self.base)} for number in numbers]
        if course.nonce_step is not None and (fetch := self._fetch(course.nonce_step)) is not None:
            numbers.append(course.nonce_step)
            found.append({"match": fetch})
        for number, each in zip(numbers, found, strict=True):
            each["reply"] = reply_of(course, number, self.names, self.base)
        if found:
            self.notes["recipe", "shim"] = "seen: what the script was answered, placeholders for what shows a session"
        return found

    def _fetch(self, number: int) -> dict[str, Any] | str | None:
        """Return the match of the request that fetches a nonce; None if it cannot be told from others, or is data."""
        course, seen = self.course, self.course.run.all[number]
        name = next(each.use.place.name for each in course.carried if each.nonce)
        if len(seen.answer_body or b"") > _FETCHED:
            self.unseen.append(f"how scripts get {name}: its answer is too long to be given here, and comes without it")
            return None
        asked = field_of(seen.fields, name)
        if asked and not set("{}") & set(asked):
            return {"method": seen.method, "path": place_of(seen.url, self.base), "header": {name: asked}}
        return match_of(course, number, self.base) if self._answerable(number) else None

    def _answerable(self, number: int) -> bool:
        """Tell whether a step's answer can be given here: the login's is, and a small one that is no page."""
        seen = self.course.run.all[number]
        if number == self.course.login:
            return True
        page = "html" in field_of(seen.answer_fields, "content-type").lower()
        again = sum((each.method, each.path) == (seen.method, seen.path) for each in self.course.run.all) > 1
        return not page and not again

    def _how_shown(self) -> str:
        course = self.course
        places = [f"{each.use.place.kind} {each.use.place.name}" for each in course.carried if not each.nonce]
        places += ["cookies"] if course.jar else []
        return f"seen: the session is shown in {', '.join(places) or 'nothing that was seen'}"

    def _tell_the_rest(self) -> None:
        bodies = {each.use.place.name: each for each in self.course.carried if each.use.place.kind in _BODY}
        if len({each.use.origin.text for each in bodies.values()}) > 1:
            self.unseen.append(
                "which of several values in bodies a placeholder stands for: only the first is put there"
            )
        self.unseen.append("paths and addresses with a session in them, and values that the script computes")


def _says_fine(seen: Seen) -> dict[str, Any]:
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


def _nothing(course: Course) -> str:
    run = course.run
    if not run.all:
        return "nothing was seen"
    if any(run.is_secret(value) for shown in run.shown for value in shown):
        return "a password was seen, and no answer to it that told what later requests show"
    return "no login was seen among the requests; name what is secret by --secret ENV_NAME if it has an odd name"
