"""From the anatomy of a run to the recipe and the configuration that carry the same script, every guess marked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from sidecar.learn.anatomy import BODY, Anatomy, nothing_in
from sidecar.learn.death import Death
from sidecar.learn.names import Names
from sidecar.learn.seen import field_of, told
from sidecar.learn.sends import constant_of, how_shown, says_fine, send_of
from sidecar.learn.shims import shim_of
from sidecar.learn.steps import obtained, origins_of, place_of, source_of, step_of, without_parameters

_LIFETIME = frozenset({"expires_in", "expiresIn", "expires-in"})
_WRITES = ("POST", "PUT", "PATCH", "DELETE", "MERGE")
_MOVED = range(300, 400)

Where = tuple[str | int, ...]
"""A path of keys in the configuration of the upstream."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What is written: the *upstream* of a configuration, and a comment for each of the *notes*' paths.

    *secrets*: the values of the environment variables that it names. *kept*: all else that the run showed and that is
    secret. *found*, *unseen*: what is to be said of it.
    """

    name: str
    upstream: dict[str, Any]
    notes: Mapping[Where, str]
    secrets: Mapping[str, str] = field(repr=False)
    found: Sequence[str]
    unseen: Sequence[str]
    kept: frozenset[str] = field(default=frozenset(), repr=False)


def learned(
    anatomy: Anatomy,
    *,
    name: str,
    base: str,
    death: Death | None = None,
    more: Mapping[str, Any] | None = None,
) -> Learned:
    """Return what *anatomy* teaches of the system at *base*; *death* None: none was seen; *more* keys of the upstream.

    Raises ValueError when nothing was shown that a sidecar could show.
    """
    made = _Making(anatomy, name, base, death)
    return made.all(dict(more or {}))


class _Making:
    """A recipe in the making, with its notes."""

    def __init__(self, anatomy: Anatomy, name: str, base: str, death: Death | None) -> None:
        self.anatomy = anatomy
        self.name = name
        self.base = base.rstrip("/")
        self.death = death
        self.names = Names(anatomy.run, name)
        self.notes: dict[Where, str] = {}
        self.found: list[str] = []
        self.unseen: list[str] = []

    def all(self, more: dict[str, Any]) -> Learned:
        anatomy = self.anatomy
        if anatomy.login is None and not anatomy.constant:
            raise ValueError(nothing_in(anatomy.run))
        # What a step obtains is known when all that show it are written.
        logout = self._logout()
        login = self._login()
        csrf = self._csrf()
        if any(source not in (*anatomy.steps, anatomy.nonce_step) for source, _, _ in self.names.obtained):
            raise ValueError("what the login or the logout shows came from requests that are no part of it")
        shim = shim_of(anatomy, self.names, self.base, self.unseen)
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
            self.notes["recipe", "shim"] = "seen: what the script was answered, placeholders for what shows a session"
        swap = ["header", *(["body"] if any(each.echo.place.kind in BODY for each in anatomy.carried) else [])]
        if len(swap) > 1:
            recipe["swap"] = swap
            self.notes["recipe", "swap"] = "seen: the script puts the session into its bodies; a placeholder there"
        if logout:
            recipe["logout"] = logout
        if trusted := origins_of([*login.get("steps", ()), *csrf.get("steps", ()), logout]):
            recipe["trust"] = trusted
        recipe["facts"] = {"inferred": ["all of it, from one run that was watched"]}
        upstream: dict[str, Any] = {"base_url": self.base}
        if self.base.startswith("http://"):
            upstream["insecure_http"] = True
        upstream |= more
        upstream["credential"] = self.names.credential
        upstream["recipe"] = recipe
        self._tell_the_rest()
        kept = anatomy.run.kept()
        return Learned(self.name, upstream, self.notes, self.names.secrets, self.found, self.unseen, kept)

    def _login(self) -> dict[str, Any]:
        anatomy, run = self.anatomy, self.anatomy.run
        # Before the steps are written: they name what they obtain.
        send = constant_of(anatomy, self.names)
        for key, value in send_of(anatomy, self.names, [each for each in anatomy.carried if not each.nonce]).items():
            send[key] = send[key] | value if isinstance(value, dict) and key in send else value
        at: Where = ("recipe", "login")
        layer: dict[str, Any] = {}
        if anatomy.login is None:
            self.notes[(*at, "send")] = "seen: shown with most requests, and told by no answer"
            self.found.append("no login: the credential itself is shown with each request")
            return self._first_look(send) | {"send": send, "fatal": {"status": 401}}
        written = [(number, step_of(anatomy, number, self.names, self.base)) for number in anatomy.steps]
        steps: list[dict[str, Any]] = []
        for number, step in written:
            steps.append(step | self._outcome(number, (*at, "steps", len(steps))))
        layer["steps"] = steps
        layer["send"] = send
        self.notes[(*at, "send")] = how_shown(anatomy)
        layer["dead"] = self._dead()
        seen = run.all[anatomy.login]
        self.found.append(f"login: {seen.method} {urlsplit(seen.url).path}, answered {seen.status}")
        self.found.append(how_shown(anatomy).removeprefix("seen: "))
        self.unseen.append("how a wrong password is answered: fatal is a guess, try it once with an account to spare")
        self.unseen.append("how long a session lives: set login.life if you know it")
        return layer

    def _first_look(self, send: dict[str, Any]) -> dict[str, Any]:
        """Return the login that a nonce lives in where there is none: the request that fetches it, and its cookies."""
        anatomy = self.anatomy
        if anatomy.nonce_step is None:
            return {}
        seen = anatomy.run.all[anatomy.nonce_step]
        if anatomy.jar:
            send["cookies"] = "jar"
        shown = {key: send[key] for key in ("basic", "headers") if key in send}
        self.notes["recipe", "login", "steps"] = "guessed: a nonce needs a session to live in, which this begins"
        request = f"{seen.method} {place_of(seen.url, self.base)}"
        return {"steps": [{"request": request} | shown | {"ok": {"status": seen.status}, "fatal": {"status": 401}}]}

    def _outcome(self, number: int, at: Where) -> dict[str, Any]:
        """Return what a step's answer must be, and what it gives."""
        anatomy, seen = self.anatomy, self.anatomy.run.all[number]
        get = obtained(anatomy, number, self.names)
        if number == anatomy.login:
            for value in told(seen):
                if value.kind == "json" and value.last in _LIFETIME and value.text.isdigit():
                    get["expires_in"] = source_of(value, seen)
        found: dict[str, Any] = {"optional": True} if number in anatomy.prepares else {}
        if number in anatomy.prepares:
            self.notes[(*at, "optional")] = "guessed: it came right behind the login, and may make the session ready"
        ok: dict[str, Any] = {"status": seen.status}
        if seen.status in _MOVED and (location := field_of(seen.answer_fields, "location")):
            ok["location"] = f"*{re.sub('[{}]', '?', without_parameters(urlsplit(location).path, '*'))}"
        if number == anatomy.login and (told_by := says_fine(seen)):
            ok["json"] = told_by
            self.notes[(*at, "ok")] = "guessed: what the answer calls itself when the login is granted"
        found["ok"] = ok
        if get:
            found["get"] = get
            self.notes[(*at, "get")] = "seen: later requests show it"
        if number == anatomy.login:
            refused: list[dict[str, Any]] = [{"status": [400, 401, 403]}]
            if seen.status in _MOVED:
                refused.append({"status": 200})  # the page again
            if len(ok) > 1:
                # Only what speaks as the login does: a page of a system that is being mended is no refusal.
                spoken = {"type": "json"} if "json" in ok else {}
                refused.append(
                    {"status": seen.status} | spoken | {"not": {key: ok[key] for key in ok if key != "status"}}
                )
            found["fatal"] = refused
            self.notes[(*at, "fatal")] = "guessed: a wrong password was not seen; after it no login is tried again"
        return found

    def _csrf(self) -> dict[str, Any]:
        anatomy = self.anatomy
        nonces = [each for each in anatomy.carried if each.nonce]
        if not nonces or anatomy.nonce_step is None:
            return {}
        send = send_of(anatomy, self.names, nonces)
        send.pop("cookies", None)
        step = step_of(anatomy, anatomy.nonce_step, self.names, self.base)
        # The session's own fields are shown by the login.
        shown = {each.echo.place.name.lower() for each in anatomy.carried} | {"authorization"}
        nonce = nonces[0].echo.origin.name.lower()
        headers = step.pop("headers", {})
        kept = {key: value for key, value in headers.items() if key.lower() not in shown or key.lower() == nonce}
        step.pop("basic", None)
        answer = anatomy.run.all[anatomy.nonce_step]
        step |= ({"headers": kept} if kept else {}) | {"ok": {"status": answer.status}}
        step["get"] = obtained(anatomy, anatomy.nonce_step, self.names)
        send["methods"] = list(_WRITES)
        if anatomy.jar:
            send["cookies"] = "jar"
        name = nonces[0].echo.place.name
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
        anatomy = self.anatomy
        if anatomy.logout is None:
            self.unseen.append("a logout: sessions are left to end by themselves")
            return {}
        seen = anatomy.run.all[anatomy.logout]
        step = step_of(anatomy, anatomy.logout, self.names, self.base) if anatomy.login is not None else {}
        shown = {each.echo.place.name.lower() for each in anatomy.carried} | {"authorization"}
        headers = {key: value for key, value in step.pop("headers", {}).items() if key.lower() not in shown}
        if step:
            step = {**step, **({"headers": headers} if headers else {}), "ok": {"status": ["2xx", "3xx", 401]}}
        self.notes["recipe", "logout"] = "seen"
        self.found.append(f"logout: {seen.method} {urlsplit(seen.url).path}")
        return step

    def _tell_the_rest(self) -> None:
        bodies = {each.echo.place.name: each for each in self.anatomy.carried if each.echo.place.kind in BODY}
        if len({each.echo.origin.text for each in bodies.values()}) > 1:
            self.unseen.append(
                "which of several values in bodies a placeholder stands for: only the first is put there"
            )
        words = self.anatomy.words()
        if any(word in self.anatomy.run.all[number].path for word in words for number in self.anatomy.ordinary):
            self.unseen.append("how a session in a path is carried: no recipe can put it there")
        self.unseen.append("what the script computes: signatures, times, and what is sent in other forms than it came")
