"""`ppo-jax check-env`: mistakes in an environment, each with the way to correct it."""

import sys
from typing import Any, NoReturn

from ppo_jax import suites
from ppo_jax.cli.errors import Work, exit_prepared
from ppo_jax.cli.flags import positional
from ppo_jax.config import ConfigError
from ppo_jax.config.train import parse_env_args
from ppo_jax.runs import terminal

PROGRAM = "ppo-jax check-env"
# The longest that a call of the environment may take, in seconds.
SECONDS = 60.0


def main(arguments: list[str] | None = None) -> NoReturn:
    """`ppo-jax check-env`."""
    words = sys.argv[1:] if arguments is None else arguments
    exit_prepared(lambda: positional(prepared, words, PROGRAM))


def prepared(env: str, env_args: tuple[str, ...] = (), steps: int = 1000, seed: int = 0) -> Work:
    """Test an environment for mistakes, and print for each mistake how to correct it.

    Args:
        env: environment: an ID, SUITE:ID, or an environment of your own as MODULE:NAME.
        env_args: arguments of the environment, each as NAME=VALUE.
        steps: number of steps with random actions.
        seed: seed of the actions and the resets.

    Returns:
        The test, which returns exit code 0 if no mistake is found and 1 otherwise.
    """
    if steps < 1:
        raise ConfigError(f"--steps is {steps}; it must be >= 1")
    if not 0 <= seed < 2**31:
        raise ConfigError(f"--seed is {seed}; it must be >= 0 and < 2**31")
    kwargs = parse_env_args(env_args)
    suites.check(env)
    return lambda: _check(env, kwargs, steps, seed)


def _check(env: str, kwargs: dict[str, Any], steps: int, seed: int) -> int:
    from ppo_jax.envs.check import find_problems
    from ppo_jax.envs.supervision import limited

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
