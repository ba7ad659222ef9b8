"""A batch in parts equals the batch: reductions, gradients, updates, and runs on four devices."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import ppo_jax
from ppo_jax import config as configs
from ppo_jax import episodes, guard, losses, normalization, parallel
from ppo_jax.algorithms import ALGORITHMS, a2c, ppo, ppo_kl, reinforce, trpo
from ppo_jax.config import ConfigError
from ppo_jax.runs import devices
from ppo_jax.train import OF_PARTS, build, make_train
from ppo_jax.types import Batch

PARTS = 4


def in_parts(function, *batches, out=None):
    """A function of batches [M, ...], each divided into parts."""
    split = [jax.tree.map(lambda x: x.reshape(PARTS, -1, *x.shape[1:]), b) for b in batches]
    return jax.vmap(function, 0, out, axis_name=parallel.PARTS)(*split)


def numbers(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


# Parts of unequal weight, one of them with weight 0.
WEIGHT = jnp.concatenate([jnp.ones(8), jnp.zeros(8), jnp.arange(8) % 2, jnp.ones(8)])


@pytest.mark.parametrize(
    "function",
    [
        losses.mean,
        lambda x, w: losses.mean(x, w, 7.0),
        lambda x, w: losses.mean(x),
        lambda x, w: losses.explained_variance(x, x**2 + 1, w),
        lambda x, w: normalization.update(normalization.init(()), x, w),
        lambda x, w: normalization.update(normalization.init((3,)), jnp.stack([x, 2 * x, -x], 1)),
    ],
)
def test_a_reduction_is_over_all_parts(function):
    x = 3 + 2 * numbers(32)
    expected = function(x, WEIGHT)
    found = in_parts(function, x, WEIGHT)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), found, expected)


@pytest.mark.parametrize("weight", [WEIGHT, None])
def test_advantages_are_normalised_by_all_parts(weight):
    x = 3 + 2 * numbers(32)
    expected = losses.normalize(x, weight)
    if weight is None:
        found = in_parts(losses.normalize, x, out=0)
    else:
        found = in_parts(losses.normalize, x, weight, out=0)
    np.testing.assert_allclose(found.reshape(-1), expected, atol=2e-6)


def test_episodes_of_all_parts():
    finished = numbers(32) > 0.3
    totals = episodes.Episodes(finished, 10 * numbers(32, seed=1), jnp.arange(32), numbers(32))
    expected = episodes.episode_metrics(finished, totals)
    found = in_parts(episodes.episode_metrics, finished, totals)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)
    assert found["episodes"] == jnp.sum(finished)
    none = in_parts(episodes.episode_metrics, jnp.zeros(32, bool), totals)
    assert np.isnan(none["episode_return"])


def test_the_guard_sees_a_bad_number_of_any_part():
    x = jnp.ones((32, 2)).at[20, 1].set(jnp.inf)
    found = in_parts(lambda x: guard.check(guard.parts("observations", x)), x)
    assert found.bad.shape == () and found.bad


def test_a_function_that_was_compiled_elsewhere_reduces_over_the_parts():
    """JAX caches traces; with and without parts must be two programs."""
    mean = jax.jit(losses.mean)
    x = numbers(32)
    before = mean(x)
    np.testing.assert_allclose(in_parts(mean, x), jnp.mean(x), rtol=1e-6)
    assert mean(x) == before and parallel.axes() == () and parallel.size() == 1


def test_every_part_has_random_numbers_of_its_own():
    key = jax.random.key(3)
    keys = in_parts(lambda x: parallel.own_key(key), jnp.zeros(32), out=0)
    assert len({tuple(k) for k in np.asarray(jax.random.key_data(keys))}) == PARTS
    assert parallel.own_key(key) is key


def policy_and_batch(algorithm="ppo", **values):
    config = configs.make(preset="none", algorithm=algorithm, num_envs=4, num_steps=8, **values)
    program = build(config)
    obs = numbers(32, 4)
    params = program.algorithm.init(jax.random.key(0), obs).params
    dist, value = program.policy.apply(params, obs)
    action = dist.sample(jax.random.key(1))
    batch = Batch(
        obs=obs,
        action=action,
        log_prob=dist.log_prob(action) + 0.1 * numbers(32, seed=2),
        value=value,
        advantage=1 + numbers(32, seed=3),
        target=2 + numbers(32, seed=4),
        weight=WEIGHT,
    )
    return program.policy, config.hyper, params, batch


def gradient(loss_fn):
    """Gradients of one `sgd` step, before clipping and Adam, which would hide a constant factor."""
    from ppo_jax.sgd import _gradient

    return lambda params, rows: _gradient(params, rows, loss_fn)


LOSSES = {
    "ppo": lambda p, c, b: (ppo.make_loss(p, c), b),
    "a2c": lambda p, c, b: (a2c.make_loss(p, c), b),
    "ppo_kl": lambda p, c, b: (ppo_kl.make_loss(p, c, 0.7), b),
    "reinforce": lambda p, c, b: (reinforce.make_loss(p, c), b),
}


@pytest.mark.parametrize("where", ["vmap", "both"])
@pytest.mark.parametrize("name", [*LOSSES])
def test_the_gradient_is_that_of_the_whole_batch(name, where):
    more = {"time_limit": 500, "baseline": "value"} if name == "reinforce" else {}
    if name == "reinforce":
        policy, config, params, batch = policy_and_batch("ppo")
        config = reinforce.Config(**more, value_coef=0.5)
        extra = reinforce.Episodes(*(WEIGHT for _ in reinforce.Episodes._fields))
        batch = dataclasses.replace(batch, extra=extra)
    else:
        policy, config, params, batch = policy_and_batch(name)
    if name == "ppo_kl":
        old = policy.apply(jax.tree.map(lambda x: 1.1 * x, params), batch.obs)[0]
        batch = dataclasses.replace(batch, extra=old)
    loss_fn, batch = LOSSES[name](policy, config, batch)
    expected = jax.jit(gradient(loss_fn))(params, batch)
    found = mapped(where, gradient(loss_fn), params, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found[0], expected[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6), found[1], expected[1])


def mapped(where, function, params, batch):
    """A function of (params, rows) for a batch in parts: on one device, or as on several."""
    rows = jax.tree.map(lambda x: x.reshape(PARTS, -1, *x.shape[1:]), batch)
    on_parts = jax.vmap(function, (None, 0), None, axis_name=parallel.PARTS)
    if where == "vmap":
        return jax.jit(on_parts)(params, rows)
    mesh = Mesh(np.array(jax.devices()[:1]), (parallel.DEVICES,))
    whole, each = PartitionSpec(), PartitionSpec(parallel.DEVICES)
    program = jax.shard_map(
        on_parts, mesh=mesh, in_specs=(whole, each), out_specs=whole, check_vma=False
    )
    return jax.jit(program)(params, rows)


def natural_gradient(policy, config, params, batch):
    """All quantities that TRPO computes from a batch, as a function of it."""
    theta = trpo.make_problem(policy, config, params, batch).theta
    vector = numbers(theta.size, seed=7)

    def asked(params, rows):
        problem = trpo.make_problem(policy, config, params, rows)
        objective, kl = problem.evaluate(theta + 0.01 * vector)
        return problem.gradient, problem.fisher(vector), objective, kl

    return asked


def test_the_natural_gradient_is_that_of_the_whole_batch():
    policy, config, params, batch = policy_and_batch("trpo")
    asked = natural_gradient(policy, config, params, batch)
    expected = jax.jit(asked)(params, batch)
    for where in ("vmap", "both"):
        found = mapped(where, asked, params, batch)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, expected)


def test_micro_batches_count_by_the_weight_of_all_parts():
    policy, config, params, batch = policy_and_batch("ppo")
    # The first half of each part has a different fraction of its weight.
    weight = (jnp.arange(32) % 8 < jnp.repeat(jnp.array([1, 6, 3, 8]), 8)).astype(jnp.float32)
    batch = dataclasses.replace(batch, weight=weight)
    loss_fn = ppo.make_loss(policy, dataclasses.replace(config, normalize_advantage=False))
    from ppo_jax.sgd import _gradient

    expected = _gradient(params, batch, loss_fn)[0]
    found = mapped("vmap", lambda p, b: _gradient(p, b, loss_fn, micro_batches=2)[0], params, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


@pytest.mark.parametrize("name", [*reinforce.BASELINES])
def test_a_baseline_knows_the_episodes_of_all_parts(name):
    returns, value, first = numbers(5, 8), numbers(5, 8, seed=1), jnp.zeros((5, 8)).at[0].set(1.0)
    known = reinforce.Episodes(jnp.zeros((5, 8), int), first, first, jnp.ones((5, 8)))
    baseline = reinforce.BASELINES[name]

    def split(x):
        return jnp.moveaxis(x.reshape(5, PARTS, -1), 1, 0)

    found = jax.vmap(baseline, axis_name=parallel.PARTS)(
        *(jax.tree.map(split, x) for x in (returns, value, known))
    )
    np.testing.assert_allclose(
        jnp.moveaxis(found, 0, 1).reshape(5, 8), baseline(returns, value, known), atol=1e-6
    )


def small(**values):
    return configs.make(
        preset="none", num_envs=8, num_steps=8, total_timesteps=640, hidden=(8,), **values
    )


def test_a_run_in_parts():
    """The first updates of a run: horizon of the learning rate, counters and running statistics."""
    whole, parts = small(normalize_obs=True), small(normalize_obs=True, parts=4)
    (a, metrics), (b, theirs) = (jax.jit(make_train(c))(jax.random.key(0)) for c in (whole, parts))
    assert jax.tree.structure(metrics) == jax.tree.structure(theirs)
    np.testing.assert_array_equal(metrics["learning_rate"], theirs["learning_rate"])
    np.testing.assert_array_equal(metrics["env_step"], theirs["env_step"])
    assert a.rollout.moments.obs.count == b.rollout.moments.obs.count == pytest.approx(640, abs=1)
    assert b.rollout.obs.shape == (4, 2, 4) and a.rollout.obs.shape == (8, 4)
    assert 0 < theirs["episodes"].sum() < 80
    assert jax.tree.map(jnp.shape, a.learner) == jax.tree.map(jnp.shape, b.learner)


def test_environments_in_parts_begin_anew():
    program = build(small(parts=4))
    state = jax.jit(program.init)(jax.random.key(0))
    again = jax.jit(program.restart)(state)
    assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, state)
    assert len({tuple(x) for x in np.asarray(again.rollout.obs).reshape(8, 4)}) == 8
    jax.eval_shape(program.step, again)


def test_a_run_keeps_its_parts_when_it_is_resumed(tmp_path):
    """The number of parts of the run applies, although the resuming caller does not give it."""
    ppo_jax.run(small(parts=2), tmp_path / "a", eval_episodes=0)
    longer = dataclasses.replace(small(), total_timesteps=704)
    result = ppo_jax.run(longer, resume=tmp_path / "a", eval_episodes=0)
    assert result.state.rollout.obs.shape == (2, 4, 4)


def test_an_algorithm_whose_parts_would_learn_apart_is_refused(tmp_path):
    class Apart:
        Config = a2c.Config

        @staticmethod
        def make(policy, config, optimizer=None):
            made = a2c.make(policy, config, optimizer)

            def update(key, learner, batch):
                learner, metrics = made.update(key, learner, batch)
                extra = jnp.mean(batch.advantage)  # mean over this part only
                return dataclasses.replace(learner, extra=extra), metrics

            def init(key, obs):
                return dataclasses.replace(made.init(key, obs), extra=jnp.zeros(()))

            return made._replace(init=init, update=update)

    for more in ({"parts": 2}, {"parts": 4, "num_envs": 16}):
        config = dataclasses.replace(small(algorithm=Apart), **more)
        with pytest.raises(ConfigError, match="computes something from only one of . parts"):
            ppo_jax.run(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"parts": 3}, r"num_envs = 8 does not divide into 3 parts; nearest that do: \[1, 2, 4\]"),
        ({"parts": 8, "minibatches": 16}, r"num_envs / parts x num_steps = 1 x 8 = 8 does not"),
        ({"parts": 4, "memory": "gru"}, r"num_envs / parts = 2, whose steps a recurrent policy"),
        ({"parts": 0}, "parts is 0; it must be >= 1"),
    ],
)
def test_parts_that_do_not_divide_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        small(**values)


def test_devices_that_cannot_share_the_environments(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "chosen", lambda asked: 3)
    with pytest.raises(ConfigError, match="divided over 3 devices; use a multiple of 3"):
        ppo_jax.run(small(), tmp_path / "a", devices=3)
    assert not (tmp_path / "a").exists()


def test_environments_on_the_host_are_in_one_piece():
    with pytest.raises(
        ConfigError, match=r"parts is 2, but gymnasium:CartPole-v1 runs on the host"
    ):
        build(small(env="gymnasium:CartPole-v1", parts=2))


@pytest.mark.parametrize("asked", ["0", "-1", "two", "1.5", ""])
def test_a_number_of_devices_is_a_number(asked):
    with pytest.raises(ConfigError, match=r"devices is .*; it must be a number >= 1, or all"):
        devices.chosen(asked)


def test_devices_that_are_not_there():
    jax.devices()  # initialises the devices
    with pytest.raises(ConfigError, match=r"devices is 4096, but this process has"):
        devices.chosen("4096")
    assert devices.chosen("1") == 1 and devices.chosen("all") == jax.device_count()


def test_devices_share_parts_evenly():
    assert devices.share(4, 8) == 4 and devices.share(1, 8) == 1 and devices.share(8, 8) == 8
    with pytest.warns(UserWarning, match=r"into 8 parts, .* 3 devices: 2 of the devices"):
        assert devices.share(3, 8) == 2
    with pytest.warns(UserWarning, match=r"into 1 part, .*: 1 of the devices"):
        assert devices.share(4, 1) == 1


def test_one_device_has_no_layout():
    assert devices.layout(1, OF_PARTS) is None


# --- eight devices --------------------------------------------------------------------------------

# Largest difference of parameters after 20 updates of Adam, which move each by some 1e-2. Sums in
# another order round differently, and Adam divides a gradient near zero by its own size: the
# differences are about 1e-6, but for REINFORCE with its sums over 500 steps, where another machine
# had 1.0e-5. The gradients themselves must agree to 1e-6.
PARAMS_TOLERANCE = {"reinforce": 1e-4}
FOR_THE_OTHERS = 1e-5


def on_eight_devices(*arguments, seconds=600):
    program = Path(__file__).with_name("several_devices.py")
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    result = subprocess.run(
        [sys.executable, program, *map(str, arguments)],
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def largest_difference(a, b):
    return max(abs(x - y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))


@pytest.mark.slow
def test_eight_devices_compute_the_gradient_of_one():
    found = on_eight_devices("gradients")
    assert found["ppo"] < 1e-6 and found["trpo"] < 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ALGORITHMS, "gru", "large"])
def test_several_devices_learn_what_one_learns(name):
    """Each device computes its share: results would also be right if each computed everything."""
    found = on_eight_devices(name)
    one, tolerance = found.pop("1"), PARAMS_TOLERANCE.get(name, FOR_THE_OTHERS)
    for number, several in found.items():
        assert one["made"] == several["made"] > 0
        assert largest_difference(one["params"], several["params"]) < tolerance
        for metric, value in one["metrics"].items():
            assert several["metrics"][metric] == pytest.approx(value, rel=1e-3, abs=1e-5), metric
        assert several["flops"] == pytest.approx(one["flops"] / int(number), rel=0.1)
        assert {*several["rollout"]} == {int(number)}
        collectives = several["collectives"]
        assert not collectives["all-gather"] + collectives["all-to-all"]
        assert collectives["all-reduce"] > 0
        if name == "ppo":  # 5 in a gradient step and 11 in a rollout, as benchmarks.cost_model has
            assert collectives["all-reduce"] == 16
        if name == "large":  # for the others, replicated arrays dominate
            assert several["bytes"] == pytest.approx(one["bytes"] / int(number), rel=0.1)


@pytest.mark.slow
def test_a_run_goes_on_on_another_number_of_devices(tmp_path):
    found = on_eight_devices("resumed", tmp_path)
    assert found["first"] == [8, "cpu x 4", 4]
    for number in ("1", "2", "all"):
        assert found[number][0] == 20
        difference = largest_difference(found[f"{number} params"], found["whole params"])
        assert difference < 1e-6
    assert len(found["returns"]) == 4
