"""What recipes say of messages: how one is recognised, and where a value is in it (docs/recipes.md).

Where a key is named like a method of the models, its attribute has a `_` behind it.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from sidecar.settings.base import Model
from sidecar.settings.syntax import (
    Capture,
    Pointer,
    Re2,
    Status,
    TimeFormat,
    XmlPath,
    request_line,
    several,
)

Template = Any
"""Text with `{name|filter}` in it, or any YAML value with such texts inside."""


class Pattern(Model):
    """A pattern in RE2 syntax, searched for."""

    regex: Re2


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
    json_: dict[Pointer, Value] = Field(default={}, alias="json")
    xml: dict[XmlPath, Value] = Field(default={})
    body: Re2 | None = None
    status: Annotated[tuple[Status, ...], BeforeValidator(several)] = ()
    type: str | None = None
    location: str | None = None
    request: "Match | None" = None
    not_: "Match | None" = Field(default=None, alias="not")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("expected at least one key; a match of nothing would hold for everything")
        return self


def _short(value: Any) -> Any:
    """Return the mapping that `PUT|POST GLOB` is short for."""
    if not isinstance(value, str):
        return value
    methods, path = request_line(value)
    return {"method": methods, "path": path}


RequestMatch = Annotated[Match, BeforeValidator(_short)]
Matches = Annotated[tuple[RequestMatch, ...], BeforeValidator(several)]
"""Any of them holds; empty: none does."""


class Source(Model):
    """Where a value is; with none of the five places, `else` alone gives it."""

    json_: Pointer | None = Field(default=None, alias="json")
    xml: XmlPath | None = None
    header: str | None = None
    cookie: str | None = None
    body: Capture | None = None
    regex: Capture | None = None
    unit: Literal["ms", "s", "m"] = "s"
    time: TimeFormat | None = None
    else_: Template = Field(default=None, alias="else")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        places = [place for place in (self.json_, self.xml, self.header, self.cookie, self.body) if place is not None]
        if len(places) > 1 or not (places or "else_" in self.model_fields_set):
            raise ValueError("expected exactly one of json, xml, header, cookie and body, or else alone")
        return self


Sources = Annotated[tuple[Source, ...], BeforeValidator(several)]
"""Tried in order."""
