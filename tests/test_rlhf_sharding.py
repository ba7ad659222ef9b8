"""Several devices: the same tokens, log-probabilities and gradients as on one device."""

import os
import subprocess
import sys

import jax
import pytest
from jax.sharding import PartitionSpec

from ppo_jax.rlhf.decoder import Decoder, small
from ppo_jax.rlhf.sharding import make_mesh, shardings, spec

PROGRAM = """
import functools, jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ppo_jax.rlhf.decoder import Decoder, small
from ppo_jax.rlhf.generate import generate
from ppo_jax.rlhf.sharding import DATA, make_mesh, shard
from ppo_jax.rlhf.token_distribution import TokenDistribution

assert jax.device_count() == 4
decoder = Decoder(small(28, hidden_size=32, num_layers=1, num_heads=4, num_kv_heads=2))
params = decoder.init(jax.random.key(0))
prompt = np.arange(24, dtype=np.int32).reshape(4, 6)
mask = (np.arange(6) >= np.arange(4)[:, None]).astype(np.int32)
sample = jax.jit(functools.partial(generate, decoder=decoder, max_new_tokens=6, eos_id=3))

def loss(params, tokens, mask):
    hidden = decoder.hidden(params, tokens, mask)[:, :-1]
    dist = TokenDistribution(hidden, decoder.head(params), chunk=2 * 4 * 28)
    log_prob = dist.log_prob(tokens[:, 1:])
    return -jnp.mean(log_prob * mask[:, 1:])

gradient = jax.jit(jax.value_and_grad(loss))
mesh = make_mesh(2, 2)
spread = shard(params, mesh)
q = spread["layer_0"]["attention"]["q"]["kernel"]
assert {s.data.shape for s in q.addressable_shards} == {(32, 16)}
rows = jax.device_put((prompt, mask), NamedSharding(mesh, PartitionSpec(DATA)))
assert {s.data.shape for s in rows[0].addressable_shards} == {(2, 6)}
key = jax.random.key(1)
a, b = sample(key, params, prompt, mask), sample(key, spread, *rows)
np.testing.assert_array_equal(a.tokens, b.tokens)
np.testing.assert_array_equal(a.mask, b.mask)
np.testing.assert_allclose(a.log_prob, b.log_prob, atol=1e-5)
(x, g), (y, h) = gradient(params, prompt, mask), gradient(spread, *rows)
np.testing.assert_allclose(x, y, rtol=1e-5)
for one, four in zip(jax.tree.leaves(g), jax.tree.leaves(h), strict=True):
    np.testing.assert_allclose(one, four, atol=1e-5)
print("same")
"""


@pytest.mark.slow
def test_four_devices_do_what_one_does():
    env = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=env, check=False
    )
    assert result.stdout.strip() == "same", result.stderr[-2000:]


def test_every_matrix_has_its_side():
    for path, shape, want in (
        (("embedding",), (28, 32), ("model", None)),
        (("layer_0", "attention", "q", "kernel"), (32, 32), (None, "model")),
        (("layer_0", "attention", "q", "bias"), (32,), ("model",)),
        (("layer_0", "attention", "o", "kernel"), (32, 32), ("model", None)),
        (("layer_0", "attention", "o", "bias"), (32,), ()),
        (("layer_1", "mlp", "down", "kernel"), (96, 32), ("model", None)),
        (("layer_1", "mlp", "gate", "kernel"), (32, 96), (None, "model")),
        (("layer_1", "mlp_norm", "scale"), (32,), ()),
        (("head", "kernel"), (32, 28), (None, "model")),
        (("score", "kernel"), (32, 1), ()),
        # Adapters are sharded like their matrix, on the side that is split.
        (("layer_0", "attention", "q", "b"), (2, 32), (None, "model")),
        (("layer_0", "attention", "q", "a"), (32, 2), ()),
        (("layer_0", "attention", "o", "a"), (32, 2), ("model", None)),
        # 29 rows are not divisible by two.
        (("embedding",), (29, 32), ()),
    ):
        assert spec(path, shape, 2) == PartitionSpec(*want), path


def test_moments_of_an_optimiser_go_where_their_weights_are():
    import optax

    decoder = Decoder(small(28, hidden_size=32))
    params = jax.eval_shape(decoder.init, jax.random.key(0))
    state = jax.eval_shape(optax.adam(1e-3).init, params)
    mesh = make_mesh(1, 1)
    weights = shardings(params, mesh)
    assert shardings(state, mesh)[0].mu == weights
    assert weights["embedding"].spec == PartitionSpec("model", None)


def test_too_few_devices_are_refused():
    with pytest.raises(ValueError, match="a mesh of 64 x 2 needs 128 devices; there are"):
        make_mesh(64, 2)
