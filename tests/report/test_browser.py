"""The page in a real browser, where there is one."""

import pytest
from helpers.browser import CHROMIUM, browser
from helpers.runs import make_run

from fastkd.report.compare import collect_runs
from fastkd.report.page.write import write_page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report of runs with and without distillation over two axes, opened."""
    pytest.importorskip("vl_convert")
    folder = tmp_path_factory.mktemp("browser")
    for seed in range(2):
        for kept in (50, 500):  # far enough apart for a logarithmic axis
            for alpha in (0.0, 0.5, 0.9):
                name = f"runs/{seed}-{kept}-{alpha}"
                make_run(folder / name, 40.0 + kept / 10 + 9 * alpha + seed, alpha=alpha, num_kept=kept, seed=seed)
    write_page(collect_runs(folder / "runs"), folder / "r.html", folder / "runs")
    with browser(folder / "profile") as opened:
        opened.look(1400)
        opened.open(folder / "r.html")
        yield opened


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_a_page_is_drawn_without_complaint_and_fits_its_window(page, width, is_dark):
    page.look(width, is_dark=is_dark)
    page.wait(f"document.documentElement.scrollWidth === {width}")
    page.wait(
        "[...document.querySelectorAll('.chart svg.marks')].length === document.querySelectorAll('.chart').length"
    )
    page.wait(
        "[...document.querySelectorAll('.chart svg.marks')].every(svg => svg.getBoundingClientRect().right <= innerWidth)"
    )
    is_light = "getComputedStyle(document.body).backgroundColor === 'rgb(255, 255, 255)'"
    assert page.value(is_light) is not is_dark
    assert page.problems == []


def test_a_line_is_switched_off_and_on_by_its_name(page):
    lines = "document.querySelectorAll('figure .panel:first-child .mark-line path').length"
    before = page.value(lines)
    page.value("document.querySelector('.legend button').click()")
    page.wait(f"{lines} < {before}")
    page.value("document.querySelector('.legend button').click()")
    page.wait(f"{lines} === {before}")
    assert page.problems == []


def test_bars_become_intervals(page):
    bars = "[...document.querySelector('figure').querySelectorAll('.mark-rule.layer_0_marks line')].map(e => e.getAttribute('y2')).join()"
    before = page.value(bars)
    assert before
    page.value("document.querySelector('.bars button[data-bars=interval]').click()")
    page.wait(f"{bars} !== {before!r}")
    page.value("document.querySelector('.bars button[data-bars=none]').click()")
    page.wait(f"{bars} === ''")
    assert page.problems == []


def test_a_point_tells_its_numbers_under_the_pointer_and_leads_to_its_runs(page):
    page.look(1400)
    page.point_at("figure .mark-symbol path")
    page.wait("document.querySelector('#vg-tooltip-element.visible') !== null")
    told = page.value("document.querySelector('#vg-tooltip-element').innerText")
    assert all(word in told for word in ("fraction", "95 % interval", "2 (seed 0, 1)"))
    assert page.value("document.querySelectorAll('details[open]').length") == 0
    page.click("figure .mark-symbol path")
    page.wait("document.querySelectorAll('details.runs[open]').length === 1")
    assert page.problems == []
