"""Pictures of the samples that scores or a mask put first, in one image."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from fastkd.data.beton.dataset import Dataset
from fastkd.data.views.draw import Views
from fastkd.dist import World
from fastkd.errors import OptionError, printable
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
    title: str = "",
    meaning: str = "",
    force: bool = False,
) -> None:
    """A contact sheet as PNG: for each entry its title and its samples; under each its class name, sample_id and score.

    Args:
        rows: title → int64 sample_ids. values: float32 (N,), the scores to write below, or None. title, meaning: of the sheet, such
            as what high scores mean. force: replace a file that is there.

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
    tile, line, columns = max(size, _SMALLEST_TILE), 13, 10
    blocks = {name: -(-len(own) // columns) for name, own in rows.items()}
    under = 2 if values is None else 3
    high = tile + under * line + 2 * _MARGIN
    top = 4 * line if title or meaning else 0
    height = top + sum(2 * line + count * high for count in blocks.values())
    sheet = Image.new("RGB", (columns * (tile + _MARGIN) + _MARGIN, height + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    fonts = {points: ImageFont.load_default(points) for points in (10, 12, 15)}

    def write(
        place: tuple[int, int], text: str, points: int = 10, width: int = sheet.width - 2 * _MARGIN, fill: str = "black"
    ) -> None:
        """A line of text; what is wider than its place is cut."""
        text = printable(text).replace("\n", " ").replace("√", "root of ")  # which Pillow's own font lacks
        while draw.textlength(text, fonts[points]) > width:
            text = text[: len(text) - 2] + "…" if len(text) > 2 else ""
        draw.text(place, text, fill=fill, font=fonts[points])

    if title or meaning:
        write((_MARGIN, line // 2), title, 15)
        write((_MARGIN, 2 * line), meaning, 12, fill="dimgray")
    for name, own in rows.items():
        write((_MARGIN, top + line // 3), name, 12)
        top += 2 * line
        for k, sample_id in enumerate(own.tolist()):
            left, at = _MARGIN + k % columns * (tile + _MARGIN), top + k // columns * high
            picture = Image.fromarray(pixels[sample_id]).resize((tile, tile), Image.Resampling.NEAREST)
            sheet.paste(picture, (left, at))
            told = [dataset.class_names[beton.labels[sample_id]], f"id {sample_id}"]
            told += [] if values is None else [f"{values[sample_id]:.4g}"]
            for number, (text, fill) in enumerate(zip(told, ("black", "dimgray", "dimgray"), strict=False)):
                write((left, at + tile + number * line), text, width=tile, fill=fill)
        top += blocks[name] * high
    shown = [part for name, own in rows.items() for part in (name, own)]
    mark = f"fastkd gallery {fingerprint([dataset.fingerprint, *shown, *([] if values is None else [values])])}"
    about, content = PngInfo(), io.BytesIO()
    about.add_text("Software", mark)
    sheet.save(content, "PNG", pnginfo=about)
    write_marked(path, content.getvalue(), mark, force=force)
