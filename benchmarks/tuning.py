"""The hyperparameter search behind four presets of PPO, confirmed on new seeds.

python -m benchmarks.tuning                     all four searches; interrupted ones are resumed
python -m benchmarks.tuning --names pendulum
python -m benchmarks.tuning --table             print the committed results

Each search is a sweep of `ppo_jax.sweep` in sweeps/tuning: trials from a Sobol sequence around the
old preset, with eight seeds each. The best trial and the old preset are then trained with the same
64 new seeds. The table of each search is copied to benchmarks/results/tuning, and one row is
written to tuning.csv; the report stays in the folder of the sweep.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.names import check_names
from benchmarks.table import RESULTS, merge, read
from ppo_jax import config as configs
from ppo_jax.analysis import statistics
from ppo_jax.cli import sweep as command
from ppo_jax.sweep import run_sweep
from ppo_jax.sweep.points import label
from ppo_jax.sweep.publish import difference
from ppo_jax.sweep.results import penalise
from ppo_jax.sweep.store import Store, read_spec

FIRST_SEED, SEEDS, CONFIRM, EPISODES = 1000, 8, 64, 128
SWEEPS = Path("sweeps/tuning")


@dataclasses.dataclass(frozen=True)
class Search:
    """The search for one preset.

    Attributes:
        steps: environment steps of each agent.
        before: values of the old preset for the options that vary.
        vary: values of `--vary` of the sweep.
        trials: number of trials.
    """

    steps: int
    before: dict[str, Any]
    vary: tuple[str, ...]
    trials: int = 16


SEARCHES = {
    "cartpole": Search(
        100_000,
        {"learning_rate": 2e-3, "gamma": 0.98, "gae_lambda": 0.95, "clip_eps": 0.1},
        (
            "learning_rate=log:5e-4:8e-3",
            "gamma=0.97,0.98,0.99",
            "gae_lambda=0.8,0.9,0.95,0.98",
            "clip_eps=0.1,0.2,0.3",
        ),
    ),
    "acrobot": Search(
        150_000,
        {"learning_rate": 3e-3, "gamma": 0.99, "gae_lambda": 0.9, "clip_eps": 0.1},
        (
            "learning_rate=log:5e-4:8e-3",
            "gamma=0.98,0.99,0.995",
            "gae_lambda=0.8,0.9,0.95",
            "clip_eps=0.1,0.2",
        ),
    ),
    "pendulum": Search(
        150_000,
        {"learning_rate": 1e-3, "gamma": 0.98, "gae_lambda": 0.8, "clip_eps": 0.1},
        (
            "learning_rate=log:5e-4:5e-3",
            "gamma=0.9,0.95,0.98",
            "gae_lambda=0.8,0.9,0.95",
            "clip_eps=0.1,0.2,0.3",
        ),
    ),
    "mountain_car_continuous": Search(
        150_000,
        {"learning_rate": 1e-3, "gamma": 0.999, "gae_lambda": 0.95, "entropy_coef": 0.01},
        (
            "learning_rate=log:3e-4:5e-3",
            "gamma=0.99,0.995,0.999",
            "gae_lambda=0.9,0.95,0.98",
            "entropy_coef=0,0.003,0.01",
        ),
    ),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Search for hyperparameters of presets.

    Attributes:
        names: names of the presets; all by default.
        table: only print the committed results, as in the documentation.
    """

    names: tuple[str, ...] = tuple(SEARCHES)
    table: bool = False


def words_of(name: str) -> list[str]:
    """The arguments of the sweep; options that do not vary keep the values of the preset."""
    search = SEARCHES[name]
    return [
        "--preset", name, "--total-timesteps", str(search.steps), "--seed", str(FIRST_SEED),
        "--seeds", str(SEEDS), "--sample", str(search.trials), "--eval-episodes", str(EPISODES),
        *(word for v in search.vary for word in ("--vary", v)),
        "--confirm", str(CONFIRM), "--keep", "none", "--run-dir", str(SWEEPS / name),
    ]  # fmt: skip


def before(name: str) -> np.ndarray:
    """[CONFIRM] scores of the old preset, with the seeds that confirm the best trial."""
    search = SEARCHES[name]
    config = configs.make(
        preset=name,
        total_timesteps=search.steps,
        seed=FIRST_SEED + SEEDS,
        **search.before,
    )
    _, metrics = run_sweep(config, [{}], CONFIRM, episodes=EPISODES)
    return metrics["eval_return"][0].mean(axis=-1)


def row_of(name: str) -> dict[str, Any]:
    """The row of a finished search."""
    path = SWEEPS / name
    spec, _ = read_spec(path / "confirm")
    (best,) = penalise(Store(path / "confirm", spec).results())
    names = SEARCHES[name].before
    point = {n: v for n, v in configs.to_flat(best.config).items() if n in names}
    old = before(name)
    numbers = difference(best.score, old)
    low, high = statistics.interval([best.score])
    return {
        "preset": name,
        "env": best.env,
        "env_steps": SEARCHES[name].steps,
        "trials": SEARCHES[name].trials,
        "best": label(point),
        "confirmed_seeds": len(best.score),
        "iqm": round(float(statistics.interquartile_mean(best.score)), 2),
        "ci95_low": round(float(low), 2),
        "ci95_high": round(float(high), 2),
        "mean": round(float(best.score.mean()), 2),
        "iqm_before": round(float(statistics.interquartile_mean(old)), 2),
        "mean_before": round(float(old.mean()), 2),
        "difference": round(numbers["difference"], 2),
        "difference_low": round(numbers["ci95_low"], 2),
        "difference_high": round(numbers["ci95_high"], 2),
        "probability": round(numbers["probability_of_improvement"], 3),
        # A preset is replaced only if the best trial is significantly better on new seeds.
        "adopted": bool(numbers["ci95_low"] > 0),
    }


def markdown() -> str:
    """The table of the documentation."""
    head = ("preset", "steps", "best of the search", "IQM [95 %]", "before", "P(better)", "adopted")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in read(RESULTS / "tuning.csv"):
        spread = f"{r['iqm']} [{r['ci95_low']}, {r['ci95_high']}]"
        cells = (f"`{r['preset']}`", f"{int(r['env_steps']):,}", r["best"], spread)
        adopted = "yes" if r["adopted"] == "True" else "no"
        cells = (*cells, r["iqm_before"], r["probability"], adopted)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(options: Options) -> None:
    """Run the searches, copy their tables and print the result."""
    if options.table:
        print(markdown(), end="")
        return
    check_names("names", options.names, SEARCHES)
    kept = RESULTS / "tuning"
    kept.mkdir(parents=True, exist_ok=True)
    command.one_device_per_core()
    for name in options.names:
        path = SWEEPS / name
        words = words_of(name)
        print("python -m ppo_jax.sweep", " ".join(words), flush=True)
        code = command.run_command(
            [*words, *(["--resume"] if (path / "sweep.json").exists() else [])]
        )
        if code:
            raise SystemExit("stopped; run the same command again to continue")
        shutil.copy(path / "table.csv", kept / f"{name}.csv")
        merge(RESULTS / "tuning.csv", [row_of(name)], {"preset": [*SEARCHES]})
    print(markdown(), end="")


if __name__ == "__main__":
    main(tyro.cli(Options))
