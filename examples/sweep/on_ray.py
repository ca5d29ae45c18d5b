"""A sweep on a Ray cluster whose nodes share a folder: a task a shard, each with a GPU.

python on_ray.py grid.toml /shared/sweep 4
"""

import subprocess
import sys

import ray


@ray.remote(num_gpus=1, max_retries=10)
def run_shard(suite: str, out: str, index: int, count: int) -> int:
    """The exit code of one shard; Ray starts it again where its node is lost, and it goes on."""
    command = ["fastkd", "sweep", suite, "--shard", f"{index}/{count}", "--out", out]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    suite, out, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    ray.init(address="auto")
    codes = ray.get([run_shard.remote(suite, out, index, count) for index in range(1, count + 1)])
    sys.exit(max(codes))
