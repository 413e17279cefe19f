from __future__ import annotations

import pytest

from trispade.engines import CaseResult
from trispade.errors import InputError
from trispade.inference.results_file import ResultsFile

CASES = [{"case_id": name} for name in "abc"]


def test_the_table_says_of_each_case_in_order_what_became_of_it(tmp_path, caplog):
    caplog.set_level("INFO")
    ResultsFile(CASES, tmp_path / "results.tsv")([CaseResult("c", "no\troom", 2.0, 1), CaseResult("a", "", 1.26, 0)])
    assert (tmp_path / "results.tsv").read_text().splitlines() == [
        "case_id\tstatus\tseconds\trank\treason",
        "a\tmade\t1.3\t0\t",
        "b\tfinished_before\t\t\t",
        "c\tfailed\t2.0\t1\tno room",
    ]
    assert "1 made, 1 failed, 1 finished before" in caplog.text


def test_a_single_case_needs_no_table(tmp_path):
    ResultsFile(CASES[:1], tmp_path / "results.tsv")([CaseResult("a", "", 1.0, 0)])
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"results.tsv: expected a folder that can be written to, got"):
        ResultsFile(CASES, tmp_path / "file" / "results.tsv")([])
