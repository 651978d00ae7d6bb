"""Events as log lines: one each, whole, and none that stops what it tells of."""

import io
import json

import pytest

from sidecar.events import Renewal, RequestDone, Trouble
from sidecar.observe.log import make_emit

DONE = RequestDone(
    upstream="plm",
    method="GET",
    path="/x",
    status=200,
    outcome="passed",
    attempts=1,
    renewals=0,
    retries=0,
    seconds=0.12345678,
    overhead=None,
    verdicts=("pass",),
    unauthorized=0,
    visible=False,
    refused="",
    applied="",
)
TROUBLE = Trouble(where="here", detail="it broke")


class Full(io.StringIO):
    """A stream whose disk is full."""

    def write(self, _: str, /) -> int:
        raise OSError(28, "No space left on device")


def test_json_line_has_every_field_of_its_event() -> None:
    """With the event's name, a level and a time; fractions are rounded to microseconds."""
    stream = io.StringIO()
    make_emit("json", "info", stream)(DONE)
    line = json.loads(stream.getvalue())

    assert (line["event"], line["level"]) == ("request", "info")
    assert line["seconds"] == 0.123457
    assert line["verdicts"] == ["pass"]
    assert {"timestamp", "upstream", "path", "overhead"} <= line.keys()


def test_level_hides_what_is_below_it() -> None:
    """A warning is written, a request is not."""
    stream = io.StringIO()
    emit = make_emit("json", "warning", stream)
    emit(DONE)
    emit(TROUBLE)

    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["trouble"]


def test_text_is_for_a_person() -> None:
    """No colours where nobody sees them."""
    stream = io.StringIO()
    make_emit("text", "info", stream)(TROUBLE)

    assert "it broke" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_event_is_one_line_whatever_is_in_it(log_format: str) -> None:
    """A line end in a value makes no second line, which could pass for an event of ours."""
    stream = io.StringIO()
    make_emit(log_format, "info", stream)(Trouble(where="a b", detail="one\ntwo"))

    assert stream.getvalue().count("\n") == 1
    assert "one\\ntwo" in stream.getvalue()


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_line_that_cannot_be_written_stops_nothing(log_format: str) -> None:
    """Whoever tells of an event goes on."""
    make_emit(log_format, "info", Full())(TROUBLE)


def test_refused_credential_is_an_error() -> None:
    """It needs a person; a renewal that went well does not."""
    stream = io.StringIO()
    emit = make_emit("json", "info", stream)
    for result in ("ok", "rejected", "unavailable"):
        emit(
            Renewal(
                upstream="plm",
                trigger="due",
                result=result,
                seconds=0.1,
                generation=1,
                lifetime=60.0,
                grant="",
                detail="",
            )
        )

    assert [json.loads(line)["level"] for line in stream.getvalue().splitlines()] == ["info", "error", "warning"]
