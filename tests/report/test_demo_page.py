from __future__ import annotations

import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image

from trispade.anatomies import EmbeddedAnatomy
from trispade.errors import InputError
from trispade.geometry import PLANES
from trispade.labels import load_scheme
from trispade.phantoms import make_phantom
from trispade.report.demo_page import DemoPage, PaintedAnatomy, save_overview, write_demo_page
from trispade.report.figure import bounding_box, label_colours
from trispade.report.page import HashedFile

LIKENESS = {"cortex": {"affine": 0.42}, "lateral_ventricles": {"affine": 0.68}}
VOLUMES = {"cortex": 512.3, "lateral_ventricles": 21.7}
HOSTILE = "<script>alert('anatomy')</script>"


def painted(seed: int, shape: tuple[int, int, int], name: str = "a") -> PaintedAnatomy:
    phantom = make_phantom(seed, shape, 6.0)
    label_map = load_scheme("freesurfer").to_indices(phantom.label_map, "phantom")
    anatomy = EmbeddedAnatomy(name, f"phantom {seed}", f"{name}_dseg.nii.gz", "ab" * 32, ("x",), VOLUMES, LIKENESS)
    return PaintedAnatomy(anatomy, label_map, np.where(label_map > 0, phantom.t1w, 0).astype(np.float32))


@pytest.fixture(scope="module")
def cases() -> tuple[PaintedAnatomy, PaintedAnatomy]:
    """Two phantoms whose grids differ."""
    return painted(1, (28, 34, 28), "one"), painted(2, (32, 36, 30), HOSTILE)


@pytest.fixture(scope="module")
def html(cases, tmp_path_factory: pytest.TempPathFactory) -> str:
    page = DemoPage(
        date="today",
        command=f"trispade demo {HOSTILE}",
        painted=cases,
        fusion="realism",
        weights=[HashedFile("model.pt", "cd" * 32), HashedFile("fusion_realism.pt", "01" * 32)],
        label_maps=[HashedFile("one_dseg.nii.gz", "ef" * 32)],
        versions={"trispade": "1.2.3"},
    )
    return write_demo_page(page, tmp_path_factory.mktemp("demo") / "demo.html").read_text(encoding="utf-8")


class Images(HTMLParser):
    """The pictures of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.images: list[dict] = []
        self.tags: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attributes))


def test_the_page_says_what_the_volumes_are_and_what_made_them(html: str):
    assert "Synthetic volumes of nobody" in html
    assert html.count("Not for diagnosis.") == 2
    said = (
        "model.pt",
        "cd" * 32,
        "fusion_realism.pt",
        "01" * 32,
        "--fusion realism",
        "one_dseg.nii.gz",
        "ef" * 32,
        "trispade: 1.2.3",
        "today",
        "0.42",
        "0.68",
        "22 ml",
    )
    for each in said:
        assert each in html, each


def test_the_page_is_one_file_without_scripts_and_every_picture_is_described(html: str, cases):
    page = Images(html)
    assert len(page.images) == len(cases) * len(PLANES)
    assert all(each["src"].startswith("data:image/png;base64,iVBOR") for each in page.images)
    assert all(each["alt"] for each in page.images)
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert "http" not in html.replace('<meta http-equiv="Content-Security-Policy"', "")
    assert HOSTILE not in html


def test_a_panel_shows_the_t1w_above_its_label_map_at_one_scale(html: str, cases):
    import base64

    (case, _), content = cases, Images(html).images[0]["src"].partition(",")[2]
    panel = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    extents = [each.stop - each.start for each in bounding_box(case.label_map)]
    assert panel.shape == (4 * max(extents), 2 * max(extents), 3)
    t1w, labels = np.split(panel.astype(int), 2)
    assert (t1w[..., 0] == t1w[..., 1]).all()
    assert t1w.max() > 200
    shown = {tuple(each) for each in labels[::2, ::2].reshape(-1, 3).tolist()}
    known = {tuple(each) for each in np.rint(label_colours(np.arange(25)) * 255).astype(int).tolist()}
    assert len(shown) > 5
    assert shown <= known
    both = (t1w.max(axis=2) > 60) & (labels.max(axis=2) == 0)
    assert both.mean() < 0.02  # bright only where there is a label


def test_the_overview_holds_every_label_map_and_volume_whole(cases, tmp_path: Path):
    picture = imread(save_overview(cases, tmp_path / "demo.png"))
    assert picture.ndim == 3
    columns = np.array_split(picture[..., :3].max(axis=2), 4, axis=1)
    assert all((column > 0.3).mean() > 0.1 for column in columns)
    coloured = [np.ptp(each, axis=2).max() > 0.2 for each in np.array_split(picture[60:, :, :3], 4, axis=1)]
    assert coloured == [True, False, True, False]


def test_the_planes_go_through_the_thalami(cases):
    for case in cases:
        assert case.label_map[case.centre()[0] - 2 : case.centre()[0] + 3, case.centre()[1], case.centre()[2]].any()
        assert case.label_map[case.centre()] > 0


def test_a_folder_that_cannot_be_written_is_named(cases, tmp_path: Path):
    (tmp_path / "taken").write_text("a file")
    page = DemoPage("today", "trispade demo", cases[:1], "fidelity", [], [], {})
    with pytest.raises(InputError, match=r"taken.*expected a folder that can be written to"):
        write_demo_page(page, tmp_path / "taken" / "demo.html")
