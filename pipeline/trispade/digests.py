"""Hashes of input files, and of the folders that hold an image as many files."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sha256_of(path: str | Path) -> str:
    """Hash a file; of a folder, the names and hashes of its files, those in folders of it and hidden ones left out.

    Returns:
        64 hexadecimal digits (SHA-256).

    Raises:
        OSError: if something cannot be read.
    """
    path, digest = Path(path), hashlib.sha256()
    if path.is_dir():
        for file in files_in(path):
            digest.update(f"{sha256_of(file)}  {file.name}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def files_in(path: Path) -> list[Path]:
    """List what `sha256_of` reads: the file, or the files of a folder by name."""
    if not path.is_dir():
        return [path]
    return sorted(each for each in path.iterdir() if each.is_file() and not each.name.startswith("."))
