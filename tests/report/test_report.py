import json
from pathlib import Path

import pytest
from helpers.commands import fastkd
from helpers.runs import make_run

from fastkd.errors import FastKDError, NotFoundError, OptionError
from fastkd.report.compare import collect_runs, format_table
from fastkd.report.page.write import write_page
from fastkd.report.series import by_label


def test_runs_that_differ_in_their_seed_are_averaged(tmp_path):
    for seed, top1 in enumerate((60.0, 61.5, 64.5)):
        of_the_seed = {"mask": f"{seed}" * 32, "logits": f"{seed}" * 32}  # masks are drawn by seed too
        drawn = {"seed": seed, "keep": "0.1" if seed else "100", "class_min": 9 + seed, "class_max": 11 + seed}
        make_run(tmp_path / f"s{seed}", top1, seed=seed, inputs=of_the_seed, mask=drawn)
    (group,) = collect_runs(tmp_path)
    assert (group.num_runs, group.top1_mean, group.top1_spread) == (3, 62.0, 4.5)
    assert (group.top1_min, group.top1_max, group.seeds) == (60.0, 64.5, [0, 1, 2])
    assert group.top1_sd == pytest.approx(2.2913, abs=1e-4)
    assert (group.model, group.num_kept, group.fraction, group.source) == ("resnet8", 100, 0.1, "store")


@pytest.mark.parametrize(
    "changes",
    [
        *[{"model": "resnet14"}, {"alpha": 0.9}, {"tau": 2.0}, {"epochs": 3}, {"lr": 0.1}, {"num_kept": 200}],
        *[{"views": {"num_seeds": 162}}, {"views": {"kind": "rrc"}}, {"ranks": 2}, {"norm": {"mean": [0], "std": [1]}}],
        *[{"inputs": {"beton": "x" * 32}}, {"inputs": {"val": "x" * 32}}, {"teacher": {"fingerprint": "x" * 32}}],
        *[{"mask": {"method": "scores", "score": "el2n"}}, {"mask": {"level": "hard"}}, {"mask": {"balance": "none"}}],
        *[{"teacher": {"val_top1": 10.0}}, {"teacher": {"precision": "bf16"}}, {"teacher": {"model": "resnet56"}}],
        *[{"logits": {"codec": "int8+top4"}}, {"kd": "dkd"}, {"seed": 1, "momentum": 0.5}, {"version": 1}],
    ],
    ids=str,
)
def test_runs_that_differ_in_anything_else_are_not(tmp_path, changes):
    make_run(tmp_path / "a", 50.0)
    make_run(tmp_path / "b", 70.0, **changes)
    one, other = collect_runs(tmp_path)
    assert (one.num_runs, other.num_runs) == (1, 1)
    columns = ("model", "num_kept", "epochs", "label")
    assert [getattr(one, name) for name in columns] != [getattr(other, name) for name in columns]
    assert one.differs_in


def test_where_the_logits_came_from_is_told(tmp_path):
    make_run(tmp_path / "labels", alpha=0.0)
    make_run(tmp_path / "stored")
    make_run(tmp_path / "live", inputs={"logits": None})
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
    assert len(lines) == 6
    assert lines[0].split()[:4] == ["student", "kept", "fraction", "training"]
    assert lines[2].split() == [
        *("resnet8", "100", "0.1", "no", "KD"),
        *("2", "1", "40.25", "40.25", "40.25", "-", "900"),
    ]
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
        "60.00",
        "61.50",
        "1.06",
        "900",
    ]
    assert lines[5].startswith("differs in: alpha, fraction, source; runs that differ in seeds alone are averaged")


def test_a_page_stands_alone_with_table_and_plot(tmp_path):
    pytest.importorskip("vl_convert")
    make_run(tmp_path / "runs" / "a", 61.25)
    make_run(tmp_path / "runs" / "b", 70.5, num_kept=500, model="<net>")
    write_page(collect_runs(tmp_path / "runs"), tmp_path / "report.html", tmp_path / "runs")
    page = (tmp_path / "report.html").read_text()
    assert "61.25" in page
    assert "70.50" in page
    assert "&lt;net&gt;" in page
    assert "<net>" not in page
    assert "src=" not in page
    assert "href='http" not in page


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG\r\n"), ("svg", b"<svg")])
def test_a_figure_alone_is_an_image(tmp_path, suffix, start):
    pytest.importorskip("vl_convert")
    make_run(tmp_path / "run")
    out = tmp_path / f"report.{suffix}"
    for _ in range(2):  # an older one of the same runs is replaced
        write_page(collect_runs(tmp_path), out, tmp_path)
    assert out.read_bytes().startswith(start)


def test_a_report_of_another_kind_is_refused(tmp_path):
    make_run(tmp_path / "run")
    with pytest.raises(OptionError, match=r"report\.pdf: expected a name that ends in \.html, \.svg or \.png"):
        write_page(collect_runs(tmp_path), tmp_path / "report.pdf", tmp_path)


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
    with pytest.raises(FastKDError, match=f"{tmp_path / 'bad' / name}: ") as error:
        collect_runs(tmp_path)
    assert "\n" not in str(error.value)


