"""The code of a notebook, run in order without Jupyter: Python in this process, and `!fastkd …` as the command line has it."""

import ast
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helpers.commands import fastkd


def run_notebook(path: Path, sizes: Mapping[str, str]) -> list[Any]:
    """Runs all cells in the folder at hand; gives what those show that end with an expression.

    Args:
        sizes: what stands there as a size → the smaller one that is taken.

    Raises:
        AssertionError: a command that failed, or a size that stands nowhere.
    """
    text = path.read_text(encoding="utf-8")
    for size, smaller in sizes.items():
        assert size in text
        text = text.replace(size, smaller)
    names: dict[str, Any] = {}
    shown = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            continue
        if source.startswith("!"):
            for line in source.replace("\\\n", " ").splitlines():
                program, *words = shlex.split(line.removeprefix("!"))
                assert program == "fastkd", line
                outcome = fastkd(*words)
                assert outcome.code == 0, outcome.err
            continue
        body = ast.parse(source).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), path.name, "exec"), names)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), path.name, "eval"), names))
    return shown
