from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.transforms import Compose

from trispade.errors import InputError, find_input_error
from trispade.labels import load_scheme
from trispade.transforms import (
    FillBraind,
    FromWorkingGridd,
    LoadLabelMapd,
    MapLabelsd,
    ToWorkingGridd,
    fingerprint,
)

WHITE_MATTER_LEFT, WHITE_MATTER_RIGHT, HIPPOCAMPUS = 2, 41, 17


def write_label_map(path: Path, spacing_mm: float = 2.0, axis_codes: str = "LIA", oblique: bool = True) -> np.ndarray:
    """Head of two unlike halves with a sulcus between them, written with an oblique affine in another orientation."""
    x, y, z = np.meshgrid(*(np.arange(extent) for extent in (26, 30, 22)), indexing="ij")
    inside = ((x - 12.5) / 11) ** 2 + ((y - 14.5) / 13) ** 2 + ((z - 10.5) / 9) ** 2 < 1
    labels = np.where(inside, np.where(x < 12, WHITE_MATTER_LEFT, WHITE_MATTER_RIGHT), 0)
    labels[5:9, 10:16, 8:11] = HIPPOCAMPUS
    labels[12] = 0
    affine = np.diag([spacing_mm] * 3 + [1.0])
    if oblique:
        cosine, sine = np.cos(0.2), np.sin(0.2)
        affine[:3, :3] = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]) * spacing_mm
    affine[:3, 3] = (-20, 11, 4)
    image = nib.Nifti1Image(labels.astype(np.int16), affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(axis_codes))
    nib.save(image.as_reoriented(turn), path)
    return np.asarray(image.as_reoriented(turn).dataobj)


def label_path(spacing_mm: float, **options: Any) -> Compose:
    return Compose(
        [
            LoadLabelMapd("image"),
            MapLabelsd("image", "freesurfer"),
            ToWorkingGridd("image", "image", spacing_mm, **options),
            FillBraind("image", "freesurfer"),
        ]
    )


def test_a_file_is_loaded_with_its_grid_and_name(tmp_path: Path) -> None:
    ids = write_label_map(tmp_path / "a_dseg.nii.gz")

    image = LoadLabelMapd("image")({"image": str(tmp_path / "a_dseg.nii.gz")})["image"]

    assert isinstance(image, MetaTensor)
    assert image.dtype == torch.int32
    np.testing.assert_array_equal(image.numpy()[0], ids)
    np.testing.assert_allclose(image.affine.numpy(), nib.load(tmp_path / "a_dseg.nii.gz").affine)
    assert image.meta["filename"] == str(tmp_path / "a_dseg.nii.gz")
    assert image.meta["source_shape"].tolist() == list(ids.shape)


def test_a_missing_file_is_an_input_error_and_can_be_found_behind_a_chain(tmp_path: Path) -> None:
    case = {"image": str(tmp_path / "a_dseg.nii.gz")}
    with pytest.raises(InputError, match="expected a NIfTI file, got no file of this name"):
        LoadLabelMapd("image")(case)
    with pytest.raises(RuntimeError, match="applying transform") as caught:
        label_path(2.0)(case)
    assert "got no file of this name" in str(find_input_error(caught.value))


def test_ids_become_indices_of_the_vocabulary(tmp_path: Path) -> None:
    ids = write_label_map(tmp_path / "a.nii.gz")
    vocabulary = load_scheme("freesurfer").vocabulary

    data = MapLabelsd("image", "freesurfer")(LoadLabelMapd("image")({"image": tmp_path / "a.nii.gz"}))

    indices = data["image"].numpy()[0]
    assert data["image"].dtype == torch.uint8
    assert data["image"].meta["filename"] == str(tmp_path / "a.nii.gz")
    assert set(indices[ids == HIPPOCAMPUS]) == {vocabulary.index("hippocampus")}
    assert set(indices[np.isin(ids, (2, 41))]) == {vocabulary.index("cerebral_white_matter")}


