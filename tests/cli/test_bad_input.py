"""Bad input to every command: one clear line, and nothing lost."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.commands import assert_one_clear_line, fastkd
from helpers.stores import make_store, random_logits, save_teacher

from fastkd.data.beton.dataset import open_dataset
from fastkd.models.registry import create_model
from fastkd.prune.masks.mask import Mask


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
    (f"{CACHE} --out {{m}}", 1, "is what"),
    (f"{CACHE} --out {{run}}", 1, "is a folder"),
    (f"{CACHE} --out {{t}}", 1, "is what"),
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
    ("evaluate {x} --model {bad}/three.safetensors", 1, "three.safetensors has 3"),
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
        pytest.skip("here is a GPU")
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
