"""The long scripts on training, shortened: what they assert holds, and they write what they claim."""

import json
import os
import sys
from pathlib import Path

import pytest
from helpers.scripts import benchmark
from helpers.stores import save_teacher

from fastkd.data.sources.open import open_source


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A function that runs a script with arguments and returns its result."""
    monkeypatch.setattr(benchmark("measure"), "RESULTS", tmp_path)

    def run_script(name: str, *arguments: object) -> dict:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments), "--name", "found"])
        benchmark(name).main()
        return json.loads((tmp_path / "found.json").read_text())

    return run_script


def test_resident_data_against_the_loader(run, raw_beton):
    few = ["--images", 64, "--batch-size", 16, "--num-seeds", 2, "--steps", 2, "--rounds", 1, "--num-workers", 1]
    found = run("train.train_resident", raw_beton, "--model", "resnet8", *few)
    assert found["equal"] == {"batches_byte_equal": 8, "losses_equal": 8}
    assert found["extrapolated_from_steps"] == 2
    seconds = 64 * 240 / found["images_per_s"]["resident"]["median"]
    assert found["extrapolated_s"] == pytest.approx(seconds)
    assert "measured_s" not in found


def test_the_store_against_the_live_teacher_for_each_pair_at_its_own_size(run, raw_beton, jpg_beton):
    pairs = [("resnet8:resnet14@32", raw_beton, 64, 16), ("resnet8:resnet14@48", jpg_beton, 24, 8)]
    found = run("train.train_rate", *(word for pair in pairs for word in ("--pair", *pair)), "--rounds", 2)
    assert [(p["views"], p["size"], p["classes"]) for p in found["pairs"].values()] == [
        ("crop-flip", 32, 10),
        ("rrc", 48, 3),
    ]
    for pair in found["pairs"].values():
        rates = pair["images_per_s"]
        assert set(rates) == {"labels", "store", "live", "student_alone", "teacher_alone"}
        low, high = (
            1 + rates["student_alone"][a] / rates["teacher_alone"][b] for a, b in (("min", "max"), ("max", "min"))
        )
        assert 1 < low <= pair["bound_of_store_over_live"]["median"] <= high


def test_a_transformer_by_its_own_recipe_against_sgd(run, raw_beton, teacher_file):
    few = [
        "--teacher",
        teacher_file,
        "--images",
        120,
        "--epochs",
        8,
        "--batch-size",
        12,
        "--sgd-lr",
        0.0001,
        "--num-seeds",
        2,
    ]
    found = run("train.vit_recipe", raw_beton, raw_beton, *few)
    assert found["adamw_over_sgd_points"] > 0
    assert found["best"] == ["adamw 0.001", "sgd 0.0001"]


def test_killed_training_runs_end_with_the_same_bytes(run, raw_beton):
    found = run("train.train_kills", raw_beton, "--kills", 2, "--images", 64)
    assert found["kills"] == {"SIGKILL": 1, "SIGTERM": 1}
    assert found["runs_finished_all_byte_equal"] >= 1
    assert found["steps_of_a_run"] == 8


def test_training_runs_that_ctrl_c_stopped_end_with_the_same_bytes(run, raw_beton):
    options = ["--signals", "SIGINT", "--kills", 3, "--at-steps", "--images", 64, "--epochs", 4]
    found = run("train.train_kills", raw_beton, *options, "--record")
    assert found["kills_of_each_run"] == [3]
    assert found["runs_finished_all_byte_equal"] == 1
    assert found["compared"] == ["weights", "scores", "metrics of steps and epochs"]


def test_photos_over_and_over_for_a_large_network(run, jpg_folder, tmp_path):
    small = ["--model", "resnet8", "--size", 32, "--batch-size", 4, "--num-workers", 1]
    short = ["--num-samples", 30, "--steps", 3, "--warmup-steps", 1, "--rounds", 1, "--loader-batches", 2]
    found = run("train.train_imagenet_gpu", jpg_folder, tmp_path / "photos", *small, *short)
    assert (found["num_samples"], found["train"]["steps"]) == (30, 3)  # 24 photos
    assert found["train"]["images_per_s"] > 0
    assert 0 <= found["train"]["data_wait_percent"] <= 100
    assert found["loader_over_decode_limit"]["median"] > 0


def test_scores_of_two_seeds_by_every_method(run, raw_beton, tmp_path):
    few = ["--epochs", 3, "--num-models", 2, "--subset-epochs", 1, "--device", "cpu"]
    found = run("prune.score_stability", raw_beton, tmp_path / "work", *few, "--gallery", tmp_path / "hard.png")
    assert set(found["between_two_seeds"]) == {
        *(f"{name}, recorded" for name in ("forgetting", "el2n", "aum", "dual")),
        *(f"{name}, trained network" for name in ("el2n", "grand", "moderate", "margin", "entropy")),
        *(f"{name}, store" for name in ("confidence", "variance")),
        "memorization, subsets",
    }
    assert found["between_two_seeds"]["el2n, recorded"]["num_samples"] == 600
    assert (tmp_path / "hard.png").read_bytes().startswith(b"\x89PNG")


def test_bfloat16_beside_float32_seed_by_seed(run, raw_beton, teacher_file):
    few = ["--images", 64, "--epochs", 1, "--batch-size", 32, "--seeds", 2, "--num-seeds", 1]
    found = run("train.bf16_accuracy", raw_beton, raw_beton, "--teacher", teacher_file, *few)
    plain, both = (found["top1_percent"][f"teacher {kind}, student {kind}"] for kind in ("fp32", "bf16"))
    told = found["against_float32"]["teacher bf16, student bf16"]
    assert told["points"] == [value - base for value, base in zip(both, plain, strict=True)]
    assert len(found["against_float32"]) == 3
    assert set(found["teachers_top1_percent"]) == {"fp32", "bf16"}


@pytest.mark.parametrize(
    ("values", "is_loss"), [([1.0, 2.0, 3.5], False), ([0.9, 2.3, 3.4], False), ([0.0, 1.1, 2.4], True)]
)
def test_a_loss_is_more_than_seeds_differ(values, is_loss):
    assert benchmark("train.bf16_accuracy").against(values, [1.0, 2.0, 3.5])["is_loss"] is is_loss


def test_the_whole_job_beside_repdistillers(run, raw_folder):
    """`FASTKD_PEERS` names a folder with their checkouts."""
    checkout = peer("RepDistiller")
    few = ["--num-images", 64, "--batch-size", 32, "--epochs", 2, "--rounds", 1, "--pair", "resnet8:resnet14"]
    found = run("train.peers", "--repdistiller", checkout, "--images", raw_folder, *few)["by_cores"]["1"]
    assert set(found["cpu_s"]) == {"fastkd fill", "fastkd", "repdistiller"}
    for name in ("fastkd fill", "fastkd", "repdistiller"):
        assert 0 < found["peak_anonymous_bytes"][name]["median"] <= found["peak_bytes"][name]["median"]
    whole = found["repdistiller over fastkd"]["whole_job"]["median"]
    assert whole == pytest.approx(found["cpu_s"]["repdistiller"]["median"] / found["cpu_s"]["fastkd"]["median"])


def test_the_whole_job_beside_timms(run, jpg_folder):
    checkout = peer("pytorch-image-models")
    pytest.importorskip("huggingface_hub")
    few = [
        "--num-images",
        16,
        "--batch-size",
        8,
        "--epochs",
        2,
        "--rounds",
        1,
        "--size",
        48,
        "--pair",
        "resnet18:resnet34",
    ]
    found = run("train.peers", "--timm", checkout, "--images", jpg_folder, *few)["by_cores"]["1"]
    assert set(found["cpu_s"]) == {"fastkd fill", "fastkd", "timm", "timm tuned"}
    assert {"timm over fastkd", "timm tuned over fastkd"} <= found.keys()


def peer(name: str) -> Path:
    """The checkout of another project."""
    found = Path(os.environ.get("FASTKD_PEERS", "/nowhere")) / name
    if not found.is_dir():
        pytest.skip(f"FASTKD_PEERS names no folder with {name}")
    return found


def test_evaluation_beside_torchvisions(run, jpg_folder, tmp_path):
    path = save_teacher(tmp_path / "t.safetensors", name="resnet18", num_classes=3)
    found = run("train.evaluate_top1", jpg_folder, "--model", path, "--size", 48)
    assert found["num_images"] == len(open_source(str(jpg_folder)))
    for way in found["fastkd"].values():
        assert way["other_classes"] <= 1
        assert way["top1_less_torchvisions"] == pytest.approx(way["top1"] - found["torchvision_top1"])
