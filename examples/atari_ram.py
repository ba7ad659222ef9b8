"""The memory of the Atari console as observation: `gymnasium:atari_ram:PongRAM-v0`.

    pip install ".[atari]"                       # in a clone of the repository
    python -m ppo_jax.train --env gymnasium:atari_ram:PongRAM-v0 --normalize-obs ...

The 128 bytes contain the positions of the ball and of both paddles. The observation is the bytes
and their change since the last step, as floats, so that `--normalize-obs` applies to them: bytes
are divided by 255 instead, and the ball's step of one or two would be a very small number. The game
is the cartridge of ale-py with four frames per action, without sticky actions, and with a random
number of steps without an action at its start.
"""

import ale_py  # noqa: F401  registers the games
import gymnasium
import numpy as np


class BytesAndChanges(gymnasium.ObservationWrapper):
    """The 128 bytes of the memory and their change since the last step, [256] floats.

    A change is taken modulo 256, from -128 to 127, as the console computes.
    """

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(-128.0, 255.0, (256,), np.float32)
        self._last, self._random = None, np.random.default_rng()

    def reset(self, *, seed=None, options=None):
        """Begin a game with up to 30 steps of no action: without them all games are the same."""
        if seed is not None:
            self._random = np.random.default_rng(seed)
        ram, info = self.env.reset(seed=seed, options=options)
        for _ in range(self._random.integers(31)):
            ram, *_, info = self.env.step(0)
        self._last = None
        return self.observation(ram), info

    def observation(self, ram):
        last = ram if self._last is None else self._last
        self._last = ram.copy()
        change = (ram - last).view(np.int8)
        return np.concatenate([ram, change]).astype(np.float32)


def make_pong(**options):
    """Pong, observed through the memory; options are those of gymnasium.make."""
    game = gymnasium.make("ALE/Pong-v5", obs_type="ram", repeat_action_probability=0.0, **options)
    return BytesAndChanges(game)


gymnasium.register("PongRAM-v0", make_pong)
