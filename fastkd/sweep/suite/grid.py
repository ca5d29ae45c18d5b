"""The cells of a grid: [matrix], [zip], [[include]] and [[exclude]], as GitHub Actions has them."""

import itertools
from collections.abc import Callable
from typing import Any

from fastkd.errors import OptionError
from fastkd.sweep.suite.places import Path, flat

Cell = dict[tuple[str, ...], Any]
"""What one run has of its own: dotted key, split → value."""


def cells_of(content: dict[str, Any], place: Callable[[Path], str]) -> list[Cell]:
    """All combinations of the matrix's lists and of the rows of each zip, without those excluded, with those included.

    What is excluded has all values of an [[exclude]]. An [[include]] is added to every combination whose values of the grid
    it does not change; one that fits none is a cell of its own.

    Args:
        content: of the suite, its lists checked.

    Raises:
        OptionError: a key in two places; an [[exclude]] that fits nothing.
    """
    axes: list[list[Cell]] = [
        [{path: value} for value in values] for path, values in flat(content.get("matrix", {})).items()
    ]
    zips = content.get("zip", [])
    for one in zips if isinstance(zips, list) else [zips]:
        table = flat(one)
        axes.append([dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)])
    names = [name for axis in axes for name in axis[0]]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"{place(('zip',))}: {'.'.join(name)} has two lists in the grid, expected one")
    combinations: list[Cell] = [
        {name: value for part in parts for name, value in part.items()} for parts in itertools.product(*axes)
    ]
    for number, table in enumerate(content.get("exclude", [])):
        wanted = flat(table)
        left = [
            cell for cell in combinations if not all(name in cell and cell[name] == wanted[name] for name in wanted)
        ]
        if len(left) == len(combinations):
            raise OptionError(f"{place(('exclude', number))}: fits no cell of the grid: correct it, or leave it out")
        combinations = left
    cells = [dict(cell) for cell in combinations] if axes else []
    added: list[Cell] = []
    for table in content.get("include", []):
        more = flat(table)
        fits = [
            cell
            for cell, original in zip(cells, combinations, strict=False)
            if all(name not in original or original[name] == value for name, value in more.items())
        ]
        for cell in fits:
            cell |= more
        added += [] if fits else [more]
    cells += added
    if not axes and not added:
        cells = [{}]
    found: list[Cell] = []
    for cell in cells:
        if cell not in found:
            found.append(cell)
    return found
