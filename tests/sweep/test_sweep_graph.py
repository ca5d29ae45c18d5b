"""From cells to commands: what is made once, what is shared, and what no command would take."""

import json
from pathlib import Path

import pytest
from helpers.commands import fastkd
from helpers.suites import GRID, kinds, planned

from fastkd.errors import NotFoundError, OptionError
from fastkd.sweep.costs import Data, cost_of, live_forwards
from fastkd.sweep.graph import Plan, levels

DIGITS = Data(num_samples=1438, num_classes=10, size=8)
SECTIONS = GRID[: GRID.index("[matrix]")]


def stores(plan: Plan) -> list[tuple[str, int | None]]:
    """The mask of each store by its label, and its K."""
    found = [job for job in plan.jobs.values() if job.kind == "store"]
    return sorted(
        (plan.jobs[job.about["mask"]].label if job.about["mask"] else "all", job.about["num_seeds"]) for job in found
    )


def test_each_output_is_made_once_and_each_command_comes_after_what_it_reads():
    plan = planned()
    assert kinds(plan) == {"beton": 2, "teacher": 1, "mask": 4, "store": 2, "run": 8}
    names = list(plan.jobs)
    assert all(names.index(name) < names.index(job.name) for job in plan.jobs.values() for name in job.inputs.values())
    assert [sorted({job.kind for job in level}) for level in levels(plan, list(plan.jobs.values()))] == [
        *(["beton"], ["mask", "run", "teacher"][::2], ["run", "store"], ["run"])
    ]


def test_nested_masks_share_the_store_of_the_largest():
    assert stores(planned()) == [("random-0.3-s0", 5), ("random-0.3-s1", 5)]


def test_stores_that_would_together_be_as_large_as_one_of_all_samples_are_that():
    assert stores(planned(GRID, "prune.keep=[0.1, 0.5]")) == [("all", 5)]


def test_runs_of_fewer_views_read_the_store_of_the_most():
    plan = planned(SECTIONS + "[matrix]\nprune.keep = [0.1]\ntrain.num-seeds = [1, 4, 16]\ntrain.alpha = [0.5]")
    assert stores(plan) == [("random-0.1-s0", 16)]
    given = [job.words[job.words.index("--num-seeds") + 1] for job in plan.jobs.values() if job.kind == "run"]
    assert given == ["1", "4", "16"]


@pytest.mark.parametrize(
    "other", ["cache-logits.codec = ['fp16', 'int8+top4']", "train.size = [8, 16]", "train.kd = ['kd', 'pkt']"]
)
def test_what_makes_other_logits_makes_another_store(other):
    assert len(stores(planned(f"{SECTIONS}[matrix]\nprune.keep = [0.1]\ntrain.alpha = [0.5]\n{other}"))) == 2


def test_mixed_views_have_a_store_for_each_mask():
    plan = planned(SECTIONS + "[matrix]\nprune.keep = [0.1, 0.3]\ntrain.mix = ['cutmix']\ntrain.alpha = [0.5]")
    assert stores(plan) == [("random-0.1-s0", 5), ("random-0.3-s0", 5)]


def test_runs_on_labels_alone_are_one_whatever_tau_and_teacher():
    text = (
        SECTIONS + "[teacher.small]\nmodel = 'resnet8'\n[matrix]\ntrain.teacher = ['big', 'small']\ntrain.tau = [2, 4]"
    )
    plan = planned(text + "\ntrain.alpha = [0]")
    assert kinds(plan) == {"beton": 2, "run": 1}
    assert [len(cells) for cells in plan.runs.values()] == [4]


def test_scores_that_a_teachers_run_records_cost_nothing():
    plan = planned(SECTIONS + "[matrix]\nprune.keep = [0.1]\nprune.method = ['forgetting', 'el2n', 'aum', 'dual']")
    assert kinds(plan) == {"beton": 2, "teacher": 1, "mask": 4, "store": 4, "run": 4}
    masks = [job for job in plan.jobs.values() if job.kind == "mask"]
    assert all(str(job.words[job.words.index("--scores") + 1]).endswith("scores.h5") for job in masks)


def test_other_scores_are_computed_by_the_scoring_teacher():
    plan = planned(
        "[data]\nsource = 'digits:'\n[teacher.big]\nmodel = 'resnet14'\n[teacher.scorer]\nmodel = 'resnet8'\n"
        "[score]\nteacher = 'scorer'\n[train]\nmodel = 'resnet8'\n[matrix]\nprune.keep = [0.1]\n"
        "prune.method = ['grand', 'moderate', 'd2']\nprune.score = ['grand']\ntrain.alpha = [0.5]\n"
        "[[exclude]]\nprune.method = 'grand'\n"
    )
    scores = [job for job in plan.jobs.values() if job.kind == "scores"]
    assert len(scores) == 2  # grand; moderate's features
    assert {plan.jobs[job.inputs["model 1"]].label for job in scores} == {"scorer-resnet8"}
    assert {job.label for job in plan.jobs.values() if job.kind == "teacher"} == {"big-resnet14", "scorer-resnet8"}


