"""The implementations of attention: equal outputs and gradients, also with padding and windows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.rlhf.attention import KeyValue, attend
from ppo_jax.rlhf.decoder import Decoder, small
from ppo_jax.rlhf.transformer import visible


def inputs(length: int, columns: int, dtype: str = "float32"):
    """Queries of the last `length` of `columns` columns, keys and values, and the allowed keys."""
    keys = jax.random.split(jax.random.key(length), 3)
    query = jax.random.normal(keys[0], (2, length, 4, 8), dtype)
    kv = KeyValue(*(jax.random.normal(k, (2, 2, columns, 8), dtype) for k in keys[1:]))
    mask = jnp.arange(columns) >= jnp.array([[0], [2]])  # the second row is padded on the left
    places = jnp.broadcast_to(jnp.arange(columns), (2, columns))
    last = jnp.arange(columns - length, columns)
    seen = visible((mask, places, jnp.arange(columns)), last, places[:, columns - length :], 3)
    return query, kv, seen


@pytest.mark.parametrize(("length", "columns"), [(5, 5), (6, 6), (3, 6), (1, 5)])
def test_the_fused_function_equals_the_plain_one(length, columns):
    query, kv, allowed = inputs(length, columns)
    real = np.asarray(allowed.any(axis=-1))[..., None]
    assert real.all() == (length < columns)  # queries in the padding attend to nothing
    weight = jax.random.normal(jax.random.key(9), (2, length, 32)) * real

    def loss(query, kv, implementation):
        return jnp.sum(weight * jnp.sin(attend(query, kv, allowed, implementation)))

    both = [jax.value_and_grad(loss, (0, 1))(query, kv, name) for name in ("plain", "xla")]
    for plain, fused in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(fused, plain, atol=2e-6)
    assert np.isfinite(attend(query, kv, allowed, "xla")).all()


def test_a_decoder_computes_the_same_with_either_function():
    config = small(11, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1)
    plain = Decoder(config)
    fused = Decoder(dataclasses.replace(config, attention="xla"))
    params = plain.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 7), 0, 11)
    mask = jnp.arange(7) >= jnp.array([[0], [3]])
    text = jax.jit(fused.apply).lower(params, tokens, mask).as_text()
    assert text != jax.jit(plain.apply).lower(params, tokens, mask).as_text()
    ours, theirs = (d.apply(params, tokens, mask)[mask] for d in (plain, fused))
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    _, cache = fused.prefill(params, tokens, mask, 9)
    hidden, _ = fused.step(params, cache, tokens[:, 0])
    wanted, _ = plain.step(params, plain.prefill(params, tokens, mask, 9)[1], tokens[:, 0])
    np.testing.assert_allclose(hidden, wanted, atol=2e-5)


def test_cudnn_gets_even_lengths_and_a_boolean_mask(monkeypatch):
    """Its kernels for gradients refuse odd lengths with a mask; nothing is computed here."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    query, kv, allowed = inputs(5, 5, "bfloat16")

    def loss(query, kv):
        return jnp.sum(attend(query, kv, allowed, "cudnn").astype(jnp.float32))

    traced = jax.jit(jax.grad(loss, (0, 1))).trace(query, kv)
    text = str(traced.jaxpr)
    assert "dot_product_attention_bwd" in text and "bf16[2,6,4,8]" in text


def test_cudnn_is_refused_where_it_cannot_compute():
    with pytest.raises(ValueError, match="'cudnn', which needs dtype bfloat16 .* is float32"):
        small(11, attention="cudnn")
    with pytest.raises(ValueError, match="head_dim is 12; use 'plain'"):
        small(11, attention="cudnn", dtype="bfloat16", head_dim=12)
    with pytest.raises(ValueError, match="attention is 'flash'; it must be one of: plain, xla"):
        small(11, attention="flash")
