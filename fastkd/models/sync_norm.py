"""Batch norms whose statistics are those of the global batch, on every kind of device.

torch's own SyncBatchNorm runs on GPUs alone; this one sums over the ranks whatever the backend, so that ranks can be
compared with one process on a CPU too.
"""

import torch
from torch import Tensor, nn
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
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * num / (num - 1), share)
        return out.to(input.dtype)


def synchronise_norms(module: nn.Module, device_type: str) -> nn.Module:
    """The module with all its batch norms over the global batch: torch's on GPUs, ours elsewhere. Weights are shared."""
    if device_type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            own = GlobalBatchNorm2d(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            own.weight, own.bias = child.weight, child.bias
            own.running_mean, own.running_var = child.running_mean, child.running_var
            own.num_batches_tracked = child.num_batches_tracked
            setattr(module, name, own)
        else:
            synchronise_norms(child, device_type)
    return module
