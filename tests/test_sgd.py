"""The optimiser: agreement with optax, valid permutations, and exact gradient accumulation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ppo_jax import losses, sgd
from ppo_jax.types import Batch, LearnerState
from reference import assert_close


def quadratic(params, rows):
    error = losses.mean(jnp.square(rows.obs @ params["w"] - rows.target), rows.weight)
    return error, {"error": error}


def problem(weight=None):
    key = jax.random.key(0)
    obs = jax.random.normal(key, (24, 3))
    weight = jnp.ones(24) if weight is None else weight
    zeros = jnp.zeros(24)
    return {"w": jnp.ones(3)}, Batch(obs, zeros, zeros, zeros, zeros, obs[:, 0], weight)


def learner_for(params, optimizer):
    return LearnerState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


@pytest.mark.parametrize("bound", [0.01, 100.0, np.inf])
def test_the_optimizer_is_clipping_and_adam(bound):
    params, rows = problem()
    clip = optax.clip_by_global_norm(bound) if np.isfinite(bound) else optax.identity()
    theirs = learner_for(params, reference := optax.chain(clip, optax.adam(0.1, eps=1e-5)))
    ours = learner_for(params, optimizer := sgd.make_optimizer(bound, learning_rate=0.1))
    for _ in range(5):
        theirs, _ = sgd.sgd_step(theirs, rows, quadratic, reference)
        ours, metrics = sgd.sgd_step(ours, rows, quadratic, optimizer)
    assert_close(ours.params, theirs.params, rtol=1e-4, atol=1e-6)
    assert int(ours.step) == 5 and metrics["grad_norm"] > 0


def test_shuffles_are_independent_permutations():
    order = sgd.shuffles(jax.random.key(0), 1000, 4)
    assert order.shape == (4, 1000)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(1000), (4, 1)))
    assert np.abs(np.corrcoef(order)[np.triu_indices(4, 1)]).max() < 0.15


def test_the_order_is_that_of_sorted_random_keys():
    """Packed into one 64-bit operand for speed; the order of ties is unchanged."""
    key = jax.random.key(3)
    bits = jax.random.bits(key, (3, 777), jnp.uint32)
    index = jnp.broadcast_to(jnp.arange(777, dtype=jnp.int32), bits.shape)
    order = sgd.shuffles(key, 777, 3)
    assert order.dtype == jnp.int32
    np.testing.assert_array_equal(order, jax.lax.sort((bits, index), num_keys=1)[1])


def test_every_place_is_equally_likely():
    orders = jax.vmap(lambda k: sgd.shuffles(k, 5, 1)[0])(
        jax.random.split(jax.random.key(1), 20_000)
    )
    share = np.stack([(np.asarray(orders) == i).mean(0) for i in range(5)])
    assert np.abs(share - 0.2).max() < 5 * np.sqrt(0.2 * 0.8 / 20_000)


def test_epochs_are_steps_in_the_given_order():
    params, rows = problem()
    optimizer = sgd.make_optimizer(learning_rate=0.05)
    order = sgd.shuffles(jax.random.key(0), 24, 2)
    whole, metrics = sgd.sgd_epochs(
        learner_for(params, optimizer), rows, quadratic, optimizer, order=order, minibatches=3
    )
    by_hand, errors = learner_for(params, optimizer), []
    for epoch in order:
        for part in epoch.reshape(3, 8):
            minibatch = jax.tree.map(lambda x, part=part: x[part], rows)
            by_hand, step_metrics = sgd.sgd_step(by_hand, minibatch, quadratic, optimizer)
            errors.append(step_metrics["error"])
    assert_close(whole.params, by_hand.params, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(metrics["error"], np.mean(errors), rtol=1e-5)


def test_minibatches_are_the_rows_bit_for_bit():
    """Narrow leaves are combined in one matrix, the others are separate; results do not change."""
    odd = np.array([0x7FC00123, 0x80000000, 1, 0xFF800000, 0x3F800000, 0x00800001], np.uint32)
    keys = jax.random.split(jax.random.key(0), 4)
    rows = {
        "bits": odd.view(np.float32),  # a NaN with payload, -0, the smallest number, -inf
        "scalar": jnp.arange(6.0)[:, None],
        "action": jnp.array([-1, 2, 2**31 - 1, 0, -(2**31), 5], jnp.int32),
        "mask": jax.random.bernoulli(keys[0], shape=(6, 3)),
        "half": jax.random.normal(keys[1], (6, 2), jnp.bfloat16),
        "deep": jax.random.normal(keys[2], (6, 2, 4, 4)),
        "image": jax.random.normal(keys[3], (6, 5, 7)),
        "pixels": jnp.arange(6 * 9, dtype=jnp.uint8).reshape(6, 3, 3),
        "nothing": jnp.zeros((6, 0)),
    }
    index = jnp.array([4, 1, 0, 5])
    taken = jax.jit(lambda rows: sgd.row_taker(rows)(index))(rows)
    wanted = jax.tree.map(lambda x: np.asarray(x)[index], rows)
    bits = lambda x: np.ascontiguousarray(x).view(np.uint8).tolist() if x.size else []
    for name, x in wanted.items():
        assert taken[name].dtype == x.dtype and taken[name].shape == x.shape, name
        assert bits(np.asarray(taken[name])) == bits(x), name


def test_minibatches_have_a_gradient_by_the_rows():
    """Gradients with respect to the samples of a batch exist for all kinds of leaves."""
    rows = {"narrow": jnp.arange(1.0, 5.0), "wide": jnp.ones((4, 40)), "action": jnp.arange(4)}
    index = jnp.array([3, 1])

    def squares(floats):
        taken = sgd.row_taker(rows | floats)(index)
        return jnp.sum(jnp.square(taken["narrow"])) + jnp.sum(taken["wide"])

    found = jax.grad(squares)({name: rows[name] for name in ("narrow", "wide")})
    np.testing.assert_array_equal(found["narrow"], [0.0, 4.0, 0.0, 8.0])
    np.testing.assert_array_equal(found["wide"][:, 0], [0.0, 1.0, 0.0, 1.0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_vector_takes_the_steps_of_many_arrays(dtype):
    """Within an epoch, all parameters are one vector, unless their types differ; same results."""
    _, rows = problem()
    params = {"w": jnp.arange(3.0), "deep": {"b": jnp.ones((2, 2)), "c": jnp.ones((), dtype)}}

    def loss_fn(params, rows):
        error = rows.obs @ params["w"] + jnp.sum(params["deep"]["b"]) - rows.target
        loss = losses.mean(jnp.square(error)) * (1 + params["deep"]["c"].astype(jnp.float32) ** 2)
        return loss, {"error": loss}

    optimizer = sgd.make_optimizer(0.5, learning_rate=0.1)
    order = sgd.shuffles(jax.random.key(0), 24, 2)
    start = learner_for(params, optimizer)
    ours, metrics = sgd.sgd_epochs(start, rows, loss_fn, optimizer, order=order, minibatches=4)
    theirs, steps = start, []
    for index in order.reshape(8, 6):
        minibatch = jax.tree.map(lambda x, index=index: x[index], rows)
        theirs, step = sgd.sgd_step(theirs, minibatch, loss_fn, optimizer)
        steps.append(step)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    assert [x.dtype for x in jax.tree.leaves(ours)] == [x.dtype for x in jax.tree.leaves(theirs)]
    assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    mean = jax.tree.map(lambda *x: np.mean(x), *steps)
    assert_close(metrics, mean, rtol=1e-4, atol=1e-5)


def test_a_stop_skips_all_that_follows_and_is_left_out_of_the_metrics():
    params, rows = problem()
    optimizer = sgd.make_optimizer(learning_rate=0.05)
    order = jnp.tile(jnp.arange(24), (10, 1))
    errors, learner = [], learner_for(params, optimizer)
    for _ in range(10):
        learner, metrics = sgd.sgd_step(learner, rows, quadratic, optimizer)
        errors.append(float(metrics["error"]))
    limit = (errors[3] + errors[4]) / 2  # reached at the fifth step
    stopped, metrics = sgd.sgd_epochs(
        learner_for(params, optimizer),
        rows,
        quadratic,
        optimizer,
        order=order,
        minibatches=1,
        stop=lambda m: m["error"] < limit,
    )
    assert int(stopped.step) == 4
    np.testing.assert_allclose(metrics["error"], np.mean(errors[:4]), rtol=1e-5)


def test_a_stop_is_for_good():
    """The third of six minibatches requests a stop, later ones would not."""
    params, rows = problem()
    optimizer = sgd.make_optimizer(learning_rate=0.05)
    marked = rows.replace(extra=jnp.arange(24) // 4 == 2)

    def loss_fn(params, rows):
        error, metrics = quadratic(params, rows)
        return error, metrics | {"marked": jnp.mean(rows.extra)}

    stopped, _ = sgd.sgd_epochs(
        learner_for(params, optimizer),
        marked,
        loss_fn,
        optimizer,
        order=jnp.arange(24)[None],
        minibatches=6,
        stop=lambda m: m["marked"] > 0,
    )
    assert int(stopped.step) == 2
    by_hand = learner_for(params, optimizer)
    for part in (slice(0, 4), slice(4, 8)):
        minibatch = jax.tree.map(lambda x, part=part: x[part], marked)
        by_hand, _ = sgd.sgd_step(by_hand, minibatch, loss_fn, optimizer)
    assert_close(stopped.params, by_hand.params, rtol=1e-5, atol=1e-7)


def test_a_stop_works_under_vmap():
    params, rows = problem()
    optimizer = sgd.make_optimizer(learning_rate=0.05)

    def run(limit):
        return sgd.sgd_epochs(
            learner_for(params, optimizer),
            rows,
            quadratic,
            optimizer,
            order=jnp.tile(jnp.arange(24), (6, 1)),
            minibatches=2,
            stop=lambda m: m["error"] < limit,
        )[0]

    limits = jnp.array([0.0, 1.0, 1.5])
    together = jax.vmap(run)(limits)
    for i, limit in enumerate(limits):
        alone = run(limit)
        assert int(alone.step) == int(together.step[i])
        np.testing.assert_allclose(together.params["w"][i], alone.params["w"], rtol=1e-5)


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_accumulated_gradients_are_those_of_the_whole(micro_batches):
    weight = jnp.asarray(np.random.default_rng(0).random(24) < 0.7, jnp.float32)
    params, rows = problem(weight)
    optimizer = sgd.make_optimizer(learning_rate=0.05)
    learner = learner_for(params, optimizer)
    whole, expected = sgd.sgd_step(learner, rows, quadratic, optimizer)
    parts, found = sgd.sgd_step(learner, rows, quadratic, optimizer, micro_batches=micro_batches)
    assert_close(parts.params, whole.params, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found["error"], expected["error"], rtol=1e-5)
    np.testing.assert_allclose(found["grad_norm"], expected["grad_norm"], rtol=1e-5)


def test_reduce_sees_gradient_and_metrics():
    params, rows = problem()
    optimizer = optax.sgd(1.0)
    learner = learner_for(params, optimizer)
    doubled, metrics = sgd.sgd_step(
        learner, rows, quadratic, optimizer, reduce=lambda t: jax.tree.map(lambda x: 2 * x, t)
    )
    plain, expected = sgd.sgd_step(learner, rows, quadratic, optimizer)
    np.testing.assert_allclose(doubled.params["w"] - 1, 2 * (plain.params["w"] - 1), rtol=1e-5)
    np.testing.assert_allclose(metrics["error"], 2 * expected["error"])
    np.testing.assert_allclose(metrics["grad_norm"], 2 * expected["grad_norm"], rtol=1e-6)


def test_ragged_minibatches_are_refused():
    params, rows = problem()
    optimizer = sgd.make_optimizer()
    with pytest.raises(ValueError, match="24 rows do not divide into 5"):
        sgd.sgd_epochs(
            learner_for(params, optimizer),
            rows,
            quadratic,
            optimizer,
            order=jnp.tile(jnp.arange(24), (1, 1)),
            minibatches=5,
        )


@pytest.mark.parametrize("answer", [True, np.bool_(True), jnp.float32(1)], ids=["bool", "np", "f"])
def test_a_stop_before_the_first_step_changes_nothing_and_says_why(answer):
    params, rows = problem()
    optimizer = sgd.make_optimizer()
    learner, metrics = sgd.sgd_epochs(
        learner_for(params, optimizer),
        rows,
        quadratic,
        optimizer,
        order=jnp.arange(24)[None],
        minibatches=2,
        stop=lambda m: answer,
    )
    assert int(learner.step) == 0
    np.testing.assert_array_equal(learner.params["w"], params["w"])
    first = quadratic(params, jax.tree.map(lambda x: x[:12], rows))[0]
    np.testing.assert_allclose(metrics["error"], first, rtol=1e-6)


def test_an_order_of_other_rows_is_refused():
    params, rows = problem()
    optimizer = sgd.make_optimizer()
    with pytest.raises(ValueError, match=r"the order \(1, 12\) is one of 12 rows"):
        sgd.sgd_epochs(
            learner_for(params, optimizer),
            rows,
            quadratic,
            optimizer,
            order=jnp.arange(12)[None],
            minibatches=2,
        )
