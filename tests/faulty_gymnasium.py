"""Gymnasium environments with one fault each, for tests/test_check_env.py."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces

NAMES = ("obs", "reward", "terminated", "truncated", "info")


class Good(gym.Env):
    """An environment without faults: random observations, ten steps."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.observe(), {}

    def step(self, action):
        self.time += 1
        return self.observe(), 1.0, self.time >= 10, False, {}

    def observe(self):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)


def altered(**changes):
    """Good with a step whose results are changed by name."""

    class Altered(Good):
        def step(self, action):
            result = dict(zip(NAMES, super().step(action), strict=True))
            result |= {name: change(result[name]) for name, change in changes.items()}
            return tuple(result.values())

    return Altered


NanReward = altered(reward=lambda x: float("nan"))
InfiniteReward = altered(reward=lambda x: np.inf)
ArrayReward = altered(reward=lambda x: np.array([x]))
TextReward = altered(reward=lambda x: "one")
NumberDone = altered(terminated=int)
NoInfo = altered(info=lambda x: None)
Doubles = altered(obs=lambda x: x.astype(np.float64))
ListObs = altered(obs=lambda x: x.tolist())
Shorter = altered(obs=lambda x: x[:1])
Outside = altered(obs=lambda x: x * 3)
NanObs = altered(obs=lambda x: x * np.float32(np.nan))


class Both(Good):
    """Both terminated and truncated are set."""

    def step(self, action):
        obs, reward, terminated, _, info = super().step(action)
        return obs, reward, terminated, terminated, info


class ObsOnly(Good):
    """reset returns no info."""

    def reset(self, **options):
        return super().reset(**options)[0]


class Old(Good):
    """step has the interface of Gym before 0.26."""

    def step(self, action):
        obs, reward, terminated, _, info = super().step(action)
        return obs, reward, terminated, info


class Six(Good):
    """step has the interface of environments in JAX."""

    def step(self, action):
        obs, *rest = super().step(action)
        return obs, {}, *rest


class Order(Good):
    """Reward and terminated are exchanged."""

    def step(self, action):
        obs, reward, terminated, *rest = super().step(action)
        return obs, terminated, reward, *rest


class NoSeed(Good):
    """Random numbers come from NumPy's global generator."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.observe(), {}

    def observe(self):
        return np.random.uniform(-1, 1, 2).astype(np.float32)  # noqa: NPY002


class OwnGenerator(Good):
    """reset does not seed self.np_random."""

    def reset(self, *, seed=None, options=None):
        self.time, self.generator = 0, np.random.default_rng(seed)
        return self.observe(), {}

    def observe(self):
        return self.generator.uniform(-1, 1, 2).astype(np.float32)


class ChangesAction(Good):
    """step changes the action array in place."""

    action_space = spaces.Box(-1, 1, (2,))

    def step(self, action):
        action *= 2
        return super().step(action)


class Refuses(Good):
    """The last action is not accepted."""

    def step(self, action):
        assert action != 2, "no such action"
        return super().step(action)


class Reuses(Good):
    """Every observation is written into the same array."""

    array = np.zeros(2, np.float32)

    def observe(self):
        self.array[:] = super().observe()
        return self.array


class NoSpace(Good):
    """There is no action space."""

    action_space = None


class Words(Good):
    """Observations have no shape."""

    observation_space = spaces.Text(5)


class OneOfTwo(Good):
    """A dictionary observation lacks an entry."""

    observation_space = spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Discrete(2))

    def observe(self):
        return {"a": super().observe()}


class TooLarge(OneOfTwo):
    """An entry is outside its space."""

    def observe(self):
        return {**super().observe(), "b": 5}


class CannotClose(Good):
    """close raises an exception."""

    def close(self):
        raise RuntimeError("still open")


class Plain:
    """Not a Gymnasium environment: step returns four results, and reset no info."""

    observation_space = Good.observation_space
    action_space = Good.action_space

    def reset(self):
        return np.zeros(2, np.float32)

    def step(self, action):
        return np.full(2, 7.0), np.nan, True, {}


class OffCentre(Good):
    """The action space does not start at 0."""

    action_space = spaces.Box(10, 20, (1,))


class Masked(Good):
    """Actions that the mask forbids raise an exception."""

    action_space = spaces.Discrete(3, start=-1)

    def reset(self, *, seed=None, options=None):
        obs, _ = super().reset(seed=seed)
        return obs, {"action_mask": self.mask()}

    def step(self, action):
        assert self.mask()[action + 1], "illegal"
        obs, *rest, _ = super().step(action)
        return obs, *rest, {"action_mask": self.mask()}

    def mask(self):
        return np.arange(3) != self.time % 3
