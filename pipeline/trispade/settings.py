"""The plain settings of the bundle's configs, and what each may be: one table, checked before anything is run.

The bounds are there so that a slip of the keyboard is told of in one line instead of by a library after an hour. They
leave room for several times the published sizes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trispade.errors import InputError
from trispade.geometry import PLANES
from trispade.manifests import LARGEST_FOLD, SPLITS
from trispade.transforms.output_format import FORMATS
from trispade.untrusted import is_path, quoted


@dataclass(frozen=True)
class Kind:
    """What a setting may be.

    Attributes:
        words: for the message.
        fits: tells whether a value is one.
    """

    words: str
    fits: Callable[[Any], bool]


def whole(smallest: int, largest: int, multiple: int = 1, remainder: int = 0) -> Kind:
    """A whole number; of all multiples of another if asked for, or with a remainder over them."""
    of_what = {(1, 0): "", (2, 1): ", odd"}.get((multiple, remainder), f", a multiple of {multiple}")
    return Kind(
        f"a whole number from {smallest} to {largest}{of_what}",
        lambda value: _is_number(value, int) and smallest <= value <= largest and value % multiple == remainder,
    )


def number(smallest: float, largest: float) -> Kind:
    """A finite number."""
    return Kind(
        f"a number from {smallest:g} to {largest:g}",
        lambda value: _is_number(value, int | float) and math.isfinite(value) and smallest <= value <= largest,
    )


def one_of(*choices: str) -> Kind:
    """One of some words."""
    return Kind(f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices)


def several(kind: Kind, fewest: int, most: int) -> Kind:
    """A list of such."""
    how_many = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return Kind(
        f"a list of {how_many}, each {kind.words}",
        lambda value: isinstance(value, list | tuple) and fewest <= len(value) <= most and all(map(kind.fits, value)),
    )


def or_null(kind: Kind) -> Kind:
    """Such, or null."""
    return Kind(f"{kind.words} or null", lambda value: value is None or kind.fits(value))


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


FLAG = Kind("true or false", lambda value: isinstance(value, bool))
PATH = Kind("a path", is_path)
NAME = Kind(
    "a name of letters, digits, '.', '_' and '-'",
    lambda value: isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{,63}", value) is not None,
)
SPLIT_NAMES = several(one_of(*SPLITS), 1, len(SPLITS))
WIDTH, EPOCHS, BATCH, PATCH = whole(1, 1024), whole(1, 100_000), whole(1, 4096), whole(16, 512, 16)
SEED, SHARE, WEIGHT = whole(0, 2**32 - 1), number(0, 1), number(0, 1e6)

_TABLE = {
    "amp overwrite progress residual resume": FLAG,
    "bundle_root cache_dir direct_model_file downstream_dir input manifest_file model_file": PATH,
    "output_dir planes_dir results_file stage_dir work_dir": PATH,
    "dataset_dir discriminator_checkpoint label_scheme": or_null(PATH),
    "perceptual_weights_file start_checkpoint style_encoder_file": or_null(PATH),
    "direct_checkpoint fusion fusion_checkpoint generator_checkpoint preset": NAME,
    "annotated_splits label_mean_splits real_splits test_splits train_splits": SPLIT_NAMES,
    "training_splits unseen_splits": SPLIT_NAMES,
    "splits": or_null(SPLIT_NAMES),
    "arm": one_of("real", "synthetic", "both", "real_all"),
    "backend": or_null(one_of("nccl", "gloo")),
    "fusion_norm": one_of("none", "batch"),
    "model_dtype": one_of("float16", "float32"),
    "output_dtype": one_of("float32", "int16"),
    "output_format": one_of(*FORMATS),
    "plane": one_of(*PLANES),
    "unknown_labels": one_of("error", "background"),
    # Grids and patches.
    "spacing_mm": number(0.1, 10),
    "closing_mm": number(0, 50),
    "box": several(whole(32, 1024, 32), 3, 3),
    "direct_patch_size patch_size": PATCH,
    "downstream_patch": several(PATCH, 3, 3),
    "patch_overlap": number(0, 0.9),
    "value_range": several(number(-1e6, 1e6), 2, 2),
    # Networks.
    "ngf ndf": whole(1, 256),
    "hidden": WIDTH,
    "max_channels": or_null(whole(1, 4096)),
    "label_slices": whole(1, 15, 2, 1),
    "num_scales": whole(1, 5),
    "num_layers": whole(1, 6),
    "style_dim": whole(0, 1024),
    "fusion_channels": several(WIDTH, 1, 5),
    "fusion_label_channels": whole(0, 256),
    "direct_channels": several(WIDTH, 5, 5),
    "downstream_channels": several(WIDTH, 2, 5),
    # Training.
    "seed": SEED,
    "style_seed": or_null(SEED),
    "max_epochs spade_epochs fusion_epochs direct_epochs downstream_epochs val_interval": EPOCHS,
    "slice_batch_size patch_batch_size direct_batch_size downstream_batch_size": BATCH,
    "patches_per_scan recalibration_batches": BATCH,
    "downstream_patches": whole(1, 1_000_000),
    "learning_rate generator_rate discriminator_rate downstream_rate": SHARE,
    "decay_from fusion_decay_from direct_decay_from augmentation_probability": SHARE,
    "betas": several(number(0, 0.9999), 2, 2),
    "feature_matching_weight reconstruction_weight perceptual_weight style_divergence_weight texture_weight": WEIGHT,
    "max_gradient_norm": number(1e-9, 1e9),
    "average_half_life": or_null(number(1e-3, 1e9)),
    "rotation_degrees": number(0, 180),
    "scaling": number(0, 0.9),
    "displacement_mm deformation_sd_mm": number(0, 100),
    "knots_mm deformation_knots_mm": number(1, 256),
    "num_deformed": whole(0, 1000),
    "held_out_fold": or_null(whole(0, LARGEST_FOLD)),
    "num_real": or_null(whole(1, 100_000)),
    # The run.
    "max_minutes": or_null(number(0, 1e6)),
    "timeout_minutes": number(0.01, 1e6),
    "num_workers": whole(0, 256),
    "checkpoint_part_mib": or_null(number(1e-6, 1e6)),
    "rank": whole(0, 100_000),
    "world_size": whole(1, 100_000),
}
SETTINGS: Mapping[str, Kind] = {name: kind for names, kind in _TABLE.items() for name in names.split()}


def check_settings(values: Mapping[str, Any], subject: object) -> None:
    """Check the settings that are in the table; those that refer to others or are expressions are left to MONAI.

    Args:
        values: of a config's keys.
        subject: the config, for the message where several are wrong.

    Raises:
        InputError: that names each setting that is another.
    """
    problems = [
        (name, kind.words, quoted(values[name]))
        for name, kind in SETTINGS.items()
        if name in values and not is_code(values[name]) and not kind.fits(values[name])
    ]
    if len(problems) == 1:
        raise InputError.of(*problems[0], "Correct the setting.")
    if problems:
        lines = [f"{name}: expected {words}, got {found}. Correct the setting." for name, words, found in problems]
        raise InputError.of_many(f"{subject}: {len(problems)} settings to correct:", lines)


def is_code(value: object) -> bool:
    """Tell whether MONAI takes a value for a reference, an expression or a macro."""
    return isinstance(value, str) and value.startswith(("@", "$", "%"))
