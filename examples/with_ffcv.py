"""A loop on FFCV's own Loader, in which seeded views with their stored logits stand where its image decoder did.

FFCV goes on to choose the order, to work ahead and to decode other fields.

python examples/with_ffcv.py train.beton m.h5 l.h5 [EPOCHS]
"""

import sys
from dataclasses import replace
from typing import Any

import torch
from ffcv.fields.basics import IntDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.pipeline_spec import PipelineSpec

import fastkd
from fastkd.losses import ce_loss, kd_loss, mixed_loss
from fastkd.models.registry import create_model


class SeededViews(Operation):  # type: ignore[misc, unused-ignore]
    """The `Batch` of a fastkd.Loader for the samples of each batch; epoch: whose views, said before FFCV begins it."""

    def __init__(self, loader: fastkd.Loader) -> None:
        super().__init__()
        self.loader, self.epoch = loader, 0

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, None]:
        return replace(previous_state, jit_mode=False), None  # nothing compiled may follow: FFCV would wait forever

    def generate_code(self) -> Any:
        def code(label: Any, memory: None, ids: Any) -> Any:
            return next(self.loader.run([(ids.astype("int64"), self.epoch % self.loader.views.num_seeds)]))

        code.with_indices = True  # type: ignore[attr-defined, unused-ignore]
        return code


def train(beton: str, mask: str, store: str, *, epochs: int = 50) -> None:
    """Trains a student; says the last loss of each epoch."""
    views = SeededViews(fastkd.Loader(beton, mask=mask, logits=store, normalize="cifar"))
    pipelines = {"image": PipelineSpec("label", transforms=[IntDecoder(), views])}
    options = {"order": OrderOption.RANDOM, "indices": views.loader.ids}
    loader = Loader(beton, batch_size=64, num_workers=1, pipelines=pipelines, **options)
    student = create_model("resnet8", fastkd.LogitStore(store).num_classes)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for views.epoch in range(epochs):
        for (images, labels, logits), _ in loader:  # the second is what FFCV decodes of the label, (B, 1)
            own = student(images)
            loss = mixed_loss(ce_loss(own, labels), kd_loss(own, logits, tau=4.0), alpha=0.5)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        print(f"epoch {views.epoch}: loss {loss.item():.3f}")


if __name__ == "__main__":
    train(*sys.argv[1:4], epochs=int(sys.argv[4]) if sys.argv[4:] else 50)
