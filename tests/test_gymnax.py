"""The classic control tasks: agreement of each step with Gymnasium."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import envs
from ppo_jax.envs.gymnax import _gymnax

# Name -> lower and upper bounds of the state that Gymnasium's environment stores.
STATES = {
    "CartPole-v1": ([-2.4, -3, -0.2, -3], [2.4, 3, 0.2, 3]),
    "Acrobot-v1": ([-np.pi, -np.pi, -12, -28], [np.pi, np.pi, 12, 28]),
    "Pendulum-v1": ([-9, -8], [9, 8]),
    "MountainCar-v0": ([-1.2, -0.07], [0.6, 0.07]),
    "MountainCarContinuous-v0": ([-1.2, -0.07], [0.6, 0.07]),
}
COUNT = 200


def states_of(env, values):
    """States [COUNT] with these values, at time 0."""
    _, state = env.reset(jax.random.key(0), env.params)
    names = [n for n in state.__dataclass_fields__ if n not in ("time", "last_u")]
    state = jax.tree.map(lambda x: jnp.broadcast_to(jnp.asarray(x), (COUNT,)), state)
    columns = jnp.asarray(values, jnp.float32).T
    return state.replace(**dict(zip(names, columns, strict=True)))


def theirs(name, values, actions):
    gymnasium = pytest.importorskip("gymnasium")
    env = gymnasium.make(name).unwrapped
    env.reset(seed=0)
    rows = []
    for value, action in zip(values, actions, strict=True):
        env.state = np.array(value)
        env.steps_beyond_terminated = None
        obs, reward, terminated, _, _ = env.step(action)
        rows.append((obs, reward, terminated))
    return [np.array(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("name", STATES)
def test_steps_are_gymnasiums(name):
    env, rng = envs.make(name), np.random.default_rng(0)
    low, high = STATES[name]
    values = rng.uniform(low, high, (COUNT, len(low)))
    if name.startswith("MountainCar"):  # at the walls
        values[: COUNT // 4, 0], values[-COUNT // 4 :, 0] = -1.2, 0.6
    actions = rng.integers(0, getattr(env.action_space, "n", 1), COUNT)
    if hasattr(env.action_space, "low"):
        actions = rng.uniform(-2.5, 2.5, (COUNT, 1)).astype(np.float32)
    step = jax.jit(jax.vmap(env.step, (None, 0, 0, None)))
    obs, _, reward, terminated, _, _ = step(
        jax.random.key(1), states_of(env, values), jnp.asarray(actions), env.params
    )
    expected = theirs(name, values, actions)
    np.testing.assert_allclose(obs, expected[0], atol=1e-3)
    np.testing.assert_allclose(reward, expected[1], atol=1e-4)
    np.testing.assert_array_equal(terminated, expected[2])


def test_the_left_wall_stops_the_car():
    """With gymnax 1.0.1 it stays at -0.056 for ever: v <- -0.0555 + 0.0015 a - 0.0025 cos(3 x)."""
    env = envs.make("MountainCarContinuous-v0")
    state = env.reset(jax.random.key(0), env.params)[1]
    state = state.replace(position=jnp.float32(-1.2), velocity=jnp.float32(-0.056))
    obs, after, *_ = env.step(jax.random.key(0), state, jnp.array([-1.0]), env.params)
    np.testing.assert_allclose(obs, [-1.2, 0.0])
    assert after.velocity == 0 and after.time == 1
    gymnax, params = _gymnax().make("MountainCarContinuous-v0")
    assert gymnax.step_env(jax.random.key(0), state, jnp.array([-1.0]), params)[0][1] < -0.05
