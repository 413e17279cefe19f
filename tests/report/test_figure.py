from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from trispade.errors import InputError
from trispade.geometry import PLANES
from trispade.report.figure import label_colours, save_triplanar_figure

SHAPE = (30, 40, 50)
RIGHT, FRONT, TOP = 0.8, 0.6, 0.4


@pytest.fixture
def volume() -> np.ndarray:
    """Bright cubes right, in front and on top of the middle of a dim box, in a RAS+ volume."""
    volume = np.zeros(SHAPE, np.float32)
    volume[5:26, 5:36, 5:46] = 0.1
    volume[23:26, 19:22, 24:27] = RIGHT
    volume[14:17, 33:36, 24:27] = FRONT
    volume[14:17, 19:22, 43:46] = TOP
    return volume


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch):
    """The images of a figure by (row, column), and its axes, as it was when it was saved."""
    shown = {}
    save = Figure.savefig

    def savefig(figure: Figure, *args, **options):
        columns = len(figure.axes) // len(PLANES)
        shown["axes"] = {divmod(number, columns): axes for number, axes in enumerate(figure.axes)}
        shown.update({place: np.asarray(axes.images[0].get_array()) for place, axes in shown["axes"].items()})
        shown["texts"] = [figure._supxlabel.get_text()]
        return save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return shown


def side_of(panel: np.ndarray, value: float) -> str:
    """Which edge of the panel the voxels of a value are nearest to; row 0 is up, as imshow shows it."""
    rows, columns = np.nonzero(np.isclose(panel, value))
    assert len(rows), value
    down, across = rows.mean() / (panel.shape[0] - 1) - 0.5, columns.mean() / (panel.shape[1] - 1) - 0.5
    if abs(down) > abs(across):
        return "up" if down < 0 else "down"
    return "left" if across < 0 else "right"


def test_slices_lie_as_radiologists_look_at_them(volume, panels, tmp_path):
    save_triplanar_figure({"real": volume}, tmp_path / "f.png", middle=(15, 20, 25))
    axial, coronal, sagittal = (panels[row, 0] for row in range(3))
    assert (side_of(axial, RIGHT), side_of(axial, FRONT)) == ("left", "up")
    assert (side_of(coronal, RIGHT), side_of(coronal, TOP)) == ("left", "up")
    assert (side_of(sagittal, FRONT), side_of(sagittal, TOP)) == ("left", "up")
    assert [axes.images[0].origin for axes in panels["axes"].values()] == ["upper"] * 3
    assert panels["texts"] == [
        "axial, coronal: left of the image is the right of the brain\nsagittal: left of the image is the front"
    ]


def test_slices_are_cropped_to_the_head_and_cut_at_its_middle(volume, panels, tmp_path):
    save_triplanar_figure({"real": volume}, tmp_path / "f.png")
    assert [panels[row, 0].shape for row in range(3)] == [(37, 27), (47, 27), (47, 37)]
    assert np.isclose(panels[0, 0], RIGHT).any()
    assert np.isclose(panels[2, 0], TOP).any()


def test_a_chosen_middle_may_lie_outside_the_head(volume, panels, tmp_path):
    save_triplanar_figure({"real": volume}, tmp_path / "f.png", middle=(15, 20, 0))
    assert panels[0, 0].max() == 0
    assert np.isclose(panels[1, 0], TOP).any()


def test_columns_share_slices_and_a_label_map_has_colours(volume, panels, tmp_path):
    label_map = (volume > 0).astype(np.uint8)
    label_map[volume == RIGHT] = 7
    path = save_triplanar_figure({"label map": label_map, "real": volume}, tmp_path / "f.png", title="case 1")
    assert panels[0, 0].shape == (*panels[0, 1].shape, 3)
    coloured = np.isclose(panels[0, 0], label_colours(np.array([[7]]))[0, 0]).all(axis=-1)
    assert np.array_equal(coloured, np.isclose(panels[0, 1], RIGHT))
    assert [panels["axes"][0, column].get_title() for column in range(2)] == ["label map", "real"]
    assert imread(path).shape[2] == 4


def test_pixels_have_the_proportions_of_the_voxels(volume, panels, tmp_path):
    save_triplanar_figure({"real": volume}, tmp_path / "f.png", spacing_mm=(1.0, 2.0, 3.0))
    assert [panels["axes"][row, 0].get_aspect() for row in range(3)] == pytest.approx([2.0, 3.0, 1.5])


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_an_empty_volume_is_shown_whole(panels, tmp_path, kind):
    path = save_triplanar_figure({"empty": np.zeros((8, 9, 10), kind)}, tmp_path / "f.png")
    assert panels[1, 0].shape[:2] == (10, 8)
    assert imread(path)[..., :3].size


def test_a_class_has_the_same_colour_in_every_figure_and_the_background_is_black():
    colours = label_colours(np.arange(60).reshape(6, 10)).reshape(60, 3)
    assert (colours[0] == 0).all()
    assert len(np.unique(colours[1:25], axis=0)) == 24
    assert np.array_equal(label_colours(np.array([[9, 3]], np.int16))[0], colours[[9, 3]])


def test_the_same_volumes_give_the_same_file_and_nothing_else(volume, tmp_path):
    first, second = (save_triplanar_figure({"real": volume}, tmp_path / name) for name in ("a.png", "b.png"))
    assert first.read_bytes() == second.read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_no_volume_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"columns: expected volumes of one shape, got \[\]"):
        save_triplanar_figure({}, tmp_path / "f.png")


def test_volumes_of_different_shapes_are_refused(volume, tmp_path):
    with pytest.raises(ValueError, match=r"got \[\(30, 40, 50\), \(29, 40, 50\)\]"):
        save_triplanar_figure({"a": volume, "b": volume[1:]}, tmp_path / "f.png")


@pytest.mark.parametrize("middle", [(15, 20, 50), (-1, 20, 25)])
def test_a_middle_outside_the_volume_is_refused(volume, tmp_path, middle):
    with pytest.raises(ValueError, match=r"middle: expected a voxel of a volume \(30, 40, 50\), got"):
        save_triplanar_figure({"a": volume}, tmp_path / "f.png", middle=middle)


def test_a_folder_that_cannot_be_written_is_named(volume, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match=r"f\.png: expected a folder that can be written to"):
        save_triplanar_figure({"a": volume}, tmp_path / "taken" / "f.png")


def test_what_is_shown_can_be_chosen(volume, panels, tmp_path):
    box = (slice(2, 22), slice(0, 40), slice(10, 40))
    save_triplanar_figure({"real": volume}, tmp_path / "f.png", middle=(15, 20, 25), box=box)
    assert [panels[row, 0].shape for row in range(3)] == [(40, 20), (30, 20), (30, 40)]
