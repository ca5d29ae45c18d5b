import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import Outcome, fastkd
from stores import make_store, random_logits, save_teacher

from fastkd.feed import open_dataset
from fastkd.models.registry import create_model
from fastkd.prune.mask import Mask
from fastkd.store.tables import read_tables

KEYS = {
    "build-beton": "kind path num_samples num_classes size_bytes fingerprint images_per_s",
    "prune": "kind path num_kept num_samples fraction class_min class_max fingerprint",
    "cache-logits": "kind path num_seeds num_rows num_classes codec size_bytes rows_written rows_reused fingerprint rows_per_s",
    "train": "kind path epochs val_top1 val_top5 images_per_s data_wait_percent",
    "evaluate": "top1 top5 num_samples",
    "report": "kind path groups",
    "verify": "ok problems",
}
INSPECTED = {
    "x.beton": "kind path num_samples num_classes size_bytes fingerprint",
    "m.h5": "kind path num_kept num_samples fraction class_min class_max fingerprint",
    "l.h5": "kind path num_seeds num_rows num_classes codec size_bytes fingerprint",
    "run": "kind path epochs val_top1 val_top5 images_per_s data_wait_percent",
    "run/model.safetensors": "kind path fingerprint model num_classes",
}
CPU = ("--device", "cpu", "--num-workers", 1)


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def done(lab, raw_folder) -> dict[str, Outcome]:
    """Every command once, each on what the one before it wrote."""
    x, m, l, t, run = (lab / name for name in ("x.beton", "m.h5", "l.h5", "t.safetensors", "run"))
    save_teacher(t)
    cached = ["--teacher", t, "--mask", m, "--views", "crop-flip", "--num-seeds", 2, *CPU]
    student = ["--mask", m, "--logits", l, "--model", "ResNet8", "--val", x, "--epochs", 1, *CPU]
    return {
        "build-beton": fastkd("build-beton", raw_folder, "--out", x, "--json"),
        "prune": fastkd("prune", x, "--keep", 0.2, "--seed", 5, "--out", m, "--json"),
        "cache-logits": fastkd("cache-logits", x, *cached, "--out", l, "--json"),
        "train": fastkd("train", x, *student, "--out", run, "--json"),
        "evaluate": fastkd("evaluate", x, "--model", run / "model.safetensors", *CPU, "--json"),
        "verify": fastkd("verify", x, m, l, run, run / "model.safetensors", "--json"),
        "report": fastkd("report", lab, "--out", lab / "report.html", "--json"),
    }


@pytest.mark.parametrize("command", sorted(KEYS))
def test_a_result_is_one_json_object_with_its_keys(done, command):
    assert set(KEYS[command].split()) <= set(done[command].result)


def test_the_numbers_are_those_of_what_was_made(done, lab):
    beton, mask, store = (done[name].result for name in ("build-beton", "prune", "cache-logits"))
    assert (beton["kind"], beton["num_samples"], beton["num_classes"]) == ("beton", 600, 10)
    assert beton["size_bytes"] == (lab / "x.beton").stat().st_size
    assert (mask["kind"], mask["num_kept"], mask["fraction"], mask["class_min"], mask["class_max"]) == (
        "mask",
        120,
        0.2,
        12,
        12,
    )
    assert (store["kind"], store["num_seeds"], store["num_rows"], store["num_classes"]) == ("logit-store", 2, 120, 10)
    assert (store["codec"], store["rows_written"], store["rows_reused"]) == ("fp16", 240, 0)
    assert (done["train"].result["kind"], done["train"].result["epochs"]) == ("run", 1)
    assert done["verify"].result == {"ok": True, "problems": []}


def test_evaluating_the_saved_weights_gives_the_accuracy_of_the_run(done):
    trained, found = done["train"].result, done["evaluate"].result
    assert (found["top1"], found["top5"], found["num_samples"]) == (trained["val_top1"], trained["val_top5"], 600)


@pytest.mark.parametrize("name", sorted(INSPECTED))
def test_inspect_says_what_a_file_is(done, lab, name):
    found = fastkd("inspect", lab / name, "--json").result
    assert set(INSPECTED[name].split()) | {"format_version", "inputs", "params"} <= set(found)


