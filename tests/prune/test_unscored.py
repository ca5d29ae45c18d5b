"""Samples without a score: refused, or left out of the choice while all others keep their place in it."""

from pathlib import Path

import numpy as np
import pytest
from helpers.commands import fastkd

from fastkd.data.beton.read import identify, open_beton
from fastkd.errors import OptionError
from fastkd.prune.masks.mask import Mask
from fastkd.prune.scores.score_file import load_scores, save_scores
from fastkd.prune.select.levels import select_level
from fastkd.prune.select.methods import Candidates, choose, options_of

RNG = np.random.default_rng(7)
LABELS = RNG.integers(0, 5, 300)
SCORES = np.round(RNG.normal(size=300), 1).astype(np.float32)  # many are equal
UNSCORED = np.sort(RNG.permutation(300)[:60])
POOL = ~np.isin(np.arange(300), UNSCORED)
OPTIONS = {
    "scores": {"level": "moderate", "balance": "proportional"},
    "moderate": {"balance": "equal"},
    "ccs": {"drop_hardest": 0.2, "strata": 7, "balance": "equal"},
    "d2": {"drop_hardest": 0.1, "neighbours": 3},
}


def candidates(num_more: int = 0, *, pool: np.ndarray | None = None) -> Candidates:
    """The 300 samples with NaN outside the pool; `num_more` unscored ones come after them."""
    more = np.full(num_more, np.nan, np.float32)
    scores = np.r_[SCORES if pool is None else np.where(pool, SCORES, np.nan).astype(np.float32), more]
    pool = ~np.isnan(scores) if num_more or pool is not None else None
    labels, features = np.r_[LABELS, np.arange(num_more) % 5], np.random.default_rng(1).normal(size=(300, 4))
    features = np.r_[features, np.ones((num_more, 4))].astype(np.float32)
    return Candidates(labels=labels, scores=scores, hardness=-scores, features=features, pool=pool)


def chosen(method: str, known: Candidates, num_kept: int) -> list[int]:
    return choose(method, known, num_kept, seed=3, options=options_of(method, OPTIONS[method])).tolist()


@pytest.mark.parametrize("method", ["scores", "ccs", "d2"])
def test_samples_that_are_left_out_do_not_change_the_choice_among_the_others(method):
    assert chosen(method, candidates(200), 70) == chosen(method, candidates(), 70)


@pytest.mark.parametrize("method", ["scores", "ccs", "d2"])
def test_masks_among_the_others_are_nested(method):
    known = candidates(pool=POOL)
    whole = chosen(method, known, 180)
    assert not set(whole) & set(UNSCORED.tolist())
    assert len(set(whole)) == 180
    for count in (1, 33, 120):
        assert chosen(method, known, count) == whole[:count]


@pytest.mark.parametrize("level", ["hard", "easy"])
def test_equal_scores_are_in_the_random_order_of_the_sample_ids(level):
    equal = np.where(POOL, np.float32(0.5), np.float32(np.nan))
    found = select_level(LABELS, 100, scores=equal, level=level, balance="none", seed=9, pool=POOL)
    order = select_level(LABELS, 300, balance="none", seed=9)
    assert found.tolist() == [i for i in order if POOL[i]][:100]


def test_a_class_with_too_few_scores_gives_all_it_has():
    pool = POOL & ((LABELS != 2) | (np.cumsum(POOL & (LABELS == 2)) <= 4))
    found = select_level(LABELS, 104, scores=SCORES, balance="equal", pool=pool)
    assert np.bincount(LABELS[found]).tolist() == [25, 25, 4, 25, 25]


def test_a_nan_in_the_pool_and_too_small_a_pool_are_refused():
    with pytest.raises(OptionError, match="1 scores are NaN, that of sample 5 the first"):
        select_level(LABELS, 9, scores=np.where(np.arange(300) == 5, np.nan, SCORES), pool=np.arange(300) < 99)
    with pytest.raises(OptionError, match="241 samples to keep, but 240 of 300 have a score; keep fewer"):
        chosen("scores", candidates(pool=POOL), 241)


