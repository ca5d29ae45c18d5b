"""The code of a notebook, run in order without Jupyter: Python in this process, and `!fastkd …` as the command line has it."""

import ast
import json
import shlex
from pathlib import Path
from typing import Any

from helpers.commands import fastkd


def run_notebook(path: Path) -> list[Any]:
    """Runs all cells in the folder at hand; gives what those show that end with an expression.

    Raises:
        AssertionError: a command that failed.
    """
    names: dict[str, Any] = {}
    shown = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
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
