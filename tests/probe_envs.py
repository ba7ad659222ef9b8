"""Environments with known values and optimal policies, and one that exposes how it was handled."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.envs import spaces


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """Common attributes of the probes; each probe defines one step.

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
    """Two steps, reward 1 at the end. V(s_0) = γ, V(s_1) = 1; s_0 is observed as −1, s_1 as 1."""

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
    """One step, observation ±1, reward 1 if the action encodes its sign, else −1. V -> 1."""

    def reset(self, key, params):
        sign = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
        return sign[None], sign

    def step(self, key, state, action, params):
        reward = jnp.where((action == 1) == (state > 0), 1.0, -1.0)
        return state[None], state, reward, jnp.array(True), jnp.array(False), {}


class TimeLimit(Probe):
    """Reward 1 in every step, truncated every 5 steps. V = 1 / (1 − γ), though no return exceeds
    5."""

    def __init__(self):
        super().__init__(time_limit=5, shortest_episode=5)

    def reset(self, key, params):
        return jnp.zeros(1), jnp.int32(0)

    def step(self, key, state, action, params):
        time = state + 1
        return jnp.zeros(1), time, jnp.float32(1), jnp.array(False), time >= 5, {}


# They have a common form: one number is observed, there are two actions, and at most five steps.
ALIKE = (
    ConstantReward(),
    RewardIsObservation(),
    DelayedReward(),
    RewardIsAction(),
    MatchObservation(),
    TimeLimit(),
)


class OneOfAlike(Probe):
    """A probe selected by the parameter, so that one compiled program serves all probes."""

    def __init__(self, place):
        super().__init__(time_limit=5, params=place)

    def reset(self, key, params):
        def branch(probe):
            def reset(key):
                obs, state = probe.reset(key, ())
                return obs, state.astype(jnp.float32)

            return reset

        return jax.lax.switch(params, [branch(probe) for probe in ALIKE], key)

    def step(self, key, state, action, params):
        def branch(probe):
            def step(*args):
                obs, state, *result = probe.step(*args, ())
                return obs, state.astype(jnp.float32), *result

            return step

        return jax.lax.switch(params, [branch(probe) for probe in ALIKE], key, state, action)


class Target(Probe):
    """One step, continuous action, reward −(a − 0.5)². The mean -> 0.5."""

    def __init__(self):
        super().__init__(action_space=spaces.Box(-1.0, 1.0, (1,)))

    def reset(self, key, params):
        return jnp.zeros(1), jnp.zeros(())

    def step(self, key, state, action, params):
        reward = -jnp.square(action[0] - 0.5)
        return jnp.zeros(1), state, reward, jnp.array(True), jnp.array(False), {}


class Dice(Probe):
    """Every reset and every step draws a new random observation; all observations differ."""

    def reset(self, key, params):
        return jax.random.uniform(key, (1,)), jnp.int32(0)

    def step(self, key, state, action, params):
        ends = (state + 1) % 5 == 0
        return jax.random.uniform(key, (1,)), state + 1, jnp.float32(0), ends, jnp.array(False), {}


class Counter(Probe):
    """Observes its own history: obs = (random id of the episode, number of steps), scaled down.

    An episode with id i ends after 3 + i % 4 steps, by termination if i is even, else by
    truncation; its reward is its id plus the step. Nothing depends on the action.

    The observations are small, so that no tanh is saturated: a network has different values in
    different states, and a value that was computed in a wrong state is detected. Ids remain
    distinct as float32.
    """

    IDS, STEPS = 1_000_000, 4

    def __init__(self, time_limit: int | None = 3):
        super().__init__(
            observation_space=spaces.Box(-np.inf, np.inf, (2,)),
            time_limit=time_limit,
            shortest_episode=3,
        )

    def reset(self, key, params):
        state = (jax.random.randint(key, (), 0, self.IDS), jnp.int32(0))
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

    def name_of(self, obs):
        """The id in an observation."""
        return np.rint((np.asarray(obs)[..., 0] + 1) * self.IDS / 2).astype(int)

    def successor(self, obs):
        """The observation that follows `obs`, even if the episode ends there."""
        return obs + jnp.array([0.0, 1.0 / self.STEPS])

    def _observe(self, state):
        return jnp.stack([2.0 * state[0] / self.IDS - 1.0, state[1] / self.STEPS])


# Lower than every return of legal actions, so that an illegal action is visible in the minimum.
ILLEGAL = -100.0


class OneStep(Probe):
    """A task of one step; `draw(key)` -> (obs, state), `judge(state, action)` -> reward."""

    def reset(self, key, params):
        return self.draw(key)

    def step(self, key, state, action, params):
        obs, _ = jax.tree.map(jnp.zeros_like, self.draw(key))  # no legal action after the end
        reward = self.judge(state, action).astype(jnp.float32)
        return obs, state, reward, jnp.array(True), jnp.array(False), {}


class MatchBits(OneStep):
    """Three bits are observed; the reward is the fraction that the action repeats. Maximum: 1."""

    def __init__(self):
        super().__init__(spaces.MultiBinary(3), spaces.MultiBinary(3))

    def draw(self, key):
        bits = jax.random.bernoulli(key, shape=(3,))
        return bits, bits

    def judge(self, state, action):
        return jnp.mean(action == state)


