"""The teachers of a suite: trained once, or the user's."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastkd.errors import FastKDError, ModelError, NotFoundError, OptionError
from fastkd.fingerprint import fingerprint
from fastkd.models.checkpoint import read_checkpoint
from fastkd.prune.scores.recorder import RECORDABLE
from fastkd.sweep.jobs import Draft, Input, Job
from fastkd.sweep.masks import Family, mask_job
from fastkd.sweep.sizes import num_epochs, with_recipe
from fastkd.sweep.suite.keys import OF_NETWORK
from fastkd.sweep.suite.read import Suite
from fastkd.train.run_folder import weights_after

_OWN = ("checkpoint", "mask", "epoch")


def teacher_job(
    suite: Suite,
    draft: Draft,
    train: Job,
    val: Job | None,
    digest_of: Callable[[str, Path], str],
    name: str,
    cell: Mapping[tuple[str, ...], Any],
    base: Family | None = None,
) -> Job:
    """The teacher of a name, as a cell has it.

    One that is trained on all samples records the scores that a run can record, which costs nothing. `epoch = N` is it as it was
    after so many epochs: one run keeps the weights of all those that the suite names.

    Args:
        base: the largest mask of the student's family, for `mask = "complement"`.

    Raises:
        OptionError: options that do not go together; says where.
        NotFoundError: a checkpoint that is not there.
    """
    section = f"teacher.{name}"
    own = suite.of(section, cell)
    network = {key: own[key] for key in OF_NETWORK if key in own}
    where = suite.place(("teacher", name))
    if "checkpoint" in own:
        idle = sorted(set(own) - {"checkpoint", *OF_NETWORK})
        if idle:
            where = suite.place(("teacher", name, idle[0]))
            raise OptionError(
                f"{where}: {idle[0]} is of a teacher that is trained here, and [{section}] has a checkpoint: leave one of both out"
            )
        spec = str(own["checkpoint"])
        path = Path(spec)
        if not path.exists():
            if "/" in spec or path.suffix:
                raise NotFoundError(f"{suite.place(('teacher', name, 'checkpoint'))}: {spec}: no such file")
            return _with(draft.given("published", path, spec, name), network, spec)
        given = draft.given("checkpoint", path, digest_of("teacher", path), name)
        return _with(given, network, network.get("teacher-model") or _said_model(path))
    if network:
        key = next(iter(network))
        raise OptionError(f"{suite.place(('teacher', name, key))}: {key} is of a checkpoint, and [{section}] has none")
    of_train = draft.commands.keys("train")
    prune = {key: value for key, value in own.items() if key not in of_train and key not in _OWN}
    values = {key: value for key, value in own.items() if key in of_train and key not in _OWN}
    if "model" not in values:
        raise OptionError(f"{where}: [{section}] says no model, and no checkpoint")
    epochs_kept = _epochs_named(suite, name)
    if epochs_kept:
        values.setdefault("keep-every", math.gcd(*epochs_kept) or 1)
    inputs = [Input("beton", "beton", train), *([] if val is None else [Input("val", "val", val)])]
    label = f"{name}-{values['model']}"
    mask = None
    if "mask" in own:
        mask, label = _complement(suite, draft, train, own, prune, section, base), f"{label}-complement"
    elif prune:
        mask = mask_job(
            suite, draft, train, {"seed": values.get("seed", 0)} | prune, _no_scores(suite, section), section
        )
        label += f"-f{prune.get('keep')}" if mask is not None else ""
    if mask is not None:
        inputs.append(Input("mask", "mask", mask))
    elif "record" not in values and "checkpoint-every" not in values:
        values["record"] = ",".join(RECORDABLE)
    epochs = num_epochs(draft.jobs, with_recipe(values), None if mask is None else mask.name)
    about = {
        "model": values["model"],
        "epochs": epochs,
        "mask": None if mask is None else mask.name,
        "records": mask is None and "record" in values,
        "network": {},
        "views": {key: values[key] for key in ("views", "size") if key in values},
    }
    if "epoch" in own:
        where = suite.place(("teacher", name, "epoch"), ("matrix", "teacher", name, "epoch"))
        _require_epoch(own["epoch"], epochs, values["keep-every"], where)
    try:
        job = draft.add("teacher", "train", "teachers", label, "", values, inputs, about=about)
    except (OptionError, ModelError) as error:
        raise suite.told(section, error) from None
    return _after(job, own["epoch"]) if "epoch" in own else job


def _epochs_named(suite: Suite, name: str) -> set[int]:
    """All epochs after which a suite wants a teacher."""
    section = f"teacher.{name}"
    found = {suite.of(section, cell).get("epoch") for cell in ({}, *suite.cells)}
    return {epoch for epoch in found if epoch is not None}


def _require_epoch(epoch: int, epochs: int | None, keep_every: int, where: str) -> None:
    """Refuses an epoch that a teacher does not have, or of which it does not keep its weights.

    Raises:
        OptionError: says where.
    """
    if epoch < 1 or (epochs is not None and epoch > epochs):
        raise OptionError(f"{where}: epoch is {epoch}, expected 1 … {epochs or 'the last'} of the teacher's training")
    if epoch % keep_every:
        raise OptionError(
            f"{where}: epoch is {epoch}, and keep-every {keep_every} keeps no weights of it: leave keep-every out"
        )


def _after(job: Job, epoch: int) -> Job:
    """A teacher as it was after an epoch: the job that trains it, of whose output the weights of then are read."""
    digest = fingerprint([job.digest, str(epoch)])
    return replace(job, path=weights_after(job.path, epoch), digest=digest, label=f"{job.label}-e{epoch}")


def _with(job: Job, network: dict[str, Any], model: str | None) -> Job:
    job.about.setdefault("network", network)
    job.about.setdefault("model", model)
    return job


@functools.cache
def _said_model(path: Path) -> str | None:
    """The network that a checkpoint says it holds, for what its passes cost; None for one that cannot be read, as its command will tell."""
    try:
        model = read_checkpoint(path).meta.get("model")
    except FastKDError:
        return None
    return model if isinstance(model, str) else None


def _complement(
    suite: Suite,
    draft: Draft,
    train: Job,
    own: Mapping[str, Any],
    prune: Mapping[str, Any],
    section: str,
    base: Family | None,
) -> Job:
    """The samples that no mask of the student's family keeps."""
    where = suite.place((*section.split("."), "mask"))
    if own["mask"] != "complement":
        raise OptionError(
            f'{where}: mask is {own["mask"]!r}, expected "complement" (of the student\'s); or say keep and method'
        )
    if prune:
        raise OptionError(
            f"{where}: mask and {next(iter(prune))} both say what the teacher is trained on: leave one out"
        )
    if base is None:
        raise OptionError(f"{where}: students on all samples have no complement: say prune.keep")
    inputs = [Input("beton", "beton", train), Input("mask 1", "mask", base.mask)]
    label = f"complement-{base.mask.label}"
    about = {"keep": None, "complement": base.mask.name}
    return draft.add("mask", "prune", "masks", label, ".h5", {"method": "complement"}, inputs, about=about)


def _no_scores(suite: Suite, section: str) -> Callable[..., Job]:
    """In place of a teacher that scores: a teacher's own mask comes before there is one."""

    def refuse(*_: Any, **__: Any) -> Job:
        where = suite.place((*section.split("."), "method"))
        raise OptionError(
            f"{where}: a teacher's samples are chosen before there are scores: expected method random, or scores = FILE"
        )

    return refuse
