"""From a suite to the graph of its commands, in which each output is made once."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastkd.data.sources.arrays import READERS
from fastkd.errors import ModelError, NotFoundError, OptionError
from fastkd.sweep.jobs import Draft, Input, Job
from fastkd.sweep.masks import family_of, mask_job
from fastkd.sweep.sizes import num_epochs, num_views, with_recipe
from fastkd.sweep.stores import Wish, largest_of, store_jobs
from fastkd.sweep.suite.keys import OF_VIEWS, Commands
from fastkd.sweep.suite.read import Suite
from fastkd.sweep.teachers import teacher_job

_OF_LABELS = ("tau", "tau-squared", "no-tau-squared", "alpha-rule", "beta", "layers", "teacher-layers")
"""Options of `train` that do nothing without a teacher."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Plan:
    """The jobs of a suite, each after those that it reads. runs: name of a run → its cells, all that come to it. folder: of
    the sweep."""

    suite: Suite
    folder: Path
    jobs: dict[str, Job]
    runs: dict[str, list[dict[tuple[str, ...], Any]]]

    def need(self, job: Job) -> list[Job]:
        """What a job reads."""
        return [self.jobs[name] for name in job.inputs.values()]


def make_plan(suite: Suite, folder: Path, commands: Commands, digest_of: Callable[[str, Path], str]) -> Plan:
    """The graph of a suite's commands.

    Args:
        folder: where all outputs go. digest_of: what a file of the user's is, by its kind (`beton`, `teacher`).

    Raises:
        OptionError: options that a command refuses, or that do not go together; says where.
        NotFoundError: a file of the user's that is not there.
    """
    draft = Draft(commands=commands, folder=folder, jobs={})
    needs_val = bool(suite.cells)
    train, val = (
        _data(suite, draft, role, digest_of, needed=role == "train" or needs_val) for role in ("train", "val")
    )
    assert train is not None
    if suite.gallery is not None:
        _galleries(suite, draft, train, val, digest_of)
        return Plan(suite=suite, folder=folder, jobs=draft.jobs, runs={})
    assert val is not None
    teacher_of = functools.partial(teacher_job, suite, draft, train, val, digest_of)
    wanted = [_wish(suite, cell, draft, train, teacher_of) for cell in suite.cells]
    largest = largest_of(wanted)
    for wish in wanted:
        if wish.teacher_name is not None:
            family = None if wish.family is None else largest[wish.family.key]
            wish.teacher = teacher_of(wish.teacher_name, wish.cell, base=family)
    stores = store_jobs(draft, train, [wish for wish in wanted if wish.source == "store"])
    runs: dict[str, list[dict[tuple[str, ...], Any]]] = {}
    for wish in wanted:
        job = _run(suite, draft, wish, train, val, stores.get(id(wish)))
        runs.setdefault(job.name, []).append(wish.cell)
    return Plan(suite=suite, folder=folder, jobs=draft.jobs, runs=runs)


def _data(suite: Suite, draft: Draft, role: str, digest_of: Callable[[str, Path], str], *, needed: bool) -> Job | None:
    """The beton of a role, `train` or `val`: the user's, or one that is built."""
    section = suite.sections["data"]
    said = section.get(role, section.get("source"))
    where = suite.place(("data", role), ("data", "source"))
    if said is None:
        if not needed:
            return None
        raise OptionError(f'{where}: [data] says no {role}: give {role} = "X.beton", or source = "cifar10:DIR"')
    common = {key: value for key, value in section.items() if key not in ("train", "val", "source")}
    own = said if isinstance(said, dict) else {"source": said}
    if "source" not in own:
        raise OptionError(f"{where}: [data.{role}] has no source")
    source = str(own["source"])
    if source.endswith(".beton"):
        path = Path(source)
        if not path.is_file():
            raise NotFoundError(f"{where}: {path}: no such file")
        return draft.given("beton", path, digest_of("beton", path), path.stem)
    split = {}
    if role not in section and source.partition(":")[0] in READERS:
        split = {"split": "train" if role == "train" else "test"}
    elif role not in section and role == "val":
        if not needed:
            return None
        raise OptionError(f"{where}: {source} has no test split of its own: give val = ..., beside train = ...")
    try:
        return draft.add(
            "beton",
            "build-beton",
            "data",
            role,
            ".beton",
            {**common, **own, **split},
            about={"source": source, "options": {**common, **own, **split}},
        )
    except (OptionError, ModelError) as error:
        raise suite.told("data", error) from None


