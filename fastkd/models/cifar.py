"""Networks for small images: ResNet-8 … 110 (He et al., 2016), wide ones (Zagoruyko & Komodakis, 2016), VGG-8 … 19.

Module names are those of RepDistiller, so that its checkpoints, mdistiller's and, after renaming the head, akamaster's
load as they are. Every network takes float images (B, 3, H, W), H and W at least 8, and returns logits (B, C).
"""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from fastkd.errors import ModelError

CIFAR_RESNETS = {f"resnet{depth}": (depth, (16, 16, 32, 64)) for depth in (8, 14, 20, 32, 44, 56, 110)}
CIFAR_RESNETS |= {f"resnet{depth}x4": (depth, (32, 64, 128, 256)) for depth in (8, 32)}
"""Depth, and channels of stem and stages, by name."""
WIDE_RESNETS = {f"wrn_{depth}_{widen}": (depth, widen) for depth, widen in ((16, 1), (16, 2), (40, 1), (40, 2))}
"""Depth and widening factor by name."""
SMALL_STEM_RESNETS = {f"cifar_resnet{depth}": f"resnet{depth}" for depth in (18, 34, 50)}
"""Networks of torchvision's with the stem for small images, by the names of the originals."""


class SubsamplePad(nn.Module):
    """Shortcut option A: every `stride`-th pixel, new channels filled with zeros on both sides; no parameters."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (channels - in_channels) // 2  # channels // 4 where a stage doubles them
        self.after = channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: ReLU after the sum."""

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module
        if stride == 1 and in_channels == channels:
            self.downsample = nn.Identity()
        elif shortcut == "A":
            self.downsample = SubsamplePad(in_channels, channels, stride)
        else:
            conv = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(channels))
        self.relu = nn.ReLU()  # a module, for what looks at the sum before it

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + self.downsample(x))


class CifarResNet(nn.Module):
    """The three-stage residual network of the CIFAR experiments, depth 6n + 2.

    Args:
        depth: 8, 14, 20, 32, 44, 56, 110 or another 6n + 2.
        num_classes: number of logits.
        shortcut: where a stage changes the shape, "B" = 1x1 convolution and batch norm (RepDistiller), "A" =
            zero-padded identity (the original, and akamaster's checkpoints).
        widths: channels of the stem and of the three stages.

    Raises:
        ModelError: another depth or shortcut, or, with shortcut "A", widths that shrink.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int,
        shortcut: str = "B",
        widths: tuple[int, int, int, int] = (16, 16, 32, 64),
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ModelError(
                f"a CIFAR residual network of depth {depth} does not exist: the depth must be 6n + 2, n >= 1"
            )
        if shortcut not in ("A", "B"):
            raise ModelError(f"shortcut {shortcut!r} does not exist: expected 'A' or 'B'")
        if shortcut == "A" and list(widths) != sorted(widths):
            raise ModelError(f"shortcut 'A' only adds channels, found widths {widths}: use shortcut 'B'")
        num_blocks = depth // 6
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[1], 1, num_blocks, shortcut)
        self.layer2 = _stage(widths[1], widths[2], 2, num_blocks, shortcut)
        self.layer3 = _stage(widths[2], widths[3], 2, num_blocks, shortcut)
        self.fc = nn.Linear(widths[3], num_classes)
        init_convs(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def _stage(in_channels: int, channels: int, stride: int, num_blocks: int, shortcut: str) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1, shortcut) for _ in range(num_blocks - 1)))


class WideBlock(nn.Module):
    """The pre-activation block; where the channels change, the shortcut too starts after the first ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.convShortcut = None if in_channels == channels else nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class WideStage(nn.Module):
    """Blocks under the name `layer`, as the checkpoints have it."""

    def __init__(self, in_channels: int, channels: int, stride: int, num_blocks: int) -> None:
        super().__init__()
        first = WideBlock(in_channels, channels, stride)
        self.layer = nn.Sequential(first, *(WideBlock(channels, channels, 1) for _ in range(num_blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """The wide residual network, depth 6n + 4, without dropout. Its stages end in sums, which the next batch norm reads.

    Args:
        depth: number of layers, 40 for wrn_40_2.
        widen_factor: multiple of the plain widths 16, 32, 64; at least 1.
        num_classes: number of logits.

    Raises:
        ModelError: another depth or widening factor.
    """

    tap_names: ClassVar = {
        "block1:preact": "block2.layer.0.bn1",
        "block2:preact": "block3.layer.0.bn1",
        "block3:preact": "bn1",
    }

    def __init__(self, depth: int, widen_factor: int, num_classes: int) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise ModelError(
                f"a wide residual network of depth {depth} does not exist: the depth must be 6n + 4, n >= 1"
            )
        if widen_factor < 1:
            raise ModelError(f"a widening factor of {widen_factor} does not exist: expected at least 1")
        num_blocks = depth // 6
        widths = [16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = WideStage(16, widths[0], 1, num_blocks)
        self.block2 = WideStage(widths[0], widths[1], 2, num_blocks)
        self.block3 = WideStage(widths[1], widths[2], 2, num_blocks)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], num_classes)
        init_convs(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


VGG_CONVS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions of each block of VGG, by its depth (Simonyan & Zisserman, 2015, table 1; 8: RepDistiller's)."""


class CifarVGG(nn.Module):
    """VGG with batch norms and one linear layer, as RepDistiller has it.

    Blocks end in a batch norm; the ReLUs behind them are modules of their own. Between the blocks maps are halved by
    maxima, before the last block only where images have 64 pixels or more.

    Args:
        depth: one of VGG_CONVS. num_classes: number of logits.
    """

    feature_stages = ("relu1", "relu2", "relu3", "relu4")
    tap_names: ClassVar = {"relu1:input": "relu0"}  # what the first stage starts from

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        before = 3
        for i, (width, count) in enumerate(zip((64, 128, 256, 512, 512), VGG_CONVS[depth], strict=True)):
            layers: list[nn.Module] = []
            for _ in range(count):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                before = width
            self.add_module(f"block{i}", nn.Sequential(*layers[:-1]))
            self.add_module(f"relu{i}", nn.ReLU())
        self.classifier = nn.Linear(before, num_classes)
        init_convs(self)
        nn.init.normal_(self.classifier.weight, 0, 0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        num_halvings = 4 if x.shape[2] >= 64 else 3
        for i in range(5):
            x = self.get_submodule(f"relu{i}")(self.get_submodule(f"block{i}")(x))
            if i < num_halvings:
                x = F.max_pool2d(x, 2)
        return self.classifier(x.mean((2, 3)))


def small_stem(model: nn.Module) -> nn.Module:
    """Gives torchvision's ResNet the stem for small images: a 3x3 convolution of stride 1, no pooling.

    An image of 32 pixels then ends in maps of 4, where the stem for 224 pixels leaves a single one. RepDistiller's
    `resnetv2` and kuangliu's networks are built so.
    """
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    init_convs(model.conv1)
    return model


def init_convs(model: nn.Module) -> None:
    """He et al.'s initialisation by fan-out, as RepDistiller's; batch norms already start at 1 and 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
