"""`python -m tests.faults.table`: write the table of docs/operations.md from the tests."""

from tests.faults.rows import PAGE, shown, table, with_table

if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_table(page, table(shown())), encoding="utf-8")
