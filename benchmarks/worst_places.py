"""Where the model errs most: for each test person the two cubes of 40 mm with the largest errors, and the real scan.

    .venv/bin/python benchmarks/worst_places.py runs/reference/evaluation docs/figures/worst_places.png

Nobody chooses the places: they are where the squared error of the fused volume, brought to the scan by one gain and one
offset, averages highest over a cube, with none outside the brain; the second cube does not overlap the first. Shown are
coronal slices through their middles.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import ndimage
from voxel_sizes import first_scans

from trispade.data.evaluation import EvaluationCase
from trispade.report.figure import as_png, label_colours, upright_slice
from trispade.report.page_figures import ShownCase

CUBE_MM = 40.0
NUM_PLACES = 2
COLUMNS = ("label map", "fidelity", "realism", "real scan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=Path, help="output folder of an evaluation, which keeps all volumes")
    parser.add_argument("figure", type=Path, help="PNG to write")
    options = parser.parse_args()
    cases = first_scans(options.evaluation / "volumes")
    columns = NUM_PLACES * len(COLUMNS)
    figure = Figure(figsize=(1.25 * columns, 1.25 * len(cases) + 0.3), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(cases), columns, squeeze=False)
    for row, case in enumerate(cases):
        images = [image for place in worst_places(case) for image in place]
        for column, (panel, image) in enumerate(zip(axes[row], images, strict=True)):
            panel.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            panel.set_xticks([])
            panel.set_yticks([])
            if row == 0:
                panel.set_title(COLUMNS[column % len(COLUMNS)], color="white", fontsize=9)
        axes[row, 0].set_ylabel(case.case_id.split("_")[0], color="white", fontsize=8)
    options.figure.write_bytes(as_png(figure, dpi=90))


def worst_places(case: EvaluationCase) -> list[list[np.ndarray]]:
    """Cut the coronal slice through the middle of each of a case's worst cubes; gives the images of `COLUMNS`."""
    volumes = {method: case.volume(method) for method in ("fused", "realism")}
    shown = ShownCase.from_own_grid(case.case_id, case.label_map(), case.real(), volumes, case.affine)
    edge = np.array([round(CUBE_MM / size) for size in shown.spacing_mm])
    error = ndimage.uniform_filter((shown.volumes["fused"] - shown.real) ** 2, edge, mode="constant")
    places = []
    for _ in range(NUM_PLACES):
        centre = np.array(np.unravel_index(error.argmax(), error.shape))
        first = np.clip(centre - edge // 2, 0, np.array(error.shape) - edge)
        cube = tuple(map(slice, first, first + edge))
        images = (shown.label_map, shown.volumes["fused"], shown.volumes["realism"], shown.real)
        cut = [upright_slice(volume, "coronal", centre.tolist(), cube) for volume in images]
        places.append([label_colours(cut[0]), *cut[1:]])
        error[
            tuple(slice(max(0, start), start + 2 * size) for start, size in zip(centre - edge, edge, strict=True))
        ] = 0
    return places


if __name__ == "__main__":
    main()
