"""How requests to an upstream are treated: renewal, retries, bounds and TLS; every key and its default."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sidecar.settings.base import Model
from sidecar.settings.names import MediaType, Method, Name, TargetPath
from sidecar.settings.secrets import SecretReference
from sidecar.settings.values import Duration, Margin, MarginValue, Share, Size


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
    pool: Annotated[int, Field(ge=1, le=64)] = 1
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
