"""Dice and cross-entropy of logits that are coarser than the label map."""

from __future__ import annotations

from monai.losses import DiceCELoss
from monai.networks.utils import one_hot
from torch import Tensor
from torch.nn import functional

from trispade.errors import InputError


class CellDiceCELoss(DiceCELoss):
    """MONAI's Dice and cross-entropy loss where each logit stands for a cell of voxels.

    The target of a cell is the share of each class among its voxels, so that nothing of the label map is thrown away
    and a structure thinner than a cell still counts. Where the sizes are equal it is MONAI's loss, batch Dice with
    softmax.

    Source:
        `monai.losses.DiceCELoss`; shares as targets are ours.
    """

    def __init__(self) -> None:
        super().__init__(softmax=True, batch=True)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compare logits with the label map.

        Args:
            input: (B, C, X/f, Y/f, Z/f) logits; f is any whole number.
            target: (B, 1, X, Y, Z) class indices.

        Raises:
            InputError: if the label map's sizes are not one multiple of the logits'.
        """
        factors = {large / small for large, small in zip(target.shape[2:], input.shape[2:], strict=True)}
        if len(factors) > 1 or not (factor := factors.pop()).is_integer():
            raise InputError.of(
                "label map",
                f"a whole multiple of the logits' {tuple(input.shape[2:])} voxels",
                str(tuple(target.shape[2:])),
                "Use a patch size that the network divides evenly.",
            )
        shares = functional.avg_pool3d(one_hot(target, num_classes=input.shape[1]), int(factor))
        loss: Tensor = super().forward(input, shares)
        return loss
