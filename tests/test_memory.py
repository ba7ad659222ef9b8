"""Recurrent policies: the cells, their resets, and agreement of training with acting."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import config, envs, rollout
from ppo_jax.algorithms import ppo
from ppo_jax.config import ConfigError
from ppo_jax.distributions import Categorical
from ppo_jax.evaluate import evaluate
from ppo_jax.networks import CELLS, Policy, SequenceInputs, make_recurrent_policy
from ppo_jax.networks.memory import Memory
from ppo_jax.train import build, make_train
from probe_envs import Counter

KEY = jax.random.key(0)
STEPS, ENVS = 11, 4
# Memories whose own tests are in test_memory_layers.py.
LATER = [pytest.param(name, marks=pytest.mark.slow) for name in ("mingru", "gtrxl")]


def randomly(shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def memory(cell, x, start, size=5):
    """(module, params, random recurrent state)."""
    module = Memory(cell, size)
    core = jax.tree.map(lambda c: randomly(c.shape, 1), CELLS[cell].zeros((x.shape[0], size)))
    params = module.init(KEY, core, x, start)["params"]
    params["bias"] = randomly((size,), 2)
    return module, params, core


def flax_params(cell, params):
    """Our parameters in the format of flax's cells, which have one small kernel per gate."""
    names = {"gru": "rzn", "lstm": "ifgo"}[cell]
    inputs = jnp.split(params["input"]["kernel"], len(names), axis=1)
    biases = jnp.split(params["input"]["bias"], len(names))
    recurrent = jnp.split(params["recurrent"], len(names), axis=1)
    theirs = {}
    for name, w, b, u in zip(names, inputs, biases, recurrent, strict=True):
        if cell == "gru":
            theirs["i" + name] = {"kernel": w, "bias": b}
            theirs["h" + name] = {"kernel": u}
        else:
            theirs["i" + name] = {"kernel": w}
            theirs["h" + name] = {"kernel": u, "bias": b}
    if cell == "gru":
        theirs["hn"]["bias"] = params["bias"]
    else:
        theirs["hf"]["bias"] += params["bias"]
    return theirs


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_is_the_one_that_flax_has(cell):
    x, start = randomly((3, 6, 2)), jnp.zeros((3, 6), bool)
    module, params, core = memory(cell, x, start)
    after, y = jax.jit(module.apply)({"params": params}, core, x, start)

    theirs = {"gru": nn.GRUCell, "lstm": nn.OptimizedLSTMCell}[cell](5)
    variables = {"params": flax_params(cell, params)}
    step = jax.jit(theirs.apply)
    for t in range(6):
        core, out = step(variables, core, x[:, t])
        np.testing.assert_allclose(y[:, t], out, atol=1e-6)
    for ours, expected in zip(jax.tree.leaves(after), jax.tree.leaves(core), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_is_its_steps_one_by_one_and_forgets_where_an_episode_starts(cell):
    x = randomly((3, 6, 2))
    start = jnp.zeros((3, 6), bool).at[0, 0].set(True).at[1, 4].set(True)
    module, params, before = memory(cell, x, start)
    after, y = module.apply({"params": params}, before, x, start)

    core = before
    for t in range(6):
        core, out = module.apply({"params": params}, core, x[:, t : t + 1], start[:, t : t + 1])
        np.testing.assert_allclose(out[:, 0], y[:, t], atol=1e-6)
    nothing = jax.tree.map(jnp.zeros_like, before)
    fresh = module.apply({"params": params}, nothing, x[:, 4:], jnp.zeros((3, 2), bool))[1]
    # The first step of the new episode has no memory of the previous one, but the step before has.
    np.testing.assert_allclose(y[1, 4:], fresh[1], atol=1e-6)
    assert np.abs(y[2, 4:] - fresh[2]).max() > 0.05
    other = module.apply({"params": params}, nothing, x, start)[1]
    np.testing.assert_allclose(other[0], y[0], atol=1e-6)
    assert np.abs(other[1, 3] - y[1, 3]).max() > 1e-3


@pytest.mark.parametrize("cell", CELLS)
def test_a_core_is_of_arrays_of_its_own(cell):
    """Two references to the same array could not be donated."""
    leaves = jax.tree.leaves(CELLS[cell].zeros((2, 3)))
    assert len({id(x) for x in leaves}) == len(leaves) == {"gru": 1, "lstm": 2}[cell]


def test_recurrent_kernels_start_orthogonal_gate_by_gate():
    params = Memory("lstm", 8).init(
        KEY, CELLS["lstm"].zeros((2, 8)), jnp.ones((2, 1, 3)), jnp.ones((2, 1), bool)
    )["params"]
    for block in jnp.split(params["recurrent"], 4, axis=1):
        np.testing.assert_allclose(block.T @ block, np.eye(8), atol=1e-5)


def setup(env, cell="gru", steps=STEPS, **options):
    vector = envs.vectorize(env, ENVS, steps)
    policy = make_recurrent_policy(
        env.observation_space, env.action_space, memory=cell, memory_size=8, hidden=(8,), **options
    )

    @jax.jit
    def start():
        state = rollout.init(KEY, policy, vector)
        return policy.init(jax.random.key(1), state.obs), state

    params, state = start()
    params["critic"]["head"]["head"]["kernel"] *= 100.0
    collect = functools.partial(
        rollout.collect, env=vector, policy=policy, num_steps=steps, gamma=0.9
    )
    return policy, params, state, jax.jit(collect)


@functools.cache
def counting():
    """setup(Counter(3)), created once for all tests that do not change it."""
    return setup(Counter(3))


@pytest.mark.parametrize("cell", [*CELLS, *LATER])
@pytest.mark.parametrize("shared", [False, True], ids=["apart", "shared torso"])
def test_learning_sees_what_acting_saw(cell, shared):
    """ρ = 1 and V = V_old on the first minibatch, with episodes that end inside the rollout."""
    env = envs.make("CartPolePositions-v1")
    vector = envs.vectorize(env, ENVS, 64)
    policy = make_recurrent_policy(
        env.observation_space, env.action_space, memory=cell, shared_torso=shared, memory_length=8
    )

    @jax.jit
    def start():
        state = rollout.init(KEY, policy, vector, normalize_obs=True)
        return state, policy.init(jax.random.key(1), state.obs)

    state, params = start()
    head = params["actor"]["head"] if shared else params["actor"]["head"]["head"]
    head["kernel"] *= 100.0  # far from uniform, so that the recurrent state matters
    collect = jax.jit(
        functools.partial(rollout.collect, env=vector, policy=policy, num_steps=64, gamma=0.9)
    )
    algorithm = ppo.make(policy, ppo.Config())
    estimate = jax.jit(lambda trajectory: rollout.sequences(algorithm.estimate(trajectory)))

    @jax.jit
    def judge(params, inputs, batch):
        dist, value = policy.apply(params, inputs)
        return jnp.exp(dist.log_prob(batch.action) - batch.log_prob), value

    loss_fn = jax.jit(ppo.make_loss(policy, ppo.Config()))
    for i in range(2):  # the second rollout starts in the middle of episodes
        state, trajectory = collect(jax.random.key(i), params, state)
        assert trajectory.done.sum() > ENVS
        batch = estimate(trajectory)
        ratio, value = judge(params, batch.obs, batch)
        np.testing.assert_allclose(ratio, 1.0, atol=1e-5)
        np.testing.assert_allclose(value, batch.value, atol=1e-5)
        _, metrics = loss_fn(params, batch)
        assert metrics["clip_fraction"] == 0 and abs(metrics["approx_kl"]) < 1e-6
        # Without these flags, or with those of the previous step, the policy differs.
        for wrong in (jnp.zeros_like(batch.obs.start), jnp.roll(batch.obs.start, 1, axis=1)):
            other = dataclasses.replace(batch.obs, start=wrong)
            ratio, _ = judge(params, other, batch)
            assert jnp.abs(ratio - 1.0).max() > 1e-3


def test_the_flag_of_a_start_is_carried_from_one_rollout_to_the_next():
    _, params, state, collect = setup(Counter(3), steps=5)
    done = jnp.ones(ENVS, bool)
    for i in range(4):
        state, trajectory = collect(jax.random.key(i), params, state)
        start = trajectory.obs.start
        np.testing.assert_array_equal(start[0], done)
        np.testing.assert_array_equal(start[1:], trajectory.done[:-1])
        done = trajectory.done[-1]


@pytest.mark.parametrize("cell", [*CELLS, *LATER])
def test_a_time_limit_is_bootstrapped_through_the_memory(cell):
    """V of the true final observation, with the recurrent state of the episode that ends."""
    env = Counter(3)
    policy, params, state, collect = setup(env, cell)
    act = jax.jit(policy.act)
    for i in range(2):
        core = state.core
        state, t = collect(jax.random.key(i), params, state)
        truncated = t.done & ~t.terminated
        assert truncated.sum() >= 3
        for step in range(STEPS):
            core, _, value = act(params, core, t.obs.obs[step], t.obs.start[step])
            np.testing.assert_allclose(value, t.value[step], rtol=1e-4, atol=1e-4)
            final = env.successor(t.obs.obs[step])
            after = t.obs.obs[step + 1] if step + 1 < STEPS else state.obs
            successor = jnp.where(truncated[step, :, None], final, after)
            expected = act(params, core, successor, jnp.zeros(ENVS, bool))[2]
            alive = ~t.terminated[step]
            np.testing.assert_allclose(
                t.next_value[step][alive], expected[alive], rtol=1e-4, atol=1e-4
            )
        jax.tree.map(
            lambda ours, expected: np.testing.assert_allclose(ours, expected, atol=1e-5),
            state.core,
            core,
        )


def test_rows_are_environments_with_their_steps_in_order():
    _, params, state, collect = counting()
    core = state.core
    _, trajectory = collect(KEY, params, state)
    algorithm = ppo.make(None, ppo.Config())
    batch = algorithm.estimate(trajectory)
    rows = rollout.sequences(batch)
    np.testing.assert_array_equal(rows.advantage, batch.advantage.T)
    np.testing.assert_array_equal(rows.obs.obs, jnp.swapaxes(trajectory.obs.obs, 0, 1))
    np.testing.assert_array_equal(rows.obs.core["actor"][:, 0], core["actor"])


def test_a_dummy_step_leaves_no_trace():
    """A Gymnasium environment that resets one step late: its dummy steps are not learned from."""
    policy, params, state, collect = counting()
    _, trajectory = collect(KEY, params, state)
    batch = rollout.sequences(ppo.make(None, ppo.Config()).estimate(trajectory))
    dummy = jnp.zeros_like(batch.weight, bool).at[1, 4].set(True)
    start = batch.obs.start.at[1, 4:6].set(True)
    batch = dataclasses.replace(
        batch,
        weight=jnp.where(dummy, 0.0, 1.0),
        obs=dataclasses.replace(batch.obs, start=start),
    )

    @jax.jit
    def gradient(shown):
        obs = jnp.where(dummy[..., None], shown, batch.obs.obs)
        rows = dataclasses.replace(batch, obs=dataclasses.replace(batch.obs, obs=obs))
        return jax.grad(lambda p: ppo.make_loss(policy, ppo.Config())(p, rows)[0])(params)

    jax.tree.map(np.testing.assert_array_equal, gradient(0.0), gradient(jnp.nan))


@pytest.mark.parametrize("algorithm", ["ppo", "ppo_kl", "a2c", "trpo", "reinforce"])
def test_every_method_learns_from_sequences(algorithm):
    own = {"time_limit": 16, "baseline": "value"} if algorithm == "reinforce" else {}
    made = config.make(
        preset="none",
        env="MemoryChain-bsuite",
        algorithm=algorithm,
        num_envs=4,
        num_steps=16,
        memory="gru",
        memory_size=8,
        hidden=(8,),
        **own,
    )
    env = envs.make("MemoryChain-bsuite", max_steps_in_episode=16)
    program = build(made, env)
    state = jax.jit(program.init)(KEY)
    after, metrics = jax.jit(program.step)(state)
    moved = jax.tree.map(
        lambda x, y: jnp.abs(x - y).max(), state.learner.params, after.learner.params
    )
    assert all(np.isfinite(v) for k, v in metrics.items() if not k.startswith("episode"))
    assert all(v > 0 for v in jax.tree.leaves(moved["actor"]["memory"]["recurrent"]))


@pytest.mark.slow
def test_agents_side_by_side_are_those_one_by_one():
    made = config.make(
        preset="none",
        env="CartPolePositions-v1",
        memory="lstm",
        memory_size=8,
        num_envs=4,
        num_steps=16,
        total_timesteps=192,
    )
    train = make_train(made)
    keys = jax.random.split(KEY, 2)
    together = jax.jit(jax.vmap(train))(keys)[0].learner.params
    alone = jax.jit(train)(keys[1])[0].learner.params
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x[1], y, rtol=1e-4, atol=1e-5), together, alone
    )


