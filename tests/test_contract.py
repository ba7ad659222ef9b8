"""Properties of every registered algorithm, each on a discrete and a continuous task."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import config as configs
from ppo_jax import guard, rollout
from ppo_jax.algorithms import ALGORITHMS, hooks
from ppo_jax.envs import make
from ppo_jax.experiment import MAY_BE_NAN, step_of
from ppo_jax.runs.checkpoint import Checkpoints
from ppo_jax.runs.chunk import make_chunk
from ppo_jax.train import build, make_train
from ppo_jax.types import Algorithm, LearnerState, TrainState

ENVIRONMENTS = ["CartPole-v1", "Pendulum-v1"]
CASES = [(name, env) for name in ALGORITHMS for env in ENVIRONMENTS]
contract = pytest.mark.parametrize(("algorithm", "env"), CASES)
# Tests that compile many programs and do not depend on the kind of action.
on_one = pytest.mark.parametrize(
    ("algorithm", "env"), [(name, "CartPole-v1") for name in ALGORITHMS]
)
UPDATES = 6
# Compiled as runs are; the options of conftest.py may round a sum differently in two programs.
AS_RUN = {"xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": True}


def steps_of(algorithm: str, env: str) -> int:
    """A short rollout, or for REINFORCE one that includes whole episodes."""
    return make(env).time_limit if "time_limit" in configs.fields(algorithm) else 32


def small(algorithm: str, env: str, updates: int = UPDATES, **changes):
    num_steps = steps_of(algorithm, env)
    return configs.make(
        preset="none",
        env=env,
        algorithm=algorithm,
        num_envs=4,
        num_steps=num_steps,
        total_timesteps=updates * 4 * num_steps,
        normalize_obs=True,
        normalize_reward=True,
        hidden=(16,),
        **changes,
    )


def raw(tree):
    """Replace typed PRNG keys by integers, so that trees can be compared by value."""
    return jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        tree,
    )


def assert_equal(a, b):
    chex.assert_trees_all_equal(raw(a), raw(b))


@functools.cache
def trained(algorithm: str, env: str):
    """A whole run in one call: (state, metrics)."""
    return jax.jit(make_train(small(algorithm, env)))(jax.random.key(3))


@functools.cache
def stepping(algorithm: str, env: str):
    """(program, init, step), compiled once for all tests; step must not be traced twice.

    The first state is committed to its device, as a restored one is; otherwise the step would be
    compiled again.
    """
    program = build(small(algorithm, env))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    init = jax.jit(program.init, out_shardings=here)
    return program, init, jax.jit(traced_once(program.step))


def traced_once(function):
    """chex.assert_max_traces counts all steps as one function, because they share a source line."""
    traces = []

    def counted(*args):
        traces.append(args)
        assert len(traces) == 1, "traced again, with other types or constants"
        return function(*args)

    return counted


@functools.cache
def stepped(algorithm: str, env: str):
    """The same result as `trained`, computed update by update."""
    _, init, step = stepping(algorithm, env)
    state, rows = init(jax.random.key(3)), []
    for _ in range(UPDATES):
        state, metrics = step(state)
        rows.append(metrics)
    return state, jax.tree.map(lambda *x: np.stack(x), *rows)


@contract
def test_modules_export_config_and_make(algorithm, env):
    module = ALGORITHMS[algorithm]
    assert dataclasses.is_dataclass(module.Config) and module.__doc__
    for field in dataclasses.fields(module.Config):
        assert {"doc", "bounds"} <= field.metadata.keys(), field.name
    assert isinstance(build(small(algorithm, env)).algorithm, Algorithm)


@contract
def test_a_run_is_finite_and_changes_everything(algorithm, env):
    if env == "CartPole-v1":  # other tests need its step as well
        state, metrics = stepped(algorithm, env)
        start = stepping(algorithm, env)[1](jax.random.key(3))
    else:
        state, metrics = trained(algorithm, env)
        start = jax.jit(build(small(algorithm, env)).init)(jax.random.key(3))
    assert isinstance(state, TrainState) and isinstance(state.learner, LearnerState)
    assert state.update == UPDATES and state.learner.step > 0
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), state.learner.params, start.learner.params
    )
    assert all(jax.tree.leaves(moved))
    for name, value in metrics.items():
        assert value.shape == (UPDATES,), name
        if not name.startswith("episode_"):
            assert np.isfinite(value).all(), name
    assert metrics["reused_resets"].sum() == 0
    left = 1 - np.arange(UPDATES) / UPDATES  # learning-rate factor over the whole run
    rate = small(algorithm, env).hyper.learning_rate
    np.testing.assert_allclose(metrics["learning_rate"], rate * left, rtol=1e-5)


@contract
def test_init_and_step_keep_structure_shapes_and_dtypes(algorithm, env):
    program = build(small(algorithm, env))
    before = jax.eval_shape(program.init, jax.random.key(0))
    after = jax.eval_shape(program.step, before)[0]
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)


@on_one
def test_the_same_key_gives_the_same_run(algorithm, env):
    assert_equal(stepped.__wrapped__(algorithm, env), stepped(algorithm, env))


@on_one
@pytest.mark.slow
def test_vmap_map_and_traced_floats_are_the_loop(algorithm, env):
    """Vectorised over keys and learning rates in one trace, with the results of constant values.

    Each width is a different program, so that results agree up to rounding in the first updates.
    """
    config = small(algorithm, env, updates=2)
    chex.clear_trace_counter()

    def train(key, rate):
        hyper = dataclasses.replace(config.hyper, learning_rate=rate)
        return make_train(dataclasses.replace(config, hyper=hyper))(key)

    keys, rates = jax.random.split(jax.random.key(1), 3), jnp.array([1e-3, 3e-3, 2e-4])
    alone = jax.jit(chex.assert_max_traces(n=1)(train))
    together = jax.jit(jax.vmap(train))(keys, rates)
    in_turn = jax.jit(lambda *x: jax.lax.map(lambda y: train(*y), x))(keys[:2], rates[:2])
    for i in range(3):
        one, one_metrics = alone(keys[i], rates[i])
        for (many, metrics), atol in ((together, 2e-4), (in_turn, 1e-5)):
            if i < len(metrics["episodes"]):
                params = jax.tree.map(lambda x, i=i: x[i], many.learner.params)
                chex.assert_trees_all_close(params, one.learner.params, atol=atol)
                np.testing.assert_array_equal(metrics["episodes"][i], one_metrics["episodes"])
    constant = jax.jit(functools.partial(train, rate=float(rates[1])))(keys[1])[0]
    traced = alone(keys[1], rates[1])[0]
    chex.assert_trees_all_close(constant.learner.params, traced.learner.params, atol=1e-5)


def in_chunks(algorithm: str, env: str, counts: list[tuple[int, ...]], **options):
    """The results of a run in chunks of the given numbers of updates, for each list of numbers."""
    config = configs.resolve(small(algorithm, env))
    static, floats = configs.split(config)
    program = build(config)
    init = jax.jit(program.init, **options)
    chunk = jax.jit(make_chunk(step_of(static, program.env), may_be_nan=MAY_BE_NAN), **options)
    results = []
    for chosen in counts:
        state, kept = init(jax.random.key(3)), []
        for count in chosen:
            state, metrics, outcome = chunk(state, floats, jnp.int32(count))
            assert outcome.made == count and not outcome.bad
            kept.append({name: x[:count] for name, x in guard.show(metrics).items()})
        results.append((state, jax.tree.map(lambda *x: np.concatenate(x), *kept)))
    return results


def test_chunks_of_any_length_give_the_same_run():
    """With one algorithm; the slow test below compares all with a run in one piece."""
    whole, parts = in_chunks("ppo", "CartPole-v1", [(UPDATES,), (1, 2, UPDATES - 3)])
    assert_equal(whole, parts)
    state, metrics = stepped("ppo", "CartPole-v1")
    apart = state, {k: x for k, x in metrics.items() if k != "env_step"}  # added by the log
    chex.assert_trees_all_close(raw(whole), raw(apart), atol=1e-4, rtol=1e-4)


@on_one
@pytest.mark.slow
def test_chunks_are_the_whole(algorithm, env):
    """The results do not depend on the chunks of a run, and equal those of `make_train`.

    If the floats are constants instead of arguments, XLA folds them, which may change last bits.
    """
    counts = [(UPDATES,), (1, 2, UPDATES - 3)]
    whole, parts = in_chunks(algorithm, env, counts, compiler_options=AS_RUN)
    assert_equal(whole, parts)
    static, floats = configs.split(configs.resolve(small(algorithm, env)))

    def train(floats, key):
        state, metrics = make_train(configs.merge(static, floats))(key)
        return state, {k: x for k, x in metrics.items() if k != "env_step"}  # added by the log

    in_one_piece = jax.jit(train, compiler_options=AS_RUN)
    assert_equal(whole, in_one_piece(floats, jax.random.key(3)))
    state, metrics = trained(algorithm, env)
    apart = state, {k: x for k, x in metrics.items() if k != "env_step"}
    chex.assert_trees_all_close(raw(whole), raw(apart), atol=1e-4, rtol=1e-4)


@contract
def test_every_float_is_traced_and_every_value_shares_a_program(algorithm, env):
    config = configs.resolve(small(algorithm, env))
    static, floats = configs.split(config)
    other = {name: value * 0.9 if np.isfinite(value) else value for name, value in floats.items()}
    assert hash(static) == hash(configs.split(configs.merge(static, other))[0])
    assert configs.merge(static, floats) == config
    assert {"learning_rate", "gamma"} <= floats.keys()
    assert "num_envs" not in floats


@on_one
def test_one_trace_per_function(algorithm, env):
    """Repeated steps are traced once, because init and step agree in all types.

    The same holds for all other tests of this file, which share one step.
    """
    _, init, step = stepping(algorithm, env)
    state = init(jax.random.key(0))
    for _ in range(3):
        state, _ = step(state)


@on_one
def test_the_ratio_is_one_on_the_first_minibatch(algorithm, env):
    """The policy's outputs for the stored inputs are those with which it acted."""
    program, init, step = stepping(algorithm, env)
    state = init(jax.random.key(0))
    collect = functools.partial(
        rollout.collect, env=program.vector_env, policy=program.policy, num_steps=16, gamma=0.99
    )
    collect = jax.jit(collect)
    for _ in range(2):  # the second rollout acts on normalised observations
        params = state.learner.params
        _, trajectory = collect(state.key, params, state.rollout)
        log_prob = program.policy.apply(params, trajectory.obs)[0].log_prob(trajectory.action)
        np.testing.assert_allclose(jnp.exp(log_prob - trajectory.log_prob), 1.0, atol=1e-5)
        state, _ = step(state)


