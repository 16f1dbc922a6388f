#!/bin/bash
# A run on GPUs of several nodes under Slurm, which goes on by itself when its time is over or a more urgent job comes:
#
#     sbatch docs/slurm.sh objective=table objective.file=mine.csv epochs=1000
#
#SBATCH --job-name=minigrad
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#
# One task on each node, torchrun, starts a rank for each of its GPUs, or of its CPUs where there are none. Two minutes
# before the time is over, and where a job is preempted, Slurm sends SIGTERM to the tasks: the ranks finish their step,
# save, and end. Requeued, the job keeps its number, and so finds its run. All nodes have to see the run's folder.

run=runs/slurm_$SLURM_JOB_ID
if [[ -e $run/config.yaml ]]; then
    where=resume=$run
else
    where=run_dir=$run
fi

trap : TERM # it may come here too: wait for the ranks
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" torchrun \
    --nnodes="$SLURM_NNODES" \
    --nproc-per-node="${SLURM_GPUS_ON_NODE:-${SLURM_CPUS_PER_TASK:-1}}" \
    --max-restarts=3 \
    --rdzv-backend=c10d \
    --rdzv-id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" \
    --rdzv-endpoint="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):${MASTER_PORT:-29500}" \
    -m minigrad.train "$where" "$@"
ended=$?

if ((ended)) && grep -qs '"status": "interrupted"' "$run/summary.json"; then
    if ! scontrol show job "$SLURM_JOB_ID" | grep -q JobState=CANCELLED; then # which is how scancel ends it
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$ended"
