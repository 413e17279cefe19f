"""The trained model as it is shipped: one plain state dict, and a JSON beside it that says what it is.

models/model.pt           state dict of a `TriplanarSynthesizer`
models/model.json         preset, vocabulary, architecture, trained classes, people, hash
models/discriminators.pt  what its generators were trained with, for whoever trains them on
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trispade import __version__
from trispade.data import plain_settings
from trispade.distributed import by_first_rank
from trispade.engines import (
    TRAINING_FORM,
    WEIGHTS_FORM,
    check_record,
    checkpoint_exists,
    hash_tensors,
    load_checkpoint,
    read_model_record,
    save_checkpoint,
)
from trispade.engines.discriminators import save_discriminators
from trispade.errors import InputError
from trispade.geometry import PLANES, Plane
from trispade.inference.fusion_choice import FIDELITY, add_to_record, choose_fusion, fusion_file
from trispade.inference.trained_parts import (
    TrainedGenerator,
    find_checkpoints,
    load_generator,
    require_full_generator,
    shared_style_dim,
)
from trispade.labels import Vocabulary
from trispade.networks import TriplanarSynthesizer, assemble, load_weights
from trispade.nifti import replacing

logger = logging.getLogger(__name__)

_FUSION_FORM = {
    "objects": {"network": WEIGHTS_FORM},
    "record": {**TRAINING_FORM["record"], "generators": {plane: [str] for plane in PLANES}},
}


@by_first_rank
def export_model(
    checkpoints_dir: str | Path,
    generator_checkpoint: str,
    fusion: str,
    fusion_dir: str | Path,
    fusion_checkpoint: str,
    model_file: str | Path,
    vocabulary: Vocabulary,
    architecture: Mapping[str, Any],
    fusion_architecture: Mapping[str, Any],
    settings: Mapping[str, Any],
    dtype: str,
) -> str:
    """Assemble three trained generators and the fusion net into the model that inference loads.

    With cross-fitting, the generators of the folds paint what the fusion net learns from, and stay behind: into the
    model goes, for each plane, one that was trained without ``held_out_fold``, on all people.

    Args:
        checkpoints_dir: folder with ``spade_<plane>/`` and, for cross-fitting, ``spade_<plane>_fold<k>/``.
        generator_checkpoint: ``last.pt`` or ``best.pt``.
        fusion: ``fidelity`` for the whole model; another name for this fusion net alone, beside a model that is there.
        fusion_dir: folder of the fusion net's checkpoints.
        fusion_checkpoint: ``last.pt`` or ``best.pt``; ``last.pt`` if the best was never kept.
        model_file: the state dict; the record goes beside it, with the ending ``.json``.
        vocabulary: that all parts must have.
        architecture: of the generators; their style is that of their training.
        fusion_architecture: of the fusion net.
        settings: of the prepared cache that all parts must have been trained on.
        dtype: of the stored weights, ``float16`` or ``float32``.

    Returns:
        One line that says what was written.

    Raises:
        InputError: if a part is missing or torn, or belongs to another vocabulary or preset, if a plane has generators
            of folds alone, if the fusion net has learnt from the volumes of other generators, if there is a model of
            another preset at ``model_file``, or, for a fusion net alone, none of these generators.
    """
    present: dict[Plane, list[TrainedGenerator]] = {}
    checkpoints: dict[str, Path] = {}
    for plane in PLANES:
        paths = find_checkpoints(checkpoints_dir, plane, generator_checkpoint)
        require_full_generator(paths, plane)
        checkpoints[plane] = paths[0]
        present[plane] = [load_generator(path, plane, vocabulary, architecture, settings, "cpu") for path in paths]
    generators = {plane: candidates[0] for plane, candidates in present.items()}
    shared_style_dim(generators.values())
    trained_fusion = _load_fusion(
        Path(fusion_dir) / fusion_checkpoint, vocabulary, fusion_architecture, settings, present
    )
    _keep_other_presets(model_file, str(trained_fusion["record"].get("preset")))
    fusion_state = _with_all_classes(trained_fusion, vocabulary)
    if fusion != FIDELITY:
        return _save_fusion(fusion, fusion_state, training_of(trained_fusion["record"]), model_file, dtype)
    trained = sorted(set.intersection(*(set(g.record["trained_classes"]) for g in generators.values())))
    model = assemble(
        {plane: generator.network.state_dict() for plane, generator in generators.items()},
        fusion_state,
        class_table=vocabulary.fallback_table(trained).tolist(),
        num_classes=vocabulary.num_classes,
        **generators["axial"].record["architecture"],
        **_fusion_arguments(fusion_architecture),
    )
    state = stored_state(model, dtype)
    parts = {**{f"generator_{plane}": g.record for plane, g in generators.items()}, "fusion": trained_fusion["record"]}
    record = _describe_model(state, parts, vocabulary, fusion_architecture, settings, trained)
    if discriminators := save_discriminators(checkpoints, model_file, dtype):
        record["discriminators"] = discriminators
    return save_model(state, record, model_file, dtype)


def _describe_model(
    state: Mapping[str, torch.Tensor],
    parts: Mapping[str, Mapping[str, Any]],
    vocabulary: Vocabulary,
    fusion_architecture: Mapping[str, Any],
    settings: Mapping[str, Any],
    trained_classes: Sequence[int],
) -> dict[str, Any]:
    """Collect what stands in ``model.json``, from the records of the checkpoints that the parts come from."""
    return {
        "trispade_version": __version__,
        "vocabulary": vocabulary.to_dict(),
        "architecture": dict(parts["generator_axial"]["architecture"]),
        "fusion_architecture": dict(fusion_architecture),
        "spacing_mm": settings["spacing_mm"],
        "closing_mm": settings["closing_mm"],
        "trained_classes": list(trained_classes),
        "training": {name: training_of(record) for name, record in parts.items()},
        "sha256": hash_tensors(state),
    }


def save_model(state: Mapping[str, torch.Tensor], record: Mapping[str, Any], model_file: str | Path, dtype: str) -> str:
    """Write a state dict and the record beside it; gives one line that says so."""
    save_checkpoint(state, model_file)
    _write_record(record, model_file)
    line = f"{model_file}: {sum(value.numel() for value in state.values()) / 1e6:.2f} M values as {dtype}"
    logger.info(line)
    return line


def _save_fusion(
    name: str, state: Mapping[str, torch.Tensor], training: Mapping[str, Any], model_file: str | Path, dtype: str
) -> str:
    """Write a fusion net beside the model, and tell of it in the model's record."""
    stored = {key: value.to(getattr(torch, dtype)) for key, value in state.items()}
    told = {"training": dict(training), "sha256": hash_tensors(stored)}
    record = add_to_record(read_model_record(model_file), name, told, model_file)
    save_checkpoint(stored, fusion_file(model_file, name))
    _write_record(record, model_file)
    line = f"{fusion_file(model_file, name)}: fusion net {name!r} as {dtype}"
    logger.info(line)
    return line


