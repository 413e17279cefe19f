"""Label ids for the segments of a DICOM SEG, whose numbers only count them: by their labels, in a scheme's words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from trispade.dicom_seg import is_dicom_seg, read_segment_labels
from trispade.errors import InputError
from trispade.labels import LabelScheme, read_table


def segment_labels_of(path: str | Path) -> dict[int, str] | None:
    """Read what the segments of a label map are called; None if it is no DICOM SEG, whose voxels are label ids then.

    Raises:
        InputError: whatever `read_segment_labels` finds wrong.
    """
    return read_segment_labels(path) if is_dicom_seg(Path(path)) else None


def segments_to_ids(
    numbers: np.ndarray,
    labels: Mapping[int, str],
    scheme: LabelScheme,
    source: str,
    unknown_labels: str = "error",
) -> np.ndarray:
    """Turn segment numbers into label ids.

    A segment's label is a name in the scheme's table, or an id as a number ("17"). Names are compared without regard to
    capitals, and to which of space, ``-`` and ``_`` is between words.

    Args:
        numbers: any shape; segment numbers, 0 for none.
        labels: segment number -> segment label.
        scheme: whose names these are.
        source: file they come from, for messages.
        unknown_labels: "error", or "background" to send segments of other labels to id 0.

    Returns:
        int32 label ids of the same shape.

    Raises:
        InputError: if segments that occur have labels that are neither; all are listed.
    """
    known = _ids_by_name(scheme)
    found = {
        number: int(label) if re.fullmatch("[0-9]{1,9}", label) else known.get(_plain(label))
        for number, label in labels.items()
    }
    occurring = [int(number) for number in np.unique(numbers) if number]
    unknown = [repr(labels.get(number, f"no label for {number}")) for number in occurring if found.get(number) is None]
    if unknown and unknown_labels == "error":
        expected = f"segments labelled with names or ids of scheme {scheme.name!r} ({scheme.path})"
        remedy = "Rename the segments, choose another --scheme, or set unknown_labels=background."
        raise InputError.of(source, expected, ", ".join(unknown), remedy)
    ids = np.zeros(max([0, *occurring]) + 1, np.int32)
    for number in occurring:
        ids[number] = found.get(number) or 0
    return ids[numbers]


def _ids_by_name(scheme: LabelScheme) -> dict[str, int]:
    """Ids by their plain names; a name that several ids have means none of them."""
    rows = [(_plain(row["name"]), int(row["id"])) for row in read_table(scheme.path, ("id", "name"))]
    times = Counter(name for name, _ in rows)
    return {name: id_ for name, id_ in rows if times[name] == 1}


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
