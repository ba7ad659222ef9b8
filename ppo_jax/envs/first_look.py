"""A first check of a Gymnasium environment, before anything is compiled.

The environment is reset and stepped a few times. Messages of Gymnasium's own checker are passed on
as warnings. Results that training cannot use are errors.
"""

import contextlib
import copy
import math
import re
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from ppo_jax.envs import worker
from ppo_jax.envs.host_rows import Rows
from ppo_jax.envs.host_spaces import Leaf, observation_leaves
from ppo_jax.envs.protocol import InvalidEnvironment

STEPS = 5
CURES = {
    "step": "; return terminated, True at the end of the task, and truncated, True at the time "
    "limit, in place of done",
    "reset": "; return the observation and a dictionary, which may be empty",
}


def look(env: Any, name: str) -> None:
    """Take a few steps with sampled actions.

    Args:
        env: Gymnasium environment, which is used for this check only.
        name: name for messages.

    Raises:
        InvalidEnvironment: if it raised an error or returned a wrong number of values, observations
            outside its space, or non-finite rewards. The message has a sentence for each problem.
    """
    tree = observation_leaves(env.observation_space, name)
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Leaf))
    rows = Rows(env.observation_space, leaves, env.action_space)
    with named_warnings(name):
        problems = _problems(env, rows)
    if problems:
        raise InvalidEnvironment(f"environment {name}: {'; '.join(dict.fromkeys(problems))}")


@contextlib.contextmanager
def named_warnings(name: str) -> Iterator[None]:
    """Collect the warnings of a block and repeat each once, with the name of the environment."""
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        for text in dict.fromkeys(plain(str(w.message)) for w in caught if not _private(w)):
            warnings.warn(text if text.startswith(name) else f"{name}: {text}", stacklevel=3)


def _problems(env: Any, rows: Rows) -> list[str]:
    """The problems of the first steps, one sentence for each."""
    found: list[str] = []
    doing = "reset"
    try:
        one = worker.Copy(lambda: _checked(env))
        obs, info = one.reset(0)
        found += _of_observation(rows, obs, info, doing="reset")
        actions = copy.deepcopy(env.action_space)
        actions.seed(0)
        doing = "step"
        for _ in range(STEPS):
            action = _sampled(actions, obs)
            if action is None:
                break
            obs, reward, _, _, info, following = one.step(action)
            ends = following is not None
            found += _of_observation(rows, obs, info, doing="step", final=ends)
            if not math.isfinite(reward):
                found.append(f"step returned the reward {reward}; rewards must be finite numbers")
            if following is not None:
                obs, info = following
    except (Exception, SystemExit) as error:
        found.append(_of_error(error, env, doing))
    return found


def _checked(env: Any) -> Any:
    """The environment inside Gymnasium's checker, unless it already is."""
    from gymnasium.wrappers import PassiveEnvChecker

    inner = env
    while inner is not None:
        if isinstance(inner, PassiveEnvChecker):
            return env
        inner = getattr(inner, "env", None)
    return PassiveEnvChecker(env)


def _of_error(error: BaseException, env: Any, doing: str) -> str:
    """A sentence for an exception in the first steps."""
    if isinstance(error, TypeError) and "expected obs" in str(error):
        return f"{error}{CURES[doing] if 'value' in str(error) else ''}"
    if isinstance(error, ValueError) and "values to unpack" in str(error):
        # A wrapper unpacked a different number of values than it received.
        try:
            action = copy.deepcopy(env.action_space).sample()
            result = env.unwrapped.step(action) if doing == "step" else env.unwrapped.reset()
        except Exception:
            result = ()
        expected = worker.EXPECTED if doing == "step" else "obs, info"
        if not isinstance(result, tuple) or len(result) not in (0, 2 if doing == "reset" else 5):
            message = f"{doing} returned {worker.described(result)}, expected {expected}"
            return message + CURES[doing]
    if isinstance(error, AssertionError) and str(error):
        return plain(str(error))
    return f"its {'first reset' if doing == 'reset' else 'step'} {worker.raised(error)}"


def _of_observation(
    rows: Rows, obs: Any, info: Any, *, doing: str, final: bool = False
) -> list[str]:
    """Problems of an observation that a network cannot process."""
    if not isinstance(info, dict):
        return [f"{doing} returned {worker.short(info)} as info, expected a dictionary"]
    arrays = rows.empty(1)
    try:
        rows.write(arrays, 0, obs, info, final=final)
    except ValueError as error:
        return [f"{doing} {error}"]
    return []


def _sampled(space: Any, obs: Any) -> Any:
    """A legal action, if the observation has a mask that can be read; else None."""
    mask = np.asarray(obs.get("action_mask")) if isinstance(obs, dict) else np.asarray(None)
    action = space.sample()
    if mask.dtype == object:
        return action
    rows = mask.reshape(-1, mask.shape[-1]) if mask.ndim in (1, 2) else mask
    if len(rows) != np.size(action):
        return None
    legal = [np.flatnonzero(row) for row in rows]
    drawn = [i[int(np.sum(action)) % len(i)] if len(i) else 0 for i in legal]
    start = np.reshape(getattr(space, "start", 0), np.shape(action) or ())
    return (np.reshape(drawn, np.shape(action)) + start).astype(space.dtype)[()]


def plain(text: str) -> str:
    """The text in one line, without Gymnasium's colours and its prefix for a warning."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return " ".join(text.split()).removeprefix("WARN: ").removeprefix("ERROR: ")


def _private(warning: warnings.WarningMessage) -> bool:
    """Whether a warning of a library is addressed to the environment's authors."""
    theirs = str(warning.message).startswith(("\x1b", "WARN"))
    return issubclass(warning.category, DeprecationWarning) and not theirs
