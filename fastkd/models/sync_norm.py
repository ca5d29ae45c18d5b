"""Batch norms whose statistics are those of the global batch, on every kind of device.

torch's own SyncBatchNorm runs on GPUs alone, and has the host wait for the GPU in each layer; these sum over the ranks
whatever the backend, so that ranks can be compared with one process on a CPU too.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.nn.functional import all_reduce


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over the samples of all ranks while training; a rank may have fewer samples than another."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input if input.dtype == torch.float64 else input.float()
        count = x.new_full((1,), x.numel() / x.shape[1])
        sums = all_reduce(torch.cat([x.sum((0, 2, 3)), count]))
        num, mean = sums[-1], sums[:-1] / sums[-1]
        centred = x - mean.view(1, -1, 1, 1)
        variance = all_reduce(centred.pow(2).sum((0, 2, 3))) / num
        out = centred * (variance + self.eps).rsqrt().view(1, -1, 1, 1)
        if self.affine:
            out = out * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        self.keep(mean, variance, num)
        return out.to(input.dtype)

    @torch.no_grad()
    def keep(self, mean: Tensor, variance: Tensor, num: Tensor) -> None:
        """Moves the running statistics towards a batch's, of `num` values a channel."""
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            share = self.momentum if self.momentum is not None else (1 / self.num_batches_tracked).to(mean.dtype)
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * num / (num - 1), share)


class FusedGlobalBatchNorm2d(GlobalBatchNorm2d):
    """The same in fewer passes over the batch, for GPUs: one exchange each way, in the batch's own precision."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return nn.BatchNorm2d.forward(self, input)
        out, mean, variance, num = _Normalised.apply(input, self.weight, self.bias, self.eps)
        self.keep(mean, variance, num)
        return out


class _Normalised(torch.autograd.Function):
    """Batch norm with the global batch's statistics, and these: mean, biased variance (D,) and values a channel, a scalar."""

    @staticmethod
    def forward(
        context: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x if x.dtype == torch.float64 else x.float()
        width, count = x.shape[1], x.numel() // x.shape[1]
        own = wide.new_zeros(2 * width + 1)
        if count:
            variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
            own = torch.cat([mean, variance, wide.new_full((1,), count)])
        ranks = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(ranks, own)
        means, variances, counts = torch.stack(ranks).split([width, width, 1], dim=1)
        num = counts.sum()
        mean = (means * counts).sum(0) / num
        variance = ((variances + (means - mean).pow(2)) * counts).sum(0) / num  # within the ranks, and between them
        out = F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        context.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), num)
        context.mark_non_differentiable(mean, variance, num)
        return out, mean, variance, num

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        """dx = w/σ·(g - mean(g) - x̂·mean(g·x̂)), both means over the global batch (Ioffe & Szegedy 2015, section 3)."""
        x, weight, mean, inverse, num = context.saved_tensors
        g = gradient if x.dtype == torch.float64 else gradient.float()
        normed = (x - mean.view(1, -1, 1, 1)) * inverse.view(1, -1, 1, 1)
        own = torch.stack([g.sum((0, 2, 3)), (g * normed).sum((0, 2, 3))])
        of_all = own.clone()
        dist.all_reduce(of_all)
        first, second = (of_all / num).view(2, 1, -1, 1, 1)
        scale = inverse if weight is None else inverse * weight
        dx = (g - first - normed * second) * scale.view(1, -1, 1, 1)
        return dx.to(x.dtype), None if weight is None else own[1], None if weight is None else own[0], None


def synchronise_norms(module: nn.Module, device_type: str) -> nn.Module:
    """The module with all its batch norms over the global batch, of the kind for the device. Weights are shared."""
    kind = FusedGlobalBatchNorm2d if device_type == "cuda" else GlobalBatchNorm2d
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            own = kind(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
            own.weight, own.bias = child.weight, child.bias
            own.running_mean, own.running_var = child.running_mean, child.running_var
            own.num_batches_tracked = child.num_batches_tracked
            setattr(module, name, own)
        else:
            synchronise_norms(child, device_type)
    return module
