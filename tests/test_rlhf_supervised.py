"""Supervised training: length buckets, passes over the data, weight decay and validation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.rlhf import buckets, supervised
from ppo_jax.types import Batch


def rows_of(lengths, width=None):
    """Rows [N, L] of the given lengths, whose tokens are the number of the row."""
    lengths = np.asarray(lengths)
    mask = np.arange(width or lengths.max()) < lengths[:, None]
    tokens = np.where(mask, np.arange(len(lengths))[:, None], -1)
    return supervised.text_rows(tokens, mask, mask)


def numbers(rows):
    """The numbers of the rows in a bucket."""
    return np.asarray(rows.obs["tokens"])[:, 0].tolist()


def test_short_rows_are_not_padded_to_the_longest():
    lengths = [3] * 50 + [60] * 10 + [500] * 4
    found = buckets.bucketed(rows_of(lengths), 4, least=4)
    assert [x.obs["tokens"].shape for x in found] == [(50, 8), (10, 64), (4, 500)]
    assert [x.weight.shape[1] for x in found] == [7, 63, 499]
    assert sorted(x for part in found for x in numbers(part)) == list(range(64))
    counted = buckets.padding(rows_of(lengths), 4, 4)
    assert counted.text == sum(lengths)
    assert (counted.padded, counted.longest) == (50 * 8 + 10 * 64 + 4 * 500, 64 * 500)
    assert "64 rows in 3 length buckets (8, 64, 500 tokens)" in str(counted)


@pytest.mark.parametrize("seed", range(3))
def test_the_buckets_are_the_best_ones(seed):
    """Against all partitions into at most three buckets."""
    generator = np.random.default_rng(seed)
    lengths = np.minimum(80, generator.geometric(0.05, 40))
    sizes = np.unique(8 * -(-lengths // 8))
    least = 6

    def cost(limits):
        place = np.searchsorted(limits, lengths)
        counts = np.bincount(place, minlength=len(limits))
        return np.dot(limits, counts) if (counts >= least).all() else np.inf

    two = min(cost([a, sizes[-1]]) for a in sizes[:-1])
    three = min(cost([a, b, sizes[-1]]) for a in sizes for b in sizes if a < b < sizes[-1])
    found = cost(buckets.widths(lengths, 3, least))
    assert found == (three if three <= 0.95 * two else two)
    assert buckets.widths(lengths, 1, least) == [sizes[-1]]
    assert len(buckets.widths(lengths, 3, 30)) == 1  # two buckets have too few rows


def test_every_row_is_used_equally_often():
    rows = rows_of([3] * 12 + [40] * 6)
    config = supervised.Config(batch_size=3, updates=12, learning_rate=1.0)
    parts = buckets.bucketed(rows, 4, 3)
    assert len(parts) == 2

    def loss(params, batch):
        used = jnp.zeros(18).at[batch.obs["tokens"][:, 0]].add(1.0)
        return jnp.sum(params["w"]), {"used": used, "width": batch.obs["tokens"].shape[1]}

    step = jax.jit(supervised.make_step(loss, config))
    state = supervised.init(jax.random.key(0), {"w": jnp.ones(2)}, config, len(parts))
    used, widths = np.zeros(18), []
    for _ in range(12):
        state, metrics, _ = step(state, {"rows": parts})
        used += metrics["used"]
        widths.append(int(metrics["width"]))
    np.testing.assert_array_equal(used, 2)  # 36 rows are two passes over 18
    assert (widths.count(8), widths.count(40)) == (8, 4)
    assert set(widths[:3]) == {8, 40}  # the buckets alternate


def test_validation_is_a_mean_over_tokens():
    lengths = np.where(np.arange(300) < 250, 20, 3)
    rows = rows_of(lengths)
    shapes = set()

    def loss(params, batch):
        """1 for every token of a long row, 5 for every token of a short one."""
        shapes.add(batch.obs["tokens"].shape)
        value = jnp.where(jnp.sum(batch.weight, axis=1) > 10, 1.0, 5.0)[:, None] * batch.weight
        found = jnp.sum(value) / jnp.sum(batch.weight)
        return found, {"loss": found}

    found = supervised.validate(loss, {}, rows, size=50)["loss"]
    tokens = lengths - 1  # the first token is not predicted
    np.testing.assert_allclose(found, np.dot(tokens, np.where(lengths > 10, 1, 5)) / tokens.sum())
    assert shapes == {(50, 8), (50, 20)}


def test_passes_over_the_data():
    config = supervised.Config(updates=7, batch_size=10)
    assert supervised.updates_of(config, 1000) == 7
    for epochs, updates in ((1.0, 100), (2.5, 250), (0.001, 1)):
        wanted = supervised.Config(epochs=epochs, batch_size=10)
        assert supervised.updates_of(wanted, 1000) == updates


def test_weight_decay_is_that_of_adamw():
    params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 3.0)}
    config = supervised.Config(weight_decay=0.1, learning_rate=0.5, batch_size=1, updates=4)
    flat = lambda params, batch: (0.0 * jnp.sum(params["kernel"]), {})
    state = supervised.init(jax.random.key(0), params, config)
    step = jax.jit(supervised.make_step(flat, config))
    state, _, _ = step(state, {"rows": rows_of([3])})
    np.testing.assert_allclose(state.learner.params["kernel"], 3.0 * (1 - 0.5 * 0.1), rtol=1e-6)
    np.testing.assert_allclose(state.learner.params["bias"], 3.0)


def test_one_bucket_leaves_rows_as_they_are():
    rows = rows_of([3, 5], width=9)
    assert isinstance(buckets.bucketed(rows, 4, 1), Batch)
    assert buckets.bucketed(rows, 4, 1).obs["tokens"].shape == (2, 9)
