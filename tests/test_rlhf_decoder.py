"""Decoders: agreement with transformers, padding, the cache, windows and precision."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from language_models import FAMILIES, golden, model
from ppo_jax.rlhf.attention import KeyValue, attend
from ppo_jax.rlhf.decoder import Decoder, DecoderConfig, RopeScaling, small
from ppo_jax.rlhf.hf_io import to_tensors
from ppo_jax.rlhf.linear import product
from ppo_jax.rlhf.rope import rope_frequencies
from ppo_jax.rlhf.token_distribution import TokenDistribution

TINY = small(11, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1)


@functools.cache
def logits_of(family, dtype="float32"):
    return jax.jit(model(family, dtype)[0].apply)


def fresh(config):
    decoder = Decoder(config)
    return decoder, decoder.init(jax.random.key(0))


def padded(arrays, side):
    if side == "none":
        return arrays["input_ids"], np.ones_like(arrays["input_ids"]), arrays["logits"]
    return tuple(arrays[f"{side}_{x}"] for x in ("input_ids", "attention_mask", "logits"))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family):
    """Without padding, and with padding at either side."""
    _, params = model(family)
    for side in ("none", "left", "right"):
        tokens, mask, expected = padded(golden(family), side)
        logits = logits_of(family)(params, tokens, mask)
        assert logits.dtype == jnp.float32
        np.testing.assert_allclose(
            np.where(mask[..., None] > 0, logits, 0), expected, atol=2e-5, err_msg=side
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_and_gradients_are_those_of_transformers(family):
    """In blocks of positions, with the names and layouts of the model folder."""
    decoder, params = model(family)
    arrays = golden(family)
    tokens = arrays["input_ids"]

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        hidden = decoder.hidden(params, tokens)[:, :-1]
        dist = TokenDistribution(hidden, decoder.head(params), chunk=1000)
        log_prob = dist.log_prob(tokens[:, 1:])
        return -log_prob.mean(), log_prob

    (value, log_prob), gradient = jax.jit(loss)(params)
    np.testing.assert_allclose(log_prob, arrays["token_logprobs"], atol=1e-5)
    np.testing.assert_allclose(value, arrays["ce_loss"], rtol=1e-6)
    tensors = to_tensors(decoder, gradient)
    named = [name for name in arrays if name.startswith("grad/")]
    assert len(named) > 4
    for name in named:
        np.testing.assert_allclose(
            tensors[name.removeprefix("grad/")], arrays[name], rtol=1e-3, atol=2e-6, err_msg=name
        )
    norm = np.sqrt(sum(np.sum(x.astype(np.float64) ** 2) for x in tensors.values()))
    np.testing.assert_allclose(norm, arrays["grad_global_norm"], rtol=1e-5)


def test_the_reward_model_is_that_of_transformers():
    decoder, params = model("llama_reward")
    arrays, inputs = golden("llama_reward"), golden("llama")
    assert set(params) >= {"score"} and "head" not in params
    tokens, mask = inputs["right_input_ids"], inputs["right_attention_mask"]
    values = jax.jit(decoder.values)(params, tokens, mask)
    expected = arrays["token_values_right_padded"]
    np.testing.assert_allclose(np.where(mask > 0, values, 0), expected, atol=1e-5)
    score = jax.jit(decoder.score)
    np.testing.assert_allclose(score(params, tokens, mask), arrays["score_right_padded"], atol=1e-5)
    full = inputs["input_ids"]
    np.testing.assert_allclose(
        score(params, full, np.ones_like(full)), arrays["score_unpadded"], atol=1e-5
    )
    # With left padding, the last token is in the last column.
    left = score(params, inputs["left_input_ids"], inputs["left_attention_mask"])
    np.testing.assert_allclose(left[0], arrays["score_unpadded"][0], atol=1e-5)


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32():
    """Within a few bfloat16 roundings of the float32 model, and not equal to it."""
    arrays = golden("llama")
    decoder, params = model("llama", "bfloat16")
    tokens, mask, expected = padded(arrays, "none")
    assert jax.eval_shape(decoder.hidden, params, tokens).dtype == jnp.bfloat16
    logits = logits_of("llama", "bfloat16")(params, tokens, mask)
    assert logits.dtype == jnp.float32
    error = np.abs(logits - expected)
    assert 1e-3 < error.max() < 0.1 and error.mean() < 0.02


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_cache_changes_nothing(family):
    """A prompt padded at either side, then token by token: the hidden states of one pass."""
    decoder, params = model(family)
    arrays = golden(family)
    later = arrays["input_ids"][:, :4]
    step = jax.jit(decoder.step)
    prefill = jax.jit(decoder.prefill, static_argnames="length")
    forward = jax.jit(decoder.hidden)
    for side in ("left", "right"):
        tokens, mask, _ = padded(arrays, side)
        whole = forward(
            params,
            np.concatenate([tokens, later], axis=1),
            np.concatenate([mask, np.ones_like(later)], axis=1),
        )
        hidden, cache = prefill(params, tokens, mask, length=20)
        seen = mask[..., None] > 0
        np.testing.assert_allclose(
            np.where(seen, hidden, 0), np.where(seen, whole[:, :12], 0), atol=1e-5
        )
        for t in range(4):
            hidden, cache = step(params, cache, later[:, t])
            np.testing.assert_allclose(hidden, whole[:, 12 + t], atol=1e-5)
        assert int(cache.column) == 16
        np.testing.assert_array_equal(cache.next_position, mask.sum(axis=1) + 4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_last_columns_are_those_of_all_columns_with_fewer_operations(family):
    """Values and gradients are equal, and the last layer does not compute the other columns."""
    decoder, params = model(family)
    tokens, mask, _ = padded(golden(family), "left")

    def compiled(last):
        def mean(params):
            hidden = decoder.hidden(params, tokens, mask, last)[:, -3:]
            return jnp.square(hidden).mean(), hidden

        return jax.jit(jax.value_and_grad(mean, has_aux=True)).lower(params).compile()

    few, whole = compiled(3), compiled(None)
    for a, b in zip(*(jax.tree.leaves(program(params)) for program in (few, whole)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    flops = [program.cost_analysis()["flops"] for program in (few, whole)]
    skipped = (1 - 3 / tokens.shape[1]) / decoder.config.num_layers
    assert 1 - skipped < flops[0] / flops[1] < 1 - 0.6 * skipped  # keys and values remain


def test_an_empty_cache_can_be_filled_by_steps():
    decoder, params = fresh(TINY)
    tokens = jnp.array([[3, 1, 4, 1], [5, 9, 2, 6]])
    cache, step = decoder.init_cache(2, 6), jax.jit(decoder.step)
    states = []
    for t in range(4):
        hidden, cache = step(params, cache, tokens[:, t])
        states.append(hidden)
    whole = jax.jit(decoder.hidden)(params, tokens)
    np.testing.assert_allclose(np.stack(states, axis=1), whole, atol=1e-5)


def test_rows_without_a_token_are_finite_in_value_and_gradient():
    decoder, params = fresh(TINY)
    tokens, mask = jnp.zeros((2, 5), int), jnp.array([[0] * 5, [1] * 5])

    def total(params):
        return decoder.apply(params, tokens, mask).sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_what_is_masked_cannot_be_seen():
    """Token ids under the padding do not change the logits of other tokens."""
    family = "gpt2"
    _, params = model(family)
    tokens, mask, _ = padded(golden(family), "left")
    other = np.where(mask > 0, tokens, 77)
    a, b = (logits_of(family)(params, x, mask) for x in (tokens, other))
    np.testing.assert_array_equal(np.where(mask[..., None] > 0, a - b, 0), 0)


def test_a_window_is_as_wide_as_it_says():
    """With one layer and a window of 3, token 0 affects columns 0, 1, 2; also with padding."""
    config = dataclasses.replace(TINY, family="mistral", sliding_window=3, init_std=0.5)
    # The same text twice, except for its first token.
    decoder, params = fresh(config)
    apply = jax.jit(decoder.apply)
    tokens = np.array([[1, 2, 3, 4, 5, 6, 7], [9, 2, 3, 4, 5, 6, 7]])
    for mask in ([1] * 7, [1, 0, 0, 1, 1, 1, 1]):
        a, b = np.asarray(apply(params, tokens, np.array([mask, mask])))
        moved = (np.abs(a - b).max(axis=1) > 0) & (np.array(mask) > 0)
        np.testing.assert_array_equal(np.flatnonzero(moved), np.flatnonzero(mask)[:3])


def test_a_window_may_begin_at_a_later_layer():
    config = dataclasses.replace(
        TINY, family="qwen2", num_layers=2, sliding_window=1, full_layers=(0,), init_std=0.5
    )
    assert [config.window(i) for i in range(2)] == [None, 1]
    decoder, params = fresh(config)
    a, b = np.asarray(jax.jit(decoder.apply)(params, np.array([[1, 2, 3, 4], [9, 2, 3, 4]])))
    assert (np.abs(a - b).max(axis=1) > 0).all()


def test_recomputation_changes_no_gradient():
    decoder, params = fresh(TINY)
    tokens = np.arange(8).reshape(2, 4)
    lean = Decoder(dataclasses.replace(decoder.config, remat=True))
    gradients = [
        jax.jit(jax.grad(lambda p, d=d: jnp.square(d.hidden(p, tokens)).mean()))(params)
        for d in (decoder, lean)
    ]
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_llama3_keeps_fast_frequencies_and_slows_slow_ones():
    scaling = RopeScaling("llama3", 8.0, 1.0, 4.0, 32)
    config = dataclasses.replace(TINY, head_dim=32, rope_scaling=scaling)
    plain = rope_frequencies(dataclasses.replace(config, rope_scaling=None))
    ratio = rope_frequencies(config) / plain
    wavelength = 2 * np.pi / plain
    np.testing.assert_allclose(ratio[wavelength < 8], 1, rtol=1e-6)
    np.testing.assert_allclose(ratio[wavelength > 32], 1 / 8, rtol=1e-6)
    between = (wavelength >= 8) & (wavelength <= 32)
    assert between.any() and ((ratio[between] > 1 / 8) & (ratio[between] < 1)).all()
    linear = dataclasses.replace(config, rope_scaling=RopeScaling("linear", 4.0))
    np.testing.assert_allclose(rope_frequencies(linear), plain / 4, rtol=1e-6)


def test_scores_are_read_where_transformers_reads_them():
    """At the last token that is not the padding token, which may be the token that ends a text."""
    config = dataclasses.replace(TINY, pad_id=2)
    decoder = Decoder(config)
    params = decoder.with_score(decoder.init(jax.random.key(0)), jax.random.key(1))
    tokens = np.array([[5, 6, 2, 2], [5, 2, 6, 7], [2, 2, 5, 2], [2, 2, 2, 2]])
    values = np.asarray(jax.jit(decoder.values)(params, tokens))
    score = jax.jit(decoder.score)
    np.testing.assert_array_equal(score(params, tokens), values[range(4), [1, 3, 2, 0]])
    # Masked tokens are padding whichever id they have.
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]])
    values = np.asarray(jax.jit(decoder.values)(params, tokens, mask))
    np.testing.assert_array_equal(score(params, tokens, mask), values[range(4), [1, 0, 2, 0]])
    # Without a padding token, it is the last token that is not masked.
    plain = Decoder(dataclasses.replace(config, pad_id=None))
    np.testing.assert_array_equal(
        jax.jit(plain.score)(params, tokens, mask), values[range(4), [2, 1, 3, 3]]
    )


def test_score_heads_start_where_they_should():
    decoder, params = model("llama")
    critic = decoder.with_score(params)
    assert "head" not in critic and "head" in params
    tokens = golden("llama")["input_ids"]
    values = jax.jit(decoder.values)(critic, tokens)
    np.testing.assert_array_equal(values, np.zeros(tokens.shape))
    kernel = decoder.with_score(params, jax.random.key(0))["score"]["kernel"]
    assert kernel.shape == (64, 1)
    assert 0.7 < float(kernel.std()) * 65**0.5 < 1.3


def test_fresh_models_have_the_shapes_of_loaded_ones():
    for family in FAMILIES:
        decoder, params = model(family)
        shapes = jax.eval_shape(decoder.init, jax.random.key(0))
        assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)
    _, params = fresh(small(29))
    assert sum(x.size for x in jax.tree.leaves(params)) == 94_336
    assert 0.018 < float(params["embedding"].std()) < 0.022
    assert 0.009 < float(params["layer_0"]["attention"]["o"]["kernel"].std()) < 0.011


def test_configs_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="num_kv_heads is 3, which must divide num_heads 4"):
        small(29, num_kv_heads=3)
    with pytest.raises(ValueError, match="family is 'bert'; it must be one of: gpt2, llama"):
        dataclasses.replace(TINY, family="bert")
    with pytest.raises(ValueError, match="head_dim is 5"):
        dataclasses.replace(TINY, head_dim=5)
    assert hash(TINY) == hash(dataclasses.replace(TINY)) and isinstance(TINY, DecoderConfig)


def test_gpt2_has_no_position_beyond_its_table():
    decoder, params = model("gpt2")
    with pytest.raises(ValueError, match="97 tokens, but the model has positions for 96"):
        decoder.apply(params, jnp.zeros((1, 97), int))
    with pytest.raises(ValueError, match="a cache of 3 columns cannot hold 5 tokens"):
        decoder.prefill(params, jnp.zeros((1, 5), int), None, 3)


@pytest.mark.parametrize(("shape", "outputs"), [((6, 5), 4), ((2, 3, 5), 4), ((2, 3, 5), 7)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_a_product_are_autodiffs(shape, outputs, dtype):
    """The same sums in another layout, with fewer and with more outputs than inputs."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = (
        jax.random.normal(k, s, dtype) for k, s in zip(keys, (shape, (5, outputs)), strict=False)
    )
    weight = jax.random.normal(keys[2], (*shape[:-1], outputs), dtype)

    def gradients(function):
        return jax.grad(lambda x, w: jnp.sum(weight * function(x, w)), (0, 1))(x, kernel)

    tolerance = 1e-5 if dtype == "float32" else 2e-2
    for ours, theirs in zip(gradients(product), gradients(jnp.matmul), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(
            ours.astype(np.float32), theirs.astype(np.float32), rtol=tolerance, atol=tolerance
        )


def test_scores_are_scaled_in_float32():
    """With 128 numbers per head, the scale is no power of two: bfloat16 would round it."""
    keys = jax.random.split(jax.random.key(0), 3)
    query = 3 * jax.random.normal(keys[0], (2, 8, 4, 128), jnp.bfloat16)
    kv = KeyValue(*(3 * jax.random.normal(k, (2, 2, 8, 128), jnp.bfloat16) for k in keys[1:]))
    allowed = jnp.tile(jnp.tril(jnp.ones((8, 8), bool)), (2, 1, 1))
    exact = attend(query.astype(jnp.float32), jax.tree.map(jnp.float32, kv), allowed)
    error = attend(query, kv, allowed).astype(jnp.float32) - exact
    assert jnp.sqrt(jnp.mean(error**2)) < 0.0022 * jnp.std(exact)  # 0.0033 with scaled queries


def test_a_place_that_sees_nothing_averages():
    query = jnp.ones((1, 2, 2, 4))
    value = jnp.arange(8.0).reshape(1, 1, 2, 4)
    out = attend(query, KeyValue(jnp.ones((1, 1, 2, 4)), value), jnp.zeros((1, 2, 2), bool))
    np.testing.assert_allclose(out, jnp.tile(value.mean(axis=2), (1, 2, 2)))