def test_what_inspect_says_is_what_the_command_said(done, lab):
    for command, name in (("build-beton", "x.beton"), ("prune", "m.h5"), ("cache-logits", "l.h5"), ("train", "run")):
        found, told = fastkd("inspect", lab / name, "--json").result, done[command].result
        shared = set(KEYS[command].split()) & set(found)
        assert {key: found[key] for key in shared} == {key: told[key] for key in shared}


def test_the_inputs_of_each_file_are_the_fingerprints_of_what_it_was_made_from(done, lab):
    names = ("x.beton", "m.h5", "l.h5", "run")
    beton, mask, store, run = (fastkd("inspect", lab / name, "--json").result for name in names)
    prints = {"beton": beton["fingerprint"], "mask": mask["fingerprint"], "logits": store["fingerprint"]}
    assert mask["inputs"] == {"beton": prints["beton"]}
    assert store["inputs"].items() >= {"beton": prints["beton"], "mask": prints["mask"]}.items()
    assert run["inputs"].items() >= prints.items()
    assert run["params"]["recipe"]["model"] == "resnet8"


def test_inspect_takes_several_files(done, lab):
    found = fastkd("inspect", lab / "m.h5", lab / "l.h5", "--json").result
    assert [one["kind"] for one in found["files"]] == ["mask", "logit-store"]


@pytest.mark.parametrize("name", ["x.beton", "m.h5", "l.h5", "run", "t.safetensors"])
def test_without_json_people_get_words(done, lab, name):
    outcome = fastkd("inspect", lab / name)
    assert outcome.code == 0
    assert str(lab / name) in outcome.out
    assert not outcome.out.startswith("{")


def test_the_report_is_printed_and_written(done, lab):
    outcome = fastkd("report", lab, "--out", lab / "again.html")
    assert outcome.out.splitlines()[0].split()[0] == "student"
    assert "resnet8" in outcome.out
    assert (lab / "again.html").read_text().startswith("<!doctype html>")


def test_a_finished_run_asked_for_again_prints_its_result(done, lab):
    student = ["--mask", lab / "m.h5", "--logits", lab / "l.h5", "--model", "resnet8", "--val", lab / "x.beton"]
    again = fastkd("train", lab / "x.beton", *student, "--epochs", 1, *CPU, "--out", lab / "run", "--json")
    assert again.result == done["train"].result
    assert "finished" in again.err


def test_masks_of_one_seed_are_nested_and_those_of_others_are_not(done, lab):
    ids = {}
    for keep in ("0.05", "0.3", "77", "1.0"):
        fastkd("prune", lab / "x.beton", "--keep", keep, "--seed", 5, "--out", lab / "nested.h5")
        ids[keep] = Mask.load(lab / "nested.h5").sample_ids.tolist()
    assert [len(kept) for kept in ids.values()] == [30, 180, 77, 600]
    assert ids["1.0"][:180] == ids["0.3"]
    assert ids["0.3"][:77] == ids["77"]
    assert ids["77"][:30] == ids["0.05"]
    fastkd("prune", lab / "x.beton", "--keep", "77", "--seed", 6, "--out", lab / "nested.h5")
    assert set(Mask.load(lab / "nested.h5").sample_ids.tolist()) != set(ids["77"])


def test_a_store_serves_the_masks_inside_it(done, lab):
    fastkd("prune", lab / "x.beton", "--keep", 70, "--seed", 5, "--out", lab / "inside.h5")
    student = ["--logits", lab / "l.h5", "--model", "resnet8", "--epochs", 1, *CPU]
    outcome = fastkd("train", lab / "x.beton", "--mask", lab / "inside.h5", *student, "--out", lab / "inside", "--json")
    assert outcome.result["val_top1"] is None


def test_the_teacher_of_the_store_may_be_named_beside_it(done, lab):
    student = ["--mask", lab / "m.h5", "--logits", lab / "l.h5", "--model", "resnet8", "--epochs", 1, *CPU]
    outcome = fastkd(
        "train", lab / "x.beton", *student, "--teacher", lab / "t.safetensors", "--out", lab / "named", "--json"
    )
    assert outcome.result["epochs"] == 1


