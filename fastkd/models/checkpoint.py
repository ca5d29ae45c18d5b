"""Checkpoints: a network's weights on disk.

fastkd writes weights as safetensors; the header's metadata holds `fastkd_kind`, `format_version`, `fingerprint` (of the
tensors), `fastkd` (all that is known about them, as one JSON string) and `fastkd_digest` (of that string), so that some
check covers every byte of the file. It reads its own files, other safetensors and torch files. Pickles are read by
torch's weights-only unpickler alone, which runs no code of the file.
"""

import errno
import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.serialization import safe_globals

from fastkd.errors import CorruptError, FormatError, MismatchError, ModelError, NotFoundError, UnfinishedError
from fastkd.fingerprint import fingerprint
from fastkd.models.foreign import ALLOWED, choose_weights
from fastkd.models.libraries import canonical_name
from fastkd.models.registry import load_weights, state_fingerprint, strip_prefixes
from fastkd.models.torch_file import load_torch
from fastkd.writing import atomic_path, reading

FORMAT_VERSION = 1

_HEADER_LIMIT = 100_000_000  # bytes; the safetensors format's own limit
_METADATA_KEYS = ("fastkd", "fastkd_kind", "format_version", "fingerprint", "fastkd_digest")
WEIGHTS_NAME = "model.safetensors"
"""What the weights are called in the folder of a run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """What a checkpoint file holds."""

    path: Path
    state_dict: dict[str, Tensor]
    """Tensors on the CPU under the names of the file, prefixes included."""
    meta: dict[str, Any]
    """What `save_weights` was told; {} for files of others."""
    format: Literal["fastkd", "safetensors", "torch"]


def save_weights(path: str | Path, model: nn.Module, meta: dict[str, Any]) -> str:
    """Writes a network's weights as safetensors, atomically: a kill leaves the old file or the new one, never a part.

    Args:
        path: the file.
        model: the network, on any device, wrapped (DistributedDataParallel, torch.compile) or not.
        meta: what is known about it, plain JSON values; `model`, its name, is what `load_model` needs.

    Returns:
        The fingerprint of the weights, as `weights_fingerprint` gives it.

    Raises:
        NotFoundError: the folder does not exist.
    """
    # Cloned, because safetensors refuses tensors that share memory and some networks tie theirs.
    state = {
        key: value.detach().cpu().contiguous().clone() for key, value in strip_prefixes(model.state_dict()).items()
    }
    digest, text = state_fingerprint(state), json.dumps(meta, sort_keys=True)
    metadata = {
        "fastkd": text,
        "fastkd_kind": "checkpoint",
        "format_version": str(FORMAT_VERSION),
        "fingerprint": digest,
        "fastkd_digest": fingerprint([text]),
    }
    content = _sort_header(safetensors.torch.save(state, metadata=metadata))
    with atomic_path(path) as partial:
        partial.write_bytes(content)
    return digest


def read_checkpoint(
    path: str | Path, *, ema_weights: bool = False, log: Callable[[str], None] = lambda line: None
) -> Checkpoint:
    """Reads weights from fastkd's files, other safetensors and torch files, told apart by content, not by suffix.

    Torch files may hold several sets of weights and more beside them, see `choose_weights`.

    Args:
        path: a file, or the folder of a run, for the weights in it.
        ema_weights: take a torch file's averaged weights. log: told which weights were taken where there are several.

    Raises:
        NotFoundError: no such file.
        UnfinishedError: the folder of a run that has no weights yet.
        FormatError: not a checkpoint, cut, malformed, of a newer format version, a pickle of more than tensors and plain
            values, or without the weights that are meant.
        CorruptError: fastkd's own, with content that does not match its fingerprint.
        MismatchError: the folder of a run with the weights of another one.
        DiskError: the file cannot be read.
    """
    folder, path = Path(path), _weights_file(Path(path))
    try:
        with reading(path), path.open("rb") as file:
            head = file.read(9)
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file, expected a checkpoint") from None
    # Safetensors first: the length of its header, which comes before "{", can look like the start of the other two.
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= _HEADER_LIMIT:
        if ema_weights:
            raise FormatError(f"{path}: is safetensors, which holds one set of weights: leave --ema-weights out")
        found = _read_safetensors(path)
        if folder != path:
            _require_own(folder, found)
        return found
    if head.startswith((b"PK\x03\x04", b"\x80")):  # torch's zip, or its pickle of old
        state = choose_weights(path, _read_torch(path), ema_weights=ema_weights, log=log)
        return Checkpoint(path=path, state_dict=state, meta={}, format="torch")
    told = f"first bytes {head[:4].hex()}" if head else "it is empty"
    raise FormatError(f"{path}: is not a checkpoint ({told}), expected safetensors or a torch file")


def _weights_file(path: Path) -> Path:
    """The file itself, or the weights in the folder of a run."""
    if not path.is_dir():
        return path
    if not (path / "run.json").is_file():
        raise FormatError(f"{path}: is a folder without run.json, expected a checkpoint file or the folder of a run")
    if not (path / WEIGHTS_NAME).is_file():
        raise UnfinishedError(
            f"{path}: a run without {WEIGHTS_NAME}, which its end writes: go on with its `fastkd train`"
        )
    return path / WEIGHTS_NAME


def _require_own(folder: Path, found: Checkpoint) -> None:
    """Refuses weights in the folder of a run that say that another run made them; those of before do not say.

    Raises:
        MismatchError: they are another run's. FormatError: a run.json that is none.
    """
    try:
        with reading(folder / "run.json"):
            whose = json.loads((folder / "run.json").read_text(encoding="utf-8"))["fingerprint"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(
            f"{folder}/run.json: damaged ({error}); `fastkd verify {folder}` says what is whole"
        ) from None
    identity = {name: found.meta[name] for name in ("inputs", "params") if name in found.meta}
    if len(identity) == 2 and fingerprint([json.dumps(identity, sort_keys=True)]) != whose:
        raise MismatchError(
            f"{found.path}: the weights of another run than {folder}/run.json is of; put the run's own back, or give the file itself"
        )


def load_model(
    path: str | Path,
    model_name: str | None = None,
    num_classes: int | None = None,
    *,
    name_option: str = "--model-name",
    ema_weights: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Reads a checkpoint into the network that it is of.

    Args:
        path: any file or folder that `read_checkpoint` takes.
        model_name: the network, where the file does not say.
        num_classes: the number of classes that it must have, or None for any.
        name_option: the option that gives `model_name`, for the error's way out.
        ema_weights, log: as for `read_checkpoint`.

    Returns:
        The network on the CPU in evaluation mode, and the file's meta ({} for files of others).

    Raises:
        NotFoundError, UnfinishedError, FormatError, CorruptError: as `read_checkpoint`.
        ModelError: no name, two different ones, an unknown one, or weights that do not fit it.
        MissingDependencyError: a `timm:` name without timm.
    """
    checkpoint = read_checkpoint(path, ema_weights=ema_weights, log=log)
    said = checkpoint.meta.get("model")
    name = model_name or said
    if not isinstance(name, str):
        raise ModelError(f"{path}: does not say which network it holds: give {name_option} NAME")
    if isinstance(said, str) and canonical_name(said) != canonical_name(name):
        raise ModelError(f"{path}: holds a {said}, but {name_option} says {name}: leave the option out")
    try:
        model = load_weights(name, checkpoint.state_dict, num_classes)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    return model.eval(), checkpoint.meta


