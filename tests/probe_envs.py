"""Environments whose values and best policies are known, and one that shows how it was handled."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.envs import spaces


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """Common attributes; each probe says what a step does.

    Attributes:
        observation_space, action_space, time_limit, params: as in ppo_jax.envs.Env.
    """

    observation_space: spaces.Space = spaces.Box(-1.0, 1.0, (1,))
    action_space: spaces.Space = spaces.Discrete(2)
    time_limit: int | None = None
    shortest_episode: int = 1
    params: tuple = ()


class ConstantReward(Probe):
    """One step, reward 1. V = 1."""

    def reset(self, key, params):
        return jnp.zeros(1), jnp.zeros(())

    def step(self, key, state, action, params):
        return jnp.zeros(1), state, jnp.float32(1), jnp.array(True), jnp.array(False), {}


class RewardIsObservation(Probe):
    """One step, observation ±1, reward the observation. V(±1) = ±1."""

    def reset(self, key, params):
        sign = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
        return sign[None], sign

    def step(self, key, state, action, params):
        return state[None], state, state, jnp.array(True), jnp.array(False), {}


class DelayedReward(Probe):
    """Two steps, reward 1 at the end. V(s_0) = γ, V(s_1) = 1; s_0 is seen as −1, s_1 as 1."""

    def reset(self, key, params):
        return jnp.array([-1.0]), jnp.int32(0)

    def step(self, key, state, action, params):
        last = state == 1
        return jnp.array([1.0]), state + 1, jnp.float32(last), last, jnp.array(False), {}


class RewardIsAction(Probe):
    """One step, reward 1 for action 1 and −1 for action 0. π(1) -> 1, V -> 1."""

    def reset(self, key, params):
        return jnp.zeros(1), jnp.zeros(())

    def step(self, key, state, action, params):
        reward = jnp.where(action == 1, 1.0, -1.0)
        return jnp.zeros(1), state, reward, jnp.array(True), jnp.array(False), {}


class MatchObservation(Probe):
    """One step, observation ±1, reward 1 if the action says its sign, else −1. V -> 1."""

    def reset(self, key, params):
        sign = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
        return sign[None], sign

    def step(self, key, state, action, params):
        reward = jnp.where((action == 1) == (state > 0), 1.0, -1.0)
        return state[None], state, reward, jnp.array(True), jnp.array(False), {}


class TimeLimit(Probe):
    """Reward 1 for ever, cut every 5 steps. V = 1 / (1 − γ), though no return exceeds 5."""

    def __init__(self):
        super().__init__(time_limit=5, shortest_episode=5)

    def reset(self, key, params):
        return jnp.zeros(1), jnp.int32(0)

    def step(self, key, state, action, params):
        time = state + 1
        return jnp.zeros(1), time, jnp.float32(1), jnp.array(False), time >= 5, {}


class Target(Probe):
    """One step, continuous action, reward −(a − 0.5)². The mean -> 0.5."""

    def __init__(self):
        super().__init__(action_space=spaces.Box(-1.0, 1.0, (1,)))

    def reset(self, key, params):
        return jnp.zeros(1), jnp.zeros(())

    def step(self, key, state, action, params):
        reward = -jnp.square(action[0] - 0.5)
        return jnp.zeros(1), state, reward, jnp.array(True), jnp.array(False), {}


class Counter(Probe):
    """Shows its own history: obs = (episode's random id, steps in it).

    An episode with id i ends after 3 + i % 4 steps, by termination if i is even, else by
    truncation; its reward is its id plus the step. Nothing depends on the action.
    """

    def __init__(self, time_limit: int | None = 3):
        super().__init__(
            observation_space=spaces.Box(-np.inf, np.inf, (2,)),
            time_limit=time_limit,
            shortest_episode=3,
        )

    def reset(self, key, params):
        state = (jax.random.randint(key, (), 0, 1_000_000), jnp.int32(0))
        return self._observe(state), state

    def step(self, key, state, action, params):
        name, time = state[0], state[1] + 1
        ends = time >= 3 + name % 4
        state = (name, time)
        reward = (name % 1000 + time).astype(jnp.float32)
        return (
            self._observe(state),
            state,
            reward,
            ends & (name % 2 == 0),
            ends & (name % 2 == 1),
            {},
        )

    def _observe(self, state):
        return jnp.stack([state[0], state[1]]).astype(jnp.float32)
