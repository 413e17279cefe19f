"""Training by several processes that take each step as one process with the whole batch would."""

from __future__ import annotations

from typing import Any, Protocol

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from trispade.distributed import num_ranks


class BatchShare(Protocol):
    """What is asked of a sampler: see `trispade.data.StreamBatchSampler`."""

    batch_size: int
    share: float


def wrap(network: nn.Module, sampler: BatchShare) -> nn.Module:
    """Make a network that learns from the batches of all processes; a single process gets it back as it is.

    The gradient of a loss that is a mean over the batch becomes that of the mean over the batches of all processes,
    whatever their sizes: each counts by its share, and one with nothing but a stand-in not at all. Batch norms, which
    are replaced in place, see all of them too. Parameters and names of the state dict of ``network`` stay its own.

    Args:
        network: on its device.
        sampler: of the global batch.
    """
    if num_ranks() == 1:
        return network
    _synchronise_norms(network, sampler)
    if not any(parameter.ndim == 5 for parameter in network.parameters()):
        # As `SpadeTrainer` wants it. Gradients come out wrong where the layout changes after the wrapping.
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parallel = idist.auto_model(network)
    parallel.register_forward_hook(lambda module, inputs, output: _weigh(output, num_ranks() * sampler.share))
    return parallel


def unwrapped(network: nn.Module) -> nn.Module:
    """Give the network itself, to be used without its gradients being shared."""
    return network.module if isinstance(network, DistributedDataParallel) else network


class ReduceLosses:
    """Handler that makes the scalars of an iteration's output, losses among them, those of the global batch.

    Args:
        sampler: of the global batch.
    """

    def __init__(self, sampler: BatchShare) -> None:
        self.sampler = sampler

    def attach(self, engine: Engine) -> None:
        """Register with a trainer; what listens to completed iterations comes later, wherever it is attached."""
        if num_ranks() > 1:
            engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self._reduce)

    def _reduce(self, engine: Engine) -> None:
        output = engine.state.output
        names = [name for name, value in output.items() if isinstance(value, Tensor) and value.numel() == 1]
        shares = torch.stack([output[name].detach().double().reshape(()) for name in names]) * self.sampler.share
        for name, value in zip(names, idist.all_reduce(shares), strict=True):
            output[name] = value.to(output[name].dtype)


class _ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


def _weigh(output: Any, factor: float) -> Any:
    """Scale the gradients that enter a network at its outputs, however nested.

    Scaling the loss would do the same; but each trainer would have to know of it.
    """
    if isinstance(output, Tensor):
        return _ScaleGradient.apply(output, factor) if output.requires_grad else output
    return type(output)(_weigh(each, factor) for each in output)


class SynchronisedNorm(_BatchNorm):
    """A batch norm over the batches of all processes, on GPUs and CPUs.

    PyTorch's own works on GPUs alone, and would count the stand-in of a process without a share of the batch.

    Args:
        norm: whose buffers and parameters it takes over.
        sampler: of the global batch.

    Source: Ioffe and Szegedy, Batch Normalization, ICML 2015, whose gradient (section 3) is summed over processes.
    """

    def __init__(self, norm: _BatchNorm, sampler: BatchShare) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, affine=False)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.sampler = sampler
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, ...) channel by channel."""
        assert self.running_mean is not None
        assert self.running_var is not None
        count = self.sampler.batch_size * x[0, 0].numel()
        if not self.training or count == 1:  # one value a channel has no variance
            mean, variance = self.running_mean, self.running_var
            return F.batch_norm(x, mean, variance, self.weight, self.bias, False, 0.0, self.eps)
        normalised, mean, variance = _Normalise.apply(x, self.sampler.share, self.eps)
        assert self.momentum is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = variance.to(self.running_var.dtype) * (count / (count - 1))
            self.running_var.lerp_(unbiased, self.momentum)
        if self.weight is None:
            return normalised
        return torch.addcmul(_per_channel(self.bias, x), normalised, _per_channel(self.weight, x))

    def _check_input_dim(self, input: Tensor) -> None:
        """Take any number of dimensions."""


class _Normalise(torch.autograd.Function):
    """Subtract the mean over all processes, divide by the standard deviation; also gives mean and variance, (C,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        wide = _single_or_double(x)
        variance, mean = (each.double() for each in torch.var_mean(wide, _all_but_channels(x), correction=0))
        # Second moments cancel against the mean, which single precision would not survive.
        moments = idist.all_reduce(share * torch.stack([mean, variance + mean**2]))
        mean, variance = moments[0], (moments[1] - moments[0] ** 2).clamp(min=0.0)
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(x, mean, scale)
        ctx.weight = share / (x.numel() // x.shape[1])  # of one element in the mean
        ctx.mark_non_differentiable(mean, variance)
        return _standardise(wide, mean, scale).to(x.dtype), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, None, None]:
        x, mean, scale = ctx.saved_tensors
        wide, given = _single_or_double(x), _single_or_double(gradient)
        normalised = _standardise(wide, mean, scale)
        dimensions = _all_but_channels(x)
        sums = torch.stack([given.sum(dimensions), (given * normalised).sum(dimensions)])
        of_mean, of_scale = (_per_channel(each, x) for each in idist.all_reduce(sums) * ctx.weight)
        result = (given - of_mean - normalised * of_scale) * _per_channel(scale.to(wide.dtype), x)
        return result.to(x.dtype), None, None


def _synchronise_norms(network: nn.Module, sampler: BatchShare) -> None:
    for part in list(network.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, _BatchNorm) and child.track_running_stats:
                setattr(part, name, SynchronisedNorm(child, sampler))


def _standardise(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return (x - _per_channel(mean.to(x.dtype), x)) * _per_channel(scale.to(x.dtype), x)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(1, -1, *[1] * (x.ndim - 2))


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


def _single_or_double(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
