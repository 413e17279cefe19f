"""The one step of the build that setup.cfg cannot say: ``data_manifests/`` goes into the wheel as package data.

It stays at the top of the checkout, the only copy; an editable install reads it there (`labels.data_manifests_folder`).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithDataManifests(build_py):
    """Copy ``data_manifests/`` to ``trispade/data_manifests/`` of whatever is built."""

    def run(self) -> None:
        """Build the package, then bring its data manifests up to date."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "trispade" / "data_manifests"
            shutil.rmtree(target, ignore_errors=True)  # what an earlier build has left
            shutil.copytree("data_manifests", target, ignore=shutil.ignore_patterns(".*"))


setup(cmdclass={"build_py": BuildWithDataManifests})
