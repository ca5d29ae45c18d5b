"""ImageFolder layout: which folder of a tree holds the class folders, and the classes and order of its images.

Class order and sample order are those of torchvision's ImageFolder: classes by name, then folders by name, then files
by name. A class list (`--classes`) replaces the order of the classes, nothing else.
"""

import os
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fastkd.data.sources.files import FolderFiles, Tree, ZipFiles, folder_tree, shortened, shown, zip_tree
from fastkd.errors import FormatError, NotFoundError, OptionError, SourceError

_SPLIT_FOLDERS = {"train", "training", "test", "testing", "val", "valid", "validation"}


def open_tree(
    path: str, *, root: str | None, classes: Path | None
) -> tuple[list[str], np.ndarray, list[str], FolderFiles | ZipFiles, Counter[str]]:
    """Finds the images of a folder or zip, their classes and their order.

    Args:
        path: an existing folder or zip file.
        root: the folder inside that holds the class folders ("." is the top); None searches for it.
        classes: a file with one class name a line, in label order; None sorts the class folders by name.

    Returns:
        class_names: the classes in label order.
        labels: int64 array of shape (N,), not decreasing.
        names: N paths below the root, within a class by folder, then by file name.
        reader: reads image i of the N as bytes.
        others: files that are no images, by suffix.

    Raises:
        NotFoundError: no images, or no such root or class list.
        SourceError: the layout is not ImageFolder's, or a folder cannot be read.
        FormatError: not a zip, a cut or malformed one, or a malformed class list.
        OptionError: a root that leads out of the source.
    """
    listed = None if classes is None else read_class_list(classes)
    list_tree = folder_tree if os.path.isdir(path) else zip_tree
    top = "" if root is None else _clean_root(root)
    tree = list_tree(path, top)
    if tree is None:
        whole = list_tree(path, "") or Tree([], set(), Counter())
        raise NotFoundError(
            f"--root {root}: no such folder in {path}; found {shown(_candidates(whole, '')) or 'no images'}"
        )
    if not tree.images:
        raise NotFoundError(f"{_joined(path, top)}: found no images, expected <class>/<image> in it")
    if root is None:
        top = inner = find_root(path, tree)
    else:
        inner = ""
        _refuse_split_folders(path, top, tree)
    class_names, labels, names = classify(_joined(path, top), tree, inner, listed)
    if list_tree is folder_tree:
        return class_names, labels, names, FolderFiles(os.path.join(os.path.abspath(path), top), names), tree.others
    reader = ZipFiles(os.path.abspath(path), top + "/" if top else "", names)
    return class_names, labels, names, reader, tree.others