def _write_record(record: Mapping[str, Any], model_file: str | Path) -> None:
    with replacing(Path(model_file).with_suffix(".json")) as partial_path:
        partial_path.write_text(json.dumps(record, indent=1) + "\n")


def load_model(
    network: TriplanarSynthesizer,
    model_file: str | Path,
    vocabulary: Vocabulary,
    spacing_mm: float,
    closing_mm: float,
    device: torch.device | str,
    fusion: str = FIDELITY,
) -> TriplanarSynthesizer:
    """Load the trained weights into a synthesizer and bring it to a device, in eval mode.

    Args:
        network: of the architecture that the weights were trained with.
        model_file: the state dict; what the JSON beside it says is compared with the other arguments.
        vocabulary: of the label maps.
        spacing_mm: edge of a working voxel.
        closing_mm: radius of the ball that closes the brain mask.
        device: where it goes.
        fusion: name of the fusion net: ``fidelity``, or another that the model has beside it.

    Raises:
        InputError: if a file is missing or torn, or belongs to another vocabulary, preset or voxel size, or if the
            model has no such fusion net.
    """
    state = load_checkpoint(model_file, WEIGHTS_FORM)
    record = read_model_record(model_file)
    if record:
        remedy = "Use the preset, the voxel size and the vocabulary that it was trained with."
        expected = {"vocabulary": vocabulary.to_dict(), "spacing_mm": spacing_mm, "closing_mm": closing_mm}
        check_record(model_file, record, remedy, **expected)
        label_slices = {"label_slices": record.get("architecture", {}).get("label_slices", 1)}
        check_record(model_file, label_slices, "Set label_slices to that.", label_slices=network.label_slices)
        # The shapes of the weights do not tell whether the fusion net corrects the mean of the planes.
        told = record.get("fusion_architecture", {})
        check_record(model_file, told, remedy, residual=network.fusion.residual)
    else:
        logger.warning("%s: no .json beside it, so nothing tells whether its vocabulary is this one", model_file)
    load_weights(network, state, str(model_file))
    if record and record.get("sha256") != hash_tensors(state):
        raise InputError.of(
            model_file, "the weights that the .json beside it describes", "others", "Copy both files together."
        )
    choose_fusion(network, model_file, record, fusion)
    return network.requires_grad_(False).eval().to(device)


