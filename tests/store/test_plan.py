from pathlib import Path

import numpy as np
import pytest
from helpers.commands import fastkd
from helpers.stores import save_teacher

from fastkd.errors import OptionError
from fastkd.prune.masks.mask import save_mask
from fastkd.store.codec import make_codec
from fastkd.store.plan import make_plan

IMAGENET = {"num_rows": 128_117, "num_seeds": 50, "codec": make_codec("int8+top4", 1000), "epochs": 240}


def test_the_costs_are_those_of_the_arithmetic():
    plan = make_plan(**IMAGENET, num_students=3)
    assert plan.store_forwards == 128_117 * 50
    assert plan.live_forwards == 128_117 * 240 * 3
    assert plan.epoch_bytes == 128_117 * 1024
    assert plan.hours(1000.0)["store_hours"] == pytest.approx(128_117 * 50 / 3.6e6)


@pytest.mark.parametrize(("num_seeds", "epochs", "students"), [(50, 240, 1), (240, 240, 2), (162, 50, 4), (1, 1, 2)])
def test_break_even_is_the_first_number_of_students_that_pays(num_seeds, epochs, students):
    plans = [
        make_plan(**IMAGENET | {"num_seeds": num_seeds, "epochs": epochs}, num_students=count) for count in range(1, 9)
    ]
    pays = [plan.store_forwards < plan.live_forwards for plan in plans]
    assert plans[0].break_even_students == students
    assert pays == [count >= students for count in range(1, 9)]


