"""Which class is which, wherever the labels of data meet the outputs of a network: by their names, where both have some.

Names that do not tell classes apart count as none: invented ones ("0", "1", …) and lists with repeats. ImageNet's 1,000
words, as torchvision has them, are known as its 1,000 wnids in sorted order: the same classes in the same order.
"""

import functools
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastkd.errors import FormatError, MismatchError, NotFoundError
from fastkd.fingerprint import fingerprint

SAME_ORDER = "same-order"
DIGEST_KEY = "class_names_fingerprint"
"""Under which the params of an artefact have the `names_fingerprint` of the data that it was made from."""

_IMAGENET_WORDS = "e97295b7812b34b7de0b277bb4a14492"  # the fingerprint of torchvision's
_SHOWN = 4
_BY_FILE = "say with --class-map FILE which class is which"


@functools.cache
def imagenet_wnids() -> tuple[str, ...]:
    """The 1,000 classes of ImageNet in the order of its labels.

    A subset of them can be mapped by name only by one who has the whole list, so the package has it, in 10 kB.
    """
    return tuple(f"n{number}" for number in Path(__file__).with_name("imagenet_wnids.txt").read_text().split())


def known_names(names: object) -> tuple[str, ...] | None:
    """Names that tell classes apart, ImageNet's words as its wnids; None for what is no list of such names."""
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        return None
    found = tuple(names)
    if fingerprint(found) == _IMAGENET_WORDS:
        return imagenet_wnids()
    invented = found == tuple(map(str, range(len(found))))
    return None if invented or len(set(found)) < len(found) else found


def said_names(meta: Mapping[str, object]) -> list[str] | None:
    """The class names that a checkpoint's meta, or that of published weights, says; None where it says none."""
    names = meta.get("class_names")
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def names_fingerprint(names: Sequence[str] | None) -> dict[str, str]:
    """What the params of an artefact say of the class names of its data: one entry, or none where no names are known."""
    known = known_names(names)
    return {} if known is None else {DIGEST_KEY: fingerprint(known)}


