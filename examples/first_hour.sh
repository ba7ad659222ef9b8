#!/usr/bin/env bash
# The first hour of README.md in this folder as one script: from a clone to an agent in an
# environment of your own. It prints the seconds that each command takes, and writes them to a CSV
# file with the lines that are typed and read.
#
#     bash first_hour.sh REPOSITORY FOLDER [CSV]
#
# The seconds include the download of the packages. To measure them as on a new machine, without
# pip's cache and the cache of compiled programs: XDG_CACHE_HOME=$(mktemp -d) bash first_hour.sh ...
set -euo pipefail

begin=$SECONDS
csv=${3:-first_hour.csv}
[[ $csv == /* ]] || csv=$PWD/$csv
row() { printf '"%s",%d,%s\n' "${1//\"/\"\"}" "$2" "$3" >>"$csv"; }
timed() {
  local start=$SECONDS
  "$@"
  echo "--- $((SECONDS - start)) s: $*"
  row "$*" $((SECONDS - start)) seconds
}
# The section of README.md that describes the first hour, without empty lines.
section() { awk '/^## /{here = /The first hour/; next} here && NF' README.md; }
echo "what,value,unit" >"$csv"

timed git clone --quiet "$1" "$2"
cd "$2"
timed python3 run.py train
. .venv/bin/activate
cd examples

timed python -m ppo_jax.train --env CartPole-v1 --total-timesteps 1e5 --run-dir ../runs/first
timed python -m ppo_jax.evaluate ../runs/first --gif ../runs/first.gif

timed python -m ppo_jax.train --env CartPole-v1 --total-timesteps 1e5 --learning-rate 5e-2 --run-dir ../runs/large
timed python -m ppo_jax.plot ../runs/first ../runs/large --out ../runs/compared.png

timed python -m ppo_jax.sweep --env CartPole-v1 --total-timesteps 5e4 --seeds 3 --vary learning_rate=5e-4,2e-3 --run-dir ../sweeps/first

timed python -m ppo_jax check-env delivery:Delivery
timed python -m ppo_jax.train --env delivery:Delivery --total-timesteps 1.5e5 --num-envs 16 --learning-rate 2e-3 --entropy-coef 0.01 --run-dir ../runs/delivery
timed python -m ppo_jax.evaluate ../runs/delivery
row "all commands" $((SECONDS - begin)) seconds
row "commands that are typed" "$(section | grep -c '^    ')" lines
row "delivery.py, which is typed" "$(grep -c '[^ ]' delivery.py)" lines
row "CPU cores" "$(nproc)" cores
row "README.md, which is read" "$(section | grep -vc '^    ')" lines
echo "--- $((SECONDS - begin)) s in all; the agent is in $2/runs/delivery"