def _wish(
    suite: Suite, cell: Mapping[tuple[str, ...], Any], draft: Draft, train: Job, teacher_of: Callable[..., Job]
) -> Wish:
    """What a cell asks for."""
    from fastkd.distil.methods import METHODS

    options, prune = suite.of("train", cell), suite.of("prune", cell)
    source, teacher = options.pop("source", None), options.pop("teacher", None)
    alpha, kd = options.get("alpha"), options.get("kd", "kd")
    if source == "labels" and alpha not in (None, 0):
        raise OptionError(
            f"{suite.place(('train', 'alpha'), ('matrix', 'train', 'alpha'))}: alpha {alpha} weighs a teacher, and source "
            f'"labels" has none'
        )
    if source == "labels" or (isinstance(alpha, int | float) and alpha == 0 and kd not in METHODS):
        source, teacher = "labels", None
        options = {key: value for key, value in options.items() if key not in (*_OF_LABELS, "kd")} | {"alpha": 0}
    else:
        embeds = kd in METHODS and METHODS[kd].layers == "embedding"
        source = source or ("live" if kd in METHODS and not embeds else "store")
        teacher = teacher or _only_teacher(suite)
    told = with_recipe(options)
    views = {key: told[key] for key in OF_VIEWS if key in told}
    mask = mask_job(suite, draft, train, prune, teacher_of)
    epochs = num_epochs(draft.jobs, told, None if mask is None else mask.name)
    views.setdefault("num-seeds", num_views(views.get("views"), epochs))
    return Wish(
        cell=dict(cell),
        options={key: value for key, value in options.items() if key not in OF_VIEWS},
        views={key: value for key, value in views.items() if value is not None},
        cache=suite.of("cache-logits", cell) | ({"outputs": "logits,embedding"} if kd in METHODS else {}),
        source=source,
        epochs=epochs,
        teacher_name=teacher,
        mask=mask,
        family=None if mask is None else family_of(mask, prune),
    )


def _only_teacher(suite: Suite) -> str:
    scorer = suite.sections["score"].get("teacher")
    others = [name for name in suite.teachers if name != scorer] or list(suite.teachers)
    if len(others) != 1:
        found = "none" if not others else f"{', '.join(others)}: say which by train.teacher"
        raise OptionError(
            f'{suite.place(("train", "teacher"))}: runs with a teacher need one [teacher.NAME], there is {found}; or say source = "labels"'
        )
    return others[0]


def _run(suite: Suite, draft: Draft, wish: Wish, train: Job, val: Job, store: Job | None) -> Job:
    """The run of a cell."""
    inputs = [Input("beton", "beton", train), Input("val", "val", val)]
    if wish.mask is not None:
        inputs.append(Input("mask", "mask", wish.mask))
    values = {**wish.options, **wish.views}
    meaning = {**values, "source": wish.source}
    if wish.teacher is not None:
        network = wish.teacher.about["network"]
        meaning |= network
        if store is not None:
            inputs += [Input("logits", "logits", store), Input("teacher", "", wish.teacher)]
            values = {**wish.options, "num-seeds": wish.views.get("num-seeds")}
            meaning |= {f"cache {key}": value for key, value in wish.cache.items()}
        else:
            inputs.append(Input("teacher", "teacher", wish.teacher))
            values |= network
    parts = [
        str(wish.options.get("model")),
        "all" if wish.mask is None else wish.mask.label,
        *([] if wish.teacher is None else [f"{wish.options.get('kd', 'kd')}-{wish.teacher.label}"]),
        *([] if wish.teacher is not None else ["labels"]),
        *(f"{short}{wish.options[key]}" for key, short in (("alpha", "a"), ("tau", "t")) if key in wish.options),
        *([f"k{wish.views['num-seeds']}"] if "num-seeds" in wish.views else []),
        f"s{wish.options.get('seed', 0)}",
    ]
    about = {
        "model": wish.options.get("model"),
        "epochs": wish.epochs,
        "mask": None if wish.mask is None else wish.mask.name,
        "live": None if wish.source != "live" or wish.teacher is None else wish.teacher.name,
        "distils": wish.teacher is not None,
        "views": wish.views,
    }
    try:
        return draft.add("run", "train", "runs", "_".join(parts), "", values, inputs, meaning=meaning, about=about)
    except (OptionError, ModelError) as error:
        raise suite.told("train", error) from None


def _galleries(suite: Suite, draft: Draft, train: Job, val: Job | None, digest_of: Callable[[str, Path], str]) -> None:
    """Pictures of the highest-scoring samples: a command for each of `gallery.score`."""
    from fastkd.sweep.masks import score_input

    assert suite.gallery is not None
    unknown = sorted(set(suite.gallery) - {"score", "count"})
    if unknown:
        raise OptionError(
            f"{suite.place(('gallery', unknown[0]))}: [gallery] has no {unknown[0]!r}, expected score and count"
        )
    names = suite.gallery.get("score", ["forgetting"])
    teacher_of = functools.partial(teacher_job, suite, draft, train, val, digest_of)
    for name in names if isinstance(names, list) else [names]:
        scores = score_input(suite, draft, train, name, teacher_of, key="files")
        draft.add(
            "gallery",
            "inspect",
            "galleries",
            name,
            ".png",
            {"score": name, "count": suite.gallery.get("count", 10)},
            [scores, Input("beton", "beton", train)],
            out="gallery",
        )


def levels(plan: Plan, owed: list[Job]) -> list[list[Job]]:
    """The owed jobs by how many of them must be done before, one after the other."""
    depth: dict[str, int] = {}
    names = {job.name for job in owed}
    for job in plan.jobs.values():
        below = [depth[name] + 1 for name in job.inputs.values() if name in depth]
        if job.name in names:
            depth[job.name] = max(below, default=0)
    found: list[list[Job]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for job in owed:
        found[depth[job.name]].append(job)
    return found
