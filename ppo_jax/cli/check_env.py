"""`ppo-jax check-env`: what is wrong with an environment, and what to do about it."""

import sys
from typing import Any, NoReturn

from ppo_jax.cli.errors import exit_with
from ppo_jax.cli.flags import positional
from ppo_jax.config import ConfigError
from ppo_jax.config.train import parse_env_args
from ppo_jax.runs import terminal

PROGRAM = "ppo-jax check-env"
# A call of the environment that takes longer hangs.
SECONDS = 60.0


def main(arguments: list[str] | None = None) -> NoReturn:
    """The command."""
    words = sys.argv[1:] if arguments is None else arguments
    exit_with(lambda: positional(check, words, PROGRAM))


def check(env: str, env_args: tuple[str, ...] = (), steps: int = 1000, seed: int = 0) -> int:
    """Look for everything that is wrong with an environment: a sentence and a cure for each fault.

    Args:
        env: environment, as ID or SUITE:ID, or one of your own as MODULE:NAME.
        env_args: its arguments, each as NAME=VALUE.
        steps: number of steps with random actions.
        seed: of actions and resets.

    Returns:
        Exit code 0 if nothing is wrong with it, 1 if something is.
    """
    from ppo_jax.envs.check import find_problems
    from ppo_jax.envs.supervision import limited

    if steps < 1:
        raise ConfigError(f"--steps is {steps}; it must be >= 1")
    if not 0 <= seed < 2**31:
        raise ConfigError(f"--seed is {seed}; it must be >= 0 and < 2**31")
    kwargs: dict[str, Any] = parse_env_args(env_args)
    with limited(SECONDS):
        report = find_problems(env, steps=steps, seed=seed, **kwargs)
    terminal.say(f"{report.name}: {report.kind}{report.facts and ', '}{report.facts}")
    for line in report.checked:
        terminal.say(f"  checked: {line}")
    for line in report.notes:
        terminal.say(f"note: {line}")
    for line in report.problems:
        terminal.say(f"problem: {line}")
    count = len(report.problems)
    terminal.say("no problems" if not count else f"{count} problem{'s' if count > 1 else ''}")
    return 1 if count else 0
