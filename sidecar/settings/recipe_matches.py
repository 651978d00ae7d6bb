"""What a recipe may say of messages: what one is, and where a value is in it."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from sidecar.settings.base import Model


def several(value: Any) -> Any:
    """Return what may stand alone as the only one of several."""
    return value if isinstance(value, list | tuple) else (value,)


Template = Any
"""Text with `{name|filter}` in it, or any YAML value with such texts inside."""


class Pattern(Model):
    """A pattern in RE2 syntax, searched for."""

    regex: str


Scalar = str | int | float | bool | None
Value = Pattern | Scalar | tuple[Pattern | Scalar, ...]
"""What something must be: equal to the literal, to any of them, or matching the pattern."""


class Match(Model):
    """What a message is: all of the keys hold. Of a request, or of an answer and the request that it answers."""

    method: Annotated[tuple[str, ...], BeforeValidator(several)] = ()
    path: str | None = None
    query: dict[str, Value] = Field(default={})
    header: dict[str, Value] = Field(default={})
    form: dict[str, Value] = Field(default={})
    json_: dict[str, Value] = Field(default={}, alias="json")
    xml: dict[str, Value] = Field(default={})
    body: str | None = None
    status: Annotated[tuple[int | str, ...], BeforeValidator(several)] = ()
    type: str | None = None
    location: str | None = None
    request: "Match | None" = None
    not_: "Match | None" = Field(default=None, alias="not")


def _short(value: Any) -> Any:
    """Return the mapping that `PUT|POST GLOB` is short for."""
    if not isinstance(value, str):
        return value
    methods, space, path = value.partition(" ")
    if not space:
        raise ValueError("expected a mapping, or METHOD and a path such as PUT|POST {base}/logout")
    return {"method": methods.split("|"), "path": path}


RequestMatch = Annotated[Match, BeforeValidator(_short)]
Matches = Annotated[tuple[RequestMatch, ...], BeforeValidator(several)]
"""Any of them holds; empty: none does."""


class Source(Model):
    """Where a value is: in one place; with none of the five, `else` alone gives it."""

    json_: str | None = Field(default=None, alias="json")
    xml: str | None = None
    header: str | None = None
    cookie: str | None = None
    body: str | None = None
    regex: str | None = None
    unit: Literal["ms", "s", "m"] = "s"
    time: str | None = None
    else_: Template = Field(default=None, alias="else")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        places = (self.json_, self.xml, self.header, self.cookie, self.body)
        if sum(place is not None for place in places) > 1 or (not any(places) and self.else_ is None):
            raise ValueError("expected one of json, xml, header, cookie and body, or else alone")
        return self


Sources = Annotated[tuple[Source, ...], BeforeValidator(several)]
"""Tried in order."""
