"""Published scores: reading the files that others wrote.

Read are CSV and other delimited text (Sorscher et al.'s metric scores among it), NumPy's npy and npz (Feldman & Zhang's
memorization, Jiang et al.'s C-scores), torch files of tensors, and, only where that is asked for, pickles.

An array takes no more memory than its file has bytes, those of an npz together no more than MOST_UNPACKED_BYTES or, where
that is more, MOST_TIMES its file; unless pickles are trusted, whose code can take any.
"""

import csv
import io
import math
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastkd.errors import FormatError, NotFoundError, OptionError
from fastkd.writing import reading

_SCORE_NAMES = ("tr_mem", "scores", "score", "metric", "value", "el2n", "forgetting", "accumulated_margin")
_FILE_NAMES = ("tr_filenames", "filenames", "filename", "file", "path", "image", "name")
_LABEL_NAMES = ("tr_labels", "labels", "label", "targets", "target", "class", "wnid")
_PLAIN_PICKLES = (b"(", b"]", b"}", b"cnumpy")
"""How pickles of protocols 0 and 1 begin: those of dictionaries, lists and arrays."""
MOST_UNPACKED_BYTES, MOST_TIMES = 64 << 20, 20
"""All arrays that are read of an npz: scores of 8 million samples, whatever they are packed to; of more, twenty times the file."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Published:
    """What a file of scores holds.

    values: float64 (n,), as they are there. names: n file names, or None. labels: n numbers or class names, or None.
    array: what the scores are called there.
    """

    values: np.ndarray
    names: list[str] | None
    labels: list[int] | list[str] | None
    array: str


def read_published(
    path: str | Path, *, array: str | None = None, trust_pickle: bool = False, allow_nan: bool = False
) -> Published:
    """Reads a file of scores, told apart by its content.

    Args:
        array: the column of a CSV, or the array of an npz or torch file, that holds the scores; None for one with a
            usual name, or the only one that can be.
        trust_pickle: run the code that a pickle is. allow_nan: some of the scores may be NaN.

    Raises:
        NotFoundError: no such file.
        FormatError: another kind of file, cut or malformed; no scores in it, or NaN among them; a pickle.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file, expected published scores")
    with reading(path):
        content = path.read_bytes()
    if content.startswith(b"\x93NUMPY"):
        arrays: dict[str, Any] = {"scores of the file": _load_numpy(path, content, trust_pickle)}
    elif content.startswith(b"PK\x03\x04"):
        arrays = _load_zip(path, content, trust_pickle)
    elif content.startswith(b"\x80") or (content.startswith(_PLAIN_PICKLES) and content.endswith(b".")):
        arrays = _load_pickle(path, content, trust_pickle)
    else:
        arrays = _load_text(path, content)
    found = _published(path, arrays, array)
    bad = np.flatnonzero(np.isnan(found.values))
    if len(bad) == len(found.values) or (len(bad) and not allow_nan):
        way_out = "" if len(bad) == len(found.values) else "; import-scores --unscored keep takes the others"
        raise FormatError(
            f"{path}: {len(bad)} of {len(found.values)} scores are NaN, number {bad[0]} the first{way_out}"
        )
    return found


def _load_numpy(path: Path, content: bytes, trust_pickle: bool) -> Any:
    """The array of an npy file; its header may not promise more than the file has."""
    try:
        file = io.BytesIO(content)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        left = len(content) - file.tell()
        if not dtype.hasobject and (dtype.itemsize == 0 or math.prod(shape) * dtype.itemsize > left):
            raise ValueError(f"{dtype} of shape {shape} with {left:,} bytes left")
        return np.load(io.BytesIO(content), allow_pickle=trust_pickle)
    except Exception as error:  # a malformed file raises anything
        if "allow_pickle" in str(error):
            raise FormatError(f"{path}: {_PICKLE}") from None
        raise FormatError(f"{path}: a NumPy file, but cut or malformed ({str(error)[:100]})") from None


