"""The machines of tests/properties, longer and different every time: for nights, not for every change."""

import pytest

from tests.properties.test_fleet_machine import FleetMachine, SqliteFleetMachine, check_machine
from tests.properties.test_truth import check_truth


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("machine", "examples"), [(FleetMachine, 600), (SqliteFleetMachine, 60)])
def test_invariants_hold_for_long(machine: type[FleetMachine], examples: int) -> None:
    """Steps that no run had before; what fails prints the steps that led to it."""
    check_machine(machine, examples=examples, steps=60, derandomize=False)


@pytest.mark.timeout(900)
def test_nothing_told_contradicts_what_was_done_for_long() -> None:
    """Ten thousand requests that no run had before, and no answer that is untrue."""
    assert sum(check_truth(10_000, derandomize=False).values()) > 5000