# From the command line


@pytest.fixture(scope="module")
def files(raw_beton, tmp_path_factory) -> dict[str, Path]:
    """Scores of all 600 samples, the same without those of every tenth, and files of another run without the first's."""
    folder = tmp_path_factory.mktemp("unscored")
    fingerprint, draws = identify(open_beton(raw_beton))[0], np.random.default_rng(0).random((2, 600))
    found = {}
    for name, values, step in (("all", draws[0], None), ("some", draws[0], 10), ("other", draws[1], 600)):
        if step:
            values = values.copy()
            values[::step] = np.nan
        methods = {"dual": {"direction": "high = hard", "policies": {}}}
        extras = {"target_prob_mean": draws[1]}
        found[name] = folder / f"{name}.h5"
        save_scores(found[name], {"dual": values}, methods, beton_fingerprint=fingerprint, extras=extras)
    return found


def prune(beton: Path, out: Path, scores: Path, *options: object):
    return fastkd("prune", beton, "--method", "scores", "--scores", scores, *options, "--out", out)


def test_the_command_leaves_them_out_and_says_how_many(raw_beton, files, tmp_path):
    told = prune(raw_beton, tmp_path / "m.h5", files["some"], "--keep", 0.5, "--unscored", "drop", "--json").result
    assert (told["num_kept"], told["fraction"], told["num_unscored"]) == (300, 0.5, 60)
    mask, values = Mask.load(tmp_path / "m.h5"), load_scores(files["some"]).values["dual"]
    assert (mask.header.params["unscored"], mask.header.params["num_unscored"]) == ("drop", 60)
    assert mask.header.inputs["scores"] == load_scores(files["some"]).header.fingerprint
    assert mask.sample_ids.tolist() == np.argsort(-np.nan_to_num(values, nan=-1))[:300].tolist()
    people = prune(raw_beton, tmp_path / "m.h5", files["some"], "--keep", 0.5, "--unscored", "drop")
    assert "; 60 without a score left out" in people.out


def test_where_all_have_a_score_nothing_changes(raw_beton, files, tmp_path):
    for name, flags in (("a", []), ("b", ["--unscored", "drop"])):
        assert prune(raw_beton, tmp_path / name, files["all"], "--keep", 0.2, *flags).code == 0
    a, b = (Mask.load(tmp_path / name).sample_ids for name in "ab")
    assert a.tolist() == b.tolist()


def test_of_several_files_every_one_must_have_the_score(raw_beton, files, tmp_path):
    flags = ["--scores", files["other"], "--keep", 60, "--unscored", "drop", "--json"]
    assert prune(raw_beton, tmp_path / "m.h5", files["some"], *flags).result["num_unscored"] == 60
    flags = ["--method", "dual-beta", "--exponent", 4, "--balance", "equal", *flags]
    assert prune(raw_beton, tmp_path / "dual.h5", files["some"], *flags).result["class_min"] == 6
    assert not (Mask.load(tmp_path / "dual.h5").sample_ids % 10 == 0).any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--keep", 60], "60 of 600 dual scores are NaN, that of sample 0 the first"),
        (["--keep", 60, "--unscored", "refuse"], "or choose among the others with --unscored drop"),
        (["--keep", 0.95, "--unscored", "drop"], "570 samples to keep, but 540 of 600 have a score; keep fewer"),
    ],
)
def test_what_cannot_be_chosen_is_one_line(options, words, raw_beton, files, tmp_path):
    outcome = prune(raw_beton, tmp_path / "m.h5", files["some"], *options)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert words in outcome.err
    assert not (tmp_path / "m.h5").exists()


def test_it_does_nothing_without_scores(raw_beton, tmp_path):
    outcome = fastkd("prune", raw_beton, "--keep", 9, "--unscored", "drop", "--out", tmp_path / "m.h5")
    assert outcome.err == "fastkd: error: --unscored does nothing with --method random, leave it out\n"
