import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.refusals import refused
from helpers.synthetic import write_zip

from fastkd.data.sources.layout import read_class_list
from fastkd.data.sources.open import open_source
from fastkd.errors import FormatError, NotFoundError, OptionError, SourceError

FILES = {
    "cat/b.png": b"cat b",
    "cat/a.JPG": b"cat a",
    "cat/more/0.jpeg": b"cat more 0",
    "cat/more-of/0.jpeg": b"cat more-of 0",
    "ant/9.webp": b"ant 9",
    "dog/only/below/1.tiff": b"dog 1",
}
ORDER = ["ant/9.webp", "cat/a.JPG", "cat/b.png", "cat/more/0.jpeg", "cat/more-of/0.jpeg", "dog/only/below/1.tiff"]


def write_folder(path: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            (path / name).write_bytes(content)
        else:
            (path / name).mkdir(exist_ok=True)
    return str(path)


@pytest.fixture(params=["folder", "zip"])
def write(request, tmp_path):
    """Writes files as a folder or as a zip and returns its path."""
    if request.param == "folder":
        return lambda files: write_folder(tmp_path / "images", files)
    return lambda files: write_zip(tmp_path / "images.zip", files)


def below(top: str, files: dict[str, bytes] = FILES) -> dict[str, bytes]:
    return {f"{top}/{name}": content for name, content in files.items()}


def test_samples_are_sorted_by_class_then_folder_then_file(write):
    source = open_source(write(FILES))
    assert source.class_names == ["ant", "cat", "dog"]
    assert source.names == ORDER
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == [0, 1, 1, 1, 1, 2]
    assert [source.read(i) for i in range(len(source))] == [FILES[name] for name in ORDER]


def test_the_order_is_that_of_torchvision(tmp_path):
    datasets = pytest.importorskip("torchvision.datasets")
    path = write_folder(tmp_path, FILES)
    theirs = datasets.ImageFolder(path)
    ours = open_source(path)
    assert [os.path.relpath(name, path) for name, _ in theirs.samples] == ours.names
    assert theirs.targets == ours.labels.tolist()
    assert theirs.classes == ours.class_names


def test_hidden_files_other_files_and_mac_leftovers_do_not_count(write):
    extra = {"cat/.x.jpg": b"", "cat/notes.txt": b"", ".git/a.jpg": b"", "__MACOSX/cat/._a.jpg": b"", "README.md": b""}
    assert open_source(write(FILES | extra)).names == ORDER


def test_a_root_is_found_below_a_single_chain_of_folders(write):
    source = open_source(write(below("one/two")))
    assert source.names == ORDER
    assert source.read(1) == b"cat a"


def test_a_single_class_folder_is_the_class_and_not_the_root(write):
    assert open_source(write({"cat/0.jpg": b"0"})).class_names == ["cat"]


@pytest.mark.parametrize("root", ["set/train", "set/train/", "./set/train"])
def test_root_chooses_the_folder_that_holds_the_classes(write, root):
    source = open_source(write(below("set/train") | {"set/test/cat/0.jpg": b"test"}), root=root)
    assert source.names == ORDER
    assert source.read(0) == b"ant 9"


def test_a_root_with_all_images_one_folder_deeper_is_taken_at_its_word(write):
    path = write({"n1/images/0.jpg": b"", "n2/images/0.jpg": b"", "n2/more/1.jpg": b""})
    assert "--root . takes all as classes" in refused(SourceError, open_source, path)
    assert open_source(path, root=".").labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize("root", [None, "set", "."])
def test_splits_are_not_taken_for_classes(write, root):
    path = write(below("set/train") | {"set/test/cat/0.jpg": b""})
    message = refused(SourceError, open_source, path, root=root)
    assert "--root" in message
    assert "'set/test', 'set/train'" in message


def test_images_without_class_folders_are_refused(write):
    assert "--root" in refused(SourceError, open_source, write({"0.jpg": b"", "1.jpg": b""}))


def test_images_beside_class_folders_are_not_left_out_in_silence(write):
    path = write(FILES | {"sheet.png": b""})
    assert "found 1 image beside" in refused(SourceError, open_source, path)
    assert open_source(path, root=".").names == ORDER


def test_a_root_that_is_not_there_names_those_that_are(write):
    path = write(below("set/train") | {"set/test/cat/0.jpg": b""})
    assert "'set/test', 'set/train'" in refused(NotFoundError, open_source, path, root="train")


@pytest.mark.parametrize("root", ["..", "../images", "/", "/etc", "cat/../.."])
def test_a_root_outside_the_source_is_refused(write, root):
    assert "leads out" in refused(OptionError, open_source, write(FILES), root=root)


def test_a_source_without_images_is_refused(write):
    assert "found no images" in refused(NotFoundError, open_source, write({"cat/notes.txt": b""}))


def test_an_empty_folder_is_refused(tmp_path):
    assert "found no images" in refused(NotFoundError, open_source, str(tmp_path))


def test_a_class_folder_without_images_is_named(write):
    assert "eel" in refused(SourceError, open_source, write(FILES | {"eel/": b""}))


def test_a_class_list_fixes_labels_and_may_name_absent_classes(write, tmp_path):
    (tmp_path / "classes.txt").write_text("dog\r\n\nzebra\n cat \nant\neel\n")
    source = open_source(write(FILES | {"eel/": b""}), classes=tmp_path / "classes.txt")
    assert source.class_names == ["dog", "zebra", "cat", "ant", "eel"]
    assert source.labels.tolist() == [0, 2, 2, 2, 2, 3]
    assert source.names == [ORDER[5], *ORDER[1:5], ORDER[0]]


def test_a_class_folder_that_is_not_listed_is_named(write, tmp_path):
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    assert "class folder 'ant'" in refused(SourceError, open_source, write(FILES), classes=tmp_path / "classes.txt")


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"", "no names"), (b"\n \n", "no names"), (b"a\nb\na\n", "'a' 2 times"), (b"\xff\xfe", "UTF-8")],
)
def test_a_malformed_class_list_is_refused(tmp_path, content, word):
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(FormatError, match=word):
        read_class_list(tmp_path / "classes.txt")


