import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import fastkd

from fastkd.data.beton.read import manifest_path, open_beton
from fastkd.prune.masks.mask import Mask
from fastkd.prune.scores.score_file import load_scores

VALUES = np.random.default_rng(0).random(600)


@pytest.fixture(scope="module")
def names(raw_beton) -> list[str]:
    return json.loads(manifest_path(raw_beton).read_text())["names"]


@pytest.fixture(scope="module")
def labels(raw_beton) -> np.ndarray:
    return open_beton(raw_beton).labels


def write_csv(path: Path, names, labels, values, order=None, header="filename,label,score") -> Path:
    order = range(len(names)) if order is None else order
    lines = [f"{names[i]},{labels[i]},{values[i]}" for i in order]
    path.write_text("\n".join([header] * bool(header) + lines) + "\n")
    return path


def brought(beton: Path, file: Path, *flags: object) -> np.ndarray:
    out = file.with_name("s.h5")
    outcome = fastkd("import-scores", beton, file, "--name", "x", *flags, "--out", out, "--force")
    assert outcome.code == 0, outcome.err
    return load_scores(out).values["x"]


def test_a_permuted_csv_with_file_names_gives_the_same_mask(raw_beton, names, labels, tmp_path):
    masks = []
    for name, order in (("a", None), ("b", np.random.default_rng(1).permutation(600))):
        (tmp_path / name).mkdir()
        file = write_csv(tmp_path / name / "el2n.csv", names, labels, VALUES.tolist(), order)
        assert np.array_equal(brought(raw_beton, file, "--higher", "hard"), VALUES.astype(np.float32))
        flags = ["--method", "scores", "--scores", tmp_path / name / "s.h5", "--out", tmp_path / f"{name}.h5"]
        assert fastkd("prune", raw_beton, "--keep", 0.2, *flags).code == 0
        masks.append(Mask.load(tmp_path / f"{name}.h5").sample_ids.tolist())
    assert masks[0] == masks[1]


def test_a_csv_without_a_header_has_names_first_and_scores_last(raw_beton, names, tmp_path):
    (tmp_path / "x.csv").write_text("".join(f"train/{n},{v!r}\n" for n, v in zip(names, VALUES.tolist(), strict=True)))
    assert np.array_equal(brought(raw_beton, tmp_path / "x.csv", "--higher", "easy"), -VALUES.astype(np.float32))


def test_a_npy_is_joined_by_position(raw_beton, tmp_path):
    np.save(tmp_path / "x.npy", VALUES)
    assert np.array_equal(brought(raw_beton, tmp_path / "x.npy", "--higher", "hard"), VALUES.astype(np.float32))


def test_feldmans_file_is_joined_by_name_and_high_is_hard(raw_beton, names, labels, tmp_path):
    order = np.random.default_rng(2).permutation(600)
    np.savez(
        tmp_path / "x.npz",
        tr_filenames=np.array([names[i].encode() for i in order]),
        tr_labels=labels[order],
        tr_mem=VALUES[order],
        tt_mem=VALUES[:5],
    )
    assert np.array_equal(brought(raw_beton, tmp_path / "x.npz"), VALUES.astype(np.float32))


def test_c_scores_are_turned_round(raw_beton, labels, tmp_path):
    np.savez(tmp_path / "cifar10-cscores-orig-order.npz", labels=labels, scores=VALUES)
    assert np.array_equal(
        brought(raw_beton, tmp_path / "cifar10-cscores-orig-order.npz"), (1 - VALUES).astype(np.float32)
    )


def test_a_torch_file_of_tensors_needs_no_trust(raw_beton, labels, tmp_path):
    tensors = {
        "targets": torch.tensor(labels),
        "el2n": torch.tensor(VALUES),
        "accumulated_margin": torch.tensor(-VALUES),
    }
    torch.save(tensors, tmp_path / "x.pt")
    for array in ("el2n", "accumulated_margin"):
        found = brought(raw_beton, tmp_path / "x.pt", "--array", array)
        assert np.array_equal(found, VALUES.astype(np.float32))