def _sort_header(content: bytes) -> bytes:
    """The same safetensors file with its header in order: the library writes metadata in a random one."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format's alignment of the tensors behind it
    return len(header).to_bytes(8, "little") + header + content[end:]


def _read_safetensors(path: Path, *, tries: int = 100) -> Checkpoint:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        if tries and os.strerror(errno.EINTR) in str(error):  # torch's own way to open a file does not try again itself
            return _read_safetensors(path, tries=tries - 1)
        raise FormatError(f"{path}: safetensors, but cut or malformed ({str(error)[:100]})") from None
    if not any(key in metadata for key in _METADATA_KEYS[:2]):
        if not state:
            raise FormatError(f"{path}: holds no tensors, expected a checkpoint")
        return Checkpoint(path=path, state_dict=state, meta={}, format="safetensors")
    return Checkpoint(path=path, state_dict=state, meta=_checked_meta(path, metadata, state), format="fastkd")


def _checked_meta(path: Path, metadata: Mapping[str, str], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """fastkd's own metadata, if the file is of a version that is known and nothing in it changed."""
    missing = [key for key in _METADATA_KEYS if key not in metadata]
    if missing:
        raise FormatError(f"{path}: a damaged checkpoint of fastkd: {missing[0]} is missing from its header")
    if metadata["fastkd_kind"] != "checkpoint":
        raise FormatError(f"{path}: is a {metadata['fastkd_kind']!r}, expected a checkpoint")
    if metadata["format_version"] != str(FORMAT_VERSION):
        found, way_out = metadata["format_version"], "use the fastkd that wrote it"
        raise FormatError(f"{path}: format version {found!r}, this fastkd reads {FORMAT_VERSION}: {way_out}")
    found = state_fingerprint(state)
    if found != metadata["fingerprint"]:
        raise CorruptError(
            f"{path}: the tensors have fingerprint {found}, the header says {metadata['fingerprint']}: damaged"
        )
    if fingerprint([metadata["fastkd"]]) != metadata["fastkd_digest"]:
        raise CorruptError(f"{path}: the metadata does not match its digest: damaged")
    with suppress(ValueError, RecursionError):
        meta = json.loads(metadata["fastkd"])
        if isinstance(meta, dict) and _makes_sense(meta):
            return meta
    raise FormatError(f"{path}: a damaged checkpoint of fastkd: its metadata is no JSON object of what fastkd writes")


