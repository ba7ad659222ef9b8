"""Environments in JAX with one fault each, for tests/test_check_env.py."""

import random

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.envs import spaces

NAMES = ("obs", "state", "reward", "terminated", "truncated", "info")


class Good:
    """An environment without faults: a walk between -1 and 1 that ends near 0, or after 20
    steps."""

    params = ()
    observation_space = spaces.Box(-1.0, 1.0, (2,))
    action_space = spaces.Discrete(3)
    time_limit = 20

    def reset(self, key, params):
        place = jax.random.uniform(key, (2,), minval=-1.0)
        return place, (place, jnp.int32(0))

    def step(self, key, state, action, params):
        place, time = state
        place = jnp.clip(place + (action - 1) * 0.1, -1, 1)
        near, late = jnp.abs(place[0]) < 0.01, time + 1 >= 20
        return place, (place, time + 1), -jnp.abs(place[0]), near, late, {}


def altered(**changes):
    """Good with a step whose results are changed by name; None removes a result."""

    class Altered(Good):
        def step(self, *arguments):
            result = dict(zip(NAMES, super().step(*arguments), strict=True))
            result |= {name: change(result[name]) for name, change in changes.items() if change}
            return tuple(x for name, x in result.items() if changes.get(name, 1) is not None)

    return Altered


Four = altered(state=None, truncated=None)
Five = altered(state=None)
OldGymnax = altered(truncated=None)
NoInfo = altered(info=lambda x: None)
NumPy = altered(obs=lambda x: np.clip(np.asarray(x), -1, 1))
IntReward = altered(reward=lambda x: jnp.int32(1))
VectorReward = altered(reward=lambda x: x[None])
NumberDone = altered(terminated=lambda x: x * 1.0)
Shorter = altered(obs=lambda x: x[:1])
Outside = altered(obs=lambda x: x * 3)
NanReward = altered(reward=lambda x: jnp.where(x < -0.5, jnp.nan, x))
NanObs = altered(obs=lambda x: jnp.where(x < -0.5, jnp.nan, x))
RandomReward = altered(reward=lambda x: x + random.random())
Text = altered(state=lambda x: {"place": x, "name": "x"})


class Decides(Good):
    """A Python `if` depends on a traced value."""

    def step(self, key, state, action, params):
        result = super().step(key, state, action, params)
        if result[3]:
            result = (result[0] * 0, *result[1:])
        return result


class Counts(Good):
    """A Python `range` depends on a traced value."""

    def step(self, key, state, action, params):
        for _ in range(action):
            pass
        return super().step(key, state, action, params)


class Remembers(Good):
    """The time is stored in the object."""

    time = 0

    def step(self, *arguments):
        self.time = self.time + 1
        obs, state, reward, terminated, _, info = super().step(*arguments)
        return obs, state, reward, terminated, jnp.bool_(self.time >= 20), info


class Appends(Good):
    """A list in the object grows."""

    def __init__(self):
        self.seen = []

    def step(self, *arguments):
        self.seen.append(arguments)
        return super().step(*arguments)


class NumPyRandom(Good):
    """Random numbers do not come from the key."""

    def reset(self, key, params):
        place = jnp.asarray(np.random.uniform(-1, 1, 2), jnp.float32)  # noqa: NPY002
        return place, (place, jnp.int32(0))


class Order(Good):
    """step returns the state last."""

    def step(self, *arguments):
        obs, state, *rest = super().step(*arguments)
        return obs, *rest, state


class ObsOnly(Good):
    """reset returns no state."""

    def reset(self, key, params):
        return super().reset(key, params)[0]


class StateFirst(Good):
    """reset returns (state, obs)."""

    def reset(self, key, params):
        return super().reset(key, params)[::-1]


class TextParams(Good):
    """params contains values that are not numbers."""

    params = ("x",)


class Raises(Good):
    """step raises an exception."""

    def step(self, key, state, action, params):
        return state["place"]


class Both(Good):
    """Both terminated and truncated are set."""

    def step(self, *arguments):
        obs, state, reward, terminated, truncated, info = super().step(*arguments)
        return obs, state, reward, terminated | truncated, terminated | truncated, info


class Late(Good):
    """The episode continues after its time limit."""

    time_limit = 10


class Early(Good):
    """The episode is truncated before its time limit."""

    time_limit = 50


class Divides(Good):
    """One corner of the action space leads to a division by 0."""

    action_space = spaces.Box(-1, 1, (2,))

    def step(self, key, state, action, params):
        obs, state, reward, *rest = super().step(key, state, action[0], params)
        return obs, state, reward / (1 - action[1]), *rest


class Many(Good):
    """Five faults together."""

    time_limit = 50

    def step(self, *arguments):
        obs, state, _, terminated, truncated, _ = super().step(*arguments)
        return obs * 5, state, jnp.int32(1), terminated, truncated.astype(jnp.float32), None


class Limit(Good):
    """time_limit is not a number, and action_space is not a space."""

    time_limit = "20"
    action_space = "two buttons"


class Lacks:
    """None of the required attributes exists."""
