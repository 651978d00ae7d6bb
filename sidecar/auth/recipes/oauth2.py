"""The `oauth2` block of a recipe: templates of the contract's OAuth settings, made into those."""

from typing import Any

from pydantic import ValidationError

from sidecar.auth.recipes.bound import Bound
from sidecar.auth.recipes.templates import Unset, render, text
from sidecar.errors import ConfigurationError
from sidecar.secret import Secret
from sidecar.settings import OAuth2, SecretReference


def oauth2_settings(bound: Bound) -> OAuth2:
    """Return the settings of the token endpoint; raises ConfigurationError that names the upstream and the key."""
    given = bound.recipe.login.oauth2 or {}
    found: dict[str, Any] = {}
    for name, template in given.items():
        try:
            value = render(template, _places(bound))
        except Unset:
            continue
        found[name] = {key: _shown(bound, each) for key, each in value.items()} if name == "extra" else value
    try:
        return OAuth2.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        key = ".".join(map(str, ("login", "oauth2", *first["loc"])))
        raise ConfigurationError(f"upstreams.{bound.name}: recipe {bound.recipe.id}, {key}: {first['msg']}") from None


def _shown(bound: Bound, value: Any) -> str:
    if isinstance(value, SecretReference):
        raise ConfigurationError(f"upstreams.{bound.name}: recipe {bound.recipe.id}, login.oauth2.extra holds a secret")
    return text(value)


def _places(bound: Bound) -> Any:
    """Return a lookup that gives secrets as the places where they are: they are read when they are needed."""
    look = bound.lookup()

    def places(name: str) -> Any:
        given = bound.credential.get(name)
        if isinstance(given, SecretReference):
            return given
        value = look(name)
        return SecretReference(value=value.reveal()) if isinstance(value, Secret) else value

    return places
