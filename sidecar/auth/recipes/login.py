"""A login by the steps of a recipe, as a source of credentials. Knows nothing of stores, leases and backoff."""

import asyncio
import contextlib
import math
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Any

from sidecar.auth.grant import JAR, Anew, Grant, Values
from sidecar.auth.recipes.bound import STATELESS, Bound, as_values, dead_of, known
from sidecar.auth.recipes.jar import Jar, from_text, to_text
from sidecar.auth.recipes.matches import any_of
from sidecar.auth.recipes.steps import Course, Unreached, Walk, course_of
from sidecar.auth.recipes.templates import names_in
from sidecar.auth.tls import Contexts
from sidecar.auth.watch import Watch
from sidecar.clock import Clock
from sidecar.errors import BrokenOff, CredentialRejected, IssuerUnavailable
from sidecar.secret import Secret
from sidecar.settings import Tls, prime
from sidecar.settings.recipe import Layer

_IN_A_ROW = 2
_SHARE = 0.3
"""Of the time for a login, for what follows it."""
_PAUSE = 300.0
"""Seconds without an attempt after several that nobody understood: who insists gets an account locked."""


class RecipeIssuer:
    """Obtain the credential of *bound* by its steps; without steps it is what is configured.

    Calls may overlap; that only one instance logs in at a time is the caller's business. *watch* is told of each
    request and its answer.
    """

    def __init__(
        self,
        bound: Bound,
        *,
        tls: Tls,
        clock: Clock,
        contexts: Contexts | None = None,
        watch: Watch | None = None,
    ) -> None:
        recipe = bound.recipe
        self._watch = watch
        self._bound = bound
        self._tls = tls
        self._clock = clock
        self._contexts = contexts or Contexts()
        self._who = f"login of {bound.name}"
        self._login = _courses("login", recipe.login, bound)
        self._csrf = _courses("csrf", recipe.csrf, bound)
        self._logout = course_of("logout", recipe.logout, bound) if recipe.logout else None
        self._dead = any_of(dead_of(recipe.login), bound.lookup())
        self._shows = bound.sends
        self._failures = 0

    @property
    def anew(self) -> Anew:
        """What another login costs: the session of everybody where an account has one, else nothing."""
        return Anew.EVICTS if self._bound.recipe.sessions.per_account == "one" else Anew.FREE

    def first(self) -> Secret | None:
        """Return None: nothing that is configured may be presented once only."""
        return None

    def identity(self) -> str:
        """Return what tells this credential from others; raises ConfigurationError for a secret that it needs."""
        return self._bound.identity()

    def fingerprint(self, salt: str) -> str:
        """Return what changes with any of the credential's values, keyed with *salt*."""
        return self._bound.fingerprint(salt)

    async def prime(self) -> None:
        """Run the programs that secrets come from, where that is due."""
        await prime(self._bound.secrets.values())

    async def obtain(self, kept: Secret | None, seconds: float, *, values: Values | None = None) -> Grant:
        """Log in; with *values*, get only the second part anew, in the session that they are of.

        *kept* is None. Raises CredentialRejected, IssuerUnavailable (BrokenOff after *seconds*; Lapsed when the session
        is dead) and ConfigurationError when a secret cannot be read.
        """
        del kept
        await self.prime()
        self._bound.refresh()
        if not self._login:
            return self._grant(STATELESS, {}, self._clock.now())
        try:
            async with self._walk(seconds) as walk:
                grant = await (self._log_in(walk, seconds * _SHARE) if values is None else self._refetch(walk, values))
        except CredentialRejected as refusal:
            refusal.shown = self._shows_secrets()
            for reference in self._bound.secrets.values():
                reference.doubt()
            raise
        except IssuerUnavailable as error:
            if values is None and error.retry_after is None and not isinstance(error, Unreached):
                self._failures += 1
                if self._failures >= _IN_A_ROW and self._bound.secrets:
                    error.retry_after = _PAUSE
            raise
        if values is None:
            self._failures = 0
        return grant

    def _shows_secrets(self) -> bool:
        """Tell whether requests show what is configured and secret, and not only what a login gave."""
        secret = {name for name, variable in self._bound.recipe.vars.items() if variable.secret}
        places = [(send.basic, send.headers, send.query, send.json_.set if send.json_ else {}) for send in self._shows]
        return any(name in secret for place in places for part in place for name in names_in(part))

    async def release(self, values: Values, seconds: float) -> None:
        """Log out; does nothing where the recipe has no logout. Raises IssuerUnavailable."""
        if self._logout is not None:
            async with self._walk(seconds) as walk:
                walk.jar, walk.variables = _jar(values), _variables(values)
                await walk.take(self._logout, shows=self._shows)

    async def aclose(self) -> None:
        """Nothing is held between calls."""

    @contextlib.asynccontextmanager
    async def _walk(self, seconds: float) -> AsyncIterator[Walk]:
        context: ssl.SSLContext = await self._contexts.of(self._tls)
        try:
            async with (
                asyncio.timeout(seconds),
                Walk(self._bound, context, self._who, self._clock.now, self._watch) as walk,
            ):
                yield walk
        except TimeoutError:
            raise BrokenOff(f"{self._who} gave no complete answer within {seconds:.3g} s; see renew.timeout") from None

    async def _log_in(self, walk: Walk, seconds: float) -> Grant:
        """Take the steps; *seconds*: what the second part may take, less than is left for all."""
        requested_at = self._clock.now()
        for course in self._login:
            await walk.take(course)
        # Before what follows: its failure leaves the session as good as it is.
        with contextlib.suppress(IssuerUnavailable, CredentialRejected, TimeoutError):
            async with asyncio.timeout(seconds):
                for course in self._csrf:
                    await walk.take(course, shows=self._shows[:1])
        expires_in = walk.variables.pop("expires_in", None)
        return self._grant(_values(walk), {"expires_in": expires_in} | walk.variables, requested_at)

    async def _refetch(self, walk: Walk, values: Values) -> Grant:
        requested_at = self._clock.now()
        fetched = {name for course in self._csrf for name in course.step.get}
        walk.jar = _jar(values)
        walk.variables = {name: value for name, value in _variables(values).items() if name not in fetched}
        for course in self._csrf:
            await walk.take(course, shows=self._shows[:1], dead=self._dead)
        return self._grant(_values(walk), {}, requested_at)

    def _grant(self, values: Values, variables: Mapping[str, Any], requested_at: float) -> Grant:
        life = self._bound.recipe.login.life
        told = _seconds(variables.get("expires_in"))
        longest = self._bound.duration(life.max_)
        return Grant(
            values=values,
            kept=None,
            requested_at=requested_at,
            lifetime=told or longest or math.inf,
            source="expires_in" if told else "recipe",
            how="login" if self._login else "configured",
            idle=self._bound.duration(life.idle),
        )


def _courses(name: str, layer: Layer | None, bound: Bound) -> list[Course]:
    steps = layer.steps if layer is not None else ()
    return [course_of(f"{name}.steps.{number}", step, bound) for number, step in enumerate(steps)]


def _seconds(given: Any) -> float | None:
    try:
        found = float(given)
    except (TypeError, ValueError):
        return None
    return found if 0 < found < math.inf else None


def _jar(values: Values) -> Jar:
    return from_text(values[JAR].reveal()) if JAR in values else ()


def _variables(values: Values) -> dict[str, Any]:
    look = known(values)
    return {name: look(name) for name in values if not name.startswith("=")}


def _values(walk: Walk) -> Values:
    values = as_values(walk.variables)
    return values | {JAR: Secret(to_text(walk.jar))} if walk.jar else values or dict(STATELESS)
