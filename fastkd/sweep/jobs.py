"""Jobs: plain commands of fastkd, what each reads and writes, and names that follow from what the outputs are."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fastkd.fingerprint import fingerprint
from fastkd.sweep.suite.keys import Commands

LOCAL = ("num-workers", "device", "log")
"""Options that make an output no other one."""
KINDS = ("beton", "teacher", "scores", "mask", "store", "run", "gallery")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Job:
    """A command and its output.

    name: of the output: its path below the sweep's folder; of what the user gave, its own path. kind: one of KINDS. words: the
    command as it is typed, without `fastkd`; () for what the user gave. inputs: role → name of the job whose output is
    read. reads: role → the file or folder of it that is. digest: of all that the output follows from; 32 hexadecimal digits, the first eight are in the name. about: what
    costs are reckoned from.
    """

    name: str
    kind: str
    path: Path
    words: tuple[str, ...] = ()
    inputs: dict[str, str] = field(default_factory=dict)
    reads: dict[str, Path] = field(default_factory=dict)
    digest: str
    label: str
    about: dict[str, Any] = field(default_factory=dict)


class Input(NamedTuple):
    """What a job reads. role: as in the output's header. key: the option that names it. path: where it is, if that is not the
    job's output itself but something beside it or in it."""

    role: str
    key: str
    job: Job
    path: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Draft:
    """A plan on its way: all jobs so far by name, each after those that it reads."""

    commands: Commands
    folder: Path
    jobs: dict[str, Job]

    def add(
        self,
        kind: str,
        command: str,
        place: str,
        label: str,
        suffix: str,
        values: Mapping[str, Any],
        inputs: Sequence[Input] = (),
        *,
        meaning: Mapping[str, Any] | None = None,
        out: str = "out",
        about: Mapping[str, Any] | None = None,
    ) -> Job:
        """The job of a command, made once.

        Args:
            place: the folder of its output below the sweep's. label: what it is in a few words, for the name. values: options
                by key. meaning: what the output follows from besides its inputs, where that is not just the values. out: the
                option that names the output.

        Raises:
            OptionError: options that the command refuses.
        """
        values = {key: value for key, value in values.items() if value is not None}
        digests = {one.role: one.job.digest for one in inputs if one.role != "logits"}
        told = values if meaning is None else meaning
        bearing = {key: str(value) for key, value in told.items() if key not in LOCAL and value is not None}
        digest = fingerprint([json.dumps([command, bearing, digests], sort_keys=True)])
        name = f"{place}/{_plain(label)}-{digest[:8]}{suffix}"
        path = self.folder / name
        reads = {one.role: one.path or one.job.path for one in inputs}
        given = {one.key: str(reads[one.role]) for one in inputs if one.key}
        words = tuple(self.commands.words(command, {**given, **values, out: str(path)}))
        job = Job(
            name=name,
            kind=kind,
            path=path,
            words=words,
            inputs={one.role: one.job.name for one in inputs},
            reads=reads,
            digest=digest,
            label=_plain(label),
            about=dict(about or {}),
        )
        found = self.jobs.setdefault(name, job)
        assert found.digest == digest, name
        return found

    def given(self, kind: str, path: Path, digest: str, label: str) -> Job:
        """What the user has already."""
        job = Job(name=str(path), kind=kind, path=path, digest=digest, label=_plain(label))
        return self.jobs.setdefault(job.name, job)


def _plain(label: str) -> str:
    """A label as part of a file's name."""
    return re.sub(r"[^\w.+=-]+", "-", label).strip("-")[:120]