_PICKLE = "holds pickled objects, which run code when they are read; --trust-pickle does that"


def _load_zip(path: Path, content: bytes, trust_pickle: bool) -> dict[str, Any]:
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise FormatError(f"{path}: a zip or npz, but cut or malformed ({error})") from None
    if any(name.endswith("data.pkl") for name in names):
        return _load_torch(path, content, trust_pickle)
    members = {name[:-4]: archive.getinfo(name) for name in names if name.endswith(".npy")}
    usual = {name for name in members if name in (*_SCORE_NAMES, *_FILE_NAMES, *_LABEL_NAMES)}
    wanted = usual if any(name in _SCORE_NAMES for name in usual) else members.keys()
    most = max(MOST_UNPACKED_BYTES, MOST_TIMES * len(content))
    said = sum(members[name].file_size for name in wanted)
    if said > most:
        raise FormatError(
            f"{path}: its arrays have {said:,} bytes unpacked, expected at most {most:,}; save them as npy"
        )
    arrays = {}
    for name in (name for name in members if name in wanted):
        try:
            unpacked = archive.read(members[name])  # no more than the size that it says
        except Exception as error:  # zipfile and each decompressor have exceptions of their own
            raise FormatError(f"{path}: an npz, but cut or malformed ({str(error)[:100]})") from None
        arrays[name] = _load_numpy(path, unpacked, trust_pickle)
    return arrays


def _load_torch(path: Path, content: bytes, trust_pickle: bool) -> dict[str, Any]:
    import torch

    from fastkd.models.torch_file import load_torch

    try:
        file = io.BytesIO(content)
        found = torch.load(file, map_location="cpu", weights_only=False) if trust_pickle else load_torch(file)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None
    except Exception as error:
        message = _PICKLE if "eights" in str(error) else "a torch file, but cut or malformed"
        raise FormatError(f"{path}: {message}") from None
    arrays = _mapping(found)
    for name, value in arrays.items():
        if isinstance(value, torch.Tensor):
            if value.layout is not torch.strided:
                raise FormatError(f"{path}: {name} is a sparse tensor, expected dense ones")
            arrays[name] = value.double().numpy() if value.is_floating_point() else value.numpy()
    return arrays


def _load_pickle(path: Path, content: bytes, trust_pickle: bool) -> dict[str, Any]:
    if not trust_pickle:
        raise FormatError(f"{path}: {_PICKLE}")
    try:
        return _mapping(pickle.loads(content))
    except Exception as error:
        raise FormatError(f"{path}: a pickle, but cut or malformed ({type(error).__name__})") from None


def _mapping(found: Any) -> dict[str, Any]:
    if isinstance(found, Mapping):
        return {str(name): value for name, value in found.items()}
    return {"scores of the file": found}


def _load_text(path: Path, content: bytes) -> dict[str, Any]:
    """The columns of a delimited text, with or without a line of names."""
    try:
        text = content.decode("utf-8-sig")
        if "\0" in text:
            raise ValueError("a zero byte")
    except ValueError:
        raise FormatError(
            f"{path}: neither text nor npy, npz or a torch file (first bytes {content[:4].hex()})"
        ) from None
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise FormatError(f"{path}: empty, expected scores")
    delimiter = max(",;\t", key=lines[0].count) if any(c in lines[0] for c in ",;\t") else " "  # names may have spaces
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter, strict=True)]
    except csv.Error as error:
        raise FormatError(f"{path}: not a table of scores ({error})") from None
    width = len(rows[0])
    ragged = next((i for i, row in enumerate(rows) if len(row) != width), None)
    if ragged is not None:
        raise FormatError(f"{path}: line {ragged + 1} has {len(rows[ragged])} columns, the first has {width}")
    named = len(rows) > 1 and not any(_is_number(cell) for cell in rows[0])
    if not any(_is_number(cell) for cell in rows[-1]):
        raise FormatError(f"{path}: no numbers in its last line, expected scores")
    names = [cell.lower() for cell in rows[0]] if named else _guessed_names(rows)
    columns = list(zip(*rows[1 if named else 0 :], strict=True))
    if len(set(names)) != len(names):
        raise FormatError(f"{path}: two columns of one name among {', '.join(names)}")
    return dict(zip(names, columns, strict=True))


