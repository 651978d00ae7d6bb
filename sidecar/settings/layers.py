"""What a recipe says of a session or token: how it is obtained, shown, and known to be dead (docs/recipes.md)."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from sidecar.settings.base import Model
from sidecar.settings.messages import Match, Matches, Sources, Template
from sidecar.settings.syntax import Pointer, RequestLine, TimeToLive
from sidecar.settings.values import Duration


class Variable(Model):
    """What `credential` accepts under a name."""

    secret: bool = False
    optional: bool = False
    type: Literal["str", "int", "bool"] = "str"
    default: str | int | bool | None = None
    example: str | int | None = None


class Pause(Model):
    """No attempt before, when an answer of a step is so: *for_* a duration, or what *wait* says in seconds."""

    when: Matches
    for_: Duration | None = Field(default=None, alias="for")
    wait: Sources = ()

    @model_validator(mode="after")
    def _how_long(self) -> Self:
        if (self.for_ is None) == (not self.wait):
            raise ValueError("expected exactly one of for and wait")
        return self


def one_body(*bodies: Any) -> None:
    """Raise ValueError if there are several bodies."""
    if sum(body is not None for body in bodies) > 1:
        raise ValueError("expected at most one body of json, form and text")


def _request_only(value: Any) -> Any:
    return {"request": value} if isinstance(value, str) else value


class Step(Model):
    """One request of a login, a refetch or a logout."""

    request: RequestLine
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

    @model_validator(mode="after")
    def _one_body(self) -> Self:
        one_body(self.json_, self.form, self.text)
        return self


StepOrLine = Annotated[Step, BeforeValidator(_request_only)]


class SetJson(Model):
    """Values that are put into the JSON body of requests that match."""

    match: Matches
    set: dict[Pointer, Template]


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

    idle: TimeToLive | None = None
    max_: TimeToLive | None = Field(default=None, alias="max")


class Layer(Model):
    """A session or token, and what it lives by. *dead* None: 401, for a layer with steps or `oauth2`."""

    steps: tuple[Step, ...] = ()
    oauth2: dict[str, Template] | None = None
    ok: Matches | None = None
    send: Send = Send()
    life: Life = Life()
    dead: Matches | None = None
    fatal: Matches = ()

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.steps and self.oauth2 is not None:
            raise ValueError("expected one of steps and oauth2")
        if self.ok is not None and self.oauth2 is None:
            raise ValueError("ok: is that of oauth2; each step has an ok of its own")
        return self
