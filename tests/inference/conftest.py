"""Trained parts of a tiny model, as the training stages leave them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trispade.engines import save_checkpoint
from trispade.engines.style import generator_architecture
from trispade.geometry import PLANES
from trispade.inference import load_generator
from trispade.labels import LabelClass, Vocabulary
from trispade.networks import FusionNet, SpadeGenerator

ARCHITECTURE = {"ngf": 2, "hidden": 4, "max_channels": 8}
FUSION_ARCHITECTURE = {"channels": [2, 3, 4], "norm": "none", "residual": False}
SETTINGS = {"spacing_mm": 1.0, "box": [32, 32, 32], "closing_mm": 5.0}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def vocabulary() -> Vocabulary:
    """Four classes; the last one falls back on the third."""
    return Vocabulary(
        "tiny",
        (
            LabelClass("background", None, "background", ""),
            LabelClass("white", None, "wm", ""),
            LabelClass("csf", None, "csf", ""),
            LabelClass("plexus", "csf", "csf", ""),
        ),
    )


@pytest.fixture
def write_generator(
    tmp_path: Path, vocabulary: Vocabulary, enliven: Callable[[nn.Module], nn.Module]
) -> Callable[..., nn.Module]:
    """Write the checkpoint of a ``train_spade`` run; gives the generator that is in it."""

    def write(
        plane: str,
        people: tuple[str, ...] = ("p1", "p2"),
        trained: tuple[int, ...] = (0, 1, 2),
        stage: str | None = None,
        style_dim: int = 0,
        encoder: nn.Module | None = None,
        **record: Any,
    ) -> nn.Module:
        architecture = generator_architecture(**ARCHITECTURE, style_dim=style_dim)
        generator = enliven(SpadeGenerator(vocabulary.num_classes, 1, **architecture)).eval()
        described = {
            "plane": plane,
            "preset": "tiny",
            "vocabulary": vocabulary.to_dict(),
            "architecture": architecture,
            "settings": SETTINGS,
            "people": list(people),
            "trained_classes": list(trained),
        }
        networks = {"generator": generator, **({} if encoder is None else {"encoder": encoder})}
        objects = {name: network.state_dict() for name, network in networks.items()}
        content = {"objects": objects, "record": {**described, **record}}
        save_checkpoint(content, tmp_path / (stage or f"spade_{plane}") / "last.pt")
        return generator

    return write


@pytest.fixture
def write_fusion(
    tmp_path: Path, vocabulary: Vocabulary, enliven: Callable[[nn.Module], nn.Module]
) -> Callable[..., nn.Module]:
    """Write the checkpoint of a ``train_fusion`` run on volumes of the generators that are there; gives its net."""

    def generator_hash(plane: str) -> str:
        path = tmp_path / f"spade_{plane}" / "last.pt"
        return load_generator(path, plane, vocabulary, ARCHITECTURE, SETTINGS, "cpu").hash

    def write(**record: Any) -> nn.Module:
        fusion = enliven(FusionNet(3, 1, **FUSION_ARCHITECTURE)).eval()
        described = {
            "preset": "tiny",
            "vocabulary": vocabulary.to_dict(),
            "architecture": FUSION_ARCHITECTURE,
            "settings": SETTINGS,
            "people": ["p3"],
            "trained_classes": [0, 1, 2],
            "generators": {plane: [generator_hash(plane)] for plane in PLANES},
        }
        content = {"objects": {"network": fusion.state_dict()}, "record": {**described, **record}}
        save_checkpoint(content, tmp_path / "fusion" / "last.pt")
        return fusion

    return write


@pytest.fixture
def trained_parts(
    write_generator: Callable[..., nn.Module], write_fusion: Callable[..., nn.Module]
) -> dict[str, nn.Module]:
    """Three generators and a fusion net, whose checkpoints lie in ``tmp_path``."""
    return {**{plane: write_generator(plane) for plane in PLANES}, "fusion": write_fusion()}
