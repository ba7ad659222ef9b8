"""Token distributions in vocabulary blocks: the same results as with all logits, in less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.distributions import Categorical, log_prob_and_entropy
from ppo_jax.rlhf import sampling
from ppo_jax.rlhf.token_distribution import TokenDistribution, in_blocks

B, L, D, V = 3, 7, 8, 23
KEYS = jax.random.split(jax.random.key(0), 5)
HIDDEN = jax.random.normal(KEYS[0], (B, L, D))
HEAD = jax.random.normal(KEYS[1], (D, V))
OTHER = TokenDistribution(
    jax.random.normal(KEYS[2], (B, L, D)), jax.random.normal(KEYS[3], (D, V)), 0.9
)
TOKENS = jax.random.randint(KEYS[4], (B, L), 0, V)


def direct(temperature=0.7):
    return Categorical(HIDDEN @ HEAD / temperature)


# Blocks of one step (even with fewer elements than a row), of several with a remainder, and one.
@pytest.mark.parametrize("chunk", [1, 2 * B * V + 5, 10**6])
def test_blocks_change_nothing(chunk):
    @jax.jit
    def both():
        dist, want, key = TokenDistribution(HIDDEN, HEAD, 0.7, chunk), direct(), KEYS[0]
        return [
            (dist.log_prob(TOKENS), want.log_prob(TOKENS)),
            (dist.entropy(), want.entropy()),
            *zip(
                log_prob_and_entropy(dist, TOKENS),
                (want.log_prob(TOKENS), want.entropy()),
                strict=True,
            ),
            (dist.kl(OTHER), want.kl(OTHER.dense(OTHER.hidden))),
            (dist.mode(), want.mode()),
            (dist.sample(key), sampling.sample(key, want.logits)),
        ]

    for got, want in both():
        assert got.shape == (B, L)
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_gradients_are_those_of_all_logits():
    def blocks(hidden, head, temperature):
        dist = TokenDistribution(hidden, head, temperature, chunk=2 * B * V)
        return jnp.sum(dist.log_prob(TOKENS) * 0.3 + dist.entropy() ** 2 + dist.kl(OTHER))

    def whole(hidden, head, temperature):
        dist = Categorical(hidden @ head / temperature)
        kl = dist.kl(OTHER.dense(OTHER.hidden))
        return jnp.sum(dist.log_prob(TOKENS) * 0.3 + dist.entropy() ** 2 + kl)

    args = (HIDDEN, HEAD, 0.7)
    got, want = (jax.jit(jax.grad(f, argnums=(0, 1, 2)))(*args) for f in (blocks, whole))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_flattened_rows_and_single_ones():
    @functools.partial(jax.jit, static_argnames="chunk")
    def log_prob(hidden, tokens, chunk):
        return TokenDistribution(hidden, HEAD, 0.7, chunk).log_prob(tokens)

    want = jax.jit(lambda: direct().log_prob(TOKENS))()
    flat = log_prob(HIDDEN.reshape(-1, D), TOKENS.reshape(-1), chunk=4 * V)
    np.testing.assert_allclose(flat.reshape(B, L), want, atol=1e-5)
    one = log_prob(HIDDEN[0, 0], TOKENS[0, 0], chunk=1)
    np.testing.assert_allclose(one, want[0, 0], atol=1e-5)


def test_ids_in_no_tokenizer_are_impossible():
    few = TOKENS % 5

    @jax.jit
    def both():
        dist = TokenDistribution(HIDDEN, HEAD, 1.0, chunk=1, valid_vocab=5)
        want = Categorical(HIDDEN @ HEAD[:, :5])
        pairs = (dist.log_prob(few), want.log_prob(few)), (dist.entropy(), want.entropy())
        drawn = dist.mode(), dist.sample(KEYS[1])
        entropy = lambda w: TokenDistribution(HIDDEN, w, valid_vocab=5).entropy().sum()
        gradient = jax.grad(entropy)(HEAD)
        return pairs, drawn, dist.log_prob(jnp.full((B, L), 5)), gradient

    pairs, drawn, impossible, gradient = both()
    for got, want in pairs:
        np.testing.assert_allclose(got, want, atol=1e-5)
    assert max(x.max() for x in drawn) < 5
    assert np.isneginf(impossible).all() and np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[:, 5:], 0)


def test_bfloat16_states_give_float32_sums():
    hidden = HIDDEN.astype(jnp.bfloat16)
    log_prob = TokenDistribution(hidden, HEAD).log_prob(TOKENS)
    assert log_prob.dtype == jnp.float32
    exact = HEAD.astype(jnp.bfloat16).astype(jnp.float32)
    want = Categorical(hidden.astype(jnp.float32) @ exact).log_prob(TOKENS)
    np.testing.assert_allclose(log_prob, want, atol=1e-5)


def test_no_array_of_all_logits_is_kept():
    """Forward and backward passes need less than a quarter of [B, L, V] in float32."""
    hidden, head = jnp.ones((2, 256, 4)), jnp.ones((4, 1000))
    tokens = jnp.zeros((2, 256), int)

    def temporary(chunk):
        loss = lambda h, w: TokenDistribution(h, w, chunk=chunk).log_prob(tokens).sum()
        program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden, head).compile()
        return program.memory_analysis().temp_size_in_bytes

    full = 4 * 2 * 256 * 1000
    assert temporary(16_000) < full / 4
    assert temporary(10**9) >= full


def test_blocks_cut_the_last_leading_axis():
    """Blocks divide the positions and not the batch, which may be sharded over devices."""
    seen = []

    def function(x):
        seen.append(x.shape)
        return x * 2

    x = jnp.arange(4 * 10 * 3.0).reshape(4, 10, 3)
    np.testing.assert_array_equal(in_blocks(function, x, 2, rows_per_block=13), 2 * x)
    assert {shape[:2] for shape in seen} == {(4, 3)}


def test_blocks_have_about_equal_lengths():
    """Two blocks of 16 columns, not two of 20 of which 8 would be padding."""
    seen = []

    def function(x):
        seen.append(x.shape[1])
        return x + 1

    x = jnp.arange(2.0 * 32).reshape(2, 32)
    np.testing.assert_array_equal(in_blocks(function, x, 2, rows_per_block=40), x + 1)
    assert set(seen) == {16}


def test_losses_make_the_logits_of_a_block_once(monkeypatch):
    """Log-probability and entropy come from the distribution's combined function, not from two."""
    dist = TokenDistribution(HIDDEN, HEAD, 0.7)
    for method in ("log_prob", "entropy"):
        monkeypatch.setattr(TokenDistribution, method, None)
    for found, expected in zip(
        log_prob_and_entropy(dist, TOKENS),
        (direct().log_prob(TOKENS), direct().entropy()),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)
