"""Intensities in [-1, 1] as int16 on disk: half the size of float32, with steps of 1/32767."""

from __future__ import annotations

import numpy as np
import torch

_SCALE = 32767.0


def quantise(intensities: np.ndarray) -> np.ndarray:
    """Store intensities in [-1, 1] (float, any shape) as int16; values beyond are clipped."""
    return np.rint(np.clip(intensities, -1.0, 1.0) * _SCALE).astype(np.int16)


def dequantise(stored: np.ndarray) -> torch.Tensor:
    """Return what `quantise` stored as a float32 tensor in [-1, 1], of the same shape."""
    return torch.from_numpy(np.ascontiguousarray(stored, dtype=np.float32)).div_(_SCALE)
