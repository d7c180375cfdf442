#!/bin/bash
# A search as a SLURM job that outlives its time limit: it stops in time, queues again and goes on. `sbatch docs/slurm.sh`
#SBATCH --job-name=resnet9-tune
#SBATCH --time=04:00:00
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --requeue
#SBATCH --open-mode=append
# two minutes before the limit, to this script only
#SBATCH --signal=B:USR1@120

name=${SLURM_JOB_NAME:-resnet9-tune}-${SLURM_JOB_ID:-0}
command=(python -m tune.search --space lr_regimes --data cifar10 --trials 200 --name "$name")

# The whole command with --resume goes on where the run is.
[ -e "runs/$name/run.json" ] && command+=(--resume "runs/$name")
"${command[@]}" &
search=$!

again() {
    trap '' USR1 TERM
    kill -TERM "$search"
    wait "$search" # every finished epoch is on disk; exit code 143
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap again USR1
trap 'kill -TERM "$search"; wait "$search"; exit 143' TERM # scancel: no queueing again

wait "$search"
