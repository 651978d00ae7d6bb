"""Metrics: which event makes which number, that labels are bounded, and that page and code agree."""

import ast
import asyncio
import fcntl
import gc
import os
import re
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from sidecar.errors import ConfigurationError
from sidecar.events import (
    BreakerChanged,
    Event,
    LifetimeDiffers,
    Ready,
    Renewal,
    RequestDone,
    StoreTrouble,
    Trouble,
    WorkerReplaced,
)
from sidecar.exchange.tally import _REFUSES_NOTHING, Tally, measured
from sidecar.observe.metrics import Metrics
from sidecar.observe.series import METRICS
from sidecar.observe.slots import Slot, Standing, shared_folder
from sidecar.policy import decide
from sidecar.policy.attempt import Attempt
from sidecar.policy.decide import NOT_RENEWED, Backoff, Pass, Renew, Told
from sidecar.policy.reading import Sign

ROOT = Path(__file__).parents[2]
PREFIX = "auth_sidecar_"


class Hands:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.ticks = 100.0
        self.wall = 1_000_000.0

    def monotonic(self) -> float:
        return self.ticks

    def now(self) -> float:
        return self.wall

    def jitter(self) -> float:
        return 0.5

    async def sleep(self, seconds: float) -> None:
        self.ticks += seconds


@dataclass
class Status:
    expires_at: float | None
    lifetime: float | None
    state: str = "valid"


def make(
    status: Mapping[str, Status] | None = None,
    in_flight: Mapping[str, int] | None = None,
    clock: Hands | None = None,
    quota: Mapping[str, float | None] | None = None,
) -> Metrics:
    return Metrics(
        status=lambda: status or {},
        in_flight=lambda: in_flight or {},
        quota=lambda: quota or {},
        clock=clock or Hands(),
    )


def request(**changes: Any) -> RequestDone:
    """Return the end of a good request, with *changes*."""
    usual = {"upstream": "plm", "method": "GET", "path": "/items", "status": 200, "outcome": "passed", "attempts": 1}
    counts = {"renewals": 0, "retries": 0, "seconds": 0.02, "overhead": 0.0007, "verdicts": ("pass",)}
    return RequestDone(
        **(usual | counts | {"unauthorized": 0, "visible": False, "refused": "", "applied": ""} | changes)
    )


def renewal(**changes: Any) -> Renewal:
    return Renewal(**({"upstream": "plm", "trigger": "due", "result": "ok", "seconds": 0.3} | changes))