def test_unknown_ids_name_the_file_unless_they_are_to_be_background(tmp_path: Path) -> None:
    labels = np.zeros((5, 6, 7), np.int32)
    labels[2:4, 2:4, 2:4] = (18871, 2)
    nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "a.nii.gz")
    loaded = LoadLabelMapd("image")({"image": tmp_path / "a.nii.gz"})
    with pytest.raises(InputError, match=r"a\.nii\.gz: label id 18871 is not in scheme 'freesurfer'"):
        MapLabelsd("image", "freesurfer")(loaded)
    kept = MapLabelsd("image", "freesurfer", unknown_labels="background")(loaded)["image"]
    assert int((kept > 0).sum()) == 4


def test_the_label_path_ends_in_a_ras_box_of_multiples_of_32_with_a_filled_brain(tmp_path: Path) -> None:
    write_label_map(tmp_path / "a.nii.gz")

    data = label_path(2.0)({"image": tmp_path / "a.nii.gz"})

    image = data["image"]
    assert image.shape == (1, 32, 32, 32)
    assert nib.aff2axcodes(image.affine.numpy()) == ("R", "A", "S")
    assert int((image == load_scheme("freesurfer").vocabulary.index("csf")).sum()) > 100


def test_filling_trims_csf_where_the_scheme_says_so_and_the_chains_fingerprint_tells(tmp_path: Path) -> None:
    ids = np.zeros((40, 40, 40), np.int16)
    ids[4:36, 4:36, 4:36] = 24
    ids[10:30, 10:30, 10:30] = 2
    nib.save(nib.Nifti1Image(ids, np.eye(4)), tmp_path / "a.nii.gz")

    def brain_voxels(scheme: str) -> int:
        chain = Compose([LoadLabelMapd("image"), MapLabelsd("image", scheme), FillBraind("image", scheme)])
        return int((chain({"image": tmp_path / "a.nii.gz"})["image"] > 0).sum())

    assert (brain_voxels("freesurfer"), brain_voxels("synthseg")) == (32**3, 20**3)
    assert fingerprint(FillBraind("image", "freesurfer")) != fingerprint(FillBraind("image", "synthseg"))


def test_the_fingerprint_of_a_chain_that_does_not_trim_is_what_caches_were_prepared_with() -> None:
    assert "trim_csf" not in vars(FillBraind("image", "freesurfer"))


def test_a_fixed_box_that_is_too_small_names_the_file(tmp_path: Path) -> None:
    write_label_map(tmp_path / "a.nii.gz")
    data = MapLabelsd("image", "freesurfer")(LoadLabelMapd("image")({"image": tmp_path / "a.nii.gz"}))
    with pytest.raises(InputError, match=r"a\.nii\.gz: expected a head that fits the box of 16 x 32 x 32"):
        ToWorkingGridd("image", "image", 2.0, box=[16, 32, 32])(data)


def test_images_move_with_their_label_map(tmp_path: Path) -> None:
    write_label_map(tmp_path / "a.nii.gz")
    data = MapLabelsd("image", "freesurfer")(LoadLabelMapd("image")({"image": tmp_path / "a.nii.gz"}))
    data["t1w"] = MetaTensor(data["image"].as_tensor().float() - 5, meta=dict(data["image"].meta))

    moved = ToWorkingGridd(("image", "t1w"), "image", 2.0)(data)

    assert torch.equal(moved["t1w"].as_tensor(), moved["image"].as_tensor().float() - 5)
    assert torch.equal(moved["t1w"].affine, moved["image"].affine)


