"""The training step as a loop of parts, whole runs, and user-defined parts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import envs, rollout
from ppo_jax.algorithms import ppo
from ppo_jax.config import ConfigError, TrainConfig
from ppo_jax.envs import InvalidEnvironment, spaces
from ppo_jax.envs.gymnax import _gymnax
from ppo_jax.train import build, make_train, make_train_step
from probe_envs import Probe, RewardIsAction

SMALL = TrainConfig(num_envs=4, num_steps=16, total_timesteps=192, hidden=(8,))


def test_a_step_is_collect_estimate_update():
    program = build(SMALL)
    state = jax.jit(program.init)(jax.random.key(0))
    found, metrics = jax.jit(program.step)(state)
    key, collect_key, update_key = jax.random.split(state.key, 3)
    collect = functools.partial(
        rollout.collect, env=program.vector_env, policy=program.policy, num_steps=16, gamma=0.99
    )
    experience, trajectory = jax.jit(collect)(collect_key, state.learner.params, state.rollout)
    batch = rollout.flatten_steps(jax.jit(program.algorithm.estimate)(trajectory))
    update = jax.jit(program.algorithm.update)
    learner, update_metrics = update(update_key, state.learner, batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        found.learner.params,
        learner.params,
    )
    assert found.update == 1
    assert (jax.random.key_data(found.key) == jax.random.key_data(key)).all()
    assert metrics.keys() == experience.metrics.keys() | update_metrics.keys()


def test_frozen_arrays_reach_collect():
    program = build(SMALL)
    collect = functools.partial(
        rollout.collect, env=program.vector_env, policy=program.policy, num_steps=16, gamma=0.99
    )

    def with_bonus(key, params, state, frozen):
        state, trajectory = collect(key, params, state)
        return state, trajectory.replace(reward=trajectory.reward + frozen["bonus"])

    step = jax.jit(make_train_step(with_bonus, program.algorithm))
    state = jax.jit(program.init)(jax.random.key(0))
    plain = step(state, {"bonus": jnp.float32(0)})[1]["value_loss"]
    assert step(state, {"bonus": jnp.float32(5)})[1]["value_loss"] > plain


def test_metrics_of_a_run_have_one_row_per_update():
    _, metrics = jax.jit(make_train(SMALL))(jax.random.key(0))
    assert {x.shape for x in metrics.values()} == {(3,)}


def test_an_environment_object_of_the_users_own():
    state, _ = jax.jit(make_train(SMALL, RewardIsAction()))(jax.random.key(0))
    assert state.rollout.obs.shape == (4, 1)


def test_a_gymnax_environment_object():
    env, _ = _gymnax().make("Catch-bsuite")
    state, _ = jax.jit(make_train(SMALL, env))(jax.random.key(0))
    assert state.rollout.obs.shape == (4, 10, 5)


@pytest.mark.parametrize(
    "changes",
    [
        {"env": "Breakout-MinAtar", "network": "minatar", "activation": "relu"},
        {"env": "FrozenLake-misc"},
        {"env": "PointRobot-misc", "squash": True},
        {"env": "CartPole-v1", "shared_torso": True},
        {"env": "CartPole-v1", "hidden": ()},
    ],
)
def test_networks_and_spaces(changes):
    config = dataclasses.replace(SMALL, **changes)
    state, metrics = jax.jit(make_train(config))(jax.random.key(0))
    assert np.isfinite(metrics["loss"]).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.learner.params))


class Several(Probe):
    """One step; the reward is the number of correct components of a composite action."""

    def __init__(self, action_space):
        super().__init__(action_space=action_space)

    def reset(self, key, params):
        return jnp.zeros(1), jnp.zeros(())

    def step(self, key, state, action, params):
        reward = jnp.sum(action == 1).astype(jnp.float32)
        return jnp.zeros(1), state, reward, jnp.array(True), jnp.array(False), {}


@pytest.mark.parametrize("space", [spaces.MultiDiscrete((2, 3)), spaces.MultiBinary(3)])
def test_composite_actions_are_learned(space):
    config = TrainConfig(
        num_envs=8,
        num_steps=16,
        total_timesteps=20_000,
        hidden=(16,),
        hyper=ppo.Config(learning_rate=5e-3),
    )
    _, metrics = jax.jit(make_train(config, Several(space)))(jax.random.key(0))
    assert metrics["episode_return"][-1] > 0.95 * space.shape[0]


class Odd(Probe):
    """An action space that no policy of the package supports."""

    def __init__(self, action_space):
        super().__init__(action_space=action_space)

    def reset(self, key, params):
        return jnp.zeros(1), jnp.zeros(())

    def step(self, key, state, action, params):
        return jnp.zeros(1), state, jnp.float32(0), jnp.array(True), jnp.array(False), {}


@dataclasses.dataclass(frozen=True)
class Text:
    shape: tuple = ()
    dtype: type = np.int32


@pytest.mark.parametrize(
    ("changes", "env", "error", "message"),
    [
        ({}, Odd(Text()), InvalidEnvironment, "action space .*Text.* is not supported"),
        (
            {"squash": True},
            Odd(spaces.Box(-np.inf, np.inf, (1,))),
            InvalidEnvironment,
            "squash .* finite bounds",
        ),
        ({"squash": True}, "CartPole-v1", InvalidEnvironment, "squash .* Box"),
        (
            {"network": "minatar"},
            "CartPole-v1",
            InvalidEnvironment,
            r"network 'minatar' .* \[H, W, C\]",
        ),
        ({"network": "nature"}, "Breakout-MinAtar", InvalidEnvironment, r"too small"),
        ({"total_timesteps": 1}, "CartPole-v1", ConfigError, "less than one rollout"),
    ],
)
def test_what_cannot_work_is_refused_before_compiling(changes, env, error, message):
    with pytest.raises(error, match=message):
        build(dataclasses.replace(SMALL, **changes), env)


def test_sixteen_and_more_seeds_in_one_program():
    """With jaxlib 0.10 on two cores, other implementations deadlock here."""
    train = jax.jit(jax.vmap(make_train(SMALL)))
    for width in (16, 128):
        state, metrics = train(jax.random.split(jax.random.key(0), width))
        assert metrics["loss"].shape == (width, 3)
        kernels = state.learner.params["actor"]["head"]["kernel"]
        assert len(np.unique(np.asarray(kernels), axis=0)) == width


def test_environment_parameters_may_vary_in_one_program():
    env = envs.make("CartPole-v1")

    def lengths(gravity):
        changed = dataclasses.replace(env, params=env.params.replace(gravity=gravity))
        return make_train(SMALL, changed)(jax.random.key(0))[1]["episode_length"]

    found = jax.jit(jax.vmap(lengths))(jnp.array([1.0, 50.0]))
    assert np.nanmean(found[0]) > np.nanmean(found[1])


def test_everything_is_in_the_train_state():
    """A state that was copied to host memory, with a rebuilt program, continues bit for bit."""
    program = build(SMALL)
    step = jax.jit(program.step)
    halfway = step(jax.jit(program.init)(jax.random.key(0)))[0]
    whole = step(step(halfway)[0])
    key_data = np.asarray(jax.random.key_data(halfway.key))
    stored = jax.tree.map(np.asarray, halfway.replace(key=key_data))
    again = stored.replace(key=jax.random.wrap_key_data(jnp.asarray(stored.key)))
    other = jax.jit(build(SMALL).step)
    resumed = other(other(again)[0])
    for x, y in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)
    assert whole[0].update == 3
