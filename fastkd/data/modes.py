"""How FFCV's image field stores an image."""

MODE_JPG, MODE_RAW = 0, 1
"""A JPEG's bytes; pixels, 3·height·width bytes."""
