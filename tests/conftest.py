"""What the tests of several packages share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from trispade.data import PreparedCase
from trispade.data.quantised import quantise
from trispade.geometry import PLANES, slice_axis


@pytest.fixture
def make_case(tmp_path: Path) -> Callable[..., PreparedCase]:
    """Write a small prepared case: an asymmetric box of three classes around (X, Y, Z) = (14, 17, 15)."""

    def make(
        case_id: str = "a",
        person_id: str | None = None,
        split: str = "gan_train",
        fold: int | None = None,
        shape: tuple[int, int, int] = (32, 32, 32),
        seed: int = 0,
    ) -> PreparedCase:
        generator = np.random.default_rng(seed)
        label_map = np.zeros(shape, np.uint8)
        label_map[10:17, 14:22, 12:18] = generator.integers(1, 4, (7, 8, 6))
        t1w = np.where(label_map > 0, label_map / 4 + generator.normal(0, 0.05, shape), -1.0)
        folder = tmp_path / "cache" / f"{case_id}-{'0' * 12}"
        folder.mkdir(parents=True)
        np.save(folder / "label_map.npy", label_map)
        np.save(folder / "t1w.npy", quantise(t1w))
        record = {
            "classes": [0, 1, 2, 3],
            "labelled_slices": {
                plane: np.flatnonzero(np.moveaxis(label_map > 0, slice_axis(plane), 0).any(axis=(1, 2))).tolist()
                for plane in PLANES
            },
        }
        return PreparedCase(case_id, person_id or f"person-{case_id}", split, fold, folder, f"key-{case_id}", record)

    return make


@pytest.fixture
def enliven() -> Callable[[nn.Module], nn.Module]:
    """Give a network weights and running statistics large enough for every path to show in its output."""

    def enliven(network: nn.Module) -> nn.Module:
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
            nn.init.normal_(parameter, std=0.7 / fan_in**0.5)
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                nn.init.normal_(buffer, std=0.3)
        for part in network.modules():
            if is_parametrized(part, "weight"):
                for _ in range(10):
                    part.weight  # noqa: B018  each look at a weight is one power iteration
        return network

    return enliven