def test_a_pickle_is_read_only_where_it_is_trusted(raw_beton, labels, tmp_path):
    (tmp_path / "x.pickle").write_bytes(pickle.dumps({"targets": labels, "forgetting": VALUES}))
    found = brought(raw_beton, tmp_path / "x.pickle", "--trust-pickle")
    assert np.array_equal(found, VALUES.astype(np.float32))


class Bomb:
    """A pickle that leaves a file where it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("kind", ["pickle", "npy", "npz", "torch"])
def test_nothing_is_unpickled(kind, raw_beton, tmp_path):
    bomb, file = Bomb(tmp_path / "ran"), tmp_path / "x"
    if kind == "pickle":
        file.write_bytes(pickle.dumps({"scores": bomb}))
    elif kind == "torch":
        torch.save({"scores": bomb}, file)
    else:
        save = {"npy": np.save, "npz": lambda out, value: np.savez(out, scores=value)}[kind]
        with file.open("wb") as out:
            save(out, np.array([bomb], object))
    outcome = fastkd("import-scores", raw_beton, file, "--higher", "hard", "--out", tmp_path / "s.h5")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "holds pickled objects" in outcome.err
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "s.h5").exists()


def spoilt(what: str, names: list[str], labels: np.ndarray, path: Path) -> Path:
    names, labels, values = list(names), labels.tolist(), VALUES.tolist()
    if what == "missing":
        del names[3], labels[3], values[3]
    elif what == "label":
        labels[5] = (labels[5] + 1) % 10
    elif what == "class name":
        labels = ["nobody"] * 600
    elif what == "duplicate":
        names[7] = names[8]
    elif what == "nan":
        values[9] = float("nan")
    elif what == "word":
        values[9] = "high"
    elif what == "empty":
        values[9] = ""
    elif what == "label nan":
        labels[5] = float("nan")
    elif what == "half a label":
        labels[5] = 0.5
    elif what == "ragged":
        names[2] += ",more"
    return write_csv(path, names, labels, values)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("missing", "has no score for 1 of the 600 samples"),
        ("label", "1 of 600 labels differ"),
        ("class name", "600 of 600 labels differ"),
        ("duplicate", "is there 2 times, expected each file once"),
        ("nan", "1 of 600 scores are NaN, number 9 the first"),
        ("empty", "1 of 600 scores are NaN, number 9 the first"),
        ("word", "score holds"),
        ("label nan", "label holds 'nan', expected whole numbers or names of classes"),
        ("half a label", "label holds '0.5', expected whole numbers or names of classes"),
        ("ragged", "line 4 has 4 columns, the first has 3"),
    ],
)
def test_a_spoilt_csv_is_one_line(what, words, raw_beton, names, labels, tmp_path):
    file = spoilt(what, names, labels, tmp_path / "x.csv")
    refused(raw_beton, file, words, "--higher", "hard")


@pytest.mark.parametrize(("what", "at"), [("missing", 3), ("nan", 9), ("empty", 9)])
def test_samples_without_a_score_are_imported_as_undefined_where_asked(what, at, raw_beton, names, labels, tmp_path):
    file = spoilt(what, names, labels, tmp_path / "x.csv")
    found = brought(raw_beton, file, "--higher", "easy", "--unscored", "keep")
    assert np.flatnonzero(np.isnan(found)).tolist() == [at]
    assert np.array_equal(np.delete(found, at), np.delete(-VALUES.astype(np.float32), at))
    flags = ["--higher", "hard", "--unscored", "keep", "--out", tmp_path / "other.h5"]
    assert "x (1 undefined) of 600 samples" in fastkd("import-scores", raw_beton, file, "--name", "x", *flags).out


def test_a_file_of_none_of_the_samples_is_refused_even_so(photo_raw, raw_beton, names, labels, tmp_path):
    file = spoilt("nothing", names, labels, tmp_path / "x.csv")
    refused(photo_raw, file, "the first; another data set?", "--higher", "hard", "--unscored", "keep")
    np.save(tmp_path / "x.npy", np.full(600, np.nan))
    refused(raw_beton, tmp_path / "x.npy", "600 of 600 scores are NaN", "--higher", "hard", "--unscored", "keep")


def refused(beton: Path, file: Path, words: str, *flags: object) -> None:
    outcome = fastkd("import-scores", beton, file, *flags, "--out", file.with_name("s.h5"))
    assert (outcome.code, outcome.err.count("\n")) == (1, 1), outcome.err
    assert words in outcome.err
    assert not file.with_name("s.h5").exists()


def test_scores_of_another_data_set_are_refused(photo_raw, names, labels, tmp_path):
    refused(photo_raw, spoilt("nothing", names, labels, tmp_path / "x.csv"), "has no score for 12", "--higher", "hard")
    np.save(tmp_path / "x.npy", VALUES)
    refused(photo_raw, tmp_path / "x.npy", "600 scores without file names", "--higher", "hard")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\xff\xfe\x00\x01", "neither text nor npy"),
        (b"\x93NUMPY\x01\x00", "cut or malformed"),
        (b"PK\x03\x04rest", "cut or malformed"),
        (b"hello\nworld\n", "no numbers in its last line"),
        (b"a,a\n1,2\n", "two columns of one name"),
        (b"u,v\n1,2\n", "say which are the scores with --array"),
        (b"filename,label,score\n", "no numbers in its last line"),
        (b"a,b\0\n1,2\n", "neither text nor npy"),
        (pickle.dumps({"scores": VALUES.tolist()}, protocol=0), "holds pickled objects"),
        (pickle.dumps(VALUES, protocol=1), "holds pickled objects"),
    ],
)
def test_other_files_are_one_line(content, words, raw_beton, tmp_path):
    (tmp_path / "x").write_bytes(content)
    refused(raw_beton, tmp_path / "x", words, "--higher", "hard")


def test_cut_files_are_one_line(raw_beton, labels, tmp_path):
    np.savez(tmp_path / "whole.npz", labels=labels, scores=VALUES)
    whole = (tmp_path / "whole.npz").read_bytes()
    for length in range(1, len(whole), 997):
        (tmp_path / "x.npz").write_bytes(whole[:length])
        refused(raw_beton, tmp_path / "x.npz", "x.npz", "--higher", "hard")


def test_the_direction_has_to_be_known(raw_beton, tmp_path):
    np.save(tmp_path / "x.npy", VALUES)
    refused(raw_beton, tmp_path / "x.npy", "Say so with --higher")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"scores": VALUES + 1j}, "scores holds '(0."),
        ({"scores": np.zeros(600, "M8[s]")}, "expected numbers"),
        ({"scores": VALUES * 1e300}, "e+299, more than float32 can"),
        ({"scores": VALUES, "labels": np.int64(3)}, "600 scores with 1 labels"),
        ({"scores": np.float64(3)}, "of shape ()"),
        ({"scores": torch.tensor(VALUES).to_sparse()}, "is a sparse tensor"),
    ],
)
def test_arrays_that_are_no_scores_are_one_line(arrays, words, raw_beton, tmp_path):
    if isinstance(arrays["scores"], torch.Tensor):
        torch.save(arrays, tmp_path / "x")
    else:
        with (tmp_path / "x").open("wb") as file:
            np.savez(file, **arrays)
    refused(raw_beton, tmp_path / "x", words, "--higher", "hard")


def test_tensors_of_bfloat16_and_names_with_spaces_are_read(raw_beton, names, tmp_path):
    tensor = torch.tensor(VALUES).bfloat16()
    torch.save({"scores": tensor}, tmp_path / "x.pt")
    assert np.array_equal(brought(raw_beton, tmp_path / "x.pt", "--higher", "hard"), tensor.float().numpy())
    lines = [f"a folder with spaces/{name},{value!r}\n" for name, value in zip(names, VALUES.tolist(), strict=True)]
    (tmp_path / "x.csv").write_text("".join(lines))
    assert np.array_equal(brought(raw_beton, tmp_path / "x.csv", "--higher", "hard"), VALUES.astype(np.float32))


def test_matrices_are_no_scores(raw_beton, tmp_path):
    np.save(tmp_path / "x.npy", VALUES.reshape(20, 30))
    refused(raw_beton, tmp_path / "x.npy", "of shape (20, 30)", "--higher", "hard")


def test_a_beton_without_names_cannot_be_joined_by_name(copy_of, raw_beton, names, labels, tmp_path):
    beton = copy_of(raw_beton)
    refused(beton, spoilt("nothing", names, labels, tmp_path / "x.csv"), "has none to join them by", "--higher", "hard")
