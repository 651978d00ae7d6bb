"""The configuration of one upstream: every key, its default, and what cannot be combined."""

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import (
    Field,
    GetJsonSchemaHandler,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue

from sidecar.policy.routing import Origin, parse_base_url
from sidecar.settings.base import Model
from sidecar.settings.given import Given, given
from sidecar.settings.names import LocalAddress, Network
from sidecar.settings.oauth2 import OAuth2
from sidecar.settings.recipe import Recipe
from sidecar.settings.secrets import SecretReference
from sidecar.settings.shipped import PRESETS, preset_text, resolved
from sidecar.settings.shipped import preset as shipped
from sidecar.settings.traffic import Breaker, Keepalive, Links, Renew, Replay, Retry, Sessions, Strip, Timeouts, Tls

__all__ = [
    "Breaker",
    "Keepalive",
    "Links",
    "Renew",
    "Replay",
    "Retry",
    "Sessions",
    "Strip",
    "Timeouts",
    "Tls",
    "Upstream",
]

_CREDENTIAL = MappingProxyType({"type": "object", "examples": [{"password": {"file": "/run/secrets/password"}}]})


class RecipeSchema:
    """What editors are told of a recipe: a whole one, or what differs from the one it extends."""

    @classmethod
    def __get_pydantic_json_schema__(cls, _: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the schema."""
        extending = {"type": "object", "required": ["extends"], "properties": {"extends": {"enum": [*PRESETS]}}}
        return {"anyOf": [handler(Recipe.__pydantic_core_schema__), extending, {"type": "null"}]}


def _system(preset: str | None, recipe: Mapping[str, Any] | None) -> Recipe | None:
    if preset is not None:
        return shipped(preset)
    return None if recipe is None else resolved(recipe)


class Upstream(Model):
    preset: Annotated[str | None, WithJsonSchema({"enum": [*PRESETS, None]})] = None
    recipe: Annotated[dict[str, Any] | None, RecipeSchema] = None
    credential: Annotated[dict[str, Any], WithJsonSchema(dict(_CREDENTIAL))] = Field(default={})
    base_url: Annotated[str, Field(validate_default=True)] = ""
    insecure_http: bool = False
    listen: LocalAddress | None = None
    oauth2: OAuth2 | None = None
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

    @field_validator("preset")
    @classmethod
    def _shipped(cls, value: str | None) -> str | None:
        if value is not None:
            preset_text(value)
        return value

    @field_validator("recipe")
    @classmethod
    def _readable(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None:
            resolved(value)
        return value

    @field_validator("credential")
    @classmethod
    def _given(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Given]:
        recipe = _system(info.data.get("preset"), info.data.get("recipe"))
        if recipe is not None:
            return given(recipe, value)
        if value and {"preset", "recipe"} <= info.data.keys():
            raise ValueError("is what preset or recipe asks for; expected one of them beside it")
        return {}

    @field_validator("base_url")
    @classmethod
    def _default_base(cls, value: str, info: ValidationInfo) -> str:
        if not {"preset", "recipe"} <= info.data.keys():
            return value  # what is wrong there is told
        recipe = _system(info.data["preset"], info.data["recipe"])
        if not value and (recipe is None or recipe.base is None):
            raise ValueError("missing; expected a value")
        return value or str(recipe and recipe.base)

    @cached_property
    def system(self) -> Recipe | None:
        """The recipe of `preset` or `recipe`, whole; None with `oauth2`."""
        return _system(self.preset, self.recipe)

    @property
    def grant(self) -> str | None:
        """The OAuth 2.0 grant; None for a session."""
        if self.oauth2 is not None:
            return self.oauth2.grant
        oauth2 = self.system.login.oauth2 if self.system is not None else None
        return None if oauth2 is None else str(oauth2.get("grant", "client_credentials"))

    def _alone(self) -> str:
        """Return why there cannot be several sessions, "" where there can."""
        recipe = self.system
        if recipe is not None and recipe.sessions.per_account == "one":
            return "its account has one session only: a second login ends the first"
        if self.grant == "refresh_token":
            return "there is one first refresh token, which may be presented once"
        if recipe is not None and not recipe.login.steps and recipe.login.oauth2 is None:
            return "its credential is configured, so that there is no session to have several of"
        return ""

    def plain(self, text: str) -> str:
        """Return *text* with what `credential` and the defaults of the recipe give its templates, secrets never."""
        known = {name: variable.default for name, variable in (self.system.vars if self.system else {}).items()}
        known |= {name: value for name, value in self.credential.items() if not isinstance(value, SecretReference)}
        for name, value in known.items():
            text = text if value is None else text.replace(f"{{{name}}}", str(value))
        return text

    @property
    def shim_hosts(self) -> frozenset[str]:
        """Hosts besides that of `base_url` whose logins are answered here, as far as the configuration tells."""
        paths = [self.plain(shim.match.path or "") for shim in (self.system.shim if self.system else ())]
        urls = [path for path in paths if "://" in path and "{" not in path]
        return frozenset(filter(None, (urlsplit(url).hostname for url in urls)))

    @cached_property
    def origin(self) -> Origin:
        """The base URL, parsed."""
        return parse_base_url(self.base_url)

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if sum(way is not None for way in (self.oauth2, self.preset, self.recipe)) != 1:
            raise ValueError("expected exactly one of oauth2, preset and recipe")
        try:
            clear = [("base_url", self.origin.scheme)]
            if self.oauth2 is not None:
                clear.append(("oauth2.token_url", self.oauth2.origin.scheme))
        except ValueError as error:
            raise ValueError(f"base_url: {error}") from None
        if self.system is not None:
            clear += [("trust", self.plain(url).partition("://")[0]) for url in self.system.trust]
            token_url = str((self.system.login.oauth2 or {}).get("token_url", ""))
            clear.append(("login.oauth2.token_url", self.plain(token_url).partition("://")[0]))
        for key, scheme in clear:
            if scheme == "http" and not self.insecure_http:
                raise ValueError(
                    f"{key} is http://, which would send the credential in clear; use https:// or insecure_http: true"
                )
        if self.sessions.pool > 1 and (why := self._alone()):
            raise ValueError(f"sessions.pool is {self.sessions.pool}, and {why}; expected 1")
        if self.links != Links() and self.listen is None:
            raise ValueError("links needs listen: it is about answers of the reverse port")
        oauth2 = self.system.login.oauth2 if self.system is not None else None
        client_auth = self.oauth2.client_auth if self.oauth2 is not None else (oauth2 or {}).get("client_auth")
        if client_auth == "tls_client_auth" and self.tls.client_cert is None:
            raise ValueError("client_auth tls_client_auth needs tls.client_cert and tls.client_key")
        return self