@pytest.mark.parametrize("name", ["num_rows", "num_seeds", "epochs", "num_students"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(OptionError, match=r"0 [a-z]+, expected at least 1"):
        make_plan(**{"num_students": 1, **IMAGENET, name: 0})


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    save_teacher(folder / "t.safetensors")
    return folder


@pytest.mark.parametrize("codec", ["fp16", "int8+top4", "int4+top8"])
def test_the_bytes_planned_are_the_bytes_written(lab, raw_beton, raw_mask, codec):
    shape = [
        "--mask",
        raw_mask,
        "--views",
        "crop-flip",
        "--num-seeds",
        2,
        "--codec",
        codec,
        "--batch-size",
        64,
        "--json",
    ]
    planned = fastkd("plan", raw_beton, *shape).result
    made = fastkd(
        "cache-logits", raw_beton, *shape, "--teacher", lab / "t.safetensors", "--device", "cpu", "--out", lab / codec
    )
    assert planned["size_bytes"] == made.result["size_bytes"] == (lab / codec).stat().st_size
    assert planned["store_forwards"] == made.result["rows_written"]


def test_a_data_set_that_is_not_there_yet_is_planned_by_its_numbers(tmp_path):
    numbers = ["--num-samples", 1000, "--num-classes", 100, "--num-seeds", 8, "--json"]
    assert fastkd("plan", *numbers, "--keep", 0.3).result["num_rows"] == 300
    save_mask(tmp_path / "m.h5", np.arange(7), num_samples=1000, beton_fingerprint="b" * 32, params={})
    assert fastkd("plan", *numbers, "--mask", tmp_path / "m.h5").result["num_rows"] == 7
    assert fastkd("plan", *numbers).result["codec"] == "int8+top4"


def test_the_hours_are_those_of_the_rate(raw_beton, lab):
    known = fastkd("plan", raw_beton, "--num-seeds", 4, "--images-per-s", 2400, "--json").result
    assert known["store_hours"] == pytest.approx(2400 / 2400 / 3600)
    assert known["live_hours"] == pytest.approx(600 * 240 / 2400 / 3600)


def test_the_rate_is_measured_on_the_spot(raw_beton, lab, monkeypatch):
    monkeypatch.setattr("fastkd.teacher.rate.SECONDS", 0.2)
    teacher = ["--teacher", lab / "t.safetensors", "--device", "cpu", "--num-workers", 1]
    found = fastkd("plan", raw_beton, "--num-seeds", 4, "--measure", *teacher, "--json").result
    assert 10 < found["images_per_s"] < 1e6
    assert found["store_hours"] == pytest.approx(2400 / found["images_per_s"] / 3600)


def test_people_get_a_table():
    outcome = fastkd("plan", "--num-samples", 1000, "--num-classes", 100, "--num-seeds", 8, "--num-students", 2)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert len(lines) == 7
    assert "8 views of 1,000 samples, 100 classes" in lines[0]
    size = make_plan(num_rows=1000, num_seeds=8, codec=make_codec("auto", 100), epochs=240).size_bytes
    assert f"{size:,} bytes" in lines[2]


@pytest.mark.parametrize(
    ("line", "code", "culprit"),
    [
        ("plan", 2, "BETON"),
        ("plan --num-samples 10", 2, "--num-classes"),
        ("plan {x} --num-samples 10", 2, "--num-samples"),
        ("plan {x} --mask {m} --keep 0.1", 2, "--keep"),
        ("plan {x} --measure", 2, "--teacher"),
        ("plan {x} --measure --teacher {t} --images-per-s 3", 2, "--images-per-s"),
        ("plan {x} --keep 1.5", 1, "1.5"),
        ("plan {x} --num-seeds 0", 2, "--num-seeds"),
        ("plan {x} --epochs 0", 2, "--epochs"),
        ("plan {x} --codec zip", 2, "zip"),
        ("plan {t}", 1, "t.safetensors"),
        ("plan {x} --mask {t}", 1, "t.safetensors"),
        ("plan {x} --measure --teacher {m}", 1, "mask.h5"),
        ("merge --out {new}", 2, "SHARD"),
        ("merge {m} --out {new}", 1, "is a mask, expected a logit-store"),
        ("merge {gone} --out {new}", 1, "gone"),
        ("verify {m} --against {x}", 2, "--teacher"),
        ("verify {m} --against {x} --teacher {t}", 1, "is a mask, expected a logit-store"),
        ("cache-logits {x} --teacher {t} --out {new} --shard 3/2", 2, "--shard"),
        ("cache-logits {x} --teacher {t} --out {new} --shard two", 2, "--shard"),
        ("cache-logits {x} --teacher {t} --out {new} --max-kl 0", 2, "--max-kl"),
        ("cache-logits {x} --teacher {t} --out {new} --reuse {m}", 1, "is a mask, expected a logit-store"),
        ("cache-logits {x} --teacher {t} --out {new} --reuse {gone}", 1, "gone"),
    ],
)
def test_bad_input_is_met_by_one_clear_line(lab, raw_beton, raw_mask, tmp_path, line, code, culprit):
    names = {
        "x": raw_beton,
        "m": raw_mask,
        "t": lab / "t.safetensors",
        "new": tmp_path / "new",
        "gone": tmp_path / "gone",
    }
    outcome = fastkd(*[word.format(**names) for word in line.split()])
    assert outcome.code == code, outcome.err
    assert culprit in outcome.err
    assert "Traceback" not in outcome.err
    assert "internal error" not in outcome.err
    assert not (tmp_path / "new").exists()


def test_verify_computes_rows_again_and_says_what_it_found(lab, raw_beton, raw_mask, tmp_path):
    teacher = ["--teacher", lab / "t.safetensors", "--device", "cpu"]
    made = ["--mask", raw_mask, "--views", "crop-flip", "--num-seeds", 2, *teacher, "--out", tmp_path / "l.h5"]
    assert fastkd("cache-logits", raw_beton, *made).code == 0
    outcome = fastkd("verify", tmp_path / "l.h5", "--against", raw_beton, *teacher, "--rows", 50, "--json")
    assert outcome.result["ok"] is True
    (found,) = outcome.result["recomputed"]
    assert 40 < found["rows"] <= 50
    assert found["mean_kl"] < 1e-6
    save_teacher(tmp_path / "other.safetensors", seed=3)
    other = ["--teacher", tmp_path / "other.safetensors", "--device", "cpu"]
    outcome = fastkd("verify", tmp_path / "l.h5", "--against", raw_beton, *other)
    assert outcome.code == 1
    assert "made for another teacher" in outcome.err


def test_shards_are_filled_and_merged_on_the_command_line(lab, raw_beton, raw_mask, tmp_path):
    made = ["--mask", raw_mask, "--views", "crop-flip", "--num-seeds", 2, "--teacher", lab / "t.safetensors"]
    options = [*made, "--batch-size", 32, "--device", "cpu", "--json"]
    shards = [tmp_path / f"{i}.h5" for i in (1, 2)]
    for i, path in enumerate(shards, 1):
        assert fastkd("cache-logits", raw_beton, *options, "--shard", f"{i}/2", "--out", path).code == 0
    merged = fastkd("merge", *shards, "--out", tmp_path / "l.h5", "--json").result
    assert (merged["kind"], merged["num_rows"], merged["num_shards"]) == ("logit-store", 200, 2)
    assert fastkd("verify", tmp_path / "l.h5").code == 0