def require_same_names(
    params: Mapping[str, object], path: str | Path, names: Sequence[str] | None, names_path: str | Path, way_out: str
) -> None:
    """Refuses an artefact whose data had other class names then than they have now; without names on a side it is taken.

    Raises:
        MismatchError: the names, or their order, are others.
    """
    now = names_fingerprint(names).get(DIGEST_KEY)
    then = params.get(DIGEST_KEY)
    if None not in (now, then) and now != then:
        raise MismatchError(
            f"{path}: was made when the classes of {names_path} had other names, or another order (their fingerprint was "
            f"{str(then)[:12]}, now it is {str(now)[:12]}): put the manifest of then back, or {way_out}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Classes:
    """The classes of data, or those that a network tells apart.

    where: the file or the name that they are of, for messages. count: labels, or outputs. names: one a class, in their order,
    as they were found; None where they are not said.
    """

    where: str
    count: int
    names: Sequence[str] | None = None

    @property
    def known(self) -> tuple[str, ...] | None:
        """Names that tell the classes apart, one for each; else None."""
        found = known_names(self.names)
        return found if found is not None and len(found) == self.count else None

    def describe(self, number: int) -> str:
        """A class in words: its name, or its number where no names are known."""
        return repr(self.names[number]) if self.names and number < len(self.names) else f"number {number}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassMap:
    """What --class-map says. source: the option's text. targets: class of the data → the network's name for it, or the number
    of its output; None for `same-order`."""

    source: str
    targets: dict[str, str | int] | None

    def identity(self) -> str:
        """`same-order`, or the fingerprint of what the file says."""
        if self.targets is None:
            return SAME_ORDER
        return fingerprint(repr(item) for item in sorted(self.targets.items()))


def read_class_map(text: str | None) -> ClassMap | None:
    """What `--class-map TEXT` means; None where it is not given.

    A file is TOML with a line a class: `"name in the data" = "name in the network"`, or the number of its output.

    Raises:
        NotFoundError: no such file.
        FormatError: not such a file.
    """
    source = f"--class-map {text}"
    if text is None:
        return None
    if text == SAME_ORDER:
        return ClassMap(source=source, targets=None)
    expected = f'expected {SAME_ORDER}, or TOML with lines like "cat" = "tabby" or "cat" = 7'
    try:
        content = tomllib.loads(Path(text).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise NotFoundError(f"{source}: cannot be read ({error.strerror}); {expected}") from None
    except (ValueError, RecursionError) as error:  # of UTF-8 and of TOML
        raise FormatError(f"{source}: {str(error)[:100]}; {expected}") from None
    for name, target in content.items():
        if type(target) not in (str, int):
            raise FormatError(
                f"{source}: {name!r} is a {type(target).__name__}; {expected}; names with dots need quotes"
            )
    if not content:
        raise FormatError(f"{source}: names no class; {expected}")
    return ClassMap(source=source, targets=content)


def match_classes(
    data: Classes, network: Classes, class_map: ClassMap | None = None, *, one_order: str = "", way_out: str = ""
) -> tuple[np.ndarray | None, str]:
    """Which output of a network each label of data is.

    Args:
        data: what labels are drawn from. network: what has an output for each of its classes; for validation data, the
            training data.
        class_map: decides where names do not.
        one_order: where outputs cannot be looked up by label: why, and the way out of another order.
        way_out: of other names, besides a class map.

    Returns:
        int64 (data.count,), the output of each label, None where that is its own number; and a line for people, empty where
        all names are equal.

    Raises:
        MismatchError: classes of the data that the network does not have; other numbers of classes where no names tell; a
            class map that does not fit; another order where there can be one alone.
    """
    ours, theirs = data.known, network.known
    if ours is not None and ours == theirs:
        if class_map is None or class_map.targets is None:
            return None, ""
        return None, f"{data.where} and {network.where} have the same class names, which need no --class-map"
    if class_map is not None and class_map.targets is None:
        _require_count(data, network, f"with {class_map.source}", f"{_BY_FILE}, or leave it out")
        return None, f"{class_map.source}: label i of {data.where} is number i of {network.where}, whatever their names"
    if class_map is not None:
        outputs, how = _by_map(data, network, class_map)
    elif ours is None or theirs is None:
        nameless = " and ".join(one.where for one in (data, network) if one.known is None)
        _require_count(data, network, f"and class names are not known of {nameless}", _BY_FILE)
        if ours is theirs:  # neither has names: nothing was to be compared but the numbers
            return None, ""
        return None, (
            f"class names are not known of {nameless}: only the numbers of classes are compared, {data.count} in "
            f"{data.where} and in {network.where}"
        )
    else:
        outputs, how = _by_name(data, network, ours, theirs, way_out), "name"
    same = bool((outputs == np.arange(data.count)).all())
    if same and data.count == network.count:
        return None, f"{data.where} and {network.where} have the same classes by {how}"
    if one_order:
        raise MismatchError(f"{_difference(data, network, outputs)}; {one_order}")
    return outputs, f"{_difference(data, network, outputs)}: labels are mapped by {how}"


def _require_count(data: Classes, network: Classes, reason: str, way_out: str) -> None:
    if data.count > network.count:
        way_out = "expected an output for each class of the data"
    if data.count != network.count:
        raise MismatchError(
            f"{data.where} has {data.count} classes, {network.where} has {network.count}, {reason}: {way_out}"
        )


def _by_name(
    data: Classes, network: Classes, ours: tuple[str, ...], theirs: tuple[str, ...], way_out: str
) -> np.ndarray:
    number = {name: at for at, name in enumerate(theirs)}
    strangers = [name for name in ours if name not in number]
    if strangers:
        unused = [name for name in theirs if name not in set(ours)]
        besides = f" ({_some(unused)} there but not here)" if unused else ""
        raise MismatchError(
            f"{data.where}: {_some(strangers)} of its {data.count} classes {'is' if len(strangers) == 1 else 'are'} not among "
            f"the {network.count} of {network.where}{besides}: {_BY_FILE} ({SAME_ORDER}: by their numbers)"
            + (f", or {way_out}" if way_out else "")
        )
    return np.array([number[name] for name in ours], np.int64)


def _by_map(data: Classes, network: Classes, class_map: ClassMap) -> tuple[np.ndarray, str]:
    """The output of each label by a map, and by their own name for classes that it does not list; how, in words."""
    targets, source = class_map.targets or {}, class_map.source
    ours, theirs = _numbers(data), _numbers(network)
    outputs = np.full(data.count, -1, np.int64)
    for name, target in targets.items():
        if name not in ours:
            continue
        number = theirs.get(target, -1) if isinstance(target, str) else target
        if not 0 <= number < network.count:
            what = f"no class of {network.where}" if isinstance(target, str) else f"not 0 … {network.count - 1}"
            nameless = "" if theirs or isinstance(target, int) else ", whose class names are not known: give numbers"
            raise MismatchError(f"{source}: {name!r} goes to {target!r}, which is {what}{nameless}")
        outputs[ours[name]] = number
    num_mapped = int(np.count_nonzero(outputs >= 0))
    if data.known is not None and network.known is not None:
        for label, name in enumerate(data.known):
            if outputs[label] < 0:
                outputs[label] = theirs.get(name, -1)
    left = [data.names[label] if data.names else str(label) for label in np.flatnonzero(outputs < 0).tolist()]
    if left:
        raise MismatchError(
            f"{source}: does not say what {_some(left)} of the {data.count} classes of {data.where} "
            f"{'is' if len(left) == 1 else 'are'} among the {network.count} of {network.where}: add a line for each"
        )
    found, counts = np.unique(outputs, return_counts=True)
    if len(found) < data.count:
        twice = int(found[counts > 1][0])
        labels = [data.describe(int(label)) for label in np.flatnonzero(outputs == twice)]
        raise MismatchError(
            f"{source}: {' and '.join(labels[:_SHOWN])} of {data.where} are both {network.describe(twice)} of {network.where}: "
            f"expected an output for each class"
        )
    by_name, idle = data.count - num_mapped, len(targets) - num_mapped
    how = f"{source} ({num_mapped} of {data.count} classes{f', {by_name} by name' if by_name else ''}"
    return outputs, how + (f"; {idle} of its lines name no class of {data.where})" if idle else ")")


def _numbers(classes: Classes) -> dict[str, int]:
    """The number of each class by its name, as found or as known; names that several classes share are left out."""
    raw = list(classes.names or []) if len(classes.names or []) == classes.count else []
    counts = Counter(raw)
    once = {name: at for at, name in enumerate(raw) if counts[name] == 1}
    return once | {name: at for at, name in enumerate(classes.known or ())}


def _difference(data: Classes, network: Classes, outputs: np.ndarray) -> str:
    """How the classes of data lie among those of a network, in words."""
    moved = np.flatnonzero(outputs != np.arange(data.count))
    of_all = f"{data.count} of the " if data.count < network.count else "the "
    many = f"{of_all}{network.count} classes of {network.where}"
    if not len(moved):
        return f"{data.where} has the first {data.count} of the {network.count} classes of {network.where}"
    first = int(moved[0])
    order = "" if (np.diff(outputs) > 0).all() else " in another order"
    return f"{data.where} has {many}{order} (label {first}, {data.describe(first)}, is number {outputs[first]} there)"


def _some(names: Sequence[str]) -> str:
    """Some of the names, and how many there are."""
    shown = ", ".join(map(repr, names[:_SHOWN]))
    return shown if len(names) <= _SHOWN else f"{shown}, … ({len(names)} in all)"