def test_verify_lists_what_is_damaged_and_exits_1(done, lab):
    path = Path(shutil.copy(lab / "l.h5", lab / "damaged.h5"))
    tables = read_tables(path)
    with path.open("r+b") as file:
        file.seek(tables.logits_offset)
        file.write(b"\xff")
    outcome = fastkd("verify", lab / "m.h5", path, "--json")
    assert outcome.code == 1
    problem = f"{path}: aug_seed 0: 1 of 120 rows do not match their checksum"
    assert json.loads(outcome.out) == {"ok": False, "problems": [problem]}
    assert problem in fastkd("verify", path).out


def test_verify_writes_a_missing_manifest(done, lab, tmp_path):
    copy = shutil.copy(lab / "x.beton", tmp_path / "copy.beton")
    assert fastkd("verify", copy, "--write-manifest").code == 0
    manifest = json.loads((tmp_path / "copy.beton.json").read_text())
    assert manifest["fingerprint"] == done["build-beton"].result["fingerprint"]


def test_a_config_file_gives_defaults_and_flags_override_it(done, lab, tmp_path):
    (tmp_path / "c.toml").write_text(f'keep = 0.1\nseed = 9\nout = "{tmp_path / "m.h5"}"\n')
    assert fastkd("prune", lab / "x.beton", "--config", tmp_path / "c.toml", "--json").result["num_kept"] == 60
    assert Mask.load(tmp_path / "m.h5").header.params["seed"] == 9
    fastkd("prune", lab / "x.beton", "--keep", 50, "--config", tmp_path / "c.toml")
    assert len(Mask.load(tmp_path / "m.h5").sample_ids) == 50
    assert Mask.load(tmp_path / "m.h5").header.params["seed"] == 9


def test_one_config_file_serves_several_commands(done, lab, tmp_path):
    text = f'[prune]\nkeep = 40\nout = "{tmp_path / "m.h5"}"\n[train]\nbatch-size = 7\ntau-squared = false\n'
    (tmp_path / "c.toml").write_text(text)
    assert fastkd("prune", lab / "x.beton", "--config", tmp_path / "c.toml", "--json").result["num_kept"] == 40
    options = ["--mask", tmp_path / "m.h5", "--model", "resnet8", "--epochs", 1, *CPU, "--out", tmp_path / "run"]
    outcome = fastkd("train", lab / "x.beton", *options, "--config", tmp_path / "c.toml")
    assert outcome.code == 0, outcome.err
    recipe = json.loads((tmp_path / "run" / "run.json").read_text())["params"]["recipe"]
    assert (recipe["batch_size"], recipe["tau_squared"], recipe["lr"]) == (7, False, 0.05)


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        *[("epoch = 3", "epoch"), ("epochs =", "c.toml"), ("\xff", "c.toml"), ('epochs = "many"', "epochs")],
        *[
            ("epochs = [1, 2]", "epochs"),
            ("out = [1]", "out"),
            ("train = 3", "train"),
            ("[train]\nlearning = 1", "learning"),
        ],
    ],
)
def test_a_config_file_that_makes_no_sense_is_a_usage_error(done, lab, tmp_path, text, culprit):
    (tmp_path / "c.toml").write_bytes(text.encode("latin-1"))
    options = ["--mask", lab / "m.h5", "--model", "resnet8", *([] if "out" in text else ["--out", tmp_path / "run"])]
    outcome = fastkd("train", lab / "x.beton", *options, "--config", tmp_path / "c.toml")
    assert outcome.code == 2
    assert_one_clear_line(outcome, culprit)
    assert not (tmp_path / "run").exists()


def test_help_shows_every_command_and_each_shows_an_example():
    listed = fastkd("--help").out
    for command in ("build-beton", "prune", "cache-logits", "train", "evaluate", "report", "inspect", "verify"):
        assert command in listed
        shown = fastkd(command, "--help").out
        assert f"fastkd {command} " in shown.split("Options:")[0].split("\n", 1)[1]
        assert "--json" in shown
        assert "--config" in shown


def test_an_exception_is_shown_whole_where_that_is_asked_for(done, lab, monkeypatch):
    monkeypatch.setenv("FASTKD_DEBUG", "1")
    with pytest.raises(Exception, match="nothing: no such file"):
        fastkd("inspect", lab / "nothing")


