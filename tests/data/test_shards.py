"""What sources of several files have in common: patterns, classes, one beton whatever the form."""

import json
import os
import pickle
import subprocess
import zipfile
from pathlib import Path

import pytest
from helpers.commands import fastkd
from helpers.refusals import refused
from helpers.shards import as_parquet, as_tars, write_parquet, write_tar
from helpers.synthetic import encoded, photo, write_files, write_zip

from fastkd.data.sources.open import Source, open_source
from fastkd.data.sources.shards import expanded, one_by_one
from fastkd.errors import FormatError, NotFoundError, OptionError, SourceError

PICTURE = encoded(photo(0, 8, 8))


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "x.tar",
            "a{b,c}d",
            "{,a}b",
            "{a,b}{c,d}-{0..2}",
            "t-{000..011}.tar",
            "{9..11}",
            "{09..11}",
            "{3..1}",
            "{a,b{1,2}}",
        ),
        *("{a}", "a{b", "a}b", "{}", "{x{1,2}y,z}", "{a,b}/{00..01}/*.tar", "a{b,c}{d", "{0..0}"),
    ],
)
def test_braces_are_those_of_a_shell(pattern):
    said = subprocess.run(["bash", "-fc", f"printf '%s\\n' {pattern}"], capture_output=True, text=True, check=True)
    assert list(expanded(pattern)) == said.stdout.splitlines()


def test_braces_of_more_texts_than_memory_are_expanded_one_by_one():
    assert next(expanded("x-{000000000000..999999999999}-{0..999999999999}")) == "x-000000000000-0"


def tars(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_tar(folder / name, {f"{Path(name).stem}.jpg": PICTURE, f"{Path(name).stem}.cls": b"cat"})


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.tar", ["a-{0}.tar", "b-0.tar", "b-1.tar", "b-10.tar"]),
        ("b-{1,0}.tar", ["b-1.tar", "b-0.tar"]),
        ("b-{10,?}.tar", ["b-10.tar", "b-0.tar", "b-1.tar"]),
        ("b-1.tar::b-0.tar", ["b-1.tar", "b-0.tar"]),
        ("a-{0}.tar", ["a-{0}.tar"]),
        ("**/d-*.tar", ["c/d-0.tar", "c/e/d-0.tar"]),
    ],
)
def test_patterns_name_files_in_their_order(tmp_path, monkeypatch, pattern, found):
    tars(tmp_path, "b-10.tar", "b-1.tar", "b-0.tar", "a-{0}.tar", "c/d-0.tar", "c/e/d-0.tar")
    monkeypatch.chdir(tmp_path)
    source = open_source(f"webdataset:{pattern}")
    below = "c/" if pattern.startswith("**") else ""
    assert source.names == [f"{path}/{Path(path).stem}.jpg"[len(below) :] for path in found]


@pytest.mark.parametrize(
    ("pattern", "kind", "said"),
    [
        ("", OptionError, "nothing after the colon"),
        ("b-*.tar", NotFoundError, "no such file 'b-*.tar'"),
        ("a-{0..2}.tar", NotFoundError, "no such file 'a-2.tar'"),
        ("a-0.tar::", NotFoundError, "no such file ''"),
        ("folder", NotFoundError, "a folder 'folder'; folder/* stands for the files in it"),
        ("*", NotFoundError, "a folder 'folder'"),
        ("a-{0,1,0}.tar", OptionError, "a-0.tar 2 times"),
        ("a-0.tar::link.tar", OptionError, "a-0.tar 2 times"),
        ("http://host/a.tar", NotFoundError, "no such file"),
    ],
)
def test_patterns_without_files_or_with_one_twice_are_refused(tmp_path, monkeypatch, pattern, kind, said):
    tars(tmp_path, "a-0.tar", "a-1.tar")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.tar").symlink_to("a-0.tar")
    monkeypatch.chdir(tmp_path)
    if pattern == "*":
        (tmp_path / "link.tar").unlink()
    for scheme in ("webdataset", "parquet"):
        pytest.importorskip("pyarrow")
        assert said in refused(kind, open_source, f"{scheme}:{pattern}")


def test_files_of_one_name_in_several_folders_are_told_apart_and_counted():
    told: list[tuple[int, int]] = []
    found = list(one_by_one(["/x/a/0.tar", "/x/b/0.tar"], lambda *done: told.append(done)))
    assert found == [(0, "/x/a/0.tar", "a/0.tar"), (1, "/x/b/0.tar", "b/0.tar")]
    assert told == [(1, 2), (2, 2)]


def labelled(form: str, folder: Path, *values: str | int) -> str:
    """A source of samples with these labels: the text of a `.cls`, an entry of JSON, or a column."""
    if form == "parquet":
        column = [str(value) for value in values] if any(isinstance(value, str) for value in values) else values
        images = [{"bytes": PICTURE, "path": f"{i}.jpg"} for i in range(len(values))]
        return "parquet:" + write_parquet(folder / "x.parquet", {"image": images, "label": column})
    texts = [str(value) if form == "cls" else json.dumps({"label": value}) for value in values]
    files = {f"{i}.{form}": text.encode() for i, text in enumerate(texts)}
    return "webdataset:" + write_tar(
        folder / "x.tar", dict(sorted({**files, **{f"{i}.jpg": PICTURE for i in range(len(values))}}.items()))
    )


