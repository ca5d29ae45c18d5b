import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.commands import fastkd
from helpers.damage import flip_bits_apart

from fastkd.artefact import write_artefact
from fastkd.data.beton.read import identify, open_beton
from fastkd.errors import CorruptError, FormatError
from fastkd.prune.masks.mask import Mask
from fastkd.prune.masks.origin import without_seeds
from fastkd.prune.scores.features import save_features
from fastkd.prune.scores.score_file import load_scores, save_scores
from fastkd.prune.select.levels import select_level

HARD = {"direction": "high = hard", "policies": {}}


def hardness(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(600).astype(np.float32)


def write_scores(path: Path, beton: Path, extras: bool = True, **values: np.ndarray) -> Path:
    further = {"target_prob_mean": np.linspace(0.01, 0.99, len(next(iter(values.values()))))} if extras else {}
    methods = dict.fromkeys(values, HARD)
    save_scores(path, values, methods, beton_fingerprint=identify(open_beton(beton))[0], extras=further)
    return path


@pytest.fixture(scope="module")
def scores(raw_beton, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prune") / "s.h5"
    return write_scores(path, raw_beton, el2n=hardness(), aum=hardness(1))


@pytest.fixture(scope="module")
def features(raw_beton, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prune") / "f.h5"
    values = np.random.default_rng(3).normal(size=(600, 6))
    save_features(path, values, beton_fingerprint=identify(open_beton(raw_beton))[0], inputs={}, params={})
    return path


def pruned(beton: Path, out: Path, *arguments: object) -> Mask:
    outcome = fastkd("prune", beton, "--out", out, *arguments)
    assert outcome.code == 0, outcome.err
    return Mask.load(out)


BY_METHOD = {
    "scores": ("--scores", "S", "--score", "el2n", "--level", "moderate", "--balance", "proportional"),
    "moderate": ("--features", "F"),
    "ccs": ("--scores", "S", "--score", "el2n", "--drop-hardest", 0.2),
    "d2": ("--scores", "S", "--score", "el2n", "--features", "F", "--drop-hardest", 0.1),
    "dual-beta": ("--scores", "S", "--score", "el2n", "--exponent", 4),
}


@pytest.mark.parametrize("method", sorted(BY_METHOD))
def test_every_method_keeps_what_is_asked_for_and_says_how(method, raw_beton, scores, features, tmp_path):
    arguments = [{"S": scores, "F": features}.get(a, a) for a in BY_METHOD[method]]
    mask = pruned(raw_beton, tmp_path / "m.h5", "--keep", 0.1, "--method", method, *arguments)
    assert len(mask.sample_ids) == 60
    assert mask.header.params["method"] == method
    assert mask.header.params["balance"] in ("equal", "proportional", "none")
    expected = {"scores": load_scores(scores).header.fingerprint} if "S" in BY_METHOD[method] else {}
    assert expected.items() <= mask.header.inputs.items()
    again = pruned(raw_beton, tmp_path / "again.h5", "--keep", 0.1, "--method", method, *arguments)
    assert again.header.fingerprint == mask.header.fingerprint


@pytest.mark.parametrize("method", [name for name in sorted(BY_METHOD) if name != "dual-beta"])
def test_masks_are_nested_across_fractions(method, raw_beton, scores, features, tmp_path):
    arguments = [{"S": scores, "F": features}.get(a, a) for a in BY_METHOD[method]]
    small, large = (
        pruned(raw_beton, tmp_path / f"{keep}.h5", "--keep", keep, "--method", method, *arguments).sample_ids
        for keep in (0.1, 0.35)
    )
    assert small.tolist() == large[:60].tolist()


def test_the_hardest_of_each_class(raw_beton, scores, tmp_path):
    arguments = ["--method", "scores", "--scores", scores, "--score", "el2n", "--balance", "equal"]
    mask = pruned(raw_beton, tmp_path / "m.h5", "--keep", 50, *arguments)
    labels = open_beton(raw_beton).labels
    for label in range(10):
        members = np.flatnonzero(labels == label)
        best = members[np.argsort(-hardness()[members])[:5]]
        assert set(mask.sample_ids[labels[mask.sample_ids] == label].tolist()) == set(best.tolist())


def test_several_score_files_count_by_their_mean(raw_beton, tmp_path):
    paths = [write_scores(tmp_path / f"{i}.h5", raw_beton, el2n=hardness(i)) for i in range(3)]
    flags = [part for path in paths for part in ("--scores", path)]
    mask = pruned(raw_beton, tmp_path / "m.h5", "--keep", 40, "--method", "scores", *flags)
    mean = np.mean([hardness(i).astype(float) for i in range(3)], axis=0)
    assert mask.sample_ids.tolist() == np.argsort(-mean)[:40].tolist()
    assert len(mask.header.inputs) == 4


def test_dual_beta_takes_dual_scores_where_several_are_there(raw_beton, tmp_path):
    path = write_scores(tmp_path / "s.h5", raw_beton, aum=hardness(1), dual=hardness(2))
    flags = ["--method", "dual-beta", "--scores", path, "--exponent", 4]
    assert pruned(raw_beton, tmp_path / "m.h5", "--keep", 0.1, *flags).header.params["score"] == "dual"


def test_masks_are_combined(raw_beton, tmp_path):
    a, b = (
        pruned(raw_beton, tmp_path / f"{seed}.h5", "--keep", 100, "--seed", seed).sample_ids.tolist() for seed in (1, 2)
    )
    expected = {
        "union": a + [i for i in b if i not in a],
        "intersection": [i for i in a if i in b],
        "difference": [i for i in a if i not in b],
    }
    for method, ids in expected.items():
        flags = ["--method", method, "--mask", tmp_path / "1.h5", "--mask", tmp_path / "2.h5"]
        assert pruned(raw_beton, tmp_path / f"{method}.h5", *flags).sample_ids.tolist() == ids
    left = pruned(raw_beton, tmp_path / "m.h5", "--method", "complement", "--mask", tmp_path / "1.h5", "--keep", 17)
    assert left.sample_ids.tolist() == sorted(set(range(600)) - set(a))[:17]


def test_combined_masks_say_of_what_and_tell_seeds_from_choices(raw_beton, tmp_path):
    for seed, keep in ((1, 100), (2, 100), (3, 90)):
        pruned(raw_beton, tmp_path / f"{seed}.h5", "--keep", keep, "--seed", seed)
    made = {}
    for seed in (1, 2, 3):
        flags = ["--method", "complement", "--mask", tmp_path / f"{seed}.h5"]
        made[seed] = pruned(raw_beton, tmp_path / f"not-{seed}.h5", *flags).header
        (of,) = made[seed].params["of"]
        assert (of["method"], of["seed"], of["keep"]) == ("random", seed, "90" if seed == 3 else "100")
    one, drawn_anew, smaller = (
        without_seeds({**h.params, "inputs": h.inputs, "fingerprint": h.fingerprint}) for h in made.values()
    )
    assert one == drawn_anew
    assert one != smaller
    twice = ["--method", "union", "--mask", tmp_path / "not-1.h5", "--mask", tmp_path / "3.h5"]
    inner = pruned(raw_beton, tmp_path / "twice.h5", *twice).header.params["of"][0]
    assert inner["of"][0]["seed"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--keep", 0.1, "--scores", "S"], "--scores does nothing with --method random"),
        (["--keep", 0.1, "--level", "easy"], "--level does nothing with --method random"),
        (["--keep", 0.1, "--method", "scores"], "--method scores needs --scores"),
        (
            ["--keep", 0.1, "--method", "scores", "--scores", "S"],
            "holds scores aum, el2n; choose one with --score NAME",
        ),
        (["--keep", 0.1, "--method", "scores", "--scores", "S", "--score", "grand"], "not grand"),
        (["--keep", 0.1, "--method", "scores", "--scores", "S", "--strata", 5], "--strata does nothing"),
        (["--keep", 0.1, "--method", "moderate"], "--method moderate needs --features, or --scores"),
        (["--keep", 0.1, "--method", "d2", "--scores", "S"], "--method d2 needs --features"),
        (["--keep", 0.1, "--method", "dual-beta", "--scores", "S", "--score", "el2n"], "needs --exponent"),
        (
            ["--keep", 0.1, "--method", "dual-beta", "--scores", "S", "--score", "el2n", "--exponent", 0],
            "--exponent 0.0: expected a number above 0",
        ),
        (
            ["--keep", 0.9, "--method", "ccs", "--scores", "S", "--score", "el2n", "--drop-hardest", 0.3],
            "--drop-hardest 0.3 leaves 420 of 600",
        ),
        (
            ["--keep", 0.1, "--method", "ccs", "--scores", "S", "--score", "el2n", "--drop-hardest", 1],
            "--drop-hardest 1.0: expected",
        ),
        (["--keep", 0.1, "--method", "scores", "--scores", "F"], "is a features, expected a scores"),
        (["--keep", 0.1, "--method", "scores", "--scores", "nowhere.h5"], "nowhere.h5: no such file"),
        (["--method", "union", "--mask", "M"], "--method union takes 2 --mask, 1 are given"),
        (["--method", "union", "--mask", "M", "--mask", "S"], "is a scores, expected a mask"),
        (["--method", "difference", "--mask", "M", "--mask", "M"], "holds no samples"),
        (["--method", "union", "--mask", "M", "--mask", "M", "--keep", 500], "--keep 500 is 500 samples, the union"),
        (["--method", "complement", "--mask", "M", "--balance", "equal"], "--balance does nothing"),
    ],
)
def test_what_makes_no_sense_is_one_line(arguments, words, raw_beton, scores, features, raw_mask, tmp_path):
    files = {"S": scores, "F": features, "M": raw_mask}
    outcome = fastkd("prune", raw_beton, "--out", tmp_path / "m.h5", *[files.get(a, a) for a in arguments])
    assert outcome.code == 1
    assert words in outcome.err
    assert outcome.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value"), [("--exponent", -1), ("--strata", 0), ("--neighbours", -2), ("--drop-hardest", 2)]
)
def test_a_number_outside_its_range_is_a_usage_error(option, value, raw_beton, tmp_path):
    outcome = fastkd("prune", raw_beton, "--out", tmp_path / "m.h5", "--keep", 0.1, option, value)
    assert outcome.code == 2
    assert f"Invalid value for '{option}'" in outcome.err
    assert list(tmp_path.iterdir()) == []


def refused(beton: Path, scores: Path, out: Path) -> str:
    outcome = fastkd("prune", beton, "--keep", 0.1, "--method", "scores", "--scores", scores, "--out", out)
    assert outcome.code == 1
    assert outcome.err.count("\n") == 1
    assert not out.exists()
    return outcome.err


def test_scores_of_another_data_set_are_refused(photo_raw, scores, tmp_path):
    assert "made for another beton" in refused(photo_raw, scores, tmp_path / "m.h5")


def test_undefined_scores_are_refused(raw_beton, tmp_path):
    values = hardness()
    values[[7, 9]] = np.nan
    path = write_scores(tmp_path / "s.h5", raw_beton, el2n=values)
    assert "2 of 600 el2n scores are NaN, that of sample 7 the first" in refused(raw_beton, path, tmp_path / "m.h5")


def test_scores_of_another_number_of_samples_are_refused(raw_beton, tmp_path):
    path = write_scores(tmp_path / "s.h5", raw_beton, el2n=hardness()[:500])
    assert "scores of 500 samples" in refused(raw_beton, path, tmp_path / "m.h5")


def test_scores_of_two_meanings_are_not_averaged(raw_beton, scores, tmp_path):
    fingerprint = identify(open_beton(raw_beton))[0]
    other = {"el2n": {"direction": "high = hard", "policies": {"epochs": 3}}}
    save_scores(tmp_path / "s.h5", {"el2n": hardness()}, other, beton_fingerprint=fingerprint)
    flags = ["--scores", scores, "--scores", tmp_path / "s.h5", "--score", "el2n"]
    outcome = fastkd("prune", raw_beton, "--keep", 9, "--method", "scores", *flags, "--out", tmp_path / "m.h5")
    assert outcome.code == 1
    assert "'epochs': 3" in outcome.err


def test_dual_beta_without_mean_probabilities_is_refused(raw_beton, tmp_path):
    path = write_scores(tmp_path / "s.h5", raw_beton, extras=False, dual=hardness())
    flags = ["--method", "dual-beta", "--scores", path, "--exponent", 4]
    outcome = fastkd("prune", raw_beton, "--keep", 9, *flags, "--out", tmp_path / "m.h5")
    assert "has no target_prob_mean" in outcome.err


def test_a_score_file_reads_back_and_is_readable_with_plain_h5py(scores):
    read = load_scores(scores)
    assert np.array_equal(read.values["el2n"], hardness())
    assert read.methods == {"el2n": HARD, "aum": HARD}
    with h5py.File(scores) as file:
        assert np.array_equal(file["scores/aum"][...], hardness(1))
        assert bytes(file["scores/aum"].attrs["direction"]) == b"high = hard"
        assert json.loads(file["scores/aum"].attrs["policies"]) == {}


def test_a_flipped_bit_of_a_score_file_is_refused_or_changes_nothing(raw_beton, tmp_path):
    write_scores(tmp_path / "s.h5", raw_beton, el2n=hardness()[:20], aum=hardness()[20:40])
    outcomes = flip_bits_apart(tmp_path / "s.h5", "scores", 1200)
    assert not outcomes["wrong"]
    assert outcomes["refused"]


def test_every_cut_of_a_score_file_is_refused(scores, tmp_path):
    whole = scores.read_bytes()
    for length in [*range(0, len(whole), 211), len(whole) - 1]:
        (tmp_path / "s.h5").write_bytes(whole[:length])
        with pytest.raises((FormatError, CorruptError), match=r"s\.h5"):
            load_scores(tmp_path / "s.h5")


@pytest.mark.parametrize(
    "params",
    [{}, {"methods": {}, "extras": []}, {"methods": ["el2n"], "extras": []}, {"methods": {"x": {}}, "extras": []}],
)
def test_a_file_that_does_not_say_what_it_holds_is_refused(params, tmp_path):
    write_artefact(tmp_path / "s.h5", kind="scores", format_version=1, inputs={}, params=params, arrays={})
    with pytest.raises(FormatError, match=r"s\.h5"):
        load_scores(tmp_path / "s.h5")


def test_the_library_keeps_what_the_command_keeps(raw_beton, scores, tmp_path):
    mask = pruned(
        raw_beton, tmp_path / "m.h5", "--keep", 99, "--method", "scores", "--scores", scores, "--score", "aum"
    )
    labels = open_beton(raw_beton).labels
    found = select_level(labels, 99, scores=hardness(1), level="hard", balance="none")
    assert mask.sample_ids.tolist() == found.tolist()


LIGHT = """
import sys
from fastkd.cli import cli

cli(sys.argv[1:], standalone_mode=False)
assert not {"torch", "ffcv", "numba", "scipy"} & set(sys.modules), "what takes long to load was loaded"
"""


def test_prune_and_inspect_load_no_torch_ffcv_or_numba(raw_beton, tmp_path):
    mask, beton = str(tmp_path / "m.h5"), str(raw_beton)
    for command in (["prune", beton, "--keep", "0.5", "--out", mask], ["inspect", mask], ["inspect", beton]):
        subprocess.run([sys.executable, "-c", LIGHT, *command], check=True, capture_output=True)
