"""The label maps in this folder, and what ``anatomies.json`` beside them says of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
TABLE = "anatomies.json"
LABEL_SCHEME = "freesurfer"


@dataclass(frozen=True)
class EmbeddedAnatomy:
    """A label map of nobody.

    Attributes:
        name: of the case.
        description: what kind of brain it is.
        file: name of the label map, ids of `LABEL_SCHEME`, 1 mm, RAS+.
        sha256: of the file.
        sources: names of the people's label maps that it is blended from.
        volume_ml: structure ("cortex", "lateral_ventricles") to its volume.
        highest_dice: structure to alignment ("centred", "rigid", "affine") to the highest Dice with any of the ten
            label maps that the anatomies are made from.
    """

    name: str
    description: str
    file: str
    sha256: str
    sources: tuple[str, ...]
    volume_ml: Mapping[str, float]
    highest_dice: Mapping[str, Mapping[str, float]]

    @property
    def path(self) -> Path:
        """Where the label map lies."""
        return FOLDER / self.file


def embedded_anatomies() -> tuple[EmbeddedAnatomy, ...]:
    """Tell what label maps the package carries."""
    rows = json.loads((FOLDER / TABLE).read_text(encoding="utf-8"))["anatomies"]
    return tuple(EmbeddedAnatomy(**{**row, "sources": tuple(row["sources"])}) for row in rows)