def labels(folder: Path) -> dict[str, float]:
    """The accuracy of each group by its label; no two have the same."""
    groups = collect_runs(folder)
    found = {group.label: group.top1_mean for group in groups}
    assert len(found) == len(groups)
    return found


def test_masks_of_three_methods_are_three_rows(tmp_path):
    """At one fraction, each of its own accuracy, which no mean of the three tells."""
    by_score = {"method": "scores", "score": "aum", "inputs": {"beton": "b" * 32, "scores": "s" * 32}}
    masks = {
        "random": ({}, 31.5),
        "hard": (by_score | {"level": "hard"}, 12.25),
        "easy": (by_score | {"level": "easy"}, 40.75),
    }
    for i, (name, (mask, top1)) in enumerate(masks.items()):
        make_run(tmp_path / name, top1, alpha=0.0, mask=mask, inputs={"mask": f"{i}" * 32})
    assert labels(tmp_path) == {
        "no KD, mask random": 31.5,
        "no KD, mask scores (level hard, score aum)": 12.25,
        "no KD, mask scores (level easy, score aum)": 40.75,
    }
    assert collect_runs(tmp_path)[0].differs_in == ["mask"]


def test_masks_by_scores_of_two_files_are_two_rows(tmp_path):
    for digit in "12":
        by_score = {"method": "scores", "score": "aum", "inputs": {"scores": digit * 32}}
        make_run(tmp_path / digit, 10.0 * int(digit), mask=by_score, inputs={"mask": digit * 32})
    assert labels(tmp_path) == {
        "KD α=0.5 τ=4 (store), mask (inputs.scores 11111111)": 10.0,
        "KD α=0.5 τ=4 (store), mask (inputs.scores 22222222)": 20.0,
    }


@pytest.mark.parametrize("source", ["store", "live"])
def test_students_of_a_good_and_of_an_untrained_teacher_are_two_rows(tmp_path, source):
    for i, accuracy in enumerate((88.5, 9.75)):
        inputs = {"logits": None if source == "live" else f"{i}" * 32, "teacher": f"{i}" * 32}
        make_run(tmp_path / f"{i}", accuracy / 2, inputs=inputs, teacher={"val_top1": accuracy})
    words = f"KD α=0.5 τ=4 ({'teacher' if source == 'live' else 'store'})"
    assert labels(tmp_path) == {f"{words}, teacher (top-1 88.5)": 44.25, f"{words}, teacher (top-1 9.75)": 4.875}


def test_teachers_that_only_their_weights_tell_apart_are_two_rows(tmp_path):
    for digit in "12":
        make_run(tmp_path / digit, inputs={"logits": digit * 32}, teacher={"fingerprint": digit * 32})
    assert set(labels(tmp_path)) == {f"KD α=0.5 τ=4 (store), teacher (fingerprint {digit * 8})" for digit in "12"}


def test_the_fraction_that_a_teacher_was_trained_on_is_told(tmp_path):
    for i, fraction in enumerate((0.2, 1.0)):
        trained_on = {"method": "random", "fraction": fraction}
        make_run(tmp_path / f"{i}", inputs={"logits": f"{i}" * 32}, teacher={"mask": trained_on})
    assert set(labels(tmp_path)) == {f"KD α=0.5 τ=4 (store), teacher (fraction {f})" for f in ("0.2", "1")}
    assert [group.facts["teacher.mask.fraction"] for group in collect_runs(tmp_path)] == [0.2, 1.0]


def test_methods_and_learning_rates_are_rows_and_lines_of_their_own(tmp_path):
    for kept in (100, 300):
        make_run(tmp_path / f"plain{kept}", 50.0, num_kept=kept)
        make_run(tmp_path / f"dkd{kept}", 40.0, num_kept=kept, kd="dkd", beta=8.0)
        make_run(tmp_path / f"lr{kept}", 30.0, num_kept=kept, lr=0.2)
    groups = collect_runs(tmp_path)
    wanted = {"KD α=0.5 τ=4 (store), lr 0.05", "DKD α=0.5 τ=4 (store), lr 0.05", "KD α=0.5 τ=4 (store), lr 0.2"}
    assert {group.label for group in groups} == wanted
    assert groups[0].differs_in == ["fraction", "kd", "lr"]
    lines = by_label(groups).panels[""]
    assert lines.keys() == {f"resnet8, {label}" for label in wanted}
    assert all([point.x for point in points] == [0.1, 0.3] for points in lines.values())


def test_an_alpha_by_rule_is_one_line_over_the_fractions(tmp_path):
    for kept, alpha in ((100, 1.0), (300, 0.8)):
        make_run(tmp_path / f"{kept}", num_kept=kept, alpha=alpha, rule="0.1:1,0.7:0.5")
    assert {group.label for group in collect_runs(tmp_path)} == {"KD α=auto τ=4 (store)"}


