"""What sources of several files have in common: the patterns that name the files, and the numbers of their classes."""

import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from fastkd.data.modes import MAX_CLASSES
from fastkd.data.sources.files import shortened, shown
from fastkd.data.sources.layout import named_as, read_class_list
from fastkd.errors import FormatError, NotFoundError, OptionError, SourceError

Progress = Callable[[int, int], None]
"""What is called with files done and in all."""
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_INTEGER = re.compile(r"-?[0-9]{1,18}")


def paths_of(scheme: str, patterns: str) -> list[str]:
    """The files that patterns name, as absolute paths.

    Args:
        scheme: that of the source, for messages.
        patterns: a path with the shell's braces and wildcards (`train-{000..146}.tar`, `{a,b}/*.tar`, `**/*.tar`), or several of
            them with `::` between. A part of it that is the path of a file is taken as it stands.

    Returns:
        The files in the order of patterns and braces; those of a wildcard are sorted by name.

    Raises:
        NotFoundError: a pattern, or a path that its braces make, that no file has; or a folder's.
        OptionError: nothing after the colon, or a file that is named twice.
    """
    if not patterns:
        ending = "parquet" if scheme == "parquet" else "tar"
        raise OptionError(
            f"{scheme}: found nothing after the colon, expected a pattern such as {scheme}:train-*.{ending}"
        )
    found: list[str] = []
    for pattern in patterns.split("::"):
        for path in [pattern] if os.path.isfile(pattern) else expanded(pattern):
            wild = glob.has_magic(path) and not os.path.isfile(path)
            names = sorted(glob.glob(path, recursive=True)) if wild else [path]
            wrong = next((name for name in names if not os.path.isfile(name)), None if names else path)
            if wrong is not None:
                what = "a folder" if os.path.isdir(wrong) else "no such file"
                way_out = (
                    f"{wrong}/* stands for the files in it"
                    if os.path.isdir(wrong)
                    else "download it, or mend the pattern"
                )
                raise NotFoundError(f"{scheme}:{shortened(pattern)}: found {what} {shortened(wrong)}; {way_out}")
            found += map(os.path.abspath, names)
    path, count = Counter(map(os.path.realpath, found)).most_common(1)[0]
    if count > 1:
        raise OptionError(f"{scheme}:{shortened(patterns)}: names {path} {count} times, expected each file once")
    return found


def expanded(pattern: str) -> Iterator[str]:
    """The texts that a shell makes of a pattern's braces, `{a,b}` and `{000..146}`, the first of them varying slowest."""
    depth, start, cuts = 0, 0, [0]
    for at, character in enumerate(pattern):
        if character == "{":
            depth += 1
            if depth == 1:
                start, cuts = at, [at]
        elif character == "," and depth == 1:
            cuts.append(at)
        elif character == "}" and depth:
            depth -= 1
            if depth:
                continue
            if len(cuts) > 1:
                ends = itertools.pairwise([*cuts, at])
                parts: Iterable[str] = itertools.chain.from_iterable(expanded(pattern[a + 1 : b]) for a, b in ends)
            elif match := _RANGE.fullmatch(pattern, start + 1, at):
                parts = _counted(match[1], match[2])
            else:
                continue
            for part in parts:
                for rest in expanded(pattern[at + 1 :]):
                    yield pattern[:start] + part + rest
            return
    yield pattern


def _counted(first: str, last: str) -> Iterator[str]:
    """The numbers from one to the other, of as many digits as the wider has where one of them begins with 0."""
    width = max(len(first), len(last)) if any(len(end) > 1 and end[0] == "0" for end in (first, last)) else 0
    step = 1 if int(first) <= int(last) else -1
    return (f"{number:0{width}}" for number in range(int(first), int(last) + step, step))


def one_by_one(paths: list[str], progress: Progress) -> Iterator[tuple[int, str, str]]:
    """Each file's number, its path, and what it is called in the names of its samples: its path below the folder that all lie in.

    Args:
        progress: called after each.
    """
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    for number, path in enumerate(paths):
        yield number, path, os.path.relpath(path, folder)
        progress(number + 1, len(paths))


def class_numbers(
    where: str, values: list[str], names: list[str], classes: Path | None
) -> tuple[list[str], np.ndarray]:
    """Classes and labels of samples that say their class as text: its name, or, all of them, its number.

    Args:
        where: the source, for messages. values, names: N texts and the names of the samples that have them.
        classes: a file with a class name a line; None sorts names, as those of folders are, and calls numbers by themselves.

    Returns:
        The classes in label order, and int64 labels of shape (N,): the rows of names in that list, or the numbers.

    Raises:
        FormatError: names beside numbers, numbers below 0 or of more than MAX_CLASSES classes; a malformed class list.
        SourceError: a class that is not listed.
    """
    listed = None if classes is None else read_class_list(classes)
    is_number = [_INTEGER.fullmatch(value) is not None for value in values]
    if all(is_number):
        return numbered(where, np.array(values, np.int64), names, listed)
    if any(is_number):
        number, text = is_number.index(True), is_number.index(False)
        raise FormatError(
            f"{where}: found the label {values[number]} of {shortened(names[number])} and {shortened(values[text])} of "
            f"{shortened(names[text])}, expected numbers alone or names alone"
        )
    return named(sorted(set(values)), values, names, listed)


def numbered(
    where: str, labels: np.ndarray, names: list[str], class_names: list[str] | None
) -> tuple[list[str], np.ndarray]:
    """Classes that samples name by their numbers, int64 (N,): row i of `class_names`, or else "0", "1" … up to the highest.

    Raises:
        FormatError: a number that no class has.
    """
    most = MAX_CLASSES if class_names is None else len(class_names)
    wrong = np.flatnonzero((labels < 0) | (labels >= most))
    if len(wrong):
        at = int(wrong[0])
        unlabelled = "; leave out what has no label" if labels[at] < 0 else ""
        raise FormatError(
            f"{where}: found the label {labels[at]} of {shortened(names[at])}, expected 0 ... {most - 1}{unlabelled}"
        )
    return [str(i) for i in range(int(labels.max()) + 1)] if class_names is None else class_names, labels


def named(
    class_names: list[str], values: list[str], names: list[str], listed: list[str] | None
) -> tuple[list[str], np.ndarray]:
    """Classes that samples name, in the order of a list where there is one; and their labels, int64 (N,).

    Raises:
        SourceError: a class that is not listed.
    """
    order = class_names if listed is None else named_as(class_names, listed)
    label_of = {name: label for label, name in enumerate(order)}
    if unknown := sorted(set(values) - label_of.keys()):
        raise SourceError(
            f"{shortened(names[values.index(unknown[0])])}: found the class {shown(unknown)}, expected only the {len(order)} classes of "
            f"--classes; add it to that list"
        )
    return order, np.array([label_of[value] for value in values], np.int64)
