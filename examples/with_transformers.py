"""Hugging Face's Trainer trains an image classifier of theirs from stored logits.

python examples/with_transformers.py train.beton m.h5 l.h5 OUT [EPOCHS]
"""

import sys
from collections.abc import Iterator
from typing import Any

import torch
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

import fastkd
from fastkd.losses import ce_loss, kd_loss, mixed_loss


class Named:
    """A fastkd.Loader whose batches are dictionaries, as the Trainer takes them; it says the epoch, and so the views."""

    def __init__(self, loader: fastkd.Loader) -> None:
        self.loader, self.set_epoch = loader, loader.set_epoch

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for images, labels, logits in self.loader:
            yield {"pixel_values": images, "labels": labels, "teacher": logits}


class Distilling(Trainer):
    """A Trainer with the loss of distillation."""

    def get_train_dataloader(self) -> Any:
        loader: Any = self.train_dataset
        return Named(loader)

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *_: Any, **__: Any) -> Any:
        own = model(pixel_values=inputs["pixel_values"]).logits
        return mixed_loss(ce_loss(own, inputs["labels"]), kd_loss(own, inputs["teacher"], tau=4.0), alpha=0.5)


def train(beton: str, mask: str, store: str, out: str, *, epochs: int = 50) -> float:
    """Trains a small ResNet; gives the mean loss."""
    loader = fastkd.Loader(beton, mask=mask, logits=store, batch_size=64, shuffle=True, normalize="cifar")
    sizes: dict[str, Any] = {"embedding_size": 16, "hidden_sizes": [16, 32, 64], "depths": [1, 1, 1]}
    sizes |= {"layer_type": "basic", "num_labels": loader.dataset.num_classes}
    model = ResNetForImageClassification(ResNetConfig(**sizes))
    options: dict[str, Any] = {
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "save_strategy": "no",
        "report_to": "none",
    }
    arguments = TrainingArguments(out, num_train_epochs=epochs, **options)
    return float(Distilling(model, arguments, train_dataset=loader).train().training_loss)


if __name__ == "__main__":
    print(f"loss {train(*sys.argv[1:5], epochs=int(sys.argv[5]) if sys.argv[5:] else 50):.3f}")
