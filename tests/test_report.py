import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from stores import IDS, make_store, random_logits, save_teacher
from synthetic import encoded, write_files

from fastkd.artefact import write_artefact
from fastkd.data.build import WriteOptions, build_beton
from fastkd.data.sources import open_source
from fastkd.dist import World
from fastkd.errors import FastKDError, FormatError, NotFoundError, OptionError
from fastkd.models.registry import create_model
from fastkd.report.compare import collect_runs, format_table, write_page
from fastkd.report.describe import describe, kind_of, verify
from fastkd.store.tables import read_tables
from fastkd.train.resume import save_resume
from fastkd.train.run_folder import claim_folder, write_json

RECIPE = {"model": "resnet8", "epochs": 2, "alpha": 0.5, "tau": 4.0, "lr": 0.05, "seed": 0}


def make_run(
    out: Path,
    top1: float | None = 60.0,
    *,
    inputs: dict[str, str] | None = None,
    views: dict[str, Any] | None = None,
    num_kept: int = 100,
    norm: dict | None = None,
    ranks: int = 1,
    **recipe: Any,
) -> Path:
    """The folder of a finished run from a store."""
    params = {
        "recipe": RECIPE | recipe,
        "views": {"kind": "crop-flip", "size": 32, "num_seeds": 3} | (views or {}),
        "norm": norm or {"mean": [0.5] * 3, "std": [0.5] * 3, "size": None},
        "num_kept": num_kept,
        "fraction": num_kept / 1000,
        "ranks": ranks,
    }
    inputs = {"beton": "b" * 32, "val": "e" * 32, "mask": "m" * 32, "logits": "l" * 32, "teacher": "t" * 32} | (
        inputs or {}
    )
    claim_folder(out, {"inputs": inputs, "params": params}, World())
    save_teacher(out / "model.safetensors")
    save_resume(out / "resume.pt", {"epoch": 2})
    result = {"epochs": 2, "val_top1": top1, "val_top5": top1 and 95.0, "images_per_s": 900.0, "data_wait_percent": 3.0}
    write_json(out / "result.json", result)
    return out


def test_runs_that_differ_in_their_seed_are_averaged(tmp_path):
    for seed, top1 in enumerate((60.0, 61.5, 64.5)):
        of_the_seed = {"mask": f"{seed}" * 32, "logits": f"{seed}" * 32}  # masks are drawn by seed too
        make_run(tmp_path / f"s{seed}", top1, seed=seed, inputs=of_the_seed)
    (group,) = collect_runs(tmp_path)
    assert (group.num_runs, group.top1_mean, group.top1_spread) == (3, 62.0, 4.5)
    assert (group.model, group.num_kept, group.fraction, group.source) == ("resnet8", 100, 0.1, "store")


@pytest.mark.parametrize(
    "changes",
    [
        *[{"model": "resnet14"}, {"alpha": 0.9}, {"tau": 2.0}, {"epochs": 3}, {"lr": 0.1}, {"num_kept": 200}],
        *[{"views": {"num_seeds": 162}}, {"views": {"kind": "rrc"}}, {"ranks": 2}, {"norm": {"mean": [0], "std": [1]}}],
        *[{"inputs": {"beton": "x" * 32}}, {"inputs": {"val": "x" * 32}}, {"inputs": {"teacher": "x" * 32}}],
    ],
    ids=str,
)
def test_runs_that_differ_in_anything_else_are_not(tmp_path, changes):
    make_run(tmp_path / "a", 50.0)
    make_run(tmp_path / "b", 70.0, **changes)
    assert [group.num_runs for group in collect_runs(tmp_path)] == [1, 1]


def test_where_the_logits_came_from_is_told(tmp_path):
    make_run(tmp_path / "labels", alpha=0.0)
    make_run(tmp_path / "stored")
    live = make_run(tmp_path / "live")
    head = json.loads((live / "run.json").read_text())
    del head["inputs"]["logits"]
    (live / "run.json").write_text(json.dumps(head))
    assert [group.source for group in collect_runs(tmp_path)] == ["labels", "store", "teacher"]
    assert [group.label for group in collect_runs(tmp_path)] == [
        "no KD",
        "KD α=0.5 τ=4 (store)",
        "KD α=0.5 τ=4 (teacher)",
    ]


