#!/usr/bin/env bash
# A sweep on several machines that share this folder and that ssh reaches without a password: a shard each. The first one writes
# table and page.
#   over_ssh.sh grid.toml /shared/sweep node1 node2 node3
set -uo pipefail
here=$(printf %q "$PWD") suite=$(printf %q "$1") out=$(printf %q "$2")
shift 2
count=$# index=0 pids=()
for host in "$@"; do
    index=$((index + 1))
    ssh -tt "$host" "cd $here && fastkd sweep $suite --shard $index/$count --out $out" \
        </dev/null >"shard-$index.log" 2>&1 &
    pids+=($!)
done
code=0
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
tail -n 3 shard-1.log
exit $code
