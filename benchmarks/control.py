"""Returns of PPO, of PPO with later changes, of REPPO and of Brax's PPO on tasks of dm_control.

pip install ".[playground]"
python -m benchmarks.control                               three tasks, 5 seeds each
python -m benchmarks.control --tasks CheetahRun --methods ppo reppo --seeds 3
python -m benchmarks.control --table                       print the committed results

All methods have the same numbers of environment steps, environments, steps per rollout, epochs and
minibatches, the same hidden layers and initial learning rate, and new initial states for every
episode. The discount factor is that of Playground, except for `reppo`. The rest is each method's
own. Brax: entropy coefficient 0.01 and rewards times 10, which Playground has for these tasks, clip
range 0.3, constant learning rate, SiLU, and minibatches of whole rollouts. `ppo`: no entropy bonus,
normalised rewards, clip range 0.2, a learning rate that decays to 0, tanh, and minibatches of
single steps. `ppo_modern`: the same with SiLU, layer norm, HL-Gauss critic and the reset of Adam's
bias correction. `reppo`: as its authors on these tasks, unscaled rewards, discount factor 0.99, the
limits of the gradient and of the KL divergence, and a standard deviation for each state. The
initial entropy coefficient of the authors, 0.001 for 50 million steps, gives far lower returns
here; 1 was chosen among 0.001, 0.1, 1 and 3 with seeds 0 to 2 of CartpoleSwingup. Other values of
other options were tried there and not adopted (reppo_tuning.csv). The options of `ppo` and
`ppo_modern` were not tuned on these tasks; Playground's were, for 60 times as many steps.

Every agent is evaluated over 128 greedy episodes. The returns of each seed are written to
benchmarks/results/control.csv after each method, and a command that is repeated trains only what is
missing there.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tyro

from benchmarks.ablation import FIRST_SEED, missing
from benchmarks.learning import FEWEST_SEEDS
from benchmarks.names import check_names
from benchmarks.table import RESULTS, Row, read, replace
from ppo_jax import config as configs
from ppo_jax.analysis import statistics
from ppo_jax.cli.sweep import one_device_per_core
from ppo_jax.runs import provenance
from ppo_jax.sweep import run_sweep

FILE = RESULTS / "control.csv"
EPISODES = 128
STEPS = 1_000_000
ENVS, LENGTH, EPOCHS, MINIBATCHES = 64, 64, 4, 8
HIDDEN, GAMMA, RATE, ENTROPY = (128, 128), 0.995, 1e-3, 1e-2
TASKS = ("CartpoleBalance", "CartpoleSwingup", "ReacherEasy", "CheetahRun", "HopperStand",
         "WalkerWalk")  # fmt: skip
# The physics of the others is slower.
USUAL = ("CartpoleBalance", "CartpoleSwingup", "ReacherEasy")
COMMON: dict[str, Any] = {
    "num_envs": ENVS,
    "num_steps": LENGTH,
    "hidden": HIDDEN,
    "normalize_obs": True,
    "normalize_reward": True,
    "learning_rate": RATE,
    "epochs": EPOCHS,
    "minibatches": MINIBATCHES,
    "gamma": GAMMA,
}
# The options of later work that need no tuning of their own.
MODERN: dict[str, Any] = {
    "activation": "silu",
    "norm": "layer",
    "value_head": "hl_gauss",
    "adam_reset": True,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "ppo": {"algorithm": "ppo", "entropy_coef": 0.0},
    "ppo_modern": {"algorithm": "ppo", "entropy_coef": 0.0, **MODERN},
    "reppo": {
        "algorithm": "reppo",
        "activation": "silu",
        "norm": "layer",
        "squash": True,
        "action_distribution": "state_gaussian",
        "value_head": "hl_gauss",
        # Returns are at most 100; the mean of the initial critic is the centre of the classes, 0.
        "value_bins": 151,
        "value_low": -150.0,
        "value_high": 150.0,
        "normalize_reward": False,
        "gamma": 0.99,
        "entropy_coef": 1.0,
        "max_grad_norm": 0.5,
    },
}
BRAX = "brax"
METHODS = (*OPTIONS, BRAX)
SAME = ("task", "method", "env_steps", "seed")


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the returns of methods on tasks of dm_control.

    Attributes:
        tasks: names of the tasks; by default three whose physics is fast.
        methods: names of the methods; all by default.
        seeds: number of seeds of each method.
        steps: number of environment steps of each run, rounded down to whole rollouts.
        table: only print the committed results.
    """

    tasks: tuple[str, ...] = USUAL
    methods: tuple[str, ...] = METHODS
    seeds: int = 5
    steps: int = STEPS
    table: bool = False


def config_of(task: str, method: str, steps: int) -> configs.TrainConfig:
    """The configuration of one of our methods."""
    values = {"env": f"playground:{task}", "total_timesteps": steps, "seed": FIRST_SEED}
    return configs.make(preset="none", **values | COMMON | OPTIONS[method])


