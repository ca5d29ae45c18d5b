"""How FFCV's image field stores an image, and how many classes labels may tell."""

MODE_JPG, MODE_RAW = 0, 1
"""A JPEG's bytes; pixels, 3·height·width bytes."""
MAX_CLASSES = 2**20
"""More are labels of another meaning, or damaged."""
