"""From an upstream's settings to its issuer and its dialect, whatever it logs in with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sidecar.auth.dialect import Dialect, oauth2_dialect
from sidecar.auth.oauth2 import OAuth2Issuer
from sidecar.auth.tls import Contexts
from sidecar.auth.watch import Watch
from sidecar.clock import Clock
from sidecar.errors import ConfigurationError
from sidecar.policy.idleness import Use
from sidecar.settings import OAuth2, Recipe, Settings, Upstream
from sidecar.tokens.protocols import Issuer


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """How one upstream is logged in to, and spoken with.

    *issuers*: one for each session of the pool. *speak*: from the placeholders that stand for the credential on the
    client's side to the dialect. *logins*: the requests of clients that are answered here at other origins, a text
    each, the same for the same ones. *use*: the request that keeps its session alive, as the recipe has it, None: none;
    *probe*: the same where it is never sent by itself. *oauth2*: what the issuer is a token endpoint by, None: it is a
    login.
    """

    issuers: tuple[Issuer, ...]
    speak: Callable[[Sequence[str]], Dialect]
    logins: frozenset[str]
    use: Use | None
    probe: Use | None
    oauth2: OAuth2 | None

    @property
    def issuer(self) -> Issuer:
        """The issuer of the first session."""
        return self.issuers[0]


def system_of(
    name: str, upstream: Upstream, clock: Clock, contexts: Contexts | None, watch: Watch | None = None
) -> System:
    """Return the system of the upstream *name*; raises ConfigurationError, also for a recipe that cannot be used.

    *watch* is told of each request of a login, and its answer.
    """
    recipe = upstream.system
    if recipe is not None:
        return _by_recipe(name, upstream, recipe, clock, contexts, watch)
    if (oauth2 := upstream.oauth2) is None:
        raise ConfigurationError(f"upstreams.{name}: expected one of oauth2, preset and recipe")
    return System(
        issuers=tuple(
            OAuth2Issuer(oauth2, tls=upstream.tls, clock=clock, contexts=contexts, slot=slot, watch=watch)
            for slot in range(upstream.sessions.pool)
        ),
        speak=lambda _: oauth2_dialect(upstream.strip),
        logins=frozenset(),
        use=None,
        probe=None,
        oauth2=oauth2,
    )


def _by_recipe(
    name: str, upstream: Upstream, recipe: Recipe, clock: Clock, contexts: Contexts | None, watch: Watch | None
) -> System:
    # Late: who has no recipe is spared the memory.
    from sidecar.auth.recipes.bound import Bound
    from sidecar.auth.recipes.dialect import recipe_dialect
    from sidecar.auth.recipes.keepalive import request_of, use_of
    from sidecar.auth.recipes.login import RecipeIssuer
    from sidecar.auth.recipes.oauth2 import judge_of, oauth2_settings
    from sidecar.auth.recipes.shims import logins_of

    pool = upstream.sessions.pool
    slots = [str(slot) for slot in range(pool)] if pool > 1 else [""]
    bounds = [Bound(name, recipe, upstream.credential, upstream.origin, slot) for slot in slots]
    bound = bounds[0]
    oauth2 = oauth2_settings(bound) if recipe.login.oauth2 is not None else None
    issuers: tuple[Issuer, ...]
    if oauth2 is not None:
        judge = judge_of(bound)
        issuers = tuple(
            OAuth2Issuer(oauth2, tls=upstream.tls, clock=clock, contexts=contexts, judge=judge, slot=slot, watch=watch)
            for slot in range(pool)
        )
    else:
        issuers = tuple(
            RecipeIssuer(each, tls=upstream.tls, clock=clock, contexts=contexts, watch=watch) for each in bounds
        )
    return System(
        issuers=issuers,
        speak=lambda placeholders: recipe_dialect(bound, upstream.strip, tuple(placeholders)),
        logins=logins_of(bound),
        use=use_of(bound),
        probe=request_of(bound),
        oauth2=oauth2,
    )


def doubts_of(settings: Settings) -> list[str]:
    """Return what the recipes of upstreams say in vain, each a key path and a sentence."""
    from sidecar.auth.recipes.bound import Bound
    from sidecar.auth.recipes.lint import lint

    return [
        f"upstreams.{name}.recipe.{doubt}"
        for name, upstream in settings.upstreams.items()
        if upstream.recipe is not None and upstream.system is not None
        for doubt in lint(Bound(name, upstream.system, upstream.credential, upstream.origin))
    ]


def hosts_of(settings: Settings, clock: Clock) -> list[tuple[str, int]]:
    """Return host and port of every upstream, and of every origin that one answers logins of its clients for."""
    found: dict[tuple[str, int], None] = {}
    for name, upstream in settings.upstreams.items():
        found[(upstream.origin.host, upstream.origin.port)] = None
        if upstream.system is not None:
            lends = system_of(name, upstream, clock, None).speak(("",)).lends
            found |= {(origin.host, origin.port): None for origin in lends}
    return list(found)
