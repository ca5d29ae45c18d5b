"""The README: its length, its links, its picture, and that its Python block runs as it stands."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from helpers.stores import make_store, random_logits

import fastkd
from fastkd.cli import cli
from fastkd.data.views.draw import Views

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


def test_every_command_line_of_the_readme_is_taken_by_the_command_line():
    lines = [line.partition("#")[0].split() for line in README.splitlines() if line.startswith("fastkd ")]
    assert len(lines) == 8
    for _, name, *words in lines:
        cli.commands[name].make_context(name, words)  # raises what is no option or value


def test_the_python_block_runs_as_it_stands(raw_beton, raw_mask, dataset, mask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, name in ((raw_beton, "train.beton"), (Path(f"{raw_beton}.json"), "train.beton.json"), (raw_mask, "m.h5")):
        shutil.copy(path, name)
    ids = mask.sample_ids
    make_store(Path("l.h5"), random_logits(2, len(ids), 10), ids, dataset=dataset, views=Views("crop-flip", 32, 2))
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(block, {})


def test_the_citation_has_the_version():
    assert f"version: {fastkd.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
