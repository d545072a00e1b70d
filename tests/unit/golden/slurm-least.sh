#!/bin/bash
#SBATCH --job-name=hpcviews-one-1
#SBATCH --output=/home/u/.hv/one.log
#SBATCH --open-mode=append
#SBATCH --ntasks=8
#SBATCH --no-requeue

cd -- /home/u/work || exit 1
export HPCVIEWS_HOME=/home/u/.hv
exec /opt/python -m hpcviews.cluster --job /home/u/.hv/clusters/one