def test_a_complements_teacher_is_trained_once_on_what_the_largest_mask_leaves():
    plan = planned(GRID.replace("[train]", "mask = 'complement'\n[train]", 1).replace("seed = [0, 1]", "seed = [0]"))
    (mask,) = [job for job in plan.jobs.values() if "complement" in job.about]
    assert plan.jobs[mask.about["complement"]].label == "random-0.3-s0"
    assert kinds(plan)["teacher"] == 1


def test_a_teachers_own_fraction_makes_another_teacher():
    plan = planned(SECTIONS + "[matrix]\nteacher.big.keep = [0.3, 1.0]\nprune.keep = [0.1]\ntrain.alpha = [0.5]")
    assert kinds(plan) == {"beton": 2, "teacher": 2, "mask": 2, "store": 2, "run": 2}


def teachers_and_stores(*sets: str) -> tuple[list[tuple[str, ...]], dict[str, str]]:
    """The commands of the plan's teachers, and of each store, by its teacher's file, the options that it has."""
    grid = "[matrix]\nprune.keep = [0.1]\ntrain.alpha = [0, 0.5]\nteacher.big.epoch = [6, 15, 240]\n"
    jobs = planned(SECTIONS + grid, *sets).jobs.values()
    files = {job.words[job.words.index("--teacher") + 1]: job.name for job in jobs if job.kind == "store"}
    return [job.words for job in jobs if job.kind == "teacher"], files


def test_one_run_keeps_the_weights_of_all_epochs_of_a_teacher_that_are_named():
    (words,), stores_of = teachers_and_stores()
    assert words[words.index("--keep-every") + 1] == "3"
    out = words[words.index("--out") + 1]
    assert list(stores_of) == [f"{out}/epoch-{epoch:05}.safetensors" for epoch in (6, 15, 240)]
    assert len(set(stores_of.values())) == 3


def test_runs_on_labels_alone_are_one_whatever_epoch_of_the_teacher():
    plan = planned(SECTIONS + "[matrix]\nprune.keep = [0.1]\ntrain.alpha = [0]\nteacher.big.epoch = [3, 6]")
    assert kinds(plan) == {"beton": 2, "mask": 1, "run": 1}


def test_a_scale_that_names_other_epochs_keeps_others():
    (words,), _ = teachers_and_stores("teacher.big.epoch=[10, 15]", "teacher.big.epochs=20")
    assert words[words.index("--keep-every") + 1] == "5"


LENGTHS = {
    "nothing": ("", 240),
    "epochs": ("epochs = 30", 30),
    "a recipe": ('recipe = "fast-cifar"', 24),
    "epochs over a recipe's": ('recipe = "fast-cifar"\nepochs = 30', 30),
    "steps": ("steps = 100\nbatch-size = 16", 12),  # 144 samples: 9 a batch of 16, the last epoch cut
    "steps over a recipe's epochs": ('recipe = "fast-cifar"\nsteps = 100\nbatch-size = 16', 12),
    "a recipe's batches": ('recipe = "fast-cifar"\nsteps = 100', 100),
    "updates of several batches": ("steps = 100\nbatch-size = 16\naccumulate = 3", 34),
    "steps without the last batch": ("steps = 100\nbatch-size = 100\ndrop-last = true", 100),
    "the batch of the views": ('steps = 100\nviews = "rrc"', 50),
    "unknown batches": ("steps = 100", None),
}
"""What [train] says → epochs of a run on a tenth of the 1,438 digits."""


@pytest.mark.parametrize("case", LENGTHS)
def test_views_and_costs_follow_from_how_long_a_run_goes_on(case):
    said, epochs = LENGTHS[case]
    plan = planned(SECTIONS.replace("epochs = 5", said) + "[matrix]\nprune.keep = [0.1]\ntrain.alpha = [0.5]")
    (run,), (store,) = ([job for job in plan.jobs.values() if job.kind == kind] for kind in ("run", "store"))
    rrc = "rrc" in said
    assert run.about["epochs"] == epochs
    assert store.about["num_seeds"] == (epochs if epochs is None or epochs <= 162 or rrc else None)
    assert store.about["views"].get("views") == ("rrc" if rrc else "crop-flip" if "recipe" in said else None)
    cost = cost_of(plan, run, DIGITS, lambda *_: (1.0, 1.0))
    assert cost.images == (None if epochs is None else 144 * epochs)
    assert live_forwards(plan, DIGITS) == cost.images


def test_batches_that_nothing_says_are_those_of_the_betons_views(raw_beton):
    suite = SECTIONS.replace("epochs = 5", "steps = 100").replace(
        'source = "digits:"', f'train = "{raw_beton}"\nval = "{raw_beton}"'
    )
    plan = planned(f"{suite}[matrix]\nprune.keep = [0.2]\ntrain.alpha = [0]")
    assert [job.about["epochs"] for job in plan.jobs.values() if job.kind == "run"] == [
        50
    ]  # 120 images: 2 batches of 64


