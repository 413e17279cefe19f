"""The validator of BIDS (``pip install bids-validator-deno``) on what ``--format bids`` writes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from trispade.inference import leave_finished_out
from trispade.transforms import LoadLabelMapd, SaveSyntheticd

VALIDATOR = shutil.which("bids-validator-deno")
CASES = ("sub-01_ses-1", "sub-01_ses-2", "sub-1_mri_aparc+aseg", "person7")


@pytest.mark.long
@pytest.mark.skipif(VALIDATOR is None, reason="bids-validator-deno is not installed")
def test_the_validator_of_bids_finds_no_error(tmp_path: Path) -> None:
    labels = np.zeros((8, 9, 10), np.int16)
    labels[2:6, 3:7, 3:7] = 17
    cases = []
    for case_id in CASES:
        image = nib.Nifti1Image(labels, np.diag([1, 1.2, 1.5, 1.0]))
        image.header.set_xyzt_units("mm")
        nib.save(image, tmp_path / f"{case_id}_dseg.nii.gz")
        cases.append({"case_id": case_id, "image": str(tmp_path / f"{case_id}_dseg.nii.gz")})
    save = SaveSyntheticd("pred", tmp_path / "out", record={"sha256": "5a"}, output_format="bids")
    for case in leave_finished_out(cases, save, overwrite=False):
        data = LoadLabelMapd("image")(case)
        save({**data, "pred": MetaTensor(torch.rand(data["image"].shape), meta=dict(data["image"].meta))})
    (tmp_path / "out" / "results.tsv").write_text("case_id\tstatus\n")

    done = subprocess.run(
        [str(VALIDATOR), "--json", str(tmp_path / "out")], capture_output=True, text=True, timeout=300
    )

    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
    assert {issue["code"] for issue in issues} <= {"TOO_FEW_AUTHORS"}
    assert done.returncode == 0
