"""The files in which a run leaves what it learnt."""

from pathlib import Path
from typing import Any

from fastkd.models.checkpoint import save_weights
from fastkd.models.norm import Norm
from fastkd.train.loop import Run
from fastkd.train.run_folder import file_checksum, kept_weights, weights_after, write_result


def _save_network(run: Run, norm: Norm, path: Path, head: dict[str, Any], top1: float | None, **more: Any) -> str:
    """Writes the network, or the average of its weights where there is one; returns the fingerprint of the weights.

    Args:
        more: of what is known about them.
    """
    final = run.learner.model if run.average is None else run.average.module
    dataset = run.loader.dataset
    meta = {"model": run.recipe.model, "num_classes": dataset.num_classes, "class_names": dataset.class_names}
    meta |= {"norm": norm.describe(), "size": run.loader.views.size, "val_top1": top1}
    meta |= {name: head[name] for name in ("inputs", "params", "about") if name in head} | more
    return save_weights(path, final, meta)


def keep_weights(run: Run, norm: Norm, out: Path, head: dict[str, Any], epoch: int, measured: dict[str, Any]) -> None:
    """Writes the weights after an epoch, in a file that stays; a run that goes on from before it writes the same.

    Args:
        measured: their accuracy, empty where it was not measured.
    """
    if run.average is not None:
        run.average.take_statistics(run.learner.model)
    done = epoch + 1
    _save_network(run, norm, weights_after(out, done), head, measured.get("top1"), epoch=done)


def finish(run: Run, norm: Norm, out: Path, head: dict[str, Any], result: dict[str, Any]) -> None:
    """Writes weights, scores and, last, the result, which makes the run a finished one; `result` gets their fingerprints."""
    assert run.lines is not None
    assert run.table is not None
    files = {"metrics.jsonl": run.lines.checksum, "metrics.csv": run.table.checksum}
    result["fingerprint"] = _save_network(run, norm, out / "model.safetensors", head, result["val_top1"])
    for path in (out / "model.safetensors", *kept_weights(out)):
        files[path.name] = file_checksum(path)
    if run.recording is not None:
        names = run.loader.dataset.class_names
        saved = run.recording.save(
            out / "scores.h5", inputs=head["inputs"], epochs=run.recipe.epochs, class_names=names
        )
        result["scores_fingerprint"] = saved.header.fingerprint
        files["scores.h5"] = file_checksum(out / "scores.h5")
    write_result(out, head, result, files)
