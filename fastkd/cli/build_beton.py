"""`fastkd build-beton`."""

import time
from pathlib import Path
from typing import Any

import click

from fastkd.cli.common import command, progress_bar, say


@command("build-beton", first_rank_alone=True)
@click.argument("source")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The beton to write.")
@click.option("--root", metavar="FOLDER", help="The folder inside SOURCE that holds the class folders.")
@click.option("--classes", type=click.Path(path_type=Path), help="File with one class a line; fixes their order.")
@click.option("--split", type=click.Choice(["train", "test"]), help="Of cifar10: and the like.  [default: train]")
@click.option(
    "--mode",
    type=click.Choice(["raw", "jpg", "keep"]),
    help="How images are stored.  [default: raw below 64 pixels, else jpg]",
)
@click.option(
    "--max-size", type=click.IntRange(1, 65_535), help="Shrink longer sides to this.  [default: 500 for jpg, else none]"
)
@click.option("--jpeg-quality", type=click.IntRange(1, 100), default=90, show_default=True, help="Of what is encoded.")
@click.option(
    "--page-size", type=click.IntRange(2**21), default=2**23, show_default=True, help="Bytes of a page; a power of two."
)
@click.option("--skip-bad", is_flag=True, help="List images that cannot be decoded and leave them out.")
@click.option(
    "--num-workers", type=click.IntRange(0), default=0, help="Encoding processes; 0 for one a CPU.  [default: 0]"
)
def build_beton(
    source: str,
    out: Path,
    root: str | None,
    classes: Path | None,
    split: str | None,
    mode: str | None,
    max_size: int | None,
    jpeg_quality: int,
    page_size: int,
    skip_bad: bool,
    num_workers: int,
) -> tuple[dict[str, Any], str]:
    """Write the images of SOURCE into a beton, FFCV's file format, with a manifest beside it.

    SOURCE is a folder or a zip in ImageFolder layout, or one of cifar10:DIR, cifar100:DIR, svhn:DIR,
    fashion-mnist:DIR, digits:.

    \b
    raw   pixels: fastest to read, 3 bytes a pixel
    jpg   encoded anew at --jpeg-quality
    keep  the source's own JPEG bytes where they are RGB and within --max-size, else as jpg

    \b
    fastkd build-beton cifar.zip --root cifar10/train --out train.beton
    """
    from fastkd.data.build import WriteOptions, default_mode
    from fastkd.data.build import build_beton as write
    from fastkd.data.sources import open_source

    images = open_source(source, root=root, classes=classes, split=split or "train")
    mode = mode or default_mode(images)
    if mode == "jpg" and max_size is None:
        max_size = 500
    options = WriteOptions(mode=mode, max_size=max_size, jpeg_quality=jpeg_quality, page_size=page_size)
    begin = time.perf_counter()
    with progress_bar("build-beton", "images") as progress:
        manifest = write(
            images,
            out,
            options,
            num_workers=num_workers,
            skip_bad=skip_bad,
            on_skip=lambda line: say(f"left out: {line}"),
            progress=progress,
        )
    result = {
        "kind": "beton",
        "path": str(out),
        "num_samples": manifest["num_samples"],
        "num_classes": len(manifest["class_names"]),
        "size_bytes": manifest["size_bytes"],
        "fingerprint": manifest["fingerprint"],
        "images_per_s": len(images) / (time.perf_counter() - begin),
        "num_skipped": len(images) - manifest["num_samples"],
        "mode": mode,
    }
    text = f"{out}: {result['num_samples']:,} images of {result['num_classes']} classes, {mode}, {result['size_bytes']:,} bytes"
    return result, text
