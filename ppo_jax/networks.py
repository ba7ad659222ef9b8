"""Networks, and the Policy that hides them: observation -> (distribution, value)."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ppo_jax.distributions import (
    Bernoulli,
    Categorical,
    DiagGaussian,
    Distribution,
    MultiCategorical,
    TanhGaussian,
)
from ppo_jax.envs import spaces
from ppo_jax.types import Params, PyTree

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
}
HIDDEN_GAIN = math.sqrt(2.0)

# (features, kernel, stride) of the convolutions before the first fully connected layer.
CONVOLUTIONS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "mlp": (),
    "minatar": ((16, 3, 1),),
    "nature": ((32, 8, 4), (64, 4, 2), (64, 3, 1)),
}


@struct.dataclass
class StateAction:
    """The inputs of a policy whose critic judges actions.

    Attributes:
        obs: [..., *observation shape].
        action: [..., *action shape].
    """

    obs: PyTree
    action: PyTree


class Policy(NamedTuple):
    """A policy and its critic as pure functions.

    init(key, obs) -> params with top-level keys actor, critic (and torso when shared)
    init_core(num_envs) -> core, the memory between steps; () without one
    act(params, core, obs [N, ...], start [N]) -> (core, dist [N], value [N]), one step
    apply(params, inputs) -> (dist, value), any leading shape: what the losses call
    value(params, inputs) -> value, any leading shape; None unless it needs neither memory nor
        what `act` computes anyway. Where it is there, a rollout values its states all at once.
    critic: "v": V(s). "q": q(s, a), whose inputs are a StateAction, and of which `act`, not
        knowing the action, knows 0. "none": 0, without parameters.
    """

    init: Callable[[jax.Array, PyTree], Params]
    init_core: Callable[[int], PyTree]
    act: Callable[[Params, PyTree, PyTree, jax.Array], tuple[PyTree, Distribution, jax.Array]]
    apply: Callable[[Params, PyTree], tuple[Distribution, jax.Array]]
    value: Callable[[Params, PyTree], jax.Array] | None = None
    critic: str = "v"


def orthogonal(gain: float) -> nn.initializers.Initializer:
    """Orthogonal initialisation that is safe to vmap.

    W = gain · Q, the columns (or rows) of Q orthonormal.

    One matrix is factorised at a time even under vmap: batched QR of jaxlib 0.10 can deadlock on
    machines with few cores.

    Args:
        gain: all singular values of the matrix [fan_in..., fan_out].

    Source: Saxe et al. 2014, Exact Solutions to the Nonlinear Dynamics of Learning.
    """
    dense = nn.initializers.orthogonal(gain)

    def init(key: jax.Array, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
        one = jax.custom_batching.sequential_vmap(lambda key: dense(key, shape, dtype))
        return one(key)

    return init


class MLP(nn.Module):
    """Fully connected layers, each followed by the activation.

    Attributes:
        features: width of each layer.
        activation: name in ACTIVATIONS.
    """

    features: Sequence[int]
    activation: str = "tanh"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in self.features:
            x = nn.Dense(width, kernel_init=orthogonal(HIDDEN_GAIN))(x)
            x = ACTIVATIONS[self.activation](x)
        return x


class Conv(nn.Module):
    """A convolution without padding, as patches and one matrix product where that is faster.

    On CPU the gradient of XLA's convolution inside a loop is 9 to 18 times slower than outside
    (jax-ml/jax#12868), and PPO's epochs are a loop; there the image is cut into patches: the
    stride moves into channels, the kernel becomes shifted slices. Parameters and results are
    those of `nn.Conv(padding="VALID")`.

    Attributes:
        features: output channels.
        kernel: side of the square kernel.
        stride: must divide the kernel in the patch form.
    """

    features: int
    kernel: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", orthogonal(HIDDEN_GAIN), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        patches = jax.default_backend() == "cpu" and self.kernel % self.stride == 0
        return (conv_by_patches if patches else conv_by_xla)(x, kernel, self.stride) + bias


def conv_by_xla(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """[B, H, W, C] * [k, k, C, F] -> [B, H', W', F], XLA's own convolution."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "VALID", dimension_numbers=dimensions
    )


