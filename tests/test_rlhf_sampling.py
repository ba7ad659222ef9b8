"""Sampling of tokens: frequencies, rare tokens of large vocabularies, truncated distributions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from benchmarks import sampling as benchmark
from ppo_jax.rlhf import sampling
from ppo_jax.rlhf.decoder import Decoder, small
from ppo_jax.rlhf.generate import generate, within_top_p

# 300 tokens in 10 blocks, the last of which is not full; every seventh token is impossible.
VOCABULARY, DRAWS = 300, 40_000
LOGITS = np.where(
    np.arange(VOCABULARY) % 7 == 3, -np.inf, np.random.default_rng(0).normal(0, 1.5, VOCABULARY)
).astype(np.float32)
# One token of probability 1 − 4.6e-3 before 131,071 rare ones, of 2e-8 (even) and 5e-8 (odd).
MANY = 1 << 17
RARE = np.where(np.arange(MANY) % 2, 5e-8, 2e-8)
RARE[0] = 1.0 - RARE[1:].sum()
RARE_LOGITS = jnp.asarray(np.log(RARE), jnp.float32)


@functools.partial(jax.jit, static_argnames="count")
def drawn(key, logits, count):
    """Tokens drawn with a key of their own each."""
    keys = jax.random.split(key, count)
    return jax.vmap(sampling.sample, in_axes=(0, None))(keys, logits)


def probabilities(logits):
    weight = np.exp(np.float64(logits) - np.max(logits))
    return weight / weight.sum()


def check_frequencies(tokens, probability):
    """A chi-square test of the counts; tokens with less than five expected draws are one class."""
    count = np.bincount(np.asarray(tokens), minlength=len(probability))
    assert not count[probability == 0].any()
    expected = probability * len(tokens)
    often = expected >= 5
    counts = np.append(count[often], count[~often].sum())
    expecteds = np.append(expected[often], expected[~often].sum())
    kept = expecteds > 0
    statistic = np.sum((counts - expecteds)[kept] ** 2 / expecteds[kept])
    assert statistic <= stats.chi2.isf(1e-4, max(kept.sum() - 1, 1))


def test_frequencies():
    tokens = drawn(jax.random.key(0), LOGITS, DRAWS)
    check_frequencies(tokens, probabilities(LOGITS))
    wrong = probabilities(LOGITS * 1.05)  # the test is able to fail
    with pytest.raises(AssertionError):
        check_frequencies(tokens, wrong)


@pytest.mark.parametrize("vocab_size", [1, 17])
def test_every_size_of_vocabulary(vocab_size):
    logits = jnp.linspace(0.0, 1.0, vocab_size)
    check_frequencies(drawn(jax.random.key(1), logits, 10_000), probabilities(logits))


class Unigrams(Decoder):
    """A model that gives every text the same next token distribution, its parameters."""

    def prefill(self, params, tokens, mask, length):
        return jnp.zeros((*tokens.shape, 1)), ()

    def step(self, params, cache, token):
        return jnp.zeros((len(token), 1)), ()

    def logits(self, params, hidden):
        return jnp.broadcast_to(params, (*hidden.shape[:-1], len(params)))


def truncated(logits, top_k, top_p):
    """The distribution after top-k and then top-p, in float64."""
    order = np.argsort(-logits, kind="stable")
    kept = order[: top_k or None]
    mass = np.cumsum(probabilities(logits[kept]))
    kept = kept[: np.searchsorted(mass, top_p or 1.0) + 1]
    result = np.full(len(logits), -np.inf)
    result[kept] = logits[kept]
    return probabilities(result)


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0.7, None, None), (1.5, 90, 0.8)])
def test_generated_tokens_have_the_truncated_distribution(temperature, top_k, top_p):
    program = functools.partial(
        generate,
        decoder=Unigrams(small(VOCABULARY)),
        max_new_tokens=1,
        temperature=temperature,
        eos_id=None,
        top_k=top_k,
        top_p=top_p,
    )
    prompts = jnp.zeros((8000, 1), jnp.int32)
    tokens = jax.jit(program)(jax.random.key(2), LOGITS, prompts, None).tokens[:, 0]
    check_frequencies(tokens, truncated(LOGITS / temperature, top_k, top_p))


def test_rare_tokens_of_a_large_vocabulary():
    """About 83 of 18,000 tokens are rare, in proportion to their probabilities.

    Two fifths of them have an empty interval between float32 cumulative sums: the inverse of the
    cumulative distribution never draws them.
    """
    cumulative = np.asarray(jnp.cumsum(jnp.asarray(RARE, jnp.float32)))
    lost = np.append(False, cumulative[1:] == cumulative[:-1])
    tokens = np.asarray(drawn(jax.random.key(3), RARE_LOGITS, 18_000))
    rare = tokens[tokens > 0]
    check_count(len(rare), len(tokens), RARE[1:].sum())
    share = lambda chosen: RARE[1:][chosen[1:]].sum() / RARE[1:].sum()
    assert share(lost) > 0.3
    check_count(np.sum(lost[rare]), len(rare), share(lost))
    odd = np.arange(MANY) % 2 > 0
    check_count(np.sum(odd[rare]), len(rare), share(odd))


def check_count(count, total, probability):
    """Within four standard errors of the expectation."""
    error = np.sqrt(probability * (1 - probability) / total)
    assert abs(count / total - probability) < 4 * error


def test_noise_reaches_probabilities_below_one_billionth():
    """A token of probability p is drawn if e^−g of its noise is below about p.

    Noise from one float32 uniform number has values of e^−g that are multiples of 1.2e-7: of the
    smallest 1,000 of 640,000, which are below 1.6e-3, about 37 would equal another one.
    """
    found = sampling.noise(jax.random.key(0), (40_000,), 64)
    smallest = np.sort(np.exp(-np.float64(found).ravel()))[:1000]
    assert len(np.unique(smallest)) > 995


def test_top_p_of_one_keeps_every_token():
    assert within_top_p(RARE_LOGITS, 1.0).all()
    kept = within_top_p(RARE_LOGITS, 1.0 - 1e-3)
    # The mass of the even tokens, 1.3e-3, exceeds 1e-3; those of equal probability are kept.
    assert kept.all()
    kept = within_top_p(RARE_LOGITS, 1.0 - 2e-3)
    assert kept[0] and kept[1::2].all() and not kept[2::2].any()
    for p in (1e-9, 0.3, 0.9):
        np.testing.assert_array_equal(np.flatnonzero(within_top_p(RARE_LOGITS, p)), [0])


def test_keys_decide():
    logits = jnp.broadcast_to(jnp.asarray(LOGITS), (4, 5, VOCABULARY))
    sample = jax.jit(sampling.sample)
    one, again = (sample(jax.random.key(5), logits) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert one.shape == (4, 5) and one.dtype == jnp.int32
    assert len(np.unique(one)) > 5
    assert (one != sample(jax.random.key(6), logits)).any()
    keys = jax.random.split(jax.random.key(7), 4)
    mapped = jax.jit(jax.vmap(sampling.sample))(keys, logits)
    np.testing.assert_array_equal(sample(keys[2], logits[2]), mapped[2])


def test_bfloat16_logits_and_logits_of_any_size():
    logits = jnp.asarray([[300.0, 298.0], [-300.0, -302.0]], jnp.bfloat16)
    many = jax.jit(lambda keys: jax.vmap(lambda key: sampling.sample(key, logits))(keys))
    tokens = many(jax.random.split(jax.random.key(8), 2000))
    for row in range(2):
        check_frequencies(tokens[:, row], probabilities([2.0, 0.0]))


def test_the_benchmark_compares_the_methods():
    seconds = benchmark.cpu_seconds(40, 2, rounds=2, draws=1)
    rows = benchmark.rows_of(40, 2, seconds)
    assert [row["method"] for row in rows] == [*benchmark.METHODS]
    assert rows[0]["ratio"] == 1.0 and all(row["cpu_ms"] >= 0 for row in rows)
