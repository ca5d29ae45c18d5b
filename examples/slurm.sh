#!/usr/bin/env bash
#SBATCH --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 --cpus-per-task=8
#SBATCH --signal=TERM@180 --requeue --open-mode=append
#
# A student on two nodes of four GPUs. The store is filled first, on the first node. Should the job's time end, a state is written,
# exit code 75 says so, and the job is queued again: the same commands go on.
#   sbatch slurm.sh train.beton m.h5 teacher/ test.beton OUT [OPTION OF fastkd train]...
set -uo pipefail
beton=$1 mask=$2 teacher=$3 val=$4 out=$5
shift 5
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

again() { # the job goes on later where it was told to stop, and ends where it failed
    [ "$1" -eq 0 ] && return
    [ "$1" -eq 75 ] && scontrol requeue "$SLURM_JOB_ID"
    exit "$1"
}

per_node=${SLURM_NTASKS_PER_NODE:-4}
WORLD_SIZE=$per_node srun --nodes=1 --ntasks="$per_node" --kill-on-bad-exit=0 --wait=60 bash -c '
    RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec fastkd cache-logits "$@"' _ \
    "$beton" --mask "$mask" --teacher "$teacher" --num-seeds "${FASTKD_SEEDS:-50}" --out "$out/logits.h5"
again $?

srun --kill-on-bad-exit=0 --wait=60 bash -c '
    WORLD_SIZE=$SLURM_NTASKS RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec fastkd train "$@"' _ \
    "$beton" --mask "$mask" --logits "$out/logits.h5" --val "$val" --out "$out/run" --checkpoint-every 500 "$@"
again $?
