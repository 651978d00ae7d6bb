"""The templates of recipes: what stands between braces."""

import pytest

from sidecar.settings.template import Field, fields, parse


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ()),
        ("plain", ("plain",)),
        ("{base}/login", (Field("base"), "/login")),
        ("{a}{b}", (Field("a"), Field("b"))),
        ("x {user|lower|url} y", ("x ", Field("user", ("lower", "url")), " y")),
        ("{request:/body/a~1b}", (Field("request:/body/a~1b"),)),
    ],
)
def test_a_template_is_literal_text_and_fields(text: str, parts: tuple[str | Field, ...]) -> None:
    """The parts come in order, and literal text is kept as it stands."""
    assert parse(text) == parts
    assert fields(text) == tuple(part for part in parts if isinstance(part, Field))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{base", "{ without its }"),
        ("base}", "} without its {"),
        ("{a}}", "} without its {"),
        ("{}", "is no name"),
        ("{a b}", "is no name"),
        ("{{a}}", "is no name"),
        ("{a|rot13}", "unknown filter 'rot13'"),
        ("{a|}", "unknown filter ''"),
    ],
)
def test_a_malformed_template_is_told_of(text: str, told: str) -> None:
    """A brace that encloses no name, or a filter that does not exist, is an error in words."""
    with pytest.raises(ValueError, match=r".") as raised:
        parse(text)
    assert told in str(raised.value)
