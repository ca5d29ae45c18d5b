"""The folder of a run: whose it is, where it stands, and what came out of it."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from fastkd.differences import differences, in_a_line
from fastkd.errors import CorruptError, FormatError, MismatchError
from fastkd.fingerprint import fingerprint
from fastkd.train.resume import is_result, require_position
from fastkd.writing import atomic_path, reading, require_replaceable

RUN_VERSION = 2
"""Of runs whose files say whose they are and carry checksums; runs of version 1 are read and gone on with."""

_READ_VERSIONS = (1, 2)
_FILES = (
    *("run.json", "result.json", "metrics.jsonl", "metrics.csv", "resume.pt", "resume-previous.pt"),
    *("model.safetensors", "scores.h5"),
)
"""What a run leaves, run.json first: without it the others are nothing."""

_WAY_OUT = "put the run's own back, or remove {} and train anew"


def claim_folder(
    out: Path, identity: dict[str, Any], told: dict[str, Any] | None = None, *, force: bool = False
) -> dict[str, Any]:
    """Makes the folder this run's, or checks that it is. Of several ranks the first does that alone.

    Args:
        identity: inputs and params; plain JSON values.
        told: more entries for a new run.json, which say what the run was and make it no other run: see `about.py`.
        force: take away the files of another run.

    Returns:
        The content of run.json: of the run that is gone on with, or the new one's.

    Raises:
        MismatchError: another run, or files that are no run's; says in what it differs.
        FormatError, CorruptError: as `read_run`.
    """
    out.mkdir(parents=True, exist_ok=True)
    digest = _identity_fingerprint(identity)
    try:
        found = read_run(out)
    except (FormatError, CorruptError):
        if not force:
            raise
        found = {"fingerprint": None}
    if found is None and (strangers := _strangers(out)):
        raise MismatchError(f"{out}: holds {strangers[0]} but no run.json; choose an empty --out")
    if found is not None and found["fingerprint"] != digest:
        differs = [] if force else differences({key: found[key] for key in identity}, identity)
        require_replaceable(out, force, f"another run is there; it differs in {in_a_line(differs) or 'its header'}")
        for path in (*(out / name for name in _FILES), *kept_weights(out)):
            path.unlink(missing_ok=True)
        found = None
    if found is None:
        found = {"fastkd_kind": "run", "format_version": RUN_VERSION, "fingerprint": digest} | identity | (told or {})
        write_json(out / "run.json", with_checksum(found))
    return found


def kept_weights(out: Path) -> list[Path]:
    """The weights of epochs that stay in a run's folder (`--keep-every`), the first epoch's first."""
    return sorted(out.glob("epoch-*.safetensors"))


def weights_after(out: Path, epoch: int) -> Path:
    """Where a run keeps its weights after so many epochs."""
    return out / f"epoch-{epoch:05}.safetensors"


def _strangers(out: Path) -> list[str]:
    """What lies in a folder that no run has left: all but the beginnings of a run.json."""
    return sorted(p.name for p in out.iterdir() if not re.fullmatch(r"\.?run\.json\.([0-9a-f]{8}\.)?partial", p.name))


def read_run(out: Path) -> dict[str, Any] | None:
    """What the folder's run.json says, checked; None where there is none.

    Raises:
        FormatError: damaged, or of another version.
        CorruptError: it does not match its fingerprint or its checksum.
    """
    path = out / "run.json"
    head = read_json(path)
    if head is None:
        return None
    version = head.get("format_version")
    if version not in _READ_VERSIONS:
        raise FormatError(
            f"{path}: run of version {version}, this fastkd reads version {' and '.join(map(str, _READ_VERSIONS))}"
        )
    identity = {name: head.get(name) for name in ("inputs", "params")}
    if not all(isinstance(value, dict) for value in identity.values()):
        raise FormatError(f"{path}: damaged: it does not say what the run was; remove the folder and start anew")
    if head.get("fingerprint") != _identity_fingerprint(identity):
        raise CorruptError(f"{path}: does not match its fingerprint, it was changed: {_WAY_OUT.format(out)}")
    if version > 1 or "checksum" in head:
        _require_checksum(path, head, _WAY_OUT.format(out))
    return head


def read_result(out: Path, head: dict[str, Any]) -> dict[str, Any] | None:
    """What a finished run's result.json says, checked against itself and run.json; None where there is none.

    Args:
        head: what `read_run` gave. Of version 1, a result has no checksum.

    Raises:
        FormatError: damaged.
        CorruptError: it does not match its checksum, or has none.
        MismatchError: it is another run's.
    """
    path = out / "result.json"
    result = read_json(path)
    if result is None:
        return None
    way_out = f"remove it and run the same `fastkd train` again, which writes it anew from the last state of {out}"
    if head["format_version"] > 1 or "checksum" in result:
        _require_checksum(path, result, way_out)
        if result.get("run") != head["fingerprint"]:
            raise MismatchError(
                f"{path}: of another run ({str(result.get('run'))[:12]}) than run.json is ({head['fingerprint'][:12]}): "
                f"{way_out}"
            )
    if not is_result(result):
        raise FormatError(
            f"{path}: damaged: epochs, images_per_s and val_top1 are not all numbers in range, or what files it names is none; {way_out}"
        )
    return result


def write_result(out: Path, head: dict[str, Any], result: dict[str, Any], files: dict[str, str]) -> None:
    """Writes result.json, which makes a run finished: the result, whose it is, and checksums.

    Args:
        files: checksum of each other file that the run leaves, by name: see `file_checksum`.
    """
    write_json(out / "result.json", with_checksum(result | {"run": head["fingerprint"], "files": files}))


def plain_result(result: dict[str, Any]) -> dict[str, Any]:
    """A result without what ties its file to others."""
    return {name: value for name, value in result.items() if name not in ("run", "files", "checksum")}


def file_checksum(path: Path) -> str:
    """BLAKE2b-128 of a file's bytes: 32 hexadecimal digits."""
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def with_checksum(content: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with one more entry, `checksum`, over all others."""
    return content | {"checksum": fingerprint([json.dumps(content, sort_keys=True)])}


def _require_checksum(path: Path, content: dict[str, Any], way_out: str) -> None:
    said = content.get("checksum")
    if said is None:
        raise CorruptError(f"{path}: has no checksum, every run of version {RUN_VERSION} writes one: {way_out}")
    if with_checksum({name: value for name, value in content.items() if name != "checksum"}) != content:
        raise CorruptError(f"{path}: does not match its checksum, it was changed: {way_out}")


def _identity_fingerprint(identity: dict[str, Any]) -> str:
    return fingerprint([json.dumps(identity, sort_keys=True)])


def started_global_batch(out: Path) -> int | None:
    """The samples of a step over all ranks in the run that a folder holds; None where it holds none.

    Raises:
        FormatError: a damaged run.json.
    """
    params = (read_json(out / "run.json") or {}).get("params")
    found = params.get("global_batch") if isinstance(params, dict) else None
    return found if isinstance(found, int) and found >= 1 else None


def require_own_state(path: Path, state: dict[str, Any], head: dict[str, Any]) -> None:
    """Refuses a resume state of another run.

    Args:
        head: what `read_run` gave. The states of version 1 do not say whose they are.

    Raises:
        MismatchError: says whose it is. FormatError: no state of a run at all, though it is sealed as one.
    """
    try:
        require_position(state)
    except (KeyError, ValueError, TypeError):
        raise FormatError(
            f"{path}: does not say where a run stands: put the run's own back, or remove it to go on from the state before"
        ) from None
    whose = state.get("run")
    if whose != head["fingerprint"] and not (whose is None and head["format_version"] == 1):
        raise MismatchError(
            f"{path}: the state of {f'another run ({str(whose)[:12]})' if whose else 'a run that it does not name'}, expected "
            f"that of run.json ({head['fingerprint'][:12]}): put the run's own back, or remove it to go on from the state before"
        )


def place_in_words(epoch: int, step: int) -> str:
    """Where a run stands that has done `epoch` whole epochs and `step` steps of the next one; people count from 1."""
    return f"after step {step} of epoch {epoch + 1}" if step else f"after epoch {epoch}"


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None where there is no such file.

    Raises:
        FormatError: the file holds something else.
    """
    try:
        with reading(path):
            content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: damaged ({error}); remove the folder and start anew") from None
    if not isinstance(content, dict):
        raise FormatError(f"{path}: holds no JSON object; remove the folder and start anew")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object, atomically.

    Raises:
        FormatError: NaN or an infinity in it, which JSON does not know.
    """
    try:
        text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise FormatError(
            f"{path}: would hold a number that JSON does not know ({error}): correct what it is from"
        ) from None
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")
