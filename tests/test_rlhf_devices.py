"""Four devices compute the same results as one device."""

import subprocess
import sys

import pytest

PROGRAM = """
import jax, jax.numpy as jnp, json
from ppo_jax.rlhf import algorithms, sharding, train
from ppo_jax.rlhf.decoder import Decoder, small
from ppo_jax.rlhf.scoring import from_model

assert jax.device_count() == 4
decoder = Decoder(small(12, 32, 1, 2, num_kv_heads=2))
params = decoder.init(jax.random.key(0))
judge = decoder.with_score(params, jax.random.key(1))
roles = train.Models(decoder, params, decoder, decoder.with_score(params), params,
                     from_model(decoder, judge))
prompts = jnp.asarray([[1, 2], [1, 3], [1, 4], [1, 5]])
config = train.Config(num_prompts=8, max_new_tokens=5, updates=2, kl_coef=0.1)
found = []
for mesh in (None, sharding.make_mesh(2, 2)):
    program = train.build(roles, prompts, jnp.ones_like(prompts), config,
                          hyper=algorithms.Config(learning_rate=1e-3), eos_id=0, mesh=mesh)
    state = jax.jit(program.init)(jax.random.key(0))
    state = state if mesh is None else sharding.shard(state, mesh)
    step = jax.jit(program.step)
    rows = []
    for _ in range(2):
        state, metrics = step(state, program.frozen)
        rows.append({k: float(v) for k, v in metrics.items()})
    found.append(rows)
    if mesh is not None:
        kernel = state.learner.params["actor"]["layer_0"]["attention"]["q"]["kernel"]
        assert len(kernel.sharding.device_set) == 4, kernel.sharding
print(json.dumps(found))
"""


@pytest.mark.slow
def test_the_same_numbers_on_a_mesh():
    import json
    import os

    flags = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    flags.pop("JAX_NUM_CPU_DEVICES", None)
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=flags | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    one, four = json.loads(result.stdout.splitlines()[-1])
    for a, b in zip(one, four, strict=True):
        assert a["tokens"] == b["tokens"]
        for name in ("score", "kl", "loss", "value_loss", "grad_norm", "approx_kl"):
            assert abs(a[name] - b[name]) < 1e-4 * max(1.0, abs(a[name])), (name, a, b)
