"""The commands as functions: what `fastkd.build_beton`, `fastkd.cache_logits` and `fastkd.train_student` are."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastkd.arguments import as_path
from fastkd.cli.build_beton import write_images
from fastkd.cli.cache_logits import cache_logits as cache_logits_command
from fastkd.cli.config import words_of
from fastkd.cli.sections import SectionedCommand
from fastkd.cli.train import train as train_command

if TYPE_CHECKING:
    from fastkd.data.sources.spooled import Sample

Option = str | int | float | bool | Path | Sequence[str | Path] | None
"""What an option takes: a flag True or False, one that may be given again a list; None leaves it at its default."""


def build_beton(
    samples: "Iterable[Sample]",
    class_names: Sequence[str],
    out: str | Path,
    *,
    mode: str | None = None,
    max_size: int | None = None,
    jpeg_quality: int | None = None,
    page_size: int | None = None,
    check: bool | None = None,
    skip_bad: bool = False,
    num_workers: int = 0,
    force: bool = False,
) -> dict[str, Any]:
    """Writes images from anywhere into a beton, FFCV's file format, with a manifest beside it.

        fastkd.build_beton(((image, label) for image, label in dataset), dataset.classes, "train.beton")

    The samples are gone through once, and lie in an unnamed temporary file beside `out` while they are encoded: it needs the bytes
    of all images, as they are handed over. Sample i gets the sample_id i. The same samples called for again are told again.
    Progress goes to stderr.

    Args:
        samples: (image, label) or (image, label, name). image: Pillow's, of 8 bits a channel; pixels as uint8 (H, W) or (H, W, 3);
            or the bytes of an image file (JPEG, PNG, GIF, BMP, WebP, TIFF, PPM, AVIF). label: 0 … len(class_names) - 1. name: text
            that tells the sample, for instance its file; its number where it is left out.
        class_names: the classes in label order.
        out: the beton to write.
        mode: `raw` (pixels), `jpg` (encoded anew), `keep` (JPEG bytes as they were handed over, where the loader can decode them). None
            for raw where half of a sample of the images are below 64 pixels, else jpg.
        max_size: longer sides are shrunk to this, in pixels. None for 500 in mode jpg, else for any size.
        jpeg_quality: 1 … 100, of what is encoded; None for 90.
        page_size: bytes of a page, a power of two from 2 MiB; None for 8 MiB.
        check: with `keep`, whether all images are decoded to their end; None for True.
        skip_bad: leave out images that cannot be decoded, and say so, instead of stopping at the first.
        num_workers: encoding processes; 0 for one a CPU.
        force: replace another beton that is there.

    Returns:
        kind "beton", path, num_samples, num_classes, size_bytes, fingerprint, images_per_s, num_skipped, mode.

    Raises:
        FastKDError: what is no image, label or option, an image that does not decode, another beton that is there, a disk
            that is full; the line says which, and the way out.
    """
    from fastkd.data.sources.open import source_of

    path = as_path(out, "out")
    with source_of(samples, class_names, path.parent) as source:
        result, _ = write_images(
            source,
            path,
            mode=mode,
            max_size=max_size,
            jpeg_quality=jpeg_quality,
            page_size=page_size,
            check=check,
            skip_bad=skip_bad,
            num_workers=num_workers,
            force=force,
        )
    return result


def cache_logits(
    beton: str | Path,
    *,
    teacher: str | Path,
    out: str | Path,
    mask: str | Path | None = None,
    views: str | None = None,
    size: int | None = None,
    num_seeds: int | None = None,
    codec: str | None = None,
    outputs: str | None = None,
    teacher_model: str | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    device: str | None = None,
    force: bool | None = None,
    **options: Option,
) -> dict[str, Any]:
    """Computes a teacher's logits for K seeded views of each kept sample, once, into a store: `fastkd cache-logits`.

        fastkd.cache_logits("train.beton", mask="m.h5", teacher="teacher/", num_seeds=8, out="l.h5")

    Stopped at any moment, the same call goes on where it was. Under torchrun every rank calls it. Progress goes to stderr.

    Args:
        beton: path of the beton.
        teacher: a checkpoint, a run's folder, or a torchvision or `timm:` name.
        out: the store to fill, HDF5.
        mask: path of the kept samples; None for all.
        views: `crop-flip`, `rrc` or `center`; None for crop-flip where the images are small and of one size, else rrc.
        size: side of a view in pixels; None for the images' own with crop-flip, else 224.
        num_seeds: K, the views of a sample; None for 162 with crop-flip, 50 with rrc, 1 with center.
        codec: `fp16`, `int8+top4` or `int4+top8`; None for fp16 up to 64 classes, else int8+top4.
        outputs: `logits`, or `logits,embedding` for the input of the teacher's last layer, too; None for logits.
        teacher_model: the teacher's network, where the checkpoint does not say.
        batch_size: the teacher's batch, rows of a block; None for 256.
        num_workers: loader threads; None for one a CPU.
        device: `cpu`, `cuda` or `cuda:N`; None for a GPU where there is one.
        force: replace another store that is there.
        options: any other option of `fastkd cache-logits --help`, with `_` for `-`: teacher_precision="bf16", reuse=["old.h5"].

    Returns:
        kind "logit-store", path, num_seeds, num_rows, num_classes, codec, size_bytes, rows_written, rows_reused, fingerprint,
        rows_per_s.

    Raises:
        FastKDError: files that are missing, damaged or do not belong together, options out of range, another store that is
            there; the line says what was found, what was expected, and the way out.
    """
    given = {key: value for key, value in locals().items() if key != "options"}
    return _called(cache_logits_command, given | options)


def train_student(
    beton: str | Path,
    *,
    model: str,
    out: str | Path,
    mask: str | Path | None = None,
    logits: str | Path | None = None,
    teacher: str | Path | None = None,
    val: str | Path | None = None,
    init: str | Path | None = None,
    kd: str | None = None,
    alpha: float | str | None = None,
    tau: float | None = None,
    views: str | None = None,
    num_seeds: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    schedule: str | None = None,
    seed: int | None = None,
    num_workers: int | None = None,
    device: str | None = None,
    force: bool | None = None,
    **options: Option,
) -> dict[str, Any]:
    """Trains a student on the kept samples: with a store, with a live teacher, or on labels alone: `fastkd train`.

        result = fastkd.train_student("train.beton", mask="m.h5", logits="l.h5", model="resnet20", val="test.beton", out="run/")
        result["val_top1"]

    The loss is (1 - alpha)·CE + alpha·KD; with alpha=0 a plain network is trained, which is how a teacher is made. Stopped at any
    moment, the same call goes on from the last state; a finished run is told again. Under torchrun every rank calls it.
    Progress goes to stderr.

    Args:
        beton: path of the beton.
        model: the student's name, one of those that `fastkd models` lists.
        out: folder of the run: its states, metrics and `model.safetensors`.
        mask: path of the kept samples; None for all.
        logits: path of a store with the teacher's logits. teacher: a teacher to run live where there is no store: a checkpoint, a
            run's folder, or a name.
        val: path of a beton to measure accuracy on.
        init: weights to start from: a checkpoint, or a run's folder; None for fresh ones of the seed.
        kd: what is learnt from the teacher, see `fastkd.losses`: kd, dkd, dist, mlld, ttm, wttm from a store or live; at, ft, sp, hint, vid,
            nst, ab, fsp live; rkd, pkt, cc, crd from stored embeddings or live. None for kd.
        alpha: weight of KD, 0 … 1, or `auto` for one by the kept fraction; None for 0.5, without a teacher 0.
        tau: temperature; None for 4.
        views: `crop-flip`, `rrc` or `center`; None for the store's, else by the images' sizes.
        num_seeds: K, the views of a sample; None for the store's, else 162 with crop-flip, one an epoch with rrc.
        epochs: passes over the kept samples; None for 240.
        batch_size: samples a step on each rank; None for 64, with rrc 128.
        lr, weight_decay: of SGD; None for 0.05 (rrc: 0.1) and 5e-4.
        schedule: of the learning rate, `step` or `cosine`; None for step, with rrc cosine.
        seed: of initial weights and order; None for 0.
        num_workers: loader threads; None for one a CPU.
        device: `cpu`, `cuda` or `cuda:N`; None for a GPU where there is one.
        force: replace another run that is there.
        options: any other option of `fastkd train --help`, with `_` for `-`: amp="bf16", val_every=5, tau_squared=False.

    Returns:
        kind "run", path, epochs, val_top1, val_top5 (percent, None without `val`), images_per_s, data_wait_percent and more.

    Raises:
        FastKDError: files that are missing, damaged or do not belong together, options out of range, another run that is
            there; StoppedError after SIGTERM or Ctrl-C, the state being written. The line says what was found, what was
            expected, and the way out.
    """
    given = {key: value for key, value in locals().items() if key != "options"}
    return _called(train_command, given | options)


def _called(command: SectionedCommand, values: dict[str, Option]) -> dict[str, Any]:
    """Does what a command does, with values as strictly taken as those of a file; gives its result."""
    words = words_of(command, {key: _plain(value) for key, value in values.items() if value is not None})
    with command.make_context(command.name, words[1:]) as context:
        options = {name: value for name, value in context.params.items() if name not in ("as_json", "dump")}
        before, sys.argv = sys.argv, ["fastkd", *words]  # what a run says that it was made by
        try:
            return command.perform(options)[0]
        finally:
            sys.argv = before


def _plain(value: Option) -> Any:
    """A value as TOML has it."""
    if isinstance(value, Path):
        return str(value)
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
