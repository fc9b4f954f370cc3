#!/usr/bin/env bash
# train.sh RUN ARGUMENT...: trains the run in the folder RUN on all nodes of this Slurm job, one torchrun per node.
# The batch scripts call it; the arguments go to launch.pretrain. A run that was stopped (time limit, preemption)
# and has saved is requeued, and resumes from its checkpoint.
set -euo pipefail
: "${PYTHON:=python}"                           # the Python that caat is installed in
: "${PROCESSES:=${SLURM_GPUS_ON_NODE:-1}}"      # per node
: "${MAX_RESTARTS:=0}"                          # restarts by torchrun after a process has died
: "${PORT:=$((20000 + SLURM_JOB_ID % 10000))}"  # rendezvous port on the first node
: "${HEAD:=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}"
run=$1
shift
# Files of the current folder, such as a launch.py, must not take the place of caat's.
export PYTHONSAFEPATH=1

if [ "$SLURM_JOB_NUM_NODES" -eq 1 ]; then
    meeting=(--standalone)
else
    meeting=(--nnodes "$SLURM_JOB_NUM_NODES" --rdzv-backend c10d --rdzv-endpoint "$HEAD:$PORT"
        --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}")
fi
# torchrun forwards these signals to its processes and gives them time to save.
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300
# By default torchrun sets one thread per process, however many cores Slurm has allocated.
cores=$((${SLURM_CPUS_PER_TASK:-1} / PROCESSES))
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > 1 ? cores : 1))}"
# Set aside the status of an earlier start, so that the status read below is that of this start.
before="$run/status.json.before"
! grep -qsE '"(stopped|finished)"' "$run/status.json" || mv "$run/status.json" "$before"

status=0
# If one node fails, the others get a minute to report what they observed.
srun --ntasks-per-node=1 --wait=60 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
    "$PYTHON" -m torch.distributed.run "${meeting[@]}" --nproc-per-node "$PROCESSES" \
    --max-restarts "$MAX_RESTARTS" -m launch.pretrain "$@" || status=$?
[ ! -f "$run/status.json" ] || rm -f "$before"
# A signal after the last step, while the summary was written, has stopped torchrun but not the run.
if grep -qs '"finished"' "$run/status.json"; then exit 0; fi
if [ "$status" -ne 0 ] && grep -qs '"stopped"' "$run/status.json"; then
    echo "stopped and saved: requeued, to resume in $run"
    scontrol requeue "$SLURM_JOB_ID"
fi
[ ! -f "$before" ] || mv "$before" "$run/status.json"
exit "$status"