def test_a_teacher_of_so_many_steps_costs_its_epochs():
    plan = planned(SECTIONS.replace('"resnet14"', '"resnet14"\nsteps = 100\nbatch-size = 64') + "[matrix]\nseed = [0]")
    (teacher,) = (job for job in plan.jobs.values() if job.kind == "teacher")
    assert teacher.about["epochs"] == 5  # of 23 steps


def test_forwards_are_those_of_the_largest_mask_of_each_seed_and_every_run_reads_them(tmp_path):
    """The whole of a grid's teacher, counted: N·f_max·K for each seed of masks."""
    grid = "[matrix]\nprune.keep = [0.05, 0.1, 0.3]\ntrain.alpha = [0, 0.5, 1.0]\ntrain.tau = [2, 4]\n"
    grid += "train.model = ['resnet8', 'resnet14']\nseed = [0, 1]\n"
    text = SECTIONS.replace('"resnet14"', '"resnet8"\nepochs = 1').replace("epochs = 5", "epochs = 2") + grid
    plan = planned(text, "train.views=center", "train.num-seeds=1", folder=tmp_path)
    assert len(plan.suite.cells) == 72
    assert len(plan.runs) == 3 * 2 * 2 * (1 + 2 * 2)  # alpha 0 once
    written = 0
    for job in plan.jobs.values():
        if job.kind != "run":
            job.path.parent.mkdir(parents=True, exist_ok=True)
            outcome = fastkd(*job.words, "--json")
            assert outcome.code == 0, outcome.err
            written += json.loads(outcome.out).get("rows_written", 0)
    assert written == 2 * round(0.3 * 1438)
    reckoned = [cost_of(plan, job, DIGITS, lambda *_: (1.0, 1.0)).forwards for job in plan.jobs.values()]
    assert sum(reckoned) == written
    assert live_forwards(plan, DIGITS) == 2 * 2 * sum(round(f * 1438) for f in (0.05, 0.1, 0.3)) * 2 * 2 * 2


def test_names_follow_from_what_outputs_are():
    plan, longer, elsewhere = planned(), planned(GRID, "train.epochs=6"), planned(folder=Path("other"))
    assert set(plan.jobs) == set(elsewhere.jobs)
    assert not set(plan.runs) & set(longer.runs)
    assert {name for name in plan.jobs if "/runs" not in name and plan.jobs[name].kind in ("teacher", "mask")} <= set(
        longer.jobs
    )
    assert set(plan.jobs) == set(planned(GRID, "train.num-workers=1", "train.device=cpu").jobs)


def test_a_larger_mask_makes_another_store_and_leaves_the_runs_what_they_were():
    plan, larger = planned(), planned(GRID, "prune.keep=[0.1, 0.3, 0.4]")
    assert set(plan.runs) < set(larger.runs)
    assert stores(larger) == [("random-0.4-s0", 5), ("random-0.4-s1", 5)]


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["train.lr=-1"], "--set train.lr=-1: --lr -1.0: expected above 0"),
        (["train.kd=kdd"], "expected one of"),
        (["prune.method=forgettin"], "expected one of random"),
        (["prune.method=scores"], "goes by a score"),
        (["prune.method=ccs", "prune.score=aum", "prune.drop-hardest=0.3", "prune.neighbours=3"], "--neighbours"),
        (["train.model=resnet9"], "resnet9"),
        (["train.source=labels", "train.alpha=0.5"], "weighs a teacher"),
        (["teacher.other.model=resnet8"], "say which by train.teacher"),
        (["teacher.big.checkpoint=t.safetensors"], "leave one of both out"),
        (["teacher.big.method=scores", "teacher.big.score=el2n", "teacher.big.keep=0.5"], "chosen before there are"),
        (["teacher.big.epoch=0"], "expected 1 … 240"),
        (["teacher.big.epoch=250"], "expected 1 … 240"),
        (["teacher.big.epoch=6", "teacher.big.epochs=5"], "expected 1 … 5"),
        (["teacher.big.epoch=5", "teacher.big.keep-every=2"], "keeps no weights of it"),
        (["teacher.big.checkpoint=t.safetensors", "teacher.big.epoch=5"], "leave one of both out"),
        (["train.steps=9", "train.epochs=5"], "give one of them"),
        (["data.source=[1]"], "expected text"),
        (["data.source='images/'"], "images/ has no test split of its own: give val = ..., beside train = ..."),
        (["data.source='parquet:x'"], "parquet:x has no test split of its own"),
    ],
)
def test_what_a_command_would_refuse_is_refused_before_anything_runs(sets, words):
    with pytest.raises(OptionError, match=r"^(--set|s\.toml)") as caught:
        planned(GRID, *sets)
    assert words in str(caught.value)


def test_data_that_are_not_there_are_refused():
    with pytest.raises(NotFoundError, match=r"no\.beton"):
        planned(GRID, 'data.train="no.beton"')
    with pytest.raises(OptionError, match=r"\[data\] says no val"):
        planned("[data]\ntrain = 'digits:'\n[train]\nmodel = 'resnet8'\nsource = 'labels'")
