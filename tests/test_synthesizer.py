from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

import trispade
from trispade import Synthesizer
from trispade.bundle_run import find_bundle, run_stage
from trispade.errors import InputError
from trispade.phantoms import make_phantom, phantom_affine

SHAPE, SPACING_MM = (30, 25, 27), (1.0, 1.2, 1.1)
AFFINE = phantom_affine(SHAPE, SPACING_MM, "LPI", oblique_degrees=12).astype(np.float32).astype(float)  # as NIfTI does
LABEL_MAP = make_phantom(3, SHAPE, affine=AFFINE).label_map


@pytest.fixture(scope="module")
def synthesizer() -> Synthesizer:
    """The shipped weights, as anybody would take them."""
    return Synthesizer.from_bundle(find_bundle()[0], device="cpu")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "sub-01_dseg.nii.gz"
    nib.save(nib.Nifti1Image(LABEL_MAP, AFFINE), path)
    return path


@pytest.fixture(scope="module")
def painted(synthesizer: Synthesizer, file: Path) -> MetaTensor:
    return synthesizer(file)


def same_space(volume: MetaTensor, affine: np.ndarray) -> bool:
    return volume.affine.dtype == torch.float64 and np.array_equal(volume.affine.numpy(), affine)


def test_a_volume_is_bit_for_bit_the_one_that_the_bundles_inference_writes(painted, file, tmp_path):
    run_stage(find_bundle()[0], "inference", "compact", input=file, output_dir=tmp_path, device="cpu", progress=False)
    written = nib.load(tmp_path / "sub-01_desc-synthetic_T1w.nii.gz")
    assert painted.dtype == torch.float32
    assert painted.shape == (1, *SHAPE)
    assert np.asarray(written.dataobj).tobytes() == painted.numpy()[0].tobytes()
    assert same_space(painted, nib.load(file).affine)
    assert np.array_equal(written.affine, painted.affine.numpy())
    assert painted.meta["filename"] == str(file)
    assert painted[0, LABEL_MAP > 0].median() > 50
    assert set(painted[0, 0].flatten().tolist()) == {0.0}


@pytest.mark.parametrize(
    ("label_map", "affine"),
    [
        (nib.Nifti1Image(LABEL_MAP, AFFINE), None),
        (LABEL_MAP, AFFINE),
        (LABEL_MAP[None].astype(">u2"), torch.from_numpy(AFFINE)),
        (torch.from_numpy(LABEL_MAP).float(), AFFINE),
        (MetaTensor(torch.from_numpy(LABEL_MAP), affine=torch.from_numpy(AFFINE)), None),
        (MetaTensor(torch.from_numpy(LABEL_MAP)[None], affine=torch.from_numpy(AFFINE)), None),
    ],
    ids=["nifti", "array", "big-endian channel", "tensor", "MetaTensor", "MetaTensor channel"],
)
def test_what_is_in_memory_gives_the_volume_of_the_file(synthesizer, painted, label_map, affine):
    volume = synthesizer(label_map, affine)
    assert isinstance(volume, MetaTensor)
    assert volume.shape == (1, *SHAPE)
    assert same_space(volume, AFFINE)
    assert torch.equal(volume, painted)


def test_freesurfers_own_format_is_taken_from_memory(synthesizer, painted):
    image = nib.MGHImage(LABEL_MAP.astype(np.int32), AFFINE)
    volume = synthesizer(image)  # whose affine is not the same to the last bit
    assert same_space(volume, image.affine)
    np.testing.assert_allclose(volume.numpy(), painted.numpy(), atol=0.05)


def test_the_metadata_of_a_metatensor_stay_with_the_volume(synthesizer):
    meta = {"filename_or_obj": "somewhere/sub-07_dseg.nii.gz", "subject": "sub-07"}
    volume = synthesizer(MetaTensor(torch.from_numpy(LABEL_MAP), affine=torch.from_numpy(AFFINE), meta=dict(meta)))
    assert same_space(volume, AFFINE)
    assert {key: volume.meta[key] for key in meta} == meta


def test_a_pickled_synthesizer_paints_the_same(synthesizer, painted, file):
    assert torch.equal(pickle.loads(pickle.dumps(synthesizer))(file), painted)


