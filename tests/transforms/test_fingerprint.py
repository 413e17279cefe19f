from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose, Lambdad, RandFlipd

from trispade.labels import load_scheme
from trispade.transforms import FillBraind, LoadLabelMapd, MapLabelsd, ToWorkingGridd, fingerprint


def chain(spacing_mm: float = 1.0, scheme: str | Path = "freesurfer", **options) -> Compose:
    return Compose(
        [
            LoadLabelMapd("label_map"),
            MapLabelsd("label_map", scheme),
            ToWorkingGridd(("label_map",), "label_map", spacing_mm, **options),
            FillBraind("label_map", scheme),
        ]
    )


def copy_scheme(folder: Path, replace: tuple[str, str] = ("", "")) -> Path:
    source = load_scheme("freesurfer").path
    (folder / "freesurfer.tsv").write_text(source.read_text().replace(*replace) if replace[0] else source.read_text())
    (folder / "freesurfer.json").write_text(source.with_suffix(".json").read_text())
    return folder / "freesurfer.tsv"


def test_the_same_settings_give_the_same_hash() -> None:
    assert fingerprint(chain()) == fingerprint(chain())
    assert len(fingerprint(chain())) == 64


def test_every_setting_and_the_order_change_the_hash() -> None:
    shuffled = Compose(chain().transforms[::-1])
    variants = [
        chain(),
        chain(spacing_mm=2.0),
        chain(box=(32, 32, 32)),
        chain(box=(32, 32, 64)),
        chain(scheme="neuromorphometrics"),
        shuffled,
        Compose(chain().transforms[:-1]),
    ]
    assert len({fingerprint(each) for each in variants}) == len(variants)


def test_a_scheme_counts_by_its_content_and_not_by_its_place(tmp_path: Path) -> None:
    same, other = tmp_path / "same", tmp_path / "other"
    same.mkdir()
    other.mkdir()
    row = next(line for line in load_scheme("freesurfer").path.read_text().splitlines() if line.startswith("17\t"))
    changed = row.rsplit("\t", 1)[0] + "\tamygdala"
    assert fingerprint(chain(scheme=copy_scheme(same))) == fingerprint(chain())
    assert fingerprint(chain(scheme=copy_scheme(other, (row, changed)))) != fingerprint(chain())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        (1, "1"),
        ([1, 2], [12]),
        (["ab"], ["a", "b"]),
        ({"a": 1}, {"a": 2}),
        (np.float32(0.1), np.float64(0.1)),
        (np.zeros(4, np.uint8), np.zeros(4, np.int8)),
        (np.zeros((2, 2)), np.zeros(4)),
        (torch.zeros(3), torch.tensor([0.0, 0.0, 1e-7])),
        (torch.float32, torch.float64),
        (None, "None"),
        (Path("a"), "a"),
    ],
)
def test_values_that_differ_have_different_hashes(one: object, other: object) -> None:
    assert fingerprint(one) != fingerprint(other)


def test_the_order_of_keys_and_of_sets_does_not_matter() -> None:
    assert fingerprint({"a": 1, "b": {3, 1, 2}}) == fingerprint({"b": {2, 3, 1}, "a": 1})


def test_a_transform_without_stable_content_is_a_type_error_that_names_it() -> None:
    with pytest.raises(TypeError, match=r"Lambdad\..*expected plain values.*cannot be cached"):
        fingerprint(Compose([LoadLabelMapd("label_map"), Lambdad("label_map", func=abs)]))
    with pytest.raises(TypeError, match=r"expected plain values.*got RandFlipd.*cannot be cached"):
        fingerprint(RandFlipd("label_map"))
