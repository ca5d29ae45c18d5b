"""`fastkd score`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastkd.cli.common import command, compute, progress_bar, say
from fastkd.cli.options import class_map_option, device_options, match_outputs
from fastkd.cli.score_source import choose_source

if TYPE_CHECKING:
    import numpy as np

    from fastkd.classes import ClassMap
    from fastkd.data.beton.dataset import Dataset

_METHODS = ("el2n", "grand", "moderate", "margin", "entropy", "confidence", "variance", "memorization")


@command("score")
@click.argument("beton", type=click.Path(path_type=Path))
@click.option(
    "--method",
    "methods",
    type=click.Choice(_METHODS),
    multiple=True,
    required=True,
    help="What is scored; several share one pass.",
)
@click.option(
    "--model", multiple=True, metavar="CKPT", help="Checkpoint, or a torchvision / timm: name; of several, the mean."
)
@click.option(
    "--logits", type=click.Path(path_type=Path), help="A logit store in place of networks: no forward at all."
)
@click.option("--model-name", metavar="NAME", help="The network, where a checkpoint does not say.")
@click.option("--norm", metavar="NORM", help="cifar, imagenet, none or M,M,M/S,S,S, where a checkpoint does not say.")
@click.option("--size", type=click.IntRange(1), help="Side of the centre crop.  [default: as `fastkd evaluate`]")
@click.option(
    "--batch-size", type=click.IntRange(1), help="Samples a step.  [default: 250; memorization: the recipe's]"
)
@click.option(
    "--grand-params", type=click.Choice(["last", "all"]), help="grand: gradients in which parameters.  [default: last]"
)
@click.option(
    "--compat", type=click.Choice(["deepcore"]), help="grand: divide by the size of the batch, as DeepCore does."
)
@click.option("--centre", type=click.Choice(["mean", "median"]), help="moderate: centre of a class.  [default: mean]")
@click.option("--features-out", type=click.Path(path_type=Path), help="moderate: write the features too, for d2.")
@click.option("--num-models", type=int, help="memorization: networks to train.")
@click.option("--subset", type=float, help="memorization: part of the samples each is trained on.  [default: 0.7]")
@click.option("--min-count", type=int, help="memorization: networks needed with and without a sample.  [default: 3]")
@click.option("--student", metavar="NAME", help="memorization: the network.  [default: resnet8]")
@click.option("--epochs", type=int, help="memorization: epochs of each.  [default: 30]")
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), help="memorization: of the subsets and networks.  [default: 0]"
)
@class_map_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The score file to write.")
@device_options
def score(
    beton: Path,
    methods: tuple[str, ...],
    model: tuple[str, ...],
    logits: Path | None,
    size: int | None,
    batch_size: int | None,
    out: Path,
    device: str,
    num_workers: int,
    **given: Any,
) -> tuple[dict[str, Any], str]:
    """Score every sample of BETON, high = hard, by networks (centre crops, evaluation mode) or by a logit store.

    Scores of the training loop come from `fastkd train --record`. Memorization trains --num-models networks on random
    parts of the data; it can be stopped and goes on.

    \b
    fastkd score train.beton --method el2n --method grand --model run/model.safetensors --out s.h5
    fastkd score train.beton --method variance --logits l.h5 --out s.h5
    fastkd score train.beton --method memorization --num-models 20 --subset 0.7 --out s.h5
    """
    from fastkd.classes import read_class_map
    from fastkd.data.beton.dataset import open_dataset, require_whole
    from fastkd.prune.scores.score_file import save_scores

    source = choose_source(methods, model, logits, given | {"size": size, "batch_size": batch_size})
    mapping = read_class_map(given["class_map"])
    with compute(device) as (world, device_name):
        dataset = open_dataset(beton)
        require_whole(dataset)
        common = {"num_workers": num_workers, "device": device_name, "world": world}
        inputs: dict[str, str] = {}
        if source == "memorization":
            values, described = _by_memorization(dataset, out, size, batch_size, given, common)
        elif source == "store":
            assert logits is not None
            values, described, inputs = _by_store(dataset, logits, methods, mapping)
        else:
            values, described, inputs = _by_networks(dataset, model, methods, mapping, size, batch_size, given, common)
        if world.is_main:
            saved = save_scores(
                out,
                values,
                described,
                beton_fingerprint=dataset.fingerprint,
                inputs=inputs,
                params={"source": source} | ({"class_map": mapping.identity()} if mapping is not None else {}),
                class_names=dataset.class_names,
            )
            return _result(saved)
    return {}, ""


def _result(saved: Any) -> tuple[dict[str, Any], str]:
    """What is said of a score file that was written."""
    import numpy as np

    undefined = {name: int(np.isnan(value).sum()) for name, value in saved.values.items()}
    result = {
        "kind": "scores",
        "path": str(saved.path),
        "num_samples": saved.num_samples,
        "methods": list(saved.methods),
        "undefined": undefined,
        "fingerprint": saved.header.fingerprint,
    }
    parts = [f"{name} ({count:,} undefined)" if count else name for name, count in undefined.items()]
    return result, f"{saved.path}: {', '.join(parts)} of {saved.num_samples:,} samples"


def _by_networks(
    dataset: "Dataset",
    model: tuple[str, ...],
    methods: tuple[str, ...],
    mapping: "ClassMap | None",
    size: int | None,
    batch_size: int | None,
    given: dict[str, Any],
    common: dict[str, Any],
) -> "tuple[dict[str, np.ndarray], dict[str, Any], dict[str, str]]":
    from fastkd.data.views.draw import Views
    from fastkd.feed.loader import Loader, choose_views
    from fastkd.prune.scores.score_file import save_features
    from fastkd.scoring.networks import DIRECTIONS, ScoringOptions, score_networks
    from fastkd.teacher.network import Teacher, load_teacher

    used = {name: given[name] for name in ("grand_params", "compat", "centre") if given[name] is not None}
    options = ScoringOptions(**used)
    fingerprints: list[str] = []

    def load(spec: str) -> Teacher:
        network = load_teacher(
            spec,
            model_name=given["model_name"],
            norm=given["norm"],
            device=common["device"],
            options=("--model", "--model-name", "--norm"),
        )
        fingerprints.append(network.fingerprint)
        return network

    views = Views("center", choose_views(dataset, size=size).size)
    loader = Loader(dataset, views, batch_size=batch_size or 250, **common)
    with progress_bar("score", "samples") as progress:
        values, features = score_networks(
            map(load, model),
            loader,
            methods,
            options=options,
            outputs_of=lambda network: match_outputs(dataset.classes, network.classes, mapping),
            world=common["world"],
            progress=progress,
        )
    inputs = {f"model {i}": digest for i, digest in enumerate(fingerprints, start=1)}
    policies: dict[str, dict[str, Any]] = {
        "grand": {"params": options.grand_params, "compat": options.compat},
        "moderate": {"centre": options.centre},
    }
    runs = {"num_networks": len(model), "views": views.identity()}
    described = {
        method: {"direction": DIRECTIONS[method], "policies": policies.get(method, {}) | runs} for method in methods
    }
    if given["features_out"] is not None and features is not None and common["world"].is_main:
        save_features(
            given["features_out"],
            features,
            beton_fingerprint=dataset.fingerprint,
            inputs={"model": fingerprints[-1]},
            params={"views": views.identity()},
            class_names=dataset.class_names,
        )
    return values, described, inputs


def _by_store(
    dataset: "Dataset", logits: Path, methods: tuple[str, ...], mapping: "ClassMap | None"
) -> "tuple[dict[str, np.ndarray], dict[str, Any], dict[str, str]]":
    from fastkd.classes import SAME_ORDER
    from fastkd.errors import OptionError
    from fastkd.feed.loader import check_store, views_of
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
    described = {method: {"direction": DIRECTIONS[method], "policies": policies} for method in methods}
    values = score_store(store, dataset.beton.labels, methods)
    return values, described, {"logits": store.tables.header.fingerprint}


def _by_memorization(
    dataset: "Dataset",
    out: Path,
    size: int | None,
    batch_size: int | None,
    given: dict[str, Any],
    common: dict[str, Any],
) -> "tuple[dict[str, np.ndarray], dict[str, Any]]":
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
    policies = design | {"student": recipe.model, "epochs": recipe.epochs, "seed": seed}
    direction = "high = memorized: correct with the sample less correct without it, -1 … 1"
    return {"memorization": values}, {"memorization": {"direction": direction, "policies": policies}}
