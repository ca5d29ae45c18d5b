"""How many samples a plan's data have, its masks keep and its runs pass, as far as that is known before anything is there."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fastkd.data.beton.dataset import open_dataset
from fastkd.data.sources.open import open_source
from fastkd.data.views.draw import NUM_CROP_FLIP_VIEWS
from fastkd.errors import FastKDError, OptionError
from fastkd.feed.loader import choose_views
from fastkd.prune.masks.mask import parse_keep
from fastkd.sweep.jobs import Job


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """What is known of the training data. size: of a view, in pixels, and views: their kind where none is said; None before there
    is a beton."""

    num_samples: int
    num_classes: int
    size: int | None
    views: str | None = None


def read_data(jobs: Mapping[str, Job]) -> Data | None:
    """The training data of a plan, whose first beton they are: of the beton, or as far as its source tells; None where neither does.

    Raises:
        FastKDError: the beton is damaged.
    """
    return _read(next(job for job in jobs.values() if job.kind == "beton"))


def _read(beton: Job) -> Data | None:
    if beton.path.exists():
        dataset = open_dataset(beton.path)
        return Data(
            num_samples=dataset.beton.num_samples,
            num_classes=dataset.num_classes,
            size=int(dataset.beton.heights[dataset.beton.sample_ids[0]]),
            views=choose_views(dataset).kind,
        )
    options: dict[str, Any] = beton.about["options"]
    try:
        source = open_source(
            options["source"],
            root=options.get("root"),
            classes=options.get("classes"),
            split=options.get("split"),
            image_field=options.get("image-field"),
            label_field=options.get("label-field"),
        )
    except FastKDError:
        return None
    return Data(num_samples=len(source), num_classes=len(source.class_names), size=None)


def kept_of(jobs: Mapping[str, Job], mask: str | None, num_samples: int) -> int | None:
    """Samples that a mask of a plan will keep; None where `prune` would refuse it."""
    if mask is None:
        return num_samples
    about = jobs[mask].about
    if "complement" in about:
        base = kept_of(jobs, about["complement"], num_samples)
        return None if base is None else num_samples - base
    try:
        return parse_keep(str(about["keep"]), num_samples)
    except OptionError:
        return None


def num_kept(jobs: Mapping[str, Job], mask: str | None) -> int | None:
    """The same of a plan on its way; None where neither its data nor their source are there."""
    data = _data_of(jobs)
    return None if data is None else kept_of(jobs, mask, data.num_samples)


def _data_of(jobs: Mapping[str, Job]) -> Data | None:
    return _read_once(next(job for job in jobs.values() if job.kind == "beton"))


@lru_cache(maxsize=1)
def _read_once(beton: Job) -> Data | None:
    """A source's files are listed once for all cells."""
    return _read(beton)


def with_recipe(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `train` over those of the recipe that they name, as the command has them: steps take the place of its epochs."""
    from fastkd.train.recipes.named import read_named

    named = read_named(str(options["recipe"]))[0] if "recipe" in options else {}
    if "steps" in options:
        named.pop("epochs", None)
    return {**named, **options}


def num_epochs(jobs: Mapping[str, Job], options: Mapping[str, Any], mask: str | None) -> int | None:
    """How many epochs `train` goes on for, the last of which may be cut; None where that hangs on what is not known yet.

    Args:
        jobs: of a plan on its way. options: as `with_recipe` gives them, those of views among them. mask: None for all samples.
    """
    from fastkd.train.recipe import RECIPES, Recipe

    default = Recipe(model="")
    if "steps" not in options:
        return int(options.get("epochs", default.epochs))
    batch, data = options.get("batch-size"), _data_of(jobs)
    views = options.get("views") or (None if data is None else data.views)
    if batch is None and views is not None:
        batch = RECIPES[views].get("batch_size", default.batch_size)
    kept = num_kept(jobs, mask)
    if kept is None or batch is None:
        return None
    of_update = int(batch) * int(options.get("accumulate", 1))
    num_steps = kept // of_update if options.get("drop-last") else -(-kept // of_update)
    return -(-int(options["steps"]) // max(1, num_steps))


def num_views(views: str | None, epochs: int | None) -> int | None:
    """K where a suite says none: a view for each epoch, which is what a live teacher sees; None for the command's own choice,
    which is all that there are of `crop-flip`.

    Args:
        views: their kind; None where a suite says none. epochs: of the run; None where they are not known.
    """
    if views == "center":
        return 1
    return None if epochs is None or (epochs > NUM_CROP_FLIP_VIEWS and views != "rrc") else epochs
