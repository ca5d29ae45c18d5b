import json

import pytest
from helpers.runs import make_run

from fastkd.errors import FormatError, NotFoundError, OptionError
from fastkd.report.compare import collect_runs, format_table, write_page


def test_runs_that_differ_in_their_seed_are_averaged(tmp_path):
    for seed, top1 in enumerate((60.0, 61.5, 64.5)):
        of_the_seed = {"mask": f"{seed}" * 32, "logits": f"{seed}" * 32}  # masks are drawn by seed too
        make_run(tmp_path / f"s{seed}", top1, seed=seed, inputs=of_the_seed)
    (group,) = collect_runs(tmp_path)
    assert (group.num_runs, group.top1_mean, group.top1_spread) == (3, 62.0, 4.5)
    assert (group.model, group.num_kept, group.fraction, group.source) == ("resnet8", 100, 0.1, "store")


@pytest.mark.parametrize(
    "changes",
    [
        *[{"model": "resnet14"}, {"alpha": 0.9}, {"tau": 2.0}, {"epochs": 3}, {"lr": 0.1}, {"num_kept": 200}],
        *[{"views": {"num_seeds": 162}}, {"views": {"kind": "rrc"}}, {"ranks": 2}, {"norm": {"mean": [0], "std": [1]}}],
        *[{"inputs": {"beton": "x" * 32}}, {"inputs": {"val": "x" * 32}}, {"inputs": {"teacher": "x" * 32}}],
    ],
    ids=str,
)
def test_runs_that_differ_in_anything_else_are_not(tmp_path, changes):
    make_run(tmp_path / "a", 50.0)
    make_run(tmp_path / "b", 70.0, **changes)
    assert [group.num_runs for group in collect_runs(tmp_path)] == [1, 1]


def test_where_the_logits_came_from_is_told(tmp_path):
    make_run(tmp_path / "labels", alpha=0.0)
    make_run(tmp_path / "stored")
    live = make_run(tmp_path / "live")
    head = json.loads((live / "run.json").read_text())
    del head["inputs"]["logits"]
    (live / "run.json").write_text(json.dumps(head))
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
    assert len(lines) == 4
    assert lines[0].split()[:4] == ["student", "kept", "fraction", "training"]
    assert lines[2].split() == ["resnet8", "100", "0.1", "no", "KD", "2", "1", "40.25", "0.00", "900"]
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
        "1.50",
        "900",
    ]


def test_a_page_stands_alone_with_table_and_plot(tmp_path):
    pytest.importorskip("matplotlib")
    make_run(tmp_path / "runs" / "a", 61.25)
    make_run(tmp_path / "runs" / "b", 70.5, num_kept=500, model="<net>")
    write_page(collect_runs(tmp_path / "runs"), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "61.25" in page
    assert "70.50" in page
    assert "&lt;net&gt;" in page
    assert "<net>" not in page
    assert "src='data:image/png;base64,iVBOR" in page
    assert "http" not in page


def test_a_plot_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    make_run(tmp_path / "run")
    write_page(collect_runs(tmp_path), tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_a_report_of_another_kind_is_refused(tmp_path):
    make_run(tmp_path / "run")
    with pytest.raises(OptionError, match=r"report\.pdf: expected a name that ends in \.html or \.png"):
        write_page(collect_runs(tmp_path), tmp_path / "report.pdf")


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
    with pytest.raises(FormatError, match=f"{tmp_path / 'bad'}: damaged run"):
        collect_runs(tmp_path)
