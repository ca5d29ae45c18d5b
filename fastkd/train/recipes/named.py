"""Recipes by name: TOML files beside this one, each with its source, of options of `fastkd train`."""

import tomllib
from pathlib import Path
from typing import Any

NAMED = tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.toml")))


def read_named(name: str) -> tuple[dict[str, Any], str]:
    """A recipe of NAMED: the values of options by their keys in a file of `--config`; and what its source asks for besides,
    which fastkd does not do: words with commas between them, empty where there is nothing."""
    content = tomllib.loads((Path(__file__).parent / f"{name}.toml").read_text(encoding="utf-8"))
    return content["train"], content.get("left-out", "")
