#!/usr/bin/env bash
# What Slurm's launcher costs: seconds of a grid by two workers, against two processes of hydra/launcher=local.
#   tests/cluster/ratio.sh [ROUNDS]     on a machine that does nothing else; three rounds, in turns
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$(mktemp -d /tmp/ratio-XXXX)
tests/cluster/cluster.sh up "$folder/slurm"
trap 'tests/cluster/cluster.sh down "$folder/slurm"; rm -r "$folder"' EXIT
. "$folder/slurm/env.sh"
seconds() {
  local begin
  begin=$(date +%s.%N)
  .venv/bin/python src/train.py -m data.train_size=1024 batch_size=4,8,16,32 seed=0,1,2 epochs=8 \
    machine.accelerator=cpu data.root="$folder/data" store="$folder/$1-$2/runs" "${@:3}" > "$folder/$1-$2.log"
  date +%s.%N | awk -v begin="$begin" '{printf "%.1f\n", $1 - begin}'
}
for round in $(seq "${1:-3}"); do
  slurm=$(seconds slurm "$round" hydra/launcher=slurm hydra.launcher.workers=2)
  local=$(seconds local "$round" hydra/launcher=local hydra.launcher.n_jobs=2)
  awk -v s="$slurm" -v l="$local" 'BEGIN {printf "slurm %.1f s, local %.1f s, ratio %.3f\n", s, l, s / l}'
done
