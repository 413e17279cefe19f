"""What the user names as input, as the list of cases that inference works through."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trispade.dicom_seg import is_dicom_seg
from trispade.distributed import by_first_rank, gather, refuse_lone_ranks
from trispade.engines import read_model_record
from trispade.errors import InputError
from trispade.labels import LabelScheme
from trispade.manifests import Case, Manifest, read_manifest
from trispade.nifti import name_without_suffix
from trispade.transforms import SaveSyntheticd
from trispade.transforms.output_format import SUFFIX, write_dataset_files
from trispade.untrusted import is_path, quoted

logger = logging.getLogger(__name__)

_LABEL_MAP_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".dcm")
_FREESURFER_NAME = "aparc+aseg.mgz"  # the other MGZ files of a subject's folder are mostly images


def list_label_maps(
    source: str | Path,
    dataset_dir: str | Path | None = None,
    splits: Sequence[str] | None = None,
    scheme: LabelScheme | None = None,
) -> list[dict[str, Any]]:
    """List the label maps to synthesize from.

    Args:
        source: one label map; a folder, searched for label maps at any depth (``*_dseg.nii.gz`` if it holds such files,
            all NIfTI, NRRD and DICOM SEG files but synthetic ones otherwise, ``aparc+aseg.mgz`` if there is none); or a
            manifest. What is in its files is not looked at: a bad one fails when its turn comes, and the others run.
        dataset_dir: what a manifest's paths are relative to; its own folder if None.
        splits: of a manifest; all if None.
        scheme: that the label ids will be read with; a manifest must be of the same.

    Returns:
        ``{"case_id", "image"}``, the image being the path of the label map, by case.

    Raises:
        InputError: if there is nothing at ``source``, no label map in it, or two label maps of one name, or if a
            manifest is of another scheme.
    """
    path = Path(source)
    if not is_path(str(source)):
        raise InputError.of(quoted(str(source)), "a path", "none", "Check --input.")
    if path.suffix == ".json":
        return _list_manifest(read_manifest(path, dataset_dir or path.parent, check_files=False), splits, scheme)
    if path.is_dir():
        return _list_folder(path)
    if not path.exists():
        raise InputError.of(path, "a label map, a folder or a manifest", "nothing there", "Check --input.")
    return [{"case_id": _case_id(path), "image": str(path)}]


def _list_manifest(
    manifest: Manifest, splits: Sequence[str] | None, scheme: LabelScheme | None
) -> list[dict[str, Any]]:
    own = manifest.label_scheme
    same = ("ids", "vocabulary", "trim_csf")
    if scheme is not None and any(getattr(own, each) != getattr(scheme, each) for each in same):
        raise InputError.of(
            manifest.path,
            f"label maps of scheme {scheme.name!r}",
            f"{own.name!r}",
            f"Set the label scheme to {own.name}.",
        )
    return [
        {"case_id": case.case_id, "image": str(case.label)}
        for case in _some(manifest, manifest.cases if splits is None else manifest.select(splits))
    ]


def _some(manifest: Manifest, cases: Sequence[Case]) -> Sequence[Case]:
    if not cases:
        raise InputError.of(manifest.path, "cases in the chosen splits", "none", "Choose other --splits.")
    return cases


def _list_folder(folder: Path) -> list[dict[str, Any]]:
    files = sorted(file for file in folder.rglob("*") if file.name.endswith(_LABEL_MAP_ENDINGS))
    files = [file for file in files if not file.name.startswith(".") and SUFFIX not in file.name]
    files = [file for file in files if file.suffix != ".dcm" or is_dicom_seg(file)]
    files = [file for file in files if "_dseg." in file.name] or files or sorted(folder.rglob(_FREESURFER_NAME))
    if not files:
        raise InputError.of(
            folder,
            f"a folder with label maps (*.nii.gz, *.nii, *.nrrd, DICOM SEG, {_FREESURFER_NAME})",
            "none in it",
            "Check --input.",
        )
    names = [_case_id(file) for file in files]
    # Files of one name in different folders keep apart by their path.
    unique = [
        n if names.count(n) == 1 else _case_id(f.relative_to(folder), "_") for n, f in zip(names, files, strict=True)
    ]
    alike = [str(file) for name, file in zip(unique, files, strict=True) if unique.count(name) > 1]
    if alike:
        raise InputError.of(folder, "label maps of different names", ", ".join(alike), "Rename or move all but one.")
    return [{"case_id": name, "image": str(file)} for name, file in zip(unique, files, strict=True)]


def _case_id(path: Path, joiner: str | None = None) -> str:
    name = name_without_suffix(path.name if joiner is None else joiner.join(path.parts))
    return name.removesuffix("_dseg")


def list_pairs(manifest: Manifest, splits: Sequence[str], model_files: Sequence[str | Path]) -> list[dict[str, Any]]:
    """List the scans to evaluate on.

    ``{"case_id", "person_id", "image" (the label map), "t1w"}``, paths as text, and both paths again as ``label_path``
    and ``t1w_path``, which transforms leave as they are.

    Args:
        manifest: whose cases they are.
        splits: names of splits.
        model_files: the models that are evaluated.

    Raises:
        InputError: if no case of these splits has a scan, or if a model was trained on one of their people. Person 01
            of another data set is another person; where a model does not tell its data set, it counts as this one.
    """
    cases = _some(manifest, [case for case in manifest.select(splits) if case.image is not None])
    people = {case.person_id for case in cases}
    for model_file in model_files:
        parts = read_model_record(model_file).get("training", {}).values()
        seen = {
            person
            for part in parts
            if part.get("dataset") in (None, manifest.name)
            for person in people.intersection(part.get("people", ()))
        }
        if seen:
            raise InputError.of(
                manifest.path,
                "people whom the model has not seen",
                f"{', '.join(sorted(seen))}, on whom {model_file} was trained",
                "Choose other --splits, or a model that was trained on other people.",
            )
    return [_pair(case.case_id, case.person_id, str(case.label), str(case.image)) for case in cases]


def _pair(case_id: str, person_id: str, label: str, t1w: str) -> dict[str, Any]:
    paths = {"image": label, "t1w": t1w, "label_path": label, "t1w_path": t1w}
    return {"case_id": case_id, "person_id": person_id, **paths}


def leave_finished_out(
    cases: Sequence[dict[str, Any]], save: SaveSyntheticd, overwrite: bool, rank: int = 0, world_size: int = 1
) -> list[dict[str, Any]]:
    """Leave out the cases that are finished already, unless they are to be made again.

    Several processes look at some of the cases each, and then each takes an equal share of what is left.

    A case is finished if its volume is there and its sidecar tells that it was made from this label map by this model,
    with this scheme and these settings; any other volume of trispade's is made again.

    Args:
        cases: from `list_label_maps`.
        save: the transform that writes the volumes.
        overwrite: make all of them again, and replace what else there is under their names.
        rank: this process.
        world_size: number of processes.

    Raises:
        InputError: before any time is spent on a case, if the output folder cannot be written to, if there are files in
            it under a case's name that trispade did not make, or if two cases would get one name.
    """
    refuse_lone_ranks()
    folder = Path(save.output_dir)
    _check_names_differ([case["case_id"] for case in cases], save)
    _check_writable(folder)
    if save.output_format == "bids":
        by_first_rank(write_dataset_files)(folder)
    if overwrite:
        return list(cases)[rank::world_size]
    own = list(cases)[rank::world_size]
    case_ids = [case["case_id"] for case in own]
    in_the_way = [save.files_of(case_id)[0].name for case_id in case_ids if save.is_in_the_way(case_id)]
    in_the_way = sorted(name for part in gather(in_the_way) for name in part)
    if in_the_way:
        raise InputError.of(
            folder,
            "no files under the names of the volumes that trispade did not make",
            ", ".join(in_the_way),
            "Move them, choose another --output_dir, or set overwrite.",
        )
    finished = {case["case_id"] for case in own if save.is_finished(case["case_id"], case["image"])}
    finished = set().union(*gather(finished))
    unfinished = [case for case in cases if case["case_id"] not in finished]
    if len(unfinished) < len(cases):
        left_alone = len(cases) - len(unfinished)
        logger.info("%d of %d volumes are finished in %s and left alone", left_alone, len(cases), folder)
    return unfinished[rank::world_size]


def _check_names_differ(case_ids: Sequence[str], save: SaveSyntheticd) -> None:
    """Two cases may get one name where the format allows few characters."""
    by_name: dict[Path, str] = {}
    for case_id in case_ids:
        path = save.files_of(case_id)[0]
        if by_name.setdefault(path, case_id) != case_id:
            found = f"{by_name[path]} and {case_id} under {path.name}"
            raise InputError.of(save.output_dir, "a name for each case", found, "Rename one of the label maps.")


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError.of(
            folder, "a folder that can be written to", error.strerror or str(error), "Choose another --output_dir."
        ) from error
