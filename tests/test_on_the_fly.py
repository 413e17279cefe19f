from __future__ import annotations

import os
import pickle
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, LoadImaged

from trispade import SynthesizeT1wd
from trispade.data.volume_cache import LONGEST_WRITE_S, VolumeCache
from trispade.errors import InputError
from trispade.phantoms import make_phantom, phantom_affine
from trispade.transforms.label_map import array_of

SHAPE = (20, 24, 18)
AFFINE = phantom_affine(SHAPE, (4.0, 3.0, 4.0), "LAS")


class Painter:
    """Stands in for a `Synthesizer`: paints each id as its number, plus the style; counts what it paints."""

    def __init__(self, style_dim: int = 0, fingerprint: str = "one") -> None:
        self.network = SimpleNamespace(style_dim=style_dim)
        self.fingerprint = fingerprint
        self.painted = 0

    def __call__(self, label_map: MetaTensor, style_seed: int | None = None) -> MetaTensor:
        self.painted += 1
        return MetaTensor(label_map.as_tensor().float() + (style_seed or 0), meta=label_map.meta)


def label_tensor(seed: int = 0) -> MetaTensor:
    label_map = make_phantom(seed, SHAPE, affine=AFFINE).label_map
    return MetaTensor(torch.from_numpy(label_map)[None], affine=torch.from_numpy(AFFINE))


def copies_drawn(transform: Any, times: int) -> list[int]:
    drawn = []
    for _ in range(times):
        transform({"label": label_tensor()})
        drawn.append(transform.copy)
    return drawn


def always(transform: SynthesizeT1wd, copy: int) -> SynthesizeT1wd:
    """Make each draw the same."""
    transform.randomize = lambda data=None: setattr(transform, "copy", copy)
    return transform


def paths(folder: Path, number: int) -> list[dict[str, str]]:
    for seed in range(number):
        image = nib.Nifti1Image(make_phantom(seed, SHAPE, affine=AFFINE).label_map, AFFINE)
        nib.save(image, folder / f"sub-{seed}_dseg.nii.gz")
    return [{"label": str(folder / f"sub-{seed}_dseg.nii.gz")} for seed in range(number)]


def test_the_t1w_is_added_on_the_grid_of_the_label_map_which_stays_as_it_is():
    label = label_tensor()
    result = SynthesizeT1wd("label", synthesizer=Painter())({"label": label, "age": 30})
    assert result["label"] is label
    assert result["age"] == 30
    assert result["image"].dtype == torch.float32
    assert torch.equal(result["image"].affine, label.affine)
    assert torch.equal(result["image"].as_tensor(), label.as_tensor().float())


@pytest.mark.parametrize("loaded", [False, True], ids=["path", "LoadImaged"])
def test_a_path_and_what_monai_has_loaded_give_the_same(tmp_path, loaded):
    (item,) = paths(tmp_path, 1)
    steps = [LoadImaged("label", ensure_channel_first=True)] if loaded else []
    result = Compose([*steps, SynthesizeT1wd("label", "t1w", synthesizer=Painter())])(item)
    assert np.array_equal(array_of(result["t1w"]), array_of(label_tensor()))
    assert np.array_equal(array_of(result["label"]), array_of(label_tensor()))
    assert result["label"].dtype == (torch.float32 if loaded else torch.int32)
    assert np.array_equal(result["t1w"].affine.numpy(), AFFINE)


def test_a_label_map_is_painted_once_while_the_memory_holds_it():
    painter = Painter()
    transform = SynthesizeT1wd("label", synthesizer=painter, num_in_memory=2)
    first = transform({"label": label_tensor(0)})["image"]
    first.zero_()  # what the caller does to its volume does not reach the cache
    assert transform({"label": label_tensor(0)})["image"].max() > 0
    assert painter.painted == 1
    for seed in (1, 2, 0):
        transform({"label": label_tensor(seed)})
    assert painter.painted == 4


def test_the_cache_on_disk_outlives_the_process_and_knows_label_map_model_copy_and_seed(tmp_path):
    def painted(seed: int = 0, fingerprint: str = "one", label_seed: int = 0, **options: Any) -> int:
        painter = Painter(fingerprint=fingerprint)
        transform = SynthesizeT1wd("label", synthesizer=painter, cache_dir=tmp_path, seed=seed, **options)
        always(transform, copy=transform.num_deformed)({"label": label_tensor(label_seed)})
        return painter.painted

    new = [{}, {"fingerprint": "two"}, {"label_seed": 1}, {"num_deformed": 1}, {"num_deformed": 2}]
    new += [{"num_deformed": 1, "seed": 1}, {"num_deformed": 1, "deformation_sd_mm": 2.0}]
    assert [painted(**options) for options in new] == [1] * len(new)
    assert [painted(**options) for options in new] == [0] * len(new)
    assert painted(seed=5) == 0  # an undeformed copy without style is the same whatever the seed
    assert len(list(tmp_path.iterdir())) == len(new)


def test_a_file_of_the_cache_that_is_torn_is_made_again(tmp_path, caplog):
    transform = SynthesizeT1wd("label", synthesizer=Painter(), cache_dir=tmp_path)
    whole = transform({"label": label_tensor()})["image"]
    (file,) = tmp_path.iterdir()
    for torn in (b"", file.read_bytes()[:200]):
        file.write_bytes(torn)
        assert torch.equal(transform({"label": label_tensor()})["image"], whole)
    assert transform.synthesizer.painted == 3
    assert "cannot be read" in caplog.text