def numbers(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Return every sample by its name without prefix and its labels' values, in the order of their names."""
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            values = (sample.labels[name] for name in sorted(sample.labels))
            found[(sample.name.removeprefix(PREFIX), *values)] = sample.value
    return found


def after(*events: Event) -> dict[tuple[str, ...], float]:
    """Return the numbers after *events*, without those of buckets."""
    metrics = make()
    for event in events:
        metrics.observe(event)
    return {key: value for key, value in numbers(metrics).items() if not key[0].endswith("_bucket")}


def test_a_request_counts_once_with_its_time_and_our_share() -> None:
    """What the client got, how long it took, what of that was ours, and the one attempt."""
    assert after(request(), request(method="POST", status=201, outcome="passed", seconds=1.0)) == {
        ("requests_total", "GET", "passed", "200", "plm"): 1,
        ("requests_total", "POST", "passed", "201", "plm"): 1,
        ("request_seconds_count", "plm"): 2,
        ("request_seconds_sum", "plm"): pytest.approx(1.02),
        ("overhead_seconds_count", "plm"): 2,
        ("overhead_seconds_sum", "plm"): pytest.approx(0.0014),
        ("attempts_total", "plm", "pass"): 2,
    }


def test_a_share_that_was_not_measured_is_not_counted() -> None:
    """A tunnel of an hour is no overhead of nothing, nor of an hour."""
    found = after(request(upstream="", overhead=None, verdicts=(), attempts=0))
    assert found[("request_seconds_count", "")] == 1
    assert not [key for key in found if key[0].startswith(("overhead", "attempts"))]


def test_retries_count_by_cause_and_attempts_by_verdict() -> None:
    """Every attempt has a verdict; one that led to a retry also names the cause."""
    found = after(
        request(verdicts=("503", "connect", "renew", "pass"), unauthorized=1),
        request(verdicts=("503", "pass"), refused="attempts", status=503),
    )
    assert {key: value for key, value in found.items() if key[0] in ("attempts_total", "retries_total")} == {
        ("attempts_total", "plm", "pass"): 2,
        ("attempts_total", "plm", "renew"): 1,
        ("attempts_total", "plm", "backoff"): 3,
        ("retries_total", "503", "plm"): 2,
        ("retries_total", "connect", "plm"): 1,
    }
    assert found[("retries_refused_total", "attempts", "plm")] == 1


@pytest.mark.parametrize(
    ("unauthorized", "visible", "absorbed"), [(1, False, 1), (1, True, 0), (2, True, 1), (2, False, 2)]
)
@pytest.mark.parametrize("status", [200, 401])
def test_a_refused_credential_counts_as_absorbed_or_as_seen(
    status: int, unauthorized: int, visible: bool, absorbed: int
) -> None:
    """Of several answers that refuse it the client sees the last at most, and the status may be any."""
    found = after(request(status=status, unauthorized=unauthorized, visible=visible))
    assert found[("unauthorized_total", "plm", "true")] == visible
    assert found[("unauthorized_total", "plm", "false")] == absorbed


def test_a_401_that_refuses_nothing_does_not_count() -> None:
    """Without an attempt that got one there is nothing to count."""
    assert not [key for key in after(request(status=401)) if key[0] == "unauthorized_total"]


def test_renewals_count_by_trigger_and_result_with_their_time() -> None:
    """Failed ones too."""
    found = after(renewal(), renewal(trigger="unauthorized", result="unavailable", seconds=1.0))
    assert found == {
        ("renewals_total", "ok", "due", "plm"): 1,
        ("renewals_total", "unavailable", "unauthorized", "plm"): 1,
        ("renewal_seconds_count", "plm"): 2,
        ("renewal_seconds_sum", "plm"): pytest.approx(1.3),
    }


def test_store_trouble_counts_by_operation() -> None:
    """Other trouble, and events of other kinds, make no number."""
    found = after(
        StoreTrouble(where="token store of plm", detail="read: down", upstream="plm", operation="read"),
        Trouble(where="ca", detail="old"),
        Ready(addresses={}, version="1"),
        LifetimeDiffers(upstream="plm", configured=1, granted=2, source="jwt", cause=""),
    )
    assert found == {("store_errors_total", "read", "plm"): 1}


def test_a_worker_that_took_the_place_of_another_counts() -> None:
    """It is nobody's upstream's."""
    event = WorkerReplaced(number=1, code=-9, wait=1.0)
    assert after(event, event) == {("workers_replaced_total", ""): 2}


def test_gauges_are_read_when_asked() -> None:
    """Each page shows the token and the requests as they are then."""
    clock, status, in_flight = Hands(), {"plm": Status(1_000_060.0, 90.0)}, {"plm": 2, "gone": 1}
    metrics = make(status, in_flight, clock)
    first = numbers(metrics)
    clock.wall += 61
    in_flight["plm"] = 0
    second = numbers(metrics)
    status["plm"] = Status(None, None)
    third = numbers(metrics)
    keys = [("token_expires_in_seconds", "plm"), ("token_lifetime_seconds", "plm"), ("in_flight", "plm")]
    assert [[page[key] for key in keys] for page in (first, second, third)] == [[60, 90, 2], [-1, 90, 0], [0, 0, 0]]
    assert ("in_flight", "gone") not in first


def test_one_state_of_a_credential_is_set() -> None:
    """All others are 0, so that an alert can name one; a page of an upstream without a token has them too."""
    status = {"plm": Status(None, None, "seat_taken")}
    metrics = make(status)
    states = {key[1]: value for key, value in numbers(metrics).items() if key[0] == "credential_state"}
    assert {name for name, value in states.items() if value} == {"seat_taken"}
    assert set(states) == {"none", "valid", "due", "refused", "expired", "rejected", "seat_taken"}


def test_what_is_left_of_a_quota_is_shown_where_it_is_known() -> None:
    """Nothing is made up for an upstream that tells none."""
    status = {"plm": Status(None, None), "arena": Status(None, None)}
    found = numbers(make(status, quota={"arena": 17.0, "plm": None}))
    assert found[("quota_remaining", "arena")] == 17
    assert ("quota_remaining", "plm") not in found


def test_an_upstream_that_is_gone_has_no_gauges() -> None:
    """After a reload nothing is said of what is no longer configured."""
    status = {"plm": Status(1_000_060.0, 90.0), "old": Status(1_000_060.0, 90.0)}
    metrics = make(status)
    assert ("in_flight", "old") in numbers(metrics)
    del status["old"]
    assert [key for key in numbers(metrics) if "old" in key] == []


def test_what_clients_choose_makes_no_new_series() -> None:
    """Ten thousand methods, paths and hosts are one method, one upstream, no path."""
    metrics = make()
    metrics.observe(request(method="other", upstream=""))
    before = set(numbers(metrics))
    known = len(metrics._children)
    for number in range(10_000):
        metrics.observe(request(method=f"M{number}", path=f"/{number}", upstream=""))
    found = numbers(metrics)
    assert set(found) == before
    assert found[("requests_total", "other", "passed", "200", "")] == 10_001
    assert len(metrics._children) == known > 0


@settings(max_examples=50)
@given(st.text(max_size=20), st.text(max_size=20))
def test_any_text_in_a_label_gives_a_page_that_can_be_read(upstream: str, cause: str) -> None:
    """Quotes and line ends in a label are escaped."""
    metrics = make()
    metrics.observe(request(upstream=upstream, verdicts=(f"x{cause}", "pass")))
    assert numbers(metrics)[("retries_total", f"x{cause}", upstream)] == 1


@pytest.mark.parametrize("name", ["request_seconds", "overhead_seconds", "renewal_seconds"])
def test_buckets_reach_from_a_millisecond_to_a_minute(name: str) -> None:
    """Each power of ten between them is told apart."""
    metrics = make()
    metrics.observe(request())
    metrics.observe(renewal())
    bounds = {key[1] for key in numbers(metrics) if key[0] == f"{name}_bucket"}
    assert {"0.001", "0.01", "0.1", "1.0", "10.0", "60.0", "+Inf"} <= bounds


def test_no_time_of_creation_is_shown() -> None:
    """It would double the series, and is not there with several workers."""
    metrics = make()
    metrics.observe(request())
    assert b"_created" not in metrics.render()


def test_two_of_them_do_not_mix() -> None:
    """Each has a registry of its own."""
    first, second = make(), make()
    first.observe(request())
    assert numbers(second) == {}


def test_metrics_page_is_the_code() -> None:
    """Name, type and labels of every metric stand in the table, in order, and no other."""
    page = (ROOT / "docs/debugging.md").read_text(encoding="utf-8")
    table = page.split("\n## Metrics\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*)\| \S", table, re.MULTILINE)
    listed = [(name, kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows]
    assert listed == [(metric.name, metric.kind, metric.labels) for metric in METRICS]


def test_words_of_the_decision_are_those_of_the_page() -> None:
    """Each reason to pass an outcome on either refuses a retry, and stands in the page, or does not."""
    tree = ast.parse(Path(str(decide.__file__)).read_text(encoding="utf-8"))
    functions = [
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in ("_next", "_again", "_renew")
    ]
    texts = [each.value for node in functions for each in ast.walk(node) if isinstance(each, ast.Constant)]
    words = {text for text in texts if isinstance(text, str) and re.fullmatch("[a-z_]+", text)}
    page = (ROOT / "docs/debugging.md").read_text(encoding="utf-8").partition("\n| `refused` | ")[2].partition("\n")[0]

    listed = set(re.findall(r"`(\w+)`", page))
    assert len(functions) == 3
    assert words - {"connect", "failure"} - _REFUSES_NOTHING | {NOT_RENEWED} == listed
    assert _REFUSES_NOTHING <= words


def test_verdicts_tell_the_story_of_a_request() -> None:
    """In order, with the causes; the last attempt of all brought an answer or none."""
    tally = Tally(0.0)
    tally.decided(Backoff(0.1, "503"), Attempt(method="GET", status=503))
    tally.decided(Backoff(0.1, "failure"), Attempt(method="GET", status=None))
    tally.decided(Backoff(0.1, "connect"), Attempt(method="GET", status=None, sent=False))
    tally.decided(Renew(), Attempt(method="GET", status=200, sign=Sign.EXPIRED))
    tally.decided(Pass("attempts"), Attempt(method="GET", status=503))
    done = tally.done(None, 1.0)
    assert done.verdicts == ("503", "reset", "connect", "renew", "pass")
    assert (done.unauthorized, done.refused, done.renewals, done.retries) == (1, "attempts", 1, 3)

    tally.decided(Pass("timeout"), Attempt(method="GET", status=None, timeout=True))
    assert tally.done(None, 1.0).verdicts[-1] == "fail"


@pytest.mark.parametrize("why", ["answer", "sign", "renewed", "prohibited"])
def test_what_calls_for_no_retry_refuses_none(why: str) -> None:
    """A good answer, or a 401 that no token mends, is passed on because it is the answer."""
    tally = Tally(0.0)
    tally.decided(Pass(why), Attempt(method="GET", status=401))
    assert tally.done(None, 1.0).refused == ""


async def test_our_share_is_the_steps_and_not_the_waits() -> None:
    """Two steps of 2 and 3 seconds around a wait of 50 are 5 seconds of ours."""
    clock, tally = Hands(), Tally(0.0)

    async def work() -> None:
        clock.ticks += 2
        await pause()
        clock.ticks += 3

    async def pause() -> None:
        waiting = loop.create_future()
        loop.call_soon(come_back, waiting)
        await waiting

    def come_back(waiting: Any) -> None:
        clock.ticks += 50
        waiting.set_result(None)

    loop = asyncio.get_running_loop()
    await measured(work(), tally, clock.monotonic)
    assert tally.overhead == 5


async def test_our_share_is_kept_whatever_ends_the_work() -> None:
    """An error and a cancellation come through, are for the work to catch first, and what was spent is known."""
    clock, caught = Hands(), []

    async def work() -> None:
        clock.ticks += 2
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            caught.append(True)
            clock.ticks += 1
            raise

    async def fail() -> None:
        clock.ticks += 4
        raise KeyError

    tally, failed = Tally(0.0), Tally(0.0)
    task = asyncio.ensure_future(_run(work(), tally, clock))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(KeyError):
        await measured(fail(), failed, clock.monotonic)
    assert (tally.overhead, failed.overhead, caught) == (3, 4, [True])


async def _run(work: Any, tally: Tally, clock: Hands) -> None:
    await measured(work, tally, clock.monotonic)


STANDING = Standing(expires_at=1_000_060.0, lifetime=90.0, in_flight=2)


def breaker(state: str) -> BreakerChanged:
    return BreakerChanged(upstream="plm", state=state, requests=20, failures=10, wait=1.0)


def test_breaker_is_closed_until_it_is_told_of() -> None:
    """Then it is what was told last, in numbers on the page and in words for the status."""
    metrics = make({"plm": Status(None, None)})
    assert numbers(metrics)[("breaker_state", "plm")] == 0
    assert metrics.breakers() == {}
    for state, number in [("open", 2), ("half_open", 1), ("closed", 0), ("open", 2)]:
        metrics.observe(breaker(state))
        assert numbers(metrics)[("breaker_state", "plm")] == number
        assert metrics.breakers() == {"plm": state}


def test_breaker_of_an_upstream_that_is_gone_is_not_shown() -> None:
    """The gauges speak of what is configured now."""
    metrics = make()
    metrics.observe(breaker("open"))
    assert numbers(metrics) == {}


def test_the_breaker_that_is_most_open_speaks_for_all(tmp_path: Path) -> None:
    """Of several processes, each has its own."""
    Slot(tmp_path, 1).publish({"plm": STANDING._replace(breaker=2)}, now=100.0)
    Slot(tmp_path, 2).publish({"plm": STANDING}, now=100.0)
    status = {"plm": Status(1_000_060.0, 90.0)}
    metrics = Metrics(status=lambda: status, in_flight=dict, quota=dict, clock=Hands(), slot=Slot(tmp_path, 3))
    (family,) = [each for each in metrics._gauges() if each.name == "auth_sidecar_breaker_state"]
    assert [sample.value for sample in family.samples] == [2]


def test_a_standing_is_believed_for_five_seconds(tmp_path: Path) -> None:
    """Who is silent longer has died, or hangs: nothing is known of it."""
    Slot(tmp_path, 1).publish({"plm": STANDING}, now=100.0)
    reader = Slot(tmp_path, 2)
    assert reader.others(105.0) == [{"plm": STANDING}]
    assert reader.others(105.1) == []


def test_ones_own_standing_is_not_one_of_the_others(tmp_path: Path) -> None:
    """Who is asked knows its own at first hand."""
    Slot(tmp_path, 1).publish({"plm": STANDING}, now=100.0)
    assert Slot(tmp_path, 1).others(100.0) == []


@pytest.mark.parametrize("text", ["", "{"])
def test_a_standing_that_cannot_be_read_hides_no_other(tmp_path: Path, text: str) -> None:
    """Half a file is nothing."""
    (tmp_path / "standing_1.json").write_text(text)
    Slot(tmp_path, 2).publish({"plm": STANDING}, now=100.0)
    assert Slot(tmp_path, 3).others(100.0) == [{"plm": STANDING}]


def test_a_folder_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    """Publishing what cannot be published is no error."""
    Slot(tmp_path / "gone", 1).publish({"plm": STANDING}, now=100.0)


def test_room_for_counts_is_taken_once_and_for_real(tmp_path: Path) -> None:
    """No holes that a full disk could make fatal; and what a dead process has counted is not lost."""
    slot = Slot(tmp_path, 1)
    slot.reserve()
    file = tmp_path / "counter_1.db"
    facts = file.stat()
    assert facts.st_blocks * 512 >= facts.st_size == 512 << 10
    file.write_bytes(b"counted" + file.read_bytes()[7:])
    slot.reserve()
    assert file.stat().st_size == 512 << 10
    assert file.read_bytes()[:7] == b"counted"


def test_a_folder_without_room_is_told_in_one_line(tmp_path: Path) -> None:
    """Before anything is served, with what to do."""
    with pytest.raises(ConfigurationError, match=r"state_dir: .*/gone: No such file.*; expected a folder"):
        Slot(tmp_path / "gone", 1).reserve()
    with pytest.raises(ConfigurationError, match="state_dir: "), shared_folder(tmp_path / "gone"):
        pass


def test_a_file_that_is_still_empty_is_not_read(tmp_path: Path) -> None:
    """A process that has just begun has none of its counts in it yet."""
    (tmp_path / "counter_1.db").touch()
    (tmp_path / "counter_2.db").write_bytes(bytes(8))
    assert Slot(tmp_path, 3).counts() == [str(tmp_path / "counter_2.db")]


def test_the_folder_is_fresh_private_and_gone_at_the_end(tmp_path: Path) -> None:
    """Two at once do not meet, and what a killed one left behind is cleared away."""
    (tmp_path / "metrics-left").mkdir()
    (tmp_path / "metrics-left" / "counter_1.db").touch()
    (tmp_path / "metrics-notes").touch()
    with shared_folder(tmp_path) as first, shared_folder(tmp_path) as second:
        assert first != second
        assert first.stat().st_mode & 0o777 == 0o700
        assert sorted(tmp_path.iterdir()) == sorted([first, second, tmp_path / "metrics-notes"])
    assert list(tmp_path.iterdir()) == [tmp_path / "metrics-notes"]


def test_every_field_of_a_status_is_one_of_the_broker() -> None:
    """What is read of a status is what a broker's has."""
    from sidecar.tokens.broker import BrokerStatus

    assert {"expires_at", "lifetime"} <= set(dir(BrokerStatus))


def test_two_that_begin_at_once_take_turns(tmp_path: Path) -> None:
    """One must not clear away the folder that the other has made and not yet claimed."""
    made = threading.Event()

    def begin() -> None:
        with shared_folder(tmp_path):
            made.set()

    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    thread = threading.Thread(target=begin)
    thread.start()
    assert not made.wait(0.2)
    assert list(tmp_path.iterdir()) == []
    os.close(descriptor)
    assert made.wait(10)
    thread.join()


def test_a_standing_is_there_at_every_moment(tmp_path: Path) -> None:
    """The new one takes the place of the old in one step."""
    standings = {f"plm{number}": STANDING for number in range(200)}
    slot, reader = Slot(tmp_path, 1), Slot(tmp_path, 2)
    slot.publish(standings, now=100.0)
    writing = threading.Thread(target=lambda: [slot.publish(standings, now=100.0) for _ in range(500)])
    writing.start()
    found = []
    while writing.is_alive():
        found.append(reader.others(100.0) == [standings])
    writing.join()
    assert all(found)


async def test_work_that_failed_is_freed_at_once() -> None:
    """Its frames are not kept alive by the error that ended them: a body may hang on to them."""
    held: list[Any] = []

    class Body:
        pass

    async def work() -> None:
        body = Body()
        held.append(weakref.ref(body))
        await asyncio.Event().wait()

    gc.disable()
    try:
        task = asyncio.ensure_future(_run(work(), Tally(0.0), Hands()))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        del task
        await asyncio.sleep(0)
        assert held[0]() is None
    finally:
        gc.enable()


async def test_others_are_told_once_a_second(tmp_path: Path) -> None:
    """How we stand is news for as long as we live; alone there is nobody to tell."""
    told: list[tuple[float, float]] = []

    class Watching(Hands):
        async def sleep(self, seconds: float) -> None:
            told.extend((self.ticks, each["plm"].in_flight) for each in Slot(tmp_path, 2).others(self.ticks))
            in_flight["plm"] += 1
            await super().sleep(seconds)
            if len(told) == 3:
                raise asyncio.CancelledError

    in_flight = {"plm": 0}
    metrics = make({"plm": Status(1_000_060.0, 90.0)}, in_flight, Watching())
    metrics.publish()
    assert list(tmp_path.iterdir()) == []
    metrics._slot = Slot(tmp_path, 1)
    with pytest.raises(asyncio.CancelledError):
        await metrics.keep_publishing()
    assert told == [(100.0, 0), (101.0, 1), (102.0, 2)]


@pytest.mark.parametrize("sign", Sign)
@pytest.mark.parametrize("told", Told)
def test_a_refused_credential_is_visible_when_its_answer_is_told(sign: Sign, told: Told) -> None:
    """Not when a lost write made us answer instead; too much use refuses nothing."""
    tally = Tally(0.0)
    tally.decided(Pass("renewed", told), Attempt(method="GET", status=200, sign=sign))
    done = tally.done(None, 1.0)
    refused = sign in (Sign.EXPIRED, Sign.SCOPE, Sign.FOREIGN, Sign.REJECTED)
    assert (done.unauthorized, done.visible) == (refused, refused and told is Told.THIS)
