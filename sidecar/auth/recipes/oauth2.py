"""The `oauth2` block of a recipe: templates of the OAuth settings, made into those, and what its tokens must be."""

import math
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from sidecar.auth.grant import Grant
from sidecar.auth.recipes.bound import Bound
from sidecar.auth.recipes.documents import Document
from sidecar.auth.recipes.matches import Message, any_of
from sidecar.auth.recipes.templates import Unset, render, text
from sidecar.auth.recipes.words import unmet
from sidecar.auth.token_answer import Judge
from sidecar.auth.token_endpoint import Answer
from sidecar.errors import ConfigurationError, CredentialRejected
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


def judge_of(bound: Bound) -> Judge:
    """Return what takes a grant by `login.ok`, and gives it `login.life` where the token endpoint tells none.

    An answer that `ok` does not hold for is none for this upstream, as that of another tenant's: CredentialRejected.
    """
    login, lookup = bound.recipe.login, bound.lookup()
    ok = any_of(login.ok, lookup) if login.ok is not None else None

    def judge(answer: Answer, granted: Grant) -> Grant:
        message = Message(fields=answer.fields, document=Document(answer.body), status=answer.status)
        if ok is not None and login.ok is not None and not ok.holds(message, lookup):
            raise CredentialRejected(
                "",
                f"login of {bound.name}: the token endpoint granted a token, and login.ok does not hold for its answer:"
                f" {unmet(login.ok, message, lookup)}; check base_url and the token's address",
            )
        given = bound.recipe.login.oauth2 or {}
        idle, longest = bound.duration(login.life.idle), bound.duration(login.life.max_)
        lifetime, source = granted.lifetime, granted.source
        if source == "configured" and "lifetime" not in given and (longest or idle):
            lifetime, source = longest or math.inf, "recipe"
        return replace(granted, idle=idle, lifetime=lifetime, source=source)

    return judge


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
