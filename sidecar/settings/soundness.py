"""What a recipe must be as a whole: every name has a value, and no request leads where it may not."""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from sidecar.settings import template
from sidecar.settings.base import Model
from sidecar.settings.recipe import (
    Layer,
    Life,
    Match,
    Recipe,
    RecipeKeepalive,
    Reply,
    Send,
    SetJson,
    Source,
    Step,
    Variable,
)
from sidecar.settings.syntax import glob_names, texts

_TEMPLATES: Mapping[type[Model], frozenset[str]] = MappingProxyType(
    {
        Step: frozenset({"request", "headers", "basic", "json_", "form", "text", "set"}),
        Send: frozenset({"headers", "basic", "query"}),
        SetJson: frozenset({"set"}),
        Life: frozenset({"idle", "max_"}),
        Source: frozenset({"else_"}),
        Reply: frozenset({"headers", "cookies", "json_", "text"}),
        RecipeKeepalive: frozenset({"request", "headers", "json_", "form"}),
        Layer: frozenset({"oauth2"}),
        Variable: frozenset({"default"}),
        Recipe: frozenset({"add", "trust"}),
    }
)
_NAMES_TOO = frozenset({"headers", "cookies", "query", "add"})
"""Where the keys are templates as well."""
_GLOBS: Mapping[type[Model], frozenset[str]] = MappingProxyType(
    {Match: frozenset({"path", "location"}), Recipe: frozenset({"exclude"})}
)


def check_names(recipe: Recipe) -> None:
    """Raise ValueError, with the key path, for a malformed template and for a name that nothing gives a value."""
    layers = [layer for layer in (recipe.login, recipe.csrf) if layer is not None]
    steps = [step for layer in layers for step in layer.steps] + ([recipe.logout] if recipe.logout else [])
    given = set(recipe.vars).union(*(step.get.keys() | step.set.keys() for step in steps))
    for name in sorted(given):
        if name in template.BUILT_IN or not template.NAME.fullmatch(name):
            raise ValueError(f"{name}: expected a name of letters, digits and _, and none of those that are built in")
    known = given | template.BUILT_IN | {template.EXPIRES_IN}
    for path, text, is_glob in _templates(recipe, ""):
        try:
            fields = tuple(glob_names(text) if is_glob else template.fields(text))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        for field in fields:
            from_request = field.name.startswith(template.REQUEST) and path.startswith("shim.")
            if field.name not in known and not from_request:
                raise ValueError(
                    f"{path}: nothing gives {{{field.name}}} a value; known are {', '.join(sorted(known))}"
                )
    for step in steps:
        if step.unless is not None and step.unless not in given:
            raise ValueError(f"unless: nothing gives {step.unless} a value; expected a name of vars, get or set")


def check_origins(recipe: Recipe) -> None:
    """Raise ValueError for a request to an origin that is written out, and is neither base's nor one of `trust`."""
    trusted = {_origin(url) for url in (recipe.base, *recipe.trust) if url is not None}
    layers = {"login": recipe.login, "csrf": recipe.csrf}
    steps = {f"{name}.steps.{n}": step for name, layer in layers.items() if layer for n, step in enumerate(layer.steps)}
    if recipe.logout is not None:
        steps["logout"] = recipe.logout
    for path, step in steps.items():
        url = step.request.partition(" ")[2]
        if "://" in url and _origin(url) not in trusted:
            raise ValueError(f"{path}.request: expected {{base}}, or an origin that trust names")


def _origin(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def _templates(value: Any, above: str) -> Iterator[tuple[str, str, bool]]:
    """Yield key path and text of every template in a model, and whether it is a glob."""
    if isinstance(value, Model):
        for name in type(value).model_fields:
            item, path = getattr(value, name), f"{above}{name.rstrip('_')}"
            is_glob = name in _GLOBS.get(type(value), ())
            if is_glob or name in _TEMPLATES.get(type(value), ()):
                keys = tuple(item) if name in _NAMES_TOO and item else ()
                yield from ((path, text, is_glob) for text in (*keys, *texts(item)))
            else:
                yield from _templates(item, f"{path}.")
    elif isinstance(value, dict | tuple):
        inner: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in inner:
            yield from _templates(item, f"{above}{name}.")
