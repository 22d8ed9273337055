#!/bin/bash
# Several machines under Slurm: one launcher a machine, one process a GPU. Submit it from the repository's root, with the
# environment of the training active; a requeued job goes on from its last checkpoint, and so does one submitted again.
#   sbatch --nodes 2 --gpus-per-node 4 configs/accelerate/slurm.sh configs/artgraph.yaml --source DATA --per_device_train_batch_size 4
#SBATCH --job-name=artgraph_vit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
set -euo pipefail

gpus=${SLURM_GPUS_ON_NODE:?ask for GPUs with --gpus-per-node}
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
main_host=${hosts%%$'\n'*}
port=$((20000 + SLURM_JOB_ID % 10000)) # of this job alone, should two share a machine

# SLURM_NODEID is known only within a task, so the task's own shell has to read it.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    bash -c 'exec accelerate launch --machine_rank "$SLURM_NODEID" "$@"' launch \
    --config_file configs/accelerate/several_machines.yaml \
    --num_machines "$SLURM_JOB_NUM_NODES" --num_processes $((SLURM_JOB_NUM_NODES * gpus)) \
    --main_process_ip "$main_host" --main_process_port "$port" \
    scripts/train.py "$@" --resume_from_checkpoint auto