def ours(task: str, method: str, steps: int, seeds: list[int]) -> np.ndarray:
    """[S] mean greedy returns of one of our methods, whose seeds are trained in one program."""
    _, metrics = run_sweep(config_of(task, method, steps), [{}], seeds, episodes=EPISODES)
    return np.asarray(metrics["eval_return"][0].mean(axis=-1))


def of_brax(task: str, steps: int, seeds: list[int]) -> np.ndarray:
    """[S] mean greedy returns of Brax's PPO, one seed after the other.

    Reward scaling, entropy coefficient and learning rate are those that Playground has for these
    tasks (dm_control_suite_params).
    """
    from brax.training.agents.ppo import networks, train
    from mujoco_playground import dm_control_suite, wrapper

    from benchmarks.throughput.contestants.brax import complete_jax

    complete_jax()
    make = functools.partial(
        networks.make_ppo_networks,
        policy_hidden_layer_sizes=HIDDEN,
        value_hidden_layer_sizes=HIDDEN,
    )
    found: list[float] = []
    for seed in seeds:
        train.train(
            environment=dm_control_suite.load(task, config_overrides={"impl": "jax"}),
            # Otherwise each environment has a single initial state for the whole run.
            wrap_env_fn=functools.partial(wrapper.wrap_for_brax_training, full_reset=True),
            num_timesteps=whole(steps),
            max_devices_per_host=1,
            episode_length=1000,
            num_envs=ENVS,
            unroll_length=LENGTH,
            batch_size=ENVS // MINIBATCHES,
            num_minibatches=MINIBATCHES,
            num_updates_per_batch=EPOCHS,
            learning_rate=RATE,
            entropy_cost=ENTROPY,
            discounting=GAMMA,
            reward_scaling=10.0,
            normalize_observations=True,
            network_factory=make,
            num_evals=2,
            num_eval_envs=EPISODES,
            deterministic_eval=True,
            seed=seed,
            progress_fn=lambda _, metrics: found.append(float(metrics["eval/episode_reward"])),
        )
    return np.array(found[1::2])  # the first evaluation of each seed is before training


def whole(steps: int) -> int:
    """The number of environment steps in whole rollouts."""
    return steps // (ENVS * LENGTH) * ENVS * LENGTH


def measure(task: str, method: str, options: Options) -> None:
    """Train the missing seeds of a method, and write their returns."""
    wanted: Row = {"task": task, "method": method, "env_steps": whole(options.steps)}
    seeds = missing(read(FILE), wanted, options.seeds)
    if not seeds:
        return
    train: Callable[..., np.ndarray] = (
        of_brax if method == BRAX else functools.partial(ours, method=method)
    )
    returns = train(task=task, steps=options.steps, seeds=seeds)
    where = {"device": provenance.device(), "jax": jax.__version__}
    rows = [
        wanted | {"seed": seed, "return": round(float(x), 1)} | where
        for seed, x in zip(seeds, returns, strict=True)
    ]
    replace(FILE, rows, SAME, place)
    print(f"{task} {method}: {len(seeds)} seeds, mean {returns.mean():.0f}", flush=True)


def place(row: Row) -> tuple[int, ...]:
    """The position of a row: the order of tasks and methods, then steps and seed."""
    order = (TASKS.index(row["task"]), METHODS.index(row["method"]))
    return (*order, int(row["env_steps"]), int(row["seed"]))


def markdown(rows: list[Row]) -> str:
    """The table of the documentation: a row per task, a column per method."""
    lines = ["| task | steps | " + " | ".join(METHODS) + " |", "|---|---|" + "---|" * len(METHODS)]
    for task, steps in dict.fromkeys((r["task"], r["env_steps"]) for r in rows):
        cells = []
        for method in METHODS:
            mine = [r for r in rows if (r["task"], r["env_steps"]) == (task, steps)]
            returns = [float(r["return"]) for r in mine if r["method"] == method]
            cells.append(cell(np.array(returns)))
        lines.append(f"| {task} | {int(steps):,} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(returns: np.ndarray) -> str:
    """The mean with its bootstrap interval; all returns if there are few seeds."""
    if not len(returns):
        return ""
    if len(returns) < FEWEST_SEEDS:
        return f"{returns.mean():.0f} ({', '.join(f'{x:.0f}' for x in returns)})"
    low, high = statistics.interval([returns], statistics.mean)
    return f"{returns.mean():.0f} [{low:.0f}, {high:.0f}]"


def main(options: Options) -> None:
    """Train what is missing, and print the table."""
    if options.table:
        print(markdown(read(FILE)), end="")
        return
    check_names("tasks", options.tasks, TASKS)
    check_names("methods", options.methods, METHODS)
    if options.seeds < 1:
        raise SystemExit(f"seeds is {options.seeds}; it must be >= 1")
    if whole(options.steps) < 1:
        raise SystemExit(f"steps is {options.steps}; a rollout has {ENVS * LENGTH}")
    one_device_per_core()
    for task in options.tasks:
        for method in options.methods:
            measure(task, method, options)
    print(markdown(read(FILE)), end="")


if __name__ == "__main__":
    main(tyro.cli(Options))