def assert_one_clear_line(outcome: Outcome, culprit: str) -> None:
    assert outcome.code in (1, 2)
    printed = outcome.out + outcome.err
    assert "Traceback" not in printed
    assert "internal error" not in printed
    assert len([line for line in outcome.err.splitlines() if line.strip()]) <= 3, outcome.err
    assert culprit in printed


@pytest.fixture(scope="module")
def bad(done, lab, raw_folder, jpg_folder, jpg_beton) -> Callable[[str], list[str]]:
    """Fills the names of good and bad files into a command line."""
    whole = (lab / "x.beton").read_bytes()
    folder = lab / "bad"
    for name in ("empty", "no-images/a", "truncated/a", "taken", "folder.beton", "folder.h5"):
        (folder / name).mkdir(parents=True)
    (folder / "no-images/a/notes.txt").write_text("no image")
    (folder / "taken/notes.txt").write_text("mine")
    (folder / "text").write_text("just text\n")
    (folder / "noise.beton").write_bytes(bytes(range(1, 251)) * 20)
    (folder / "zero.beton").write_bytes(b"")
    (folder / "cut.beton").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.h5").write_bytes((lab / "m.h5").read_bytes()[:900])
    (folder / "bad.toml").write_text("epochs = = 3")
    photo = next(Path(jpg_folder).rglob("*.jpg")).read_bytes()
    (folder / "truncated/a/half.jpg").write_bytes(photo[: len(photo) // 2])
    ids = Mask.load(lab / "m.h5").sample_ids
    logits = random_logits(2, len(ids), 10)
    make_store(folder / "other.h5", logits, ids)
    make_store(folder / "unfinished.h5", logits, ids, dataset=open_dataset(lab / "x.beton"), blocks=slice(1))
    save_teacher(folder / "three.safetensors", num_classes=3)
    save_teacher(folder / "stranger.safetensors", seed=9)
    torch.save(create_model("resnet8", 10).state_dict(), folder / "plain.pth")
    fastkd("prune", jpg_beton, "--keep", 6, "--out", folder / "jpg.h5")
    names = {
        **{"x": lab / "x.beton", "m": lab / "m.h5", "l": lab / "l.h5", "t": lab / "t.safetensors", "run": lab / "run"},
        **{"bad": folder, "images": raw_folder, "jpg": jpg_beton, "new": lab / "new", "gone": lab / "gone"},
    }
    return lambda line: [word.format(**names) for word in line.split()]


TRAIN = "train {x} --mask {m} --model resnet8 --epochs 1 --out {new}"
CACHE = "cache-logits {x} --mask {m} --teacher {t} --num-seeds 2 --out {new}"
BUILD = "build-beton {bad}/no-images --out {new}"
BAD_INPUT = [
    # line, exit code, what the message names
    ("build-beton {bad}/empty --out {new}", 1, "empty"),
    ("build-beton {gone} --out {new}", 1, "gone"),
    ("build-beton {bad}/no-images --out {new}", 1, "no-images"),
    ("build-beton {bad}/truncated --out {new}", 1, "half.jpg"),
    ("build-beton {bad}/truncated --skip-bad --out {new}", 1, "truncated"),
    ("build-beton {bad}/text --out {new}", 1, "text"),
    ("build-beton cifar10:{gone} --out {new}", 1, "gone"),
    ("build-beton nonsense:{gone} --out {new}", 1, "nonsense"),
    (f"{BUILD} --root {{gone}}", 1, "gone"),
    (f"{BUILD} --classes {{gone}}", 1, "gone"),
    (f"{BUILD} --mode png", 2, "png"),
    (f"{BUILD} --jpeg-quality 0", 2, "--jpeg-quality"),
    (f"{BUILD} --max-size 0", 2, "--max-size"),
    (f"{BUILD} --page-size 1000", 2, "--page-size"),
    (f"{BUILD} --num-workers -1", 2, "--num-workers"),
    ("build-beton {bad}/truncated", 2, "--out"),
    *[
        (f"prune {path} --keep 0.1 --out {{new}}", 1, path[6:])
        for path in (
            "{bad}/cut.beton",
            "{bad}/noise.beton",
            "{bad}/zero.beton",
            "{bad}/text",
            "{bad}/folder.beton",
            "{bad}/gone",
            "{bad}/cut.h5",
        )
    ],
    *[
        (f"prune {{x}} --keep {keep} --out {{new}}", 1, f"--keep {shown}")
        for keep, shown in (
            ("0", "0"),
            ("0.0", "0.0"),
            ("1.5", "1.5"),
            ("-1", "-1"),
            ("601", "601"),
            ("abc", "'abc'"),
            ("nan", "'nan'"),
            ("1e-9", "1e-9"),
        )
    ],
    ("prune {x} --keep 0.1 --method best --out {new}", 2, "best"),
    ("prune {x} --keep 0.1 --seed -1 --out {new}", 2, "--seed"),
    ("prune {x} --keep 0.1 --seed 99999999999999999999 --out {new}", 2, "--seed"),
    ("prune {x} --out {new}", 2, "--keep"),
    ("prune {x} --keep 0.1 --out {gone}/m.h5", 1, "gone"),
    ("prune {x} --keep 0.1 --config {gone} --out {new}", 2, "gone"),
    ("prune {x} --keep 0.1 --config {bad} --out {new}", 2, "bad"),
    ("prune {x} --keep 0.1 --config {bad}/bad.toml --out {new}", 2, "bad.toml"),
    ("cache-logits {gone} --teacher {t} --out {new}", 1, "gone"),
    ("cache-logits {x} --out {new}", 2, "--teacher"),
    ("cache-logits {x} --teacher {t} --tau 2 --out {new}", 1, "--tau does nothing without --max-kl"),
    ("verify {x} --rows 5", 1, "--rows does nothing without --against"),
    ("verify {x} --teacher-norm cifar", 1, "--teacher-norm does nothing without --against"),
    ("plan {x} --teacher {t}", 2, "--measure"),
    ("plan {x} --teacher-size 32", 1, "--teacher-size does nothing without --teacher"),
    ("score {x} --method el2n --model {t} --seed 1 --out {new}", 1, "--seed does nothing"),
    ("cache-logits {x} --teacher {gone} --out {new}", 1, "gone"),
    ("cache-logits {x} --teacher {bad} --out {new}", 1, "bad"),
    ("cache-logits {x} --teacher {x} --out {new}", 1, "x.beton"),
    ("cache-logits {x} --teacher {bad}/text --out {new}", 1, "text"),
    ("cache-logits {x} --teacher {bad}/plain.pth --out {new}", 1, "--teacher-model"),
    ("cache-logits {x} --teacher {bad}/plain.pth --teacher-model resnet8 --out {new}", 1, "--teacher-norm"),
    (
        "cache-logits {x} --teacher {bad}/plain.pth --teacher-model resnet56 --teacher-norm none --out {new}",
        1,
        "resnet56",
    ),
    ("cache-logits {x} --teacher nosuchnet --out {new}", 1, "nosuchnet"),
    ("cache-logits {x} --teacher {bad}/three.safetensors --out {new}", 1, "three.safetensors"),
    (f"{CACHE} --mask {{gone}}", 1, "gone"),
    (f"{CACHE} --mask {{x}}", 1, "x.beton"),
    (f"{CACHE} --mask {{l}}", 1, "l.h5"),
    (f"{CACHE} --mask {{bad}}/cut.h5", 1, "cut.h5"),
    (f"{CACHE} --mask {{bad}}/jpg.h5", 1, "jpg.h5"),
    (f"{CACHE} --mask {{bad}}/folder.h5", 1, "folder.h5"),
    (f"{CACHE} --num-seeds 0", 2, "--num-seeds"),
    (f"{CACHE} --num-seeds 163", 1, "163 seeds"),
    (f"{CACHE} --views spiral", 2, "spiral"),
    (f"{CACHE} --views center", 1, "2 seeds"),
    (f"{CACHE} --views crop-flip --size 16", 1, "size 16"),
    (f"{CACHE} --views rrc --size 9999", 1, "9999"),
    ("cache-logits {jpg} --teacher {bad}/three.safetensors --views crop-flip --out {new}", 1, "crop-flip"),
    (f"{CACHE} --codec zip", 2, "zip"),
    (f"{CACHE} --batch-size 0", 2, "--batch-size"),
    (f"{CACHE} --teacher-norm 1,2,3", 1, "--teacher-norm"),
    (f"{CACHE} --teacher-precision int4", 2, "int4"),
    (f"{CACHE} --teacher-model resnet20", 1, "resnet20"),
    (f"{CACHE} --teacher-size 0", 2, "--teacher-size"),
    (f"{CACHE} --device tpu", 1, "tpu"),
    (f"{CACHE} --device cuda:x", 1, "cuda:x"),
    (f"{CACHE} --out {{gone}}/l.h5", 1, "gone"),
    (f"{CACHE} --out {{l}}", 1, "l.h5"),
    (f"{CACHE} --out {{m}}", 1, "m.h5"),
    (f"{CACHE} --out {{bad}}/text", 1, "text"),
    (f"{CACHE} --out {{bad}}/folder.h5", 1, "folder.h5"),
    ("train {bad}/cut.beton --model resnet8 --out {new}", 1, "cut.beton"),
    ("train {x} --out {new}", 2, "--model"),
    ("train {x} --model resnet8", 2, "--out"),
    (f"{TRAIN} --model nosuchnet", 1, "nosuchnet"),
    (f"{TRAIN} --model resnet9", 1, "resnet9"),
    (f"{TRAIN} --mask {{x}}", 1, "x.beton"),
    (f"{TRAIN} --mask {{gone}}", 1, "gone"),
    (f"{TRAIN} --mask {{bad}}/jpg.h5", 1, "jpg.h5"),
    (f"{TRAIN} --logits {{gone}}", 1, "gone"),
    (f"{TRAIN} --logits {{m}}", 1, "m.h5"),
    (f"{TRAIN} --logits {{bad}}/other.h5", 1, "other.h5"),
    (f"{TRAIN} --logits {{bad}}/unfinished.h5", 1, "unfinished.h5"),
    (f"{TRAIN} --logits {{l}} --num-seeds 3", 1, "l.h5"),
    (f"{TRAIN} --logits {{l}} --views rrc", 1, "l.h5"),
    (f"{TRAIN} --logits {{l}} --teacher {{bad}}/stranger.safetensors", 1, "l.h5"),
    ("train {x} --logits {l} --model resnet8 --out {new}", 1, "480 of the 600"),
    (f"{TRAIN} --teacher {{gone}}", 1, "gone"),
    (f"{TRAIN} --teacher {{bad}}/three.safetensors", 1, "three.safetensors"),
    (f"{TRAIN} --val {{gone}}", 1, "gone"),
    (f"{TRAIN} --val {{bad}}/cut.beton", 1, "cut.beton"),
    ("train {jpg} --val {x} --model resnet8 --size 32 --batch-size 8 --epochs 1 --out {new}", 1, "x.beton"),
    (f"{TRAIN} --alpha 0.5", 1, "--alpha"),
    (f"{TRAIN} --alpha 2", 1, "--alpha 2"),
    (f"{TRAIN} --alpha -1", 1, "--alpha -1"),
    (f"{TRAIN} --alpha much", 2, "much"),
    (f"{TRAIN} --tau 0", 1, "--tau 0"),
    (f"{TRAIN} --tau nan", 1, "--tau nan"),
    (f"{TRAIN} --epochs 0", 1, "--epochs 0"),
    (f"{TRAIN} --epochs 1.5", 2, "1.5"),
    ("train {jpg} --model resnet8 --epochs 0 --out {new}", 1, "--epochs 0"),
    (f"{TRAIN} --batch-size 0", 1, "--batch-size 0"),
    (f"{TRAIN} --batch-size 121", 1, "--batch-size"),
    (f"{TRAIN} --batch-size 121 --drop-last", 1, "121"),
    (f"{TRAIN} --lr 0", 1, "--lr 0"),
    (f"{TRAIN} --lr -1", 1, "--lr -1"),
    (f"{TRAIN} --momentum 1", 1, "--momentum 1"),
    (f"{TRAIN} --weight-decay -1", 1, "--weight-decay -1"),
    (f"{TRAIN} --schedule never", 2, "never"),
    (f"{TRAIN} --seed -1", 1, "--seed -1"),
    (f"{TRAIN} --val-every 0", 2, "--val-every"),
    (f"{TRAIN} --norm 1,2", 1, "--norm"),
    (f"{TRAIN} --size 0", 2, "--size"),
    (f"{TRAIN} --device tpu", 1, "tpu"),
    (f"{TRAIN} --device meta", 1, "meta"),
    (f"{TRAIN} --speed high", 2, "--speed"),
    (f"{TRAIN} --out {{bad}}/taken", 1, "notes.txt"),
    (f"{TRAIN} --out {{bad}}/text", 1, "text"),
    (f"{TRAIN} --out {{run}}", 1, "run: another run"),
    ("evaluate {gone} --model {t}", 1, "gone"),
    ("evaluate {x}", 2, "--model"),
    ("evaluate {x} --model {gone}", 1, "gone"),
    ("evaluate {x} --model {bad}/text --model-name resnet20", 1, "text"),
    ("evaluate {x} --model {bad}/plain.pth --model-name resnet56 --norm none", 1, "resnet56"),
    ("evaluate {x} --model {bad}/plain.pth", 1, "--model-name"),
    ("evaluate {x} --model {bad}/plain.pth --model-name resnet8", 1, "--norm"),
    ("evaluate {x} --model {bad}/three.safetensors", 1, "3 outputs"),
    ("evaluate {x} --model {t} --norm grey", 1, "grey"),
    ("evaluate {x} --model {t} --crop-ratio 0", 1, "crop ratio 0"),
    ("evaluate {x} --model {t} --size 0", 2, "--size"),
    ("evaluate {x} --model {t} --batch-size 0", 2, "--batch-size"),
    ("report {bad} --out {new}.html", 1, "bad"),
    ("report {gone} --out {new}.html", 1, "gone"),
    ("report {run} --out {new}.pdf", 1, "new.pdf"),
    ("report {run} --out {gone}/r.html", 1, "gone"),
    *[
        (f"{command} {path}", 1, path[6:])
        for command in ("inspect", "verify")
        for path in (
            "{bad}/cut.beton",
            "{bad}/noise.beton",
            "{bad}/zero.beton",
            "{bad}/cut.h5",
            "{bad}/text",
            "{bad}/gone",
            "{bad}/taken",
        )
    ],
    ("inspect", 2, "FILES"),
    ("verify {bad}/text --write-manifest", 1, "text"),
    ("no-such-command", 2, "no-such-command"),
]


@pytest.mark.parametrize(("line", "code", "culprit"), BAD_INPUT, ids=[line for line, _, _ in BAD_INPUT])
def test_bad_input_is_met_by_one_clear_line(bad, lab, line, code, culprit):
    outcome = fastkd(*bad(line))
    assert_one_clear_line(outcome, culprit)
    assert outcome.code == code, outcome.err
    assert not list(lab.glob("new*"))


def test_a_gpu_that_is_not_there_is_named(bad):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    for device in ("cuda", "cuda:3"):
        outcome = fastkd(*bad(f"{TRAIN} --device {device}"))
        assert_one_clear_line(outcome, f"device {device}: torch sees no GPU")
        assert outcome.code == 1


def test_work_that_is_not_shared_is_done_by_the_first_rank_alone(bad, lab, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    for line in ("build-beton {images}", "prune {x} --keep 5", "report {run}"):
        outcome = fastkd(*bad(line), "--out", lab / "new.html")
        assert (outcome.code, outcome.out) == (0, ""), outcome.err
        assert not list(lab.glob("new*"))
    monkeypatch.setenv("RANK", "0")
    assert fastkd(*bad("prune {x} --keep 5"), "--out", lab / "first.h5", "--json").result["num_kept"] == 5


@pytest.mark.parametrize(("name", "value"), [("RANK", "two"), ("WORLD_SIZE", "-1"), ("RANK", "5")])
def test_an_environment_that_torchrun_never_made_is_named(bad, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert_one_clear_line(fastkd(*bad(TRAIN)), name)