def conv_by_patches(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The same as one matrix product over patches, gathered by slicing alone.

    With stride s each s×s block of pixels becomes one pixel of s²C channels, on which the kernel
    has side k/s and stride 1.
    """
    batch, height, width, channels = x.shape
    side, features = kernel.shape[0] // stride, kernel.shape[-1]
    rows, columns = ((n - kernel.shape[0]) // stride + 1 for n in (height, width))
    blocks = (rows + side - 1, columns + side - 1)

    x = x[:, : blocks[0] * stride, : blocks[1] * stride]
    x = x.reshape(batch, blocks[0], stride, blocks[1], stride, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, *blocks, stride * stride * channels)
    shifts = [x[:, i : i + rows, j : j + columns] for i in range(side) for j in range(side)]
    kernel = kernel.reshape(side, stride, side, stride, channels, features)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(-1, features)
    return jnp.concatenate(shifts, axis=-1) @ kernel


class CNN(nn.Module):
    """Convolutions over an image [..., H, W, C], flattened to [..., F].

    Attributes:
        layers: (features, kernel, stride) of each convolution.
        activation: name in ACTIVATIONS.
    """

    layers: Sequence[tuple[int, int, int]]
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        leading = x.shape[:-3]
        x = x.reshape(-1, *x.shape[-3:])
        for features, kernel, stride in self.layers:
            x = ACTIVATIONS[self.activation](Conv(features, kernel, stride)(x))
        return x.reshape(*leading, -1)


def head(features: int, gain: float) -> nn.Dense:
    """A linear layer whose gain sets how far from uniform, or from zero, it starts."""
    return nn.Dense(
        features, kernel_init=orthogonal(gain), name="head", dot_general=_dot_of_few_outputs
    )


def _dot_of_few_outputs(
    x: jax.Array, kernel: jax.Array, dimensions: Any, **options: Any
) -> jax.Array:
    """[..., F] @ [F, A] for small A, as a product with the transposed kernel.

    `dimensions` are always nn.Dense's: the last of x with the first of the kernel.

    Its gradient then is gᵀ x [A, F] and not xᵀ g, in which a CPU first rearranges all of x: five
    times faster on 2,048 rows, and a whole update 9 %. The barrier keeps XLA from undoing it.
    """
    transposed = jax.lax.optimization_barrier(kernel.T)
    return jax.lax.dot_general(x, transposed, (((x.ndim - 1,), (1,)), ((), ())), **options)


class Actor(nn.Module):
    """Body and policy head; a Gaussian's log_std is a parameter and does not see the state.

    Attributes:
        body: observation features, or None after a shared torso.
        action_space: decides the distribution.
        squash: TanhGaussian instead of a clipped DiagGaussian.
        log_std_init: log σ at the start.
    """

    body: nn.Module | None
    action_space: spaces.Space
    squash: bool = False
    log_std_init: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> Distribution:
        x = x if self.body is None else self.body(x)
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            return Categorical(head(space.n, 0.01)(x))
        if isinstance(space, spaces.MultiDiscrete):
            return MultiCategorical(head(sum(space.sizes), 0.01)(x), space.sizes)
        if isinstance(space, spaces.MultiBinary):
            return Bernoulli(head(space.n, 0.01)(x))
        size = int(np.prod(space.shape))
        mean = head(size, 0.01)(x)
        log_std = self.param("log_std", nn.initializers.constant(self.log_std_init), (size,))
        log_std = jnp.broadcast_to(log_std, mean.shape)
        bounds = (jnp.asarray(b.reshape(-1), mean.dtype) for b in (space.low, space.high))
        low, high = (jnp.broadcast_to(b, mean.shape) for b in bounds)
        return (TanhGaussian if self.squash else DiagGaussian)(mean, log_std, low, high)


class Critic(nn.Module):
    """Body and a scalar head: V(s)."""

    body: nn.Module | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x if self.body is None else self.body(x)
        return head(1, 1.0)(x)[..., 0]


class QCritic(nn.Module):
    """q(s, a): an output per action where they can be counted, else the action is an input.

    Attributes:
        convolutions: of images, before the action joins; or None.
        body: fully connected layers.
        action_space: of the actions as the policy draws them.
    """

    convolutions: nn.Module | None
    body: nn.Module
    action_space: spaces.Space

    @nn.compact
    def __call__(self, x: jax.Array, action: jax.Array) -> jax.Array:
        x = x if self.convolutions is None else self.convolutions(x)
        if isinstance(self.action_space, spaces.Discrete):
            chosen = jax.nn.one_hot(action, self.action_space.n, dtype=x.dtype)
            return jnp.sum(head(self.action_space.n, 1.0)(self.body(x)) * chosen, axis=-1)
        features = jnp.concatenate([x, encode(self.action_space, action).astype(x.dtype)], axis=-1)
        return head(1, 1.0)(self.body(features))[..., 0]


def encode(space: spaces.Space, action: jax.Array) -> jax.Array:
    """Actions [..., *space.shape] of several choices or of numbers as features [..., F]."""
    if isinstance(space, spaces.MultiDiscrete):
        parts = [jax.nn.one_hot(action[..., i], n) for i, n in enumerate(space.sizes)]
        return jnp.concatenate(parts, axis=-1)
    return action


def preprocess(space: spaces.Space, obs: jax.Array, image: bool) -> jax.Array:
    """An observation as the float features a network takes.

    Discrete observations become one-hot, bytes are divided by 255, everything that is not an
    image is flattened.

    Args:
        space: observation space.
        obs: [..., *space.shape].
        image: keep [H, W, C] for a CNN.

    Returns:
        [..., F] or [..., H, W, C] float32.
    """
    if isinstance(space, spaces.Discrete):
        return jax.nn.one_hot(obs, space.n)
    rank = len(space.shape)
    scale = 255.0 if obs.dtype == jnp.uint8 else 1.0
    features = obs.astype(jnp.promote_types(obs.dtype, jnp.float32)) / scale
    return features if image else features.reshape(*features.shape[: features.ndim - rank], -1)


def make_policy(
    observation_space: spaces.Space,
    action_space: spaces.Space,
    *,
    hidden: Sequence[int] = (64, 64),
    activation: str = "tanh",
    cnn: Sequence[tuple[int, int, int]] = (),
    shared_torso: bool = False,
    squash: bool = False,
    log_std_init: float = 0.0,
    critic: str = "v",
) -> Policy:
    """The feed-forward actor-critic for a pair of spaces.

    Args:
        observation_space: Box (vector or image), Discrete.
        action_space: Discrete, MultiDiscrete, MultiBinary, Box.
        hidden: widths of the fully connected layers.
        activation: name in ACTIVATIONS.
        cnn: (features, kernel, stride) of convolutions before the first hidden layer, or empty.
        shared_torso: one body under both heads instead of one each.
        squash: tanh-squashed Gaussian for Box actions.
        log_std_init: log σ of a Gaussian at the start.
        critic: "v", "q" or "none", as in Policy.

    Returns:
        Policy without memory: its core is ().

    Raises:
        ValueError: a critic of actions on a torso shared with the actor, who does not know them.
    """
    if critic == "q" and shared_torso:
        raise ValueError("a critic q(s, a) shares no torso with the actor; use shared_torso=False")
    image = bool(cnn)

    def convolutions() -> nn.Module | None:
        return CNN(tuple(cnn), activation) if image else None

    def layers() -> nn.Module:
        return MLP(tuple(hidden), activation)

    def body() -> nn.Module:
        front = convolutions()
        return layers() if front is None else nn.Sequential([front, layers()])

    torso = body()
    actor = Actor(None if shared_torso else body(), action_space, squash, log_std_init)
    judge: nn.Module = Critic(None if shared_torso else body())
    if critic == "q":
        judge = QCritic(convolutions(), layers(), action_space)

    def features(params: Params, obs: PyTree) -> jax.Array:
        x = preprocess(observation_space, obs, image)
        return run(torso, params["torso"], x) if shared_torso else x

    def evaluate(params: Params, x: jax.Array, *action: jax.Array) -> jax.Array:
        if critic == "none" or (critic == "q" and not action):
            return jnp.zeros(x.shape[: -3 if image and not shared_torso else -1])
        return run(judge, params["critic"], x, *action)

    def init(key: jax.Array, obs: PyTree) -> Params:
        torso_key, actor_key, critic_key = jax.random.split(key, 3)
        x = preprocess(observation_space, obs, image)
        params: dict[str, Any] = {}
        if shared_torso:
            params["torso"] = torso.init(torso_key, x).get("params", {})
            x = run(torso, params["torso"], x)
        dist, variables = actor.init_with_output(actor_key, x)
        params["actor"] = variables["params"]
        if critic != "none":
            action = (dist.mode(),) if critic == "q" else ()
            params["critic"] = judge.init(critic_key, x, *action)["params"]
        return params

    def apply(params: Params, inputs: PyTree) -> tuple[Distribution, jax.Array]:
        obs, *action = (inputs.obs, inputs.action) if critic == "q" else (inputs,)
        x = features(params, obs)
        return run(actor, params["actor"], x), evaluate(params, x, *action)

    def act(params: Params, core: PyTree, obs: PyTree, start: jax.Array) -> Any:
        x = features(params, obs)
        return core, run(actor, params["actor"], x), evaluate(params, x)

    def value(params: Params, inputs: PyTree) -> jax.Array:
        return apply(params, inputs)[1]

    return Policy(init, lambda num_envs: (), act, apply, None if shared_torso else value, critic)


def run(module: nn.Module, params: Params, *inputs: jax.Array) -> Any:
    """Apply a module to its parameters."""
    return module.apply({"params": params}, *inputs)
