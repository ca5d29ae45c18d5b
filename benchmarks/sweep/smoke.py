"""Every suite that comes with fastkd runs in its smoke form on digits, from nothing to its table.

Claim: each ends with all runs done, within five minutes on two cores. All share one folder, as suites do: what two of them
need is made once.

    python -m benchmarks.sweep.smoke
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import measure
from fastkd.cli.sweep_suite import SHIPPED


def run_all(folder: Path, names: list[str]) -> dict[str, Any]:
    """Of each suite: seconds, runs, commands that were run, and seconds of the CPU."""
    found: dict[str, Any] = {}
    for name in names:
        begin, cpu = time.monotonic(), os.times()
        result = measure.fastkd("sweep", name, "--scale", "smoke", "--data", "digits:", "--out", folder)
        after = os.times()
        assert result["ok"], result
        found[name] = {
            "seconds": time.monotonic() - begin,
            "cpu_seconds": sum(after[2:4]) - sum(cpu[2:4]),
            **{key: result[key] for key in ("num_cells", "num_runs", "num_commands_run") if key in result},
        }
        print(name, found[name], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="sweep_smoke")
    args = parser.parse_args()
    names = sorted(path.stem.replace("paper-", "paper:", 1) for path in SHIPPED.glob("*.toml"))
    with tempfile.TemporaryDirectory() as folder:
        found = run_all(Path(folder), names)
    measure.save(args.name, {"suites": found, "load_average": os.getloadavg()[1]})


if __name__ == "__main__":
    main()
