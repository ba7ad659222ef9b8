"""An environment of one's own in Gymnasium's interface: heat a greenhouse through two days.

    python -m ppo_jax.train --env greenhouse:Greenhouse

The environment does not use JAX. README.md in this folder has the commands that train, evaluate and
export an agent.
"""

import sys
from pathlib import Path

import gymnasium
import numpy as np

OFF, HEAT, VENT = range(3)
HOURS = 48


class Greenhouse(gymnasium.Env):
    """Keep a greenhouse between 18 and 24 °C for 48 hours; the plants die below 5 °C.

    An observation has the inside temperature, the outside temperature and the hour of the day, each
    scaled to about 1. The reward of an hour is 1 inside the range, and heating costs 0.2.
    """

    metadata = {"render_modes": []}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(-3.0, 3.0, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.hour, self.inside = 0, self.np_random.uniform(12.0, 28.0)
        self.weather = self.np_random.uniform(-5.0, 10.0)
        return self._observation(), {}

    def step(self, action):
        self.inside += 0.2 * (self._outside() - self.inside)
        self.inside += {OFF: 0.0, HEAT: 5.0, VENT: -5.0}[int(action)]
        self.hour += 1
        comfortable = 18.0 <= self.inside <= 24.0
        reward = float(comfortable) - 0.2 * (action == HEAT)
        terminated = self.inside < 5.0
        truncated = self.hour == HOURS and not terminated
        return self._observation(), float(reward), bool(terminated), bool(truncated), {}

    def _outside(self):
        """The temperature outside: the weather, and 8 °C more at noon than on average."""
        return self.weather - 8.0 * np.cos(2 * np.pi * self.hour / 24)

    def _observation(self):
        scaled = [(self.inside - 21.0) / 10.0, self._outside() / 10.0, (self.hour % 24) / 24.0]
        return np.clip(scaled, -3.0, 3.0).astype(np.float32)


def play(policy):
    """The return of one episode with an exported agent, which needs JAX and not ppo_jax.

    Args:
        policy: name of a file that `python -m ppo_jax.export RUN --format stablehlo` wrote.
    """
    import jax

    agent = jax.export.deserialize(bytearray(Path(policy).read_bytes()))
    env = Greenhouse()
    obs, _ = env.reset(seed=0)
    total, done = 0.0, False
    while not done:
        (action,) = agent.call(obs[None])
        obs, reward, terminated, truncated, _ = env.step(int(action))
        total, done = total + reward, terminated or truncated
    return total


if __name__ == "__main__":
    print(f"return of one episode: {play(sys.argv[1]):.1f} of at most 48")
