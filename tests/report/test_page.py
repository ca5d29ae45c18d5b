"""The page: that it stands alone, says what the runs show with right numbers, and how each point was made."""

import json
import re
import sys
from html.parser import HTMLParser

import pytest
from helpers.runs import make_run
from scipy import stats

from fastkd.errors import MissingDependencyError
from fastkd.report.axes import Axes
from fastkd.report.compare import collect_runs, student_t_975
from fastkd.report.page import paper
from fastkd.report.page.costs import costs_of
from fastkd.report.page.findings import difference, findings_of
from fastkd.report.page.vega import styles_of
from fastkd.report.page.write import write_figures, write_page
from fastkd.report.series import figures_of

MOST_BYTES = 1_500_000
HOSTILE = "</script><script>alert(1)</script><!--\"'&"


class Parsed(HTMLParser):
    """What is in a page: elements, what they name elsewhere, the texts of its scripts by their type, and other text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.scripts: list[tuple[str, str]] = []
        self.text = ""
        self._kind: str | None = None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        self._kind = dict(attrs).get("type", "") if tag == "script" else "style" if tag == "style" else None

    def handle_endtag(self, tag):
        self._kind = None

    def handle_data(self, data):
        if self._kind is None:
            self.text += data
        elif self._kind != "style":
            self.scripts.append((self._kind, data))

    @property
    def rows(self) -> list[dict]:
        """The points of all panels of all figures."""
        specs = [spec for kind, text in self.scripts if kind == "application/json" for spec in json.loads(text)]
        return [row for spec in specs for row in spec["data"]["values"]]


def page_of(folder, out, **options) -> Parsed:
    pytest.importorskip("vl_convert")
    write_page(collect_runs(folder), out, folder, **options)
    return Parsed(out.read_text())


def grid(folder, seeds=range(3), **common) -> None:
    """Runs with and without distillation at two fractions, of which it helps at the smaller alone."""
    for kept, plain, gain in ((100, 40.0, 10.0), (500, 70.0, 0.0)):
        for seed in seeds:
            make_run(folder / f"labels{kept}-{seed}", plain + seed, num_kept=kept, alpha=0.0, seed=seed, **common)
            make_run(folder / f"kd{kept}-{seed}", plain + gain + seed, num_kept=kept, seed=seed, **common)


def test_a_page_asks_for_nothing_and_is_small(tmp_path):
    grid(tmp_path / "runs")
    found = page_of(tmp_path / "runs", tmp_path / "r.html")
    assert found.links == ["data:,"]
    assert (tmp_path / "r.html").stat().st_size < MOST_BYTES
    assert not {"img", "iframe", "object", "audio", "video"} & set(found.tags)


def test_a_page_of_three_hundred_runs_is_small(tmp_path):
    grid(tmp_path / "runs", seeds=range(2))
    groups = collect_runs(tmp_path / "runs")
    for group in groups:
        group.runs.extend(group.runs * 37)
    pytest.importorskip("vl_convert")
    write_page(groups, tmp_path / "r.html", tmp_path / "runs")
    assert sum(len(group.runs) for group in groups) > 300
    assert (tmp_path / "r.html").stat().st_size < MOST_BYTES


def test_the_same_runs_make_the_same_bytes(tmp_path):
    pytest.importorskip("vl_convert")
    grid(tmp_path / "runs", seeds=range(2))
    groups = collect_runs(tmp_path / "runs")
    for out in ("a", "b"):
        write_page(groups, tmp_path / f"{out}.html", tmp_path / "runs")
        write_figures(groups, tmp_path / out, tmp_path / "runs")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_names_from_files_are_words_wherever_they_stand(tmp_path):
    make_run(tmp_path / "runs/a", teacher={"model": HOSTILE, "fingerprint": HOSTILE}, mask={"method": HOSTILE})
    make_run(tmp_path / "runs/b", model=HOSTILE, kd=HOSTILE, alpha=0.9)
    found = page_of(tmp_path / "runs", tmp_path / "r.html")
    kinds = [kind for kind, _ in found.scripts]
    assert kinds == ["application/json"] * (len(kinds) - 2) + ["application/gzip", ""]
    assert HOSTILE in found.text
    assert any(HOSTILE in row["line"] for row in found.rows)


def test_points_have_the_numbers_of_their_runs(tmp_path):
    for seed, top1 in enumerate((40.0, 41.0, 48.0)):  # the mean is 43, far from the middle
        make_run(tmp_path / f"runs/{seed}", top1, seed=seed, mask={"method": "all"})
    (row,) = page_of(tmp_path / "runs", tmp_path / "r.html").rows
    half = stats.t.ppf(0.975, 2) * stats.sem([40.0, 41.0, 48.0])
    assert (row["x"], row["mean"], row["lowest"], row["highest"]) == (0.1, 43.0, 40.0, 48.0)
    assert (row["low95"], row["high95"]) == (pytest.approx(43 - half, abs=1e-3), pytest.approx(43 + half, abs=1e-3))
    assert (row["accuracy"], row["runs"]) == ("43.00 %, sd 4.36", "3 (seed 0, 1, 2)")


@pytest.mark.parametrize("degrees", [1, 2, 5, 10, 11, 20, 100])
def test_the_quantile_is_students(degrees):
    assert student_t_975(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=1e-3)


def test_every_point_leads_to_its_runs_with_command_fingerprints_and_versions(tmp_path):
    grid(tmp_path / "runs", seeds=range(2))
    made = {"command": "fastkd train x.beton --alpha 0.5 --model 'a b'", "device": "a GPU", "torch": "2.9"}
    groups = collect_runs(tmp_path / "runs")
    groups[0].runs[0] |= {"command": made.pop("command"), "made": made}
    pytest.importorskip("vl_convert")
    write_page(groups, tmp_path / "r.html", tmp_path / "runs")
    found = Parsed((tmp_path / "r.html").read_text())
    anchors = set(re.findall(r"id=(runs-\d+)", (tmp_path / "r.html").read_text()))
    assert {row["at"] for row in found.rows} - {"paper"} == anchors
    assert len(anchors) == len(groups)
    for words in (
        "fastkd train x.beton --alpha 0.5 --model 'a b'",
        "device a GPU, torch 2.9",
        f"beton {'b' * 32}",
        "kd100-1",
    ):
        assert words in found.text


def test_the_page_says_by_how_much_distillation_helps_and_where_not(tmp_path):
    grid(tmp_path)
    first = findings_of(collect_runs(tmp_path))[0]
    error = (1.0 / 3 + 1.0 / 3) ** 0.5
    assert first == (
        "KD at α 0.5 beats labels alone by more than twice the standard error in 1 of 2 comparisons: "
        f"+0.00 ± {error:.2f} points (f 0.5) to +10.00 ± {error:.2f} points (f 0.1); not so: f 0.5 (+0.00 ± {error:.2f})."
    )


def test_all_small_fractions_are_named_at_which_the_papers_loss_does_not_help(tmp_path):
    for n, kept in enumerate((50, 100, 200, 300, 400, 500, 900)):
        for seed in (0, 1):
            make_run(tmp_path / f"labels{kept}-{seed}", 40.0 + seed, num_kept=kept, alpha=0.0, seed=seed)
            make_run(tmp_path / f"kd{kept}-{seed}", 40.0 + seed + 10 * (n == 0), num_kept=kept, seed=seed)
    told = findings_of(collect_runs(tmp_path))[1]
    places = "; ".join(f"f {f} (+0.00 ± 0.71)" for f in (0.1, 0.2, 0.3, 0.4, 0.5))
    assert (
        told
        == f"At f ≤ 0.5, KD at α 0.5 does not gain more than twice the standard error in 5 of 6 comparisons: {places}."
    )


def test_where_the_papers_loss_helps_at_all_small_fractions_that_is_said(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / f"labels{seed}", 40.0 + seed, alpha=0.0, seed=seed)
        make_run(tmp_path / f"kd{seed}", 50.0 + seed, seed=seed)
    assert findings_of(collect_runs(tmp_path))[1] == (
        "At every f ≤ 0.5 here, KD at α 0.5 gains more than twice the standard error."
    )


def test_teachers_of_several_epochs_are_no_several_teachers(tmp_path):
    for epoch, level in ((5, 60.0), (60, 50.0)):
        for seed in (0, 1):
            about = {"epoch": epoch, "fingerprint": str(epoch)}
            make_run(
                tmp_path / f"{epoch}-{seed}", level + seed, seed=seed, teacher=about, inputs={"logits": str(epoch)}
            )
    told = findings_of(collect_runs(tmp_path))
    assert told[1:] == [
        "Of the epochs of the teacher, by points over the next, the best in 1 setting: 5 in 1 (f 0.1: +10.00 ± 0.71)."
    ]


def test_what_is_best_is_told_where_it_is_clear(tmp_path):
    for alpha, level in ((0.5, 40.0), (1.0, 45.0)):
        for seed in range(3):
            make_run(tmp_path / f"low{alpha}{seed}", level + seed, alpha=alpha, seed=seed)
            make_run(tmp_path / f"high{alpha}{seed}", 70.0 + seed, alpha=alpha, seed=seed, num_kept=500)
    last = findings_of(collect_runs(tmp_path))[-1]
    begins = "Of the weights α, by points over the next, the best in 2 settings: 1 in 1 (f 0.1: +5.00 ± 0.82)"
    assert last.startswith(begins)
    assert last.endswith("; in 1 the first two are not clearly apart.")


@pytest.mark.parametrize(
    ("gain", "behind"), [(0.0, "0 of 1 settings"), (3.0, "1 of 1 settings (f 0.1: α 0.5 is ahead by +3.00")]
)
def test_it_is_told_whether_alpha_by_the_rule_is_behind(gain, behind, tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / f"rule{seed}", 50.0 + seed, seed=seed, alpha=1.0, rule="0.1:1,0.7:0.5")
        make_run(tmp_path / f"same{seed}", 50.0 + seed, seed=seed, alpha=1.0)
        make_run(tmp_path / f"half{seed}", 50.0 + gain + seed, seed=seed)
    *_, best, last = findings_of(collect_runs(tmp_path))
    assert behind in last
    assert ("in 1 setting: 0.5" in best) == (gain > 0)  # auto, which is 1 here, is no third


def test_single_runs_are_never_clearly_apart(tmp_path):
    make_run(tmp_path / "a", 10.0)
    make_run(tmp_path / "b", 90.0, alpha=0.9)
    found = difference(*collect_runs(tmp_path))
    assert (found.points, found.error, found.is_clear, str(found)) == (-80.0, None, False, "−80.00 (of one run)")


def test_figures_are_drawn_over_all_in_which_lines_differ(tmp_path):
    for tau in (2.0, 4.0):
        for kept in (100, 300):
            make_run(tmp_path / f"{tau}{kept}", tau=tau, num_kept=kept)
    figures, left_out = figures_of(collect_runs(tmp_path))
    assert ([figure.x for figure in figures], left_out) == (["fraction", "tau"], [])
    assert list(figures[1].panels[""]) == ["f 0.1", "f 0.3"]


def test_an_axis_that_nothing_can_be_drawn_over_is_told(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", lr=0.2)
    make_run(tmp_path / "c", tau=2.0)
    figures, left_out = figures_of(collect_runs(tmp_path))
    assert [figure.x for figure in figures] == ["fraction"]
    assert "differ in lr" in left_out[0]


def test_lines_without_distillation_are_dashed_in_the_colour_of_those_with_it():
    found = styles_of(["α 0.5, method random", "method random, no KD", "α 0.5, method el2n", "method el2n, no KD"])
    (random, plain_random, el2n, plain_el2n) = found.values()
    assert (random.colour, el2n.colour) == (plain_random.colour, plain_el2n.colour)
    assert random.colour != el2n.colour
    assert random.dash == el2n.dash != plain_random.dash == plain_el2n.dash


def test_the_papers_numbers_stand_beside_those_of_here(tmp_path):
    grid(tmp_path / "runs")
    groups = collect_runs(tmp_path / "runs")
    told, top5 = paper.claims_of(groups)
    assert (told.claim.points, told.here.points, told.verdict) == (17.0, 10.0, "the same direction")
    assert (top5.claim.points, top5.here.points, top5.verdict) == (4.82, 0.0, "not to be told from 0 here")
    published = [row for row in page_of(tmp_path / "runs", tmp_path / "r.html").rows if row["at"] == "paper"]
    assert sorted(row["mean"] for row in published) == [39.8, 56.8]


def test_what_the_paper_says_is_told_for_each_of_several_teachers_by_its_name(tmp_path):
    pytest.importorskip("vl_convert")
    make_run(tmp_path / "labels", 40.0, alpha=0.0)
    for name in ("resnet20", "resnet56"):
        make_run(tmp_path / name, 50.0, teacher={"model": name})
    told = [one for one in paper.claims_of(collect_runs(tmp_path)) if one.claim.points == 17.0]
    assert sorted(one.where for one in told) == ["f 0.1, resnet20", "f 0.1, resnet56"]
    assert "random, f 0.1 (f 0.1, resnet20)" in page_of(tmp_path, tmp_path / "r.html").text


def test_what_the_paper_says_of_a_teacher_on_other_samples_is_compared_with_such_a_teacher_alone(tmp_path):
    for name, told in (("own", {"method": "all"}), ("other", {"method": "complement", "fraction": 0.7})):
        for seed in (0, 1):
            make_run(tmp_path / f"{name}{seed}", 50.0 + seed, num_kept=150, seed=seed, teacher={"mask": told})
            make_run(tmp_path / f"labels{seed}", 40.0 + seed, num_kept=150, seed=seed, alpha=0.0)
    (told,) = paper.claims_of(collect_runs(tmp_path))
    assert told.where == ""
    assert (told.claim.points, told.claim.source, told.here.points) == (14.5, "section 4.5, figure 8", 10.0)


def test_costs_count_the_teachers_passes_that_a_store_saves(tmp_path):
    grid(tmp_path, seeds=range(2), views={"num_seeds": 1})
    costs = costs_of(collect_runs(tmp_path))
    live = 2 * 2 * (100 + 500)  # two epochs, two seeds
    assert (costs.live_forwards, costs.taken_forwards, costs.num_stores) == (live, 500, 1)
    assert costs.store_bytes == 500 * 64  # ten classes in fp16, a record has 64 bytes at least
    assert costs.seconds == pytest.approx(2 * live / 900)


def test_live_teachers_save_nothing(tmp_path):
    make_run(tmp_path / "a", inputs={"logits": None})
    costs = costs_of(collect_runs(tmp_path))
    assert (costs.live_forwards, costs.taken_forwards, costs.num_stores) == (200, 200, 0)


def test_without_vl_convert_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    make_run(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'fastkd\[report\]'"):
        write_page(collect_runs(tmp_path), tmp_path / "r.svg", tmp_path, axes=Axes("tau"))
