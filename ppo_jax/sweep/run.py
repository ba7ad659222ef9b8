"""Sweeps from Python: arrays in memory, nothing on disk."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ppo_jax import config as configs
from ppo_jax.algorithms import ALGORITHMS
from ppo_jax.config import ConfigError, TrainConfig
from ppo_jax.config.options import did_you_mean
from ppo_jax.envs import refuse_sweep
from ppo_jax.runs import cache
from ppo_jax.sweep.points import Point, configure, grid
from ppo_jax.sweep.schedule import Finished, Schedule, group_agents
from ppo_jax.train import build
from ppo_jax.types import TrainState

Arrays = dict[str, np.ndarray]


def run_seeds(
    config: TrainConfig,
    seeds: int | Sequence[int],
    *,
    env: Any = None,
    policy: Any = None,
    algorithm: Any = None,
    batch_size: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[TrainState, Arrays]:
    """Train one configuration with many seeds, vmapped and spread over the devices.

    Args:
        config: what each agent learns; its own seed is the first where `seeds` is a number.
        seeds: S, or the S seeds themselves.
        env, policy, algorithm: as for `make_train`.
        batch_size: agents that one device trains at once; None: what fits and is fast.
        devices: all there are if None.

    Returns:
        (TrainState [S, ...], Metrics [S, U])

    Raises:
        ConfigError, InvalidEnvironment: what cannot work, and why.
    """
    config = configs.with_own(config, policy=policy, algorithm=algorithm)
    refuse_sweep(build(config, env).env)
    numbers = seed_numbers(config, seeds)
    groups = group_agents([config], numbers)
    schedule = Schedule(groups, devices or jax.devices(), _checked(batch_size), env=env)
    finished = _in_order(schedule)
    state = jax.tree.map(lambda *x: jax.numpy.concatenate(x), *(f.state() for f in finished))
    steps = np.broadcast_to(_env_steps(config), (len(numbers), config.num_updates))
    return state, {"env_step": steps, **_metrics(finished)}


def run_sweep(
    config: TrainConfig,
    points: Mapping[str, Sequence[Any]] | Sequence[Point],
    seeds: int | Sequence[int],
    *,
    env: Any = None,
    policy: Any = None,
    algorithm: Any = None,
    batch_size: int | None = None,
    episodes: int = 0,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[list[Point], Arrays]:
    """Train every point with every seed; what differs in floats alone shares one program.

    run_sweep(config, {"learning_rate": [1e-4, 1e-3], "clip_eps": [0.1, 0.2]}, seeds=16)

    Later calls find the program that was compiled, with other seeds and other values of floats, so
    that a hyperparameter search can call this in a loop; `jax.clear_caches()` frees the programs.

    Args:
        config: what the points change.
        points: name -> values, all combinations of which are the P points; or the points.
        seeds: S, or the S seeds themselves.
        env, policy, algorithm: as for `make_train`; a policy or an algorithm may also vary.
        batch_size: agents that one device trains at once; None: what fits and is fast.
        episodes: E greedy episodes of each agent at the end.
        devices: all there are if None.

    Returns:
        (the P points, Metrics [P, S, U]); with episodes also "eval_return" [P, S, E].

    Raises:
        ConfigError: a point that cannot work, or points of different lengths.
        InvalidEnvironment: what does not fit the environment.
    """
    config = configs.with_own(config, policy=policy, algorithm=algorithm)
    points = _listed(points, config)
    parts = {"env": env, "policy": policy, "algorithm": algorithm}
    for name in (n for n, part in parts.items() if part is not None):
        if any(name in point for point in points):
            raise ConfigError(f"{name}= is given, so that it cannot vary; name all in the points")
    settings = [configure(config, point) for point in points]
    lengths = {c.num_updates for c in settings}
    if len(lengths) > 1:
        raise ConfigError(
            f"the points make {' or '.join(map(str, sorted(lengths)))} updates, which do not fit "
            "into one array; set total_timesteps so that all make as many"
        )
    for setting in settings:
        refuse_sweep(build(setting, env).env)
    numbers = seed_numbers(config, seeds)
    groups = group_agents(settings, numbers)
    schedule = Schedule(
        groups, devices or jax.devices(), _checked(batch_size), episodes=episodes, env=env
    )
    finished = _in_order(schedule, states=False)
    metrics = _metrics(finished)
    if episodes:
        metrics["eval_return"] = np.concatenate([f.returns for f in finished])
    order = np.argsort([a for f in finished for a in f.chunk.agents])
    shape = (len(points), len(numbers))
    found = {k: x[order].reshape(*shape, *x.shape[1:]) for k, x in metrics.items()}
    steps = np.stack([_env_steps(setting) for setting in settings])[:, None]
    return points, {"env_step": np.broadcast_to(steps, (*shape, steps.shape[-1])), **found}


def seed_numbers(config: TrainConfig, seeds: int | Sequence[int]) -> list[int]:
    """The S seeds: as many as asked for from the configuration's own, or those given.

    Raises:
        ConfigError: none, one given twice, or one out of range.
    """
    if isinstance(seeds, int | np.integer):
        if isinstance(seeds, bool) or seeds < 1:
            raise ConfigError(f"seeds is {seeds!r}; it must be >= 1")
        seeds = range(config.seed, config.seed + int(seeds))
    numbers = [int(n) for n in seeds]
    if not numbers or len({*numbers}) < len(numbers):
        raise ConfigError(f"seeds are {numbers}; there must be at least one, each of them once")
    wrong = [n for n in numbers if not 0 <= n < 2**32]
    if wrong:
        raise ConfigError(f"seed {wrong[0]} is out of range; seeds are >= 0 and < 2**32")
    return numbers


def _env_steps(config: TrainConfig) -> np.ndarray:
    """[U] environment steps made after each update."""
    return np.arange(1, config.num_updates + 1) * (config.num_envs * config.num_steps)


def _listed(points: Mapping | Sequence[Point], config: TrainConfig) -> list[Point]:
    """The points, their names looked up and objects in them by name."""
    listed = grid({n: [*v] for n, v in points.items()}) if isinstance(points, Mapping) else points
    listed = [{n: configs.named(n, v) for n, v in point.items()} for point in listed]
    methods = {*ALGORITHMS, config.algorithm, *(p["algorithm"] for p in listed if "algorithm" in p)}
    known = {name for method in methods for name in configs.fields(method)}
    for name in {name for point in listed for name in point}:
        if name == "seed":
            raise ConfigError("seeds are given as `seeds`, not as a point's value")
        if name not in known:
            raise ConfigError(f"unknown option {name!r}; {did_you_mean(name, known)}")
    if not listed:
        raise ConfigError("there are no points; give at least one value for each name")
    return listed


def _in_order(schedule: Schedule, states: bool = True) -> list[Finished]:
    """All chunks; without states, the devices' memory is free again after each round.

    The compilation cache is JAX's setting for the whole process: it is set by the functions that
    compile, not on import, and not by `make_train`, which leaves jax.jit to its caller.
    """
    cache.use()
    found = (f if states else f._replace(state=_dropped) for f in schedule.run())
    return sorted(found, key=lambda f: f.chunk.agents)


def _dropped() -> TrainState:
    raise RuntimeError("the states were not kept")


def _metrics(finished: list[Finished]) -> Arrays:
    names = set.intersection(*({*f.metrics} for f in finished))
    common = [n for n in finished[0].metrics if n in names]
    return {name: np.concatenate([f.metrics[name] for f in finished]) for name in common}


def _checked(batch_size: int | None) -> int | None:
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be >= 1")
    return batch_size
