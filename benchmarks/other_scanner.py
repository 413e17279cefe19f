"""How near synthetic volumes come to the scans of another scanner, of which there are no labels.

    .venv/bin/python benchmarks/other_scanner.py "$MALC2012" "$DS002748" runs/other_scanner --json result.json

A scan without labels gets those of people who have some: each atlas person's scan is brought onto it (rigidly,
affinely, then by diffeomorphic demons), its label map goes along, and the atlases vote. Cortex, cerebral white matter
and CSF are then told apart anew by the scan's intensities, the votes near by as prior. Such labels are worse than a
human's, and so is what is painted from them. So the same is done with test people of the training's own scanner, whose
labels are set aside: what they lose against their own labels is the labels' share, what the others lose beyond that the
scanner's.

Atlases are training people of the manifest; nobody whose scan is compared is among them. The bound below is the
label-mean image with the class means of the atlases. After a stop, the same command goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from trispade import Synthesizer
from trispade.data.volume_cache import VolumeCache
from trispade.intensity import correct_bias, evaluation_intensity
from trispade.labels import LabelScheme, fill_brain
from trispade.manifests import read_manifest
from trispade.metrics import class_means, compare_in_evaluation_space, label_mean_image
from trispade.metrics.table import write_text
from trispade.nifti import read_label_map, read_t1w
from trispade.registration import register_affinely, register_rigidly
from trispade.report.figure import save_triplanar_figure
from trispade.transforms.label_map import CSF_CLASS

FUSIONS = ("fidelity", "realism")
DEMONS = ((4, 60, 2.0), (2, 40, 1.5))
"""Of each resolution: stride in voxels, iterations, SD in voxels of the Gaussian that smooths the displacement."""
TRAINING = ("gan_train", "fusion_train")
BY_INTENSITY = ("csf", "cerebral_cortex", "cerebral_white_matter")
PRIOR_SD = 2.0  # voxels, of the Gaussian over which votes are taken as prior
CLOSING_MM = 5.0  # of the brain mask, as in evaluation
METRICS = {"psnr": 2, "ssim": 3, "sharpness": 2}


@dataclass(frozen=True, eq=False)
class Scan:
    """A skull-stripped scan.

    Attributes:
        name: of the file.
        t1w: (X, Y, Z) bias-corrected, in [0, 1], 0 outside the brain.
        affine: (4, 4), voxel -> RAS+ mm.
        label_map: (X, Y, Z) label ids, or None.
    """

    name: str
    t1w: np.ndarray
    affine: np.ndarray
    label_map: np.ndarray | None = None

    @property
    def spacing_mm(self) -> list[float]:
        """Voxel size along the three axes."""
        return [float(each) for each in voxel_sizes(self.affine)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_dir", type=Path, help="MALC 2012, or what --manifest describes")
    parser.add_argument("other_dir", type=Path, help="skull-stripped T1w scans of another scanner, at any depth")
    parser.add_argument("work_dir", type=Path, help="for label maps and pictures")
    parser.add_argument("--manifest", default="malc2012")
    parser.add_argument("--atlases", type=int, default=5, help="training people whose labels vote")
    parser.add_argument("--people", type=int, default=6, help="of each scanner, at even steps of the list")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()

    manifest = read_manifest(options.manifest, options.dataset_dir)
    scheme = manifest.label_scheme
    people: dict[tuple[str, str], Any] = {}
    for case in manifest.cases:
        people.setdefault((case.split, case.person_id), case)
    atlases = [
        load(case.image, case.label)
        for case in at_even_steps([case for (split, _), case in people.items() if split in TRAINING], options.atlases)
    ]
    own = at_even_steps([case for (split, _), case in people.items() if split == "test"], options.people)
    others = at_even_steps(sorted(options.other_dir.rglob("*T1w.nii*")), options.people)
    groups = {
        "own scanner, own labels": [load(case.image, case.label) for case in own],
        "own scanner, voted labels": [load(case.image) for case in own],
        "other scanner, voted labels": [load(file) for file in others],
    }
    painters = {
        fusion: Synthesizer.from_bundle(scheme=scheme.path, fusion=fusion) for fusion in ("fidelity", "realism")
    }
    means = class_means(
        ((filled(each.label_map, each, scheme), 2 * each.t1w - 1) for each in atlases),
        scheme.vocabulary.num_classes,
    )
    cache = VolumeCache(options.work_dir / "voted", 0)
    rows = []
    for group, scans in groups.items():
        for scan in scans:
            has_labels = scan.label_map is not None
            indices = filled(scan.label_map, scan, scheme) if has_labels else voted(scan, atlases, scheme, cache)
            image = nib.Nifti1Image(to_ids(scheme)[indices], scan.affine)
            painted = {fusion: np.asarray(paint(image))[0] for fusion, paint in painters.items()}
            rows += compared(group, scan, indices, {"label_mean": label_mean_image(indices, means), **painted})
            columns = {"labels": indices, "scan": scan.t1w, **painted}
            picture = options.work_dir / f"{group.replace(',', '').replace(' ', '_')}-{scan.name}.png"
            save_triplanar_figure(columns, picture, spacing_mm=scan.spacing_mm)
            print(f"{group}, {scan.name}: {rows[-2]}", flush=True)
    print_table(rows)
    if options.json:
        write_text(
            json.dumps({"atlases": [each.name for each in atlases], "rows": rows}, indent=1) + "\n", options.json
        )


def at_even_steps(items: Sequence[Any], number: int) -> list[Any]:
    """Choose so many of a list, from its first to its last."""
    return [items[round(place)] for place in np.linspace(0, len(items) - 1, min(number, len(items)))]


def load(image: str | Path, label: str | Path | None = None) -> Scan:
    """Read a scan, with its labels if they are given, in RAS+ order of axes."""
    t1w, affine = oriented(*read_t1w(image))
    label_map = None if label is None else oriented(*read_label_map(label))[0]
    corrected = correct_bias(t1w, t1w > 0, voxel_sizes(affine).tolist(), source=str(image))
    return Scan(Path(image).name.split("_T1w")[0], evaluation_intensity(corrected, t1w > 0), affine, label_map)


def oriented(volume: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bring a volume to RAS+ order of axes."""
    image = nib.as_closest_canonical(nib.Nifti1Image(volume, affine))
    return np.asarray(image.dataobj), image.affine


