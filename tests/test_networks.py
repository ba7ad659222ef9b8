"""Initialisation as measured for peers, equivalent convolutions, and networks for all spaces."""

import functools
import subprocess
import sys
import warnings

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import config as configs
from ppo_jax import envs, networks
from ppo_jax.distributions import (
    Bernoulli,
    Categorical,
    DiagGaussian,
    MultiCategorical,
    TanhGaussian,
)
from ppo_jax.envs import spaces
from ppo_jax.experiment import warn_of_the_network
from ppo_jax.networks.convolutions import pixels_read
from ppo_jax.networks.layers import orthogonal
from ppo_jax.sweep import session
from ppo_jax.sweep.store import Spec
from reference import Golden

GOLDEN = Golden("10_init")
KEY = jax.random.key(0)
VECTOR = spaces.Box(-np.inf, np.inf, (4,))


def gains(params) -> dict[str, tuple[float, float]]:
    """The smallest and the largest singular value of every kernel, by path."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if leaf.ndim >= 2:
            values = np.linalg.svd(np.asarray(leaf).reshape(-1, leaf.shape[-1]), compute_uv=False)
            found[jax.tree_util.keystr(path)] = (values.min(), values.max())
    return found


def peer_gains(case: str) -> dict[str, float]:
    arrays = GOLDEN(case)
    kernels = arrays["sv_max"] > 0  # excludes vectors and log_std as a (1, D) matrix
    np.testing.assert_allclose(arrays["sv_min"][kernels], arrays["sv_max"][kernels], rtol=1e-5)
    return dict(zip(arrays["names"][kernels].tolist(), arrays["sv_max"][kernels], strict=True))


@pytest.mark.parametrize(
    ("case", "space"),
    [
        ("sb3_mlp_discrete", spaces.Discrete(2)),
        ("cleanrl_discrete", spaces.Discrete(2)),
        ("sb3_mlp_box", spaces.Box(-1.0, 1.0, (2,))),
        ("cleanrl_continuous", spaces.Box(-1.0, 1.0, (2,))),
    ],
)
def test_gains_equal_the_peers(case, space):
    params = networks.make_policy(VECTOR, space).init(KEY, jnp.zeros((3, 4)))
    found = gains(params)
    for low, high in found.values():
        np.testing.assert_allclose(low, high, rtol=1e-5)
    ours = sorted(high for _, high in found.values())
    np.testing.assert_allclose(ours, sorted(peer_gains(case).values()), rtol=1e-5)
    np.testing.assert_allclose(found["['actor']['head']['kernel']"], 0.01, rtol=1e-5)
    np.testing.assert_allclose(found["['critic']['head']['kernel']"], 1.0, rtol=1e-5)
    biases = [x for p, x in jax.tree_util.tree_leaves_with_path(params) if x.ndim == 1]
    assert all((b == 0).all() for b in biases)  # log_std is included


def test_cnn_gains_equal_sb3():
    image = spaces.Box(0, 255, (36, 36, 4), np.uint8)
    policy = networks.make_policy(
        image,
        spaces.Discrete(3),
        hidden=(32,),
        activation="relu",
        cnn=networks.CONVOLUTIONS["nature"],
        shared_torso=True,
    )
    params = policy.init(KEY, jnp.zeros((1, 36, 36, 4), jnp.uint8))
    ours = sorted(high for _, high in gains(params).values())
    np.testing.assert_allclose(ours, sorted(set_of_four(peer_gains("sb3_cnn_small"))), rtol=1e-5)
    assert params.keys() == {"torso", "actor", "critic"}


def set_of_four(peer: dict[str, float]) -> list[float]:
    """SB3 lists its shared feature extractor under three names; each layer is counted once."""
    return [v for k, v in peer.items() if not k.startswith(("pi_", "vf_"))]


@pytest.mark.parametrize(
    ("kernel", "stride", "size"), [(3, 1, 10), (4, 2, 20), (8, 4, 36), (8, 4, 39)]
)
def test_patches_are_the_convolution(kernel, stride, size):
    """Values and gradients, compared with XLA's convolution and with flax's layer."""
    x = jax.random.normal(KEY, (2, size, size, 3))
    weights = jax.random.normal(jax.random.key(1), (kernel, kernel, 3, 5))
    by_patches = networks.conv_by_patches(x, weights, stride)
    by_xla = networks.conv_by_xla(x, weights, stride)
    layer = nn.Conv(5, (kernel, kernel), strides=stride, padding="VALID", use_bias=False)
    by_flax = layer.apply({"params": {"kernel": weights}}, x)
    np.testing.assert_allclose(by_patches, by_flax, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(by_xla, by_flax, rtol=1e-4, atol=1e-4)

    def gradient(convolve):
        return jax.grad(lambda w, x: jnp.sum(jnp.sin(convolve(x, w, stride))), (0, 1))(weights, x)

    for a, b in zip(
        gradient(networks.conv_by_patches), gradient(networks.conv_by_xla), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("space", "options", "expected"),
    [
        (spaces.Discrete(3), {}, Categorical),
        (spaces.MultiDiscrete((3, 2)), {}, MultiCategorical),
        (spaces.MultiBinary(3), {}, Bernoulli),
        (spaces.Box(-1.0, 1.0, (2,)), {}, DiagGaussian),
        (spaces.Box(-1.0, 1.0, (2,)), {"squash": True}, TanhGaussian),
        (spaces.Box(-1.0, 1.0, (2, 2)), {}, DiagGaussian),
    ],
)
@pytest.mark.parametrize("shared", [False, True])
def test_the_action_space_decides_the_distribution(space, options, expected, shared):
    policy = networks.make_policy(VECTOR, space, shared_torso=shared, **options)
    obs = jnp.ones((3, 4))
    params = policy.init(KEY, obs)
    assert params.keys() == ({"torso", "actor", "critic"} if shared else {"actor", "critic"})
    dist, value = policy.apply(params, obs)
    assert isinstance(dist, expected)
    assert value.shape == dist.entropy().shape == (3,)
    assert dist.log_prob(dist.sample(KEY)).shape == (3,)
    two = policy.apply(params, jnp.ones((5, 3, 4)))  # any leading shape
    assert two[1].shape == two[0].entropy().shape == (5, 3)
    core, acting, _ = policy.act(params, policy.init_core(3), obs, jnp.zeros(3, bool))
    assert core == ()
    np.testing.assert_array_equal(acting.entropy(), dist.entropy())


@pytest.mark.parametrize(
    ("space", "obs", "width"),
    [
        (spaces.Discrete(5), jnp.array([1, 4]), 5),
        (spaces.Box(0, 255, (2, 2, 1), np.uint8), jnp.full((2, 2, 2, 1), 255, jnp.uint8), 4),
        (spaces.Box(-9, 9, (3,), np.int32), jnp.ones((2, 3), jnp.int32), 3),
    ],
)
def test_observations_become_float_features(space, obs, width):
    x = networks.preprocess(space, obs, image=False)
    assert x.shape == (2, width) and x.dtype == jnp.float32
    assert x.max() == 1.0


def test_a_head_is_a_dense_layer():
    """Only the order of the products in its gradient differs, in both derivatives."""
    x = jax.random.normal(jax.random.key(0), (5, 7, 16))
    ours, plain = networks.head(3, 1.0), nn.Dense(3)
    params = ours.init(jax.random.key(1), x)

    def results(layer):
        def loss(params, x):
            return jnp.sum(jnp.sin(layer.apply(params, x)))

        tangents = jax.tree.map(jnp.ones_like, params)
        gradient = jax.grad(loss, argnums=(0, 1))
        return gradient(params, x), jax.jvp(lambda p: gradient(p, x), (params,), (tangents,))

    chex.assert_trees_all_close(jax.jit(results, static_argnums=0)(ours), results(plain), rtol=1e-4)


def test_log_std_starts_where_it_is_told():
    policy = networks.make_policy(VECTOR, spaces.Box(-1.0, 1.0, (2,)), log_std_init=-0.7)
    np.testing.assert_allclose(policy.init(KEY, jnp.zeros((1, 4)))["actor"]["log_std"], -0.7)


def test_vmapped_initialisation_equals_single():
    policy = networks.make_policy(VECTOR, spaces.Discrete(2))
    keys = jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(lambda k: policy.init(k, jnp.zeros((1, 4)))))(keys)
    alone = jax.jit(lambda k: policy.init(k, jnp.zeros((1, 4))))(keys[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, atol=1e-6), together, alone)


HANG = """
import jax, jax.numpy as jnp, numpy as np
from ppo_jax.envs import spaces
from ppo_jax.networks import make_policy
policy = make_policy(spaces.Box(-1.0, 1.0, (4,)), spaces.Discrete(2))
init = jax.jit(jax.vmap(lambda key: policy.init(key, jnp.zeros((1, 4)))))
for i in range(200):
    jax.block_until_ready(init(jax.random.split(jax.random.key(i), 16)))
