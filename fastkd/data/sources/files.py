"""The files of a folder or a zip: which images it holds, and reading them by number from any process or thread."""

import os
import stat
import threading
import zipfile
from collections import Counter
from typing import NamedTuple

from fastkd.data.sources.picture import IMAGE_SUFFIXES
from fastkd.errors import FormatError, SourceError, printable

MAX_FILE_BYTES = 1 << 30  # a larger "image" is a mistake or a zip bomb; reading it would end in the OOM killer

_OF_SYSTEMS = {
    *("__macosx", "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),
    *("$recycle.bin", "system volume information", "lost+found"),
}
"""Folders, in small letters, that file systems, file servers and archivers put beside one's own."""
_TAR_SUFFIXES = (".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_TAR_MAGIC, _TAR_MAGIC_AT = b"ustar", 257
_MAX_SHOWN = 8
MAX_MEMBER_BYTES = 1 << 28
"""Of an image in a zip, unpacked: a zip of a thousandth of that can promise it."""

_MAX_DEPTH = 64  # a member name of 64 KB can hold 32,000 folders, whose paths together fill the memory


class Stamp(NamedTuple):
    """What tells that a file is the one that was read: taken before that, a change that comes later shows."""

    path: str
    size: int
    mtime_ns: int


def stamp_of(path: str) -> Stamp:
    """The stamp of a file; with -1 for size and time where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return Stamp(path, -1, -1)
    return Stamp(path, status.st_size, status.st_mtime_ns)


class Tree(NamedTuple):
    """What lies in a folder or zip: paths with "/" between their parts, without hidden ones and those of systems."""

    images: list[str]
    folders: set[str]
    """Every folder and its parents; "", the top, is not among them."""
    others: Counter[str]
    """Files that are no images: suffix, in small letters → how many."""


class FolderFiles:
    """Reads the files of a folder source by number.

    Args:
        folder: the absolute folder that holds the class folders.
        names: each file's path below it.
    """

    def __init__(self, folder: str, names: list[str]) -> None:
        self.folder = folder
        self.names = names

    def stamp(self, i: int) -> Stamp:
        """The stamp of file i."""
        return stamp_of(os.path.join(self.folder, self.names[i]))

    def read(self, i: int) -> bytes:
        """The bytes of file i. Raises SourceError where it cannot be read."""
        path = os.path.join(self.folder, self.names[i])
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_FILE_BYTES:
                    return file.read()
        except OSError as error:
            raise SourceError(f"{path}: cannot be read ({error.strerror}); restore or remove it") from None
        raise SourceError(f"{path}: found {status.st_size} bytes, expected an image file of at most {MAX_FILE_BYTES}")


class ZipFiles:
    """Reads the members of a zip source by number, from any number of processes and threads.

    The zip is opened at the first read of each (process, thread): a handle shared over a fork shares its file position,
    and a lock that another thread held at the fork never opens again.

    Args:
        path: the absolute path of the zip.
        prefix: the folder inside that holds the class folders, "" or ending in "/".
        names: each member's path below it.
    """

    def __init__(self, path: str, prefix: str, names: list[str]) -> None:
        self.path = path
        self.prefix = prefix
        self.names = names
        self._local = threading.local()

    def __reduce__(self) -> tuple:
        return ZipFiles, (self.path, self.prefix, self.names)

    def read(self, i: int) -> bytes:
        """The bytes of member i, at most MAX_MEMBER_BYTES, its CRC-32 checked. Raises SourceError where it cannot be read."""
        member = self.prefix + self.names[i]
        try:
            archive, infos = self._opened()
            info = infos[member]
            if info.file_size <= MAX_MEMBER_BYTES:
                return archive.read(info)  # no more than the size that it says
        # Cut, malformed, of an unknown method: zipfile and each decompressor have exceptions of their own.
        except Exception as error:
            raise SourceError(
                f"{self.path}: member {shortened(member)} cannot be read ({reason(error)}); make the zip again"
            ) from None
        raise SourceError(
            f"{self.path}: member {shortened(member)} says {info.file_size} bytes, expected an image of at most "
            f"{MAX_MEMBER_BYTES}"
        )

    def _opened(self) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
        """The zip and its members by their plain names; of those of one name the last."""
        if getattr(self._local, "process", None) != os.getpid():
            archive = zipfile.ZipFile(self.path)
            infos = archive.infolist()
            self._local.opened = archive, dict(zip(_plain_names(infos), infos, strict=True))
            self._local.process = os.getpid()
        return self._local.opened


def folder_tree(path: str, top: str) -> Tree | None:
    """Lists the folder `top` inside the folder `path`, links followed; None where there is no such folder.

    Raises:
        SourceError: a folder that cannot be read, a link to a folder above itself, or an image name on what is no file.
    """
    base = os.path.join(path, top)
    if not os.path.isdir(base):
        return None
    tree = Tree([], set(), Counter())
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while pending:
        folder, above = pending.pop()
        here = os.path.join(base, folder)
        try:
            status = os.stat(here)
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                raise SourceError(f"{here}: found a link to a folder above it, expected a tree; remove the link")
            with os.scandir(here) as entries:
                for entry in entries:
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if is_hidden(entry.name):
                        continue
                    if entry.is_dir():
                        tree.folders.add(name)
                        pending.append((name, above | {identity}))
                    elif _is_image(entry.name):
                        if not entry.is_file():
                            raise SourceError(
                                f"{entry.path}: found a broken link or no regular file; restore or remove it"
                            )
                        tree.images.append(name)
                    else:
                        tree.others[_suffix(entry.name)] += 1
        except OSError as error:
            raise SourceError(f"{here}: cannot be read ({error.strerror}); check its permissions") from None
    return tree


def zip_tree(path: str, top: str) -> Tree | None:
    """Lists the folder `top` inside the zip `path`; None where there is no such folder.

    Raises:
        SourceError: the file cannot be opened.
        FormatError: not a zip, a cut or malformed one, or an image encrypted or with a name that leads out of it.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        with file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    # A malformed directory shows as BadZipFile, struct.error, OSError, NotImplementedError, UnicodeDecodeError ...
    except Exception as error:
        if _is_tar(path):
            raise FormatError(
                f"{path}: found a tar archive, expected a folder or a zip of images; unpack it into a folder (tar -xf) and give "
                "that"
            ) from None
        raise FormatError(
            f"{path}: found a file that is no zip, or a cut or malformed one ({reason(error)}), expected a folder or a zip of "
            "images; copy or download it again"
        ) from None
    prefix = top + "/" if top else ""
    images: dict[str, None] = {}  # an appended member of the same name replaces the earlier one, as for unzip
    folders: set[str] = set()
    others: Counter[str] = Counter()
    for member, plain in zip(members, _plain_names(members), strict=True):
        if not plain.startswith(prefix):
            continue
        name = plain[len(prefix) :]
        *parents, last = name.split("/")
        if any(map(_is_leading_out, parents)) or len(parents) > _MAX_DEPTH:
            if _is_image(last):
                raise FormatError(
                    f"{path}: found the member {shortened(member.filename)}, expected a plain relative path of at most "
                    f"{_MAX_DEPTH} folders"
                )
            continue
        if any(map(is_hidden, parents)) or (last and is_hidden(last)):
            continue
        if _is_image(last):
            if member.flag_bits & 1:
                raise FormatError(
                    f"{path}: member {shortened(member.filename)} is encrypted, expected a zip without password"
                )
            images[name] = None
        elif last:
            others[_suffix(last)] += 1
        folder = "/".join(parents)
        while folder and folder not in folders:
            folders.add(folder)
            folder = folder.rpartition("/")[0]
    if top and not images and not folders:
        return None
    return Tree(list(images), folders, others)


def shortened(text: str, limit: int = 120) -> str:
    """Text out of a file for a message: quoted, what is not printable escaped, cut at `limit` characters."""
    text = text if len(text) <= limit else text[:limit] + "..."
    return repr(text) if text.isprintable() else f"'{printable(text)}'"


def shown(names: list[str]) -> str:
    """The first names of a list for a message, and how many more there are."""
    rest = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return ", ".join(map(shortened, names[:_MAX_SHOWN])) + rest


def reason(error: Exception) -> str:
    """What a library says of a malformed file, cut short: some messages quote the file at length."""
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= 160 else text[:160] + "..."


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name counts for nothing: one that begins with a dot, or that systems put there."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def _is_tar(path: str) -> bool:
    with open(path, "rb") as file:
        head = file.read(_TAR_MAGIC_AT + len(_TAR_MAGIC))
    return head[_TAR_MAGIC_AT:] == _TAR_MAGIC or path.lower().endswith(_TAR_SUFFIXES)


def _plain_names(members: list[zipfile.ZipInfo]) -> list[str]:
    """The members' paths, without the `./` that some archivers begin them with, and with "/" between their parts: Windows
    has written zips with "\\" there, which is taken for a part of a name where other members have a "/"."""
    names = [member.filename for member in members]
    if not any("/" in name for name in names):
        names = [name.replace("\\", "/") for name in names]
    return [without_dots(name) for name in names]


def without_dots(name: str) -> str:
    """A member's path without the `./` that some archivers begin it with."""
    while name.startswith("./"):
        name = name[2:]
    return name


def _is_leading_out(part: str) -> bool:
    return part in ("", ".", "..")
