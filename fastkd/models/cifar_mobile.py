"""Light networks for small images: MobileNetV2 (Sandler et al., 2018), ShuffleNet V1 and V2 (Zhang et al., Ma et al., 2018).

In the sizes of RepDistiller's experiments and with its module names, so that its checkpoints load as they are. Every network
takes float images (B, 3, H, W) and returns logits (B, C).
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastkd.models.cifar import init_convs

MOBILE_BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels at width 1, count and first stride: table 2 of the paper, with stride 1 for the second row's 2."""


def _conv_norm(
    before: int, after: int, kernel: int, stride: int = 1, groups: int = 1, *, relu: bool
) -> list[nn.Module]:
    conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(after), *([nn.ReLU()] if relu else [])]


class InvertedResidual(nn.Module):
    """Expanded by 1x1, convolved by channel, projected by 1x1 without a ReLU; added to its input where shapes allow."""

    def __init__(self, before: int, after: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.adds = stride == 1 and before == after
        wide = before * expansion
        self.conv = nn.Sequential(
            *_conv_norm(before, wide, 1, relu=True),
            *_conv_norm(wide, wide, 3, stride, groups=wide, relu=True),
            *_conv_norm(wide, after, 1, relu=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


class CifarMobileNetV2(nn.Module):
    """MobileNetV2 of half the width: maps of 16, 16, 8, 4 and 2 pixels of an image of 32.

    Args:
        num_classes: number of logits.
    """

    feature_stages = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")
    tap_names: ClassVar = {"blocks.1:input": "conv1"}

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        before, last = 16, 1280
        self.conv1 = nn.Sequential(*_conv_norm(3, before, 3, 2, relu=True))
        stages = []
        for expansion, channels, count, stride in MOBILE_BLOCKS:
            blocks = []
            for i in range(count):
                blocks.append(InvertedResidual(before, channels // 2, stride if i == 0 else 1, expansion))
                before = channels // 2
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv2 = nn.Sequential(*_conv_norm(before, last, 1, relu=True))
        head = nn.Linear(last, num_classes)
        self.classifier = nn.Sequential(head)
        init_convs(self)
        nn.init.normal_(head.weight, 0, 0.01)
        nn.init.zeros_(head.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.conv2(self.blocks(self.conv1(x))).mean((2, 3)))


def shuffle(x: Tensor, groups: int) -> Tensor:
    """The channels of all groups in turn: the first of each, then the second of each, and so on."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class ShuffleUnit(nn.Module):
    """ShuffleNet V1's unit: convolutions in groups, shuffled between; one of stride 2 appends its input, pooled."""

    def __init__(self, before: int, after: int, stride: int, groups: int) -> None:
        super().__init__()
        self.stride, self.groups = stride, 1 if before == 24 else groups  # the stem is too narrow to be split
        added = after - before if stride == 2 else after
        middle = added // 4
        self.conv1, self.bn1 = _conv_norm(before, middle, 1, groups=self.groups, relu=False)
        self.conv2, self.bn2 = _conv_norm(middle, middle, 3, stride, groups=middle, relu=False)
        self.conv3, self.bn3 = _conv_norm(middle, added, 1, groups=groups, relu=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))
        if self.stride == 2:
            return self.relu(torch.cat([out, F.avg_pool2d(x, 3, 2, padding=1)], 1))
        return self.relu(out + x)


class CifarShuffleNetV1(nn.Module):
    """ShuffleNet V1 in three groups: stages of 240, 480 and 960 channels, 16, 8 and 4 pixels of an image of 32.

    Args:
        num_classes: number of logits.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv_norm(3, 24, 1, relu=False)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                ShuffleUnit(before, after, 2, 3), *(ShuffleUnit(after, after, 1, 3) for _ in range(count - 1))
            )
            for before, after, count in ((24, 240, 4), (240, 480, 8), (480, 960, 4))
        )
        self.linear = nn.Linear(960, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


class SplitUnit(nn.Module):
    """ShuffleNet V2's unit: half of the channels stay as they are."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1, self.bn1 = _conv_norm(half, half, 1, relu=False)
        self.conv2, self.bn2 = _conv_norm(half, half, 3, groups=half, relu=False)
        self.conv3, self.bn3 = _conv_norm(half, half, 1, relu=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        kept, out = x.chunk(2, 1)
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(out)))))
        return self.relu(shuffle(torch.cat([kept, self.bn3(self.conv3(out))], 1), 2))  # what is kept has no negatives


class DownUnit(nn.Module):
    """ShuffleNet V2's unit of stride 2: both halves are made from all channels."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        half = after // 2
        self.conv1, self.bn1 = _conv_norm(before, before, 3, 2, groups=before, relu=False)
        self.conv2, self.bn2 = _conv_norm(before, half, 1, relu=False)
        self.conv3, self.bn3 = _conv_norm(before, half, 1, relu=False)
        self.conv4, self.bn4 = _conv_norm(half, half, 3, 2, groups=half, relu=False)
        self.conv5, self.bn5 = _conv_norm(half, half, 1, relu=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        return self.relu(shuffle(torch.cat([left, self.bn5(self.conv5(right))], 1), 2))


class CifarShuffleNetV2(nn.Module):
    """ShuffleNet V2 of width 1: stages of 116, 232 and 464 channels, 16, 8 and 4 pixels of an image of 32.

    Args:
        num_classes: number of logits.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv_norm(3, 24, 1, relu=False)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(DownUnit(before, after), *(SplitUnit(after) for _ in range(count)))
            for before, after, count in ((24, 116, 3), (116, 232, 7), (232, 464, 3))
        )
        self.conv2, self.bn2 = _conv_norm(464, 1024, 1, relu=False)
        self.linear = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))
