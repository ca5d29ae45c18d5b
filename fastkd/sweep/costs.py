"""What a plan will take: samples, teacher forwards, bytes, and seconds by rates that are measured here."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fastkd.errors import FastKDError
from fastkd.store.codec import make_codec
from fastkd.store.plan import make_plan
from fastkd.sweep.graph import Plan
from fastkd.sweep.jobs import Job
from fastkd.sweep.sizes import Data, kept_of

_SECONDS, _BATCH = 0.5, 64
"""How long a network is timed for each of a forward and a training step, and on how many images."""
_OF_COMMANDS = (FastKDError, RuntimeError, AssertionError, ValueError, IndexError)
"""What goes wrong where a network cannot be made, or not be run on images of a size: its command tells, here it costs nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a job takes; None where it is not known yet. images: that a student sees. forwards: images that a teacher sees.
    size_bytes: of a store. seconds: of this machine, networks alone."""

    images: int | None = 0
    forwards: int | None = 0
    size_bytes: int | None = 0
    seconds: float | None = None


def cost_of(plan: Plan, job: Job, data: Data | None, rates: Callable[[str, int, int], tuple[float, float]]) -> Cost:
    """What a job takes.

    Args:
        rates: (network, classes, pixels) → images a second of training and of a forward pass.
    """

    def rates_of(model: object) -> tuple[float | None, float | None]:
        with suppress(*_OF_COMMANDS):
            if data is not None and isinstance(model, str) and size is not None:
                return rates(model, data.num_classes, size)
        return None, None

    about = job.about
    if job.kind not in ("run", "teacher", "store"):
        return Cost()
    kept = None if data is None else kept_of(plan.jobs, about["mask"], data.num_samples)
    if data is None or kept is None:
        return Cost(images=None, forwards=None, size_bytes=None)
    size = about["views"].get("size", data.size)
    train_rate, forward_rate = rates_of(about["model"])
    if job.kind == "store":
        num_seeds = about["num_seeds"] or 162
        codec = make_codec(about["codec"], data.num_classes)
        made = make_plan(num_rows=kept, num_seeds=num_seeds, codec=codec, epochs=num_seeds)
        forwards = made.store_forwards
        seconds = None if forward_rate is None else forwards / forward_rate
        return Cost(forwards=forwards, size_bytes=made.size_bytes, seconds=seconds)
    if about["epochs"] is None:
        return Cost(images=None, forwards=None)
    images = kept * about["epochs"]
    live = about.get("live")
    seconds = None if train_rate is None else images / train_rate
    if live is not None and seconds is not None:
        live_rate = rates_of(plan.jobs[live].about.get("model"))[1]
        seconds = None if live_rate is None else seconds + images / live_rate
    return Cost(images=images, forwards=images if live is not None else 0, seconds=seconds)


def live_forwards(plan: Plan, data: Data | None) -> int | None:
    """Images that live teachers would see in all runs that learn from one; None where it is not known yet."""
    total = 0
    for name in plan.runs:
        about = plan.jobs[name].about
        if about["distils"]:
            kept = None if data is None else kept_of(plan.jobs, about["mask"], data.num_samples)
            if kept is None or about["epochs"] is None:
                return None
            total += kept * about["epochs"]
    return total


def measured_rates(model: str, num_classes: int, size: int) -> tuple[float, float]:
    """Images a second that a network gets through here: in steps of training, and forward alone, on a GPU where there is one.

    Raises:
        ModelError: an unknown network.
    """
    import torch
    import torch.nn.functional as F

    from fastkd.models.libraries import sized_name
    from fastkd.models.registry import create_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = create_model(sized_name(model, size), num_classes).to(device).to(memory_format=torch.channels_last)
    images = torch.zeros(_BATCH, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(_BATCH, dtype=torch.int64, device=device)

    def step() -> None:
        network.zero_grad()
        F.cross_entropy(network(images), labels).backward()

    def forward() -> None:
        with torch.no_grad():
            network(images)

    return _rate(step, device.type), _rate(forward, device.type)


def _rate(work: Callable[[], None], device: str) -> float:
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    work()
    wait()
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < _SECONDS:
        work()
        wait()
        count += 1
    return _BATCH * count / (time.perf_counter() - begin)


def weight_of(plan: Plan, job: Job, data: Data | None, gflops: Callable[[str, int, int], float]) -> float:
    """How much of a sweep's work a job is, for its progress: GFLOP of its networks; 0 for what has none or does little.

    Args:
        gflops: (network, classes, pixels) → of a forward pass of an image. A step of training counts as three.
    """
    about = job.about
    if job.kind not in ("run", "teacher", "store"):
        return 0.0
    num_samples, num_classes, size = (
        (1000, 10, None) if data is None else (data.num_samples, data.num_classes, data.size)
    )

    def of_pass(model: object) -> float:
        with suppress(*_OF_COMMANDS):
            if isinstance(model, str):
                return gflops(model, num_classes, about["views"].get("size") or size or 32)
        return 0.0

    kept = kept_of(plan.jobs, about["mask"], num_samples) or 1
    if job.kind == "store":
        return kept * (about["num_seeds"] or 162) * of_pass(about["model"])
    live = about.get("live")
    of_teacher = 0.0 if live is None else of_pass(plan.jobs[live].about.get("model"))
    return kept * (about["epochs"] or 240) * (3 * of_pass(about["model"]) + of_teacher)


def counted_gflops(model: str, num_classes: int, size: int) -> float:
    """GFLOP of a network's forward pass of one image, a multiplication and an addition being two; nothing is computed.

    Raises:
        ModelError: an unknown network.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from fastkd.models.libraries import sized_name
    from fastkd.models.registry import create_model

    network = create_model(sized_name(model, size), num_classes).eval().to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() / 1e9


def total(costs: Mapping[str, Cost], name: str) -> Any:
    """The sum of one number of some costs; None where one of them is not known."""
    values = [getattr(cost, name) for cost in costs.values()]
    return None if any(value is None for value in values) else sum(values)
