"""What a script is told never contradicts what the upstream did, whatever is lost and wherever."""

import asyncio
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import Phase, given, settings

from tests.properties.truth import OPEN, PLANS, Plan, Seen, Step, Told, contradiction, world

ROUND = 25


def check_truth(examples: int, *, derandomize: bool) -> Counter[str]:
    """Let so many requests be made, some at a time; return what they were told, by status."""
    plans: list[Plan] = []

    @settings(deadline=None, max_examples=examples, derandomize=derandomize, phases=[Phase.generate], database=None)
    @given(PLANS)
    def draw(plan: Plan) -> None:
        plans.append(plan)

    draw()
    return asyncio.run(_check(plans))


async def _check(plans: list[Plan]) -> Counter[str]:
    told: Counter[str] = Counter()
    # With an issuer that fails each request waits for it: one after the other, and apart from the rest.
    calm = [plan for plan in plans if not plan.issuer_fails]
    rounds = [calm[start : start + ROUND] for start in range(0, len(calm), ROUND)]
    rounds += [[plan] for plan in plans if plan.issuer_fails][: max(10, len(plans) // 20)]
    with tempfile.TemporaryDirectory() as folder:
        async with world(Path(folder)) as made:
            for some in rounds:
                for plan, (seen, answer) in zip(some, await asyncio.gather(*map(made.ask, some)), strict=True):
                    assert contradiction(plan, seen, answer) == "", (plan, seen, answer)
                    word = "dead" if answer.dead else answer.problem.get("outcome", "")
                    told[f"{answer.status} {word}".strip()] += 1
    return told


def test_nothing_told_contradicts_what_was_done() -> None:
    """Six hundred requests, and each kind of answer among them."""
    told = check_truth(600, derandomize=True)

    assert {"200", "401", "409", "503", "502 unknown", "504 unknown", "408", "200 dead", "500 dead"} <= set(told)


def plan(method: str = "POST", *steps: Step, fields: tuple[str, ...] = ()) -> Plan:
    return Plan(method, 3, False, fields, "waits", steps, issuer_fails=False)


def test_a_contradiction_is_found() -> None:
    """Each kind, and its near neighbour that is none."""
    told = {status: Told(status) for status in (200, 401, 409, 502, 503)}
    unknown = Told(502, "Proxy-Status: x", b'{"outcome": "unknown"}')
    ours = Told(502, "Proxy-Status: x", b'{"reason": "x"}')
    assert contradiction(plan(), Seen([], worked=0), told[200]) != ""
    assert contradiction(plan(), Seen([], worked=1), told[200]) == ""
    for status in (401, 409, 503):
        assert contradiction(plan(), Seen([], worked=1), told[status]) != ""
        assert contradiction(plan(), Seen([], worked=0), told[status]) == ""
        assert contradiction(plan("GET"), Seen([], worked=1), told[status]) == ""
    dead = Told(200, body=b'{"code": 401}')
    assert contradiction(plan(), Seen([], worked=1), dead) != ""
    assert contradiction(plan(), Seen([], worked=0), dead) == ""
    assert contradiction(plan(), Seen([], got=1, worked=1), unknown) != ""
    assert contradiction(plan(), Seen([], got=1, worked=1, lost=1), unknown) == ""
    assert contradiction(plan("POST", Step("answer", status=OPEN[0])), Seen([], worked=1), unknown) == ""
    assert contradiction(plan("GET"), Seen([], lost=1), unknown) != ""
    assert contradiction(plan(), Seen([], lost=1), ours) != ""
    assert contradiction(plan(), Seen([]), ours) == ""
    assert contradiction(plan(), Seen([], worked=1), told[502]) == ""
    assert contradiction(plan(), Seen([], worked=2), told[200]) != ""
    assert contradiction(plan("PUT"), Seen([], worked=2), told[200]) == ""
    assert contradiction(plan("PUT", fields=("If-Match: x",)), Seen([], worked=2), told[200]) != ""
