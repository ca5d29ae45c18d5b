import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

import h5py
import numpy as np
import pytest

from fastkd.artefact import open_artefact, read_artefact, require_input, write_artefact
from fastkd.errors import CorruptError, DiskError, FastKDError, FormatError, MismatchError, NotFoundError
from fastkd.writing import atomic_path

ARRAYS = {"sample_ids": np.arange(50), "scores": np.linspace(0, 1, 7, dtype=np.float32).reshape(1, 7)}
TYPES = {"sample_ids": ("<i8", 1), "scores": ("<f4", 2)}


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "a.h5"
    write_artefact(
        path,
        kind="mask",
        format_version=1,
        inputs={"beton": "0" * 32},
        params={"method": "random", "keep": 0.1, "note": "é"},
        arrays=ARRAYS,
    )
    return path


def read(path: Path, kind: str = "mask", version: int = 1) -> tuple:
    return read_artefact(path, kind=kind, format_version=version, arrays=TYPES)


def refused(error: type[FastKDError], path: Path, **wanted: object) -> str:
    with pytest.raises(error) as caught:
        read(path, **wanted)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text


def test_what_is_written_is_read_back(path):
    header, arrays = read(path)
    assert (header.kind, header.format_version) == ("mask", 1)
    assert header.inputs == {"beton": "0" * 32}
    assert header.params == {"method": "random", "keep": 0.1, "note": "é"}
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype


