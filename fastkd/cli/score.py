"""`fastkd score`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastkd.agree import agree, share
from fastkd.cli.command import Output, command
from fastkd.cli.common import say
from fastkd.cli.numbers import MOST_BATCH, MOST_EPOCHS, Real
from fastkd.cli.options import class_map_option, ema_option, field_options, loader_options
from fastkd.cli.score_jobs import by_memorization, by_networks, by_store
from fastkd.cli.score_source import choose_source
from fastkd.data.beton.fields import Fields

if TYPE_CHECKING:
    from fastkd.dist import World

_METHODS = ("el2n", "grand", "moderate", "margin", "entropy", "confidence", "variance", "memorization")


@command("score", on_ranks=True)
@click.argument("beton", type=click.Path(path_type=Path))
@field_options
@click.option(
    "--method",
    "methods",
    type=click.Choice(_METHODS),
    multiple=True,
    required=True,
    help="What is scored; several share one pass.",
)
@click.option(
    "--model",
    multiple=True,
    metavar="CKPT",
    help="Checkpoint, run, or a torchvision / timm: name; of several, the mean.",
)
@ema_option
@click.option(
    "--logits", type=click.Path(path_type=Path), help="A logit store in place of networks: no forward at all."
)
@click.option("--model-name", metavar="NAME", help="The network, where a checkpoint does not say.")
@click.option("--norm", metavar="NORM", help="cifar, imagenet, none or M,M,M/S,S,S, where a checkpoint does not say.")
@click.option("--size", type=click.IntRange(1), help="Side of the centre crop.  [default: as `fastkd evaluate`]")
@click.option(
    "--batch-size",
    type=click.IntRange(1, MOST_BATCH),
    help="Samples a step.  [default: 250; 256 with --compat deepcore; memorization: the recipe's]",
)
@click.option(
    "--grand-params", type=click.Choice(["last", "all"]), help="grand: gradients in which parameters.  [default: last]"
)
@click.option(
    "--compat",
    type=click.Choice(["deepcore"]),
    help="grand: divide by the size of the batch, 256 and the last one shorter, as DeepCore does.",
)
@click.option("--centre", type=click.Choice(["mean", "median"]), help="moderate: centre of a class.  [default: mean]")
@click.option("--features-out", type=Output(), help="moderate: write the features too, for d2.")
@click.option("--num-models", type=click.IntRange(2, 10**5), help="memorization: networks to train.")
@click.option(
    "--subset",
    type=Real(0, 1, min_open=True, max_open=True),
    help="memorization: part of the samples each is trained on.  [default: 0.7]",
)
@click.option(
    "--min-count",
    type=click.IntRange(1, 10**5),
    help="memorization: networks needed with and without a sample.  [default: 3]",
)
@click.option("--student", metavar="NAME", help="memorization: the network.  [default: resnet8]")
@click.option("--epochs", type=click.IntRange(1, MOST_EPOCHS), help="memorization: epochs of each.  [default: 30]")
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), help="memorization: of the subsets and networks.  [default: 0]"
)
@class_map_option
@click.option("--out", type=Output(), required=True, help="The score file to write.")
@loader_options
def score(
    beton: Path,
    fields: Fields,
    methods: tuple[str, ...],
    model: tuple[str, ...],
    logits: Path | None,
    size: int | None,
    batch_size: int | None,
    out: Path,
    force: bool,
    world: "World",
    device: str,
    num_workers: int,
    prefetch: int,
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
    from fastkd.data.beton.dataset import open_dataset, require_whole
    from fastkd.models.classes import read_class_map
    from fastkd.prune.scores.features import features_there, save_features
    from fastkd.prune.scores.score_file import load_scores, save_scores, scores_there

    source = choose_source(methods, model, logits, given | {"size": size, "batch_size": batch_size})
    mapping = read_class_map(given["class_map"])
    dataset = open_dataset(beton, fields)
    require_whole(dataset)
    common = {"num_workers": num_workers, "prefetch": prefetch, "device": device, "world": world}
    if source == "memorization":
        job = by_memorization(dataset, out, size, batch_size, given, common)
    elif source == "store":
        assert logits is not None
        job = by_store(dataset, logits, methods, mapping)
    else:
        job = by_networks(dataset, model, methods, mapping, size, batch_size, given, common)
    agree(world, {"beton": dataset.fingerprint, **job.inputs, "--class-map": mapping and mapping.identity()})
    about: dict[str, Any] = {
        "beton_fingerprint": dataset.fingerprint,
        "inputs": job.inputs,
        "params": {"source": source} | ({"class_map": mapping.identity()} if mapping else {}),
        "class_names": dataset.class_names,
        "force": force,
    }
    features_out = given["features_out"]

    def is_done() -> bool:
        """Whether the scores of this job, and the features, are there already; looked at before anything is computed."""
        found = scores_there(out, job.described, **about) is not None
        if features_out is not None:
            of_job = (dataset.fingerprint, job.features_inputs, job.params)
            found &= features_there(features_out, *of_job, class_names=dataset.class_names, force=force)
        return found

    if share(world, is_done):
        say(f"{out}: these scores are there already; they follow")
        return _result(load_scores(out))
    values, features = job.compute()
    if not world.is_main:
        return {}, ""
    if features_out is not None and features is not None:
        save_features(
            features_out,
            features,
            beton_fingerprint=dataset.fingerprint,
            inputs=job.features_inputs,
            params=dict(job.params),
            class_names=dataset.class_names,
            force=force,
        )
    return _result(save_scores(out, values, job.described, **about))


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
