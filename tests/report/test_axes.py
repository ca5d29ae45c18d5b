"""Figures over any axis, and the table of all runs."""

import csv
import io

import pytest
from helpers.commands import fastkd
from helpers.runs import make_run

from fastkd.errors import MismatchError, OptionError
from fastkd.report.axes import NAMES, NUMBERS, Axes, series_of, value_of
from fastkd.report.cells import TIMES, csv_text, table_of, write_csv
from fastkd.report.compare import collect_runs, finished_runs
from fastkd.report.facts import differing, label_of
from fastkd.report.page.write import write_figures


def facts(**changes):
    plain = {"model": "resnet8", "fraction": 0.1, "alpha": 0.5, "tau": 4.0, "source": "store", "kd": "kd", "epochs": 2}
    return plain | {"mask.method": "random", "num_kept": 100, "global_batch": 64, "views.num_seeds": 3} | changes


def test_lines_are_what_groups_differ_in_besides_the_axis_and_the_facet():
    groups = [facts(fraction=f, alpha=a, tau=t) for f in (0.3, 0.1) for a in (0.5, 0.9) for t in (2.0, 4.0)]
    found = series_of(groups, Axes("tau", (), "fraction"))
    assert list(found) == ["f 0.3", "f 0.1"]
    assert found["f 0.1"] == {"α 0.5": [(2.0, 4), (4.0, 5)], "α 0.9": [(2.0, 6), (4.0, 7)]}


def test_runs_without_what_the_axis_is_of_have_no_place_on_it():
    labels = facts(source="labels", alpha=0.0)
    del labels["tau"]
    assert series_of([facts(), labels], Axes("tau", ("alpha",))) == {"": {"α 0.5": [(4.0, 0)], "no KD": [(None, 1)]}}


def test_teachers_are_ordered_by_their_size():
    groups = [facts(**{"teacher.model": name, "teacher.num_parameters": size}) for name, size in (("a", 9), ("b", 3))]
    assert series_of(groups, Axes("teacher"))[""] == {"all runs": [("b", 1), ("a", 0)]}


def test_a_score_that_samples_were_chosen_by_is_a_method():
    chosen = facts(**{"mask.method": "scores", "mask.score": "el2n"})
    assert list(series_of([facts(), chosen], Axes())[""]) == ["method random", "method el2n"]


def test_a_line_along_training_is_a_value_as_it_is_typed():
    groups = [facts(alpha=1.0, alpha_course=[[0.0, 1.0], [0.5, 0.25]]), facts(tau_course=[[0, 8], [1, 2.0]]), facts()]
    assert [[value_of(one, name) for name in ("alpha", "tau")] for one in groups] == [
        *(["0:1,0.5:0.25", 4.0], [0.5, "0:8,1:2"], [0.5, 4.0])
    ]
    assert [label_of(one, groups, differing(groups)) for one in groups] == [
        *("KD α=0:1,0.5:0.25 τ=4 (store)", "KD α=0.5 τ=0:8,1:2 (store)", "KD α=0.5 τ=4 (store)")
    ]


def test_teachers_of_several_epochs_are_places_on_an_axis_and_labels_alone_are_not():
    groups = [facts(**{"teacher.epoch": epoch}) for epoch in (60, 5)]
    assert series_of([*groups, facts(source="labels", alpha=0.0)], Axes("teacher-epoch", ("alpha",))) == {
        "": {"α 0.5": [(5, 1), (60, 0)], "no KD": [(None, 2)]}
    }


@pytest.mark.parametrize(
    ("said", "steps"), [({}, 4), ({"drop_last": True}, 2), ({"steps": 3}, 3), ({"steps": 3, "drop_last": True}, 3)]
)
def test_steps_are_those_that_were_made(said, steps):
    assert value_of(facts(**said), "steps") == steps  # 2 epochs of 100 samples, 64 a batch


def test_lines_that_do_not_tell_groups_apart_are_refused():
    with pytest.raises(OptionError, match=r"two kinds of runs are at fraction 0\.1 .* differ in alpha"):
        series_of([facts(), facts(alpha=0.9)], Axes("fraction", ("model",)))


@pytest.mark.parametrize("axes", [Axes("y"), Axes("model"), Axes("tau", ("y",)), Axes("tau", (), "y")])
def test_unknown_names_are_refused(axes):
    with pytest.raises(OptionError, match="expected"):
        series_of([facts()], axes)


@pytest.mark.parametrize("x", NUMBERS)
@pytest.mark.parametrize("facet", [None, "source"])
def test_a_figure_can_be_drawn_over_every_axis(x, facet, tmp_path):
    pytest.importorskip("vl_convert")
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", alpha=0.0)
    svg, png = write_figures(collect_runs(tmp_path), tmp_path / "f", tmp_path, axes=Axes(x, NAMES, facet))
    text = svg.read_text()
    of_the_paper = x == "fraction"  # whose own numbers stand beside
    assert text.count(f">{NUMBERS[x]}<") == (1 if facet is None else 2) + of_the_paper
    assert [title in text for title in (">source labels<", ">source store<")] == [facet is not None] * 2
    assert png.read_bytes().startswith(b"\x89PNG\r\n")


def test_the_table_has_a_line_a_run_and_what_differs_from_time_to_time_at_its_end(tmp_path):
    for seed, top1 in enumerate((60.0, 61.5)):
        make_run(tmp_path / f"s{seed}", top1, seed=seed, mask={"seed": seed})
    lines = table_of(finished_runs(tmp_path), tmp_path)
    assert [(line["run"], line["seed"], line["mask.seed"], line["val_top1"]) for line in lines] == [
        ("s0", 0, 0, 60.0),
        ("s1", 1, 1, 61.5),
    ]
    assert tuple(lines[0])[-len(TIMES) :] == TIMES
    (header, *rows) = csv.reader(io.StringIO(csv_text(lines)))
    assert header == list(lines[0])
    assert float(rows[1][header.index("val_top1")]) == 61.5


def test_a_table_replaces_an_older_one_and_nothing_else(tmp_path):
    make_run(tmp_path / "runs/a")
    runs = finished_runs(tmp_path)
    write_csv(runs, tmp_path / "t.csv", tmp_path)
    write_csv(runs, tmp_path / "t.csv", tmp_path)
    (tmp_path / "t.csv").write_text("mine")
    with pytest.raises(MismatchError):
        write_csv(runs, tmp_path / "t.csv", tmp_path)


def test_report_writes_the_figure_and_the_table_that_are_asked_for(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", tau=2.0)
    asked = ("--x", "tau", "--lines", "model,alpha", "--facet", "source", "--csv", tmp_path / "t.csv")
    result = fastkd("report", tmp_path, *asked, "--out", tmp_path / "r.html", "--json").result
    assert result["csv"] == str(tmp_path / "t.csv")
    assert "temperature" in (tmp_path / "r.html").read_text()
