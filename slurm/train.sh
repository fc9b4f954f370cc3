#!/usr/bin/env bash
# train.sh RUN ARGUMENT...: trains the run in the folder RUN on all nodes of this Slurm job, one torchrun a node.
# Called by the batch scripts; launch.pretrain gets the arguments. A run that was told to stop (time limit,
# preemption) and saved is put back into the queue, and goes on from there.
set -euo pipefail
: "${PYTHON:=python}"                           # of the environment that caat is installed in
: "${PROCESSES:=${SLURM_GPUS_ON_NODE:-1}}"      # on each node
: "${MAX_RESTARTS:=0}"                          # after a process died, without a new job
: "${PORT:=$((20000 + SLURM_JOB_ID % 10000))}"  # on the first node, for the nodes to meet at
: "${HEAD:=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}"
run=$1
shift

if [ "$SLURM_JOB_NUM_NODES" -eq 1 ]; then
    meeting=(--standalone)
else
    meeting=(--nnodes "$SLURM_JOB_NUM_NODES" --rdzv-backend c10d --rdzv-endpoint "$HEAD:$PORT"
        --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}")
fi
# torchrun hands these to its processes, and leaves them the time to save.
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300
# torchrun would give each process one core, whatever Slurm has given the job.
cores=$((${SLURM_CPUS_PER_TASK:-1} / PROCESSES))
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > 1 ? cores : 1))}"
# Of an earlier start: what it says below is to be of this one, if this one gets as far as to say something.
before="$run/status.json.before"
! grep -qsE '"(stopped|finished)"' "$run/status.json" || mv "$run/status.json" "$before"

status=0
# If one node fails, the others get a minute to say what they saw of it.
srun --ntasks-per-node=1 --wait=60 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
    "$PYTHON" -m torch.distributed.run "${meeting[@]}" --nproc-per-node "$PROCESSES" \
    --max-restarts "$MAX_RESTARTS" -m launch.pretrain "$@" || status=$?
[ ! -f "$run/status.json" ] || rm -f "$before"
# A signal that came when all was done but the last figures has stopped torchrun, not the run.
if grep -qs '"finished"' "$run/status.json"; then exit 0; fi
if [ "$status" -ne 0 ] && grep -qs '"stopped"' "$run/status.json"; then
    echo "stopped and saved: back into the queue, to go on in $run"
    scontrol requeue "$SLURM_JOB_ID"
fi
[ ! -f "$before" ] || mv "$before" "$run/status.json"
exit "$status"