FORMS = ["cls", "json", "parquet"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("values", "listed", "class_names", "labels"),
    [
        (["cat", "ant", "cat"], None, ["ant", "cat"], [1, 0, 1]),
        (["cat", "ant"], ["cat", "dog", " ant "], ["cat", "dog", "ant"], [0, 2]),
        ([2, 0, 2], None, ["0", "1", "2"], [2, 0, 2]),
        (["2", "0"], None, ["0", "1", "2"], [2, 0]),
        ([2, 0], ["a", "b", "c", "d"], ["a", "b", "c", "d"], [2, 0]),
        ([10, 9], None, [str(i) for i in range(11)], [10, 9]),
    ],
)
def test_labels_are_names_or_numbers(tmp_path, form, values, listed, class_names, labels):
    (tmp_path / "classes.txt").write_text("\n".join(listed or []))
    source = open_source(labelled(form, tmp_path, *values), classes=tmp_path / "classes.txt" if listed else None)
    assert (source.class_names, source.labels.tolist()) == (class_names, labels)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("values", "listed", "kind", "said"),
    [
        (["cat", 1], None, FormatError, "expected numbers alone or names alone"),
        ([0, -1], None, FormatError, "found the label -1 of"),
        ([0, 2**20], None, FormatError, "found the label 1048576 of"),
        ([0, 3], ["a", "b", "c"], FormatError, "expected 0 ... 2"),
        (["cat", "ant"], ["cat", "dog"], SourceError, "found the class 'ant'"),
    ],
)
def test_labels_that_are_no_classes_are_refused_with_the_sample(tmp_path, form, values, listed, kind, said):
    (tmp_path / "classes.txt").write_text("\n".join(listed or []))
    classes = tmp_path / "classes.txt" if listed else None
    message = refused(kind, open_source, labelled(form, tmp_path, *values), classes=classes)
    assert said in message
    assert "/1.jpg" in message


@pytest.fixture
def photos() -> dict[str, bytes]:
    """Photos of three classes in ImageFolder layout, sorted; one is no JPEG."""
    files = {f"{'abc'[i // 4]}/{i:02}.jpg": encoded(photo(i, 40 + i, 56), "JPEG", quality=92) for i in range(11)}
    return files | {"c/11.png": encoded(photo(11, 40, 56), "PNG")}


def in_all_forms(folder: Path, files: dict[str, bytes]) -> dict[str, str]:
    """The same images as a folder, a zip, tars and parquet files."""
    pytest.importorskip("pyarrow")
    return {
        "folder": write_files(folder / "images", files),
        "zip": write_zip(folder / "images.zip", files),
        "tars": as_tars(folder, files, 3),
        "parquet": as_parquet(folder, files),
    }


@pytest.mark.parametrize("mode", ["keep", "raw"])
def test_one_set_of_images_gives_one_fingerprint_in_every_form(tmp_path, photos, mode):
    found = {}
    for form, source in in_all_forms(tmp_path, photos).items():
        outcome = fastkd("build-beton", source, "--mode", mode, "--out", tmp_path / f"{form}.beton", "--json")
        assert outcome.code == 0, outcome.err
        found[form] = outcome.result["fingerprint"]
    assert len(set(found.values())) == 1, found


def test_real_photos_give_one_fingerprint_in_every_form(tmp_path):
    path = Path(os.environ.get("FASTKD_TEST_DATA", "/nonexistent"), "imagenet-500.zip")
    if not path.exists():
        pytest.skip("FASTKD_TEST_DATA names no folder with imagenet-500.zip")
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.lower().endswith((".jpg", ".jpeg")))[:24]
        files = {"/".join(name.split("/")[-2:]): archive.read(name) for name in names}
    found = set()
    for form, source in in_all_forms(tmp_path, files).items():
        outcome = fastkd(
            "build-beton", source, "--mode", "keep", "--no-check", "--out", tmp_path / f"{form}.beton", "--json"
        )
        found.add(outcome.result["fingerprint"])
    assert len(found) == 1


@pytest.mark.parametrize("form", ["tars", "parquet"])
def test_images_are_read_in_any_order_and_by_a_copy_in_another_folder(tmp_path, photos, monkeypatch, form):
    source = open_source(in_all_forms(tmp_path, photos)[form])
    copy: Source = pickle.loads(pickle.dumps(source))
    monkeypatch.chdir("/")
    expected = list(photos.values())
    for order in (range(12), range(11, -1, -1), [3, 9, 4, 9, 0, 11]):
        assert [copy.read(i) for i in order] == [expected[i] for i in order]
    assert len(pickle.dumps(source)) < 4000


@pytest.mark.parametrize("form", ["tars", "parquet"])
def test_a_bad_image_is_named_and_can_be_left_out(tmp_path, photos, form):
    source = in_all_forms(tmp_path, photos | {"b/05.jpg": b"no picture"})[form]
    outcome = fastkd("build-beton", source, "--out", tmp_path / "x.beton")
    assert (outcome.code, len(outcome.err.splitlines())) == (1, 2)  # the mode that was chosen, first
    assert "05.jpg: cannot be decoded" in outcome.err
    assert (
        fastkd("build-beton", source, "--skip-bad", "--out", tmp_path / "x.beton", "--json").result["num_samples"] == 11
    )


@pytest.mark.parametrize(
    ("form", "option"),
    [*((form, "--split") for form in ("folder", "zip", "tars", "parquet")), ("tars", "--root"), ("parquet", "--root")],
)
def test_options_of_other_sources_are_refused(tmp_path, photos, form, option):
    source = in_all_forms(tmp_path, photos)[form]
    outcome = fastkd("build-beton", source, option, "train", "--out", tmp_path / "x.beton")
    assert outcome.code == 1
    assert f"{option} train: is for " in outcome.err
