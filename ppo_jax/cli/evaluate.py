"""`ppo-jax evaluate`: episodes with the agent of a run, and a recording of one."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ppo_jax.cli.errors import Work, exit_prepared
from ppo_jax.cli.flags import NAMED_AGAIN, NamedAgain, positional
from ppo_jax.config import ConfigError
from ppo_jax.runs import terminal

if TYPE_CHECKING:
    from ppo_jax.evaluate import Returns

PROGRAM = "ppo-jax evaluate"


def main(arguments: list[str] | None = None) -> NoReturn:
    """`ppo-jax evaluate`, the same as `python -m ppo_jax.evaluate`."""
    words = sys.argv[1:] if arguments is None else arguments
    exit_prepared(lambda: positional(prepared, words, PROGRAM))


def prepared(
    run: Path,
    episodes: int = 128,
    *,
    stochastic: bool = False,
    checkpoint: str = "latest",
    seed: int = 1,
    gif: Path | None = None,
    code: NamedAgain = NAMED_AGAIN,
) -> Work:
    """Evaluate the agent of a run, and record an episode.

    Args:
        run: folder of the run, .safetensors file, or agent of the zoo, such as zoo:cartpole.
        episodes: number of episodes.
        stochastic: sample actions instead of taking the most likely one.
        checkpoint: checkpoint to restore: latest, best, or the number of an update.
        seed: seed of the episodes.
        gif: file name of an animation of one episode, which is drawn by the environment.
        code: code of the run, named again.

    Returns:
        The evaluation, which returns exit code 0.
    """
    _check(episodes, seed, gif)
    return lambda: _evaluate(
        run,
        episodes,
        checkpoint,
        stochastic=stochastic,
        seed=seed,
        gif=gif,
        named=dataclasses.asdict(code),
    )


def _evaluate(
    run: Path,
    episodes: int,
    checkpoint: str,
    *,
    stochastic: bool,
    seed: int,
    gif: Path | None,
    named: dict[str, Any],
) -> int:
    """Run the episodes, print their returns, and write the animation."""
    import jax
    import numpy as np

    from ppo_jax import evaluate as evaluation
    from ppo_jax.agent import read_player
    from ppo_jax.envs import makes_vectors
    from ppo_jax.experiment import watched_alone
    from ppo_jax.runs import cache
    from ppo_jax.runs.trust import Given

    cache.use()
    agent = read_player(run, checkpoint, Given(**named))._asdict() | {"greedy": not stochastic}
    config, env = agent.pop("config"), agent["env"]
    if gif is not None and makes_vectors(env):
        env.picture()  # refused before any episode is run
    key = jax.random.key(seed)
    with watched_alone(env):
        result = evaluation.evaluate(key, **agent, episodes=episodes)
    evaluation.check_acted(result, env)
    evaluation.warn_unfinished(np.asarray(result.finished))
    evaluation.warn_not_finite(np.asarray(result.episode_return))
    how = "sampled" if stochastic else "greedy"
    terminal.say(f"{config.env}: {_described(result, how, evaluation.agents_of(env))}")
    if gif is None:
        return 0
    recording = evaluation.record(key, **agent)
    evaluation.save_gif(recording, gif)
    terminal.say(f"wrote {gif}: one {how} episode, {gif.stat().st_size:,} bytes")
    return 0


def _described(result: "Returns", how: str, agents: int) -> str:
    """The numbers of an evaluation on one line."""
    import numpy as np

    from ppo_jax.evaluate import summary_of

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
    """Refuse values that would make the command fail only after the episodes."""
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
