"""The decoder called directly, and JPEGs of every kind."""

import cv2
import numpy as np
from PIL import Image

from fastkd.data.modes import MODE_JPG
from fastkd.data.views.pixels import OK, check_image, cut_view
from helpers.synthetic import encoded


def cut(content: bytes, mode: int, image: tuple[int, int], box: tuple, out: tuple[int, int], flip: int = 0) -> tuple:
    """Status and pixels of a view: box (top, left, height, width), image and out as (height, width)."""
    frame = np.full(3 * out[0] * out[1] + 128, 77, np.uint8)
    target = frame[64:-64].reshape(*out, 3)
    status = cut_view(np.frombuffer(content, np.uint8), mode, *image, *box, flip, target)
    assert (frame[:64] == 77).all()
    assert (frame[-64:] == 77).all()
    return status, target


def view(content: bytes, mode: int, image: tuple[int, int], box: tuple, out: tuple[int, int], flip: int = 0):
    status, found = cut(content, mode, image, box, out, flip)
    assert status == OK
    return found


def check(content: bytes, height: int, width: int) -> int:
    return check_image(np.frombuffer(content, np.uint8), MODE_JPG, height, width)


def half_the_rows(image: np.ndarray, **options: object) -> bytes:
    """A JPEG whose chroma has half the rows, which Pillow does not write."""
    flags = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440]
    flags += [cv2.IMWRITE_JPEG_PROGRESSIVE, 1] if options.get("progressive") else []
    return cv2.imencode(".jpg", image[:, :, ::-1], flags)[1].tobytes()


def as_mode(mode: str):
    return lambda image, **options: encoded(Image.fromarray(image).convert(mode), "JPEG", **options)


KINDS = {
    "4:4:4": lambda image, **options: encoded(image, subsampling=0, **options),
    "4:2:2": lambda image, **options: encoded(image, subsampling=1, **options),
    "4:2:0": lambda image, **options: encoded(image, subsampling=2, **options),
    "4:1:1": lambda image, **options: encoded(image, subsampling="4:1:1", **options),
    "4:4:0": half_the_rows,
    "RGB": lambda image, **options: encoded(image, keep_rgb=True, **options),
    "grey": as_mode("L"),
    "CMYK": as_mode("CMYK"),
}
