"""Run a stage of the bundle: its config, a preset and a few overrides, through MONAI's own workflow."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trispade.configs import CODE_SIGNS, read_configs
from trispade.errors import InputError, unwrapping_input_errors
from trispade.untrusted import is_file, quoted, read_json

BUNDLE_VARIABLE = "TRISPADE_BUNDLE"
MULTI_GPU = "multi_gpu"
"""The overlay that makes the processes of torchrun work together."""

_RUN = ("initialize", "run", "finalize")


def find_bundle(bundle: str | Path | None = None) -> tuple[Path, str]:
    """Find the bundle: an explicit folder, then ``$TRISPADE_BUNDLE``, then the ``bundle/`` of a checkout.

    Returns:
        The bundle's root, and in words where it was found.

    Raises:
        InputError: if there is no bundle there.
    """
    named = [(bundle, "--bundle"), (os.environ.get(BUNDLE_VARIABLE) or None, f"${BUNDLE_VARIABLE}")]
    for folder, origin in named:
        if folder is not None:
            if not _is_bundle(Path(folder)):
                expected = f"a bundle with configs/metadata.json (from {origin})"
                raise InputError.of(folder, expected, "none", "Name its root folder.")
            return Path(folder), origin
    checkout = Path(__file__).parents[2] / "bundle"
    if not _is_bundle(checkout):
        raise InputError.of(
            "bundle",
            "the root folder of a trispade bundle",
            "no folder",
            f"Give --bundle, or set ${BUNDLE_VARIABLE}.",
        )
    return checkout, "the checkout"


def run_stage(
    bundle: Path, stage: str, preset: str | None = None, overlay: str | None = None, **overrides: Any
) -> None:
    """Run a stage as ``python -m monai.bundle run`` would; if torchrun started this process, with the others.

    Args:
        bundle: the bundle's root.
        stage: name of a config (``train_spade``).
        preset: name of a preset, or None for the config's own values.
        overlay: name of a config in ``overlays/`` whose values come last, or None.
        overrides: values of config keys; those that are None are left to the config.

    Raises:
        InputError: bad input, out of whatever MONAI has wrapped it in; or several processes for a stage of one.
    """
    from trispade.distributed import started_by_torchrun  # imports torch

    read_json(bundle / "configs" / "metadata.json", "the metadata of a bundle")
    files = _config_files(bundle, stage, preset, overlay)
    values = {"bundle_root": _config_value(bundle), **_config_values(overrides)}
    parser = read_configs(files, values, _RUN)
    if started_by_torchrun():
        if "world_size" not in parser:
            raise InputError.of(stage, "one process", "those of torchrun", "Run it without torchrun.")
        files.append(_config(bundle / "configs" / "overlays", MULTI_GPU))
        read_configs(files, values, _RUN)
    with unwrapping_input_errors():
        _run_workflow(bundle, files, values)


def build_components(
    bundle: Path, stage: str, names: Sequence[str], preset: str | None = None, **overrides: Any
) -> list[Any]:
    """Build components of a stage, with all that they refer to, without running it.

    Nothing of the config's ``initialize`` is done: how errors are shown and what signals do stays the caller's matter.

    Args:
        bundle: the bundle's root.
        stage: name of a config (``inference``).
        names: keys of the config (``network``).
        preset: name of a preset, or None for the config's own values.
        overrides: values of config keys; those that are None are left to the config.

    Returns:
        The components, in the order of their names.

    Raises:
        InputError: bad input, out of whatever MONAI has wrapped it in; an override of no key of the config.
    """
    files, values = _config_files(bundle, stage, preset), _config_values(overrides)
    parser = read_configs(files, {"bundle_root": _config_value(bundle), **values}, names, known=list(values))
    with unwrapping_input_errors():
        return [parser.get_parsed_content(name) for name in names]


def _run_workflow(bundle: Path, files: list[Path], values: dict[str, Any]) -> None:
    from monai.bundle import ConfigWorkflow  # seconds of import, which `trispade --help` need not take

    # It remarks on choices that are made here: no workflow type, and presets in a folder of their own.
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)
    workflow = ConfigWorkflow(
        config_file=[str(file) for file in files],
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=str(bundle / "configs" / "logging.conf"),
        workflow_type=None,
        **values,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def _is_bundle(folder: Path) -> bool:
    return (folder / "configs" / "metadata.json").is_file()


def _config_files(bundle: Path, stage: str, preset: str | None, overlay: str | None = None) -> list[Path]:
    configs = bundle / "configs"
    files = [_config(configs, stage)] + ([_config(configs / "presets", preset)] if preset else [])
    return files + ([_config(configs / "overlays", overlay)] if overlay else [])


def _config(folder: Path, name: str) -> Path:
    """A config of a checkout's bundle, YAML, or of a packaged one, JSON."""
    for file in (folder / f"{name}.yaml", folder / f"{name}.json"):
        if file.parent == folder and is_file(file):
            return file
    present = {*folder.glob("*.yaml"), *folder.glob("*.json")} - {folder / "metadata.json"}
    known = ", ".join(sorted(each.stem for each in present))
    raise InputError.of(folder, f"one of {known}", quoted(name), "Check the name of the config.")


def _config_values(overrides: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in overrides.items():
        if isinstance(value, str) and value.startswith(CODE_SIGNS):
            raise InputError.of(key, "a plain value", f"{quoted(value)}, code in a config", "Put ./ before a path.")
    return {key: _config_value(value) for key, value in overrides.items() if value is not None}


def _config_value(value: Any) -> Any:
    """Turn a path into text that MONAI's config reader takes as it is: not as an expression, a reference or a macro."""
    if not isinstance(value, Path):
        return value
    if "#" in str(value):
        # The reader replaces every "#" by "::", the separator of ids, and would look in a folder of another name.
        raise InputError.of(value, "a path without '#', which means something else in configs", "one", "Rename it.")
    return f"./{value}" if str(value).startswith(CODE_SIGNS) else str(value)
