"""Named recipes and the options that say how a student is trained, as they are typed and as files say them."""

import tomllib

import pytest
from helpers.commands import assert_one_clear_line, fastkd
from helpers.runs import make_run

from fastkd.errors import OptionError
from fastkd.report.facts import differing, facts_of, label_of
from fastkd.train.recipe import choose_recipe
from fastkd.train.recipes.named import NAMED, read_named
from fastkd.train.run_folder import read_run

TRAIN = ("train", "x.beton", "--model", "resnet8", "--out", "run")
CPU = ("--device", "cpu", "--num-workers", 1, "--epochs", 1, "--batch-size", 100)


def dumped(*words: object) -> dict:
    outcome = fastkd(*TRAIN, *words, "--dump-config")
    assert outcome.code == 0, outcome.err
    return tomllib.loads(outcome.out)["train"]


@pytest.mark.parametrize("name", NAMED)
def test_a_recipe_is_values_of_options_that_the_command_takes_and_shows(name, tmp_path):
    values, _ = read_named(name)
    shown = dumped("--recipe", name)
    assert {key: str(value) for key, value in values.items()}.items() <= {k: str(v) for k, v in shown.items()}.items()
    (tmp_path / "c.toml").write_text(fastkd(*TRAIN, "--recipe", name, "--dump-config").out)
    assert dumped("--config", tmp_path / "c.toml") == shown


def test_the_recipes_are_these_and_each_names_its_source():
    assert set(NAMED) == {"paper-cifar", "paper-imagenet", "deit-s", "convnext-t", "resnet-a3", "fast-cifar"}


@pytest.mark.parametrize(("name", "views"), [("paper-cifar", "crop-flip"), ("paper-imagenet", "rrc")])
def test_the_papers_recipes_are_what_its_views_suggest(name, views):
    values, left_out = read_named(name)
    given = {key.replace("-", "_"): value for key, value in values.items() if key not in ("views", "size")}
    assert choose_recipe(views, 10, model="resnet8", **given) == choose_recipe(views, 10, model="resnet8")
    assert left_out == ""


def test_what_is_typed_goes_before_a_file_and_a_file_before_a_recipe(tmp_path):
    (tmp_path / "c.toml").write_text("[train]\nlr = 0.3\nepochs = 7\n")
    for order in (
        ("--recipe", "deit-s", "--config", tmp_path / "c.toml"),
        ("--config", tmp_path / "c.toml", "--recipe", "deit-s"),
    ):
        shown = dumped(*order, "--epochs", 9)
        assert (shown["lr"], shown["epochs"], shown["weight-decay"]) == (0.3, 9, 0.05)
    (tmp_path / "r.toml").write_text('[train]\nrecipe = "deit-s"\nlr = 0.3\n')
    shown = dumped("--config", tmp_path / "r.toml")
    assert (shown["lr"], shown["epochs"], shown["opt"]) == (0.3, 300, "adamw")


def test_typed_steps_take_the_place_of_a_recipes_epochs_and_are_read_back(tmp_path):
    outcome = fastkd(*TRAIN, "--recipe", "deit-s", "--steps", 100, "--dump-config")
    shown = tomllib.loads(outcome.out)["train"]
    assert shown["steps"] == 100
    assert "epochs" not in shown
    (tmp_path / "c.toml").write_text(outcome.out)
    assert dumped("--config", tmp_path / "c.toml") == shown
    back = dumped("--config", tmp_path / "c.toml", "--epochs", 3)
    assert back["epochs"] == 3
    assert "steps" not in back


def test_a_run_has_steps_or_epochs(raw_beton, tmp_path):
    outcome = fastkd(
        "train", raw_beton, "--model", "resnet8", "--alpha", 0, "--out", tmp_path / "r", *CPU, "--steps", 3
    )
    assert_one_clear_line(outcome, "--steps 3 and --epochs 1: give one of them")


