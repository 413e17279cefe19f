"""Zips of a packaged bundle, good ones and bad ones."""

from __future__ import annotations

import hashlib
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
VERSION = json.loads((ROOT / "bundle" / "configs" / "metadata.json").read_text())["version"]
FOLDER = f"trispade-{VERSION}"

Files = dict[str, bytes | None]


def write_zip(path: Path, files: Files, sums: bytes | None = None, **entry: Any) -> Path:
    """Write a zip as `package_bundle` does, under a hash list that fits it; None for a file that is left out.

    Args:
        path: the zip.
        files: contents by their full names.
        sums: another list of hashes.
        entry: fields of the last entry, such as ``external_attr``.
    """
    present = {name: content for name, content in files.items() if content is not None}
    names = [name for name in present if name != f"{FOLDER}/SHA256SUMS"]
    lines = [f"{hashlib.sha256(present[n]).hexdigest()}  {n.removeprefix(f'{FOLDER}/')}\n" for n in names]
    present = {
        f"{FOLDER}/SHA256SUMS": "".join(lines).encode() if sums is None else sums,
        **{name: present[name] for name in names},
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name in present:
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o100644 << 16
            if name == names[-1]:
                for key, value in entry.items():
                    setattr(info, key, value)
            archive.writestr(info, present[name])
    return path


def write_twice(path: Path, files: Files, name: str, content: bytes) -> Path:
    """Write a zip as `write_zip`, and one more entry whose name may be there already."""
    write_zip(path, files)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")  # of the duplicate name
        archive.writestr(zipfile.ZipInfo(name), content)
    return path


def read_zip(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