def test_a_missing_class_list_is_refused(tmp_path, write):
    refused(NotFoundError, open_source, write(FILES), classes=tmp_path / "nothing")


def test_no_sample_lies_outside_the_range(write):
    source = open_source(write(FILES))
    for i in (-1, len(source)):
        with pytest.raises(IndexError):
            source.read(i)


def test_a_source_pickles_without_its_open_files(write, monkeypatch, tmp_path):
    source = open_source(os.path.relpath(write(FILES)))
    expected = [source.read(i) for i in range(6)]
    content = pickle.dumps(source)
    monkeypatch.chdir(tmp_path.parent)
    again = pickle.loads(content)
    assert [again.read(i) for i in range(6)] == expected
    assert len(content) < 3000


@pytest.mark.parametrize("spec", ["foo:bar", "web:x-{0..9}.tar", "Parquet:x", "CIFAR10:x"])
def test_an_unknown_scheme_is_refused_with_the_known_ones(spec):
    assert "cifar10:" in refused(OptionError, open_source, spec)


@pytest.mark.parametrize("spec", ["", "nothing", "C:\\images", "some/foo:bar", "a\0b", "x" * 5000, "~"])
def test_a_path_that_does_not_exist_is_not_found(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(NotFoundError, open_source, spec)


@pytest.mark.parametrize("name", ["foo:bar", "digits:", "cifar10:x", "C:x"])
def test_an_existing_path_with_a_colon_is_a_path(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / name, FILES)
    assert open_source(name).names == ORDER


def test_a_device_is_neither_folder_nor_zip():
    assert "neither" in refused(NotFoundError, open_source, "/dev/null")


def test_importing_sources_loads_neither_torch_nor_ffcv():
    code = "import sys, fastkd.data.sources.open; sys.exit(bool({'torch', 'ffcv', 'scipy', 'sklearn', 'pyarrow'} & set(sys.modules)))"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0


@pytest.fixture
def real_data() -> Path:
    folder = Path(os.environ.get("FASTKD_TEST_DATA", "/nonexistent"))
    if not (folder / "cifar10-jpeg.zip").exists():
        pytest.skip("FASTKD_TEST_DATA names no folder with cifar10-jpeg.zip")
    return folder


@pytest.mark.parametrize(("split", "per_class"), [("train", 5000), ("test", 1000)])
def test_a_zip_of_sixty_thousand_members_is_listed_by_class(real_data, split, per_class):
    source = open_source(str(real_data / "cifar10-jpeg.zip"), root=f"cifar10/{split}")
    assert np.bincount(source.labels).tolist() == [per_class] * 10
    assert source.class_names[6] == "frog"
    assert source.names[6 * per_class] == "frog/0000.jpg"
    assert source.read(len(source) - 1)[:2] == b"\xff\xd8"


def test_real_photos_keep_the_indices_of_a_thousand_classes(real_data):
    wnids = (real_data / "imagenet_wnids.txt").read_text().split()
    source = open_source(str(real_data / "imagenet-500.zip"), classes=real_data / "imagenet_wnids.txt")
    assert (len(source), source.class_names) == (500, wnids)
    assert 0 <= source.labels.min() < source.labels.max() <= 999
    assert all(name.startswith(wnids[label]) for name, label in zip(source.names, source.labels, strict=True))
