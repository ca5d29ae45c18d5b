"""Mapped files that can no longer be read: the system ends a process for that by SIGBUS, without a word."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fastkd
from fastkd.errors import MissingDependencyError

LIBRARY = Path(fastkd.__file__).parent / "data" / "views" / "_decoder.so"


@contextmanager
def telling_page_errors() -> Iterator[None]:
    """For the length of the block a page of a mapped file that cannot be read ends the process with exit code 1 and one line
    that names the file, in whatever thread and code; all else is left as kill -9 leaves it.

    Without the library nothing is done: whatever decodes says that itself.

    Raises:
        MissingDependencyError: a library that was built from older sources.
    """
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError:
        yield
        return
    try:
        tell, leave = library.fastkd_tell_page_errors, library.fastkd_leave_page_errors
    except AttributeError:
        raise MissingDependencyError(
            f"{LIBRARY}: was built from older sources; install fastkd again, with pip"
        ) from None
    tell()
    try:
        yield
    finally:
        leave()
