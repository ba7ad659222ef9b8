"""Sweeps from Python: results are arrays in memory, and no files are written."""

import warnings
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
from ppo_jax.sweep.points import Overrides, configure, grid
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
    agents_per_device: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    batch_size: int | None = None,
) -> tuple[TrainState, Arrays]:
    """Train one configuration with many seeds, vectorised and distributed over the devices.

    Args:
        config: configuration of all agents; if `seeds` is a number, its seed is the first one.
        seeds: number of seeds S, or the S seeds.
        env, policy, algorithm: arguments of `make_train`.
        agents_per_device: number of agents that one device trains at the same time; None for a fast
            number that fits in memory.
        devices: devices to use; None for all devices.
        batch_size: older name of agents_per_device.

    Returns:
        (TrainState [S, ...], Metrics [S, U])

    Raises:
        ConfigError, InvalidEnvironment: the configuration or the environment is invalid.
    """
    config = configs.with_own(config, policy=policy, algorithm=algorithm)
    refuse_sweep(build(config, env).env)
    numbers = seed_numbers(config, seeds)
    groups = group_agents([config], numbers)
    width = _width(agents_per_device, batch_size)
    schedule = Schedule(groups, devices or jax.devices(), width, env=env)
    finished = _in_order(schedule)
    state = jax.tree.map(lambda *x: jax.numpy.concatenate(x), *(f.state() for f in finished))
    steps = np.broadcast_to(_env_steps(config), (len(numbers), config.num_updates))
    return state, {"env_step": steps, **_metrics(finished)}


def run_sweep(
    config: TrainConfig,
    points: Mapping[str, Sequence[Any]] | Sequence[Overrides],
    seeds: int | Sequence[int],
    *,
    env: Any = None,
    policy: Any = None,
    algorithm: Any = None,
    agents_per_device: int | None = None,
    episodes: int = 0,
    devices: Sequence[jax.Device] | None = None,
    batch_size: int | None = None,
) -> tuple[list[Overrides], Arrays]:
    """Train every configuration with every seed.

    run_sweep(config, {"learning_rate": [1e-4, 1e-3], "clip_eps": [0.1, 0.2]}, seeds=16)

    Configurations that differ only in real-valued hyperparameters share one compiled program. Later
    calls with other seeds and values reuse it, so that a hyperparameter search can call this
    function in a loop; `jax.clear_caches()` frees the programs.

    Args:
        config: base configuration.
        points: name -> values, whose combinations are the P configurations; or a list of P
            dictionaries of values.
        seeds: number of seeds S, or the S seeds.
        env, policy, algorithm: arguments of `make_train`; a policy or an algorithm may also vary.
        agents_per_device: number of agents that one device trains at the same time; None for a fast
            number that fits in memory.
        episodes: number of greedy evaluation episodes E per agent at the end.
        devices: devices to use; None for all devices.
        batch_size: older name of agents_per_device.

    Returns:
        (list of the P dictionaries of values, Metrics [P, S, U]); with episodes, the metrics also
        have "eval_return" [P, S, E].

    Raises:
        ConfigError: a configuration is invalid, or the configurations have different lengths.
        InvalidEnvironment: a configuration does not fit its environment.
    """
    config = configs.with_own(config, policy=policy, algorithm=algorithm)
    points = _listed(points, config)
    parts = {"env": env, "policy": policy, "algorithm": algorithm}
    for name in (n for n, part in parts.items() if part is not None):
        if any(name in point for point in points):
            raise ConfigError(
                f"{name}= is given and also varies; put all values in the configurations"
            )
    settings = [configure(config, point) for point in points]
    lengths = {c.num_updates for c in settings}
    if len(lengths) > 1:
        raise ConfigError(
            f"the configurations make {' or '.join(map(str, sorted(lengths)))} updates, which do "
            "not fit into one array; set total_timesteps so that the numbers are equal"
        )
    for setting in settings:
        refuse_sweep(build(setting, env).env)
    numbers = seed_numbers(config, seeds)
    groups = group_agents(settings, numbers)
    width = _width(agents_per_device, batch_size)
    schedule = Schedule(groups, devices or jax.devices(), width, episodes=episodes, env=env)
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
    """The S seeds: consecutive numbers from the configuration's seed, or those given.

    Raises:
        ConfigError: there are no seeds, a seed is repeated, or a seed is out of range.
    """
    if isinstance(seeds, int | np.integer):
        if isinstance(seeds, bool) or seeds < 1:
            raise ConfigError(f"seeds is {seeds!r}; it must be >= 1")
        seeds = range(config.seed, config.seed + int(seeds))
    numbers = [int(n) for n in seeds]
    if not numbers or len({*numbers}) < len(numbers):
        raise ConfigError(f"seeds are {numbers}; there must be at least one, without repetitions")
    wrong = [n for n in numbers if not 0 <= n < 2**32]
    if wrong:
        raise ConfigError(f"seed {wrong[0]} is out of range; seeds are >= 0 and < 2**32")
    return numbers


def _env_steps(config: TrainConfig) -> np.ndarray:
    """[U] number of environment steps after each update."""
    return np.arange(1, config.num_updates + 1) * (config.num_envs * config.num_steps)


def _listed(points: Mapping | Sequence[Overrides], config: TrainConfig) -> list[Overrides]:
    """The configurations as dictionaries, with checked names and with objects as references."""
    listed = grid({n: [*v] for n, v in points.items()}) if isinstance(points, Mapping) else points
    listed = [{n: configs.named(n, v) for n, v in point.items()} for point in listed]
    methods = {*ALGORITHMS, config.algorithm, *(p["algorithm"] for p in listed if "algorithm" in p)}
    known = {name for method in methods for name in configs.fields(method)}
    for name in {name for point in listed for name in point}:
        if name == "seed":
            raise ConfigError("seeds are given with `seeds`, not as a value of a configuration")
        if name not in known:
            raise ConfigError(f"unknown option {name!r}; {did_you_mean(name, known)}")
    if not listed:
        raise ConfigError("there are no configurations; give at least one value for each name")
    return listed


def _in_order(schedule: Schedule, states: bool = True) -> list[Finished]:
    """Train all chunks; without states, the device memory is freed after each round.

    The compilation cache is a JAX setting of the whole process. It is set by functions that
    compile, not on import, and not by `make_train`, whose caller uses jax.jit.
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


def _width(agents_per_device: int | None, batch_size: int | None) -> int | None:
    """The number of agents per device, which earlier versions called batch_size."""
    if batch_size is not None:
        warnings.warn("batch_size= is now agents_per_device=", DeprecationWarning, stacklevel=3)
    width = batch_size if agents_per_device is None else agents_per_device
    if width is not None and width < 1:
        raise ConfigError(f"agents_per_device is {width}; it must be >= 1")
    return width