def test_an_evaluation_remembers():
    """At the end of each episode, the action must equal the observation of the first step."""

    def act(params, core, obs, start):
        core = jnp.where(start, obs[:, 2], core)
        return core, Categorical(jnp.stack([-core, core], axis=-1)), jnp.zeros(start.shape)

    policy = Policy(None, jnp.zeros, act, None)
    env = envs.make("MemoryChain-bsuite")
    result = evaluate(KEY, {}, rollout.Moments(), env=env, policy=policy, episodes=16)
    assert result.finished.all()
    np.testing.assert_array_equal(result.episode_return, 1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"memory": "gruu"}, "one of none, gru, lstm, mingru, gtrxl"),
        ({"memory": "gru", "num_envs": 6}, "num_envs = 6, whose steps .* into 4 minibatches"),
        ({"memory": "gru", "algorithm": "actor_critic"}, "actor_critic is a Q-function"),
        ({"memory": "gru", "memory_size": 0}, "memory_size is 0"),
    ],
)
def test_what_cannot_work_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        config.make(preset="none", **values)


def test_the_inputs_of_a_policy_with_memory_are_documented_by_their_shapes():
    policy, params, state, collect = counting()
    _, trajectory = collect(KEY, params, state)
    inputs = trajectory.obs
    assert isinstance(inputs, SequenceInputs)
    assert inputs.obs.shape[:2] == inputs.start.shape == (STEPS, ENVS)
    assert all(x.shape[:2] == (1, ENVS) for x in jax.tree.leaves(inputs.core))
    assert policy.value is None
