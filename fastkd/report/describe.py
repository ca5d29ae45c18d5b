"""What a file is: its kind found from its content, described for `inspect` and checked for `verify`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastkd.artefact import HDF5_MAGIC, open_artefact, read_artefact
from fastkd.data.beton.fields import AS_FOUND, KINDS, Fields
from fastkd.data.beton.read import identify, open_beton, read_manifest
from fastkd.data.modes import MODE_RAW
from fastkd.errors import CorruptError, FastKDError, FormatError, NotFoundError
from fastkd.prune.masks.mask import Mask
from fastkd.prune.masks.weights import describe_weights
from fastkd.prune.scores.features import FORMAT_VERSION as FEATURES_VERSION
from fastkd.prune.scores.features import KIND as FEATURES_KIND
from fastkd.prune.scores.score_file import load_scores
from fastkd.report.selection import summary
from fastkd.writing import reading

NOT_RECORDED = "not recorded"
"""What stands for what files of a version before do not say."""


def kind_of(path: str | Path) -> str:
    """`beton`, `mask`, `scores`, `features`, `logit-store`, `checkpoint` or `run`, by content; a `.beton` is always a beton.

    Raises:
        NotFoundError: no such file.
        FormatError: none of these.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "run.json").is_file():
            return "run"
        raise FormatError(f"{path}: a folder without run.json; expected a file, or the folder of a run")
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file")
    with reading(path), path.open("rb") as file:
        head = file.read(24)
    if head.startswith(HDF5_MAGIC):
        with open_artefact(path, None) as (_, header):
            if header.kind not in DESCRIBE:
                raise FormatError(f"{path}: of the kind {header.kind!r}, which this fastkd does not know")
            return header.kind
    if path.suffix == ".beton" or (head[:2] == b"\x02\0" and head[4:6] == b"\0\0"):
        return "beton"
    if head[:2] == b"PK" or head[:1] == b"\x80" or head[8:9] == b"{":
        return "checkpoint"
    raise FormatError(
        f"{path}: neither a beton, an artefact of fastkd's nor a checkpoint (first bytes {head[:4].hex() or 'none'})"
    )


def describe(path: str | Path, fields: Fields = AS_FOUND) -> dict[str, Any]:
    """What `inspect` prints of a file: kind, path, format_version, fingerprint, inputs, params and the kind's own keys.

    Args:
        fields: which of a beton hold the image and the label.

    Raises:
        FastKDError: a file that is missing, foreign or damaged.
    """
    kind = kind_of(path)
    found = _beton(Path(path), fields) if kind == "beton" else DESCRIBE[kind](Path(path))
    return {"kind": kind, "path": str(path), **found}


