"""Lightning trains a student from stored logits; the Loader is its dataloader as it is.

python examples/with_lightning.py train.beton m.h5 l.h5 [EPOCHS]
"""

import sys

import lightning.pytorch as pl
import torch

import fastkd
from fastkd.data.batch import Batch
from fastkd.losses import ce_loss, kd_loss, mixed_loss
from fastkd.models.registry import create_model


class Student(pl.LightningModule):
    """A small ResNet with the loss of distillation."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.network = create_model("resnet8", num_classes)

    def training_step(self, batch: Batch, number: int) -> torch.Tensor:
        """The loss of a batch."""
        images, labels, logits = batch
        own = self.network(images)
        loss = mixed_loss(ce_loss(own, labels), kd_loss(own, logits, tau=4.0), alpha=0.5)
        self.log("loss", loss, batch_size=len(batch))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD, as fastkd's own recipe has it."""
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def train(beton: str, mask: str, store: str, *, epochs: int = 50) -> float:
    """Trains a student; gives the last loss."""
    loader = fastkd.Loader(beton, mask=mask, logits=store, batch_size=64, shuffle=True, normalize="cifar")
    trainer = pl.Trainer(max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(Student(fastkd.LogitStore(store).num_classes), loader)
    return float(trainer.callback_metrics["loss"])


if __name__ == "__main__":
    print(f"loss {train(*sys.argv[1:4], epochs=int(sys.argv[4]) if sys.argv[4:] else 50):.3f}")
