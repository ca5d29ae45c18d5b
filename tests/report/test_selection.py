import dataclasses
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import fastkd
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastkd.data.beton.dataset import open_dataset
from fastkd.data.beton.read import identify, open_beton
from fastkd.prune.scores.score_file import save_scores
from fastkd.report.gallery import gallery_rows, write_gallery
from fastkd.report.selection import spearman, summary

DESCRIBED = {"el2n": {"direction": "high = hard", "policies": {}}}


def write(path: Path, beton: Path, values: np.ndarray) -> Path:
    save_scores(path, {"el2n": values}, DESCRIBED, beton_fingerprint=identify(open_beton(beton))[0])
    return path


@pytest.fixture(scope="module")
def scores(raw_beton, tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("selection") / "s.h5", raw_beton, np.arange(600.0))


@given(st.lists(st.integers(0, 5), min_size=2, max_size=40), st.integers(0, 10**6))
def test_spearman_is_scipys(values, seed):
    from scipy.stats import spearmanr

    other = np.random.default_rng(seed).integers(0, 4, len(values))
    found = spearman(np.array(values), other)
    if len(set(values)) == 1 or len(set(other.tolist())) == 1:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(values, other).statistic, abs=1e-12)


def test_a_summary_counts_what_is_no_number_apart():
    found = summary(np.array([0, 1, 1, np.nan, np.inf], np.float32))
    assert (found["undefined"], found["infinite"], found["distinct"]) == (1, 1, 2)
    assert sum(found["histogram"]["counts"]) == 3
    assert "histogram" not in summary(np.full(3, np.nan, np.float32))


def test_inspect_shows_scores_as_a_histogram(scores):
    found = fastkd("inspect", scores, "--json").result
    assert (found["kind"], found["num_samples"]) == ("scores", 600)
    assert found["scores"]["el2n"]["histogram"]["counts"] == [30] * 20
    assert fastkd("inspect", scores).out.count("█" * 40) == 20


def test_scores_are_compared_with_those_of_another_seed(scores, raw_beton, tmp_path):
    other = write(tmp_path / "o.h5", raw_beton, -(np.arange(600.0) ** 3))
    found = fastkd("inspect", scores, "--compare", other, "--json").result["compare"]["el2n"]
    assert found == {"num_samples": 600, "spearman": pytest.approx(-1), "jaccard_10_percent": 0}
    same = fastkd("inspect", scores, "--compare", scores, "--json").result["compare"]["el2n"]
    assert (same["spearman"], same["jaccard_10_percent"]) == (pytest.approx(1), 1)


def test_masks_are_compared_and_counted_by_class(raw_beton, tmp_path):
    for keep in (60, 120):
        assert fastkd("prune", raw_beton, "--keep", keep, "--out", tmp_path / f"{keep}.h5").code == 0
    flags = ["--compare", tmp_path / "120.h5", "--beton", raw_beton]
    found = fastkd("inspect", tmp_path / "60.h5", *flags, "--json").result
    assert found["compare"] == {"shared": 60, "jaccard": 0.5}
    assert found["class_counts"]["class3"] == {"kept": 6, "all": 60}


def test_the_gallery_shows_the_hardest_first(scores, raw_beton, tmp_path):
    found = fastkd("inspect", scores, "--beton", raw_beton, "--gallery", tmp_path / "g.png", "--count", 5, "--json")
    assert found.result["gallery"] == str(tmp_path / "g.png")
    with Image.open(tmp_path / "g.png") as sheet:
        assert sheet.size[0] == 10 * 68 + 4
        assert len(sheet.getcolors(10**6)) > 1000
    rows = gallery_rows(np.arange(600.0, dtype=np.float32), 3)
    assert {name: ids.tolist() for name, ids in rows.items()} == {
        "highest": [599, 598, 597],
        "middle": [300, 299, 301],
        "lowest": [0, 1, 2],
    }


def test_the_gallery_of_a_mask_is_the_same_each_time(raw_beton, tmp_path):
    assert fastkd("prune", raw_beton, "--keep", 60, "--out", tmp_path / "m.h5").code == 0
    for name in ("a.png", "b.png"):
        line = ("inspect", tmp_path / "m.h5", "--beton", raw_beton, "--gallery", tmp_path / name, "--count", 12)
        assert fastkd(*line).code == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_words_of_the_gallery_stay_in_their_places(raw_beton, tmp_path):
    dataset = open_dataset(raw_beton)
    rows = {"some": np.arange(3)}
    sheets = []
    for words in ("short", "long " * 100, "of\ntwo lines", "\x1b[31m", "日本"):
        named = dataclasses.replace(dataset, class_names=[words] * len(dataset.class_names))
        write_gallery(tmp_path / "g.png", named, rows, None, title=words, meaning=words, force=True)
        with Image.open(tmp_path / "g.png") as sheet:
            sheets.append(np.array(sheet))
    pictures = [sheet[80:140] for sheet in sheets]
    assert all((picture == pictures[0]).all() for picture in pictures)


def test_undefined_samples_are_not_shown():
    values = np.array([np.nan, 5, 1, np.nan, 3], np.float32)
    assert gallery_rows(values, 9)["highest"].tolist() == [1, 4, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["S", "--gallery", "g.png"], "--gallery needs --beton"),
        (["S", "--beton", "B", "--gallery", "g.jpg"], "expected a name that ends in .png"),
        (["S", "--beton", "B", "--gallery", "g.png", "--score", "aum"], "holds scores el2n, not aum"),
        (["S", "S", "--compare", "S"], "are for one mask or score file"),
        (["B", "--compare", "S"], "are for one mask or score file"),
        (["S", "--compare", "M"], "is a mask, expected a scores"),
        (["M", "--compare", "S"], "is a scores, expected a mask"),
        (["S", "--compare", "nowhere.h5"], "no such file"),
        (["S", "--beton", "P"], "made for another beton"),
    ],
)
def test_what_cannot_be_looked_at_is_one_line(arguments, words, scores, raw_beton, raw_mask, photo_raw, tmp_path):
    files = {"S": scores, "B": raw_beton, "M": raw_mask, "P": photo_raw}
    named = [files.get(a, tmp_path / a if a.startswith("g.") else a) for a in arguments]
    outcome = fastkd("inspect", *named)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1), outcome.err
    assert words in outcome.err
    assert list(tmp_path.iterdir()) == []
