"""Networks that compute in bfloat16: float32 parameters and outputs, and a similar loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import config as configs
from ppo_jax import make_train
from ppo_jax.algorithms import ppo
from ppo_jax.envs import spaces
from ppo_jax.networks import Stage, make_policy, make_recurrent_policy
from ppo_jax.networks.policy import SequenceInputs, StateAction
from ppo_jax.train import build
from ppo_jax.types import Batch

ROWS = 16
VECTOR, IMAGE = spaces.Box(-1.0, 1.0, (5,)), spaces.Box(0, 255, (12, 12, 2), np.uint8)
NETWORKS = {
    "mlp": (make_policy, VECTOR, {}),
    "shared torso": (make_policy, VECTOR, {"shared_torso": True}),
    "convolutions": (make_policy, IMAGE, {"cnn": ((4, 4, 2),)}),
    "residual stages": (make_policy, IMAGE, {"cnn": (Stage(4),), "norm": "rms"}),
    "residual blocks": (make_policy, VECTOR, {"norm": "layer", "residual": True}),
    "q(s, a)": (make_policy, VECTOR, {"critic": "q"}),
    "gru": (make_recurrent_policy, VECTOR, {"memory": "gru", "memory_size": 8}),
}


def both(name):
    """Policies in float32 and bfloat16, the parameters of both, and inputs."""
    make, space, options = NETWORKS[name]
    policies = [
        make(space, spaces.Discrete(3), hidden=(16, 16), dtype=dtype, **options)
        for dtype in ("float32", "bfloat16")
    ]
    obs = jax.random.uniform(jax.random.key(0), (ROWS, *space.shape), minval=0, maxval=1)
    obs = (255 * obs).astype(jnp.uint8) if space.dtype == np.uint8 else obs
    shapes = [jax.eval_shape(p.init, jax.random.key(1), obs) for p in policies]
    assert shapes[0] == shapes[1]
    params = jax.jit(policies[0].init)(jax.random.key(1), obs)
    inputs = obs
    if name == "gru":
        core = jax.tree.map(lambda x: x[:, None], policies[0].init_core(ROWS))
        inputs = SequenceInputs(obs[:, None], jnp.ones((ROWS, 1), bool), core)
    if name == "q(s, a)":
        inputs = StateAction(obs, jnp.arange(ROWS) % 3)
    return policies, params, inputs


SLOW = [pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS if n != "mlp"]


@pytest.mark.parametrize("name", ["mlp", *SLOW])
def test_outputs_are_float32_and_nearly_the_same(name):
    (exact, half), params, inputs = both(name)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    apply = jax.jit(lambda *given: (exact.apply(*given), half.apply(*given)))
    (dist, value), (dist_half, value_half) = apply(params, inputs)
    pairs = ((value, value_half), (100 * dist.logits, 100 * dist_half.logits))
    for x, y in pairs:  # policy heads are initialised near 0
        assert x.dtype == y.dtype == jnp.float32
        difference = np.abs(np.asarray(x - y))
        assert 0 < difference.max() < 0.05 * max(1.0, float(jnp.abs(x).max())), name
    products = str(jax.make_jaxpr(half.apply)(params, inputs))
    assert "bf16" in products and "bf16" not in str(jax.make_jaxpr(exact.apply)(params, inputs))


def test_loss_and_gradient_are_nearly_those_of_float32():
    (exact, half), params, obs = both("mlp")
    keys = jax.random.split(jax.random.key(2))
    ones, advantage = jnp.ones(ROWS), jax.random.normal(keys[0], (ROWS,))
    action, target = jnp.arange(ROWS) % 3, jax.random.normal(keys[1], (ROWS,))
    batch = Batch(obs, action, -1.1 * ones, 0 * ones, advantage, target, ones)

    @jax.jit
    def of_both(params):
        losses = [ppo.make_loss(policy, ppo.Config()) for policy in (exact, half)]
        return [jax.value_and_grad(lambda p, f=f: f(p, batch)[0])(params) for f in losses]

    (loss, grads), (loss_half, grads_half) = of_both(params)
    assert loss_half.dtype == jnp.float32 and abs(loss - loss_half) < 0.02 * abs(loss)
    flat = [jnp.concatenate([x.ravel() for x in jax.tree.leaves(g)]) for g in (grads, grads_half)]
    assert {x.dtype for x in jax.tree.leaves(grads_half)} == {jnp.dtype(jnp.float32)}
    assert jnp.linalg.norm(flat[0] - flat[1]) < 0.05 * jnp.linalg.norm(flat[0])


def test_the_option_reaches_the_network_and_nothing_that_is_kept():
    config = configs.make(num_envs=2, num_steps=4, hidden=(8,), network_dtype="bfloat16")
    state = jax.eval_shape(build(config).init, jax.random.key(0))
    exact = build(dataclasses.replace(config, network_dtype="float32"))
    assert state == jax.eval_shape(exact.init, jax.random.key(0))
    assert "bf16" in str(jax.make_jaxpr(build(config).step)(state))
    with pytest.raises(configs.ConfigError, match="float32, bfloat16"):
        configs.make(network_dtype="float16")


@pytest.mark.slow
def test_ppo_learns_cartpole_in_bfloat16():
    config = configs.make(env="CartPole-v1", network_dtype="bfloat16", total_timesteps=150_000)
    _, metrics = jax.jit(make_train(config))(jax.random.key(0))
    assert np.nanmean(metrics["episode_return"][-20:]) > 300
