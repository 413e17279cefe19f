from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from trispade.report.plots import (
    METHOD_STYLES,
    StructureIntensity,
    difference_limit,
    difference_panels,
    middle_of_brain,
    profile_panels,
    slice_panels,
    spectrum_plot,
    structure_plot,
)

SHAPE = (30, 40, 36)
SPACING = (1.0, 1.0, 2.0)
BRAIN = (slice(5, 26), slice(6, 35), slice(8, 29))  # 21, 29 and 21 voxels; middle (15, 20, 18)


@pytest.fixture
def mask() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[BRAIN] = True
    return mask


@pytest.fixture
def real(mask) -> np.ndarray:
    """Intensities that tell every voxel's place along each axis."""
    x, y, z = np.indices(SHAPE)
    return np.where(mask, 0.1 + 0.01 * x + 0.005 * y + 0.002 * z, 0.0)


@pytest.fixture
def drawn(monkeypatch):
    """The figures as they were when they were drawn."""
    figures: list[Figure] = []
    save = Figure.savefig

    def savefig(figure, *args, **options):
        figures.append(figure)
        return save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def pixels(png: bytes) -> np.ndarray:
    assert png.startswith(b"\x89PNG")
    return imread(io.BytesIO(png))[..., :3]


def test_the_middle_is_that_of_the_brains_box(mask):
    assert middle_of_brain(mask) == (15, 20, 18)
    assert middle_of_brain(np.zeros(SHAPE, bool)) == (15, 20, 18)
    assert middle_of_brain(np.ones((8, 9, 10), bool)) == (4, 4, 5)


def test_slices_of_all_volumes_have_one_size_in_proportion_to_the_brain(real, mask):
    label_map = mask.astype(np.uint8)
    panels = slice_panels({"labels": label_map, "real": real, "half": real / 2}, mask, SPACING)
    assert list(panels) == ["labels", "real", "half"]
    shapes = {pixels(png).shape[:2] for png in panels.values()}
    assert len(shapes) == 1
    ((height, width),) = shapes
    # Widest 29 + 6 mm of margin; stacked 35 mm, and twice 21 * 2 + 12 mm, with two gaps of 4 mm.
    assert height / width == pytest.approx((35 + 54 + 54 + 8) / 35, rel=0.03)


def test_grey_is_absolute_so_that_a_darker_volume_looks_darker(real, mask):
    panels = slice_panels({"real": real, "half": real / 2}, mask, SPACING)
    bright, dark = (pixels(png) for png in panels.values())
    inside = (bright > 0.2).all(axis=-1) & (bright < 0.95).all(axis=-1)
    assert np.median(dark[inside] / bright[inside]) == pytest.approx(0.5, abs=0.03)


