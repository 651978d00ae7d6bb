"""A recipe bound to an upstream: its variables have values, and its templates a meaning."""

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sidecar.auth.grant import Values
from sidecar.auth.recipes.templates import Lookup, Unset, names_in, render, text
from sidecar.errors import ConfigurationError
from sidecar.policy.routing import Origin
from sidecar.secret import Secret
from sidecar.settings import Recipe, SecretReference
from sidecar.settings.recipe import Layer, Match, Send
from sidecar.settings.values import parse_duration

STATELESS = {"=": Secret("true")}
"""The values of a credential that is nothing but what is configured."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The *recipe* of the upstream *name*, with its *credential* and the *origin* of its base URL.

    *slot*: the number of the session in a pool, "" where there is one.

    Secrets are read by `refresh`, and by the first who needs one; between, what was read last counts.
    """

    name: str
    recipe: Recipe
    credential: Mapping[str, str | int | bool | SecretReference]
    origin: Origin
    slot: str = ""
    _read: dict[str, Secret] = field(default_factory=dict, repr=False, compare=False)

    @property
    def sends(self) -> tuple[Send, ...]:
        """How the session is shown, and the part that lives in it, if there is one."""
        recipe = self.recipe
        return (recipe.login.send, recipe.csrf.send) if recipe.csrf is not None else (recipe.login.send,)

    @property
    def secrets(self) -> dict[str, SecretReference]:
        """The secrets of the credential by their names."""
        return {name: value for name, value in self.credential.items() if isinstance(value, SecretReference)}

    def refresh(self) -> None:
        """Read the secrets anew; raises ConfigurationError when one cannot be read."""
        for name, reference in self.secrets.items():
            self._read[name] = _usable(reference.read(), f"upstreams.{self.name}.credential.{name}")

    def __post_init__(self) -> None:
        """Raise ConfigurationError for a plain value that would make another line of what it is put into."""
        for name, value in self.credential.items():
            if isinstance(value, str) and not value.isprintable():
                raise ConfigurationError(
                    f"upstreams.{self.name}.credential.{name}: control characters; expected one line"
                )

    def lookup(self, more: Lookup | None = None) -> Lookup:
        """Return what gives the values of names: the built-in ones, the credential's, and what *more* knows."""

        def look(name: str) -> Any:
            if (found := self._built_in(name)) is not None:
                return found
            if more is not None:
                try:
                    return more(name)
                except Unset:
                    pass
            return self._configured(name)

        return look

    def public(self) -> dict[str, Any]:
        """Return the credential's values that are no secrets, defaults among them."""
        found = {}
        for name, variable in self.recipe.vars.items():
            if not variable.secret:
                try:
                    found[name] = self._configured(name)
                except Unset:
                    continue
        return found

    def identity(self) -> str:
        """Return what the credential is, as canonical text without secrets; the path of the base URL is no part of it.

        Where nothing but secrets tells one from another, their hash does. Raises ConfigurationError when that cannot be
        read.
        """
        parts: dict[str, Any] = {
            "recipe": self.recipe.id,
            "origin": [self.origin.scheme, self.origin.host, self.origin.port],
            "credential": self.public(),
        }
        if self.slot not in ("", "0"):  # the first is whose the session was before there were several
            parts["slot"] = self.slot
        if not self._names_somebody():
            secrets = {name: reference.read().reveal() for name, reference in self.secrets.items()}
            parts["secrets"] = hashlib.sha256(json.dumps(secrets, sort_keys=True).encode()).hexdigest()
        return json.dumps(parts, sort_keys=True)

    def public_texts(self) -> dict[str, str]:
        """Return what anybody may read, by name: the built-in values, and plain ones of the credential."""
        found = {name: str(self._built_in(name)) for name in ("base", "origin", "host", "slot")}
        for name, variable in self.recipe.vars.items():
            value = self.credential.get(name, variable.default)
            if not variable.secret and isinstance(value, str | int) and not list(names_in(value)):
                found[name] = str(value)
        return found

    def is_kept(self, text: str) -> bool:
        """Tell whether a secret that was read stands in *text*, in whatever case."""
        return any(secret and secret.reveal().casefold() in text.casefold() for secret in self._read.values())

    def duration(self, given: float | str | None) -> float | None:
        """Return a duration of the recipe in seconds, None for None; raises ConfigurationError for what is none."""
        if given is None or isinstance(given, float):
            return given
        try:
            return parse_duration(text(render(given, self.lookup())))
        except (Unset, ValueError):
            raise ConfigurationError(
                f"upstreams.{self.name}: login.life is {given}, which gives no duration; expected one such as 20m"
            ) from None

    def _names_somebody(self) -> bool:
        """Tell whether a value that the recipe wants, and that is no secret, says whose the credential is."""
        return any(
            not variable.secret and variable.default is None and name in self.credential
            for name, variable in self.recipe.vars.items()
        )

    def fingerprint(self, salt: str) -> str:
        """Return what changes with any of the values; a secret that cannot be read is a value of its own."""
        values = {name: value for name, value in self.credential.items() if not isinstance(value, SecretReference)}
        parts = [values, {name: _current(reference.read) for name, reference in self.secrets.items()}]
        return hmac.new(salt.encode(), json.dumps(parts, sort_keys=True).encode(), "sha256").hexdigest()

    def _built_in(self, name: str) -> str | None:
        origin = self.origin
        return {
            "base": origin.url,
            "origin": f"{origin.scheme}://{origin.authority}",
            "host": origin.host,
            "slot": self.slot,
        }.get(name)

    def _configured(self, name: str) -> Any:
        variable = self.recipe.vars.get(name)
        if variable is None:
            raise Unset
        given = self.credential.get(name)
        if isinstance(given, SecretReference):
            if name not in self._read:
                self.refresh()
            return self._read[name]
        if given is not None:
            return given
        if variable.default is None or name in names_in(variable.default):
            raise Unset
        return render(variable.default, self.lookup())


def dead_of(layer: Layer) -> tuple[Match, ...]:
    """Return what the layer's answers of a dead credential are: 401 unless it says, if it is obtained at all."""
    if layer.dead is not None:
        return layer.dead
    return (Match(status=(401,)),) if layer.steps or layer.oauth2 is not None else ()


def known(values: Values) -> Lookup:
    """Return what gives the values of a credential: what `get` extracted."""

    def look(name: str) -> Any:
        if name not in values or name.startswith("="):
            raise Unset
        return json.loads(values[name].reveal())

    return look


def as_values(variables: Mapping[str, Any]) -> dict[str, Secret]:
    """Return *variables* as values of a credential."""
    return {name: Secret(json.dumps(plain(value), separators=(",", ":"))) for name, value in variables.items()}


def plain(value: Any) -> Any:
    """Return *value*, a secret's text for a secret."""
    return text(value) if isinstance(value, Secret) else value


def _usable(secret: Secret, where: str) -> Secret:
    if not secret.reveal().isprintable():
        raise ConfigurationError(f"{where}: the secret has control characters in it; expected one line of text")
    return secret


def _current(read: Callable[[], Secret]) -> str:
    try:
        return "=" + read().reveal()
    except ConfigurationError:
        return "!"
