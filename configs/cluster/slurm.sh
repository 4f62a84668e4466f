#!/bin/bash
# sbatch configs/cluster/slurm.sh --config configs/lpc/teacher.yaml zero=2 output=runs/teacher
#SBATCH --job-name=vidcm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
# One task is one rank: signals reach each of them. USR1, two minutes before the end, makes all save
# and stop after the same step; the job then queues again and resumes.
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
# A rank that fails ends the others by itself, after it has said why.
srun --kill-on-bad-exit=0 bash -c \
    'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec python tools/train.py "$@"' \
    vidcm "$@"
code=$?
if [ $code = 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
