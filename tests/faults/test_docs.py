"""The table of faults in docs/operations.md is what the tests say, row by row."""

import pytest

from tests.faults.rows import FAULTS, NOT_APPLICABLE, PAGE, shown, shown_in, table, table_of, with_table

SIZES = {"AS": 16, "RD": 14, "UP": 23, "PR": 15}
ROWS = [f"FLT-{group}-{number:02}" for group, size in SIZES.items() for number in range(1, size + 1)]


def test_every_row_of_the_matrix_is_named() -> None:
    """The 68 rows, in their order, and no other."""
    assert list(FAULTS) == ROWS
    assert len(ROWS) == 68


@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_a_test_or_a_reason(row: str) -> None:
    """One of the two, never both."""
    assert (row in NOT_APPLICABLE) != any(each.row == row for each in shown())


def test_every_test_is_of_a_row_of_the_matrix() -> None:
    """A slip in a name would leave its row without a test."""
    assert {each.row for each in shown()} <= set(ROWS)


def test_every_test_says_what_happens_in_one_sentence() -> None:
    """It ends with a full stop, has no other, and fits into a table."""
    sentences = {f"{each.file}: {each.name}": each.sentence for each in shown()}
    bad = [where for where, text in sentences.items() if not text.endswith(".") or ". " in text or "|" in text]
    assert bad == []


def test_the_page_has_the_table_that_the_tests_make() -> None:
    """Whoever changes a sentence runs `python -m tests.faults.table`."""
    assert table_of(PAGE.read_text(encoding="utf-8")) == table(shown())


def test_a_table_is_made_of_rows_and_sentences() -> None:
    """Two tests of a row share its line, and the page around the table stays as it was."""
    source = '''
async def test_flt_up_05_one() -> None:
    """It is passed
    on."""

def test_flt_up_05_two() -> None:
    """And counted."""

def test_other() -> None:
    """No row."""
'''
    made = table(shown_in("test_x.py", source))
    page = with_table("# A\n<!-- faults -->\nold\n<!-- end of faults -->\nz\n", made)

    assert "| FLT-UP-05 | 403 | It is passed on. And counted. |\n" in made
    assert f"| {NOT_APPLICABLE['FLT-UP-17']} |\n" in made
    assert made.count("\n") == 2 + len(ROWS)
    assert table_of(page) == made
    assert (page[:4], page[-2:]) == ("# A\n", "z\n")