def voted(scan: Scan, atlases: Sequence[Scan], scheme: LabelScheme, cache: VolumeCache) -> np.ndarray:
    """Class indices (X, Y, Z) that most atlases give each voxel, ties to the first, the brain filled; by intensity."""
    content = [scan.name, *(each.name for each in atlases), str(DEMONS)]
    key = f"{scan.name}-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]}"
    ids = cache.get(key, lambda: vote([propagated(each, scan) for each in atlases]) * (scan.t1w > 0))
    indices = filled(ids, scan, scheme)
    tissues = [scheme.vocabulary.index(name) for name in BY_INTENSITY]
    told_apart = np.isin(indices, tissues)
    priors = [ndimage.gaussian_filter((indices == each).astype(np.float32), PRIOR_SD) + 1e-3 for each in tissues]
    indices[told_apart] = np.array(tissues)[mixture(scan.t1w[told_apart], np.stack(priors)[:, told_apart])]
    return indices


def mixture(values: np.ndarray, priors: np.ndarray) -> np.ndarray:
    """Most likely of K Gaussians for each of N values, given priors (K, N); fitted by expectation maximisation."""
    shares = priors / priors.sum(axis=0)
    for _ in range(20):
        weights = shares.sum(axis=1)
        means = (shares @ values) / weights
        variances = (shares * (values - means[:, None]) ** 2).sum(axis=1) / weights
        density = np.exp(-((values - means[:, None]) ** 2) / (2 * variances[:, None])) / np.sqrt(variances)[:, None]
        shares = priors * density + 1e-12
        shares /= shares.sum(axis=0)
    return shares.argmax(axis=0)


def to_ids(scheme: LabelScheme) -> np.ndarray:
    """A label id of each class index."""
    ids = {index: label_id for label_id, index in reversed(list(scheme.ids.items()))}
    return np.array([ids.get(index, 0) for index in range(scheme.vocabulary.num_classes)], np.int32)


def vote(label_maps: Sequence[np.ndarray]) -> np.ndarray:
    """The most frequent of several label ids at each voxel."""
    votes = np.stack(label_maps)
    counts = np.stack([(votes == each).sum(axis=0, dtype=np.int8) for each in votes])
    return np.take_along_axis(votes, counts.argmax(axis=0)[None], axis=0)[0]


