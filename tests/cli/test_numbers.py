"""Numbers: every option that takes one, with what is no number, what is too much, and what is on the edge."""

import signal
from collections.abc import Iterator

import click
import numpy as np
import pytest
import torch
from helpers.commands import assert_one_clear_line, fastkd

from fastkd.cli import cli
from fastkd.cli.config import NumberText
from fastkd.models.checkpoint import load_model, save_weights

NUMBERS = ("nan", "inf", "-inf", "1e308", "-1e308", "1e999999999", "1e-999999999", "-1", "0", str(2**63), "9" * 40)
NO_NUMBERS = NUMBERS[:3]
KINDS = (click.types.IntParamType, click.types.FloatParamType, NumberText)
CPU = "--device cpu"
TRAIN = f"train {{x}} --mask {{m}} --model resnet8 --out {{out}} {CPU} --epochs 1 --logits {{l}}"
SCORE = f"score {{x}} --out {{out}} {CPU} --method el2n --model {{t}}"
MEMORIZATION = f"score {{x}} --out {{out}} {CPU} --method memorization --num-models 2 --epochs 1"
PRUNE = "prune {x} --out {out} --keep 0.2 --scores {s} --score el2n"
LINES = {
    "build-beton": "build-beton {folder} --out {out} --mode raw",
    "score": SCORE,
    "prune": "prune {x} --keep 0.2 --out {out}",
    "plan": "plan {x} --num-seeds 2",
    "cache-logits": f"cache-logits {{x}} --mask {{m}} --teacher {{t}} --num-seeds 1 --out {{out}} {CPU}",
    "train": TRAIN,
    "evaluate": f"evaluate {{x}} --model {{t}} {CPU}",
    "inspect": "inspect {m} --beton {x} --gallery {out}.png",
    "sweep": "sweep paper:theorem --set theorem.draws=2 --set theorem.data-seeds=[0] --out {out}",
    "verify": f"verify {{l}} --against {{x}} --teacher {{t}} {CPU}",
}
OF_OPTIONS = {
    **dict.fromkeys(("--num-models", "--subset", "--min-count"), MEMORIZATION),
    "--num-samples": "plan --num-classes 10 --num-seeds 2",
    "--num-classes": "plan --num-samples 100 --num-seeds 2",
    "--embedding-dim": "plan {x} --num-seeds 2 --outputs logits,embedding",
    "--max-kl": LINES["cache-logits"],
    "--tau": f"{LINES['cache-logits']} --max-kl 1",
    "--drop-hardest": f"{PRUNE} --method ccs --hardness el2n",
    "--strata": f"{PRUNE} --method ccs --hardness el2n",
    "--exponent": f"{PRUNE} --method dual-beta",
    "--beta-total": f"{PRUNE} --method dual-beta --exponent 4",
    **dict.fromkeys(
        ("--neighbours", "--gamma-forward", "--gamma-reverse"), f"{PRUNE} --method d2 --features {{f}} --hardness el2n"
    ),
}
"""What else a command needs, for an option that does nothing elsewhere."""
OF_TRAINING = {
    "--beta": f"{TRAIN} --kd dkd",
    "--mix-alpha": f"train {{x}} --mask {{m}} --model resnet8 --out {{out}} {CPU} --epochs 1 --alpha 0 --mix mixup",
    "--num-seeds": f"train {{x}} --mask {{m}} --model resnet8 --out {{out}} {CPU} --epochs 1 --alpha 0",
    "--size": f"train {{x}} --mask {{m}} --model resnet8 --out {{out}} {CPU} --epochs 1 --alpha 0",
    **dict.fromkeys(("--val-every", "--val-size"), f"{TRAIN} --val {{x}}"),
    **dict.fromkeys(("--resize-start", "--resize-end"), f"{TRAIN} --resize-from 16"),
    "--teacher-size": f"train {{x}} --mask {{m}} --model resnet8 --out {{out}} {CPU} --epochs 1 --teacher {{t}}",
    "--dual-window": f"{TRAIN} --record dual",
    "--el2n-epochs": f"{TRAIN} --record el2n",
    "--tau": TRAIN,
    "--steps": TRAIN.replace(" --epochs 1", ""),
    "--eps": f"{TRAIN} --opt adamw",
    "--min-lr": f"{TRAIN} --schedule cosine",
}
OPTIONS = [
    (name, param.opts[0])
    for name, one in cli.commands.items()
    for param in one.params
    if isinstance(param, click.Option) and isinstance(param.type, KINDS)
]


