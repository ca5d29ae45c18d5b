"""The folder of a run: whose it is, where it stands, and what came out of it."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from fastkd.dist import World
from fastkd.errors import CorruptError, FormatError, MismatchError
from fastkd.fingerprint import fingerprint
from fastkd.train.resume import load_resume, save_resume
from fastkd.writing import atomic_path

RUN_VERSION = 1


def claim_folder(out: Path, identity: dict[str, Any], world: World) -> None:
    """Makes the folder this run's, or checks that it is.

    Args:
        identity: inputs and params; plain JSON values.

    Raises:
        MismatchError: another run, or files that are no run's; says in what it differs.
        FormatError: a damaged run.json, or one of another version.
    """
    out.mkdir(parents=True, exist_ok=True)
    digest = fingerprint([json.dumps(identity, sort_keys=True)])
    found = read_json(out / "run.json")
    if found is None:
        if any(out.iterdir()) and world.is_main:
            strangers = sorted(p.name for p in out.iterdir() if p.name != "run.json.partial")
            if strangers:
                raise MismatchError(f"{out}: holds {strangers[0]} but no run.json; choose an empty --out")
        if world.is_main:
            head = {"fastkd_kind": "run", "format_version": RUN_VERSION, "fingerprint": digest}
            write_json(out / "run.json", head | identity)
        return
    if found.get("format_version") != RUN_VERSION:
        raise FormatError(
            f"{out}/run.json: run of version {found.get('format_version')}, this fastkd reads version {RUN_VERSION}"
        )
    if found.get("fingerprint") != digest:
        differs = _differences({key: found.get(key, {}) for key in identity}, identity)
        raise MismatchError(
            f"{out}: another run is there; it differs in {'; '.join(differs) or 'its header'}; choose another --out"
        )


def started_global_batch(out: Path) -> int | None:
    """The samples of a step over all ranks in the run that a folder holds; None where it holds none.

    Raises:
        FormatError: a damaged run.json.
    """
    params = (read_json(out / "run.json") or {}).get("params")
    found = params.get("global_batch") if isinstance(params, dict) else None
    return found if isinstance(found, int) and found >= 1 else None


def _differences(found: Any, wanted: Any, name: str = "") -> list[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted({*found, *wanted})
        return [line for key in keys for line in _differences(found.get(key), wanted.get(key), key)]
    same = json.dumps(found) == json.dumps(wanted)
    return [] if same else [f"{name} {found} (asked for {wanted})"]


class Checkpoints:
    """The last two resume states of a run: `resume.pt` and, should that one be damaged, `resume-previous.pt`.

    Args:
        parts: what has a state, by the name under which it is kept: networks, optimisers and the like.
    """

    def __init__(self, out: Path, parts: dict[str, Any]) -> None:
        self.last, self.previous, self.parts = out / "resume.pt", out / "resume-previous.pt", parts
        self._last_is_whole = True

    def load(self, log: Callable[[str], None]) -> dict[str, Any] | None:
        """Loads the last whole state into the parts; returns all of it, or None where there is none.

        Raises:
            FormatError, CorruptError: no whole file, or the state of another network.
        """
        paths = [path for path in (self.last, self.previous) if path.exists()]
        for path in paths:
            try:
                state = load_resume(path)
            except (FormatError, CorruptError) as error:
                if path == paths[-1]:
                    raise
                log(f"{error}; falling back to the state before it, {paths[-1].name}")
                self._last_is_whole = False
                continue
            with suppress(KeyError, ValueError, RuntimeError, TypeError):
                for name, part in self.parts.items():
                    part.load_state_dict(state[name])
                torch.set_rng_state(state["generator"])
                log(f"{path}: going on after epoch {state['epoch']}, step {state['step']}")
                return state
            raise FormatError(f"{path}: does not hold the state of this run; remove the folder and start anew")
        return None

    def save(self, position: dict[str, Any]) -> None:
        """Writes the state of the parts and the position; a kill at any moment leaves one whole state or two."""
        if self.last.exists() and self._last_is_whole:
            os.replace(self.last, self.previous)
        states = {name: part.state_dict() for name, part in self.parts.items()}
        save_resume(self.last, states | position | {"generator": torch.get_rng_state()})
        self._last_is_whole = True


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None where there is no such file.

    Raises:
        FormatError: the file holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise FormatError(f"{path}: damaged ({error}); remove the folder and start anew") from None
    if not isinstance(content, dict):
        raise FormatError(f"{path}: holds no JSON object; remove the folder and start anew")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object, atomically."""
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
