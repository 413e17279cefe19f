from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"`(test_\w+)`")


def test_every_test_that_the_documentation_names_exists():
    defined = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    }
    table = (ROOT / "docs" / "reliability.md").read_text()
    assert set(NAME.findall(table)) - defined == set()


def test_every_promise_names_a_test():
    table = (ROOT / "docs" / "reliability.md").read_text().split("## Exit codes")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 15
    assert [row for row in rows if not NAME.search(row)] == []
