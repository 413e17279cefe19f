"""One step of the generator, one of the discriminator: everything else about training is an event handler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from ignite.engine import Engine
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import Tensor, nn
from torch.optim import Optimizer

from trispade.distributed import num_ranks
from trispade.engines.data_parallel import unwrapped
from trispade.engines.style import case_of_slices
from trispade.errors import InputError
from trispade.geometry import middle_slice
from trispade.networks.style_encoder import draw_style

Loss = Callable[..., Tensor]
Features = list[list[Tensor]]


class SpadeTrainer(SupervisedTrainer):
    """Alternates one generator step and one discriminator step on the same batch of slices.

    A batch holds ``label_map`` (B, S, H, W) class indices, the slice to paint in the middle of what the generator sees,
    and ``t1w`` (B, 1, H, W) in [-1, 1]; for a style encoder also ``case_id``, a name a slice. After an iteration,
    ``state.output`` holds both images, ``pred`` (B, 1, H, W), ``loss`` (the generator's sum) and each loss by name.

    Args:
        device: where the networks are.
        max_epochs: length of the run.
        train_data_loader: loader of batches.
        network: the generator.
        optimizer: of the generator.
        discriminator: sees the middle label slice and the image; returns, for each scale, its feature maps, the
            logits last.
        discriminator_optimizer: of the discriminator.
        generator_loss: features of the fake -> scalar.
        discriminator_loss: features of the real and of the fake -> scalar.
        feature_matching: features of the fake and of the real -> scalar.
        feature_matching_weight: its weight.
        reconstruction_weight: weight of the mean absolute difference of fake and real image; 0 as published.
        perceptual: fake and real image -> scalar, or None.
        perceptual_weight: its weight.
        encoder: estimates mean and log variance of a slice's style code, which the generator then gets; None for no
            style. It learns in the generator's step: give its parameters to ``optimizer``.
        style_divergence: mean and log variance -> scalar; needed with an encoder.
        style_divergence_weight: its weight.
        amp: autocast: on CUDA bfloat16, or float16 with loss scaling where the card has no bfloat16; on CPU bfloat16.
        epoch_length: iterations an epoch; the loader's length if None.
        train_handlers: MONAI or Ignite handlers.

    Attributes:
        scalers: name to gradient scaler; `TrainingState` keeps their state.

    Source: Park et al. 2019, section 3 and appendix A. There the fake is painted anew for the discriminator's step,
    after the generator's; here both steps share one forward pass of the generator. There each image has its own style;
    here the slices of one volume in a batch share a code, drawn from the mean of their estimates.

    Raises:
        InputError: if there is an encoder and more than one process.
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable,
        network: nn.Module,
        optimizer: Optimizer,
        discriminator: nn.Module,
        discriminator_optimizer: Optimizer,
        generator_loss: Loss,
        discriminator_loss: Loss,
        feature_matching: Loss,
        feature_matching_weight: float,
        reconstruction_weight: float = 0.0,
        perceptual: Loss | None = None,
        perceptual_weight: float = 0.0,
        encoder: nn.Module | None = None,
        style_divergence: Loss | None = None,
        style_divergence_weight: float = 0.0,
        amp: bool = False,
        epoch_length: int | None = None,
        train_handlers: Sequence | None = None,
    ) -> None:
        if encoder is not None and num_ranks() > 1:
            # The slices of a volume, which share a code, would be those of several processes.
            raise InputError.of("style_dim", "0 with several processes", "a style", "Train it with one.")
        super().__init__(
            device=torch.device(device),
            max_epochs=max_epochs,
            train_data_loader=train_data_loader,
            network=network.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
            optimizer=optimizer,
            loss_function=generator_loss,
            epoch_length=epoch_length,
            train_handlers=train_handlers,
            decollate=False,
        )
        self.discriminator = discriminator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.discriminator_optimizer = discriminator_optimizer
        self.discriminator_loss = discriminator_loss
        self.feature_matching = feature_matching
        self.feature_matching_weight = feature_matching_weight
        self.reconstruction_weight = reconstruction_weight
        self.perceptual = perceptual
        self.perceptual_weight = perceptual_weight
        self.encoder = encoder
        self.style_divergence = style_divergence
        self.style_divergence_weight = style_divergence_weight
        self.mixed_precision = amp
        self.amp_dtype = _autocast_dtype(self.state.device)
        scales_losses = amp and self.amp_dtype == torch.float16
        self.scalers = {
            name: torch.amp.GradScaler(self.state.device.type, enabled=scales_losses)
            for name in ("generator_scaler", "discriminator_scaler")
        }

    def _iteration(self, engine: Engine, batchdata: dict[str, Any]) -> dict[str, Tensor]:
        label_map = batchdata["label_map"].to(engine.state.device, non_blocking=self.non_blocking)
        t1w = batchdata["t1w"].to(engine.state.device, non_blocking=self.non_blocking)
        output = {"label_map": label_map, "t1w": t1w}
        engine.state.output = output
        self._generator_step(label_map, t1w, output, batchdata.get("case_id", ()))
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        self._discriminator_step(label_map, t1w, output)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return output

    def _generator_step(
        self, label_map: Tensor, t1w: Tensor, output: dict[str, Tensor], case_ids: Sequence[str] = ()
    ) -> None:
        # In eval mode spectral norm does not iterate, so that not even the discriminator's buffers change.
        self.discriminator.requires_grad_(False).eval()
        self.network.train()
        with self._autocast():
            style, style_losses = self._estimate_style(t1w, case_ids)
            fake = self.network(label_map, style)
            features_fake, features_real = self._discriminate(unwrapped(self.discriminator), label_map, fake, t1w)
            losses = {
                "adversarial": self.loss_function(features_fake),
                "feature_matching": self.feature_matching_weight * self.feature_matching(features_fake, features_real),
            }
            if self.reconstruction_weight:
                losses["reconstruction"] = self.reconstruction_weight * F.l1_loss(fake.float(), t1w)
            if self.perceptual is not None:
                losses["perceptual"] = self.perceptual_weight * self.perceptual(fake, t1w)
            losses.update(style_losses)
            loss = torch.stack(list(losses.values())).sum()
        _step(loss, self.optimizer, self.scalers["generator_scaler"])
        output.update({name: value.detach() for name, value in losses.items()})
        output.update(pred=fake.detach(), loss=loss.detach())

    def _estimate_style(self, t1w: Tensor, case_ids: Sequence[str]) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Draw a code for each case of the batch; give each slice its case's, (B, style_dim), and the loss by name."""
        if self.encoder is None:
            return None, {}
        assert self.style_divergence is not None
        cases = case_of_slices(case_ids).to(t1w.device)
        mean, log_variance = (
            torch.stack([estimate[cases == case].float().mean(dim=0) for case in cases.unique()])
            for estimate in self.encoder(t1w)
        )
        loss = self.style_divergence_weight * self.style_divergence(mean, log_variance)
        return draw_style(mean, log_variance)[cases], {"style_divergence": loss}

    def _discriminator_step(self, label_map: Tensor, t1w: Tensor, output: dict[str, Tensor]) -> None:
        self.discriminator.requires_grad_(True).train()
        with self._autocast():
            features_fake, features_real = self._discriminate(self.discriminator, label_map, output["pred"], t1w)
            loss = self.discriminator_loss(features_real, features_fake)
        _step(loss, self.discriminator_optimizer, self.scalers["discriminator_scaler"])
        output["discriminator"] = loss.detach()
        output["logits_real"], output["logits_fake"] = _mean_logits(features_real), _mean_logits(features_fake)

    def _discriminate(
        self, discriminator: nn.Module, label_map: Tensor, fake: Tensor, real: Tensor
    ) -> tuple[Features, Features]:
        """Show fake and real in one batch, so that whatever a norm sees of the one it sees of the other."""
        features = discriminator(middle_slice(label_map), torch.cat([fake, real.to(fake.dtype)]))
        halves = [[feature.chunk(2) for feature in scale] for scale in features]
        return [[f for f, _ in scale] for scale in halves], [[r for _, r in scale] for scale in halves]

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.state.device.type, dtype=self.amp_dtype, enabled=self.mixed_precision)


def _autocast_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def _mean_logits(features: Features) -> Tensor:
    return torch.stack([scale[-1].detach().float().mean() for scale in features]).mean()


def _step(loss: Tensor, optimizer: Optimizer, scaler: torch.amp.GradScaler) -> None:
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
