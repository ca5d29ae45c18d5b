"""How files are written: by one process at a time, whole or not at all, and never over what somebody may miss."""

import errno
import fcntl
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastkd.errors import BusyError, DiskError, FastKDError, MismatchError, NotFoundError, OptionError, SpaceError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the operating system says where a disk, a quota or a limit on the size of files is full."""

_held: dict[Path, tuple[int, int]] = {}
"""What this process writes at the moment: real path → process and thread."""


@contextmanager
def claim(
    path: str | Path,
    *,
    inputs: Iterable[str | Path] = (),
    is_folder: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> Iterator[Path]:
    """Makes an output this thread's alone for the length of the block; a claim within a claim is the same one.

    The lock is a file beside the output, held by flock: it ends with the process, whatever ended that.

    Args:
        path: the output; a symlink stands for what it points to. inputs: what is read meanwhile, and must not be it.
        is_folder: whether the output is a folder, and with it all that lies in it; those that it lies in are made.
        log: told where the file system has no locks.

    Yields:
        The path that is to be written.

    Raises:
        NotFoundError: the folder that it belongs into is not there.
        OptionError: it is an input, or there already and no file (or no folder).
        BusyError: another process has it.
    """
    real = Path(os.path.realpath(path))
    if is_folder:
        real.parent.mkdir(parents=True, exist_ok=True)
    require_folder(real)
    _require_kind(Path(path), real, is_folder)
    for one in inputs:
        if real.exists() and Path(one).exists() and os.path.samefile(real, one):
            raise OptionError(f"{path}: is what {one} is read from; choose another output")
    me = os.getpid(), threading.get_ident()
    if _held_by(real) == me:
        yield real
        return
    with _lock(Path(path), real, log) as is_locked:
        _held[real] = me
        try:
            if is_locked:
                _sweep(real)
            yield real
        finally:
            del _held[real]


def _held_by(real: Path) -> tuple[int, int] | None:
    """Who of this process has claimed a file, or the folder that it lies in."""
    return next((_held[one] for one in (real, *real.parents) if one in _held), None)


def _require_kind(path: Path, real: Path, is_folder: bool) -> None:
    """Refuses to write a file where a folder or a device is, or a folder where a file is."""
    if not os.path.lexists(real):
        return
    if is_folder and not real.is_dir():
        raise OptionError(f"{path}: is a file, expected a folder or nothing; choose another output")
    if not is_folder and not real.is_file():
        what = "a folder" if real.is_dir() else "no regular file"
        raise OptionError(f"{path}: is {what}, expected a file or nothing; choose another output")


@contextmanager
def _lock(path: Path, real: Path, log: Callable[[str], None]) -> Iterator[bool]:
    """The lock of an output; yields whether there is one, as some file systems have none."""
    name = real.with_name(f".{_stem(real)}.lock")
    while True:
        try:
            file = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise DiskError(f"{path}: cannot be written there ({error.strerror}); choose another output") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who had it took its name away on leaving: another may have made a new file of that name meanwhile.
            with suppress(FileNotFoundError):
                if os.stat(name).st_ino == os.fstat(file).st_ino:
                    break
            os.close(file)
        except BlockingIOError:
            os.close(file)
            raise BusyError(
                f"{path}: is being written by another process; wait for it, or choose another output"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(file)
                raise
            log(f"{path}: its file system has no locks; nothing keeps another process from writing it as well")
            try:
                yield False
            finally:
                os.close(file)
                name.unlink(missing_ok=True)
            return
    try:
        yield True
    finally:
        name.unlink(missing_ok=True)
        os.close(file)


def _stem(path: Path) -> str:
    """A file's name, short enough that something can be added to it."""
    return os.fsdecode(os.fsencode(path.name)[:200])


def _partial(path: Path) -> Path:
    """A name beside a file that no other process gives it."""
    return path.with_name(f".{_stem(path)}.{secrets.token_hex(4)}.partial")


def _sweep(real: Path) -> None:
    """Takes away what a process that was killed had begun of a file; the lock says that nobody is at it."""
    start, end = f".{_stem(real)}.", ".partial"
    for name in os.listdir(real.parent):
        if name.startswith(start) and name.endswith(end) and len(name) == len(start) + 8 + len(end):
            real.with_name(name).unlink(missing_ok=True)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """For the length of the block, what the operating system refuses is told of this file, with the way out.

    Raises:
        SpaceError: the disk, a quota or a limit on files is full. DiskError: anything else that it cannot do.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, FastKDError):
            raise
        reason = os.strerror(error.errno)
        if error.errno in NO_ROOM:
            way_out = "free some space, raise the limit (ulimit -f), or choose another disk"
            raise SpaceError(f"{path}: cannot be written ({reason}): {way_out}") from None
        raise DiskError(f"{path}: cannot be written ({reason}): mend that, or choose another output") from None


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """The same of a file that is read: what the operating system says of one that is open has no name. One that is missing
    stays a FileNotFoundError.

    Raises:
        DiskError: the file cannot be read.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, FastKDError | FileNotFoundError):
            raise
        reason = os.strerror(error.errno)
        raise DiskError(f"{path}: cannot be read ({reason}): mend that, or give a copy from elsewhere") from None


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A path to write to that becomes `path` when the block ends well, and vanishes when it does not.

    The data is on disk before the name is: fsync of the file, rename, fsync of the folder. A symlink stands for what it
    points to.

    Raises:
        NotFoundError, OptionError, BusyError: as `claim`. SpaceError, DiskError: as `naming`.
    """
    with claim(path) as real:
        partial = _partial(real)
        try:
            with naming(path):
                yield partial
                sync_file(partial)
                os.replace(partial, real)
                sync_file(real.parent)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def require_replaceable(path: Path, force: bool, what: str) -> None:
    """Refuses to write over something else.

    Args:
        force: whether that was asked for. what: what is there, in words.

    Raises:
        MismatchError: it was not.
    """
    if not force:
        raise another_is_there(path, what)


def another_is_there(path: Path, what: str) -> MismatchError:
    """What to say of an output that is something else already, which `what` says in words."""
    return MismatchError(f"{path}: {what}; choose another output, or give --force to replace it")


def write_marked(path: str | Path, content: bytes, mark: str, *, force: bool = False) -> None:
    """Writes a page or a picture, atomically; an older one of the same job is replaced.

    Args:
        mark: what tells the job, within the content, too. force: replace whatever file is there.

    Raises:
        MismatchError: something else is there.
        NotFoundError, OptionError, BusyError: as `claim`.
    """
    assert mark.encode() in content
    with claim(path) as real:
        if real.exists() and mark.encode() not in real.read_bytes():
            require_replaceable(Path(path), force, "is there, and not from this job")
        with atomic_path(real) as partial:
            partial.write_bytes(content)


def require_folder(path: Path) -> None:
    """Refuses a file that is to be written into no folder.

    Raises:
        NotFoundError: the folder is not there.
    """
    if not path.parent.is_dir():
        raise NotFoundError(f"{path}: the folder {path.parent} does not exist")


def sync_file(path: Path) -> None:
    """Waits until the file (or folder) is on disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(file: int, data: "bytes | bytearray | memoryview", offset: int) -> None:
    """Writes all of some bytes at a place of an open file, however few a call takes.

    Raises:
        OSError: the disk is full, or fails.
    """
    left = memoryview(data)
    while left:
        written = os.pwrite(file, left, offset)
        left, offset = left[written:], offset + written
