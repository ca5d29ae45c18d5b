"""Betons of FFCV's own writer, whose fields have other names, kinds and orders than those that fastkd writes."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from helpers import TESTS
from helpers.synthetic import photo

NUM_SAMPLES = 12
FORMS: dict[str, dict[str, str]] = {
    "index-before-label": {"image": "RGB", "index": "100 + i", "label": "i % 3"},
    "coarse-and-fine": {"image": "RGB", "coarse": "i % 2", "fine": "i % 3"},
    "other-names": {"cls": "i % 3", "weight": "i / 8", "picture": "RGB"},
    "two-images": {"left": "RGB", "image": "RGB", "label": "i % 3", "right": "RGB"},
    "two-unnamed-images": {"left": "RGB", "right": "RGB", "label": "i % 3"},
    "float-label": {"image": "RGB", "label": "i / 4", "index": "i"},
    "array-label": {"image": "RGB", "label": "[i, i + 1]", "index": "i"},
    "bytes-image": {"image": "b'ab'", "picture": "RGB", "label": "i % 3"},
    "own-sample-id": {"image": "RGB", "sample_id": "i", "cls": "i % 3"},
    "no-integer": {"image": "RGB", "weight": "i / 2", "sample_id": "i"},
    "no-image": {"label": "i % 3", "weight": "i / 2"},
}
"""Name of the file → its fields in order, with what each holds of sample i."""

_WRITER = """
import numpy as np
from ffcv.fields import BytesField, FloatField, IntField, NDArrayField, RGBImageField
from ffcv.writer import DatasetWriter
from helpers.foreign import FORMS, NUM_SAMPLES, picture

KINDS = {int: IntField, float: FloatField, bytes: BytesField, list: lambda: NDArrayField(np.dtype("i8"), (2,))}
ARRAYS = {bytes: lambda found: np.frombuffer(found, "u1"), list: np.array}

class Samples:
    def __init__(self, form):
        self.form = form
    def __len__(self):
        return NUM_SAMPLES
    def __getitem__(self, i):
        return tuple(self.value(name, text, int(i)) for name, text in self.form.items())
    def value(self, name, text, i):
        if text == "RGB":
            return picture(name, i)
        found = eval(text, {"i": i})
        return ARRAYS.get(type(found), lambda found: found)(found)

for name, form in FORMS.items():
    fields = {k: RGBImageField("raw") if t == "RGB" else KINDS[type(eval(t, {"i": 1}))]() for k, t in form.items()}
    DatasetWriter(f"{name}.beton", fields, num_workers=1, page_size=2**21).from_indexed_dataset(Samples(form))
"""


def picture(field: str, i: int) -> np.ndarray:
    """What an image field holds of sample i: uint8 (32, 32, 3)."""
    return photo(1000 * sum(field.encode()) + i, 32, 32)


def write_foreign(folder: Path) -> None:
    """Writes `NAME.beton` of every form."""
    command = [sys.executable, "-c", f"import sys; sys.path.append({str(TESTS)!r})\n{_WRITER}"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
