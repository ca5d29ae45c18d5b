"""What a run was, in the words of those who compare runs: its mask, its teacher, its store, its machine.

None of it is part of the run's identity: the fingerprints of mask, teacher and store are.
"""

import shlex
import sys
from typing import Any

import torch

from fastkd import __version__
from fastkd.prune.masks.mask import Mask
from fastkd.store.logit_store import LogitStore
from fastkd.teacher.network import ALL_SAMPLES, Teacher

_OF_LOGITS = ("codec", "num_seeds", "views", "embedding")


def about_run(mask: Mask | None, store: LogitStore | None, teacher: Teacher | None) -> dict[str, Any]:
    """What a run was made from; plain JSON values.

    Args:
        mask: None for all samples. store: where logits come from. teacher: live, or the store's.

    Returns:
        `mask`: how it was chosen (method, seed, score, level, balance, keep, …), its fraction, fingerprint and inputs'
        fingerprints. `teacher`: model, precision, norm, fingerprint, num_parameters, val_top1 in percent, and the `mask`
        that it was trained on itself; None without one, and None for each of these that its file does not say. `logits`:
        codec, num_seeds, views (and embedding) of the store; None without one.
    """
    return {"mask": _about_mask(mask), "teacher": _about_teacher(store, teacher), "logits": _about_logits(store)}


def made_with(device: torch.device, command: str | None = None) -> dict[str, Any]:
    """By what a run is made: versions, the device's name, the command line."""
    is_gpu = device.type == "cuda"
    return {
        "fastkd": __version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name(device) if is_gpu else "cpu",
        "command": command,
    }


def command_line() -> str:
    """The command that this process was started with, as one would type it."""
    return shlex.join(["fastkd", *sys.argv[1:]])


def _about_mask(mask: Mask | None) -> dict[str, Any]:
    if mask is None:
        return dict(ALL_SAMPLES)
    header = mask.header
    return {**header.params, "fraction": mask.fraction, "fingerprint": header.fingerprint, "inputs": header.inputs}


def _about_teacher(store: LogitStore | None, teacher: Teacher | None) -> dict[str, Any] | None:
    told = teacher.about if teacher is not None else {}
    if store is not None:
        header = store.tables.header
        known = {**header.params.get("teacher", {}), "fingerprint": header.inputs.get("teacher")}
        told = store.tables.about.get("teacher", told)
    elif teacher is not None:
        known = {**teacher.identity(), "fingerprint": teacher.fingerprint}
    else:
        return None
    return {"num_parameters": None, "val_top1": None, "mask": None} | known | told


def _about_logits(store: LogitStore | None) -> dict[str, Any] | None:
    if store is None:
        return None
    params = store.tables.header.params
    return {name: params[name] for name in _OF_LOGITS if name in params}
