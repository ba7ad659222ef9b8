"""Environments of unknown episode length: the pool of resets grows with their use, each reset is
used once, and an exhausted pool is reported."""

import dataclasses
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import envs, rollout
from ppo_jax.episodes import no_episodes
from probe_envs import Probe

# The module, which a function of the same name hides.
MODULE = sys.modules["ppo_jax.envs.vectorize"]
ENVS, STEPS, ROLLOUTS = 5, 12, 30
# Some states contain arrays without elements, for entities that a map does not have.
NOTHING = np.zeros((0, 3), np.uint8)


class Ticket(Probe):
    """Every reset draws a unique number; episodes last 1 to 8 steps, depending on the number."""

    def reset(self, key, params):
        number = jax.random.bits(key, (), jnp.uint32) >> 8
        return self._observe(number), (number, jnp.int32(0), NOTHING)

    def step(self, key, state, action, params):
        number, time = state[0], state[1] + 1
        ends = time > (number % 8).astype(jnp.int32)
        after = (number, time, NOTHING)
        return self._observe(number), after, jnp.float32(1), ends, jnp.array(False), {}

    def _observe(self, number):
        return number.astype(jnp.float32)[None]


def play(vector, key, rollouts=ROLLOUTS, steps=STEPS):
    """Observations before and after every step, ends, and reports of refreshes: [rollouts, steps,
    N]."""
    action = jnp.zeros(vector.num_envs, int)

    def step(carry, _):
        obs, state, _, terminated, _, _ = vector.step(key, carry[1], action)
        return (obs, state), (obs[..., 0], terminated)

    def rollout_of(carry, key):
        (obs, state), rows = jax.lax.scan(step, carry, None, length=steps)
        used, before = state.taken, state.pool[0]
        state, metrics = vector.refresh(key, state)
        redrawn = jnp.sum(state.pool[0] != before)
        return (obs, state), (*rows, used, redrawn, metrics["reused_resets"])

    start_key, key = jax.random.split(key)
    first = vector.reset(start_key)
    return first[0][..., 0], jax.lax.scan(rollout_of, first, jax.random.split(key, rollouts))[1]


def test_every_reset_is_used_once_over_many_rollouts():
    """More episodes than the pool holds, so that it is used several times around."""
    vector = envs.vectorize(Ticket(), ENVS, STEPS)
    assert vector.pool_size >= ENVS * STEPS
    first, (after, ended, used, redrawn, reused) = jax.jit(lambda k: play(vector, k))(
        jax.random.key(0)
    )
    started = np.concatenate([np.asarray(first), np.asarray(after)[np.asarray(ended)]])
    assert len(started) > 4 * vector.pool_size
    assert len(np.unique(started)) == len(started)
    assert (reused == 0).all()
    # Used resets are drawn again, rounded up to whole parts, and no others.
    parts = -(-np.asarray(used) // vector.part) * vector.part
    np.testing.assert_array_equal(redrawn, parts)
    assert redrawn.max() < vector.pool_size


def test_many_agents_side_by_side_draw_what_each_would_alone():
    vector = envs.vectorize(Ticket(), ENVS, STEPS)
    keys = jax.random.split(jax.random.key(1), 3)
    many = jax.jit(jax.vmap(lambda k: play(vector, k, 4)))(keys)
    alone = jax.jit(lambda k: play(vector, k, 4))
    for i, key in enumerate(keys):
        jax.tree.map(lambda x, y, i=i: np.testing.assert_array_equal(x[i], y), many, alone(key))


def test_a_pool_that_would_be_too_large_is_smaller_and_says_when_it_runs_out(monkeypatch):
    size = 3 * 4  # obs, number and time, four bytes each
    monkeypatch.setattr(MODULE, "LARGEST_POOL", 16 * size)
    vector = envs.vectorize(Ticket(), ENVS, 64)
    assert vector.pool_size == 16
    _, (_, ended, _, _, reused) = jax.jit(lambda k: play(vector, k, 3, 64))(jax.random.key(2))
    ends = np.asarray(ended).reshape(3, -1).sum(-1)
    np.testing.assert_array_equal(reused, ends - 16)
    monkeypatch.setattr(MODULE, "LARGEST_POOL", 1)
    assert envs.vectorize(Ticket(), ENVS, 64).pool_size == ENVS  # all may end in the same step


@pytest.mark.parametrize(("num_envs", "steps"), [(1, 1), (1, 7), (4, 128), (64, 64), (3, 100)])
def test_the_pool_serves_the_shortest_episodes(num_envs, steps):
    vector = envs.vectorize(Ticket(), num_envs, steps)
    wanted = num_envs * steps
    assert wanted <= vector.pool_size < wanted + vector.part and vector.pool_size % vector.part == 0
    assert vector.part <= max(8, wanted // 64 + 1)


def test_a_known_length_or_a_given_size_draws_the_whole_pool():
    longer = Ticket(shortest_episode=3)
    assert envs.vectorize(longer, 4, 12).part is None
    assert envs.vectorize(Ticket(), 4, 12, pool_size=6).part is None


def test_whole_episodes_begin_anew_and_keep_the_pool():
    """As for algorithms that use whole episodes, which restart them before every rollout."""
    vector = envs.vectorize(Ticket(), ENVS, STEPS)
    obs, state = jax.jit(vector.reset)(jax.random.key(0))
    used = dataclasses.replace(state, taken=jnp.int32(7))
    nothing = lambda num_envs: ()
    policy = SimpleNamespace(init_core=nothing, init_noise=nothing)
    before = rollout.RolloutState(used, obs, (), rollout.Moments(), {}, no_episodes(ENVS))
    restart = jax.jit(lambda key, state: rollout.restart(key, state, env=vector, policy=policy))
    after = restart(jax.random.key(1), before)
    assert (after.obs != obs).all() and after.env_state.taken == 7
    np.testing.assert_array_equal(after.env_state.pool[0], state.pool[0])
