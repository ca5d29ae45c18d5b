"""Claim: nothing of FFCV is broken for other users in the process once fastkd has been imported.

The tests of FFCV's own source distribution run twice, in processes of their own: without fastkd, and after everything of
fastkd that touches FFCV was imported. Those that need a GPU, several of them, or a download are left out. Asserted: every
test has the same outcome both times.

    pip download --no-binary :all: --no-deps ffcv==1.0.2 && tar xzf ffcv-1.0.2.tar.gz
    python -m benchmarks.data.ffcv_suite ffcv-1.0.2
"""

import argparse
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from benchmarks import measure

LEFT_OUT = ("test_augmentations.py", "test_cuda_nonblocking.py", "test_memory_leak.py", "test_webdataset.py")
FIRST = {"alone": "", "after fastkd": "import fastkd.feed.loader, fastkd.data.beton.build"}


def start(folder: Path, first: str, report: Path) -> subprocess.Popen:
    code = f"{first}\nimport sys, pytest\nsys.exit(pytest.main(sys.argv[1:]))"
    options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}", "-k", "not cuda and not gpu and not cifar"]
    options += [f"--ignore={name}" for name in LEFT_OUT]
    return subprocess.Popen([sys.executable, "-c", code, *options], cwd=folder / "tests")


def outcomes(report: Path) -> dict[str, str]:
    """What each test came to: passed, or what the report has instead."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found[f"{case.get('classname')}::{case.get('name')}"] = kinds[0] if kinds else "passed"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="FFCV's source distribution, unpacked.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as reports:
        paths = {name: Path(reports) / f"{i}.xml" for i, name in enumerate(FIRST)}
        for process in [start(args.folder.resolve(), first, paths[name]) for name, first in FIRST.items()]:
            process.wait()
        found = {name: outcomes(path) for name, path in paths.items()}
    assert found["alone"] == found["after fastkd"], {
        test: (found["alone"].get(test), found["after fastkd"].get(test))
        for test in found["alone"].keys() | found["after fastkd"].keys()
        if found["alone"].get(test) != found["after fastkd"].get(test)
    }
    counts = {name: dict(Counter(tests.values())) for name, tests in found.items()}
    not_passed = {test: what for test, what in found["alone"].items() if what != "passed"}
    measure.save("ffcv_suite", {"outcomes": counts, "not_passed_in_both": not_passed, "left_out": list(LEFT_OUT)})


if __name__ == "__main__":
    main()