def test_a_recipe_trains_and_says_what_it_leaves_out(raw_beton, raw_mask, teacher_store, tmp_path):
    words = ("--mask", raw_mask, "--logits", teacher_store, "--model", "resnet8", "--out", tmp_path / "r")
    more = (
        "--clip-grad",
        1,
        "--alpha",
        "0:1,1:0.5",
        "--betas",
        "0.9,0.99",
        "--opt",
        "adamw",
        "--lr",
        0.001,
        "--no-decay",
        "norm",
    )
    outcome = fastkd(
        "train", raw_beton, *words, "--recipe", "fast-cifar", *CPU, "--accumulate", 2, *more, "--momentum", 0.9
    )
    assert_one_clear_line(outcome, "--momentum does nothing with --opt adamw")
    (tmp_path / "c.toml").write_text('[train]\nschedule = "cosine"\nwarmup-epochs = 0.5\n')
    outcome = fastkd(
        "train",
        raw_beton,
        *words,
        *CPU[:-2],
        "--batch-size",
        50,
        "--config",
        tmp_path / "c.toml",
        "--accumulate",
        2,
        *more,
    )
    assert outcome.code == 0, outcome.err
    assert "adamw, weight decay 0.05, none on norm, 2 batches of 50 an update, warm-up 0.5 epochs" in outcome.err
    assert "gradients clipped to 1, alpha along 0: 1, 1: 0.5 of training" in outcome.err
    recipe = read_run(tmp_path / "r")["params"]["recipe"]
    told = {
        "opt": "adamw",
        "betas": [0.9, 0.99],
        "no_decay": ["norm"],
        "clip_grad": 1.0,
        "accumulate": 2,
        "warmup_epochs": 0.5,
    }
    assert told.items() <= recipe.items()
    assert recipe["alpha_course"] == [[0.0, 1.0], [1.0, 0.5]]
    assert read_run(tmp_path / "r")["params"]["global_batch"] == 100


def test_what_a_recipe_leaves_out_is_said(raw_beton, tmp_path):
    words = ("--model", "resnet8", "--alpha", 0, "--out", tmp_path / "r", "--recipe", "fast-cifar", "--device", "cpu")
    outcome = fastkd("train", raw_beton, *words, "--steps", 1, "--batch-size", 100)
    assert outcome.code == 0, outcome.err
    assert "--recipe fast-cifar is its source's but for: translation by 2 pixels in place of 4" in outcome.err
    assert "1 steps, in epochs of 6 steps of 100, lr 0.5 (cyclic)" in outcome.err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            ("--batch-size", 100),
            "lr 0.5 is the recipe's for 512 samples an update, here are 100; a good one for them is likely lower",
        ),
        (("--batch-size", 150, "--accumulate", 4), "here are 600; a good one for them is likely higher: --lr"),
        (("--batch-size", 256, "--accumulate", 2), None),
        (("--batch-size", 100, "--lr", 0.1), None),
    ],
)
def test_a_recipes_rate_at_other_updates_than_its_own_is_said(raw_beton, tmp_path, more, told):
    words = ("--model", "resnet8", "--alpha", 0, "--out", tmp_path / "r", "--recipe", "fast-cifar", "--device", "cpu")
    outcome = fastkd("train", raw_beton, *words, "--steps", 1, *more)
    assert outcome.code == 0, outcome.err
    assert told in outcome.err if told else "samples an update" not in outcome.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--alpha", "0:1,0:0"), "the fractions must increase"),
        (("--tau", "0:4;1"), "expected pairs fraction:tau"),
        (("--tau", "warm"), "is neither a number nor lines such as 0:1,0.5:0.5"),
        (("--recipe", "deit"), "is not one of"),
    ],
)
def test_malformed_lines_and_unknown_recipes_are_usage_errors(words, told):
    outcome = fastkd(*TRAIN, *words)
    assert outcome.code == 2
    assert told in " ".join(outcome.err.split())


@pytest.mark.parametrize(("option", "text"), [("--betas", "a,b"), ("--milestones", "1,x"), ("--no-decay", "norms")])
def test_malformed_lists_are_one_clear_line(option, text, raw_beton, tmp_path):
    opt = ("--opt", "adamw") if option == "--betas" else ()
    outcome = fastkd(
        "train", raw_beton, "--model", "resnet8", "--alpha", 0, "--out", tmp_path / "r", *CPU, *opt, option, text
    )
    assert_one_clear_line(outcome, option)
    assert outcome.code == 1


def test_reports_tell_runs_apart_by_what_they_update_with(tmp_path):
    runs = [
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", opt="adamw", clip_grad=1.0, alpha_course=[[0, 1], [1, 0]]),
    ]
    facts = [facts_of(read_run(one)) for one in runs]
    names = differing(facts)
    assert {"opt", "clip_grad", "alpha_course"} <= set(names)
    labels = [label_of(one, facts, names) for one in facts]
    assert labels[0] != labels[1]
    assert all(word in labels[1] for word in ("opt adamw", "clip_grad 1", "α=0:1,1:0"))


def test_an_option_of_no_recipe_is_an_error_of_ours():
    with pytest.raises(
        OptionError, match="--schedule exponential: expected one of step, cosine, linear, constant, cyclic"
    ):
        choose_recipe("crop-flip", 10, model="resnet8", schedule="exponential")