def test_a_volume_that_is_not_written_to_the_end_leaves_nothing(tmp_path, monkeypatch):
    def fail(file, array):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(InputError, match="expected a writable folder with room in it, got No space left on device"):
        VolumeCache(tmp_path, 1).get("key", lambda: np.zeros(3))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_has_left_is_removed_by_a_later_one(tmp_path):
    old, young = tmp_path / ".one-abc.part", tmp_path / ".two-abc.part"
    for part in (old, young):
        part.write_bytes(b"half")
    os.utime(old, (time.time() - LONGEST_WRITE_S - 60,) * 2)
    VolumeCache(tmp_path, 1).get("key", lambda: np.zeros(3))
    assert sorted(each.name for each in tmp_path.iterdir()) == [young.name, "key.npy"]


def test_deformed_copies_take_the_place_of_their_label_map_and_are_painted_from_it():
    transform = SynthesizeT1wd("label", synthesizer=Painter(), num_deformed=2)
    seen = {}
    for _ in range(20):
        result = transform({"label": label_tensor()})
        assert torch.equal(result["image"].as_tensor(), result["label"].as_tensor().float())
        assert result["label"].dtype == torch.int16
        assert torch.equal(result["label"].affine, result["image"].affine)
        seen.setdefault(transform.copy, []).append(result["label"].as_tensor())
    assert sorted(seen) == [0, 1, 2]
    assert torch.equal(seen[0][0], label_tensor().as_tensor())
    for copies in seen.values():
        assert all(torch.equal(copy, copies[0]) for copy in copies)
    share = [(seen[copy][0] != seen[0][0]).float().mean() for copy in (1, 2)]
    assert all(0.01 < each < 0.3 for each in share)
    assert not torch.equal(seen[1][0], seen[2][0])


def test_two_people_are_not_deformed_alike():
    transform = always(SynthesizeT1wd("label", synthesizer=Painter(), num_deformed=1), copy=1)
    one = torch.ones(1, *SHAPE)
    other = one.clone()
    other[0, 0, 0, 0] = 2
    deformed = [
        transform({"label": MetaTensor(ids, affine=torch.from_numpy(AFFINE))})["label"] > 0 for ids in (one, other)
    ]
    assert not torch.equal(*deformed)


def test_the_seed_and_monais_random_state_decide_which_copies_are_drawn():
    transforms = [SynthesizeT1wd("label", synthesizer=Painter(), num_deformed=4, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (copies_drawn(transform, 12) for transform in transforms)
    assert first == again != other
    chain = Compose([transforms[0]]).set_random_state(7)
    after_seven = copies_drawn(transforms[0], 12)
    chain.set_random_state(7)
    assert copies_drawn(transforms[0], 12) == after_seven != first


def test_copies_of_a_model_with_style_have_styles_of_their_own():
    styled = [SynthesizeT1wd("label", synthesizer=Painter(style_dim=3), seed=seed) for seed in (0, 0, 1)]
    first, again, other = (transform({"label": label_tensor()})["image"] for transform in styled)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_workers_share_the_cache_and_give_what_one_process_gives(tmp_path):
    items = paths(tmp_path, 3)

    def epoch(num_workers: int, cache_dir: Path) -> list[torch.Tensor]:
        transform = SynthesizeT1wd("label", synthesizer=Painter(), cache_dir=cache_dir)
        loader = DataLoader(Dataset(items, transform), batch_size=1, num_workers=num_workers)
        return [batch["image"].as_tensor() for batch in loader]

    alone = epoch(0, tmp_path / "alone")
    for _ in range(2):
        for one, other in zip(epoch(2, tmp_path / "shared"), alone, strict=True):
            assert torch.equal(one, other)
    files = [sorted(file.name for file in (tmp_path / name).iterdir()) for name in ("alone", "shared")]
    assert files[0] == files[1]
    assert len(files[0]) == 3


def test_a_pickled_transform_goes_on_with_the_same_draws():
    transform = SynthesizeT1wd("label", synthesizer=Painter(), num_deformed=4)
    twin = pickle.loads(pickle.dumps(transform))
    assert copies_drawn(transform, 8) == copies_drawn(twin, 8)


def test_several_label_maps_each_get_their_t1w_and_missing_ones_may_be_left_out():
    names = {"keys": ["now", "then"], "image_key": ["now_t1w", "then_t1w"], "synthesizer": Painter()}
    result = SynthesizeT1wd(**names)({"now": label_tensor(0), "then": label_tensor(1)})
    assert not torch.equal(result["now_t1w"], result["then_t1w"])
    assert set(SynthesizeT1wd(**names, allow_missing_keys=True)({"then": label_tensor(1)})) == {"then", "then_t1w"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_deformed": -1}, "num_deformed: expected 0 or more, got -1"),
        ({"keys": ["a", "b"]}, r"image_key: expected a key for each label map, got \('image', 'image'\)"),
    ],
)
def test_a_bad_setting_is_told_of(options, message):
    with pytest.raises(InputError, match=message):
        SynthesizeT1wd(**{"keys": "label", "synthesizer": Painter(), **options})


def test_a_label_map_without_an_affine_is_told_of():
    with pytest.raises(InputError, match=r"label: expected a path, a nibabel image or a MetaTensor, .* got Tensor"):
        SynthesizeT1wd("label", synthesizer=Painter())({"label": torch.ones(1, 8, 8, 8)})


def test_a_folder_that_cannot_be_written_is_told_of(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"expected a writable folder with room in it, got .* set another cache_dir"):
        SynthesizeT1wd("label", synthesizer=Painter(), cache_dir=tmp_path / "file")({"label": label_tensor()})
