"""Reload the agent of a run directory and let it play."""

from pathlib import Path

import jax
import numpy as np

from ppo_jax import compilation_cache, report
from ppo_jax.config import ConfigError, TrainConfig
from ppo_jax.evaluate import confidence_interval, evaluate, record, save_gif
from ppo_jax.run_directory import checkpoints_of, read_config
from ppo_jax.train import Program, build
from ppo_jax.types import TrainState


def load(run_dir: Path, checkpoint: str = "latest") -> tuple[TrainConfig, Program, TrainState]:
    """The agent of a run.

    Args:
        run_dir: run directory.
        checkpoint: "latest", "best", or the number of an update.

    Raises:
        ConfigError, CheckpointError: not a run, or nothing whole to restore.
    """
    config = read_config(run_dir)
    program = build(config)
    checkpoints = checkpoints_of(run_dir, config)
    shapes = jax.eval_shape(program.init, jax.random.key(0))
    if checkpoint == "latest":
        step = None
    elif checkpoint == "best":
        step = checkpoints.best()
    elif checkpoint.isdigit() and int(checkpoint) in checkpoints.steps():
        step = int(checkpoint)
    else:
        known = ", ".join(map(str, checkpoints.steps())) or "none"
        raise ConfigError(
            f"no checkpoint {checkpoint!r} in {run_dir}; there are: latest, best, {known}"
        )
    return config, program, checkpoints.restore(shapes, step)[1]


def play(
    run: Path,
    episodes: int = 128,
    stochastic: bool = False,
    checkpoint: str = "latest",
    seed: int = 1,
    gif: Path | None = None,
) -> int:
    """Play episodes with the agent of a run and print what they return.

    Args:
        run: run directory.
        episodes: how many.
        stochastic: sample actions instead of taking the most likely one.
        checkpoint: latest, best, or the number of an update.
        seed: of the episodes.
        gif: write one episode, drawn by the environment, to this file.

    Returns:
        Exit code 0.
    """
    _check(episodes, seed, gif)
    compilation_cache.use()
    config, program, state = load(run, checkpoint)
    agent = {
        "params": state.learner.params,
        "moments": state.rollout.moments,
        "env": program.env,
        "policy": program.policy,
        "greedy": not stochastic,
    }
    key = jax.random.key(seed)
    result = evaluate(key, **agent, episodes=episodes)
    returns = np.asarray(result.episode_return)
    report.warn_unfinished(np.asarray(result.finished))
    low, high = confidence_interval(returns)
    interval = f"95 % interval [{low:.2f}, {high:.2f}], " if episodes > 1 else ""
    report.say(
        f"{config.env}: return {returns.mean():.2f}, {interval}"
        f"std {returns.std():.2f}, min {returns.min():.2f}, max {returns.max():.2f}, "
        f"{episodes} {'sampled' if stochastic else 'greedy'} episodes, "
        f"mean length {np.mean(result.episode_length):.1f}"
    )
    if gif is not None:
        save_gif(record(key, **agent), gif)
        report.say(f"wrote {gif}")
    return 0


def _check(episodes: int, seed: int, gif: Path | None) -> None:
    """Refuse what would fail only after playing."""
    if episodes < 1:
        raise ConfigError(f"--episodes is {episodes}; it must be >= 1")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"--seed is {seed}; it must be >= 0 and < 2**32")
    if gif is None:
        return
    if gif.suffix.lower() != ".gif":
        raise ConfigError(f"--gif is {gif}; its name must end in .gif")
    if not gif.absolute().parent.is_dir():
        raise ConfigError(f"--gif is {gif}; there is no directory {gif.absolute().parent}")
