"""Computations that differ on accelerators have the same results as on CPUs, and a compiled chunk
neither copies its state nor communicates with the host."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import kernels
from ppo_jax import backend, envs, guard, losses, packed, sgd
from ppo_jax import config as configs
from ppo_jax.runs.chunk import compile_chunk
from ppo_jax.train import build
from ppo_jax.types import Batch
from probe_envs import Probe

ENVS, STEPS = 6, 9


@pytest.fixture(params=[False, True], ids=["cpu", "accelerator"])
def either(request, monkeypatch):
    monkeypatch.setattr(backend, "launch_bound", lambda: request.param)
    return request.param


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.setattr(backend, "launch_bound", lambda: True)


def test_a_cpu_is_none():
    assert jax.default_backend() == "cpu" and not backend.launch_bound()


# --- arrays packed into one -----------------------------------------------------------------------


def same_bits(x, y):
    assert x.dtype == y.dtype and x.shape == y.shape
    np.testing.assert_array_equal(np.asarray(x).tobytes(), np.asarray(y).tobytes())


TREE = {
    "f": jnp.array([1.5, -0.0, jnp.nan, jnp.inf]),
    "g": jnp.array([1e-42, 3.0, -jnp.inf, 2.0]),
    "i": jnp.array([0, -1, 2**31 - 1, -(2**31)], jnp.int32),
    "u": jnp.array([0, 1, 2**32 - 1, 7], jnp.uint32),
    "b": jnp.array([True, False, True, False]),
    "half": jnp.arange(4, dtype=jnp.bfloat16),
    "alone": jnp.arange(8.0).reshape(4, 2),
    "numbers": (jnp.float32(3), jnp.int32(-3)),
    "python": (1.0, 2),
    "none": (),
}


def test_packed_arrays_come_back_bit_for_bit():
    whole = packed.pack(TREE)
    assert len(whole.arrays) == 4 < len(jax.tree.leaves(TREE))
    assert sorted(x.shape for x in whole.arrays) == [(4,), (4,), (4, 2), (5, 4)]
    jax.tree.map(same_bits, packed.unpack(whole), jax.tree.map(jnp.asarray, TREE))


def test_a_loop_keeps_packed_rows():
    """With the axis in front, and with an additional axis for parallel agents."""

    def run(tree):
        def body(k, _):
            return k + 1, packed.pack(jax.tree.map(lambda x: x + k.astype(x.dtype), tree))

        return packed.unpack(jax.lax.scan(body, jnp.int32(0), None, length=3)[1])

    tree = {"f": jnp.arange(4.0), "i": jnp.arange(4), "x": jnp.ones((2, 2)), "y": jnp.ones((2, 2))}
    found = jax.vmap(run)(jax.tree.map(lambda x: jnp.stack([x, 2 * x]), tree))
    for k in range(3):
        for agent in (1, 2):
            one = jax.tree.map(lambda x, k=k, agent=agent: x[agent - 1, k], found)
            jax.tree.map(
                np.testing.assert_array_equal,
                one,
                jax.tree.map(lambda x, k=k, agent=agent: agent * x + k, tree),
            )


# --- a part of the pool for each environment ------------------------------------------------------


class Ticket(Probe):
    """Every reset draws a unique number; episodes last 3 to 6 steps, depending on the number."""

    def reset(self, key, params):
        number = jax.random.bits(key, (), jnp.uint32) >> 8
        return number.astype(jnp.float32)[None], (number, jnp.int32(0))

    def step(self, key, state, action, params):
        number, time = state[0], state[1] + 1
        ends = time >= 3 + (number % 4).astype(jnp.int32)
        obs = number.astype(jnp.float32)[None]
        return obs, (number, time), jnp.float32(1), ends, jnp.array(False), {}


def play(vector, key, rollouts=12):
    """Observations of reset and steps, episode ends and used resets, [rollouts, ...]; the pools."""

    def step(carry, _):
        obs, state, _, ended, _, _ = vector.step(key, carry[1], jnp.zeros(ENVS, int))
        return (obs, state), (obs[..., 0], ended)

    def rollout(carry, key):
        pool = carry[1].pool[0][..., 0]
        begun = (carry[0], vector.begin(carry[1]))
        (obs, state), rows = jax.lax.scan(step, begun, None, length=STEPS)
        state, metrics = vector.refresh(key, state)
        return (obs, state), (*rows, metrics["reused_resets"], pool)

    first = vector.reset(key)
    return first[0][..., 0], jax.lax.scan(rollout, first, jax.random.split(key, rollouts))[1]


def test_every_reset_is_used_once_whoever_counts(either):
    vector = envs.vectorize(Ticket(shortest_episode=3), ENVS, STEPS)
    assert not vector.shared and vector.pool_size == 3 * ENVS
    first, (after, ended, reused, pools) = jax.jit(lambda k: play(vector, k))(jax.random.key(0))
    after, ended = np.asarray(after), np.asarray(ended)
    started = np.concatenate([np.asarray(first), after[ended]])
    assert len(started) > 100 and len(np.unique(started)) == len(started)
    assert (np.asarray(reused) == 0).all()
    columns = np.asarray(pools).reshape(-1, 3, ENVS)
    own = [np.isin(after[r, :, n][ended[r, :, n]], columns[r, :, n]).all()
           for r in range(len(after)) for n in range(ENVS)]  # fmt: skip
    assert all(own) == either  # a shared counter gives each the next reset


def test_a_share_that_runs_out_goes_round_and_says_so(accelerator):
    """The environment reports longer episodes than it has."""
    vector = envs.vectorize(Ticket(shortest_episode=9), ENVS, STEPS)
    assert vector.pool_size == ENVS
    _, (_, ended, reused, _) = jax.jit(lambda k: play(vector, k))(jax.random.key(0))
    ends = np.asarray(ended).sum(axis=1)  # [rollouts, N]
    np.testing.assert_array_equal(reused, np.maximum(ends - 1, 0).sum(-1))
    assert reused.sum() > 0


@pytest.mark.parametrize(
    ("given", "shared"),
    [(None, False), (18, False), (24, False), (17, True), (20, True), (6, True)],
)
def test_a_pool_is_shared_out_where_nobody_may_need_more_than_a_share(given, shared):
    vector = envs.vectorize(Ticket(shortest_episode=3), ENVS, STEPS, pool_size=given)
    assert vector.shared == shared
    assert envs.vectorize(Ticket(), ENVS, STEPS).shared  # the episode length is unknown


def test_the_state_that_is_saved_is_the_same_on_every_backend(monkeypatch):
    vector = envs.vectorize(Ticket(shortest_episode=3), ENVS, STEPS)

    def after_a_rollout():
        obs, state = vector.reset(jax.random.key(0))
        state = vector.step(jax.random.key(1), vector.begin(state), jnp.zeros(ENVS, int))[1]
        return vector.refresh(jax.random.key(2), state)

    here = jax.eval_shape(after_a_rollout)
    monkeypatch.setattr(backend, "launch_bound", lambda: True)
    assert jax.eval_shape(after_a_rollout) == here
    assert vector.begin(vector.reset(jax.random.key(0))[1]).taken.shape == (ENVS,)


# --- means, weights, and whole updates ------------------------------------------------------------


def test_means_together_are_the_means_alone(either):
    keys = jax.random.split(jax.random.key(0), 3)
    weight = jnp.array([1.0, 0.0, 2.0, 1.0])
    x, y = jax.random.normal(keys[0], (4,)), jax.random.normal(keys[1], (4,)).at[1].set(jnp.nan)
    for w in (None, weight):
        y = y if w is not None else x + 1
        found = losses.means(w, x=x, y=y, flag=x > 0)
        for name, value in {"x": x, "y": y, "flag": x > 0}.items():
            np.testing.assert_allclose(found[name], losses.mean(value, w), rtol=1e-6)
    gradient = jax.grad(lambda x: losses.means(weight, x=x, y=2 * x)["y"])(x)
    np.testing.assert_allclose(gradient, 2 * weight / 4, rtol=1e-6)
    with pytest.raises(ValueError, match="means: arrays must have the same shape"):
        losses.means(None, x=x, y=x[:2])


@pytest.mark.parametrize("weights", [[1.0] * 8, [2.0] * 8, [1, 1, 0, 1, 2, 1, 1, 0.5]])
def test_minibatches_have_their_weights(accelerator, weights):
    """Also if the weights are a constant that is not 1 everywhere."""
    rows = jnp.arange(8.0)
    order = jnp.array([[3, 1, 2, 0, 7, 6, 5, 4]])

    def run():
        batch = Batch(rows[:, None], rows, rows, rows, rows, rows, jnp.array(weights))
        return sgd._batch_taker(batch)(order[0, :4])

    found = jax.jit(run)()
    np.testing.assert_array_equal(found.weight, np.array(weights)[order[0, :4]])
    np.testing.assert_array_equal(found.obs[:, 0], order[0, :4])


VALUES = {"env": "CartPole-v1", "num_envs": 4, "num_steps": 8, "hidden": (8,), "reset_pool": 9}


@functools.cache
def chunk_of(launch_bound):
    """(compiled chunk, its state), for updates whose environments share a pool of resets."""
    config = configs.make(preset="none", total_timesteps=10**5, **VALUES)
    program = build(config)
    state = jax.jit(program.init)(jax.random.key(0))
    step = lambda state, *_: program.guarded_step(state)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "launch_bound", lambda: launch_bound)
        return compile_chunk(step, state, (), rows=16, may_be_nan=("episode", "explained")), state


def test_updates_are_the_same_on_every_backend():
    results = []
    for launch_bound in (False, True):
        chunk, state = chunk_of(launch_bound)
        state, metrics, outcome = chunk(jax.tree.map(jnp.copy, state), (), jnp.int32(16))
        assert outcome.made == 16
        results.append((state.learner.params, state.rollout.env_state, guard.show(metrics)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=1e-5), *results)
    assert np.isfinite(results[0][2]["loss"]).all()


@pytest.mark.parametrize("launch_bound", [False, True])
def test_a_chunk_never_talks_to_the_host(launch_bound):
    text = chunk_of(launch_bound)[0].as_text()
    assert "while(" in text
    for word in ("infeed", "outfeed", "send(", "recv(", "callback", "host_transfer=true"):
        assert word not in text, word


def test_a_chunk_that_calls_the_host_is_found():
    """The check of the previous test detects a call of the host."""
    step = lambda state, *_: (jax.pure_callback(np.sin, state, state), {"x": state})
    text = compile_chunk(step, jnp.float32(0), (), rows=2).as_text()
    assert "callback" in text


@pytest.mark.parametrize("launch_bound", [False, True])
def test_a_chunk_writes_into_the_state_it_was_given(launch_bound):
    """All arrays of the state are donated, so that none is in memory twice."""
    chunk, state = chunk_of(launch_bound)
    header = chunk.as_text().split("\n", 1)[0]
    aliased = header.split("input_output_alias={", 1)[1].split("entry_computation_layout", 1)[0]
    assert aliased.count("-alias") == len(jax.tree.leaves(state))


def test_the_guard_finds_the_same_arrays(either):
    """Small arrays are combined; large ones and those with weights are separate."""
    bad = {"a": jnp.ones(3), "b": jnp.ones((2, 2)).at[1, 0].set(jnp.nan), "c": jnp.zeros(70_000)}
    weight = jnp.array([[1.0, 0.0], [1.0, 1.0]])
    rows = jnp.array([[1.0, jnp.nan], [0.0, 2.0]])
    looked_at = [
        *guard.parts("x", bad),
        *guard.parts("large", {"a": jnp.full(70_000, 1e19), "b": jnp.float32(1e19)}),
        *guard.parts("large", {"c": jnp.full(2, 1e19)}, limit=np.inf),
        *guard.parts("rows", (rows, rows.at[1, 1].set(jnp.inf)), weight=weight),
    ]
    found = jax.jit(lambda: guard.check(looked_at).flags)()
    names = [part.name for part in looked_at]
    wrong = {name for name, flag in zip(names, found, strict=True) if flag}
    assert wrong == {"x['b']", "large['a']", "large['b']", "rows[1]"}


HLO = """HloModule jit_f, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%step (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]{0}) parameter(0)
  %x = f32[4]{0} get-tuple-element(%p), index=1
  %y = f32[4]{0} fusion(%x), kind=kLoop, calls=%sum
  %z = (f32[4]{0}, /*index=1*/s32[]) fusion(%y), kind=kInput, calls=%sum
  ROOT %t = (s32[], f32[4]{0}) tuple(%z, %y)
}

%one (p: f32[4]) -> f32[4] {
  ROOT %c = f32[4]{0} copy(%p)
}

%none (p: f32[4]) -> f32[4] {
  ROOT %b = f32[4]{0} bitcast(%p)
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %w = (s32[], f32[4]{0}) while(%p), condition=%c, body=%step, config={"known_trip_count":{"n":"3"}}
  %k = f32[4]{0} conditional(%w), branch_computations={%none, %one}
  %l = f32[4]{0} call(%k), to_apply=%one
  ROOT %r = f32[4]{0} bitcast(%l)
}
"""


def test_kernels_are_counted_as_often_as_they_run():
    total, loops = kernels.count(HLO)
    assert loops == [kernels.Loop(3, 2)]
    assert total == (1 + 3 * 2) + (1 + 1) + 1


def test_the_operations_of_a_compiled_program_are_found():
    """The number of operations in a program, for the text format of this XLA version."""
    chunk, _ = chunk_of(True)
    total, loops = kernels.count(chunk.as_text())
    assert total > 100 and {loop.trips for loop in loops} >= {1, 2, 16}
