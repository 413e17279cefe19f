"""The table of what became of each case of a batch."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trispade.distributed import by_first_rank
from trispade.engines import CaseResult
from trispade.nifti import replacing

logger = logging.getLogger(__name__)


class ResultsFile:
    """Writes what became of each case of a batch as a TSV, and logs the numbers; of several processes the first does.

    Args:
        cases: all that were asked for, see `list_label_maps`; those without a result were finished before.
        path: the table, ``case_id``, ``status`` (made, failed or finished_before), ``seconds``, ``rank``, ``reason``; a
            batch of one case gets none.

    Raises:
        InputError: when it writes, if it cannot.
    """

    def __init__(self, cases: Sequence[dict[str, Any]], path: str | Path) -> None:
        self.case_ids = [case["case_id"] for case in cases]
        self.path = Path(path)

    @by_first_rank
    def __call__(self, results: Sequence[CaseResult]) -> None:
        """Write the table."""
        failed = sum(bool(result.failure) for result in results)
        before = len(self.case_ids) - len(results)
        logger.info("%d made, %d failed, %d finished before", len(results) - failed, failed, before)
        if len(self.case_ids) < 2:
            return
        found = {result.case_id: result for result in results}
        rows = [_row(case_id, found.get(case_id)) for case_id in self.case_ids]
        table = io.StringIO()
        writer = csv.writer(table, delimiter="\t", lineterminator="\n")
        writer.writerows([("case_id", "status", "seconds", "rank", "reason"), *rows])
        with replacing(self.path) as partial:
            partial.write_text(table.getvalue(), encoding="utf-8")
        logger.info("table: %s", self.path)


def _row(case_id: str, result: CaseResult | None) -> tuple[Any, ...]:
    if result is None:
        return case_id, "finished_before", "", "", ""
    status = "failed" if result.failure else "made"
    return case_id, status, f"{result.seconds:.1f}", result.rank, " ".join(result.failure.split())
