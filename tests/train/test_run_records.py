"""What a run says of itself, its mask and its teacher, and what its checkpoint and store carry on."""

from helpers.commands import fastkd
from helpers.stores import save_teacher

from fastkd.report.describe import describe, verify
from fastkd.train.run_folder import read_run, with_checksum, write_json


def test_what_describes_a_run_makes_it_no_other_run(raw_beton, raw_mask, tmp_path):
    """Another machine, device or command line goes on with it."""
    command = ["train", raw_beton, "--alpha", 0, "--model", "resnet8", "--epochs", 1, "--batch-size", 300]
    command += ["--num-workers", 1, "--json", "--out", tmp_path / "run"]
    assert fastkd(*command, "--device", "cpu").code == 0
    head = read_run(tmp_path / "run")
    assert head["made"]["command"].startswith(f"fastkd train {raw_beton} --alpha 0 --model resnet8")
    made = head["made"] | {"command": "fastkd train elsewhere", "torch": "1.0", "cuda": "9.0", "device": "a GPU"}
    write_json(
        tmp_path / "run" / "run.json",
        with_checksum({k: v for k, v in head.items() if k != "checksum"} | {"made": made}),
    )
    told = fastkd(*command, "--device", "cpu", "--resident", "off")
    assert "this run is finished" in told.err
    assert verify(tmp_path / "run") == []


def test_run_checkpoint_and_store_carry_what_the_next_one_records(raw_beton, tmp_path):
    cpu = ("--device", "cpu", "--num-workers", 1, "--json")
    short = ("--model", "resnet8", "--epochs", 1, "--batch-size", 100, *cpu)
    files = {name: tmp_path / name for name in ("m.h5", "t", "l.h5", "stored", "live")}
    assert fastkd("prune", raw_beton, "--keep", 0.5, "--seed", 7, "--out", files["m.h5"]).code == 0
    made = fastkd(
        "train", raw_beton, "--mask", files["m.h5"], "--alpha", 0, *short, "--val", raw_beton, "--out", files["t"]
    )
    accuracy, teacher = made.result["val_top1"], files["t"] / "model.safetensors"
    assert describe(teacher)["about"]["mask"]["method"] == "random"
    views = ("--views", "crop-flip", "--num-seeds", 2)
    assert fastkd("cache-logits", raw_beton, "--teacher", teacher, *views, *cpu, "--out", files["l.h5"]).code == 0
    of_store = describe(files["l.h5"])["about"]["teacher"]
    for name, source in (("stored", ["--logits", files["l.h5"]]), ("live", ["--teacher", teacher, *views])):
        assert fastkd("train", raw_beton, *source, *short, "--out", files[name]).code == 0
        about = describe(files[name])["about"]
        found = about["teacher"]
        assert (found["model"], found["fingerprint"]) == ("resnet8", describe(teacher)["fingerprint"])
        assert (found["val_top1"], found["mask"]["fraction"], found["mask"]["seed"]) == (accuracy, 0.5, 7)
        assert found["num_parameters"] == of_store["num_parameters"] > 70_000
        assert about["mask"] == {"method": "all", "fraction": 1.0}
    assert describe(files["stored"])["about"]["logits"]["codec"] == "fp16"
    assert describe(files["live"])["about"]["logits"] is None
    mask = describe(files["t"])["about"]["mask"]
    assert {name: mask[name] for name in ("method", "seed", "keep", "fraction")} == {
        **{"method": "random", "seed": 7, "keep": "0.5", "fraction": 0.5}
    }
    assert mask["inputs"] == describe(files["m.h5"])["inputs"]


def test_of_a_teacher_of_others_nothing_is_made_up(raw_beton, tmp_path):
    teacher = save_teacher(tmp_path / "t.safetensors")
    command = ["train", raw_beton, "--teacher", teacher, "--model", "resnet8", "--epochs", 1, "--batch-size", 300]
    assert fastkd(*command, "--device", "cpu", "--num-workers", 1, "--out", tmp_path / "run").code == 0
    found = describe(tmp_path / "run")["about"]["teacher"]
    assert (found["val_top1"], found["mask"]) == (None, None)
