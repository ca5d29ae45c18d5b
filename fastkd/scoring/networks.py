"""Scores of samples by trained networks, and by the logits of a store."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fastkd.data.batch import Batch
from fastkd.dist import World, sum_over_ranks, take_turns
from fastkd.errors import FormatError, ModelError, OptionError
from fastkd.feed.loader import Loader
from fastkd.prune.scores.formulas import STATISTICS, deepcore_grand, last_layer_grand, row_statistics
from fastkd.prune.select.centres import class_centre_distances
from fastkd.store.logit_store import LogitStore
from fastkd.teacher.network import Teacher, full_fp32

DIRECTIONS = {
    "el2n": "high = hard: mean norm of the error in the probabilities, 0 … √2",
    "grand": "high = hard: mean norm of the cross-entropy's gradient",
    "moderate": "high = far from the class's centre in features; the method keeps the middle",
    "margin": "high = hard: -(p_y - largest other probability), -1 … 1",
    "entropy": "high = uncertain: mean entropy of the probabilities in nats",
    "confidence": "high = hard: 1 - p_y, 0 … 1",
    "variance": "high = uncertain: variance of p_y over views",
}
"""What high means, for each method of `score_networks` and `score_store`."""
BY_NETWORK = ("el2n", "grand", "moderate", "margin", "entropy", "confidence")
BY_STORE = ("el2n", "margin", "entropy", "confidence", "variance")

_CHUNK_BYTES = 2**28  # of gradients at a time
_STORE_ROWS = 65_536


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringOptions:
    """How networks are asked."""

    grand_params: str = "last"
    """`last`: GraNd in the last layer, in closed form; `all`: exact gradients in all parameters, sample by sample."""
    compat: str | None = None
    """`deepcore`: GraNd divided by the size of its batch, as there."""
    centre: str = "mean"
    """Moderate's centre of a class: `mean` or `median`."""


def score_networks(
    networks: Iterable[Teacher],
    loader: Loader,
    methods: Iterable[str],
    *,
    options: ScoringOptions = ScoringOptions(),
    outputs_of: Callable[[Teacher], np.ndarray | None] = lambda network: None,
    world: World = World(),  # noqa: B008  (frozen)
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Scores of all samples: the mean over networks, each in evaluation mode on the same views.

    Args:
        networks: made one after the other, so that one at a time is in memory.
        loader: all samples of the beton, in order. Its batches, each of one network's forward, are handed out to the ranks
            as they ask for them, whatever ranks the loader knows of.
        methods: some of BY_NETWORK.
        outputs_of: which output of a network each label is, int64 (C,); None for that of its own number.
        progress: called with samples done and in all of one network, by all ranks (as far as those done here tell).

    Returns:
        Method → float64 (N,), higher = harder; and the features of the last network, float32 (N, D), where `moderate` is
        among the methods.

    Raises:
        ModelError: a network whose outputs do not fit the data, or without a last linear layer where one is needed.
        FormatError: logits that are not finite numbers.
    """
    methods = list(methods)
    labels = loader.dataset.beton.labels
    totals = {method: np.zeros(len(labels)) for method in methods}
    features, num_networks = None, 0
    for network in networks:
        num_networks += 1
        found, features = _score_network(network, loader, methods, options, outputs_of(network), world, progress)
        for method, values in found.items():
            totals[method] += values
    return {method: total / num_networks for method, total in totals.items()}, features


def _score_network(
    network: Teacher,
    loader: Loader,
    methods: list[str],
    options: ScoringOptions,
    outputs: np.ndarray | None,
    world: World,
    progress: Callable[[int, int], None],
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    labels, size = loader.dataset.beton.labels, loader.global_batch
    starts = range(0, len(loader.ids), size)
    turns, taken = take_turns(world, len(starts)), deque[int]()

    def jobs() -> Iterator[tuple[np.ndarray, int]]:
        for turn in turns:
            taken.append(starts[turn] + size)
            yield loader.ids[starts[turn] : starts[turn] + size], 0

    statistics = np.zeros((len(labels), len(STATISTICS)))
    norms, exact = np.zeros(len(labels)), np.zeros(len(labels))
    features: np.ndarray | None = None
    targets = labels if outputs is None else outputs[labels]
    with_head = "moderate" in methods or ("grand" in methods and options.grand_params == "last")
    if "moderate" in methods:
        features = np.zeros((len(labels), _head(network, loader.dataset.num_classes).in_features), np.float32)
    with _last_inputs(network, loader.dataset.num_classes if with_head else None) as last_inputs, full_fp32():
        for batch in loader.run(jobs()):
            ids = batch.sample_ids.cpu().numpy()
            statistics[ids] = _batch_statistics(network, batch, loader, targets[ids])
            if with_head:
                own = last_inputs().float().cpu().numpy()
                norms[ids] = np.sqrt(np.square(own.astype(np.float64)).sum(axis=1))
                if features is not None:
                    features[ids] = own
            if "grand" in methods and options.grand_params == "all":
                own_labels = torch.from_numpy(targets[ids].astype(np.int64)).to(batch.images.device)
                exact[ids] = gradient_norms(network.model, network.norm(batch.images), own_labels).cpu().numpy()
            progress(min(taken.popleft(), len(loader.ids)), len(loader.ids))
    for array in (statistics, norms, exact, features):
        if array is not None:
            sum_over_ranks(array, world)
    el2n, margin, entropy, probability = statistics[:, :4].T
    found = {"el2n": el2n, "margin": -margin, "entropy": entropy, "confidence": 1 - probability}
    if "grand" in methods:
        bias = with_head and _head(network, loader.dataset.num_classes).bias is not None
        found["grand"] = last_layer_grand(el2n, norms, bias) if options.grand_params == "last" else exact
        if options.compat == "deepcore":
            found["grand"] = deepcore_grand(found["grand"], loader.global_batch)
    if features is not None:
        found["moderate"] = class_centre_distances(features, labels, options.centre)
    return {method: found[method] for method in methods}, features


def _batch_statistics(network: Teacher, batch: Batch, loader: Loader, targets: np.ndarray) -> np.ndarray:
    """`row_statistics` of a batch, its logits in the network's own precision. targets: the outputs of its labels."""
    with torch.no_grad():
        logits = network.model(network.norm(batch.images)).float().cpu()
    if logits.ndim != 2 or logits.shape[1] < loader.dataset.num_classes:
        raise ModelError(
            f"{network.name}: outputs of shape {tuple(logits.shape)}, the data has {loader.dataset.num_classes} classes"
        )
    if not torch.isfinite(logits).all():
        bad = int((~torch.isfinite(logits).all(dim=1)).nonzero()[0])
        raise FormatError(
            f"{network.name}: its logits of sample {int(batch.sample_ids[bad])} are not finite numbers; check the weights"
        )
    return row_statistics(logits.numpy(), targets)


def _head(network: Teacher, num_classes: int) -> nn.Linear:
    """The last linear layer, which gives the logits."""
    linear = [module for module in network.model.modules() if isinstance(module, nn.Linear)]
    if not linear or linear[-1].out_features < num_classes:
        raise ModelError(
            f"{network.name}: does not end in a linear layer of {num_classes} classes, whose input is needed"
        )
    return linear[-1]


@contextmanager
def _last_inputs(network: Teacher, num_classes: int | None) -> Iterator[Callable[[], Tensor]]:
    """What went into the last linear layer at the latest forward: the features, (B, D)."""
    if num_classes is None:
        yield lambda: torch.empty(0)
        return
    seen: list[Tensor] = []
    hook = _head(network, num_classes).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(1)))

    def latest() -> Tensor:
        found = seen.pop()
        seen.clear()
        return found

    try:
        yield latest
    finally:
        hook.remove()


