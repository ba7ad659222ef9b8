"""Gymnasium environments with arbitrary spaces, and small ones with offsets in actions or
bounds."""

import copy

import gymnasium
import numpy as np

g = gymnasium.spaces
LENGTH = 4


class Spoken(gymnasium.Env):
    """An environment with arbitrary spaces; the reward is the sum of the action's numbers.

    Masks, if any, are random.

    Args:
        observation_space, action_space: spaces of the environment.
        mask: (place of the mask, function that encodes rows of legal choices); None for no mask.
    """

    seeds = []  # noqa: RUF012  # of the resets of all of them

    def __init__(self, observation_space, action_space, mask=None):
        # Spaces contain random generators: each environment has its own copy.
        self.observation_space = copy.deepcopy(observation_space)
        self.action_space = action_space
        self.where, self.say = mask or (None, None)
        if self.where == "method":
            self.action_masks = self._mask

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            Spoken.seeds.append(seed)
            self.observation_space.seed(seed)
        self.time = 0
        return self._observed()

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        if self.where:
            start = getattr(self.action_space, "start", 0)
            chosen = np.reshape(np.asarray(action) - start, -1)
            assert all(row[i] for row, i in zip(self.rows, chosen, strict=True)), "illegal"
        self.time += 1
        numbers = np.asarray(action, float).reshape(-1)
        reward = float(numbers @ np.arange(1, numbers.size + 1))
        obs, info = self._observed()
        return obs, reward, self.time >= LENGTH, False, info

    def _observed(self):
        obs = self.observation_space.sample()
        if not self.where:
            return obs, {}
        sizes = np.reshape(counts(self.action_space), -1)
        self.rows = [self.np_random.integers(0, 2, n) for n in sizes]
        for row in self.rows:
            row[self.np_random.integers(len(row))] = 1
        if self.where == "obs":
            obs["action_mask"] = self._mask()
        return obs, {"action_mask": self._mask()} if self.where == "info" else {}

    def _mask(self):
        return self.say(self.rows)


def counts(space):
    """The number of choices of each component."""
    if isinstance(space, g.MultiBinary):
        return np.full(space.shape, 2)
    return space.nvec if isinstance(space, g.MultiDiscrete) else np.array([space.n])


class Start(gymnasium.Env):
    """The action must equal the displayed number; both spaces start at -1. Maximum return: 10."""

    action_space = g.Discrete(3, start=-1)
    observation_space = g.Discrete(3, start=-1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self._show(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        reward, self.time = float(action == self.shown), self.time + 1
        return self._show(), reward, self.time >= 10, False, {}

    def _show(self):
        self.shown = np.int64(self.np_random.integers(-1, 2))
        return self.shown


class Distance(gymnasium.Env):
    """The reward is larger the nearer the action is to the best one; an episode has ten steps.

    Args:
        low, high: bounds of the action.
        best: the best action.
    """

    observation_space = g.Box(-1, 1, (3,))

    def __init__(self, low=10.0, high=20.0, best=15.0):
        self.action_space, self.best = g.Box(low, high, (1,)), best

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self._look(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.time += 1
        return self._look(), -abs(float(action[0]) - self.best), self.time >= 10, False, {}

    def _look(self):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)