@on_one
def test_a_checkpoint_holds_all_of_it(algorithm, env, tmp_path):
    """A state that is saved and restored continues exactly like the one in memory."""
    program, init, step = stepping(algorithm, env)
    state, _ = step(init(jax.random.key(3)))
    checkpoints = Checkpoints(tmp_path / "checkpoints", {"algorithm": algorithm})
    checkpoints.save(1, state)
    shapes = jax.eval_shape(program.init, jax.random.key(0))
    restored = checkpoints.restore(shapes)[1]
    assert_equal(step(restored), step(state))


@on_one
def test_rows_of_weight_zero_are_not_read(algorithm, env):
    """The update does not depend on the values in rows of weight 0."""
    program, init, _ = stepping(algorithm, env)
    state = init(jax.random.key(3))
    steps = steps_of(algorithm, env)
    collect = rollout.Collector(program.vector_env, program.policy, steps, 0.99)
    hyper = configs.resolve(small(algorithm, env), program.env).hyper
    collect = hooks.collector(hyper, collect)

    @jax.jit
    def experience(state):
        _, trajectory = collect(state.key, state.learner.params, state.rollout)
        return rollout.flatten_steps(program.algorithm.estimate(trajectory))

    batch = experience(state)
    real = jnp.arange(batch.weight.size) % 3 > 0
    batch = batch.replace(weight=batch.weight * real)

    def spoil(x):
        column = real.reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.where(column, x, jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else x)

    spoilt = jax.tree.map(spoil, batch).replace(weight=batch.weight, extra=batch.extra)
    update = jax.jit(program.algorithm.update)
    expected, metrics = update(jax.random.key(1), state.learner, batch)
    found, others = update(jax.random.key(1), state.learner, spoilt)
    assert_equal((found, others), (expected, metrics))
