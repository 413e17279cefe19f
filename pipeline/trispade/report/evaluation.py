"""The evaluate stage's second half: measures the stored volumes and writes tables and the report page."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trispade.data import EvaluationCase, EvaluationStore, PreparedCase
from trispade.engines import CaseEvaluator
from trispade.errors import InputError
from trispade.intensity import evaluation_intensity
from trispade.labels import Vocabulary
from trispade.manifests import Manifest
from trispade.metrics import (
    Person,
    by_age,
    compare_with_bounds,
    markdown_table,
    summarise,
    write_csv,
    write_json,
    write_text,
)
from trispade.report.evaluation_page import evaluation_page, save_overview
from trispade.report.measurement import Measurement, distances, measure_cases
from trispade.report.memorisation import BrainDetail, CopyCheck, check_memorisation
from trispade.report.page import write_report
from trispade.report.rescan import compare_scan_with_rescan, rows_of_people_scanned_twice
from trispade.report.results_table import METHOD_NAMES

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Results:
    """All that was measured, as plain values.

    Attributes:
        cases: that were measured.
        people: case to person.
        rows: of metrics.csv, scan-rescan included.
        summary: of all test people.
        by_age: age group to its summary.
        scanned_twice: summary of every method on the people scanned twice; empty if there are none.
        comparisons: fused against the best plane and the other methods, brain PSNR and SSIM, with the fit.
        distances: method to its distances from the real scans as a set, or the reason why there are none.
        copies: what the memorisation check found for each synthetic volume, or the reason why there is none.
        failures: case that could not be evaluated to the reason.
    """

    cases: Sequence[EvaluationCase]
    people: Mapping[str, Person]
    rows: Sequence[Mapping[str, Any]]
    summary: Sequence[Mapping[str, Any]]
    by_age: Mapping[str, Sequence[Mapping[str, Any]]]
    scanned_twice: Sequence[Mapping[str, Any]]
    comparisons: Sequence[Mapping[str, Any]]
    distances: Mapping[str, Mapping[str, float]] | str
    copies: Sequence[CopyCheck] | str
    failures: Mapping[str, str]


class Evaluation:
    """Measures what every method made of every test scan, and says what it means.

    Writes ``metrics.csv`` (case_id, method, region, fit, metric, value), ``summary.json``, ``summary.md``,
    ``overview.png`` and ``report.html``. Stopped and run again, it goes on with the scans not yet measured.

    Args:
        store: volumes of all methods.
        cases: the data list of test scans.
        evaluator: that has filled the store; its failures are listed.
        manifest: whose test scans these are.
        vocabulary: of the label maps.
        training_cases: prepared scans that a network was trained on.
        unseen_cases: prepared scans of people, beside the test people, whom no network was trained on.
        models: name to file of each model, for the page's account of what made the numbers.
        output_dir: where tables and page go.
        downstream_file: ``downstream.json`` of evaluate_downstream; the page says so where there is none.
    """

    def __init__(
        self,
        store: EvaluationStore,
        cases: Sequence[Mapping[str, Any]],
        evaluator: CaseEvaluator,
        manifest: Manifest,
        vocabulary: Vocabulary,
        training_cases: Sequence[PreparedCase],
        unseen_cases: Sequence[PreparedCase],
        models: Mapping[str, str],
        output_dir: str | Path,
        downstream_file: str | Path,
    ) -> None:
        self.store = store
        self.items = cases
        self.evaluator = evaluator
        self.manifest = manifest
        self.vocabulary = vocabulary
        self.training_cases = training_cases
        self.unseen_cases = unseen_cases
        self.models = models
        self.output_dir = Path(output_dir)
        self.downstream_file = Path(downstream_file)

    def run(self) -> str:
        """Measure, compare, write.

        Returns:
            One line that says where the page is.

        Raises:
            InputError: at the end, if cases failed; the tables and the page are about the others.
        """
        failures = dict(failure.split(": ", 1) for failure in self.evaluator.failures)
        cases = self.store.open(self.items)
        if cases:
            results = self._measure(cases, failures)
            self._write(results)
        if failures:
            lines = [f"{case_id}: {reason}" for case_id, reason in failures.items()]
            raise InputError.of_many(f"{len(failures)} of {len(self.items)} cases failed:", lines)
        line = f"report: {self.output_dir / 'report.html'}"
        logger.info(line)
        return line

    def _measure(self, cases: Sequence[EvaluationCase], failures: Mapping[str, str]) -> Results:
        class_names = [each.name for each in self.vocabulary.classes]
        measured = measure_cases(cases, class_names, self.output_dir / "measured")
        people = {case.case_id: Person(case.person_id, case.age, case.sex) for case in self.manifest.cases}
        rows = [row for each in measured for row in each.rows]
        logger.info("registering the scans of people scanned twice, and looking for copies of training scans")
        rows += compare_scan_with_rescan(cases, class_names)
        rows.sort(key=lambda row: list(METHOD_NAMES).index(row["method"]))
        return Results(
            cases=cases,
            people=people,
            rows=rows,
            summary=summarise(rows, people),
            by_age=by_age(rows, people),
            scanned_twice=summarise(rows_of_people_scanned_twice(rows, people), people),
            comparisons=[
                each for metric in ("psnr", "ssim") for each in compare_with_bounds(rows, people, metric=metric)
            ],
            distances=distances(measured),
            copies=self._look_for_copies(measured),
            failures=failures,
        )

    def _look_for_copies(self, measured: Sequence[Measurement]) -> Sequence[CopyCheck] | str:
        try:
            return check_memorisation(
                [_detail_of_synthetic(each.case) for each in measured],
                [_detail_of_prepared(case) for case in self.training_cases],
                [*map(_detail_of_prepared, self.unseen_cases), *(_detail_of_real(each.case) for each in measured)],
            )
        except InputError as error:
            return str(error)

    def _write(self, results: Results) -> None:
        write_csv(results.rows, self.output_dir / "metrics.csv")
        methods = [name for name in METHOD_NAMES if any(row["method"] == name for row in results.summary)]
        table = markdown_table(results.summary, methods=methods)
        write_text(table + "\n", self.output_dir / "summary.md")
        content = evaluation_page(results, self.manifest, self.models, self.downstream_file)
        write_json(
            {
                "all": results.summary,
                "by_age": results.by_age,
                "scanned_twice": results.scanned_twice,
                "comparisons": results.comparisons,
                "distances": results.distances,
                "verdict": [{"status": each.status, "text": each.text} for each in content.verdict],
                "failures": results.failures,
            },
            self.output_dir / "summary.json",
        )
        save_overview(results, self.output_dir / "overview.png")
        write_report(content, self.output_dir / "report.html")
        logger.info("%s\n%s", self.output_dir / "metrics.csv", table)


def _detail_of_synthetic(case: EvaluationCase) -> BrainDetail:
    return BrainDetail.of(case.case_id, case.person_id, case.label_map(), case.volume("fused"), case.affine)


def _detail_of_real(case: EvaluationCase) -> BrainDetail:
    label_map = case.label_map()
    t1w = evaluation_intensity(case.real(), label_map > 0) * 2.0 - 1.0
    return BrainDetail.of(case.case_id, case.person_id, label_map, t1w, case.affine)


def _detail_of_prepared(case: PreparedCase) -> BrainDetail:
    affine = case.record["affine"]
    return BrainDetail.of(case.case_id, case.person_id, case.label_map(), case.t1w().numpy(), affine)
