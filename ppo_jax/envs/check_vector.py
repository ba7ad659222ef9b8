"""The checks of `check_env` for an environment that only exists as a vector environment."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.config.references import raised
from ppo_jax.envs.check import Report, describe
from ppo_jax.envs.check_values import outside, sampler
from ppo_jax.envs.protocol import InvalidEnvironment, static_problems

# The number of steps is limited, because single steps are slow.
MOST = 200


def check(env: Any, name: str, *, steps: int, seed: int) -> Report:
    """Check the vector environments of a VectorMaker with random actions.

    Args:
        env: environment, a VectorMaker.
        name: name for the report.
        steps: number of steps, of which at most 200 are taken.
        seed: seed of actions and resets.
    """
    report = Report(name, "vector environment")
    for problem in static_problems(env):
        report.problem(problem)
    if report.problems:
        return report
    report.facts = describe(env.observation_space, env.action_space, env.time_limit)
    count = env.side_by_side(2)
    try:
        vector = env.vector(count)
        key, reset_key = jax.random.split(jax.random.key(seed))
        obs, state = vector.reset(reset_key)
        _look(report, env, obs)
        draw = jax.vmap(sampler(env.observation_space, env.action_space))
        for i in range(min(steps, MOST)):
            action_key, step_key = jax.random.split(jax.random.fold_in(key, i))
            action = draw(jax.random.split(action_key, count), obs)
            obs, state, reward, terminated, truncated, info = vector.step(step_key, state, action)
            _look(report, env, obs)
            _look(report, env, info["final_observation"])
            _look_at_numbers(report, reward, terminated, truncated)
    except InvalidEnvironment as error:
        report.problem(str(error))
    except Exception as error:
        report.problem(f"{name} raised {raised(error)}; correct the error")
    report.checked.append(f"spaces, {min(steps, MOST)} steps of {count} rows")
    return report


def _look(report: Report, env: Any, obs: Any) -> None:
    for path, problem in outside(env.observation_space, obs):
        if not any(f"observation{path} " in p for p in report.problems):
            report.problem(f"{report.name}: an observation{path} {problem}")


def _look_at_numbers(report: Report, reward: Any, terminated: Any, truncated: Any) -> None:
    if not np.isfinite(np.asarray(reward)).all():
        report.problem(
            f"{report.name}: a reward is not finite; look for a division by 0, log or sqrt"
        )
    if terminated.dtype != jnp.bool_ or truncated.dtype != jnp.bool_:
        report.problem(f"{report.name}: terminated and truncated must be bool; convert them")
