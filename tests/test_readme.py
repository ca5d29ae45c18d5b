"""The README: its length, its links, its picture; `test_documented_blocks.py` runs what stands in it."""

import re
import subprocess
import sys
from pathlib import Path

import fastkd

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_of_160_lines_at_most():
    assert len(README.splitlines()) <= 160


def test_what_the_readme_links_to_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 12
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_picture_is_what_its_script_draws():
    done = subprocess.run([sys.executable, ROOT / "tools" / "draw_idea.py"], capture_output=True, text=True, check=True)
    assert done.stdout == (ROOT / "tools" / "idea.svg").read_text(encoding="utf-8")


def test_the_figure_of_results_is_what_its_script_draws_of_the_table_beside_it():
    (table,) = set(re.findall(r"benchmarks/results/sweeps/[\w-]+\.csv", README))
    command = [sys.executable, ROOT / "tools" / "draw_results.py", ROOT / table]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == (ROOT / "tools" / "results.svg").read_text(encoding="utf-8")


def test_the_citation_has_the_version():
    assert f"version: {fastkd.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