def line_of(command: str, option: str) -> str:
    if command == "train":
        return OF_TRAINING.get(option, TRAIN)
    if option == "--mix-alpha":
        return f"{LINES[command]} --mix mixup"
    if option == "--teacher-size" and command == "plan":
        return f"{LINES[command]} --teacher {{t}} --outputs logits,embedding"
    if command == "score" and option in ("--epochs", "--seed"):
        return MEMORIZATION
    return OF_OPTIONS.get(option, LINES[command])


@pytest.fixture(scope="module")
def files(raw_folder, raw_beton, raw_mask, teacher_file, teacher_store, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("numbers")
    found = {"folder": raw_folder, "x": raw_beton, "m": raw_mask, "t": teacher_file, "l": teacher_store}
    found |= {"s": folder / "s.h5", "f": folder / "f.h5"}
    line = f"{SCORE} --method moderate --features-out {{f}} --force".format(**found, out=found["s"])
    assert fastkd(*line.split()).code == 0
    return found


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    """Nothing of what follows may take long."""

    def late(*_: object) -> None:
        raise TimeoutError("a number keeps a command busy")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_a_number_is_taken_or_refused_in_one_line(command, option, files, tmp_path):
    for i, number in enumerate(NUMBERS):
        line = line_of(command, option).format(**files, out=tmp_path / f"o{i}").split()
        outcome = fastkd(*line, option, number, "--json")
        if outcome.code == 0:
            assert number not in NO_NUMBERS
            assert "NaN" not in outcome.out
            assert "Infinity" not in outcome.out
        else:
            assert_one_clear_line(outcome, "")
            if number in NO_NUMBERS:
                assert option in outcome.err


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_each_number_has_a_range_that_is_checked(command, option, files, tmp_path):
    """The largest and the smallest are refused by the option's own range, whose words name it."""
    param = next(one for one in cli.commands[command].params if option in one.opts)
    if isinstance(param.type, click.types._NumberRangeBase):
        assert param.type.min is not None or isinstance(param.type, click.types.FloatParamType)
    for i, number in enumerate(("-1e308", "1e308") if "float" in param.type.name else ("-" + "9" * 40, "9" * 40)):
        line = line_of(command, option).format(**files, out=tmp_path / f"o{i}").split()
        outcome = fastkd(*line, option, number)
        if command == "cache-logits" and option == "--max-kl" and i == 1:
            assert outcome.code == 0  # any number is a limit
            continue
        assert outcome.code in (1, 2)
        assert option.lstrip("-").split("-")[0] in outcome.err


@pytest.fixture(scope="module")
def broken(teacher_file, tmp_path_factory) -> dict:
    """Networks with weights that are no numbers, by what is in them."""
    found = {}
    for name, value in (("nan", np.nan), ("inf", np.inf), ("huge", 3e38)):
        model, meta = load_model(teacher_file)
        with torch.no_grad():
            list(model.parameters())[-2][3] = value  # a row of the last layer
        found[name] = tmp_path_factory.mktemp("broken") / f"{name}.safetensors"
        save_weights(found[name], model, meta)
    return found


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize(
    "line",
    [
        LINES["evaluate"],
        SCORE,
        LINES["cache-logits"],
        f"train {{x}} --mask {{m}} --model resnet8 --out {{out}} {CPU} --epochs 1 --teacher {{t}}",
        f"train {{x}} --mask {{m}} --model resnet8 --out {{out}} {CPU} --epochs 1 --alpha 0 --init {{t}}",
    ],
)
def test_a_network_whose_outputs_are_no_numbers_has_no_accuracy_and_teaches_nobody(
    line, value, files, broken, tmp_path
):
    outcome = fastkd(*line.format(**files | {"t": broken[value]}, out=tmp_path / "out").split())
    lines = [line for line in outcome.err.splitlines() if "error" in line]
    assert outcome.code == 1, outcome.err
    assert len(lines) == 1
    assert "finite" in lines[0]
    assert "internal" not in lines[0]


@pytest.mark.parametrize("line", [LINES["evaluate"], SCORE, LINES["cache-logits"]])
def test_outputs_that_overflow_are_refused_by_the_sample(line, files, broken, tmp_path):
    outcome = fastkd(*line.format(**files | {"t": broken["huge"]}, out=tmp_path / "out").split())
    assert_one_clear_line(outcome, "finite numbers")
    assert outcome.code == 1
    assert "of sample " in outcome.err
