"""The evaluate stage: every method on the same people, against the real scan, on the scan's own grid."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from trispade.data import PreparedCase
from trispade.engines.case_evaluator import FAILURE
from trispade.geometry import PLANES, WorkingGrid
from trispade.intensity import evaluation_intensity
from trispade.labels import Vocabulary
from trispade.metrics import (
    class_means,
    evaluate_methods,
    label_mean_image,
    markdown_table,
    summarise,
    write_csv,
    write_json,
    write_text,
)
from trispade.report.figure import save_triplanar_figure
from trispade.transforms import FromWorkingGridd

logger = logging.getLogger(__name__)

BACKGROUND = -1.0
METHODS = ("label_mean", *PLANES, "mean_of_planes", "fused", "real_resampled")


class Comparison:
    """Handler of the evaluating engine: compares all methods case by case and writes the tables at the end.

    Methods: ``label_mean`` (each class painted with its mean over the training people, smoothed), each plane's volume,
    ``mean_of_planes``, ``fused``, and as the bound that the working grid sets, ``real_resampled``: the real scan taken
    to the working grid and back. All of them take the same way back to the scan's own grid.

    Args:
        training_cases: people whose class means the label-mean image uses.
        vocabulary: of the label maps.
        output_dir: gets ``metrics.csv``, ``summary.json``, ``summary.md``, and a figure ``<case_id>.png`` a case.
    """

    def __init__(self, training_cases: Sequence[PreparedCase], vocabulary: Vocabulary, output_dir: str | Path) -> None:
        self.training_cases = training_cases
        self.vocabulary = vocabulary
        self.output_dir = Path(output_dir)
        self.way_back = FromWorkingGridd(keys=METHODS)

    def attach(self, engine: Engine) -> None:
        """Register with the evaluating engine."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        # Before COMPLETED, so that the tables are written even when the engine then ends by listing failures.
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self.rows: list[dict[str, Any]] = []
        pairs = ((case.label_map(), case.t1w().numpy()) for case in self.training_cases)
        known = {index for case in self.training_cases for index in case.record["classes"]}
        known |= {index for index, each in enumerate(self.vocabulary.classes) if each.parent is None}
        # A class without training data takes its parent's mean, as it takes its parent's weights in the networks.
        self.means = class_means(pairs, self.vocabulary.num_classes)[self.vocabulary.fallback_table(known)]

    def _add(self, engine: Engine) -> None:
        item = engine.state.output
        if FAILURE in item:
            return
        mask = np.asarray(item["own_label_map"])[0] > 0
        real = np.asarray(item["t1w"], dtype=np.float32)[0]
        volumes = self._on_working_grid(item, evaluation_intensity(real, mask) * 2.0 - 1.0)
        for row in evaluate_methods(self._on_own_grid(volumes, item), real, mask):
            self.rows.append({"case_id": item["case_id"], "person_id": item["person_id"], **row})
        self._draw(volumes, item)

    def _on_working_grid(self, item: dict[str, Any], real: np.ndarray) -> dict[str, np.ndarray]:
        """Collect every method's volume, (X, Y, Z) in [-1, 1]."""
        painted = dict(zip((*PLANES, "fused"), item["pred"].numpy(), strict=True))
        return {
            "label_mean": label_mean_image(np.asarray(item["image"])[0], self.means),
            **{plane: painted[plane] for plane in PLANES},
            "mean_of_planes": np.mean([painted[plane] for plane in PLANES], axis=0),
            "fused": painted["fused"],
            "real_resampled": WorkingGrid.from_dict(item["working_grid"]).image_to_working(real, BACKGROUND),
        }

    def _on_own_grid(self, volumes: dict[str, np.ndarray], item: dict[str, Any]) -> dict[str, np.ndarray]:
        there: dict[Any, Any] = {name: torch.from_numpy(volume)[None] for name, volume in volumes.items()}
        back = self.way_back({**there, "image": item["image"], "working_grid": item["working_grid"]})
        return {name: np.asarray(back[name])[0] for name in METHODS}

    def _draw(self, volumes: dict[str, np.ndarray], item: dict[str, Any]) -> None:
        columns = {"label map": np.asarray(item["image"])[0]}
        columns |= {f"{plane} GAN": volumes[plane] for plane in PLANES}
        columns |= {"fused": volumes["fused"], "real": volumes["real_resampled"]}
        save_triplanar_figure(columns, self.output_dir / f"{item['case_id']}.png")

    def _finish(self, engine: Engine) -> None:
        if not self.rows:
            return
        summary = summarise(self.rows)
        write_csv(self.rows, self.output_dir / "metrics.csv")
        write_json(summary, self.output_dir / "summary.json")
        table = markdown_table(summary)
        write_text(table + "\n", self.output_dir / "summary.md")
        logger.info("%s\n%s", self.output_dir / "metrics.csv", table)
