"""Generation: greedy tokens as in transformers, log-probabilities, masks, ends and sampling."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from language_models import FAMILIES, golden, model
from ppo_jax.rlhf.decoder import Decoder, small
from ppo_jax.rlhf.generate import generate, within_top_k, within_top_p
from ppo_jax.rlhf.token_distribution import TokenDistribution

V, B, P, N = 7, 64, 4, 10
DECODER = Decoder(small(V, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, init_std=0.4))
PARAMS = DECODER.init(jax.random.key(0))
PROMPT = jax.random.randint(jax.random.key(1), (B, P), 0, V)
# Left padding of 0 to 3 columns.
MASK = (jnp.arange(P) >= (jnp.arange(B) % P)[:, None]).astype(jnp.int32)


@functools.cache
def program(decoder=DECODER, max_new_tokens=N, **static):
    return jax.jit(
        lambda key, params, prompt, mask, temperature, eos_id, pad_id: generate(
            key,
            params,
            prompt,
            mask,
            decoder=decoder,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            eos_id=eos_id,
            pad_id=pad_id,
            **static,
        )
    )


def sampled(seed=0, temperature=1.0, eos_id=-1, pad_id=0):
    key = jax.random.key(seed)
    return program()(key, PARAMS, PROMPT, MASK, temperature, ends(eos_id), pad_id)


def ends(*ids):
    """One or two token ids in one shape, so that all tests share a program; −1 is never sampled."""
    return np.resize(np.array(ids, np.int32), 2)


@jax.jit
def forward(tokens, mask, temperature):
    """Log-probabilities of the responses from one pass over prompt and response."""
    whole = jnp.concatenate([PROMPT, tokens], axis=1)
    hidden = DECODER.hidden(PARAMS, whole, jnp.concatenate([MASK, mask], axis=1))
    dist = TokenDistribution(hidden[:, P - 1 : -1], DECODER.head(PARAMS), temperature)
    return dist.log_prob(tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(family):
    """16 greedy tokens, with and without left padding, and with an end of text."""
    decoder, params = model(family)
    arrays = golden(family)

    def greedy(side, eos_id):
        tokens = arrays[f"{side}input_ids"]
        mask = arrays["left_attention_mask"] if side else np.ones_like(tokens)
        run = program(decoder, 16)
        return run(jax.random.key(0), params, tokens, mask, 0.0, ends(eos_id), 0)

    np.testing.assert_array_equal(greedy("", -1).tokens, arrays["greedy_tokens"])
    np.testing.assert_array_equal(greedy("left_", -1).tokens, arrays["left_greedy_tokens"])
    ended = greedy("left_", int(arrays["eos_id"]))
    expected = arrays["left_greedy_tokens_eos"]
    np.testing.assert_array_equal(ended.tokens[:, : expected.shape[1]], expected)
    assert not np.asarray(ended.tokens[:, expected.shape[1] :]).any()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_a_forward_pass(temperature):
    """At the sampling temperature, with padded prompts and ended rows."""
    out = sampled(temperature=temperature, eos_id=3)
    assert 0 < int((~out.mask).sum()) < B * N
    gap = jnp.where(out.mask, forward(out.tokens, out.mask, temperature) - out.log_prob, 0)
    assert float(jnp.abs(gap).max()) < 1e-5
    np.testing.assert_array_equal(out.log_prob[~out.mask], 0)


def check_ends(out, eos_id, pad_id):
    """The mask is 1 up to and including the first end of text; then there is padding."""
    tokens, mask = np.asarray(out.tokens), np.asarray(out.mask)
    is_end = tokens == eos_id
    ended_before = np.cumsum(is_end & mask, axis=1) - (is_end & mask) > 0
    np.testing.assert_array_equal(mask, ~ended_before)
    assert (tokens[~mask] == pad_id).all()


@pytest.mark.parametrize("eos_id, pad_id", [(3, 0), (3, 3), (0, 5)])
def test_masks_come_from_the_sampler(eos_id, pad_id):
    """The pad id is sampled like any other, also if it is the end of text."""
    out = sampled(seed=3, eos_id=eos_id, pad_id=pad_id)
    check_ends(out, eos_id, pad_id)
    lengths = np.asarray(out.mask.sum(axis=1))
    assert lengths.min() == 1 and lengths.max() == N
    first = np.asarray(out.tokens)[lengths == 1, 0]
    assert (first == eos_id).all() and len(first)
    if pad_id != eos_id:
        assert ((out.tokens == pad_id) & out.mask).any()


def test_without_an_end_of_text_all_is_sampled():
    assert sampled(eos_id=-1).mask.all()
    run = program(max_new_tokens=1)
    out = run(jax.random.key(0), PARAMS, PROMPT, None, 1.0, None, 0)
    assert out.tokens.shape == (B, 1) and out.mask.all()


def test_several_tokens_may_end_a_text():
    out = program()(jax.random.key(0), PARAMS, PROMPT, MASK, 1.0, ends(2, 3), 6)
    tokens, mask = np.asarray(out.tokens), np.asarray(out.mask)
    merged = out._replace(tokens=jnp.where(out.mask & (out.tokens == 2), 3, out.tokens))
    check_ends(merged, 3, 6)
    last = tokens[np.arange(B), mask.sum(axis=1) - 1]
    assert {2, 3} <= set(last.tolist())


class CountingDecoder(Decoder):
    """Counts the executed cached steps."""

    steps = 0

    def step(self, params, cache, token):
        def count():
            CountingDecoder.steps += 1

        jax.debug.callback(count)
        return super().step(params, cache, token)


def test_generation_stops_once_every_row_has_ended():
    """If both first tokens are an end, the model makes no step; without an end, N − 1 steps."""
    run = program(CountingDecoder(DECODER.config), 12)
    args = (jax.random.key(0), PARAMS, PROMPT[:2], MASK[:2], 0.0)
    endless = run(*args, ends(-1), 0)
    jax.effects_barrier()
    assert CountingDecoder.steps == 11
    out = run(*args, ends(*endless.tokens[:, 0].tolist()), 0)
    jax.effects_barrier()
    assert CountingDecoder.steps == 11 and int(out.mask.sum()) == 2


def test_noise_differs_between_keys_rows_and_steps():
    a, b, again = sampled(seed=0), sampled(seed=1), sampled(seed=0)
    np.testing.assert_array_equal(a.tokens, again.tokens)
    assert (a.tokens != b.tokens).mean() > 0.3
    same = program()(
        jax.random.key(0), PARAMS, np.tile(PROMPT[:1], (B, 1)), np.ones_like(MASK), 1.0, ends(-1), 0
    )
    assert len(np.unique(same.tokens[:, 0])) > 1


def test_several_continuations_of_a_prompt_are_those_of_repeated_prompts():
    keys = jax.random.split(jax.random.key(0), B)
    prompt, mask = PROMPT[:16], MASK[:16]
    many = [np.repeat(x, 4, axis=0) for x in (prompt, mask)]
    apart = program()(keys, PARAMS, *many, 1.0, ends(3), 0)
    together = program(samples=4)(keys, PARAMS, prompt, mask, 1.0, ends(3), 0)
    np.testing.assert_array_equal(together.tokens, apart.tokens)
    np.testing.assert_array_equal(together.mask, apart.mask)
    np.testing.assert_allclose(together.log_prob, apart.log_prob, atol=1e-5)
    few, whole = (
        program(samples=n).lower(keys, PARAMS, *rows, 1.0, ends(3), 0).compile().cost_analysis()
        for n, rows in ((4, (prompt, mask)), (1, many))
    )
    assert few["flops"] < 0.7 * whole["flops"]  # the prompt is most of what is counted


def test_frequencies_are_the_models_probabilities():
    """Frequencies of the first token at temperature 0.7: within four standard errors."""
    prompt, mask = np.tile(PROMPT[:1], (B, 1)), np.ones_like(MASK)
    runs = [
        program()(jax.random.key(seed), PARAMS, prompt, mask, 0.7, ends(-1), 0)
        for seed in range(40)
    ]
    tokens = np.concatenate([out.tokens[:, 0] for out in runs])
    log_prob = np.concatenate([out.log_prob[:, 0] for out in runs])
    logits = np.asarray(jax.jit(DECODER.apply)(PARAMS, PROMPT[:1]))[0, -1] / 0.7
    p = np.exp(logits) / np.exp(logits).sum()
    share = np.bincount(tokens, minlength=V) / len(tokens)
    assert np.all(np.abs(share - p) < 4 * np.sqrt(p * (1 - p) / len(tokens)))
    np.testing.assert_allclose(log_prob, np.log(p)[tokens], atol=1e-5)


def test_greedy_log_probs_are_at_temperature_one():
    out = sampled(temperature=0.0)
    np.testing.assert_allclose(out.log_prob, forward(out.tokens, out.mask, 1.0), atol=1e-5)


def test_only_likely_tokens_are_drawn():
    """With top-p of one millionth, only the most likely token is sampled."""
    run = program(top_k=2, top_p=1e-6)
    out = run(jax.random.key(0), PARAMS, PROMPT, MASK, 1.0, ends(-1), 0)
    greedy = sampled(temperature=0.0)
    np.testing.assert_array_equal(out.tokens, greedy.tokens)
    # Log-probabilities remain those of the whole distribution.
    np.testing.assert_allclose(out.log_prob, greedy.log_prob, atol=1e-6)


def test_what_is_likely_enough():
    logits = jnp.log(jnp.array([0.1, 0.4, 0.2, 0.3]))
    np.testing.assert_array_equal(within_top_k(logits, 2), [False, True, False, True])
    assert within_top_k(logits, 9).all()
    for p, kept in ((0.39, 1), (0.41, 2), (0.69, 2), (0.71, 3), (0.95, 4), (1.0, 4)):
        assert int(within_top_p(logits, p).sum()) == kept, p


def test_ids_in_no_tokenizer_are_never_sampled():
    run = program(valid_vocab=4)
    out = run(jax.random.key(0), PARAMS, PROMPT, MASK, 1.0, ends(-1), 0)
    assert int(out.tokens.max()) == 3


def test_what_cannot_be_generated_is_refused():
    def attempt(**options):
        options = {"decoder": DECODER, "max_new_tokens": 5, "eos_id": 1} | options
        return generate(jax.random.key(0), PARAMS, PROMPT, MASK, **options)

    with pytest.raises(ValueError, match="prompts of 4 tokens and 509 new ones exceed .* 512"):
        attempt(max_new_tokens=509)
    with pytest.raises(ValueError, match="max_new_tokens is 0; it must be at least 1"):
        attempt(max_new_tokens=0)
    with pytest.raises(ValueError, match="top_k is 0"):
        attempt(top_k=0)
    with pytest.raises(ValueError, match="top_p is 1.5; it must be in"):
        attempt(top_p=1.5)