@pytest.mark.parametrize("axis_codes", ["RAS", "LIA", "PSR", "ILP"])
def test_equal_spacing_comes_back_exactly_after_collation(tmp_path: Path, axis_codes: str) -> None:
    ids = write_label_map(tmp_path / "a.nii.gz", axis_codes=axis_codes)
    batch = list_data_collate([label_path(2.0)({"image": tmp_path / "a.nii.gz"})])
    data = decollate_batch(batch)[0]
    values = torch.linspace(-0.9, 0.9, 25)
    data["pred"] = torch.where(data["image"] > 0, values[data["image"].long()], -1.0).as_tensor()

    back = FromWorkingGridd("pred")(data)["pred"]

    indices = load_scheme("freesurfer").to_indices(ids, "a")
    expected = torch.where(torch.from_numpy(indices) > 0, values[torch.from_numpy(indices).long()], -1.0).numpy()
    labelled = indices > 0
    np.testing.assert_array_equal(back.numpy()[0][labelled], expected[labelled])
    csf_value = values[load_scheme("freesurfer").vocabulary.index("csf")]
    assert set(np.unique(back.numpy()[0][~labelled]).tolist()) == {-1.0, csf_value.numpy().item()}
    np.testing.assert_allclose(back.affine.numpy(), nib.load(tmp_path / "a.nii.gz").affine)


@pytest.mark.parametrize("spacing_mm", [1.4, 2.7])
def test_no_dark_rim_comes_back_from_another_spacing(tmp_path: Path, spacing_mm: float) -> None:
    ids = write_label_map(tmp_path / "a.nii.gz")
    data = label_path(spacing_mm)({"image": tmp_path / "a.nii.gz"})
    data["pred"] = torch.where(data["image"].as_tensor() > 0, 0.25, -1.0)

    back = FromWorkingGridd("pred")(data)["pred"].numpy()[0]

    assert back.shape == ids.shape
    outside = back == -1
    np.testing.assert_allclose(back[~outside], 0.25, atol=1e-5)
    assert (outside & (ids > 0)).sum() < 0.06 * (ids > 0).sum()


def test_the_chain_can_be_pickled_and_leaves_its_input_alone(tmp_path: Path) -> None:
    write_label_map(tmp_path / "a.nii.gz")
    case = {"image": tmp_path / "a.nii.gz", "case_id": "a"}
    chain = label_path(2.0)

    expected = chain(case)["image"]

    assert case == {"image": tmp_path / "a.nii.gz", "case_id": "a"}
    assert torch.equal(pickle.loads(pickle.dumps(chain))(case)["image"], expected)


def test_an_image_that_is_in_memory_is_loaded_as_its_file_is(tmp_path: Path) -> None:
    path = tmp_path / "a_dseg.nii.gz"
    write_label_map(path)
    loaded = LoadLabelMapd("image")({"image": str(path)})["image"]
    image = nib.load(path)
    meta = {"filename_or_obj": str(path), "subject": "a"}
    tensor = MetaTensor(
        torch.from_numpy(image.get_fdata())[None], affine=torch.from_numpy(image.affine), meta=dict(meta)
    )
    for each in (image, tensor[0], tensor):
        again = LoadLabelMapd("image")({"image": each})["image"]
        assert again.dtype == loaded.dtype
        assert torch.equal(again, loaded)
        assert torch.equal(again.affine, loaded.affine)
        assert again.meta["filename"] == str(path)
        assert torch.equal(again.meta["source_shape"], loaded.meta["source_shape"])
    assert again.meta["subject"] == "a"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.ones(1, 4, 4, 4), r"image: expected a path, a nibabel image or a MetaTensor, which have an affine, got"),
        (MetaTensor(torch.ones(2, 4, 4, 4)), r"image: expected one channel, .* got shape \(2, 4, 4, 4\)"),
        (MetaTensor(torch.full((1, 4, 4, 4), 0.5)), r"image: expected integer label ids, got 64 voxels that hold no"),
        (MetaTensor(torch.ones(1, 4, 4, 4) * 1j), r"image: expected one number a voxel, got voxels of type complex64"),
        (nib.Nifti1Image(np.ones((4, 4)), np.eye(4)), r"image: expected a 3D volume, got 2D of shape 4 x 4"),
    ],
)
def test_a_bad_image_in_memory_is_told_of_as_a_bad_file_is(image: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LoadLabelMapd("image")({"image": image})