def verify(
    path: str | Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    fields: Fields = AS_FOUND,
    note: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """Reads a file whole and checks all of it; one line for each problem, none for a whole file.

    Args:
        note: called with a line for what cannot be checked as it is not recorded, and for a run that is not finished.
    """
    try:
        found = _verify(Path(path), progress, fields, note)
        return [f"{path}: {line}" if not line.startswith(str(path)) else line for line in found]
    except FastKDError as error:
        return [str(error)]


def _verify(path: Path, progress: Callable[[int, int], None], fields: Fields, note: Callable[[str], None]) -> list[str]:
    kind = kind_of(path)
    if kind == "beton":
        from fastkd.data.beton.verify import verify_beton

        return verify_beton(open_beton(path, fields), progress)
    if kind == "logit-store":
        from fastkd.store.verify import verify_store

        return verify_store(path, progress)
    if kind == "run":
        from fastkd.train.checks import verify_run

        return verify_run(path, note)
    DESCRIBE[kind](path)  # reads masks and checkpoints whole, against their fingerprints
    return []


def _beton(path: Path, fields: Fields = AS_FOUND) -> dict[str, Any]:
    beton = open_beton(path, fields)
    manifest = read_manifest(beton) or {}
    digest, class_names = identify(beton)
    return {
        "format_version": 2,
        "fingerprint": manifest.get("fingerprint", digest),
        "inputs": {"full": digest} if "part_of" in manifest else {},
        "params": {name: manifest.get(name) for name in ("source", "options", "versions")} if manifest else {},
        "num_samples": beton.num_samples,
        "num_classes": len(class_names),
        "size_bytes": beton.size_bytes,
        "manifest": bool(manifest),
        "fields": {name: KINDS[kind] for name, kind in zip(beton.field_names, beton.field_types, strict=True)},
        **{f"{role}_field": name for role, name in beton.used_fields.items()},
        "num_raw": int(np.count_nonzero(beton.modes == MODE_RAW)),
        "max_height": int(beton.heights.max()),
        "max_width": int(beton.widths.max()),
    }


def _mask(path: Path) -> dict[str, Any]:
    mask = Mask.load(path)
    counts = {name: mask.header.params.get(name) for name in ("class_min", "class_max")}
    sizes = {"num_kept": len(mask.sample_ids), "num_samples": mask.num_samples, "fraction": mask.fraction}
    weights = {} if mask.weights is None else {"weights": describe_weights(mask.weights)}
    return {**_header(mask.header), **sizes, **counts, **weights}


def _scores(path: Path) -> dict[str, Any]:
    scores = load_scores(path)
    return {
        **_header(scores.header),
        "num_samples": scores.num_samples,
        "scores": {name: summary(values) for name, values in scores.values.items()},
    }


def _features(path: Path) -> dict[str, Any]:
    arrays = {"features": ("<f4", 2)}
    header, found = read_artefact(path, kind=FEATURES_KIND, format_version=FEATURES_VERSION, arrays=arrays)
    num_samples, dim = found["features"].shape
    return {**_header(header), "num_samples": num_samples, "dim": dim}


def _store(path: Path) -> dict[str, Any]:
    from fastkd.store.tables import count_rows, is_sound_count, read_tables

    tables = read_tables(path)
    if not all(is_sound_count(tables, number) for number in np.flatnonzero(tables.done == 1).tolist()):
        raise CorruptError(
            f"{path}: counts of top-1 hits do not match their checksums; `fastkd verify` says what is whole"
        )
    done = np.argwhere(tables.done == 1)
    rows = count_rows(tables, done)
    more = {}
    if tables.embeddings is not None:
        codec = tables.embeddings.codec
        more = {"embedding_dim": codec.num_classes, "embedding_row_bytes": codec.row_bytes}
    correct = int(tables.top1[..., 0][tables.done == 1].sum())
    return {
        **_header(tables.header),
        "num_seeds": tables.num_seeds,
        "num_rows": tables.num_rows,
        "num_classes": tables.codec.num_classes,
        "codec": tables.codec.name,
        "row_bytes": tables.codec.row_bytes,
        **more,
        "size_bytes": path.stat().st_size,
        "done_percent": 100 * len(done) / tables.done.size,
        "teacher_top1": 100 * correct / rows if rows else None,
        "about": tables.about or NOT_RECORDED,
    }


def _header(header: Any) -> dict[str, Any]:
    names = ("format_version", "fingerprint", "inputs", "params")
    return {name: getattr(header, name) for name in names}


def _checkpoint(path: Path) -> dict[str, Any]:
    from fastkd.models.checkpoint import FORMAT_VERSION, read_checkpoint
    from fastkd.models.registry import state_fingerprint

    found = read_checkpoint(path)
    meta = dict(found.meta)
    return {
        "format_version": FORMAT_VERSION if found.format == "fastkd" else None,
        "format": found.format,
        "fingerprint": state_fingerprint(found.state_dict),
        "inputs": meta.pop("inputs", {}),
        "params": meta.pop("params", {}),
        "num_tensors": len(found.state_dict),
        "num_parameters": sum(tensor.numel() for tensor in found.state_dict.values()),
        "size_bytes": path.stat().st_size,
        **{name: meta.get(name) for name in ("model", "num_classes", "size", "norm", "val_top1") if name in meta},
        "about": meta.get("about", NOT_RECORDED),
    }


def _run(path: Path) -> dict[str, Any]:
    from fastkd.train.run_folder import plain_result, read_result, read_run

    head = read_run(path) or {}
    result = plain_result(read_result(path, head) or {})
    keys = {name: head[name] for name in ("format_version", "fingerprint", "inputs", "params")}
    told = {name: head.get(name, NOT_RECORDED) for name in ("about", "made")}
    return {**keys, "finished": bool(result), **{k: v for k, v in result.items() if k != "fingerprint"}, **told}


DESCRIBE: dict[str, Callable[[Path], dict[str, Any]]] = {
    "beton": _beton,
    "mask": _mask,
    "scores": _scores,
    "features": _features,
    "logit-store": _store,
    "checkpoint": _checkpoint,
    "run": _run,
}
