"""Students of teachers that differ in seeds alone are runs of one kind; those of teachers that differ in more are not."""

import json

import pytest
from helpers.runs import make_run

from fastkd.models.registry import create_model
from fastkd.report.compare import collect_runs
from fastkd.teacher.network import about_network

META = {
    "params": {"recipe": {"model": "resnet8", "epochs": 2, "lr": 0.1, "seed": 0}, "num_kept": 50, "fraction": 0.5},
    "inputs": {"beton": "b" * 32, "mask": "m" * 32},
    "about": {"mask": {"method": "random", "keep": "0.5", "fraction": 0.5, "seed": 0, "fingerprint": "m" * 32}},
}


def trained(**changes: dict) -> dict:
    """What a teacher's checkpoint says, some of it changed."""
    meta = json.loads(json.dumps(META))
    for name, change in changes.items():
        meta[name] |= change
    return about_network(create_model("resnet8", 10), meta)


def recipe(**changes: object) -> dict:
    return {"recipe": META["params"]["recipe"] | changes}


def mask(**changes: object) -> dict:
    return {"mask": META["about"]["mask"] | changes}


OTHER_DRAW = {
    "params": recipe(seed=3),
    "inputs": {"mask": "n" * 32},
    "about": mask(seed=3, fingerprint="n" * 32),
}


def test_a_network_says_what_it_was_trained_with_whatever_its_seeds():
    assert trained()["training"] == trained(**OTHER_DRAW)["training"]


@pytest.mark.parametrize(
    "changes",
    [
        {"params": recipe(lr=0.2)},
        {"params": recipe(epochs=3)},
        {"params": {"num_kept": 60}},
        {"inputs": {"beton": "c" * 32}},
        {"about": mask(keep="0.6")},
        {"about": mask(method="scores", score="el2n")},
        {"about": {"teacher": {"fingerprint": "t" * 32}}},
    ],
    ids=str,
)
def test_and_says_another_thing_where_more_differs(changes):
    assert trained(**changes)["training"] != trained()["training"]


def test_masks_of_scores_are_told_by_their_fingerprints():
    one, other = (trained(about=mask(method="scores", fingerprint=digest * 32)) for digest in "mn")
    assert one["training"] != other["training"]


def complement(seed: int, digest: str, **of: object) -> dict:
    """What is recorded of the samples that a mask of that seed leaves out."""
    one = {"method": "random", "keep": "0.5", "seed": seed, "inputs": {}} | of
    return {"method": "complement", "fingerprint": digest * 32, "inputs": {"mask 1": digest * 32}, "of": [one]}


def test_complements_of_masks_that_differ_in_seeds_are_one_kind(tmp_path):
    def told(*of: object, **more: object) -> str:
        return trained(about={"mask": complement(*of, **more)})["training"]

    assert told(0, "m") == told(1, "n")
    scored = {"method": "scores", "score": "el2n", "inputs": {"scores": "s" * 32}}
    others = [
        told(0, "m", keep="0.6"),
        told(0, "m", **scored),
        told(0, "m", **scored | {"inputs": {"scores": "z" * 32}}),
    ]
    assert len({told(0, "m"), *others}) == 4
    for number, masked in enumerate([complement(0, "m"), complement(1, "n"), complement(0, "m", keep="0.6")]):
        make_run(tmp_path / str(number), 60.0 + number, mask=masked, inputs={"mask": str(number) * 32}, seed=number)
    assert sorted(group.num_runs for group in collect_runs(tmp_path)) == [1, 2]


@pytest.mark.parametrize("damaged", [{}, {"of": 1}, {"of": [1]}, {"of": [], "inputs": []}])
def test_what_a_damaged_run_says_of_its_mask_is_taken_as_it_is(damaged, tmp_path):
    make_run(tmp_path / "run", 60.0, mask={"method": "union"} | damaged)
    assert [group.num_runs for group in collect_runs(tmp_path)] == [1]


def teacher(digest: str, training: str, top1: float) -> dict:
    return {"fingerprint": digest * 32, "training": training * 32, "val_top1": top1, "mask": {"seed": ord(digest)}}


def test_students_of_teachers_that_differ_in_seeds_are_averaged(tmp_path):
    for number, told in enumerate([("t", "x", 80.0), ("u", "x", 82.0), ("v", "y", 70.0)]):
        inputs = {"teacher": told[0] * 32, "logits": told[0].upper() * 32}
        make_run(tmp_path / str(number), 60.0 + number, inputs=inputs, teacher=teacher(*told), seed=number)
    groups = collect_runs(tmp_path)
    assert {(group.num_runs, group.facts["teacher.val_top1"]) for group in groups} == {(2, 81.0), (1, 70.0)}
    assert len({group.label for group in groups}) == 2
