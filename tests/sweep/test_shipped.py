"""The suites that come with fastkd: each can be planned on digits in all its scales, and one runs in its smallest form."""

import pytest
from helpers.commands import fastkd
from helpers.suites import COMMANDS, kinds

from fastkd.cli.sweep_suite import SHIPPED, digest_of, read_shipped_or_file
from fastkd.report.page.theorem import Cell, cells_of, write_theorem_page
from fastkd.sweep.graph import make_plan
from fastkd.sweep.suite.read import read_suite
from fastkd.sweep.theorem import check_theorem, require_settings

NAMES = sorted(path.stem.replace("paper-", "paper:", 1) for path in SHIPPED.glob("*.toml"))


def read(name: str, scale: str, *sets: str):
    text, stem, where = read_shipped_or_file(name)
    return read_suite(text, where, COMMANDS, name=stem, scale=scale, sets=["data.source='digits:'", *sets])


@pytest.mark.parametrize("scale", ["smoke", "short"])
@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_suite_can_be_planned(name, scale, tmp_path):
    suite = read(name, scale)
    if suite.theorem is not None:
        assert require_settings(suite.theorem, suite.place)["draws"] >= 2000
        return
    plan = make_plan(suite, tmp_path, COMMANDS, digest_of)
    found = kinds(plan)
    assert found["teacher"] >= 1
    assert found.get("run", 0) == len(plan.runs)
    assert found.get("run") or found.get("gallery")


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_suite_is_whole_in_its_full_form(name):
    suite = read(name, "full")
    assert suite.cells or suite.theorem or suite.gallery


def test_an_unknown_name_lists_those_there_are():
    outcome = fastkd("sweep", "paper:fig99", "--out", "x")
    assert outcome.code == 1
    assert all(name in outcome.err for name in NAMES)


def test_figure_3_runs_from_nothing_to_a_page(tmp_path):
    """In its smallest form: a fraction, two methods, an epoch."""
    small = [
        "prune.keep=[0.1]",
        'prune.method=["random", "el2n"]',
        "train.epochs=1",
        "teacher.self.epochs=1",
        "teacher.scorer.epochs=1",
    ]
    sets = [word for one in small for word in ("--set", one)]
    outcome = fastkd(
        "sweep", "paper:fig3", "--scale", "smoke", "--data", "digits:", *sets, "--jobs", 1, "--out", tmp_path, "--json"
    )
    result = outcome.result
    assert (result["num_runs"], result["failed"], result["owed"]) == (4, {}, [])
    assert (tmp_path / "paper-fig3.csv").read_text().count("\n") == 5
    assert (tmp_path / "paper-fig3.html").exists()


def test_the_theorem_holds_in_every_cell_and_the_simulation_agrees_with_the_closed_form(tmp_path):
    result = fastkd("sweep", "paper:theorem", "--scale", "smoke", "--out", tmp_path, "--json").result
    assert result["num_holding"] == result["num_agreeing"] == result["num_cells"] == 56
    assert (tmp_path / "paper-theorem.csv").read_text().count("\n") == 57
    assert result["page"] is None or "in 56 of 56 cells" in (tmp_path / "paper-theorem.html").read_text()


def test_the_page_of_the_theorem_has_the_means_over_the_data_and_the_band_of_their_simulation(tmp_path):
    pytest.importorskip("vl_convert")
    line = {"alpha": 0.5, "fraction": 0.1, "teacher_fraction": 1.0, "holds": True}
    lines = [
        line | {"data_seed": 4, "bias": 2.0, "bias_self": 4.0, "simulated": 2.1, "band": 0.3, "agrees": True},
        line | {"data_seed": 7, "bias": 3.0, "bias_self": 4.0, "simulated": 2.5, "band": 0.4, "agrees": False},
    ]
    (cell,) = cells_of(lines)
    assert cell == Cell(0.5, 0.1, 1.0, 2.5, 4.0, 2.3, 0.25, 2, 1, 2)
    write_theorem_page(lines, {"draws": 1000}, tmp_path / "t.html", job="x", command="fastkd sweep <x>")
    text = (tmp_path / "t.html").read_text()
    assert "in 2 of 2 cells, and where f_t &gt; f it is less by 25.0% to 50.0%" in text
    assert "closed form in 1 of 1 cells" in text
    assert "in 1 of 2; the others are of data set 7" in text
    assert "fastkd sweep &lt;x&gt;" in text
    assert "2.3 ± 0.25" in text


def test_the_bias_of_the_theorem_is_that_of_equation_4_without_noise():
    settings = require_settings({"noise": 0, "dim": 3, "num-samples": 60, "draws": 2}, lambda *_: "here")
    for line in check_theorem(settings):
        assert line["simulated"] == pytest.approx(line["bias"], rel=1e-9)
