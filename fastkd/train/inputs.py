"""What a training run is made from: its files opened, checked against each other, and turned into loaders."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fastkd.data.beton.dataset import Dataset, open_dataset, relabelled
from fastkd.data.beton.fields import AS_FOUND, Fields
from fastkd.data.identity import center_views
from fastkd.data.views.draw import Views
from fastkd.dist import World
from fastkd.distil.methods import METHODS, teacher_needed
from fastkd.errors import MismatchError, OptionError
from fastkd.feed.loader import Loader
from fastkd.feed.resident import Resident, make_resident, why_not
from fastkd.models.classes import ClassMap, match_classes
from fastkd.prune.masks.mask import Mask
from fastkd.store.logit_store import LogitStore
from fastkd.teacher.network import Teacher
from fastkd.teacher.precision import PRECISIONS
from fastkd.train.about import about_run
from fastkd.train.metrics import EVAL_BATCH
from fastkd.train.recipe import Recipe
from fastkd.train.run_folder import read_json


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunInputs:
    """Loaders and teacher of a run, and what `run.json` records of them.

    teacher: runs live; None where the logits come from the store, or alpha is 0. fingerprints: by role. about: see
    `about_run`.
    """

    loader: Loader | Resident
    val: Loader | Resident | None
    teacher: Teacher | None
    fingerprints: dict[str, str]
    params: dict[str, Any]
    about: dict[str, Any]


def open_inputs(
    recipe: Recipe,
    dataset: Dataset,
    views: Views,
    *,
    mask: Mask | None,
    store: LogitStore | None,
    teacher: Teacher | None,
    val: str | Path | None,
    num_workers: int,
    prefetch: int = 3,
    device: str,
    world: World,
    global_batch: int | None = None,
    resident: str = "off",
    val_fields: Fields = AS_FOUND,
    val_version: int | None = None,
    val_size: int | None = None,
    beside: Mapping[str, Any] = MappingProxyType({}),
    class_map: ClassMap | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> RunInputs:
    """Joins the inputs of a run.

    Args:
        store, teacher: where both are given, the teacher must be the store's, and the store is used.
        val: path of a beton to measure accuracy on.
        global_batch: samples of a step on all ranks together; None for the recipe's batch size × ranks.
        val_fields: which of `val` hold the image and the label. val_version: of the views of it; None for the newest. val_size:
            their side in pixels; None for that of `views`.
        beside: what a run of before does not have of its live teacher in its identity, see `started_beside`.
        resident: `auto`, `on` or `off`: see `make_resident`.
        class_map: says which class is which, where names do not; part of the run's identity.
        log: called with lines for people.

    Raises:
        MismatchError: inputs that do not belong together, or validation data of other classes: see `match_classes`.
        OptionError: a method that needs the teacher, or a store's embeddings, without them, or as `Loader`.
    """
    fingerprints = {"beton": dataset.fingerprint}
    about = about_run(mask, store, teacher)
    if mask is not None:
        fingerprints["mask"] = mask.header.fingerprint
        if not recipe.mask_weights:
            mask = replace(mask, weights=None)
    from_store = recipe.kd in METHODS and teacher is None
    if from_store:
        _require_embeddings(recipe, store)
    elif recipe.kd in METHODS and store is not None:
        raise OptionError(f"--kd {recipe.kd} runs the teacher, which gives the logits too: leave --logits out")
    if store is not None:
        fingerprints["logits"] = store.tables.header.fingerprint
        if teacher is not None and store.tables.header.inputs.get("teacher") != teacher.fingerprint:
            raise MismatchError(f"{store.tables.path}: was filled by another teacher than the {teacher.name} asked for")
        teacher = None
    of_teacher: dict[str, Any] = {}
    if teacher is not None:
        fingerprints["teacher"] = teacher.fingerprint
        if teacher.precision not in ("fp32", beside.get("precision")):
            of_teacher["teacher_precision"] = teacher.precision
        if "norm" not in beside or beside["norm"] not in (None, teacher.norm.describe()):
            of_teacher["teacher_norm"] = teacher.norm.describe()
    by_number = class_map is not None and class_map.targets is None
    loader = Loader(
        dataset,
        views,
        mask=mask,
        logits=store if recipe.alpha > 0 or from_store else None,
        embeddings=from_store,
        by_number=by_number,
        batch_size=recipe.batch_size * recipe.accumulate,
        global_batch=global_batch,
        shuffle=True,
        seed=recipe.seed,
        order=recipe.order,
        drop_last=recipe.drop_last,
        num_workers=num_workers,
        prefetch=prefetch,
        device=device,
        world=world,
    )
    val_loader: Loader | Resident | None = None
    of_val: dict[str, Any] = {}
    if val is not None:
        val_data = open_dataset(val, val_fields)
        outputs, line = match_classes(val_data.classes, dataset.classes, class_map)
        if line:
            log(line)
        val_data = relabelled(val_data, outputs, dataset.classes)
        fingerprints["val"] = val_data.fingerprint
        center = center_views(val_data.beton, val_size or views.size, version=val_version)
        if center.version != 1:
            of_val = {"val_views_version": center.version}
        if center.size != views.size:
            of_val["val_size"] = center.size
        common: dict[str, Any] = {"num_workers": num_workers, "prefetch": prefetch, "device": device, "world": world}
        whole = Loader(val_data, center, batch_size=EVAL_BATCH, **common)
        val_loader = make_resident(whole, None, "off" if why_not(whole) else resident)
    return RunInputs(
        loader=make_resident(loader, loader.store, resident),
        val=val_loader,
        teacher=teacher if recipe.distils else None,
        fingerprints=fingerprints,
        about=about,
        params={
            "views": views.identity() | {"num_seeds": views.num_seeds},
            "fraction": len(loader.ids) / dataset.beton.num_samples,
            "num_kept": len(loader.ids),
            **of_val,
            **of_teacher,
            **({"class_map": class_map.identity()} if class_map is not None else {}),
            **({"weights": mask.header.params.get("weights")} if mask is not None and mask.weights is not None else {}),
        },
    )


def started_center(out: Path) -> tuple[int | None, int | None]:
    """The versions of `center` views of the run that a folder holds: of its own views, and of those it is measured on.

    None for what is not of a version that has begun. Runs of before version 2 do not say of what they are measured on.

    Raises:
        FormatError: a damaged run.json.
    """
    params = (read_json(out / "run.json") or {}).get("params")
    if not isinstance(params, dict):
        return None, None
    views, measured = params.get("views"), params.get("val_views_version", 1)
    own = views.get("version") if isinstance(views, dict) and views.get("kind") == "center" else None
    return (own if isinstance(own, int) else None), (measured if isinstance(measured, int) else None)


def started_precisions(out: Path) -> dict[str, str | None]:
    """The precisions that the run which a folder holds began with: `student`, and `teacher`, of a live one; None each where none did.

    Raises:
        FormatError: a damaged run.json.
    """
    head = read_json(out / "run.json") or {}
    params, inputs = (_entries(head.get(name)) for name in ("params", "inputs"))
    amp = _entries(params.get("recipe")).get("amp")
    found = {"student": "fp32" if amp == "off" else amp, "teacher": None}
    if "teacher" in inputs:
        found["teacher"] = params.get("teacher_precision") or started_beside(out).get("precision") or "fp32"
    return {name: value if value in tuple(PRECISIONS) else None for name, value in found.items()}


def started_beside(out: Path) -> dict[str, Any]:
    """What the run that a folder holds does not have of its live teacher in its identity, as runs of before have it, but beside it.

    Returns:
        `precision`, and `norm` as `Norm.describe` gives it, each None where the run has no word of it; neither where there is
        no such run, or it has them in its identity.

    Raises:
        FormatError: a damaged run.json.
    """
    head = read_json(out / "run.json") or {}
    params, about, inputs = (_entries(head.get(name)) for name in ("params", "about", "inputs"))
    if "teacher" not in inputs:
        return {}
    told = _entries(about.get("teacher"))
    norm = {name: told.get(name) for name in ("mean", "std", "size")} if "mean" in told else None
    found = {"precision": told.get("precision"), "norm": norm}
    return {name: value for name, value in found.items() if f"teacher_{name}" not in params}


def _entries(value: Any) -> dict[str, Any]:
    """An object of a run.json, which may be damaged; empty where it is none."""
    return value if isinstance(value, dict) else {}


def _require_embeddings(recipe: Recipe, store: LogitStore | None) -> None:
    """Refuses a method without a teacher where no store has what it looks at."""
    if store is None or store.embedding_dim is None or METHODS[recipe.kd].layers != "embedding":
        raise teacher_needed(recipe.kd, str(store.tables.path) if store is not None else None)
    if recipe.teacher_layers:
        raise OptionError(
            f"--teacher-layers {','.join(recipe.teacher_layers)} names layers of a live teacher, {store.tables.path} holds "
            f"{store.tables.header.params['embedding']['layer']} alone: leave it out"
        )
