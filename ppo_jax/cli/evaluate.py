"""`python -m ppo_jax.evaluate`."""

import sys
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from ppo_jax.cli.errors import exit_with
from ppo_jax.cli.flags import positional
from ppo_jax.config import ConfigError
from ppo_jax.envs import makes_vectors
from ppo_jax.evaluate import (
    Returns,
    agents_of,
    check_acted,
    evaluate,
    record,
    save_gif,
    summary_of,
    warn_not_finite,
    warn_unfinished,
)
from ppo_jax.experiment import watched_alone
from ppo_jax.runs import cache, terminal
from ppo_jax.runs.restore import load

PROGRAM = "python -m ppo_jax.evaluate"


def main(arguments: list[str] | None = None) -> NoReturn:
    """The command."""
    words = sys.argv[1:] if arguments is None else arguments
    exit_with(lambda: positional(play, words, PROGRAM))


def play(
    run: Path,
    episodes: int = 128,
    *,
    stochastic: bool = False,
    checkpoint: str = "latest",
    seed: int = 1,
    gif: Path | None = None,
    env: str | None = None,
    policy: str | None = None,
    algorithm: str | None = None,
    trust: bool = False,
) -> int:
    """Play episodes with the agent of a run and print what they return.

    Args:
        run: run directory.
        episodes: how many.
        stochastic: sample actions instead of taking the most likely one.
        checkpoint: latest, best, or the number of an update.
        seed: of the episodes.
        gif: write one episode, drawn by the environment, to this file.
        env: environment of the run, named again as MODULE:NAME: a run of somebody else may not
            make this process import it.
        policy: network of the run, named again.
        algorithm: algorithm of the run, named again.
        trust: let the run name any code to import.

    Returns:
        Exit code 0.
    """
    _check(episodes, seed, gif)
    cache.use()
    named: dict[str, Any] = {"env": env, "policy": policy, "algorithm": algorithm}
    config, program, state = load(run, checkpoint, trust=trust, **named)
    agent = {
        "params": state.learner.params,
        "moments": state.rollout.moments,
        "env": program.env,
        "policy": program.policy,
        "greedy": not stochastic,
    }
    if gif is not None and makes_vectors(program.env):
        program.env.picture()  # refused before anything is played
    key = jax.random.key(seed)
    with watched_alone(program.env):
        result = evaluate(key, **agent, episodes=episodes)
    check_acted(result, program.env)
    warn_unfinished(np.asarray(result.finished))
    warn_not_finite(np.asarray(result.episode_return))
    how = "sampled" if stochastic else "greedy"
    terminal.say(f"{config.env}: {_described(result, how, agents_of(program.env))}")
    if gif is not None:
        save_gif(record(key, **agent), gif)
        terminal.say(f"wrote {gif}")
    return 0


def _described(result: Returns, how: str, agents: int) -> str:
    """The numbers of an evaluation on one line."""
    returns = np.asarray(result.episode_return, np.float64)
    found = summary_of(returns, result.finished, agents)
    low, high, cut = (
        found[name]
        for name in ("eval_return_ci95_low", "eval_return_ci95_high", "eval_episodes_cut")
    )
    games = f" over {-(-len(returns) // agents)} games" if agents > 1 else ""
    interval = "" if low is None else f"95 % interval [{low:.2f}, {high:.2f}]{games}, "
    ended = f", {cut} of them cut before their end" if cut else ""
    return (
        f"return {found['eval_return_mean']:.2f}, {interval}std {found['eval_return_std']:.2f}, "
        f"min {returns.min():.2f}, max {returns.max():.2f}, {len(returns)} {how} "
        f"episode{'s' * (len(returns) > 1)}{ended}, "
        f"mean length {np.mean(result.episode_length):.1f}"
    )


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