class Hand(NamedTuple):
    """Observation of BestCard."""

    value: Any
    action_mask: Any


class BestCard(OneStep):
    """Four cards, some of them illegal; reward 1 for the best legal card, else 0. Maximum: 1."""

    def __init__(self):
        shown = Hand(spaces.Box(-1.0, 1.0, (4,)), spaces.Box(0, 1, (4,), bool))
        super().__init__(shown, spaces.Discrete(4))

    def draw(self, key):
        order_key, legal_key, one_key = jax.random.split(key, 3)
        value = jax.random.permutation(order_key, jnp.linspace(-1.0, 1.0, 4))
        legal = jax.random.bernoulli(legal_key, shape=(4,))
        obs = Hand(value, legal.at[jax.random.randint(one_key, (), 0, 4)].set(True))
        return obs, obs

    def judge(self, state, action):
        best = jnp.argmax(jnp.where(state.action_mask, state.value, -jnp.inf))
        return jnp.where(state.action_mask[action], action == best, ILLEGAL)


class Choices(OneStep):
    """Two choices with one mask each; the reward is the fraction that is correct. Maximum: 1."""

    def __init__(self):
        actions = spaces.MultiDiscrete((3, 2))
        mask = spaces.Box(0, 1, (2, 3), bool)
        super().__init__({"wanted": actions, "action_mask": mask}, actions)

    def draw(self, key):
        wanted_key, legal_key = jax.random.split(key)
        wanted = jax.random.randint(wanted_key, (2,), 0, jnp.array([3, 2]))
        legal = jax.random.bernoulli(legal_key, 0.3, (2, 3))
        legal = legal.at[jnp.arange(2), wanted].set(True).at[1, 2].set(True)  # ignored padding
        obs = {"wanted": wanted, "action_mask": legal}
        return obs, obs

    def judge(self, state, action):
        legal = state["action_mask"][jnp.arange(2), action] & (action < jnp.array([3, 2]))
        return jnp.where(legal.all(), jnp.mean(action == state["wanted"]), ILLEGAL)


class Cells(OneStep):
    """A cell of a 3 x 2 board in the displayed row; one of its two cells is free. Maximum: 1.

    Which cells are free depends on both coordinates together.
    """

    def __init__(self):
        shown = {"row": spaces.Discrete(3), "action_mask": spaces.Box(0, 1, (3, 2), bool)}
        super().__init__(shown, spaces.MultiDiscrete((3, 2), joint=True))

    def draw(self, key):
        row_key, free_key = jax.random.split(key)
        first = jax.random.bernoulli(free_key, shape=(3,))
        row = jax.random.randint(row_key, (), 0, 3)
        obs = {"row": row, "action_mask": jnp.stack([first, ~first], axis=-1)}
        return obs, obs

    def judge(self, state, action):
        free = state["action_mask"][action[0], action[1]]
        return jnp.where(free, action[0] == state["row"], ILLEGAL)


class Corridor(Probe):
    """Five cells in a row, reward −1 per step, goal at the right. At least four steps: maximum
    −4."""

    def __init__(self):
        super().__init__(spaces.Discrete(5), time_limit=12, shortest_episode=4)

    def reset(self, key, params):
        return jnp.int32(0), (jnp.int32(0), jnp.int32(0))

    def step(self, key, state, action, params):
        cell, time = jnp.clip(state[0] + 2 * action - 1, 0, 4), state[1] + 1
        return cell, (cell, time), jnp.float32(-1), cell == 4, time >= 12, {}


class Signals(Probe):
    """Four steps until truncation; reward 1 if the action is the sum of two lights. Maximum: 4."""

    def __init__(self):
        shown = {
            "left": spaces.Box(-1.0, 1.0, (1,)),
            "others": (spaces.Discrete(2), spaces.Box(0, 9, (), np.int32)),
        }
        super().__init__(shown, spaces.Discrete(3), time_limit=4, shortest_episode=4)

    def reset(self, key, params):
        return self._observe(jax.random.bits(key, (2,)) % 2, 0)

    def step(self, key, state, action, params):
        reward = jnp.float32(action == jnp.sum(state[0]))
        obs, state = self._observe(jax.random.bits(key, (2,)) % 2, state[1] + 1)
        return obs, state, reward, jnp.array(False), state[1] >= 4, {}

    def _observe(self, lights, time):
        lights, time = lights.astype(jnp.int32), jnp.asarray(time, jnp.int32)
        left = 2.0 * lights[:1] - 1.0
        return {"left": left, "others": (lights[1], time)}, (lights, time)


class ImageAndCue(OneStep):
    """A pixel at the left or right and a number: reward 1 for the sum of side and number. Maximum:
    1."""

    def __init__(self):
        shown = {"cue": spaces.Discrete(2), "image": spaces.Box(0, 255, (4, 4, 1), np.uint8)}
        super().__init__(shown, spaces.Discrete(3))

    def draw(self, key):
        side, cue, row = jax.random.bits(key, (3,)) % jnp.array([2, 2, 4], jnp.uint32)
        image = jnp.zeros((4, 4, 1), jnp.uint8).at[row, 3 * side].set(255)
        return {"cue": cue.astype(jnp.int32), "image": image}, side + cue

    def judge(self, state, action):
        return action == state
