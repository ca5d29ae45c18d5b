"""A Hugging Face data set into a beton: its JPEG bytes as they are, its class names with them.

python examples/hugging_face.py ethz/food101 train train.beton
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

import fastkd


def convert(source: str, split: str, out: str, *, image: str = "image", label: str = "label") -> dict[str, Any]:
    """Writes a split of a data set with a column of images and one of classes; gives what `fastkd build-beton --json` does.

    Args:
        source: a name on the Hub, or a folder of parquet files or images.
    """
    rows = datasets.load_dataset(source, split=split).cast_column(image, datasets.Image(decode=False))

    def samples() -> Iterator[tuple[bytes, int, str]]:
        for i, row in enumerate(rows):
            picture = row[image]
            content = picture["bytes"] or Path(picture["path"]).read_bytes()
            yield content, row[label], picture["path"] or f"{split}/{i}"

    return fastkd.build_beton(samples(), rows.features[label].names, out, mode="keep")


if __name__ == "__main__":
    print(convert(*sys.argv[1:4]))
