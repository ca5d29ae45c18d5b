import csv
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.stores import NORM
from torch import nn

from fastkd.data.batch import Batch
from fastkd.data.views.draw import Views
from fastkd.dist import World
from fastkd.errors import OptionError
from fastkd.feed.loader import Loader
from fastkd.models.norm import Norm
from fastkd.train import loop, metrics
from fastkd.train.metrics import CsvLines, JsonLines, Stopwatch, evaluate, top_hits
from fastkd.train.recipe import Recipe
from fastkd.train.student import train

NO_NORM = Norm((0, 0, 0), (1, 1, 1))


def test_hits_are_counted_in_the_largest_and_the_five_largest():
    logits = torch.tensor([[9.0, 1, 2, 3, 4, 5, 6], [1, 9, 2, 3, 4, 5, 6], [9, 0, 2, 3, 4, 5, 6]])
    assert top_hits(logits, torch.tensor([0, 2, 1])).tolist() == [1, 1]
    assert top_hits(logits, torch.tensor([0, 3, 3])).tolist() == [1, 3]


def test_hits_are_those_of_numpys_sort():
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(200, 12)))
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, 12, 200))
    ranks = (np.argsort(-logits.numpy(), axis=1) == labels.numpy()[:, None]).argmax(1)
    assert top_hits(logits, labels).tolist() == [(ranks < 1).sum(), (ranks < 5).sum()]


def test_of_equal_logits_the_lower_class_counts():
    assert top_hits(torch.zeros(3, 8), torch.tensor([0, 4, 5])).tolist() == [1, 2]


def test_fewer_than_five_classes_have_a_top_five_of_all():
    assert top_hits(torch.eye(3), torch.tensor([1, 1, 1])).tolist() == [1, 3]


class Brightness(nn.Module):
    """Says class 0 for dark pixels and class 1 for light ones."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Parameter(torch.tensor(0.5))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean(dim=(1, 2, 3))
        return torch.stack([self.middle - mean, mean - self.middle], 1)


def batches(values: list[int], labels: list[int], size: int) -> Iterator[Batch]:
    for start in range(0, len(values), size):
        part = torch.tensor(values[start : start + size], dtype=torch.uint8)
        images = part.view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
        ids = torch.arange(start, start + len(part))
        yield Batch(images, torch.tensor(labels[start : start + size]), ids, None, 0)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_sample_counts_once_in_batches_of_any_size(size):
    found = evaluate(Brightness(), NO_NORM, batches([0, 255, 0, 255, 255], [0, 1, 1, 1, 0], size), World())
    assert found == {"top1": 60.0, "top5": 100.0, "num_samples": 5}


def test_the_network_is_measured_as_it_is_used():
    model = nn.Sequential(Brightness(), nn.Dropout(0.9)).train()
    found = evaluate(model, NO_NORM, batches([0, 255] * 50, [0, 1] * 50, 10), World())
    assert found["top1"] == 100
    assert not model.training


class LeftEdge(nn.Module):
    """Logits (0, brightness of the left edge - 100)."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        edge = images[:, 0, 0, 0]
        return torch.stack([torch.zeros_like(edge), edge - 100], dim=1)


def test_a_view_and_its_mirror_image_are_averaged_in_their_logits():
    """Edges of 30 and 190: each view says something else, the mean of both is above 100."""
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    images[0, :, :, 0], images[0, :, :, 3] = 30, 190
    images[1] = images[0].flip(2)
    batch = Batch(images, torch.tensor([1, 1]), torch.arange(2), None, 0)
    norm = Norm((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
    assert evaluate(LeftEdge(), norm, [batch], World())["top1"] == 50
    assert evaluate(LeftEdge(), norm, [batch], World(), mirrored=True)["top1"] == 100


def test_a_label_that_the_network_has_no_output_for_is_refused():
    with pytest.raises(OptionError, match="label 2 in the data, the network has 2 outputs"):
        evaluate(Brightness(), NO_NORM, batches([0, 0], [0, 2], 2), World())


def test_lines_go_on_at_the_byte_of_the_checkpoint(tmp_path):
    lines = JsonLines(tmp_path / "m.jsonl")
    lines.write([{"epoch": 0, "loss": 1.5}])
    place = lines.place()
    lines.write([{"epoch": 1}, {"epoch": 1, "half": "written"}])
    lines.close()
    lines = JsonLines(tmp_path / "m.jsonl", place)
    lines.write([{"epoch": 1, "loss": 1.25}])
    assert lines.place()["size_bytes"] == (tmp_path / "m.jsonl").stat().st_size
    lines.close()
    records = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert records == [{"epoch": 0, "loss": 1.5}, {"epoch": 1, "loss": 1.25}]


def test_waiting_for_data_is_told_apart_from_steps(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    watch = Stopwatch()
    for _ in range(2):
        watch.start()
        for wait, step in ((0.5, 1.5), (0.25, 1.75)):
            now[0] += wait
            watch.did("data_wait")
            watch.num_images += 32
            for part in ("teacher", "forward", "backward", "update"):
                now[0] += step / 4
                watch.did(part)
        watch.stop()
        now[0] += 1000  # validation
    rates = watch.rates()
    assert (rates["images_per_s"], rates["data_wait_percent"]) == (128 / 8, 100 * 1.5 / 8)
    assert rates["step_percent"] == dict.fromkeys(("teacher", "forward", "backward", "update"), 100 * 6.5 / 8 / 4)


def test_what_ranks_exchange_and_what_is_written_is_no_waiting_for_data(dataset, ids, monkeypatch, tmp_path):
    now = [0.0]
    monkeypatch.setattr(metrics, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    over_ranks = loop.over_ranks

    def slow(*arguments: Any) -> torch.Tensor:
        now[0] += 1.0
        return over_ranks(*arguments)

    monkeypatch.setattr(loop, "over_ranks", slow)
    loader = Loader(dataset, Views("crop-flip", 32), mask=ids[:64], batch_size=32, num_workers=1)
    recipe = Recipe(model="resnet8", epochs=1, batch_size=32, alpha=0)
    found = train(recipe, loader, tmp_path / "run", norm=NORM, inputs={}, params={})
    assert found["data_wait_percent"] == 0
    assert found["step_percent"]["update"] == 100


def test_marks_on_a_gpu_are_of_the_loaders_device(monkeypatch):
    seen: list[object] = []
    event = SimpleNamespace(record=seen.append, elapsed_time=lambda other: 0.0)
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", seen.append)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    watch = Stopwatch("cuda:3")
    watch.start()
    watch.did("data_wait")
    watch.stop()
    assert seen == ["stream of cuda:3", "stream of cuda:3", torch.device("cuda:3")]


def test_a_run_that_trained_nothing_has_rates_of_zero():
    rates = Stopwatch().rates()
    assert (rates["images_per_s"], rates["data_wait_percent"]) == (0, 0)


def test_the_table_of_epochs_has_one_header_and_goes_on_at_its_byte(tmp_path):
    path = tmp_path / "m.csv"
    table = CsvLines(path)
    table.write([{"epoch": 0, "lr": 0.1, "loss": 1.5, "val_top1": 50.0, "kind": "epoch"}])
    place = table.place()
    table.write([{"epoch": 1, "loss": 9.0}])
    table.close()
    table = CsvLines(path, place)
    table.write([{"epoch": 1, "lr": 0.1, "loss": 1.25}])
    table.close()
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["loss"], row["val_top1"]) for row in rows] == [("0", "1.5", "50.0"), ("1", "1.25", "")]
