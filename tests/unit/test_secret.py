"""A secret shows itself where it is revealed and nowhere else; no event has a place for one."""

import copy
import dataclasses
import json
import logging
import pickle
import pprint
import traceback
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.events import Event, Ready, RequestDone
from sidecar.secret import Secret
from tests.canary import WORD, canary

SHOWN = {
    "str": str,
    "repr": repr,
    "format": "{}".format,
    "format with a width": "{:>40}".format,
    "format of the repr": "{!r}".format,
    "percent": lambda secret: "%s %r" % (secret, secret),  # noqa: UP031
    "in a list": lambda secret: str([secret]),
    "in a dict": lambda secret: str({"password": secret}),
    "pretty": pprint.pformat,
    "ascii": ascii,
    "log record": lambda secret: logging.LogRecord("x", 20, "f", 1, "%s", (secret,), None).getMessage(),
}


@pytest.mark.parametrize("show", SHOWN.values(), ids=SHOWN)
def test_it_cannot_be_printed(show) -> None:
    """No way to make a text of it gives the value away, or how long it is."""
    shown = show(Secret(canary("password")))

    assert WORD not in shown
    assert shown == show(Secret("x"))
    assert "Secret(***)" in shown


def test_a_format_specification_is_ignored() -> None:
    """A specification that cuts or pads cannot tell anything."""
    assert f"{Secret(canary('password')):.2}" == "Secret(***)"


@pytest.mark.parametrize("carry", [pickle.dumps, copy.copy, copy.deepcopy, json.dumps, bytes])
def test_it_cannot_be_carried_off(carry) -> None:
    """Pickling, copying and JSON fail, with a message that does not hold the value."""
    with pytest.raises(TypeError) as caught:
        carry(Secret(canary("password")))

    assert WORD not in "".join(traceback.format_exception(caught.value))


def test_pickling_says_what_to_do() -> None:
    """The error names the way out."""
    with pytest.raises(TypeError, match="cannot be pickled or copied; pass the object itself"):
        pickle.dumps(Secret(canary("password")))


def test_a_dataclass_that_holds_one_can_be_shown() -> None:
    """A record may be logged whole, its secret stays hidden."""

    @dataclasses.dataclass
    class Record:
        token: Secret

    assert WORD not in repr(Record(Secret(canary("token"))))


@given(st.text())
def test_reveal_gives_the_value(value: str) -> None:
    """What went in comes out, whatever it is."""
    assert Secret(value).reveal() == value


@given(st.text(), st.text())
def test_equality_is_that_of_the_values(one: str, other: str) -> None:
    """Two secrets are equal when their values are, lone surrogates included, and then they hash alike."""
    assert (Secret(one) == Secret(other)) is (one == other)
    assert Secret(one) == Secret(one)
    assert hash(Secret(one)) == hash(Secret(one))


def test_equality_can_tell_what_is_no_text() -> None:
    """A value that came from bytes that are not UTF-8 is compared, not an error that holds it."""
    assert Secret("\udcff") == Secret("\udcff")
    assert Secret("\udcff") != Secret("\udcfe")


@pytest.mark.parametrize("other", [canary("password"), canary("password").encode(), None, 0])
def test_it_equals_nothing_else(other: object) -> None:
    """Not even its own value: a comparison with a plain string is a mistake, not an oracle."""
    assert Secret(canary("password")) != other


def test_equality_takes_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison is that of hmac, not one that stops at the first difference."""
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda one, other: compared.append((one, other)) or True)

    assert Secret("a") == Secret("b")
    assert compared == [(b"a", b"b")]


def test_different_secrets_are_different_keys() -> None:
    """They can be told apart in a set."""
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2


def test_an_empty_secret_is_false() -> None:
    """`if secret` asks whether there is one."""
    assert not Secret("")
    assert Secret(" ")


def test_it_has_no_other_place() -> None:
    """Without a `__dict__` nothing can be hung on it, and `vars` shows nothing."""
    with pytest.raises(TypeError):
        vars(Secret(canary("password")))


@pytest.mark.parametrize("event", get_args(Event))
def test_an_event_is_a_frozen_record_of_plain_values(event) -> None:
    """Numbers, short texts and addresses: there is no field for a secret, headers or a body."""
    types = {field.type for field in dataclasses.fields(event)}

    assert event.__dataclass_params__.frozen
    assert event.__dataclass_params__.kw_only
    assert not hasattr(event, "__dict__") or "__slots__" in vars(event)
    assert types <= {str, int, float, bool, float | None, tuple[str, ...], dict[str, str]}


def test_an_event_cannot_change() -> None:
    """What was reported stays what it was."""
    event = Ready(addresses={"proxy": "127.0.0.1:8080"}, version="1")

    with pytest.raises(dataclasses.FrozenInstanceError):
        event.version = "2"
    assert "query" not in {field.name for field in dataclasses.fields(RequestDone)}
