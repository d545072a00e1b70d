#!/bin/bash
#SBATCH --job-name=hpcviews-one-1
#SBATCH --output=/home/u/.hv/one.log
#SBATCH --nodes=2
#SBATCH --ntasks=8
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --mem=16G
#SBATCH --time=25:01:01
#SBATCH --partition=main
#SBATCH --account=phys
#SBATCH --qos=high
#SBATCH --constraint="a&b"
#SBATCH --reservation=r1
#SBATCH --exclude="n[3-4]"
#SBATCH --nodelist="n[1-2]"
#SBATCH --dependency=afterok:12
#SBATCH --no-requeue
#SBATCH --licenses=x:1

cd -- /home/u/work || exit 1
module load python gcc/12
ulimit -n 4096
eval "$(conda shell.bash hook)"
conda activate science || exit 1
export HPCVIEWS_HOME=/home/u/.hv
exec /opt/python -m hpcviews.cluster --job /home/u/.hv/clusters/one
