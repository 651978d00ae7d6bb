"""What a recipe may say: keys, types and defaults (docs/recipes.md). Data alone; `auth/recipes` gives it meaning.

Where a key is named like a method of the models, its attribute has a `_` behind it.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from sidecar.settings.base import Model
from sidecar.settings.recipe_check import check
from sidecar.settings.recipe_matches import Match, Matches, RequestMatch, Sources, Template
from sidecar.settings.values import Duration, Size


class Variable(Model):
    """What `credential` accepts under a name."""

    secret: bool = False
    optional: bool = False
    type: Literal["str", "int", "bool"] = "str"
    default: str | int | bool | None = None


class Pause(Model):
    """No attempt before, when an answer of a step is so: *for_* a duration, or what *wait* says in seconds."""

    when: Matches
    for_: Duration | None = Field(default=None, alias="for")
    wait: Sources = ()

    @model_validator(mode="after")
    def _one_time(self) -> Self:
        if (self.for_ is None) == (not self.wait):
            raise ValueError("expected one of for and wait")
        return self


def _request_only(value: Any) -> Any:
    return {"request": value} if isinstance(value, str) else value


class Step(Model):
    """One request of a login, a refetch or a logout."""

    request: str
    headers: dict[str, str] = Field(default={})
    basic: tuple[str, str] | None = None
    json_: Template = Field(default=None, alias="json")
    form: dict[str, Template] | None = None
    text: str | None = None
    follow: Annotated[int, Field(ge=0, le=20)] = 0
    set: dict[str, Template] = Field(default={})
    unless: str | None = None
    optional: bool = False
    ok: Matches = (Match(status=("2xx",)),)
    get: dict[str, Sources] = Field(default={})
    pause: tuple[Pause, ...] = ()
    fatal: Matches = ()


StepOrLine = Annotated[Step, BeforeValidator(_request_only)]


class SetJson(Model):
    """Values that are put into the JSON body of requests that match."""

    match: Matches
    set: dict[str, Template]


class Send(Model):
    """What a request carries; what is named here is taken out of the client's request first."""

    headers: dict[str, str] = Field(default={})
    basic: tuple[str, str] | None = None
    cookies: Literal["none", "jar"] = "none"
    query: dict[str, str] = Field(default={})
    json_: SetJson | None = Field(default=None, alias="json")
    methods: tuple[str, ...] | None = None


class Life(Model):
    """How long: *idle* slides with each use, *max_* counts from birth; a duration, or a template of one."""

    idle: Duration | str | None = None
    max_: Duration | str | None = Field(default=None, alias="max")


class Layer(Model):
    """A session or token, and what it lives by. *dead* None: 401, for a layer with steps or `oauth2`."""

    steps: tuple[Step, ...] = ()
    oauth2: dict[str, Template] | None = None
    ok: Matches | None = None
    send: Send = Send()
    life: Life = Life()
    dead: Matches | None = None
    fatal: Matches = ()


class Reply(Model):
    """An answer to a client's own login or logout; no more than one body."""

    status: Annotated[int, Field(ge=200, le=599)] = 200
    headers: dict[str, str] = Field(default={})
    cookies: dict[str, str] = Field(default={})
    type: str = "application/json"
    json_: Template = Field(default=None, alias="json")
    text: str | None = None


class Shim(Model):
    """A login or logout of the client's that is answered here."""

    match: RequestMatch
    reply: Reply = Reply()


class StripMore(Model):
    """More of the client's own credentials."""

    headers: tuple[str, ...] = ()
    cookies: tuple[str, ...] = ()
    query: tuple[str, ...] = ()


class Peek(Model):
    """Which answers are held back to be looked at, and for how long."""

    types: tuple[Literal["json", "xml", "html"], ...] = ("json", "xml", "html")
    max_: Size = Field(default=64 << 10, alias="max")
    wait: Duration = 1.0


class Stolen(Model):
    """A session that dies younger than *within* while in use was taken; so often in a row, no login for a while."""

    within: Duration = 10.0
    rounds: Annotated[int, Field(ge=1, le=20)] = 3


class RecipeSessions(Model):
    """What the system allows of sessions."""

    per_account: Literal["one", "many"] = "many"
    bound: Literal["address"] | None = None
    stolen: Stolen = Stolen()


class Quota(Model):
    """A day's or window's allowance. Without *exhausted* the numbers are only shown."""

    remaining: Sources = ()
    used: Sources = ()
    limit: Sources = ()
    reset: Sources = ()
    exhausted: Matches = ()


class Throttle(Model):
    """A short wait that an answer asks for."""

    when: Matches
    wait: Sources = ()
    max_: Duration = Field(default=30.0, alias="max")


class RepeatMore(Model):
    """Requests that may, or may not, be sent again whatever their method."""

    also: Matches = ()
    never: Matches = ()


class RecipeKeepalive(Model):
    """A request that keeps a session alive."""

    request: str
    headers: dict[str, str] = Field(default={})
    json_: Template = Field(default=None, alias="json")
    form: dict[str, Template] | None = None
    every: Duration = 0.0


class JournalReads(Model):
    """Requests that are reads though their method is not."""

    reads: Matches = ()


Fact = Annotated[str, BeforeValidator(str)]


class Facts(Model):
    """Who says so: the vendor's documents, its code, clients' code; or it is inferred."""

    documented: tuple[Fact, ...] = ()
    vendor_code: tuple[Fact, ...] = ()
    client_code: tuple[Fact, ...] = ()
    inferred: tuple[Fact, ...] = ()


class Recipe(Model):
    """How one system logs in, shows its session, tells of its death, and what else it wants.

    *ask*: what to ask its administrator for.
    """

    recipe: Literal[1] = 1
    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    title: str = ""
    base: str | None = None
    vars: dict[str, Variable] = Field(default={})
    login: Layer
    csrf: Layer | None = None
    trust: tuple[str, ...] = ()
    shim: tuple[Shim, ...] = ()
    swap: tuple[Literal["header", "cookie", "query", "body"], ...] = ("header",)
    add: dict[str, str] = Field(default={})
    strip: StripMore = StripMore()
    exclude: tuple[str, ...] = ()
    peek: Peek = Peek()
    sessions: RecipeSessions = RecipeSessions()
    quota: Quota | None = None
    throttle: tuple[Throttle, ...] = ()
    retry: RepeatMore = RepeatMore()
    keepalive: RecipeKeepalive | None = None
    logout: StepOrLine | None = None
    journal: JournalReads = JournalReads()
    facts: Facts = Facts()
    ask: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        check(self)
        return self
