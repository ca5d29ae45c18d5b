"""`fastkd build-beton`."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastkd.cli.command import Output, command
from fastkd.cli.common import progress_bar, say
from fastkd.cli.numbers import MOST_WORKERS
from fastkd.cli.options import field_options
from fastkd.data.beton.fields import Fields
from fastkd.errors import OptionError

if TYPE_CHECKING:
    from fastkd.data.sources.open import Source


@command("build-beton")
@click.argument("source")
@field_options
@click.option("--out", type=Output(), required=True, help="The beton to write.")
@click.option(
    "--mask", type=click.Path(path_type=Path), help="SOURCE is a beton: copy the samples that this mask keeps of it."
)
@click.option("--root", metavar="FOLDER", help="The folder inside SOURCE that holds the class folders.")
@click.option("--classes", type=click.Path(path_type=Path), help="File with one class a line; fixes their order.")
@click.option("--split", type=click.Choice(["train", "test"]), help="Of cifar10: and the like.  [default: train]")
@click.option(
    "--mode",
    type=click.Choice(["raw", "jpg", "keep"]),
    help="How images are stored.  [default: raw where half of a sample of them are below 64 pixels, else jpg]",
)
@click.option(
    "--max-size", type=click.IntRange(1, 65_535), help="Shrink longer sides to this.  [default: 500 for jpg, else none]"
)
@click.option("--jpeg-quality", type=click.IntRange(1, 100), help="Of what is encoded.  [default: 90]")
@click.option(
    "--page-size", type=click.IntRange(2**21, 2**31), help="Bytes of a page; a power of two.  [default: 8 MiB]"
)
@click.option(
    "--check/--no-check",
    default=None,
    help="Decode what keep takes over; encode anew what does not decode.  [default: check]",
)
@click.option("--skip-bad", is_flag=True, help="List images that cannot be decoded or stored and leave them out.")
@click.option(
    "--num-workers",
    type=click.IntRange(0, MOST_WORKERS),
    default=0,
    help="Encoding processes; 0 for one a CPU.  [default: 0]",
)
def build_beton(
    source: str,
    fields: Fields,
    out: Path,
    force: bool,
    mask: Path | None,
    root: str | None,
    classes: Path | None,
    split: str | None,
    mode: str | None,
    max_size: int | None,
    jpeg_quality: int | None,
    page_size: int | None,
    check: bool | None,
    skip_bad: bool,
    num_workers: int,
) -> tuple[dict[str, Any], str]:
    """Write the images of SOURCE into a beton, FFCV's file format, with a manifest beside it.

    SOURCE is a folder or a zip in ImageFolder layout, or one of cifar10:DIR, cifar100:DIR, svhn:DIR, mnist:DIR,
    fashion-mnist:DIR, digits:, webdataset:GLOB, parquet:GLOB.

    A GLOB takes *, ?, **, {000..146} and {a,b}; several are joined by `::`; samples keep the order that they have there.
    Of webdataset: the image is a sample's one file with an image's suffix, the class the text of its .cls, or "label" in
    its .json (--label-field json:ENTRY for another); of parquet: as Hugging Face has them. Classes are all numbers or all
    names; names are sorted, unless --classes says otherwise.

    \b
    raw   pixels: fastest to read, 3 bytes a pixel
    jpg   encoded anew at --jpeg-quality
    keep  the source's own JPEG bytes, to their end marker, where they are RGB, whole and within --max-size, else as jpg;
          all are decoded for that; with --no-check, in a third of the time, only their structure and first rows are looked
          at (fastkd verify decodes them all afterwards)

    Images are JPEG, PNG, GIF, BMP, WebP, TIFF, PPM or AVIF of 8 or 16 bits a channel and up to 178,956,970 pixels, by
    what is in them, not by their suffix; of an animation the first picture is taken.

    With --mask a small beton of the kept samples is copied out of a full one, for a disk or a memory that the full one
    does not fit. It stands in for the full one: the samples keep their numbers, and masks and stores of the full beton
    go with it.

    A build that was stopped after its first 256 MiB goes on when it is called again. Images of a folder that changed since
    are encoded anew, and those after them; a zip or a data set's files that changed are begun anew.

    \b
    fastkd build-beton cifar.zip --root cifar10/train --out train.beton
    fastkd build-beton 'webdataset:shards/train-{0000..1023}.tar' --classes names.txt --out train.beton
    fastkd build-beton 'parquet:data/train-*.parquet' --out train.beton
    fastkd build-beton train.beton --mask m.h5 --out small.beton
    """
    if mask is not None:
        given = {"--root": root, "--classes": classes, "--split": split, "--mode": mode, "--max-size": max_size}
        given |= {"--jpeg-quality": jpeg_quality, "--page-size": page_size, "--check": check}
        given |= {"--skip-bad": skip_bad or None}
        unfit = next((name for name, value in given.items() if value is not None), None)
        if unfit:
            raise OptionError(f"{unfit} does not go with --mask, which copies samples as they are")
        return _copy_part(Path(source), fields, mask, out, force)
    from fastkd.data.sources.open import SHARDED, open_source

    with progress_bar("names and labels", "files") if source.startswith(SHARDED) else nullcontext(_untold) as progress:
        images = open_source(
            source,
            root=root,
            classes=classes,
            split=split,
            image_field=fields.image,
            label_field=fields.label,
            progress=progress,
        )
    if images.left_aside:
        kinds = ", ".join(
            f"{count:,} {suffix or 'without suffix'}" for suffix, count in images.left_aside.most_common(8)
        )
        say(f"left aside: {images.left_aside.total():,} files that are not taken for images ({kinds})")
    return write_images(
        images,
        out,
        mode=mode,
        max_size=max_size,
        jpeg_quality=jpeg_quality,
        page_size=page_size,
        check=check,
        skip_bad=skip_bad,
        num_workers=num_workers,
        force=force,
    )


def write_images(
    images: "Source",
    out: Path,
    *,
    mode: str | None,
    max_size: int | None,
    jpeg_quality: int | None,
    page_size: int | None,
    check: bool | None,
    skip_bad: bool,
    num_workers: int,
    force: bool,
) -> tuple[dict[str, Any], str]:
    """Writes the images of a source, whatever it is, with the options as they were given, None for what was not."""
    from fastkd.data.beton.build import build_beton as write
    from fastkd.data.beton.encode import WriteOptions, default_mode

    if mode is None:
        mode, why = default_mode(images)
        say(why)
    if check is not None and mode != "keep":
        raise OptionError(f"--check goes with --mode keep; {mode} decodes every image anyway")
    if mode == "jpg" and max_size is None:
        max_size = 500
    options = WriteOptions(
        mode=mode,
        max_size=max_size,
        jpeg_quality=jpeg_quality or 90,
        page_size=page_size or 2**23,
        check=mode == "keep" and check is not False,
    )
    with progress_bar("build-beton", "images") as progress:
        rate = Rate(progress)
        manifest = write(
            images,
            out,
            options,
            num_workers=num_workers,
            skip_bad=skip_bad,
            force=force,
            on_skip=lambda line: say(f"left out: {line}"),
            log=say,
            progress=rate,
        )
    num_classes = len(manifest["class_names"])
    result = _result(out, manifest, num_classes, rate.per_s)
    result |= {"num_skipped": len(images) - manifest["num_samples"], "mode": mode}
    text = f"{out}: {result['num_samples']:,} images of {num_classes} classes, {mode}, {result['size_bytes']:,} bytes"
    return result, text


def _copy_part(full: Path, fields: Fields, mask: Path, out: Path, force: bool) -> tuple[dict[str, Any], str]:
    """`build-beton FULL --mask M --out OUT`."""
    from fastkd.data.beton.build import build_part
    from fastkd.data.beton.dataset import open_dataset
    from fastkd.data.beton.part import left_behind
    from fastkd.feed.loader import kept_ids
    from fastkd.prune.masks.mask import Mask

    kept, dataset = Mask.load(mask), open_dataset(full, fields)
    ids = kept_ids(dataset, kept)
    if left := left_behind(dataset.beton):
        say(f"{out}: has image and label alone; left behind of {full}: {left}")
    with progress_bar("build-beton", "images") as progress:
        rate = Rate(progress)
        manifest = build_part(
            dataset.beton, ids, out, full_fingerprint=dataset.fingerprint, force=force, log=say, progress=rate
        )
    result = _result(out, manifest, dataset.num_classes, rate.per_s)
    text = f"{out}: {len(ids):,} of the {dataset.beton.num_samples:,} samples of {full}, {result['size_bytes']:,} bytes"
    return result | {"full": dataset.fingerprint}, text


def _untold(done: int, total: int) -> None:
    """Progress of what takes no while."""


class Rate:
    """A progress callback that knows the images a second of what it was told of; 0 where there was nothing to do."""

    def __init__(self, progress: Callable[[int, int], None]) -> None:
        self.progress, self.num_images, self.begin = progress, 0, time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        self.num_images += 1
        self.progress(done, total)

    @property
    def per_s(self) -> float:
        return self.num_images / (time.perf_counter() - self.begin)


def _result(out: Path, manifest: dict[str, Any], num_classes: int, images_per_s: float) -> dict[str, Any]:
    return {
        "kind": "beton",
        "path": str(out),
        "num_samples": manifest["num_samples"],
        "num_classes": num_classes,
        "size_bytes": manifest["size_bytes"],
        "fingerprint": manifest["fingerprint"],
        "images_per_s": images_per_s,
    }
