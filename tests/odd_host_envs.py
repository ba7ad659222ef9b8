"""Gymnasium environments with one fault each, for example `gymnasium:odd_host_envs:Start-v0`."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces


class Plain(gymnasium.Env):
    """Observes (steps since creation, steps in the episode), and terminates after `length`
    steps."""

    observation_space: spaces.Space = spaces.Box(-np.inf, np.inf, (2,))
    action_space: spaces.Space = spaces.Discrete(2)
    length = 10

    def __init__(self, flag: str = "", after: int = 20) -> None:
        self.flag, self.after, self.count, self.t = flag, after, 0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.obs(), {}

    def step(self, action):
        self.count, self.t = self.count + 1, self.t + 1
        if self.count == self.after and self.first():
            self.fail()
        return self.obs(), 1.0, self.t >= self.length, False, {}

    def obs(self):
        return np.array([self.count, self.t], np.float32)

    def first(self) -> bool:
        """Whether this is the first copy to reach this point among those that share a flag."""
        if not self.flag:
            return True
        try:
            Path(self.flag).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def fail(self) -> None:
        """The fault of the environment."""


class Raises(Plain):
    def fail(self):
        raise RuntimeError("a wheel\nfell off")


class Exits(Plain):
    def fail(self):
        os._exit(3)


class Killed(Plain):
    def fail(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Hangs(Plain):
    def fail(self):
        time.sleep(1000)


class HangsAtOnce(Plain):
    """Hangs while it is created (1), in its first reset (2) or in its first step (3)."""

    over = threading.Event()

    def __init__(self, at: int = 1) -> None:
        super().__init__()
        self.at = at
        self.wait(1)

    def wait(self, at: int) -> None:
        if at == self.at:
            self.over.wait(1000)

    def reset(self, *, seed=None, options=None):
        self.wait(2)
        return super().reset(seed=seed)

    def step(self, action):
        self.wait(3)
        return super().step(action)


class Deaf(Plain):
    """Hangs, and continues to hang after an interrupt."""

    def fail(self):
        while True:
            try:
                time.sleep(1000)
            except BaseException:
                continue


class Grows(Plain):
    """Returns an observation of another shape."""

    def obs(self):
        return np.zeros(3 if self.count >= self.after else 2, np.float32)


class Text(Plain):
    """Returns an observation of another type."""

    def obs(self):
        return "lost" if self.count >= self.after else np.zeros(2, np.float32)


class RaisesInReset(Plain):
    def reset(self, *, seed=None, options=None):
        if self.count >= self.after:
            raise RuntimeError("no scene")
        return super().reset(seed=seed)


class FewCopies(Plain):
    """Allows at most two copies in one process."""

    made = 0

    def __init__(self):
        FewCopies.made += 1
        if FewCopies.made > 2:
            raise RuntimeError("no licence left")
        super().__init__()


class Start(Plain):
    """Both spaces start at -1; the action must equal the displayed number. Maximum return: 10."""

    observation_space = spaces.Discrete(3, start=-1)
    action_space = spaces.Discrete(3, start=-1)

    def obs(self):
        self.shown = np.int64(self.np_random.integers(-1, 2))
        return self.shown

    def step(self, action):
        assert self.action_space.contains(action), action
        self.t += 1
        return self.obs(), 1.0, self.t >= self.length, False, {}


class Reuses(Plain):
    """All observations, including that of reset, are the same array; truncated at 5."""

    observation_space = spaces.Box(-10, 10, (1,))

    def __init__(self):
        self.state = np.zeros(1, np.float32)

    def reset(self, *, seed=None, options=None):
        gymnasium.Env.reset(self, seed=seed)
        self.state[:] = 0
        return self.state, {}

    def step(self, action):
        self.state += 1
        return self.state, 1.0, False, bool(self.state[0] >= 5), {}


class ReusesDict(Reuses):
    """All observations are the same dictionary, changed in place."""

    observation_space = spaces.Dict(
        {"a": spaces.Box(-10, 10, (1,)), "b": spaces.Tuple((spaces.Discrete(9),))}
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seen = {"a": self.state, "b": (0,)}
        return self.seen, {}

    def step(self, action):
        self.seen["a"], self.seen["b"] = self.seen["a"] + 1, (self.seen["b"][0] + 1,)
        return self.seen, 1.0, False, self.seen["b"][0] >= 5, {}


class Sooner(Plain):
    """Registered with at most 100 steps, but truncates itself after 3, 4 or 7."""

    lengths: ClassVar = (3, 7, 4)

    def __init__(self):
        self.episode = -1

    def reset(self, *, seed=None, options=None):
        gymnasium.Env.reset(self, seed=seed)
        self.t, self.episode = 0, self.episode + 1
        return self.obs(), {}

    def step(self, action):
        self.t += 1
        ends = self.t >= self.lengths[self.episode % 3]
        return self.obs(), 1.0, False, ends, {}

    def obs(self):
        return np.array([self.episode, self.t], np.float32)


class Ragged(Plain):
    """info contains values that cannot be combined into one array."""

    def step(self, action):
        things = (None, "x", np.zeros(self.t), object(), {"deep": [self]})
        return *super().step(action)[:4], {"thing": things[self.t % 5], f"k{self.t}": np.zeros(3)}


class OldStep(Plain):
    def step(self, action):
        return self.obs(), 1.0, False, {}


class OldReset(Plain):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0]


class Liar(Plain):
    observation_space = spaces.Discrete(4)

    def obs(self):
        return np.int64(7)

    def step(self, action):
        return self.obs(), float("nan"), False, False, {}


class Careless(Plain):
    """Observations exceed their bounds and have another type; Gymnasium only warns."""

    observation_space = spaces.Box(-1, 1, (2,))

    def obs(self):
        return np.full(2, 3.0)


for _class in (
    Raises, Exits, Killed, Hangs, HangsAtOnce, Deaf, Grows, Text, RaisesInReset, FewCopies, Start,
    Reuses, ReusesDict, Ragged, OldStep, OldReset, Liar, Careless,
):  # fmt: skip
    gymnasium.register(f"{_class.__name__}-v0", _class)
gymnasium.register("odd/Sooner-v0", Sooner, max_episode_steps=100)
