"""What a recipe may say: keys, types and defaults (docs/recipes.md). Data alone; `auth/recipes` gives it meaning.

Where a key is named like a method of the models, its attribute has a `_` behind it.
"""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from sidecar.settings.base import Model
from sidecar.settings.layers import Layer, Life, Pause, Send, SetJson, Step, StepOrLine, Variable, one_body
from sidecar.settings.messages import Match, Matches, Pattern, RequestMatch, Scalar, Source, Sources, Template, Value
from sidecar.settings.syntax import RequestLine
from sidecar.settings.values import Duration, Size

__all__ = [
    "Fact",
    "Facts",
    "JournalReads",
    "Layer",
    "Life",
    "Match",
    "Matches",
    "Pattern",
    "Pause",
    "Peek",
    "Quota",
    "Recipe",
    "RecipeKeepalive",
    "RecipeSessions",
    "RepeatMore",
    "Reply",
    "RequestMatch",
    "Scalar",
    "Send",
    "SetJson",
    "Shim",
    "Source",
    "Sources",
    "Step",
    "StepOrLine",
    "Stolen",
    "StripMore",
    "Template",
    "Throttle",
    "Value",
    "Variable",
]


class Reply(Model):
    """An answer to a client's own login or logout; no more than one body."""

    status: Annotated[int, Field(ge=200, le=599)] = 200
    headers: dict[str, str] = Field(default={})
    cookies: dict[str, str] = Field(default={})
    type: str = "application/json"
    json_: Template = Field(default=None, alias="json")
    text: str | None = None

    @model_validator(mode="after")
    def _one_body(self) -> Self:
        one_body(self.json_, self.text)
        return self


class Shim(Model):
    """A login or logout of the client's that is answered here; *onward*: by the upstream, with the reply's fields."""

    match: RequestMatch
    reply: Reply = Reply()
    onward: bool = False

    @model_validator(mode="after")
    def _where(self) -> Self:
        if self.match.path is None:
            raise ValueError("match: expected a path, which is the login or logout that is answered here")
        if self.onward and self.reply.model_fields_set - {"headers", "cookies"}:
            raise ValueError("reply: with onward the upstream answers; expected headers and cookies alone")
        return self


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

    request: RequestLine
    headers: dict[str, str] = Field(default={})
    json_: Template = Field(default=None, alias="json")
    form: dict[str, Template] | None = None
    every: Duration = 0.0

    @model_validator(mode="after")
    def _one_body(self) -> Self:
        one_body(self.json_, self.form)
        return self


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
    """How one system logs in, shows its session, tells of its death, and what else it asks for."""

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
    myths: tuple[str, ...] = ()
