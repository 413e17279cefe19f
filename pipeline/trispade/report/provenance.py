"""What pages say of how they came to be: the command, the versions, the files by their hashes, the time."""

from __future__ import annotations

import datetime
import hashlib
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path

from trispade import __version__
from trispade.report.page import HashedFile

PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "scipy", "nibabel", "itk")


def command_line() -> str:
    """Give the command that is running, as it was typed."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Give the versions of trispade, Python and the packages that numbers depend on."""
    packages = {name: metadata.version(name) for name in PACKAGES}
    return {"trispade": __version__, "python": platform.python_version(), **packages}


def hashed(name: str, path: str | Path) -> HashedFile:
    """Name a file and hash its content."""
    return HashedFile(name, hashlib.sha256(Path(path).read_bytes()).hexdigest())


def now() -> str:
    """Give date and time with their zone, to the minute."""
    return datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