def describe_model(model_file: str | Path) -> dict[str, Any]:
    """Say for a sidecar which model made a volume: its file, the hash of its weights, the preset of its training."""
    record = read_model_record(model_file)
    presets = {part.get("preset") for part in record.get("training", {}).values()}
    return {
        "file": Path(model_file).name,
        "sha256": record.get("sha256"),
        "preset": ", ".join(sorted(preset for preset in presets if preset)) or None,
    }


def _load_fusion(
    path: Path,
    vocabulary: Vocabulary,
    architecture: Mapping[str, Any],
    settings: Mapping[str, Any],
    present: Mapping[Plane, Sequence[TrainedGenerator]],
) -> dict[str, Any]:
    if not checkpoint_exists(path):
        path = path.with_name("last.pt")
    fusion = load_checkpoint(path, _FUSION_FORM)
    record = fusion["record"]
    check_record(path, record, vocabulary=vocabulary.to_dict(), architecture=dict(architecture))
    check_record(path, record, settings=plain_settings(settings))
    for plane, generators in present.items():
        if not set(record["generators"][plane]) <= {generator.hash for generator in generators}:
            raise InputError.of(
                path,
                f"a fusion net that learnt from the present {plane} generator",
                "one that learnt from another",
                f"Run synthesize_planes, remove {path.parent}, and run train_fusion.",
            )
    return fusion


def _with_all_classes(fusion: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, torch.Tensor]:
    """Give classes that the fusion net has not met, though the generators have, the vector of their stand-in."""
    state = dict(fusion["objects"]["network"])
    if "embedding.weight" in state:
        table = torch.from_numpy(vocabulary.fallback_table(fusion["record"]["trained_classes"]))
        state["embedding.weight"] = state["embedding.weight"][table]
    return state


def _keep_other_presets(model_file: str | Path, preset: str) -> None:
    there = read_model_record(model_file).get("training", {}).get("fusion", {}).get("preset")
    if there not in (None, preset):
        raise InputError.of(
            model_file, f"nothing, or a model of preset {preset}", f"one of {there}", "Move it, or set --model_file."
        )


def _fusion_arguments(architecture: Mapping[str, Any]) -> dict[str, Any]:
    return {("residual" if name == "residual" else f"fusion_{name}"): value for name, value in architecture.items()}


def stored_state(model: nn.Module, dtype: str) -> dict[str, torch.Tensor]:
    """Give the state dict with its weights in another type; running statistics may lie beyond what float16 holds."""
    if dtype not in ("float16", "float32"):
        raise InputError.of("model_dtype", "float16 or float32", repr(dtype), "Correct the setting.")
    weights = {name for name, _ in model.named_parameters()}
    state = model.state_dict()
    return {name: value.to(getattr(torch, dtype)) if name in weights else value for name, value in state.items()}


def training_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Keep of a checkpoint's record what tells of its training."""
    return {key: value for key, value in record.items() if key not in ("vocabulary", "architecture")}
