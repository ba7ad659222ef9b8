"""Frame stacks contain frames of one episode only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from ppo_jax import envs
from ppo_jax.envs import spaces
from ppo_jax.envs.frame_stack import FrameStack, push

KEY = jax.random.key(0)


@struct.dataclass
class Clock:
    episode: jax.Array
    time: jax.Array


class Film:
    """Frames [2, 1, C]: a random id of the episode above its time, which is 1 at the reset."""

    name, params, time_limit, action_space = "Film", (), 5, spaces.Discrete(2)

    def __init__(self, channels=1):
        self.channels = channels
        self.observation_space = spaces.Box(0, 255, (2, 1, channels), np.uint8)

    def frame(self, state):
        column = jnp.stack([state.episode, state.time])[:, None, None].astype(jnp.uint8)
        return column + 100 * jnp.arange(self.channels, dtype=jnp.uint8)

    def reset(self, key, params):
        state = Clock(jax.random.randint(key, (), 1, 100), jnp.ones((), int))
        return self.frame(state), state

    def step(self, key, state, action, params):
        state = state.replace(time=state.time + 1)
        terminated, truncated = action == 1, state.time > self.time_limit
        return self.frame(state), state, jnp.zeros(()), terminated, truncated, {}

    def render(self, state):
        return np.full((1, 1, 3), state.time)


def test_the_newest_frame_is_last_and_a_reset_shows_one():
    env = envs.as_env(FrameStack(Film(), 3))
    obs, state = env.reset(KEY, ())
    seen = [obs]
    for _ in range(3):
        obs, state, *_ = env.step(KEY, state, 0, ())
        seen.append(obs)
    np.testing.assert_array_equal(
        [o[1, 0] for o in seen], [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]
    )
    assert obs.dtype == jnp.uint8 and env.render(state)[0, 0, 0] == 4
    assert (env.name, env.time_limit, env.shortest_episode) == ("Film", 5, 1)


def test_channels_of_a_frame_stay_together():
    frames = push(jnp.arange(6).reshape(1, 1, 6), jnp.array([[[10, 11]]]))
    assert frames.tolist() == [[[2, 3, 4, 5, 10, 11]]]
    env = envs.as_env(FrameStack(Film(2), 2))
    assert env.observation_space.shape == (2, 1, 4)
    np.testing.assert_array_equal(env.reset(KEY, ())[0][1, 0], [0, 0, 1, 101])


def test_a_stack_ends_with_its_episode():
    """After an episode end, the stack contains only the first frame of the new episode; the final
    observation keeps the old frames, for a termination and for a truncation."""
    env = FrameStack(Film(), 3)
    vector = envs.vectorize(env, 4, 16)
    obs, state = vector.reset(KEY)
    ends = {"terminated": 0, "truncated": 0}
    step = jax.jit(vector.step)
    for i, key in enumerate(jax.random.split(jax.random.key(1), 14)):
        before, action = obs, jnp.array([i % 3 == 2, False, i == 4, False]).astype(int)
        obs, state, _, terminated, truncated, info = step(key, state, action)
        final, done = info["final_observation"], terminated | truncated
        np.testing.assert_array_equal(final[..., :2], before[..., 1:])
        np.testing.assert_array_equal(obs[~done], final[~done])
        for n in np.flatnonzero(done):
            assert obs[n, 1, 0].tolist() == [0, 0, 1]
            assert obs[n, 0, 0, 2] == state.env_state.env_state.episode[n] != final[n, 0, 0, 2]
        ends["terminated"] += int(terminated.sum())
        ends["truncated"] += int((truncated & ~terminated).sum())
    assert min(ends.values()) >= 4


def test_only_images_can_be_stacked():
    with pytest.raises(envs.InvalidEnvironment, match=r"images \[H, W, C\]; observations of CartP"):
        FrameStack(envs.make("CartPole-v1"), 4)
    with pytest.raises(envs.InvalidEnvironment, match="frames is 0; it must be >= 1"):
        FrameStack(Film(), 0)
