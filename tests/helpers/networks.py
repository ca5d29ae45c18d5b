"""Small networks that torchvision's registry knows while tests run: without batch statistics, with drops."""

from torch import nn
from torchvision.models._api import register_model
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.vision_transformer import VisionTransformer


def tiny_vit(*, num_classes: int, dropout: float = 0.0, weights: None = None) -> nn.Module:
    """A vision transformer of two blocks, for images of 32 pixels."""
    shape = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
    made = VisionTransformer(**shape, dropout=dropout, num_classes=num_classes)
    nn.init.trunc_normal_(made.heads.head.weight, std=0.02)  # torchvision begins at 0, where nothing before it learns
    return made


def vit_tiny(*, num_classes: int, image_size: int = 224, dropout: float = 0.0, weights: None = None) -> nn.Module:
    """The same with patches of 16, for images of a size, as torchvision's own are."""
    shape = {"patch_size": 16, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
    return VisionTransformer(image_size, **shape, dropout=dropout, num_classes=num_classes)


def tiny_convnext(*, num_classes: int, stochastic_depth_prob: float = 0.0, weights: None = None) -> nn.Module:
    """A ConvNeXt of two blocks."""
    stages = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)]
    return ConvNeXt(stages, stochastic_depth_prob=stochastic_depth_prob, num_classes=num_classes)


for made in (tiny_vit, vit_tiny, tiny_convnext):
    made.__module__ = "torchvision.models.tiny"
    register_model()(made)