def _guessed_names(rows: list[list[str]]) -> list[str]:
    """Columns of a text that does not name them: the first that holds no numbers is of file names, the last of scores."""
    names = [f"column {i + 1}" for i in range(len(rows[0]))]
    texts = [i for i, cell in enumerate(rows[0]) if not _is_number(cell)]
    if texts:
        names[texts[0]] = "filename"
    numbers = [i for i, cell in enumerate(rows[0]) if _is_number(cell)]
    if numbers:
        names[numbers[-1]] = "score"
    return names


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _published(path: Path, arrays: dict[str, Any], array: str | None) -> Published:
    """Finds scores, file names and labels among the arrays of a file."""
    by_lower = {name.lower(): name for name in arrays}
    if array is not None and array.lower() not in by_lower:
        raise OptionError(f"{path}: holds {', '.join(arrays)}; --array {array} is not among them")
    file_name = next((by_lower[name] for name in _FILE_NAMES if name in by_lower), None)
    label_name = next((by_lower[name] for name in _LABEL_NAMES if name in by_lower), None)
    if array is None:
        usual = [by_lower[name] for name in _SCORE_NAMES if name in by_lower]
        left = [name for name in arrays if name not in (file_name, label_name)]
        chosen = usual[0] if usual else (left[0] if len(left) == 1 else None)
        if chosen is None:
            raise OptionError(
                f"{path}: holds {', '.join(left) or 'no scores'}; say which are the scores with --array NAME"
            )
    else:
        chosen = by_lower[array.lower()]
    values = _numbers(path, chosen, arrays[chosen])
    names = None if file_name is None else [_text(name) for name in _items(arrays[file_name])]
    labels = (
        None if label_name is None or label_name == chosen else _labels(path, label_name, _items(arrays[label_name]))
    )
    for what, found in (("file names", names), ("labels", labels)):
        if found is not None and len(found) != len(values):
            raise FormatError(f"{path}: {len(values)} scores with {len(found)} {what}")
    return Published(values=values, names=names, labels=labels, array=chosen)


def _numbers(path: Path, name: str, found: Any) -> np.ndarray:
    if isinstance(found, tuple):  # of text, where pandas writes NaN as nothing
        found = tuple("nan" if cell == "" else cell for cell in found)
    try:
        if np.asarray(found).dtype.kind in "cmM":
            raise TypeError("complex numbers or dates")
        values = np.asarray(found, dtype=np.float64)
    except (ValueError, TypeError):
        bad = next((item for item in _items(found) if not _is_number(_text(item))), "an object")
        raise FormatError(f"{path}: {name} holds {str(bad)[:40]!r}, expected numbers") from None
    if values.ndim != 1 or not len(values):
        raise FormatError(f"{path}: {name} is of shape {values.shape}, expected one score a sample")
    large = np.flatnonzero(np.isfinite(values) & (np.abs(values) > np.finfo(np.float32).max))
    if len(large):
        raise FormatError(f"{path}: {name} holds {values[large[0]]:g}, more than float32 can")
    return values


def _items(found: Any) -> list[Any]:
    items = found.tolist() if hasattr(found, "tolist") else found
    return list(items) if isinstance(items, list | tuple) else [items]


def _text(item: Any) -> str:
    return item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item)


def _labels(path: Path, name: str, items: list[Any]) -> list[int] | list[str]:
    texts = [_text(item) for item in items]
    if not all(_is_number(text) for text in texts):
        return texts
    bad = next((text for text in texts if not float(text).is_integer()), None)
    if bad is not None:
        raise FormatError(f"{path}: {name} holds {bad[:40]!r}, expected whole numbers or names of classes")
    return [int(float(text)) for text in texts]