def gradient_norms(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Norm of the cross-entropy's gradient in all parameters, for each sample alone; the network in evaluation mode.

    Args:
        images: float32 (B, 3, H, W), normalised. labels: int64 (B,).

    Returns:
        float32 (B,).
    """
    params = {name: value.detach() for name, value in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(params: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, (params, buffers), (image[None],))
        return F.cross_entropy(logits.float(), label[None])

    def norm(image: Tensor, label: Tensor) -> Tensor:
        return torch.stack([g.square().sum() for g in grad(loss)(params, image, label).values()]).sum().sqrt()

    param_bytes = sum(value.numel() * value.element_size() for value in params.values())
    return vmap(norm, chunk_size=max(1, _CHUNK_BYTES // param_bytes))(images.contiguous(), labels)


def score_store(store: LogitStore, labels: np.ndarray, methods: Iterable[str]) -> dict[str, np.ndarray]:
    """Scores from the logits that a store holds, without a forward: means over its K views.

    Args:
        labels: int64 (N,), of the full beton.
        methods: some of BY_STORE; `variance` is of the probability of the label over views, divided by K - 1.

    Returns:
        Method → float64 (N,), higher = harder; NaN for samples that the store does not hold.

    Raises:
        OptionError: `variance` of one view.
        CorruptError: a row that does not match its checksum.
    """
    methods, ids = list(methods), np.sort(store.sample_ids)
    if "variance" in methods and store.num_seeds < 2:
        raise OptionError(f"{store.tables.path}: holds one view of each sample, which has no variance over views")
    sums, squares = np.zeros((len(ids), len(STATISTICS))), np.zeros(len(ids))
    pivot = np.zeros(len(ids))  # of the squares: the first view's value, so that nothing cancels
    for aug_seed in range(store.num_seeds):
        for start in range(0, len(ids), _STORE_ROWS):
            rows = slice(start, start + _STORE_ROWS)
            found = row_statistics(store.read(ids[rows], aug_seed), labels[ids[rows]])
            sums[rows] += found
            if aug_seed == 0:
                pivot[rows] = found[:, 3]
            squares[rows] += np.square(found[:, 3] - pivot[rows])
    means = sums / store.num_seeds
    shift = means[:, 3] - pivot
    values: dict[str, Any] = {
        "el2n": means[:, 0],
        "margin": -means[:, 1],
        "entropy": means[:, 2],
        "confidence": 1 - means[:, 3],
        "variance": (squares - store.num_seeds * np.square(shift)) / max(store.num_seeds - 1, 1),
    }
    out = {method: np.full(len(labels), np.nan) for method in methods}
    for method, scores in out.items():
        scores[ids] = values[method]
    return out
