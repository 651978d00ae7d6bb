"""The page of recipes is held against the models and the product."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from sidecar.settings import layers, load, messages, recipe
from sidecar.settings.base import Model
from sidecar.settings.template import BUILT_IN, FILTERS

PAGE = (Path(__file__).parents[2] / "docs/recipes.md").read_text(encoding="utf-8")
SAMPLES = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
MODELS = {
    "The recipe": recipe.Recipe,
    "vars": layers.Variable,
    "login and csrf": layers.Layer,
    "steps and logout": layers.Step,
    "pause": layers.Pause,
    "send": layers.Send,
    "send.json": layers.SetJson,
    "life": layers.Life,
    "Matches": messages.Match,
    "Values of a match": messages.Pattern,
    "Sources": messages.Source,
    "shim": recipe.Shim,
    "reply": recipe.Reply,
    "strip": recipe.StripMore,
    "peek": recipe.Peek,
    "sessions": recipe.RecipeSessions,
    "stolen": recipe.Stolen,
    "quota": recipe.Quota,
    "throttle": recipe.Throttle,
    "retry": recipe.RepeatMore,
    "keepalive": recipe.RecipeKeepalive,
    "journal": recipe.JournalReads,
    "facts": recipe.Facts,
}


def keys(model: type[BaseModel]) -> list[str]:
    """Return the keys of a model as they are written."""
    return sorted(field.alias or name for name, field in model.model_fields.items())


def test_every_key_is_documented_and_every_documented_key_exists() -> None:
    """Each model has a table of its own, with all of its keys and no other."""
    tables = re.findall(r"^### (.+)\n\n\| key \| what it is \|\n\|---\|---\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    documented = {heading: sorted(re.findall(r"^\| `(\w+)`", rows, re.MULTILINE)) for heading, rows in tables}
    assert documented == {heading: keys(model) for heading, model in MODELS.items()}


def test_no_model_is_forgotten() -> None:
    """Every model of a recipe has its table."""
    found = [each for module in (layers, messages, recipe) for each in vars(module).values()]
    models = {each for each in found if isinstance(each, type) and issubclass(each, Model)}
    models.discard(Model)
    assert models == set(MODELS.values())


def test_filters_and_built_in_names_are_listed() -> None:
    """The row of templates has all of them."""
    (row,) = re.findall(r"^\| template \|.*$", PAGE, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) >= BUILT_IN | FILTERS


@pytest.mark.parametrize("text", SAMPLES)
def test_samples_are_accepted(text: str) -> None:
    """Each configuration of the page loads as it stands."""
    data: dict[str, Any] = YAML(typ="safe", pure=True).load(text)
    assert load(base=data, environ={"AUTH_SIDECAR_CONFIG": ""}).upstreams