def test_the_table_has_a_line_a_group_with_mean_and_spread(tmp_path):
    make_run(tmp_path / "a" / "0", 60.0, num_kept=300)
    make_run(tmp_path / "a" / "1", 61.5, num_kept=300, seed=1)
    make_run(tmp_path / "b", 40.25, alpha=0.0)
    lines = format_table(collect_runs(tmp_path)).splitlines()
    assert len(lines) == 4
    assert lines[0].split()[:4] == ["student", "kept", "fraction", "training"]
    assert lines[2].split() == ["resnet8", "100", "0.1", "no", "KD", "2", "1", "40.25", "0.00", "900"]
    assert lines[3].split() == [
        "resnet8",
        "300",
        "0.3",
        "KD",
        "α=0.5",
        "τ=4",
        "(store)",
        "2",
        "2",
        "60.75",
        "1.50",
        "900",
    ]


def test_a_page_stands_alone_with_table_and_plot(tmp_path):
    pytest.importorskip("matplotlib")
    make_run(tmp_path / "runs" / "a", 61.25)
    make_run(tmp_path / "runs" / "b", 70.5, num_kept=500, model="<net>")
    write_page(collect_runs(tmp_path / "runs"), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "61.25" in page
    assert "70.50" in page
    assert "&lt;net&gt;" in page
    assert "<net>" not in page
    assert "src='data:image/png;base64,iVBOR" in page
    assert "http" not in page


def test_a_plot_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    make_run(tmp_path / "run")
    write_page(collect_runs(tmp_path), tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_a_report_of_another_kind_is_refused(tmp_path):
    make_run(tmp_path / "run")
    with pytest.raises(OptionError, match=r"report\.pdf: expected a name that ends in \.html or \.png"):
        write_page(collect_runs(tmp_path), tmp_path / "report.pdf")


def test_without_finished_runs_there_is_no_report(tmp_path):
    (make_run(tmp_path / "unfinished") / "result.json").unlink()
    make_run(tmp_path / "without validation", None)
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(NotFoundError, match=f"{folder}: no finished run"):
            collect_runs(folder)


def test_unfinished_runs_are_left_out(tmp_path):
    (make_run(tmp_path / "unfinished", 10.0) / "result.json").unlink()
    make_run(tmp_path / "finished", 60.0)
    assert [group.top1_mean for group in collect_runs(tmp_path)] == [60.0]


@pytest.mark.parametrize("name", ["run.json", "result.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "3", '{"params": 3}'])
def test_a_damaged_run_is_named(tmp_path, name, content):
    make_run(tmp_path / "good")
    (make_run(tmp_path / "bad") / name).write_text(content)
    with pytest.raises(FormatError, match=f"{tmp_path / 'bad'}: damaged run"):
        collect_runs(tmp_path)


@pytest.fixture
def files(tmp_path, raw_beton, raw_mask) -> dict[str, Path]:
    """One of each kind."""
    return {
        "beton": raw_beton,
        "mask": raw_mask,
        "logit-store": make_store(tmp_path / "l.h5", random_logits(3, len(IDS), 10)),
        "checkpoint": save_teacher(tmp_path / "t.safetensors", val_top1=71.5),
        "run": make_run(tmp_path / "run"),
    }


def test_every_kind_is_told_from_its_content(files):
    assert {kind: kind_of(path) for kind, path in files.items()} == {kind: kind for kind in files}


def test_every_description_has_the_common_keys(files):
    for kind, path in files.items():
        found = describe(path)
        assert (found["kind"], found["path"]) == (kind, str(path))
        assert len(found["fingerprint"]) == 32
        assert isinstance(found["inputs"], dict)
        assert isinstance(found["params"], dict)
        assert isinstance(found["format_version"], int)
        json.dumps(found)


def test_descriptions_say_what_matters_of_each_kind(files):
    expected = {
        "beton": {"num_samples": 600, "num_classes": 10, "num_raw": 600, "max_height": 32, "manifest": True},
        "mask": {"num_kept": 200, "num_samples": 600, "fraction": 1 / 3},
        "logit-store": {"num_seeds": 3, "num_rows": 37, "num_classes": 10, "codec": "fp16", "done_percent": 100},
        "checkpoint": {"model": "resnet8", "num_classes": 10, "val_top1": 71.5, "format": "fastkd"},
        "run": {"finished": True, "val_top1": 60.0, "epochs": 2},
    }
    for kind, path in files.items():
        found = describe(path)
        assert {key: found[key] for key in expected[kind]} == expected[kind]
    parameters = sum(p.numel() for p in create_model("resnet8", 10).state_dict().values())
    assert describe(files["checkpoint"])["num_parameters"] == parameters


def test_an_unfinished_store_says_how_far_it_is(tmp_path):
    path = make_store(tmp_path / "l.h5", random_logits(3, len(IDS), 10), blocks=slice(2))
    assert describe(path)["done_percent"] == 40


def test_an_unfinished_run_says_so(tmp_path):
    (make_run(tmp_path / "run") / "result.json").unlink()
    assert describe(tmp_path / "run")["finished"] is False


def test_weights_of_others_are_checkpoints(tmp_path):
    torch.save(create_model("resnet8", 10).state_dict(), tmp_path / "a.pth")
    assert describe(tmp_path / "a.pth")["format"] == "torch"


@pytest.mark.parametrize("num_samples", [34, 123, 128, 379])
@pytest.mark.parametrize("name", ["x.beton", "x.ffcv"])
def test_a_beton_of_any_number_of_samples_is_a_beton(tmp_path, num_samples, name):
    """Its header holds the number at the byte where other formats hold a brace, 123."""
    pixels = np.random.default_rng(0).integers(0, 256, (num_samples, 4, 4, 3), dtype=np.uint8)
    folder = write_files(tmp_path / "images", {f"a/{i:03}.png": encoded(x, "PNG") for i, x in enumerate(pixels)})
    build_beton(open_source(folder), tmp_path / name, WriteOptions(mode="raw"))
    assert kind_of(tmp_path / name) == "beton"
    assert describe(tmp_path / name)["num_samples"] == num_samples
    assert verify(tmp_path / name) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *[("empty", b""), ("text", b"hello\n"), ("zeros", bytes(5000)), ("noise.beton", bytes(range(1, 250)) * 9)],
        *[
            ("x.beton", b""),
            ("x.h5", b"\x89HDF\r\n\x1a\n" + bytes(100)),
            ("zip", b"PK\x03\x04 no"),
            ("json", b'{"a": 1}'),
        ],
    ],
)
def test_what_is_none_of_these_is_named_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=f"{name}: ") as error:
        describe(tmp_path / name)
    assert "\n" not in str(error.value)
    assert verify(tmp_path / name) == [str(error.value)]


def test_folders_missing_files_and_foreign_hdf5_are_named(tmp_path):
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = np.arange(3)
    write_artefact(tmp_path / "new.h5", kind="recipe", format_version=1, inputs={}, params={}, arrays={})
    with pytest.raises(NotFoundError, match="nothing: no such file"):
        describe(tmp_path / "nothing")
    for name, words in (
        ("", "a folder without run.json"),
        ("foreign.h5", "without fastkd's header"),
        ("new.h5", "'recipe'"),
    ):
        with pytest.raises(FormatError, match=words):
            describe(tmp_path / name)


@pytest.mark.parametrize("name", ["run.json", "result.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "[1]", "3"])
def test_a_damaged_run_cannot_be_described(tmp_path, name, content):
    (make_run(tmp_path / "run") / name).write_text(content)
    with pytest.raises(FastKDError, match="run") as error:
        describe(tmp_path / "run")
    assert "\n" not in str(error.value)


def test_whole_files_have_no_problems(files):
    assert {kind: verify(path) for kind, path in files.items()} == {kind: [] for kind in files}


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def test_a_damaged_store_is_found(files):
    path = files["logit-store"]
    flip(path, read_tables(path).logits_offset + 5)
    (problem,) = verify(path)
    assert problem == f"{path}: aug_seed 0: 1 of 37 rows do not match their checksum"


def test_an_unfinished_store_is_not_whole(tmp_path):
    (problem,) = verify(make_store(tmp_path / "l.h5", random_logits(3, len(IDS), 10), blocks=slice(2)))
    assert "9 of 15 blocks are not filled yet" in problem


def test_a_damaged_checkpoint_is_found(files):
    flip(files["checkpoint"], -100)
    (problem,) = verify(files["checkpoint"])
    assert problem.startswith(f"{files['checkpoint']}: ")


@pytest.mark.parametrize("name", ["model.safetensors", "resume.pt"])
def test_a_damaged_file_of_a_run_is_found(files, name):
    flip(files["run"] / name, -100)
    (problem,) = verify(files["run"])
    assert str(files["run"] / name) in problem


def test_a_run_whose_description_was_changed_is_found(files):
    path = files["run"] / "run.json"
    path.write_text(path.read_text().replace("0.05", "0.06"))
    (problem,) = verify(files["run"])
    assert str(files["run"]) in problem
