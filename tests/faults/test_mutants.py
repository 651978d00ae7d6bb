"""The list of guards that `make mutants` takes out: it must not rot."""

import ast
import re
from pathlib import Path

import pytest

from tests.faults.mutants import MUTANTS, TOP, Mutant, Tried, copy, mutated, run
from tests.faults.rows import shown


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_each_guard_is_found_once(mutant: Mutant) -> None:
    """And without it the file is still Python, but another program."""
    source = (TOP / mutant.file).read_text(encoding="utf-8")
    changed = mutated(source, mutant)

    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_each_guard_has_a_test_of_a_row(mutant: Mutant) -> None:
    """A test that is not there would be a mutant that could not be tried."""
    file, _, name = mutant.test.partition("::")
    assert (Path(file).name, name.partition("[")[0]) in {(each.file, each.name) for each in shown()}


def test_guards_are_of_ten_rows_and_all_groups() -> None:
    """Issuer, store, upstream and process."""
    rows = {match[0] for mutant in MUTANTS if (match := re.search(r"(as|rd|up|pr)_\d\d", mutant.test))}
    assert len(rows) >= 10
    assert {row[:2] for row in rows} == {"as", "rd", "up", "pr"}


def test_text_that_is_missing_or_there_twice_is_an_error() -> None:
    """It would try nothing, or something else."""
    mutant = Mutant("the guard", "x.py", "if guarded:", "if False:", "test")
    assert mutated("if guarded: pass", mutant) == "if False: pass"
    for source in ("", "if guarded: pass\nif guarded: pass"):
        with pytest.raises(ValueError, match=r"x\.py has the text of 'the guard'"):
            mutated(source, mutant)


def test_tests_run_with_the_code_of_the_copy(tmp_path: Path) -> None:
    """Both outcomes are told apart, and neither comes from the code beside this test."""
    copy(tmp_path)
    (tmp_path / "tests/test_it.py").write_text("import sidecar\n\ndef test_it():\n    assert sidecar.MARK == 1\n")
    outcomes = []
    for mark in (1, 2):
        with (tmp_path / "sidecar/__init__.py").open("a") as file:
            file.write(f"\nMARK = {mark}\n")
        outcomes.append(run(tmp_path, "tests/test_it.py"))

    assert [tried.code for tried in outcomes] == [0, 1]
    assert isinstance(outcomes[0], Tried)
