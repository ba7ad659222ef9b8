"""EnvPool's environments reset one step late, which their rows must show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import envs

pytest.importorskip("envpool")
KEY = jax.random.key(0)


def test_the_step_after_an_episode_is_a_dummy():
    env = envs.make("envpool:CartPole-v1")
    assert env.time_limit == 500 and env.action_space.n == 2
    venv = env.vector(3)
    obs, state = venv.reset(KEY)
    rows = []
    for i in range(60):
        obs, state, *rest, info = venv.step(KEY, state, jnp.full(3, i % 3 == 0, int))
        rows.append((obs, *rest, info["valid"]))
    seen, _, terminated, truncated, valid = (np.stack(x) for x in zip(*rows, strict=True))
    done = terminated | truncated
    assert done.any() and valid[0].all()
    np.testing.assert_array_equal(~valid[1:], done[:-1])
    assert (np.abs(seen[1:][~valid[1:]]) < 0.06).all()  # new episodes start near 0


def test_images_and_names():
    env = envs.make("envpool:Pong-v5")
    assert env.observation_space.shape == (84, 84, 4)
    assert "envpool:Pong-v5" in envs.names("envpool")
    with pytest.raises(envs.UnknownEnvironment, match="Pong-v5"):
        envs.make("envpool:Pung-v5")