def _makes_sense(meta: dict[str, Any]) -> bool:
    """Whether what is read of the metadata has the types that it is read as."""
    inputs, params, about, norm = (meta.get(name) or {} for name in ("inputs", "params", "about", "norm"))
    if not all(isinstance(one, dict) for one in (inputs, params, about, norm)):
        return False
    if not isinstance(about.get("mask") or {}, dict):
        return False
    if not (_is_size(meta.get("size")) and _is_size(params.get("val_size"))):
        return False
    if not norm:
        return True
    mean, std, size = norm.get("mean", []), norm.get("std", []), norm.get("size")
    return (
        all(isinstance(one, list) and len(one) == 3 and all(map(_is_number, one)) for one in (mean, std))
        and min(std) > 0
        and _is_size(size)
    )


def _is_size(value: object) -> bool:
    return value is None or (isinstance(value, int) and 1 <= value <= 4096)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6  # which NaN is not


def _read_torch(path: Path) -> object:
    try:
        # An open file, because torch goes by the suffix of a path; no warnings, because the error says what matters.
        with safe_globals(ALLOWED), warnings.catch_warnings(action="ignore"), path.open("rb") as file:
            return load_torch(file)
    except Exception as error:  # a malformed pickle raises anything
        raise FormatError(f"{path}: {torch_reason(error)}") from None


def torch_reason(error: Exception) -> str:
    """torch's paragraphs in a few words; our own lines as they are."""
    if isinstance(error, FormatError):
        return str(error)
    foreign = re.search(r"nsupported (?:global: GLOBAL|GLOBAL|class) ([\w.]+)", str(error))
    if foreign:
        return f"holds Python objects ({foreign[1]}), which fastkd does not unpickle: save the state_dict alone"
    return "a torch or pickle file that is cut, malformed or not of weights; expected a whole file with a state_dict"
