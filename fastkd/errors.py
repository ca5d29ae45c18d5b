"""The ways in which input can be bad: one exception class each, every message one line.

A message names what was read (a path, an option), what was found, what was expected and the way out. The command line
prints it and exits 1; `assert` is kept for fastkd's own invariants. Where Python has a class of its own for a way, an error
is one of that as well.
"""


def printable(text: str) -> str:
    """Text that a terminal can be given, whatever names of files are in it: control characters, and with them escape
    sequences, are shown as `\\x1b`, bytes that are no UTF-8 as `\\xe9`. Lines stay lines."""
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable() or character == "\n":
        return character
    if "\udc80" <= character <= "\udcff":  # what Python makes of a byte of a name that is no UTF-8
        return f"\\x{ord(character) & 0xFF:02x}"
    return character.encode("unicode_escape").decode()


class FastKDError(Exception):
    """Base of every error that a user can cause; `str(error)` is one line. exit_code: what the command ends with."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.split())))


class NotFoundError(FastKDError, FileNotFoundError):
    """A path, glob or class folder that is not there."""


class OptionError(FastKDError, ValueError):
    """An option or argument outside its range, or options that contradict each other."""


class FormatError(FastKDError):
    """A file of another kind, another format version, or one that is cut or malformed."""


def cut_meanwhile(path: object, found: int, expected: int) -> FormatError:
    """What to say of a file that has fewer bytes than when it was opened."""
    return FormatError(
        f"{path}: became shorter while it was being used, {found:,} bytes of {expected:,}: put the whole file back and begin anew"
    )


class CorruptError(FastKDError):
    """Bytes that do not match their checksum, or an image that does not decode."""


class MismatchError(FastKDError):
    """Two artefacts that do not belong together: another beton, teacher, view, mask or decoder."""


class UnfinishedError(FastKDError):
    """An artefact that is still being filled."""


class BusyError(FastKDError):
    """An artefact that another process is writing at the moment."""


class SpaceError(FastKDError):
    """A disk that has no room for what is being written."""


class DiskError(FastKDError):
    """A file that cannot be written or read: a disk that fails, is read-only, or belongs to somebody else."""


class ModelError(FastKDError, ValueError):
    """An unknown model name, or weights that do not fit the model."""


class SourceError(FastKDError):
    """A source image that cannot be read; the message names it."""


class MissingDependencyError(FastKDError):
    """An optional package, system library or downloaded file that is needed here and missing."""


class StoppedError(FastKDError):
    """A run that a signal stopped after it wrote its state: the same command goes on.

    Exit code 75, sysexits' EX_TEMPFAIL, tells a scheduler to start it again; by a person's Ctrl-C it is 130.
    """

    exit_code = 75

    def __init__(self, message: str, exit_code: int = 75) -> None:
        super().__init__(message)
        self.exit_code = exit_code
