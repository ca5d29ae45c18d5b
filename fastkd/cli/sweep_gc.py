"""What `fastkd sweep --gc` lists."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastkd.cli.sweep_suite import digest_of

if TYPE_CHECKING:
    from fastkd.sweep.graph import Plan
    from fastkd.sweep.suite.keys import Commands


def unnamed(folder: Path, commands: "Commands") -> tuple[dict[str, Any], str]:
    """The outputs of a folder that no suite run there names any more."""
    from fastkd.sweep.folder import left_over
    from fastkd.sweep.graph import make_plan
    from fastkd.sweep.suite.read import read_suite

    def plan_of(asked: dict[str, Any]) -> "Plan":
        suite = read_suite(
            asked["text"], asked["where"], commands, name=asked["name"], scale=asked["scale"], sets=asked["sets"]
        )
        return make_plan(suite, folder, commands, digest_of)

    found = left_over(folder, plan_of)
    size = sum(one["size_bytes"] for one in found)
    result = {"kind": "sweep-left-over", "path": str(folder), "outputs": found, "size_bytes": size}
    lines = [f"{one['size_bytes']:>15,}  {one['path']}" for one in found]
    lines.append(
        f"{len(found)} outputs of {size:,} bytes that no suite run in {folder} names any more; nothing is removed"
    )
    return result, "\n".join(lines)