def test_what_does_not_bear_on_labels_alone_makes_no_rows(tmp_path):
    make_run(tmp_path / "a", 50.0, alpha=0.0)
    make_run(tmp_path / "b", 60.0, alpha=0.0, tau=2.0, seed=1, teacher={"fingerprint": "x" * 32})
    assert labels(tmp_path) == {"no KD": 55.0}


def test_runs_of_before_are_averaged_over_nothing_but_their_own_seed(tmp_path):
    for digit in "12":
        made_from = {"mask": digit * 32, "logits": digit * 32}
        for seed in range(2):
            make_run(tmp_path / digit / f"{seed}", 50.0 + seed, seed=seed, inputs=made_from, version=1)
    make_run(tmp_path / "new", 80.0)
    told = {
        f"KD α=0.5 τ=4 (store), mask and teacher not recorded (mask {digit * 8}, logits {digit * 8}, teacher tttttttt)": 50.5
        for digit in "12"
    }
    assert labels(tmp_path) == {"KD α=0.5 τ=4 (store)": 80.0} | told
    assert [group.num_runs for group in collect_runs(tmp_path)] == [1, 2, 2]


def test_runs_of_before_are_one_line_over_the_fractions(tmp_path):
    for kept in (100, 300):
        make_run(tmp_path / f"{kept}", num_kept=kept, inputs={"mask": f"{kept}" * 10}, version=1)
    assert {group.label for group in collect_runs(tmp_path)} == {"KD α=0.5 τ=4 (store)"}


def test_figures_are_drawn_from_the_facts_of_the_report(tmp_path):
    make_run(tmp_path / "run", teacher={"mask": {"method": "random", "fraction": 0.5}, "num_parameters": 78_000})
    (row,) = json.loads(json.dumps([group.as_dict() for group in collect_runs(tmp_path)]))
    wanted = {"teacher.mask.fraction": 0.5, "teacher.num_parameters": 78_000, "teacher.val_top1": 70.0, "kd": "kd"}
    wanted |= {"alpha": 0.5, "tau": 4.0, "mask.method": "random", "views.num_seeds": 3, "logits.codec": "fp16"}
    assert {name: row["facts"][name] for name in wanted} == wanted
    assert (row["top1_sd"], row["differs_in"]) == (None, [])


def test_a_result_whose_run_json_is_lost_is_not_left_out_in_silence(tmp_path):
    make_run(tmp_path / "good")
    (make_run(tmp_path / "bad") / "run.json").unlink()
    with pytest.raises(NotFoundError, match=r"bad/run\.json: missing beside result\.json"):
        collect_runs(tmp_path)


def test_real_runs_are_averaged_over_the_seeds_of_run_and_mask_alone(raw_beton, teacher_file, tmp_path):
    cpu = ("--device", "cpu", "--num-workers", 1)
    run = (*cpu, "--alpha", 0, "--model", "resnet8", "--epochs", 1, "--batch-size", 60, "--val", raw_beton)
    scores = tmp_path / "s.h5"
    assert fastkd("score", raw_beton, "--method", "el2n", "--model", teacher_file, *cpu, "--out", scores).code == 0
    by_score = ("--method", "scores", "--scores", scores, "--level")
    masks = {"one": ("--seed", 1), "two": ("--seed", 2), "hard": (*by_score, "hard"), "easy": (*by_score, "easy")}
    top1 = {}
    for i, (name, options) in enumerate(masks.items()):
        assert fastkd("prune", raw_beton, "--keep", 0.2, *options, "--out", tmp_path / f"{name}.h5").code == 0
        out = tmp_path / "runs" / name
        told = fastkd("train", raw_beton, "--mask", tmp_path / f"{name}.h5", *run, "--seed", i, "--out", out, "--json")
        top1[name] = told.result["val_top1"]
    random, *by_level = collect_runs(tmp_path / "runs")
    assert (random.seeds, random.top1_mean) == ([0, 1], pytest.approx((top1["one"] + top1["two"]) / 2))
    assert [(group.num_runs, group.top1_mean) for group in by_level] == [(1, top1["easy"]), (1, top1["hard"])]
    assert [group.label for group in by_level] == [
        f"no KD, mask scores (balance none, level {level}, score el2n)" for level in ("easy", "hard")
    ]


def test_a_name_with_a_dollar_or_a_tag_in_it_is_a_name(tmp_path):
    pytest.importorskip("vl_convert")
    make_run(tmp_path / "a", 60.0, teacher={"model": r"$\frac$ $", "fingerprint": "x" * 32})
    make_run(tmp_path / "b", 61.0, teacher={"model": "<b>&x^2</b>", "fingerprint": "y" * 32})
    groups = collect_runs(tmp_path)
    assert any(r"$\frac$ $" in group.label for group in groups)
    write_page(groups, tmp_path / "r.svg", tmp_path)
    assert r"$\frac$ $" in (tmp_path / "r.svg").read_text()
    assert "&lt;b&gt;&amp;x^2&lt;/b&gt;" in (tmp_path / "r.svg").read_text()