def test_settings_are_those_of_the_config(file, painted, synthesizer):
    other = Synthesizer.from_bundle(device="cpu", fusion="realism", output_dtype="int16", value_range=[-100, 1000])
    volume = other(file)
    assert volume.dtype == torch.int16
    assert set(volume[0, 0].flatten().tolist()) == {-100}
    rescaled = (volume.float() + 100) / 1100 * 255
    assert 1 < (rescaled - painted).abs().max() < 60
    assert other.fingerprint != synthesizer.fingerprint


def test_the_fingerprint_tells_one_setting_from_another_and_no_run_from_another(synthesizer):
    options = [{}, {"scheme": "synthseg"}, {"amp": False}, {"closing_mm": 5.0}, {"value_range": [0, 1]}]
    found = [Synthesizer.from_bundle(device="cpu", **each).fingerprint for each in options]
    assert found[0] == found[3] == synthesizer.fingerprint
    assert len(set(found)) == 4


@pytest.mark.parametrize(
    ("label_map", "affine", "message"),
    [
        ("absent.nii.gz", None, r"absent.nii.gz: expected a NIfTI file, got no file of this name. Check the path"),
        (LABEL_MAP, None, r"affine: expected one for an array or a plain tensor, got none. Give voxel -> RAS\+ mm"),
        (LABEL_MAP, np.eye(3), r"affine: expected a matrix of 4 x 4, got one of shape \(3, 3\)"),
        ("a.nii.gz", AFFINE, r"affine: expected none beside a str, which has its own, got one. Leave it out"),
        ([1, 2], None, r"label map: expected a path, a nibabel image, an array, .* got list. Convert it"),
        (LABEL_MAP.astype(complex), AFFINE, r"label map: expected integers, got an array of complex128"),
        (LABEL_MAP[0], AFFINE, r"image: expected one channel, .* got shape \(25, 27\)"),
        (LABEL_MAP + 0.5, AFFINE, r"image: expected integer label ids, got 20250 voxels that hold no integer"),
        (LABEL_MAP * 0, AFFINE, r"image: expected at least one labelled voxel, got an empty label map"),
        (LABEL_MAP, np.diag([9.0, 9.0, 9.0, 1.0]), r"image: expected voxels of 0.3 to 4.0 mm, got 9 x 9 x 9 mm"),
        (LABEL_MAP + 7000, AFFINE, r"image: label ids 7000, 7002, .* are not in scheme 'freesurfer'"),
        (nib.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), AFFINE), None, r"image: expected a 3D volume, got 4D"),
    ],
)
def test_a_bad_label_map_is_told_of_in_the_line_that_inference_gives(synthesizer, label_map, affine, message):
    with pytest.raises(InputError, match=message):
        synthesizer(label_map, affine)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "abacus"}, r"device: expected one that this torch can use, got 'abacus' \(.*\). Choose cpu"),
        ({"scheme": "phrenology"}, r"label scheme 'phrenology': expected one of freesurfer"),
        ({"fusion": "sharp"}, r"model.pt: expected a model with a fusion net 'sharp', got fidelity, realism"),
        ({"preset": "tiny"}, r"presets: expected one of compact, paper, smoke, got .tiny."),
        ({"model_file": "none.pt"}, r"none.pt: expected a checkpoint, got nothing there"),
        ({"valu_range": [0, 1]}, r"inference.yaml: expected settings that it has, got valu_range. Correct their names"),
        ({"path": "nowhere"}, r"nowhere: expected a bundle with configs/metadata.json"),
    ],
)
def test_a_bad_setting_is_told_of_in_one_line(settings, message):
    with pytest.raises(InputError, match=message):
        Synthesizer.from_bundle(**settings)


def test_a_model_without_style_refuses_a_style_seed(synthesizer):
    with pytest.raises(InputError, match="style_seed: expected a model that was trained with style, got one without"):
        synthesizer(LABEL_MAP, AFFINE, style_seed=1)
    assert synthesizer.inferer.style_seed is None


def test_importing_the_package_loads_neither_torch_nor_monai():
    code = "import sys, trispade; trispade.__version__; assert not {'torch', 'monai', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_package_gives_what_it_names_and_nothing_else():
    assert all(getattr(trispade, name) for name in trispade.__all__)
    with pytest.raises(AttributeError, match="module 'trispade' has no attribute 'synthesiser'"):
        trispade.synthesiser  # noqa: B018
