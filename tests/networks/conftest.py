"""What the tests of the networks share."""

from __future__ import annotations

import sys

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def _without_itk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide itk from scripting, which looks at every module and so loads all of itk's lazy ones, in minutes."""
    for name in [name for name in sys.modules if name == "itk" or name.startswith("itk.")]:
        monkeypatch.delitem(sys.modules, name)