def read_class_list(path: Path) -> list[str]:
    """The lines of a `--classes` file, a class name each, in label order; blank ones do not count.

    Raises:
        NotFoundError: no such file.
        FormatError: not UTF-8 text, no names, or a name twice.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise FormatError(f"--classes {path}: found bytes that are not UTF-8, expected one class name a line") from None
    except OSError as error:
        raise NotFoundError(f"--classes {path}: cannot be read ({error.strerror})") from None
    names = [line.removesuffix("\r") for line in lines if line.strip()]
    if not names:
        raise FormatError(f"--classes {path}: found no names, expected one class name a line")
    _refuse_repeated(names, f"--classes {path}")
    return names


def named_as(found: Iterable[str], listed: list[str]) -> list[str]:
    """Listed classes by their names: spaces around one are part of it only where a class that was found has them, too."""
    known = set(found)
    names = [line if line in known else line.strip() for line in listed]
    _refuse_repeated(names, "--classes")
    return names


def _refuse_repeated(names: list[str], where: str) -> None:
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise FormatError(
            f"{where}: found {shortened(name)} {count} times, expected each class once; remove the others"
        )


def find_root(path: str, tree: Tree) -> str:
    """The folder of `tree` that holds the class folders, found by going down while there is exactly one way.

    A class folder may hold its images in folders of its own. But one with two such folders and no image beside them
    looks like a split (`train/cat`, `train/dog`), and then the user has to say.

    Returns:
        The path in the tree, "" for its top.

    Raises:
        SourceError: the class folders are not beyond doubt; the message lists what `--root` could name.
    """
    children, num_direct, num_below = _shape(tree)
    found = _descend(children, num_direct, "")
    where = _joined(path, found)
    folders = children[found]
    if folders and num_direct[found]:
        raise SourceError(
            f"{where}: found {_counted(num_direct[found], 'image')} beside the folders {shown(folders)}, expected "
            f"only class folders; move what is beside them out, or give --root {found or '.'} to leave it aside"
        )
    for folder in folders:
        parts = [child for child in children[folder] if num_below[child]]
        if not num_direct[folder] and (len(parts) > 1 or (parts and _is_split(folder))):
            as_classes = "" if all(map(_is_split, folders)) else f"; --root {found or '.'} takes all as classes"
            raise SourceError(
                f"{where}: found no images in {shortened(folder)} but {_counted(len(parts), 'folder')} of images, expected class "
                f"folders; name what holds them with --root, one of {shown(_candidates(tree, found))}{as_classes}"
            )
    return found


def classify(where: str, tree: Tree, root: str, listed: list[str] | None) -> tuple[list[str], np.ndarray, list[str]]:
    """Labels and orders the images below the class folders of `root`.

    Args:
        where: the root's name in messages.
        tree: the folders and images.
        root: the folder of the tree that holds the class folders, "" for its top. Images right in it do not count.
        listed: the classes in label order; folders of them may be missing. None takes the folders, sorted by name.

    Returns:
        class_names, labels (int64, shape (N,), not decreasing) and names (N paths below the root).

    Raises:
        NotFoundError: no images.
        SourceError: no class folders, one without images, or one that is not listed.
    """
    children, _, num_below = _shape(tree)
    prefix = root + "/" if root else ""
    folders = [folder[len(prefix) :] for folder in children[root]]
    if not folders:
        raise SourceError(
            f"{where}: found images without class folders, expected <class>/<image>; give each class a folder of its "
            "own, or name with --root the folder that holds the class folders"
        )
    if unsayable := [folder for folder in folders if not _is_utf8(folder)]:
        raise SourceError(
            f"{where}: found bytes that are not UTF-8 in the name of the class folder {shown(unsayable)}, expected a name that "
            "manifests and class lists can hold; rename it (files in it may keep theirs)"
        )
    if listed is None:
        empty = [folder for folder in folders if not num_below[prefix + folder]]
        if empty:
            raise SourceError(
                f"{where}: found no images in the class folder {shown(empty)}, expected at least one in each; remove "
                "the folder, or list all classes with --classes"
            )
        listed = folders
    else:
        listed = named_as(folders, listed)
        if unknown := sorted(set(folders) - set(listed)):
            raise SourceError(
                f"{where}: found the class folder {shown(unknown)}, expected only the {len(listed)} classes of --classes; "
                "add it to that list, or choose another --root"
            )
    label_of = {name: label for label, name in enumerate(listed)}
    rows = []
    for image in tree.images:
        class_name, _, inner = image[len(prefix) :].partition("/")
        if inner and image.startswith(prefix):
            rows.append((label_of[class_name], *posixpath.split(inner), image[len(prefix) :]))
    if not rows:
        raise NotFoundError(f"{where}: found no images in its class folders, expected <class>/<image>")
    rows.sort()
    return listed, np.array([row[0] for row in rows], np.int64), [row[-1] for row in rows]


def _refuse_split_folders(path: str, root: str, tree: Tree) -> None:
    """A named root is taken at its word, except where all it holds is `train`, `test` ... with the classes inside."""
    children, num_direct, _ = _shape(tree)
    folders = children[_descend(children, num_direct, "")]
    if folders and all(_is_split(folder) and not num_direct[folder] for folder in folders):
        raise SourceError(
            f"--root {root or '.'}: found {shown(folders)} in that folder of {path}, expected class folders; "
            f"give one of {shown([_joined(root, candidate) for candidate in _candidates(tree, '')])}"
        )


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _is_split(folder: str) -> bool:
    return posixpath.basename(folder).lower() in _SPLIT_FOLDERS


def _shape(tree: Tree) -> tuple[dict[str, list[str]], Counter[str], Counter[str]]:
    """Each folder's sub-folders (sorted), the images right in it, and the images at any depth below it."""
    children: dict[str, list[str]] = defaultdict(list)
    for folder in sorted(tree.folders):
        children[posixpath.dirname(folder)].append(folder)
    num_direct = Counter(map(posixpath.dirname, tree.images))
    num_below: Counter[str] = Counter()
    for start, count in num_direct.items():
        folder = start
        while folder:
            num_below[folder] += count
            folder = posixpath.dirname(folder)
    return children, num_direct, num_below


def _descend(children: dict[str, list[str]], num_direct: Counter[str], folder: str) -> str:
    while not num_direct[folder] and len(children[folder]) == 1 and not num_direct[children[folder][0]]:
        folder = children[folder][0]
    return folder


def _candidates(tree: Tree, root: str) -> list[str]:
    """What `--root` could name below a folder whose sub-folders are not classes."""
    children, num_direct, num_below = _shape(tree)
    folders = children[_descend(children, num_direct, root)]
    return [_descend(children, num_direct, folder) for folder in folders if num_below[folder]]


def _clean_root(root: str) -> str:
    cleaned = posixpath.normpath(root.rstrip("/") or ("/" if root else "."))
    if cleaned == ".." or cleaned.startswith(("/", "../")):
        raise OptionError(f"--root {root}: leads out of the source, expected a folder inside it, such as cifar10/train")
    return "" if cleaned == "." else cleaned


def _joined(path: str, inner: str) -> str:
    return posixpath.join(path, inner) if inner else path


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
