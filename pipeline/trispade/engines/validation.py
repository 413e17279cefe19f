"""The metric that chooses the best checkpoint while a stage trains."""

from __future__ import annotations

import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from torch import Tensor

from trispade.distributed import gather


class BrainPSNR(Metric):
    """Mean over volumes of the PSNR within the brain, intensities taken from [-1, 1] to [0, 1] (dB).

    It follows training on the prepared grid, without the gain-and-offset fit of the evaluation, so its values are not
    those of the results table. Reads ``pred`` and ``label`` (B, 1, X, Y, Z) of the output and ``mask`` of the batch.
    With several processes it is the mean over the volumes of all; one that several have had, told by ``case_id`` of the
    batch, counts once.
    """

    def reset(self) -> None:
        """Forget all volumes."""
        self._values: list[float] = []
        self._cases: list[str] = []

    def iteration_completed(self, engine: Engine) -> None:
        """Take in the engine's current batch."""
        self.update((engine.state.output["pred"], engine.state.output["label"], engine.state.batch["mask"]))
        self._cases += engine.state.batch.get("case_id", [])

    def update(self, output: tuple[Tensor, Tensor, Tensor]) -> None:
        """Take in (B, 1, X, Y, Z) predicted and real volumes and their brain masks."""
        for y_pred, y, mask in zip(*output, strict=True):
            inside = mask.to(y.device)
            error = (y_pred.clamp(-1.0, 1.0)[inside].float() - y[inside].float()) / 2.0
            self._values.append(float(-10.0 * torch.log10(error.square().mean().clamp_min(1e-12))))

    def compute(self) -> float:
        """Return the mean over volumes."""
        parts = gather((self._cases, self._values))
        if len(parts) == 1:
            values = self._values
        else:
            once = {case: value for cases, own in parts for case, value in zip(cases, own, strict=True)}
            values = list(once.values())
        return sum(values) / max(1, len(values))
