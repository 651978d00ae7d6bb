"""The configuration of one upstream: every key, its default, and what cannot be combined."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from sidecar.policy.routing import Origin, parse_base_url
from sidecar.settings.base import Model
from sidecar.settings.credential import check_credential
from sidecar.settings.names import LocalAddress, MediaType, Method, Name, Network, TargetPath
from sidecar.settings.oauth2 import OAuth2
from sidecar.settings.presets import extended, preset_data, preset_names, preset_text
from sidecar.settings.recipe import Recipe
from sidecar.settings.secrets import SecretReference
from sidecar.settings.values import Duration, Margin, MarginValue, Share, Size

_PLACES = "{file: PATH}, {env: NAME}, {command: [ARG...]}, {keyring: SERVICE/USER} or {value: TEXT}"


def _one_session(value: int) -> int:
    if value != 1:
        raise ValueError("expected 1: this version keeps one session for each upstream")
    return value


class Renew(Model):
    margin: MarginValue = Margin(0.2, None)
    min_interval: Duration = 60.0
    check_every: Duration = 300.0
    timeout: Annotated[Duration, Field(gt=0)] = 10.0
    startup: Literal["required", "optional"] = "required"


class Strip(Model):
    headers: tuple[Name, ...] = ()
    cookies: tuple[Name, ...] = ()
    query: tuple[Name, ...] = ()
    keep: tuple[Name, ...] = ()

    @model_validator(mode="after")
    def _ours_goes(self) -> Self:
        if {"host", "content-length"} & {name.lower().replace("_", "-") for name in self.headers}:
            raise ValueError("headers cannot name host or content-length: the message would be another one without")
        if {"authorization", "proxy-authorization"} & {name.lower().replace("_", "-") for name in self.keep}:
            raise ValueError("keep cannot name authorization: the sidecar sends exactly one, its own")
        return self

    @model_validator(mode="after")
    def _kept_or_not(self) -> Self:
        kept = {name.lower().replace("_", "-") for name in self.keep}
        for key, names in (("headers", self.headers), ("query", self.query)):
            if both := sorted(name for name in names if name.lower().replace("_", "-") in kept):
                raise ValueError(f"{key} and keep both name {both[0]}; expected each name in one of them")
        return self


class Retry(Model):
    attempts: Annotated[int, Field(ge=1, le=10)] = 3
    statuses: tuple[Annotated[int, Field(ge=400, le=599)], ...] = (429, 502, 503, 504)
    methods: tuple[Method, ...] = ("GET", "HEAD", "OPTIONS", "PUT")
    unapplied: tuple[Annotated[int, Field(ge=400, le=599)], ...] = (421, 425, 429)
    base: Annotated[Duration, Field(gt=0)] = 0.1
    cap: Duration = 20.0
    max_retry_after: Duration = 30.0
    budget: Annotated[Share, Field(validate_default=False)] = 0.2

    @model_validator(mode="after")
    def _base_below_cap(self) -> Self:
        if self.base > self.cap:
            raise ValueError("base is over cap, the longest random wait; expected a base of at most cap")
        return self


class Timeouts(Model):
    token: Annotated[Duration, Field(gt=0)] = 30.0
    connect: Annotated[Duration, Field(gt=0)] = 5.0
    first_byte: Annotated[Duration, Field(gt=0)] = 3600.0
    idle: Annotated[Duration, Field(gt=0)] = 3600.0

    @model_validator(mode="before")
    @classmethod
    def _no_total(cls, data: Any) -> Any:
        if isinstance(data, dict) and "total" in data:
            raise ValueError(
                "total is gone: no time bounds a whole request; the wait for a credential has its own, token"
            )
        return data


class Breaker(Model):
    failures: Annotated[Share, Field(gt=0, validate_default=False)] = 0.5
    min_requests: Annotated[int, Field(ge=1)] = 20
    window: Annotated[Duration, Field(gt=0)] = 10.0
    open_for: Annotated[Duration, Field(gt=0)] = 15.0
    unauthorized: Annotated[int, Field(ge=1)] = 5


class Sessions(Model):
    pool: Annotated[int, AfterValidator(_one_session)] = 1
    max_in_flight: Annotated[int, Field(ge=0)] = 0


class Keepalive(Model):
    path: TargetPath
    every: Annotated[Duration, Field(gt=0)] = 600.0
    only_if_used_within: Annotated[Duration, Field(gt=0)] = 3600.0

    @model_validator(mode="after")
    def _comes_in_time(self) -> Self:
        if self.every >= self.only_if_used_within:
            raise ValueError("every is not below only_if_used_within, so that none would be sent; expected less")
        return self


class Replay(Model):
    memory: Size = 1 << 20
    spool: Size = 256 << 20


class Links(Model):
    forwarded: bool = False
    rewrite: tuple[MediaType, ...] = ()


class Tls(Model):
    ca: Path | None = None
    client_cert: Path | None = None
    client_key: SecretReference | None = None

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.client_cert is None) != (self.client_key is None):
            raise ValueError("client_cert and client_key go together")
        return self


def _preset(name: str) -> str:
    preset_text(name)
    return name


Given = SecretReference | str | int | bool
"""A value of `credential`."""


class Upstream(Model):
    base_url: str | None = None
    insecure_http: bool = False
    listen: LocalAddress | None = None
    oauth2: OAuth2 | None = None
    preset: Annotated[str, AfterValidator(_preset), Field(json_schema_extra={"enum": list(preset_names())})] | None = (
        None
    )
    recipe: (
        Annotated[
            Recipe,
            BeforeValidator(extended),
            PlainSerializer(lambda recipe: recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True)),
        ]
        | None
    ) = None
    credential: dict[str, Given] = Field(default={})
    renew: Renew = Renew()
    strip: Strip = Strip()
    retry: Retry = Retry()
    timeout: Timeouts = Timeouts()
    breaker: Breaker = Breaker()
    sessions: Sessions = Sessions()
    keepalive: Keepalive | None = None
    replay: Replay = Replay()
    tls: Tls = Tls()
    addresses: tuple[Network, ...] = ()
    read_only: bool = False
    via: bool = False
    links: Links = Links()

    @cached_property
    def origin(self) -> Origin:
        """The base URL, parsed."""
        return parse_base_url(self.base_url or (self.system and self.system.base) or "")

    @cached_property
    def system(self) -> Recipe | None:
        """The recipe, whether it is one of ours or stands here; None with `oauth2`."""
        if self.preset is not None:
            return Recipe.model_validate(preset_data(self.preset))
        return self.recipe

    @field_validator("credential", mode="before")
    @classmethod
    def _references(cls, given: Any) -> Any:
        """Read mappings as secrets: an error in one is told by its own words, and shows nothing of it."""
        if not isinstance(given, dict):
            return given
        found = {}
        for name, value in given.items():
            try:
                found[name] = SecretReference.model_validate(value) if isinstance(value, dict) else value
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False, include_context=False)[0]
                said = (
                    "unknown key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
                )
                raise ValueError(f"{name}: {said}; expected {_PLACES}") from None
        return found

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = (self.oauth2, self.preset, self.recipe)
        if sum(way is not None for way in ways) != 1:
            raise ValueError("expected one of oauth2: {token_url, client_id, ...}, preset: NAME and recipe: {...}")
        if self.system is None and self.credential:
            raise ValueError("credential belongs to a preset or a recipe; expected the keys of oauth2")
        if self.system is not None:
            check_credential(self.system, self.credential)
        if self.base_url is None and (self.system is None or self.system.base is None):
            raise ValueError("base_url: missing; expected a URL such as https://plm.example.com")
        return self

    @model_validator(mode="after")
    def _safe(self) -> Self:
        try:
            origins = [("base_url", self.origin)]
        except ValueError as error:
            raise ValueError(f"base_url: {error}") from None
        if self.oauth2 is not None:
            origins.append(("oauth2.token_url", self.oauth2.origin))
        for key, origin in origins:
            if origin.scheme == "http" and not self.insecure_http:
                raise ValueError(
                    f"{key} is http://, which would send the credential in clear; use https:// or insecure_http: true"
                )
        if self.links != Links() and self.listen is None:
            raise ValueError("links needs listen: it is about answers of the reverse port")
        if self.oauth2 is not None and self.oauth2.client_auth == "tls_client_auth" and self.tls.client_cert is None:
            raise ValueError("client_auth tls_client_auth needs tls.client_cert and tls.client_key")
        return self
