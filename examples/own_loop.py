"""A training loop of one's own: a timm network learns from stored logits.

python examples/own_loop.py train.beton m.h5 l.h5 [EPOCHS]
"""

import sys

import timm
import torch

import fastkd
from fastkd.losses import ce_loss, kd_loss, mixed_loss


def train(beton: str, mask: str, store: str, *, epochs: int = 50, model: str = "resnet10t") -> list[float]:
    """Trains a network; gives the mean loss of each epoch."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loader = fastkd.Loader(
        beton, mask=mask, logits=store, batch_size=64, shuffle=True, normalize="imagenet", device=device
    )
    num_classes = fastkd.LogitStore(store).num_classes
    student = timm.create_model(model, num_classes=num_classes).to(device)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    means = []
    for epoch in range(epochs):
        total = 0.0
        for images, labels, logits in loader:  # each epoch has other views, and the teacher's logits of these
            own = student(images)
            loss = mixed_loss(ce_loss(own, labels), kd_loss(own, logits, tau=4.0), alpha=0.5)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += loss.item()
        means.append(total / len(loader))
        print(f"epoch {epoch}: loss {means[-1]:.3f}")
    return means


if __name__ == "__main__":
    train(*sys.argv[1:4], epochs=int(sys.argv[4]) if sys.argv[4:] else 50)
