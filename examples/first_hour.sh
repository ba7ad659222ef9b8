#!/usr/bin/env bash
# The first hour of README.md in this folder as one script: from a clone to an agent in an
# environment of your own. It prints the seconds that each command takes.
#
#     bash first_hour.sh REPOSITORY FOLDER
set -euo pipefail

begin=$SECONDS
timed() {
  local start=$SECONDS
  "$@"
  echo "--- $((SECONDS - start)) s: $*"
}

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
echo "--- $((SECONDS - begin)) s in all; the agent is in $2/runs/delivery"