print("done")
"""


@pytest.mark.parametrize(("platform", "loops"), [("cpu", True), ("cuda", False)])
def test_many_initialisers_are_factorised_one_by_one_on_cpus_alone(platform, loops):
    """Batched factorisation deadlocks on CPUs; on GPUs, a loop over many agents would be slow."""
    draw = jax.vmap(lambda key: orthogonal(1.0)(key, (8, 8)))
    keys = jax.random.split(jax.random.key(0), 4)
    text = jax.export.export(jax.jit(draw), platforms=[platform])(keys).mlir_module()
    assert ("stablehlo.while" in text) == loops and "geqrf" in text


def test_sixteen_vmapped_initialisers_do_not_deadlock():
    """Batched QR in jaxlib 0.10 deadlocks on two cores, mostly within 50 calls."""
    result = subprocess.run(
        [sys.executable, "-c", HANG], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.stdout.strip() == "done", result.stderr


def test_normalisation_before_the_activation_by_hand():
    x = jnp.asarray([[1.0, -2.0]])
    for norm in ("layer", "rms"):
        module = networks.MLP((3,), "tanh", norm=norm)
        params = module.init(KEY, x)["params"]
        (name,) = {*params} - {"Dense_0"}
        scale = {"scale": jnp.asarray([1.0, 2.0, -1.0])}
        if norm == "layer":
            scale["bias"] = jnp.asarray([0.1, 0.0, 0.2])
        found = module.apply({"params": params | {name: scale}}, x)
        y = np.asarray(x @ params["Dense_0"]["kernel"])
        y = y - y.mean() if norm == "layer" else y
        y = y / np.sqrt(np.mean(y**2) + 1e-6) * np.asarray(scale["scale"])
        np.testing.assert_allclose(found, np.tanh(y + scale.get("bias", 0.0)), rtol=1e-5)


def test_a_residual_block_by_hand():
    module = networks.ResidualMLP(4, 1, "relu", norm="rms")
    x = jax.random.normal(KEY, (3, 2))
    params = module.init(KEY, x)["params"]
    kernels = [np.asarray(params[f"Dense_{i}"]["kernel"]) for i in range(3)]
    assert [k.shape for k in kernels] == [(2, 4), (4, 16), (16, 4)]
    normal = lambda x: x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)
    y = np.asarray(x) @ kernels[0]
    y = y + np.maximum(normal(y) @ kernels[1], 0.0) @ kernels[2]
    np.testing.assert_allclose(module.apply({"params": params}, x), normal(y), rtol=1e-4, atol=1e-6)


def test_the_impala_network_is_convolutions_pooling_and_a_mean():
    module = networks.CNN((networks.Stage(4),))
    x = jax.random.normal(KEY, (2, 7, 6, 3))
    params = module.init(KEY, x)["params"]
    ((_, stage),) = params.items()

    def conv(x: jax.Array, i: int) -> jax.Array:
        dimensions = ("NHWC", "HWIO", "NHWC")
        kernel = stage[f"Conv_{i}"]["kernel"]
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)

    y = nn.max_pool(conv(x, 0), (3, 3), (2, 2), padding="SAME")
    assert y.shape == (2, 4, 3, 4)
    for i in (1, 3):
        y = y + conv(jax.nn.relu(conv(jax.nn.relu(y), i)), i + 1)
    wanted = jax.nn.relu(y).mean(axis=(1, 2))
    np.testing.assert_allclose(module.apply({"params": params}, x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", ["minatar", "small", "nature"])
@pytest.mark.parametrize("size", [36, 40, 42])
def test_pixels_that_convolutions_read_are_those_with_a_gradient(network, size):
    layers = networks.CONVOLUTIONS[network]
    cnn, x = networks.CNN(layers), jax.random.uniform(KEY, (1, size, 36, 1))
    params = cnn.init(KEY, x)
    gradient = jax.grad(lambda x: jnp.square(cnn.apply(params, x)).sum())(x)
    rows = np.flatnonzero(np.abs(gradient).sum((0, 2, 3)))
    assert len(rows) == pixels_read(size, layers) == rows[-1] + 1


def test_a_wide_strip_of_unread_pixels_is_described():
    unread_pixels = networks.unread_pixels
    found = unread_pixels("small", (42, 36, 3))
    assert "last 6 of the 42 rows" in found and found.endswith("all rows of images with 36 or 44")
    assert "last 6 of the 42 columns" in unread_pixels("nature", (84, 42, 4))
    for network, shape in (
        ("small", (36, 28, 3)),
        ("nature", (84, 84, 4)),
        ("impala", (42, 42, 3)),
    ):
        assert unread_pixels(network, shape) is None
    assert unread_pixels("small", (210, 160, 3)) is None  # 2 of 210 rows


def test_runs_and_sweeps_warn_of_unread_pixels():
    env = envs.make("Pong", size=42, frames=3)
    of = functools.partial(configs.make, env_args=("size=42", "frames=3"))
    with pytest.warns(UserWarning, match="Pong: network 'small' does not read the last 6"):
        warn_of_the_network(of(preset="pong_cnn"), env)
    spec = Spec((), (of(preset="pong_cnn", num_envs=4),), (0,), 0, 1)
    with pytest.warns(UserWarning, match="Pong: network 'small' does not read the last 6"):
        session.check(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_the_network(of(preset="pong"), env)  # without convolutions
        warn_of_the_network(configs.make(preset="pong_cnn"), envs.make("Pong", size=28, frames=3))
        warn_of_the_network(of(preset="pong_cnn", policy="module:own"), env)
