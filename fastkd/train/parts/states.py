"""The resume states of a run: copied while the ranks wait, written while they go on."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastkd.errors import CorruptError, FormatError
from fastkd.train.resume import load_part, load_resume, save_resume
from fastkd.train.run_folder import file_checksum, place_in_words, require_own_state


class Checkpoints:
    """The last two resume states of a run: `resume.pt` and, should that one be damaged, `resume-previous.pt`.

    Args:
        head: what run.json says; a state says by its fingerprint whose it is.
        parts: what has a state, by the name under which it is kept: networks, optimisers and the like.
        device: of the parts; a state has the random numbers that are to come of the CPU, and of a GPU.
    """

    def __init__(
        self, out: Path, head: dict[str, Any], parts: dict[str, Any], device: torch.device | str = "cpu"
    ) -> None:
        self.last, self.previous, self.parts = out / "resume.pt", out / "resume-previous.pt", parts
        self.device = torch.device(device)
        self._head = head
        self._last_is_whole = True
        self.loaded: str | None = None  # digest of the state that was gone on from
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="fastkd-states")
        self._writing: Future[None] | None = None

    def load(self, log: Callable[[str], None]) -> dict[str, Any] | None:
        """Loads the last whole state into the parts; returns all of it, or None where there is none.

        Raises:
            FormatError, CorruptError: no whole file, or the state of another network.
            MismatchError: the state of another run.
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
            require_own_state(path, state, self._head)
            with suppress(KeyError, ValueError, RuntimeError, TypeError, AttributeError):
                for name, part in self.parts.items():
                    load_part(part, state[name])
                torch.set_rng_state(state["generator"])
                if self.device.type == "cuda" and "cuda_generator" in state:
                    torch.cuda.set_rng_state(state["cuda_generator"], self.device)
                self.loaded = file_checksum(path)
                log(f"{path}: going on {place_in_words(state['epoch'], state['step'])}")
                return state
            raise FormatError(f"{path}: does not hold the state of this run; remove the folder and start anew")
        return None

    def save(self, position: dict[str, Any]) -> None:
        """Takes the state of the parts and the position; it is written while the caller goes on, once the one before is.

        A kill at any moment leaves one whole state or two; `finish` waits for the last.

        Raises:
            FastKDError, OSError: the state before could not be written.
        """
        self.finish()
        states = {name: part.state_dict() for name, part in self.parts.items()}
        generators = {"generator": torch.get_rng_state()}
        if self.device.type == "cuda":
            generators["cuda_generator"] = torch.cuda.get_rng_state(self.device)
        state = _copied(states | position | {"run": self._head["fingerprint"]} | generators)
        copied = None
        if self.device.type == "cuda":
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(self.device))
        self._writing = self._writer.submit(self._write, state, copied)

    def finish(self) -> None:
        """Waits until what was saved is on the disk.

        Raises:
            FastKDError, OSError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Ends the writer, after what it writes; for a run that ends by an error of its own, which is told instead of its."""
        self._writer.shutdown()

    def _write(self, state: dict[str, Any], copied: "torch.cuda.Event | None") -> None:
        if copied is not None:
            with torch.cuda.stream(torch.cuda.Stream(self.device)):  # beside the steps that go on
                copied.wait()
                state = _mapped(state, lambda tensor: tensor.cpu())
        if self.last.exists() and self._last_is_whole:
            os.replace(self.last, self.previous)
        save_resume(self.last, state)
        self._last_is_whole = True


def _copied(state: Any) -> Any:
    """A state that later steps do not change, its tensors on the device where they were."""
    return _mapped(state, lambda tensor: tensor.detach().clone())


def _mapped(state: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same dicts, lists and tuples, with the function's results in place of tensors."""
    if isinstance(state, Tensor):
        return function(state)
    if isinstance(state, dict):
        return {key: _mapped(value, function) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_mapped(value, function) for value in state)
    return state
