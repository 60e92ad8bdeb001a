#!/bin/bash
# Two machines of eight GPUs under SLURM; the job comes back by itself until the run is finished.
#   sbatch docs/slurm.sh config/full_llama3_8b.py --use_fsdp=True --out_dir=/shared/out/llama3_8b
# The run's folder and the data must lie where all machines see them.
#SBATCH --job-name=isoflop
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300

for argument in "$@"; do
    case $argument in --out_dir=*) run=${argument#--out_dir=} ;; esac
done
: "${run:?name the run with --out_dir=...}"

ranks_per_machine=${SLURM_GPUS_ON_NODE:-8}
first_machine=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# Five minutes before the time is over, and when the job is preempted, SLURM sends SIGTERM to the ranks: they finish
# their step and save. torchrun would kill them after 30 seconds.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240

srun torchrun \
    --nnodes="$SLURM_NNODES" --nproc_per_node="$ranks_per_machine" --max_restarts=3 \
    --rdzv_id="$SLURM_JOB_ID" --rdzv_backend=c10d --rdzv_endpoint="$first_machine:29500" \
    train.py "$@" --init_from=auto
code=$?

# Again after a signal, which the log's last line tells; not after an error, nor at the end.
if [ "$code" -ne 0 ] && tail -n 1 "$run/log.jsonl" | grep -q '"reason": "SIG'; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
