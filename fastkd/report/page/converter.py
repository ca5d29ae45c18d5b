"""vl-convert: the JavaScript that draws Vega-Lite in a page, and figures as files."""

import base64
import functools
import gzip
import io
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fastkd.errors import MissingDependencyError

VERSION = "6.4"
"""Of Vega-Lite, that figures are the same under other versions of vl-convert, which bring several."""


def load_converter() -> ModuleType:
    """vl-convert.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import vl_convert
    except ImportError:
        raise MissingDependencyError(
            "figures need vl-convert-python, which is not installed: pip install 'fastkd[report]'"
        ) from None
    return vl_convert


@functools.cache
def packed_code() -> str:
    """The JavaScript that draws specifications, as gzip in base64: 0.4 MB."""
    bundle = load_converter().javascript_bundle(vl_version=VERSION)
    return base64.b64encode(gzip.compress(bundle.encode(), mtime=0)).decode()


def draw_svg(spec: Mapping[str, Any], mark: str) -> str:
    """A figure as SVG, marked by what made it."""
    text = load_converter().vegalite_to_svg(dict(spec), vl_version=VERSION)
    names: dict[str, str] = {}  # of clips, which vl-convert counts on from figure to figure

    def renamed(found: re.Match[str]) -> str:
        return found[1] + names.setdefault(found[2], f"clip{len(names)}")

    return re.sub(r'(id="|url\(#)(clip\d+)', renamed, text).replace(">", f"><!-- {mark} -->", 1)


def draw_png(spec: Mapping[str, Any], mark: str) -> bytes:
    """A figure as PNG, marked by what made it."""
    drawn = load_converter().vegalite_to_png(dict(spec), vl_version=VERSION, scale=2)
    about, content = PngInfo(), io.BytesIO()
    about.add_text("Software", mark)
    Image.open(io.BytesIO(drawn)).save(content, "PNG", pnginfo=about)
    return content.getvalue()
