"""Suites: what their grids come to, and the place of every fault."""

import pytest
from helpers.suites import GRID, read

from fastkd.errors import OptionError
from fastkd.sweep.suite.places import key_lines

SECTIONS = GRID[: GRID.index("[matrix]")]


def grid(text: str) -> list[dict[str, object]]:
    """The cells of a grid, dotted key → value."""
    return [{".".join(name): value for name, value in cell.items()} for cell in read(SECTIONS + text).cells]


def test_a_matrix_is_the_product_of_its_lists():
    cells = grid("[matrix]\nprune.keep = [0.1, 0.3]\ntrain.tau = [2, 4]")
    assert [(cell["prune.keep"], cell["train.tau"]) for cell in cells] == [(0.1, 2), (0.1, 4), (0.3, 2), (0.3, 4)]


def test_the_rows_of_a_zip_go_together_and_with_each_of_the_matrix():
    cells = grid("[matrix]\ntrain.tau = [2, 4]\n[zip]\nprune.keep = [0.1, 0.3]\ntrain.epochs = [6, 2]")
    assert [(cell["train.tau"], cell["prune.keep"], cell["train.epochs"]) for cell in cells] == [
        *[(2, 0.1, 6), (2, 0.3, 2)],
        *[(4, 0.1, 6), (4, 0.3, 2)],
    ]


def test_what_is_excluded_is_left_out():
    cells = grid("[matrix]\nprune.keep = [0.1, 0.3]\ntrain.tau = [2, 4]\n[[exclude]]\nprune.keep = 0.3\ntrain.tau = 2")
    assert [(cell["prune.keep"], cell["train.tau"]) for cell in cells] == [(0.1, 2), (0.1, 4), (0.3, 4)]


def test_an_include_adds_to_the_cells_that_it_fits_and_is_a_cell_of_its_own_where_it_fits_none():
    """The example of GitHub's documentation, in fastkd's words."""
    cells = grid(
        "[matrix]\nprune.keep = [0.1, 0.3]\ntrain.tau = [2, 4]\n"
        "[[include]]\ntrain.lr = 0.1\n"
        "[[include]]\ntrain.lr = 0.2\ntrain.tau = 4\n"
        "[[include]]\nprune.keep = 0.1\ntrain.momentum = 0.5\n"
        "[[include]]\nprune.keep = 0.7\n"
        "[[include]]\nprune.keep = 0.7\ntrain.tau = 4\n"
    )
    assert cells == [
        {"prune.keep": 0.1, "train.tau": 2, "train.lr": 0.1, "train.momentum": 0.5},
        {"prune.keep": 0.1, "train.tau": 4, "train.lr": 0.2, "train.momentum": 0.5},
        {"prune.keep": 0.3, "train.tau": 2, "train.lr": 0.1},
        {"prune.keep": 0.3, "train.tau": 4, "train.lr": 0.2},
        {"prune.keep": 0.7},
        {"prune.keep": 0.7, "train.tau": 4},
    ]


def test_a_scale_and_then_sets_are_laid_over_the_suite():
    text = GRID + "[scale.smoke]\ntrain.epochs = 1\ntrain.lr = 0.2\nmatrix.seed = [0]\n"
    suite = read(text, "train.lr=0.3", "prune.keep=0.2", scale="smoke")
    assert suite.sections["train"] == {"model": "resnet8", "epochs": 1, "lr": 0.3}
    assert {cell["prune", "keep"] for cell in suite.cells} == {0.2}
    assert {cell["seed",] for cell in suite.cells} == {0}


def test_a_suite_without_a_table_for_it_is_its_own_full_scale():
    assert read(scale="full").cells == read().cells


@pytest.mark.parametrize(
    ("fault", "line", "words"),
    [
        ("[train]\nepohcs = 3", 2, "train has no option 'epohcs'"),
        ("[train]\nepochs = 1.5", 2, "epochs is 1.5, expected an integer"),
        ("[train]\nout = 'x'", 2, "given its out by the sweep"),
        ("[train]\nsource = 'disk'", 2, "expected one of store, live, labels"),
        ("[train]\nteacher = 'huge'", 2, "no [teacher.huge]"),
        ("[cache-logits]\nnum-seeds = 3", 2, "say it in [train]"),
        ("[cache-logits]\ncodec = 'zip'", 2, "'zip' is not one of auto"),
        ("[prune]\nlevel = 'soft'", 2, "'soft' is not one of"),
        ("[teacher.big]\nmodle = 'resnet8'", 2, "neither train nor prune has an option 'modle'"),
        ("[report]\ny = 'fraction'", 2, "[report] has no 'y'"),
        ("[matrx]\nseed = [0]", 1, "[matrx] is nothing of a suite"),
        ("[matrix]\nseed = 3", 2, "is no list of values"),
        ("[matrix]\nseed = []", 2, "is no list of values"),
        ("[matrix]\nseed = [0, 'a']", 2, "expected a whole number"),
        ("[matrix]\ntrain.epochs = [1,\n  'a']", 2, 'epochs is "a", expected an integer'),
        ("[matrix]\nteacher.tiny.keep = [0.1]", 2, "teacher.tiny.keep is no key of a grid"),
        ("[zip]\nseed = [0, 1]\ntrain.lr = [0.1]", 1, "lists of 1, 2 values do not go together"),
        ("[matrix]\nseed = [0]\n[[exclude]]\nseed = 1", 3, "fits no cell"),
        ("[matrix]\nseed = [0]\n[[exclude]]\nseed = 0", 1, "the grid is empty"),
        ("[matrix]\nseed = [0]\n[[include]]\ntrain.epohcs = 1", 4, "train has no option 'epohcs'"),
        ("[include]\nseed = 1", 1, "write [[include]] for each"),
        ("threads = 0", 1, "expected at least 1"),
        ("seed = 1.5", 1, "expected a whole number"),
    ],
)
def test_a_fault_is_told_with_its_line(fault, line, words):
    with pytest.raises(OptionError) as caught:
        read(fault)
    assert str(caught.value).startswith(f"s.toml, line {line}: ")
    assert words in str(caught.value)


def test_what_is_no_toml_is_told_with_tomls_own_place():
    with pytest.raises(OptionError, match=r"s.toml: .*line 2"):
        read("[train]\nepochs = = 3")


def test_a_fault_of_a_set_is_told_with_the_set():
    with pytest.raises(OptionError, match=r"--set train\.epochs=many: epochs is"):
        read(GRID, "train.epochs=many")


def test_lines_are_found_in_tables_arrays_of_tables_and_dotted_keys():
    lines = key_lines('a = 1\n[b]\n"c".d = 2\n\n[[e]]\nf = 3\n[[e]] # again\nf = 4\n')
    assert lines == {
        **{("a",): 1, ("b",): 2, ("b", "c"): 3, ("b", "c", "d"): 3},
        **{("e", 0): 5, ("e", 0, "f"): 6, ("e", 1): 7, ("e", 1, "f"): 8},
    }
