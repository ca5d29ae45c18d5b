"""What `fastkd score` computes, by where the scores come from: described before any of it is begun."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from fastkd.cli.common import progress_bar, say
from fastkd.cli.options import match_outputs

if TYPE_CHECKING:
    import numpy as np

    from fastkd.data.beton.dataset import Dataset
    from fastkd.models.classes import ClassMap


class Job(NamedTuple):
    """What is to be computed. described: as `save_scores` wants it. inputs: fingerprints. compute: gives the scores and the
    features, where there are some. features_inputs, params: of the features."""

    described: dict[str, Any]
    inputs: dict[str, str]
    compute: "Callable[[], tuple[dict[str, np.ndarray], np.ndarray | None]]"
    features_inputs: Mapping[str, str] = MappingProxyType({})
    params: Mapping[str, Any] = MappingProxyType({})


def by_networks(
    dataset: "Dataset",
    model: tuple[str, ...],
    methods: tuple[str, ...],
    mapping: "ClassMap | None",
    size: int | None,
    batch_size: int | None,
    given: dict[str, Any],
    common: dict[str, Any],
) -> Job:
    """Scores by networks, centre crops."""
    from fastkd.data.identity import center_views
    from fastkd.dist import World
    from fastkd.errors import MismatchError
    from fastkd.feed.loader import Loader, choose_views
    from fastkd.prune.scores.formulas import DEEPCORE_BATCH
    from fastkd.scoring.networks import DIRECTIONS, ScoringOptions, score_networks
    from fastkd.teacher.network import Teacher, load_teacher

    used = {name: given[name] for name in ("grand_params", "compat", "centre") if given[name] is not None}
    options = ScoringOptions(**used)

    def load(spec: str, log: Callable[[str], None] = lambda line: None) -> Teacher:
        return load_teacher(
            spec,
            model_name=given["model_name"],
            norm=given["norm"],
            device=common["device"],
            options=("--model", "--model-name", "--norm"),
            ema_weights=given["ema_weights"],
            log=log,
        )

    views = center_views(dataset.beton, choose_views(dataset, size=size).size)
    alone = common | {"world": World()}  # a batch is one rank's
    loader = Loader(dataset, views, batch_size=batch_size or (DEEPCORE_BATCH if options.compat else 250), **alone)
    say(f"score: {loader.describe()}")
    first = load(model[0], say)
    fingerprints = [first.fingerprint, *(load(spec, say).fingerprint for spec in model[1:])]

    def networks() -> Iterator[Teacher]:
        """The first of them and one other at a time are in memory."""
        yield first
        for spec, fingerprint in zip(model[1:], fingerprints[1:], strict=True):
            network = load(spec)
            if network.fingerprint != fingerprint:
                raise MismatchError(f"--model {spec}: was replaced while it was being used; run the same command again")
            yield network

    def compute() -> "tuple[dict[str, np.ndarray], np.ndarray | None]":
        with progress_bar("score", "samples") as progress:
            return score_networks(
                networks(),
                loader,
                methods,
                options=options,
                outputs_of=lambda network: match_outputs(dataset.classes, network.classes, mapping),
                world=common["world"],
                progress=progress,
            )

    by_batch = {"batch_size": loader.global_batch} if options.compat else {}  # by which it divides
    policies: dict[str, dict[str, Any]] = {
        "grand": {"params": options.grand_params, "compat": options.compat} | by_batch,
        "moderate": {"centre": options.centre},
    }
    runs = {"num_networks": len(model), "views": views.identity()}
    return Job(
        described={
            method: {"direction": DIRECTIONS[method], "policies": policies.get(method, {}) | runs} for method in methods
        },
        inputs={f"model {i}": digest for i, digest in enumerate(fingerprints, start=1)},
        compute=compute,
        features_inputs={"model": fingerprints[-1]},
        params={"views": views.identity()},
    )


def by_store(dataset: "Dataset", logits: Path, methods: tuple[str, ...], mapping: "ClassMap | None") -> Job:
    """Scores by the rows of a store."""
    from fastkd.errors import OptionError
    from fastkd.feed.checks import check_store, views_of
    from fastkd.models.classes import SAME_ORDER
    from fastkd.scoring.networks import DIRECTIONS, score_store
    from fastkd.store.logit_store import LogitStore

    store = LogitStore(logits)
    views = views_of(store.tables)
    if mapping is not None and mapping.targets is not None:
        raise OptionError(f"{mapping.source}: the rows of a store have one order, expected --class-map {SAME_ORDER}")
    check_store(store, dataset, views, by_number=mapping is not None)
    if views.mix is not None:
        raise OptionError(
            f"{logits}: its views are mixed ({views.mix.kind}) and have two labels; score a store without --mix"
        )
    policies = {"num_views": store.num_seeds, "views": views.identity()}
    return Job(
        described={method: {"direction": DIRECTIONS[method], "policies": policies} for method in methods},
        inputs={"logits": store.tables.header.fingerprint},
        compute=lambda: (score_store(store, dataset.beton.labels, methods), None),
    )


def by_memorization(
    dataset: "Dataset",
    out: Path,
    size: int | None,
    batch_size: int | None,
    given: dict[str, Any],
    common: dict[str, Any],
) -> Job:
    """Memorization, by networks that are trained for it."""
    from fastkd.feed.loader import choose_views
    from fastkd.models.norm import parse_norm
    from fastkd.train.memorization import score_memorization
    from fastkd.train.recipe import choose_recipe

    epochs = 30 if given["epochs"] is None else given["epochs"]
    seed = given["seed"] or 0
    views = choose_views(dataset, size=size, num_epochs=max(1, epochs))
    recipe = choose_recipe(
        views.kind,
        dataset.num_classes,
        model=given["student"] or "resnet8",
        epochs=epochs,
        batch_size=batch_size,
        alpha=0.0,
        seed=seed,
    )
    design = {"num_models": given["num_models"], "subset": 0.7, "min_count": 3}
    design |= {name: given[name] for name in ("subset", "min_count") if given[name] is not None}

    def compute() -> "tuple[dict[str, np.ndarray], None]":
        with progress_bar("memorization", "networks") as progress:
            values = score_memorization(
                dataset,
                views,
                recipe,
                out.with_name(out.name + ".networks"),
                norm=parse_norm(given["norm"] or ("cifar" if views.size <= 64 else "imagenet")),
                log=say,
                progress=progress,
                **design,
                **common,
            )
        return {"memorization": values}, None

    policies = design | {"student": recipe.model, "epochs": recipe.epochs, "seed": seed}
    direction = "high = memorized: correct with the sample less correct without it, -1 … 1"
    return Job(described={"memorization": {"direction": direction, "policies": policies}}, inputs={}, compute=compute)
