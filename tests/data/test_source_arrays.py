import gzip
import os
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.refusals import refused

from fastkd.data.sources import arrays
from fastkd.data.sources.open import open_source
from fastkd.errors import FormatError, MissingDependencyError, NotFoundError, OptionError

NAMES = [f"class {i}" for i in range(10)]


def pixels(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), np.uint8)


def python2_pickle(data: np.ndarray, labels: list[int]) -> bytes:
    """A CIFAR batch in the opcodes of Python 2's cPickle at protocol 2, in which the real files are written."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    shape = b"".join(b"M" + struct.pack("<H", size) for size in data.shape)
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85" + text(b"b") + b"\x87Rq\x03"
    dtype = b"cnumpy\ndtype\nq\x04" + text(b"u1") + b"K\x00K\x01\x87Rq\x05(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xff"
    dtype += b"J\xff\xff\xff\xffK\x00tb"
    raw = b"T" + struct.pack("<I", data.nbytes) + data.tobytes()
    array += b"(K\x01" + shape + b"\x86" + dtype + b"\x89" + raw + b"tb"
    items = b"]q\x06(" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}q\x07(" + text(b"data") + array + text(b"labels") + items + b"u."


def write_cifar10(path: Path, write=lambda batch: pickle.dumps(batch, 2)) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES, "num_vis": 3072}, 2))
    for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        batch = {"data": pixels(4, seed), "labels": [seed, 9, 0, 1], "filenames": ["x.png"] * 4}
        (path / name).write_bytes(write(batch))
    return path


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion(folder: Path, suffix: str = "") -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (7, 28, 28), np.uint8)
    for stem in ("train", "t10k"):
        write_idx(folder / f"{stem}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte{suffix}", np.arange(7, dtype=np.uint8))
    return images


def write_svhn(path: Path, **content) -> None:
    savemat = pytest.importorskip("scipy.io").savemat
    savemat(path, content, do_compression=True)


@pytest.mark.parametrize("protocol", [2, 3, 4, "Python 2"])
@pytest.mark.parametrize("place", [".", "cifar-10-batches-py"])
def test_cifar10_is_read_from_its_pickles(tmp_path, protocol, place):
    if protocol == "Python 2":
        write_cifar10(tmp_path / place, lambda batch: python2_pickle(batch["data"], batch["labels"]))
    else:
        write_cifar10(tmp_path / place, lambda batch: pickle.dumps(batch, protocol))
    source = open_source(f"cifar10:{tmp_path}")
    assert source.class_names == NAMES
    assert source.names[17] == "train/17"
    assert source.labels.tolist() == [label for seed in range(5) for label in (seed, 9, 0, 1)]
    expected = np.concatenate([pixels(4, seed) for seed in range(5)]).reshape(20, 3, 32, 32).transpose(0, 2, 3, 1)
    assert all((source.read(i) == expected[i]).all() for i in range(20))


def test_the_test_split_is_another(tmp_path):
    source = open_source(f"cifar10:{write_cifar10(tmp_path)}", split="test")
    assert source.names == ["test/0", "test/1", "test/2", "test/3"]
    assert source.labels[0] == 5


def test_cifar10_written_with_byte_keys_is_read_too(tmp_path):
    write_cifar10(tmp_path, lambda batch: pickle.dumps({key.encode(): value for key, value in batch.items()}, 2))
    assert len(open_source(f"cifar10:{tmp_path}")) == 20


def test_cifar100_has_its_fine_labels(tmp_path):
    home = tmp_path / "cifar-100-python"
    home.mkdir()
    names = [f"fine {i}" for i in range(100)]
    (home / "meta").write_bytes(pickle.dumps({"fine_label_names": names, "coarse_label_names": NAMES}, 2))
    batch = {"data": pixels(2, 0), "fine_labels": [99, 3], "coarse_labels": [1, 2]}
    (home / "test").write_bytes(pickle.dumps(batch, 2))
    source = open_source(f"cifar100:{tmp_path}", split="test")
    assert source.labels.tolist() == [99, 3]
    assert source.class_names == names


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
def test_a_pickle_that_calls_a_command_is_refused_and_not_run(tmp_path, protocol, name):
    write_cifar10(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps({"data": Hostile(tmp_path / "ran")}, protocol))
    assert "posix.system" in refused(FormatError, open_source, f"cifar10:{tmp_path}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"labels": [1, 2, 3]}, "4 images but 3 labels"),
        ({"labels": [1, 2, 3, 10]}, "outside 0 ... 9"),
        ({"labels": [1, 2, 3, -1]}, "outside 0 ... 9"),
        ({"labels": ["a"] * 4}, "list of int"),
        ({"labels": None}, "list of int"),
        ({"data": np.zeros((4, 3071), np.uint8)}, "(4, 3071)"),
        ({"data": None}, "numpy array"),
    ],
)
def test_a_cifar_batch_that_disagrees_with_itself_is_refused(tmp_path, change, word):
    write_cifar10(tmp_path, lambda batch: pickle.dumps(batch | change, 2))
    assert word in refused(FormatError, open_source, f"cifar10:{tmp_path}")


def test_a_missing_cifar_batch_is_named(tmp_path):
    (write_cifar10(tmp_path) / "data_batch_4").unlink()
    assert "data_batch_4" in refused(NotFoundError, open_source, f"cifar10:{tmp_path}")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("place", [".", "raw", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_from_idx_files(tmp_path, suffix, place):
    images = write_fashion(tmp_path / place, suffix)
    source = open_source(f"fashion-mnist:{tmp_path}", split="test")
    assert (len(source), source.class_names[9], source.names[6]) == (7, "Ankle boot", "test/6")
    assert source.labels.tolist() == list(range(7))
    assert source.read(3).shape == (28, 28, 3)
    assert all((source.read(3)[:, :, channel] == images[3]).all() for channel in range(3))


def test_mnist_has_digits_for_names(tmp_path):
    write_fashion(tmp_path / "MNIST" / "raw")
    assert open_source(f"mnist:{tmp_path}").class_names == list("0123456789")


def test_fashion_mnist_without_a_folder_names_the_debian_package(monkeypatch, tmp_path):
    monkeypatch.setattr(arrays, "DEBIAN_FASHION_MNIST", str(tmp_path / "nothing"))
    assert "dataset-fashion-mnist" in refused(NotFoundError, open_source, "fashion-mnist:")
    write_fashion(tmp_path / "nothing")
    assert len(open_source("fashion-mnist:")) == 7


@pytest.mark.parametrize("scheme", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_idx_files_are_found_by_the_names_with_a_dot_too(tmp_path, scheme, suffix, split):
    images = write_fashion(tmp_path, suffix)
    for path in list(tmp_path.iterdir()):
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))
    source = open_source(f"{scheme}:{tmp_path}", split=split)
    assert (source.read(6)[:, :, 0] == images[6]).all()


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda content: b"", "missing"),
        (lambda content: content[:9], "header of 16"),
        (lambda content: content[:-1], "expected 5488"),
        (lambda content: content + b"\0", "found more bytes"),
        (lambda content: b"\0\0\x0d\3" + content[4:], "00000d03"),
        (lambda content: content[:4] + b"\xff" * 12 + content[16:], "expected at most"),
        (lambda content: content[:4] + b"\0\0\0\6" + content[8:], "expected 4704"),
        (lambda content: content[:4] + struct.pack(">3I", 6, 28, 28) + content[16:-784], "6 images but 7 labels"),
        (lambda content: content[:4] + struct.pack(">3I", 0, 28, 28), "0 images but 7 labels"),
    ],
)
def test_a_malformed_idx_file_is_refused(tmp_path, suffix, damage, word):
    write_fashion(tmp_path, suffix)
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    content = damage(gzip.decompress(path.read_bytes()) if suffix else path.read_bytes())
    path.write_bytes(gzip.compress(content) if suffix else content)
    assert word in refused(FormatError, open_source, f"fashion-mnist:{tmp_path}")


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-9], lambda b: b[:200] + b"\0" * 99 + b[299:], lambda b: b"\0\0\x08\3"]
)
def test_a_damaged_gzip_file_is_refused(tmp_path, damage):
    write_fashion(tmp_path, ".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    assert "gzip" in refused(FormatError, open_source, f"fashion-mnist:{tmp_path}")


def test_a_label_without_a_class_is_refused(tmp_path):
    write_fashion(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.full(7, 10, np.uint8))
    assert "label 10" in refused(FormatError, open_source, f"fashion-mnist:{tmp_path}")


def test_svhn_counts_its_label_ten_as_the_digit_zero(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), np.uint8)
    write_svhn(tmp_path / "train_32x32.mat", X=images, y=np.array([[10], [1], [9], [10]], np.uint8))
    source = open_source(f"svhn:{tmp_path}")
    assert source.labels.tolist() == [0, 1, 9, 0]
    assert source.labels.dtype == np.int64
    assert all((source.read(i) == images[..., i]).all() for i in range(4))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"X": np.zeros((32, 32, 3, 4))}, "float64"),
        ({"X": np.zeros((32, 32, 4), np.uint8)}, "(32, 32, 4)"),
        ({"y": np.array([[0], [1], [2], [3]])}, "outside 1 ... 10"),
        ({"y": np.array([["a"], ["b"]])}, "no array of real numbers"),
        ({"y": np.array([[1], [2]])}, "4 images but 2 labels"),
        ({"y": None}, "found no y"),
    ],
)
def test_a_mat_file_of_other_content_is_refused(tmp_path, change, word):
    content = {"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.ones((4, 1), np.uint8)} | change
    write_svhn(tmp_path / "train_32x32.mat", **{key: value for key, value in content.items() if value is not None})
    assert word in refused(FormatError, open_source, f"svhn:{tmp_path}")


def test_every_fifth_digit_is_the_test_split():
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    train, test = open_source("digits:"), open_source("digits:", split="test")
    assert (len(train), len(test)) == (1438, 359)
    assert test.labels.tolist() == digits.target[4::5].tolist()
    expected = np.floor(digits.images[9] * 255 / 16 + 0.5).astype(np.uint8)
    assert (test.read(1) == expected[:, :, None]).all()
    assert (train.read(4) == np.floor(digits.images[5] * 255 / 16 + 0.5)[:, :, None]).all()
    assert max(train.read(i).max() for i in range(20)) == 255


def test_digits_without_scikit_learn_name_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name == "sklearn" or name.startswith("sklearn.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert "fastkd[digits]" in refused(MissingDependencyError, open_source, "digits:")


@pytest.mark.parametrize("scheme", ["cifar10", "cifar100", "svhn", "mnist", "fashion-mnist"])
def test_a_folder_without_the_files_or_no_folder_is_not_found(tmp_path, scheme):
    assert "found no " in refused(NotFoundError, open_source, f"{scheme}:{tmp_path}")
    assert "nothing there" in refused(NotFoundError, open_source, f"{scheme}:{tmp_path / 'x'}")
    (tmp_path / "file").write_text("")
    assert "a file" in refused(NotFoundError, open_source, f"{scheme}:{tmp_path / 'file'}")


@pytest.mark.parametrize("scheme", ["cifar10", "cifar100", "svhn", "mnist"])
def test_a_scheme_without_its_folder_asks_for_it(scheme):
    assert f"{scheme}:DIR" in refused(OptionError, open_source, f"{scheme}:")


def test_options_that_do_not_go_with_an_array_source_are_refused(tmp_path):
    assert "--root" in refused(OptionError, open_source, "digits:", root="train")
    assert "--classes" in refused(OptionError, open_source, "digits:", classes=tmp_path)
    assert "--split" in refused(OptionError, open_source, "digits:", split="val")
    assert "ships" in refused(OptionError, open_source, "digits:there")


def test_an_array_source_pickles_without_its_pixels_and_reads_them_again(tmp_path, monkeypatch):
    monkeypatch.chdir(write_cifar10(tmp_path))
    source = open_source("cifar10:.", split="test")
    content = pickle.dumps(source)
    monkeypatch.chdir("/")
    assert len(content) < 2000
    assert (pickle.loads(content).read(2) == source.read(2)).all()


def test_a_read_image_is_the_callers_own(tmp_path):
    source = open_source(f"cifar10:{write_cifar10(tmp_path)}")
    image = source.read(0)
    before = image.copy()
    assert image.flags.c_contiguous
    image[:] = 0
    assert (source.read(0) == before).all()