def test_the_same_content_makes_the_same_file(path, tmp_path):
    header, arrays = read(path)
    write_artefact(
        tmp_path / "b.h5",
        kind="mask",
        format_version=1,
        inputs=header.inputs,
        params=dict(reversed(header.params.items())),
        arrays=dict(reversed(arrays.items())),
    )
    assert read(tmp_path / "b.h5")[0].fingerprint == header.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "scores"},
        {"inputs": {"beton": "1" * 32}},
        {"params": {"seed": 1}},
        {"arrays": {"sample_ids": np.arange(51)}},
        {"arrays": {"ids": np.arange(50)}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_anything_else_about_an_artefact_changes_its_fingerprint(tmp_path, change):
    given = {
        "kind": "mask",
        "inputs": {"beton": "0" * 32},
        "params": {"seed": 0},
        "arrays": {"sample_ids": np.arange(50)},
    }
    first = write_artefact(tmp_path / "a.h5", format_version=1, **given)
    second = write_artefact(tmp_path / "b.h5", format_version=1, **given | change)
    assert first.fingerprint != second.fingerprint


def test_plain_h5py_reads_it(path):
    with h5py.File(path, "r") as file:
        np.testing.assert_array_equal(file["sample_ids"][:], ARRAYS["sample_ids"])
        assert file.attrs["format_version"] == 1


def test_a_file_that_is_not_there_is_named(tmp_path):
    refused(NotFoundError, tmp_path / "none.h5")


def test_a_folder_is_refused(tmp_path):
    refused(NotFoundError, tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x89HDF", b"\xff\xd8\xff\xe0 a picture", bytes(4096)])
def test_a_file_that_is_not_hdf5_is_refused(tmp_path, content):
    (tmp_path / "x.h5").write_bytes(content)
    assert "not an HDF5 file" in refused(FormatError, tmp_path / "x.h5")


def test_hdf5_of_others_is_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["sample_ids"] = np.arange(50)
    assert "without fastkd's header" in refused(FormatError, tmp_path / "x.h5")


def test_another_kind_is_refused_with_both_names(path):
    text = refused(FormatError, path, kind="logit-store")
    assert "mask" in text
    assert "logit-store" in text


def test_a_newer_version_is_refused_with_both_numbers(tmp_path):
    write_artefact(tmp_path / "x.h5", kind="mask", format_version=7, inputs={}, params={}, arrays=ARRAYS)
    text = refused(FormatError, tmp_path / "x.h5")
    assert "version 7" in text
    assert "version 1" in text


def test_any_kind_and_version_open_where_none_is_asked_for(path):
    with open_artefact(path, None) as (_, header):
        assert header.kind == "mask"


@pytest.mark.parametrize("array", [np.arange(50, dtype=np.int32), np.arange(50).reshape(2, 25), np.arange(50.0)])
def test_a_dataset_of_another_type_or_rank_is_refused(tmp_path, array):
    arrays = ARRAYS | {"sample_ids": array}
    write_artefact(tmp_path / "x.h5", kind="mask", format_version=1, inputs={}, params={}, arrays=arrays)
    assert "sample_ids" in refused(FormatError, tmp_path / "x.h5")


def test_a_missing_dataset_is_named(tmp_path):
    arrays = {"scores": ARRAYS["scores"]}
    write_artefact(tmp_path / "x.h5", kind="mask", format_version=1, inputs={}, params={}, arrays=arrays)
    assert "sample_ids" in refused(FormatError, tmp_path / "x.h5")


def test_a_group_where_a_dataset_belongs_is_refused(path):
    with h5py.File(path, "r+") as file:
        del file["scores"]
        file.create_group("scores")
    assert "scores" in refused(FormatError, path)


def test_a_value_changed_by_another_program_is_refused(path):
    with h5py.File(path, "r+") as file:
        file["sample_ids"][3] = 4
    assert "fingerprint" in refused(CorruptError, path)


@pytest.mark.parametrize("name", ["fastkd_kind", "format_version", "fingerprint", "inputs", "params"])
@pytest.mark.parametrize("value", [np.arange(3), 1.5, "no JSON", "[1]", np.bytes_(b"\xff\xfe"), h5py.Empty("f")])
def test_a_header_attribute_of_another_type_or_content_is_refused(path, name, value):
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value
    refused(FastKDError, path)


def test_a_cut_file_is_refused_wherever_it_is_cut(path):
    whole = path.read_bytes()
    for size in range(0, len(whole), 17):
        path.write_bytes(whole[:size])
        refused(FormatError, path)


def read_damaged(path: Path, seeds: range, answers: Connection) -> None:
    whole, good = path.read_bytes(), read(path)
    for seed in seeds:
        rng = np.random.default_rng(seed)
        damaged = bytearray(whole)
        for at in rng.choice(np.flatnonzero(np.frombuffer(whole, np.uint8)), rng.integers(1, 4)):
            damaged[at] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        answers.send(f"began {seed}")
        try:
            header, arrays = read(path)
            same = header == good[0] and all(np.array_equal(arrays[name], good[1][name]) for name in ARRAYS)
            answers.send("whole" if same else f"seed {seed}: read something else")
        except FastKDError as error:
            answers.send("refused" if "\n" not in str(error) else f"seed {seed}: {error!r}")
        except Exception as error:
            answers.send(f"seed {seed}: {error!r}")
    answers.send("end")


def test_changed_bytes_are_refused_or_do_not_matter(path):
    # In a process of its own: HDF5 itself may loop or die over a damaged file, and then that is what has to be told.
    context = multiprocessing.get_context("spawn")
    answers, sender = context.Pipe(duplex=False)
    process = context.Process(target=read_damaged, args=(path, range(1_000), sender))
    process.start()
    sender.close()
    received = []
    try:
        while not received or received[-1] != "end":
            assert answers.poll(30), f"hangs: {received[-1]}"
            received.append(answers.recv())
    except EOFError:
        process.join()
        pytest.fail(f"died with {process.exitcode}: {received[-1]}")
    finally:
        process.kill()
        process.join()
    assert [line for line in received if line.startswith("seed")] == []
    assert received.count("refused") > 800


def test_an_artefact_made_from_something_else_is_refused_with_both_names(path):
    header = read(path)[0]
    require_input(header, path, "beton", "0" * 32, "a.beton")
    with pytest.raises(MismatchError, match=r"a\.h5: this mask was made for another beton .* not for b\.beton"):
        require_input(header, path, "beton", "1" * 32, "b.beton")


def test_an_artefact_that_does_not_say_what_it_was_made_from_is_refused(path):
    with pytest.raises(MismatchError, match="another teacher"):
        require_input(read(path)[0], path, "teacher", "0" * 32, "t.safetensors")


def test_a_file_has_its_name_only_when_the_block_has_ended(tmp_path):
    with atomic_path(tmp_path / "x") as partial:
        partial.write_bytes(b"new")
        assert not (tmp_path / "x").exists()
    assert (tmp_path / "x").read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path, error):
    (tmp_path / "x").write_bytes(b"old")

    def write() -> None:
        with atomic_path(tmp_path / "x") as partial:
            partial.write_bytes(b"half of the new")
            raise error

    with pytest.raises(error):
        write()
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_a_write_that_fails_leaves_the_old_artefact(path):
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_artefact(
            path, kind="mask", format_version=1, inputs={}, params={}, arrays={"x": np.array([object()])}, force=True
        )
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_block_that_writes_nothing_is_an_error_and_no_empty_file(tmp_path):
    with pytest.raises(DiskError, match="No such file"), atomic_path(tmp_path / "x"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(NotFoundError, match="no/such does not exist"), atomic_path(tmp_path / "no/such/x"):
        pytest.fail("the block ran")