def test_the_brains_left_side_is_shown_on_the_right(mask):
    one_sided = np.zeros(SHAPE)
    one_sided[5:15, 6:35, 8:29] = 1.0  # low x, the left
    image = pixels(slice_panels({"left": one_sided}, mask)["left"])
    axial = image[: image.shape[0] // 3]
    middle = axial.shape[1] // 2
    assert axial[10:-10, middle + 4 : middle + 10].mean() > 0.9
    assert axial[10:-10, middle - 10 : middle - 4].mean() < 0.1


def test_brighter_is_red_darker_blue_equal_white_and_outside_grey(real, mask):
    found = difference_panels({"up": real + 0.2, "down": real - 0.2, "same": real}, real, mask)
    assert found.limit == 0.2
    centre = {
        name: (lambda image: image[image.shape[0] // 6, image.shape[1] // 2])(pixels(png))
        for name, png in found.panels.items()
    }
    assert centre["up"][0] > 2 * centre["up"][2]
    assert centre["down"][2] > 2 * centre["down"][0]
    assert centre["same"].min() > 0.95
    assert pixels(found.panels["same"])[-1, -1] == pytest.approx([0.75] * 3, abs=0.01)
    assert pixels(found.colourbar).shape[1] > 300


def test_the_scale_of_differences_is_that_of_the_worst_method(real, mask):
    assert difference_limit(real + 0.11, real, mask) == pytest.approx(0.15)
    assert difference_limit(real, real, mask) == 0.05
    assert difference_limit(np.full(SHAPE, np.nan), real, mask) == 1.0
    assert difference_panels({"a": real + 0.11, "b": real - 0.31}, real, mask).limit == pytest.approx(0.35)
    assert difference_panels({"a": real + 0.11}, real, mask, limit=0.6).limit == 0.6


def test_profiles_follow_the_line_that_is_shown(real, mask, drawn):
    fused = real * 0.5
    panels = profile_panels(real, {"fused": fused}, mask, SPACING)
    assert list(panels) == ["right to left", "front to back", "bottom to top"]
    lines = ((slice(None), 20, 18), (15, slice(None), 18), (15, 20, slice(None)))
    for axis, (figure, along) in enumerate(zip(drawn, lines, strict=True)):
        image, curves = figure.axes
        of_real, of_fused = curves.lines
        box = slice(BRAIN[axis].start - 3, BRAIN[axis].stop + 3)
        assert of_real.get_ydata() == pytest.approx(real[along][box])
        assert of_fused.get_ydata() == pytest.approx(fused[along][box])
        middle = (15, 20, 18)[axis]
        assert of_real.get_xdata() == pytest.approx((np.arange(box.start, box.stop) - middle) * SPACING[axis])
        assert curves.xaxis_inverted() == (axis < 2)
        # Voxels under the line by rising position: a slice has its right, its front and its top first.
        shown, (line,) = np.asarray(image.images[0].get_array()), image.lines
        under = shown[:, int(line.get_xdata()[0])] if axis == 2 else shown[int(line.get_ydata()[0])]
        assert under[::-1] == pytest.approx(of_real.get_ydata())


def test_structures_are_ordered_by_brightness_with_their_spread(monkeypatch, drawn):
    bars = []
    monkeypatch.setattr(
        Axes, "errorbar", lambda self, x, y, xerr, label, **_: bars.append((label, list(x), list(y), list(xerr)))
    )
    structures = [
        StructureIntensity("white_matter", 0.9, 0.05, 0.85, 0.04),
        StructureIntensity("vessel", 0.5, 0.1, np.nan, np.nan),
        StructureIntensity("cortex", 0.6, np.nan, 0.65, 0.08),
    ]
    structure_plot(structures, "fused")
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["vessel (n/a)", "cortex", "white matter"]
    (real_name, real_means, _, real_sds), (name, means, _, sds) = bars
    assert (real_name, name) == ("real", "fused")
    assert real_means == [0.5, 0.6, 0.9]
    assert real_sds == [0.1, 0.0, 0.05]
    assert means[1:] == [0.65, 0.85]
    assert sds == [0.0, 0.08, 0.04]


def test_spectra_leave_out_what_a_logarithm_cannot_show(drawn):
    bands = np.array([0.1, 0.2, 0.3, 0.4])
    spectrum_plot(bands, {"fused": np.array([1.0, 0.5, 0.0, np.inf])})
    (axes,) = drawn[0].axes
    curve = axes.lines[1]
    assert curve.get_ydata() == pytest.approx([1.0, 0.5, np.nan, np.nan], nan_ok=True)
    assert axes.get_yscale() == "log"


def test_methods_differ_in_colour_and_stroke_together():
    assert len(set(METHOD_STYLES)) == len(METHOD_STYLES)


def test_the_same_volumes_give_the_same_bytes(real, mask):
    assert slice_panels({"a": real}, mask) == slice_panels({"a": real}, mask)


def test_volumes_of_another_shape_are_refused(real, mask):
    for draw in (
        lambda volume: slice_panels({"a": volume}, mask),
        lambda volume: difference_panels({"a": volume}, real, mask),
        lambda volume: profile_panels(real, {"a": volume}, mask),
    ):
        with pytest.raises(
            ValueError, match=r"expected the shape of the mask \(30, 40, 36\), got {'a': \(29, 40, 36\)}"
        ):
            draw(real[1:])


def test_too_few_or_too_many_are_refused(real, mask):
    many = {str(number): real for number in range(9)}
    with pytest.raises(ValueError, match="expected at most 8 methods, got 9"):
        profile_panels(real, many, mask)
    with pytest.raises(ValueError, match="expected 1 to 8 methods, got 0"):
        spectrum_plot(np.arange(4), {})
    with pytest.raises(ValueError, match=r"fused: expected 4 bands, got \(3,\)"):
        spectrum_plot(np.arange(4), {"fused": np.ones(3)})
    with pytest.raises(ValueError, match="expected at least one method, got none"):
        difference_panels({}, real, mask)
    with pytest.raises(ValueError, match="expected at least one, got none"):
        structure_plot([], "fused")
