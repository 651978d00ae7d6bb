"""docs/scripts.md is held against the product and the tests: the variables it lists, and the clients it calls tried."""

import re
from pathlib import Path

from sidecar.run.exec.variables import Files, variables
from tests.e2e.test_clients import CLIENTS
from tests.e2e.test_libraries import HTTP, HTTPS, LIBRARIES, LIMITS, REVERSE, REWRITTEN

PAGE = (Path(__file__).parents[2] / "docs/scripts.md").read_text(encoding="utf-8")


def test_variables_on_the_page_are_those_that_exec_sets() -> None:
    """The table has every variable once, and no other; NAME stands for an upstream with a reverse port."""
    files = Files(bundle=Path("b"), truststore=Path("t"), wgetrc=Path("w"), php=Path("p"))
    found = variables("http://127.0.0.1:1", files, {}, [("plm.example.com", 443)], {"name": "http://127.0.0.1:2"})
    table = PAGE.split("## What exec sets")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
    assert sorted(name for row in rows for name in re.findall(r"`(\w+)`", row)) == sorted(found)


def test_clients_called_tried_are_those_of_the_tests() -> None:
    """What the page calls tried is run by tests/e2e/test_clients.py, by the same name; all of it is there."""
    assert sorted(re.findall(r"^\| ([^|]+) \| tried \|", PAGE, re.MULTILINE)) == sorted(CLIENTS)


def test_libraries_work_where_the_page_says_so() -> None:
    """Each way of each library is one that tests/e2e/test_libraries.py tries, and as the page has it."""
    section = PAGE.split("## OData, SOAP and WebDAV")[1].split("\n## ")[0]
    [header, _, *rows] = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    assert header[1:] == [HTTPS, HTTP, REVERSE]
    found = {name: {way for way, cell in zip(header[1:], cells, strict=True) if cell != "no"} for name, *cells in rows}
    assert found == {name: set(library.ways) for name, library in LIBRARIES.items()}
    limited = [(name, way) for name, *cells in rows for way, cell in zip(header[1:], cells, strict=True) if "," in cell]
    assert limited == [(name, way) for name, way, arguments, _ in LIMITS if arguments]
    assert f"rewrite: [{', '.join(REWRITTEN)}]" in section
