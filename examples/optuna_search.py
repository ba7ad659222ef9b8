"""Search hyperparameters with Optuna (`pip install optuna`), which is no dependency of ppo_jax.

    python optuna_search.py --trials 12

Each trial trains all its seeds in one compiled program. The values that are searched are real
numbers, so the first trial compiles the program and the others use it again.
"""

import argparse

import optuna

from ppo_jax import config as configs
from ppo_jax.sweep import run_sweep

BASE = configs.make(env="CartPole-v1", preset="none", total_timesteps=20_000)
SEEDS = range(8)
FRESH_SEEDS = range(100, 116)  # take no part in the search


def score(values, seeds):
    """The mean return of greedy episodes, over all seeds, of agents with these values."""
    _, metrics = run_sweep(BASE, [values], seeds=[*seeds], episodes=32)
    return float(metrics["eval_return"].mean())


def objective(trial):
    """What Optuna maximises."""
    values = {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
        "gae_lambda": trial.suggest_float("gae_lambda", 0.8, 1.0),
        "entropy_coef": trial.suggest_float("entropy_coef", 1e-4, 1e-1, log=True),
    }
    return score(values, SEEDS)


def main():
    """Search, then train the best values again with other seeds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=12)
    sampler = optuna.samplers.TPESampler(seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=parser.parse_args().trials)
    best = study.best_params
    print("best values:", {name: f"{value:.2g}" for name, value in best.items()})
    print(f"return in the search {study.best_value:.1f}, which is too high: it was chosen")
    print(f"return with fresh seeds {score(best, FRESH_SEEDS):.1f}")


if __name__ == "__main__":
    main()
