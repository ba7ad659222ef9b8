"""`ppo-jax play`: episodes of a trained agent, drawn in the terminal while they are played."""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any, NoReturn

from ppo_jax.cli.errors import Work, exit_prepared
from ppo_jax.cli.flags import NAMED_AGAIN, NamedAgain, positional
from ppo_jax.config import ConfigError
from ppo_jax.runs import terminal

PROGRAM = "ppo-jax play"


def main(arguments: list[str] | None = None) -> NoReturn:
    """`ppo-jax play`."""
    words = sys.argv[1:] if arguments is None else arguments
    exit_prepared(lambda: positional(prepared, words, PROGRAM))


def prepared(
    run: Path,
    episodes: int = 1,
    *,
    frames_per_second: float = 30.0,
    stochastic: bool = False,
    checkpoint: str = "latest",
    seed: int = 1,
    code: NamedAgain = NAMED_AGAIN,
) -> Work:
    """Watch a trained agent in the terminal, which must show 24-bit colours.

    Args:
        run: folder of the run, .safetensors file, or agent of the zoo, such as zoo:cartpole.
        episodes: number of episodes, each of at most 10,000 steps.
        frames_per_second: largest number of images in a second.
        stochastic: sample actions instead of taking the most likely one.
        checkpoint: checkpoint to restore: latest, best, or the number of an update.
        seed: seed of the episodes.
        code: code of the run, named again.

    Returns:
        The episodes, which return exit code 0.
    """
    if episodes < 1:
        raise ConfigError(f"--episodes is {episodes}; it must be >= 1")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"--seed is {seed}; it must be >= 0 and < 2**32")
    if not (math.isfinite(frames_per_second) and frames_per_second > 0):
        raise ConfigError(f"--frames-per-second is {frames_per_second}; it must be > 0 and finite")
    if not terminal.on_terminal(sys.stdout):
        raise ConfigError(
            "play draws in a terminal, but the output goes to a file or a pipe; write an animation "
            f"with `ppo-jax evaluate {run} --gif FILE.gif`"
        )
    how = {"greedy": not stochastic}
    named = dataclasses.asdict(code)
    return lambda: _play(run, checkpoint, (episodes, seed, frames_per_second), how=how, named=named)


def _play(
    run: Path,
    checkpoint: str,
    shown: tuple[int, int, float],
    *,
    how: dict[str, Any],
    named: dict[str, Any],
) -> int:
    import jax

    from ppo_jax import evaluate as evaluation
    from ppo_jax.agent import read_player
    from ppo_jax.cli.screen import Screen
    from ppo_jax.experiment import watched_alone
    from ppo_jax.runs import cache
    from ppo_jax.runs.trust import Given

    cache.use()
    episodes, seed, rate = shown
    agent = read_player(run, checkpoint, Given(**named))._asdict() | how
    config, steps = agent.pop("config"), evaluation.DEFAULT_MAX_STEPS
    with watched_alone(agent["env"]):
        for k, key in enumerate(jax.random.split(jax.random.key(seed), episodes)):
            with Screen(rate) as screen:
                for step, frame in enumerate(evaluation.watch(key, **agent, max_steps=steps)):
                    number = f", episode {k + 1} of {episodes}" if episodes > 1 else ""
                    text = f"{config.env}{number}: return {frame.episode_return:.6g}, step {step}"
                    if frame.image is not None:
                        screen.show(frame.image, text)
            ended = "" if frame.done else f" (cut after {steps:,} steps)"
            terminal.say(f"{text}{ended}")
    return 0
