"""Pictures of the samples that scores or a mask put first, in one image."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from fastkd.data.beton.dataset import Dataset
from fastkd.data.views.draw import Views
from fastkd.dist import World
from fastkd.errors import OptionError
from fastkd.feed.loader import Loader
from fastkd.fingerprint import fingerprint
from fastkd.prune.select.levels import select_level
from fastkd.writing import write_marked

_MARGIN = 4  # pixels between pictures
_SMALLEST_TILE = 64  # pixels; smaller images are enlarged to it


def gallery_rows(scores: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """The `count` hardest, middle and easiest of the samples whose score is defined: sample_ids, in that order."""
    defined = ~np.isnan(scores)
    if not defined.any():
        raise OptionError("no sample has a score: there is nothing to show")
    count, one_class = min(count, int(np.count_nonzero(defined))), np.zeros(len(scores), np.int64)
    levels = {"highest": "hard", "middle": "moderate", "lowest": "easy"}
    return {
        title: select_level(one_class, count, scores=scores, level=level, balance="none", pool=defined)
        for title, level in levels.items()
    }


def write_gallery(
    path: str | Path,
    dataset: Dataset,
    rows: dict[str, np.ndarray],
    values: np.ndarray | None,
    *,
    force: bool = False,
) -> None:
    """A contact sheet as PNG: for each entry its title and its samples, with class names and scores under them.

    Args:
        rows: title → int64 sample_ids. values: float32 (N,), the scores to write below, or None. force: replace a file
            that is there.

    Raises:
        OptionError: another suffix.
        MismatchError: another file is there.
    """
    if Path(path).suffix.lower() != ".png":
        raise OptionError(f"--gallery {path}: expected a name that ends in .png")
    beton = dataset.beton
    size = int(min(128, max(beton.heights[0], beton.widths[0])))
    ids = np.unique(np.concatenate(list(rows.values())))
    loader = Loader(dataset, Views("center", size), mask=ids, batch_size=64, num_workers=1, world=World())
    pixels: dict[int, np.ndarray] = {}
    for batch in loader.epoch(0):
        for sample_id, image in zip(batch.sample_ids.tolist(), batch.images.permute(0, 2, 3, 1).numpy(), strict=True):
            pixels[sample_id] = image.copy()
    tile, line, columns = max(size, _SMALLEST_TILE), 12, 10
    blocks = {title: -(-len(own) // columns) for title, own in rows.items()}
    high = tile + 2 * line + _MARGIN
    height = sum(2 * line + count * high for count in blocks.values())
    sheet = Image.new("RGB", (columns * (tile + _MARGIN) + _MARGIN, height + _MARGIN), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for title, own in rows.items():
        draw.text((_MARGIN, top + line // 2), title, fill="black")
        top += 2 * line
        for k, sample_id in enumerate(own.tolist()):
            left, at = _MARGIN + k % columns * (tile + _MARGIN), top + k // columns * high
            picture = Image.fromarray(pixels[sample_id]).resize((tile, tile), Image.Resampling.NEAREST)
            sheet.paste(picture, (left, at))
            draw.text((left, at + tile), dataset.class_names[beton.labels[sample_id]][: tile // 6], fill="black")
            if values is not None:
                draw.text((left, at + tile + line), f"{values[sample_id]:.4g}", fill="dimgray")
        top += blocks[title] * high
    shown = [part for title, own in rows.items() for part in (title, own)]
    mark = f"fastkd gallery {fingerprint([dataset.fingerprint, *shown, *([] if values is None else [values])])}"
    about, content = PngInfo(), io.BytesIO()
    about.add_text("Software", mark)
    sheet.save(content, "PNG", pnginfo=about)
    write_marked(path, content.getvalue(), mark, force=force)