def propagated(atlas: Scan, scan: Scan) -> np.ndarray:
    """Bring an atlas's label ids onto a scan's grid, (X, Y, Z)."""
    pair = atlas.t1w, atlas.affine, scan.t1w, scan.affine
    affine = register_affinely(*pair, register_rigidly(*pair))
    to_atlas = np.linalg.inv(affine @ atlas.affine) @ scan.affine
    aligned = ndimage.affine_transform(atlas.t1w, to_atlas[:3, :3], to_atlas[:3, 3], scan.t1w.shape, order=1)
    places = np.indices(scan.t1w.shape, np.float32) + deformation(aligned, scan.t1w)
    moved = np.einsum("ij,j...->i...", to_atlas[:3, :3], places) + to_atlas[:3, 3].reshape(3, 1, 1, 1)
    return ndimage.map_coordinates(atlas.label_map, moved, order=0)


def deformation(moving: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Displacement (3, X, Y, Z) in voxels, from fixed places to moving ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # itk's modules warn of SWIG's types when they are loaded
        import itk

        field, step = np.zeros((3, 1, 1, 1), np.float32), 1
        field_type = itk.Image[itk.Vector[itk.F, 3], 3]
        for stride, iterations, sd in DEMONS:
            smooth = [ndimage.gaussian_filter(each, stride / 2) for each in (moving, fixed)]
            small = [np.ascontiguousarray(each[::stride, ::stride, ::stride].transpose(2, 1, 0)) for each in smooth]
            images = [itk.image_from_array(each) for each in small]
            demons = itk.DiffeomorphicDemonsRegistrationFilter[type(images[0]), type(images[0]), field_type].New()
            demons.SetMovingImage(images[0])
            demons.SetFixedImage(images[1])
            demons.SetNumberOfIterations(iterations)
            demons.SetStandardDeviations(sd)
            start = sampled(field, small[1].shape[::-1], stride / step) / stride
            vectors = np.ascontiguousarray(start.transpose(3, 2, 1, 0), np.float32)
            demons.SetInitialDisplacementField(itk.image_from_array(vectors, ttype=(field_type,)))
            demons.Update()
            field, step = itk.array_from_image(demons.GetOutput()).transpose(3, 2, 1, 0) * np.float32(stride), stride
    return sampled(field, fixed.shape, 1 / step)


def sampled(field: np.ndarray, shape: Sequence[int], step: float) -> np.ndarray:
    """Values of a field (3, x, y, z) at steps of its own voxels from the first one, constant beyond its border."""
    places = np.indices(shape, np.float32) * np.float32(step)
    return np.stack([ndimage.map_coordinates(each, places, order=1, mode="nearest") for each in field])


def filled(label_map: np.ndarray | None, scan: Scan, scheme: LabelScheme) -> np.ndarray:
    """Class indices (X, Y, Z) of a label map whose brain is filled, as the networks see it."""
    indices, csf = scheme.to_indices(np.asarray(label_map), scan.name), scheme.vocabulary.index(CSF_CLASS)
    return fill_brain(indices, scan.spacing_mm, csf, CLOSING_MM, source=scan.name, trim_csf=scheme.trim_csf)


def compared(group: str, scan: Scan, indices: np.ndarray, volumes: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Compare volumes with the scan in the brain (``indices > 0``), with the fit; a row a method."""
    brain = indices > 0
    rows = []
    for method, volume in volumes.items():
        scaled, real = np.where(brain, volume, volume.min()), np.where(brain, scan.t1w, 0)
        found = compare_in_evaluation_space(scaled, real, brain, affine=scan.affine)
        of_brain = [row for row in found if (row["region"], row["fit"]) == ("brain", "gain_offset")]
        values = {row["metric"]: row["value"] for row in of_brain if row["metric"] in METRICS}
        rows.append({"group": group, "scan": scan.name, "method": method, **values})
    return rows


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print a group and method a row: mean ± SD over people."""
    print("\n| people | n | method | brain PSNR (dB) | brain SSIM | sharpness |\n|---|---|---|---|---|---|")
    for group, method in dict.fromkeys((row["group"], row["method"]) for row in rows):
        chosen = [row for row in rows if (row["group"], row["method"]) == (group, method)]
        cells = [
            f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"
            for metric, digits in METRICS.items()
            if (values := [row[metric] for row in chosen])
        ]
        print(f"| {group} | {len(chosen)} | {method} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
