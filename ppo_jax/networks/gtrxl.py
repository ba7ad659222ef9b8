"""A gated transformer (GTrXL), whose memory is its inputs at the last steps of the episode."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# Initial bias of the gates: a block is close to the identity at first.
GATE_BIAS = 2.0
# Width of the hidden layer of a block, as a multiple of its number of features.
WIDENING = 4


class Recent(NamedTuple):
    """The last L steps of a sequence, the state of a gated transformer.

    Attributes:
        inputs: [N, K, L, D] inputs of each of the K blocks at these steps; 0 where not valid.
        valid: [N, L] bool, whether the step belongs to the current episode.
    """

    inputs: jax.Array
    valid: jax.Array


class GatedTransformer(nn.Module):
    """Transformer blocks over the current step and the last L steps of the episode.

    All steps of a sequence are computed at once. The steps before the sequence enter as data, so
    that no gradient flows into them.

    Attributes:
        features: number D of features of a step.
        layers: number K of blocks.
        heads: number of attention heads, a divisor of D.
        length: number L of previous steps that a block attends to.

    Source: Parisotto et al. 2020, Stabilizing Transformers for Reinforcement Learning, section 3;
    the memory and the relative positions are from Dai et al. 2019, Transformer-XL, section 3.
    """

    features: int
    layers: int
    heads: int
    length: int

    def zeros(self, num_envs: int) -> Recent:
        """The state at the start of an episode, without a valid step."""
        shape = (num_envs, self.layers, self.length, self.features)
        return Recent(jnp.zeros(shape), jnp.zeros((num_envs, self.length), bool))

    @nn.compact
    def __call__(self, core: Recent, x: jax.Array, start: jax.Array) -> tuple[Recent, jax.Array]:
        """(core after the last step, outputs [M, T, D]).

        Args:
            core: state of each sequence before its first step, with leaves [M, ...].
            x: [M, T, F] inputs.
            start: [M, T] bool, whether the step is the first one of an episode, which attends to
                no earlier step.
        """
        steps = x.shape[1]
        y = _padded(_dense(self.features, "embedding")(x), self.length)
        episode = episodes_of(core.valid, start)
        visible = visible_steps(_padded(episode, self.length, steps, value=-2), self.length)
        last = slice(steps, steps + self.length)
        valid = episode[:, last] == episode[:, -1:]
        inputs = []
        for i in range(self.layers):
            seen = jnp.concatenate([core.inputs[:, i], y], axis=1)
            inputs.append(jnp.where(valid[..., None], seen[:, last], 0.0))
            y = _Block(self.heads, self.length, name=f"block_{i}")(seen, y, visible)
        return Recent(jnp.stack(inputs, axis=1), valid), y[:, :steps]


class _Block(nn.Module):
    """Attention and a small network, each with layer normalisation before it and a gate after it.

    y ← g₁(y, relu(attention(N(y))))        y ← g₂(y, relu(W₂ relu(W₁ N(y) + b₁) + b₂))
    """

    heads: int
    length: int

    @nn.compact
    def __call__(self, seen: jax.Array, y: jax.Array, visible: jax.Array) -> jax.Array:
        """[M, T, D] outputs.

        Args:
            seen: [M, L + T, D] inputs at the steps before the sequence and at its steps.
            y: [M, T, D] inputs at the steps of the sequence.
            visible: the result of `visible_steps`.
        """
        attention = _Attention(self.heads, self.length, name="attention")
        attended = attention(nn.LayerNorm(name="norm_attention")(seen), visible)
        y = _Gate(name="gate_attention")(y, jax.nn.relu(attended))
        hidden = _dense(WIDENING * y.shape[-1], "hidden")(nn.LayerNorm(name="norm_mlp")(y))
        out = _dense(y.shape[-1], "out")(jax.nn.relu(hidden))
        return _Gate(name="gate_mlp")(y, jax.nn.relu(out))


class _Gate(nn.Module):
    """A gate in place of the sum x + y of a residual connection.

    r = σ(W_r y + U_r x),   z = σ(W_z y + U_z x − b),   n = tanh(W_n y + U_n (r ⊙ x))
    g(x, y) = (1 − z) ⊙ x + z ⊙ n

    Source: Parisotto et al. 2020, section 3.2, "Gated-Recurrent-Unit-type gating".
    """

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        size = x.shape[-1]
        bias = self.param("bias", nn.initializers.constant(GATE_BIAS), (size,))
        r_y, z_y, n_y = jnp.split(_dense(3 * size, "of_y", use_bias=False)(y), 3, axis=-1)
        r_x, z_x = jnp.split(_dense(2 * size, "of_x", use_bias=False)(x), 2, axis=-1)
        reset, update = jax.nn.sigmoid(r_y + r_x), jax.nn.sigmoid(z_y + z_x - bias)
        candidate = jnp.tanh(n_y + _dense(size, "of_reset", use_bias=False)(reset * x))
        return (1.0 - update) * x + update * candidate


class _Attention(nn.Module):
    """Attention with relative positions to the current step and the L steps before it.

    For the query of step i and the key of step j, with the encoding r of the distance i − j:

    a_ij = ((q_i + u) · k_j + (q_i + v) · W r_{i−j}) / √(D / heads)

    Source: Dai et al. 2019, Transformer-XL, section 3.3.
    """

    heads: int
    length: int

    @nn.compact
    def __call__(self, seen: jax.Array, visible: jax.Array) -> jax.Array:
        """[M, T, D] outputs at the last T steps of `seen` [M, L + T, D]."""
        (size, *_), features = seen.shape, seen.shape[-1]
        per_head = (self.heads, features // self.heads)

        def project(x: jax.Array, name: str) -> jax.Array:
            return _dense(features, name, use_bias=False)(x).reshape(*x.shape[:-1], *per_head)

        u, v = (self.param(n, nn.initializers.zeros, per_head) for n in ("content", "position"))
        blocks, width = visible.shape[1], visible.shape[-2]
        query = project(seen[:, self.length :], "query").reshape(size, blocks, width, *per_head)
        key, value = (windows(project(seen, n), self.length) for n in ("key", "value"))
        distances = project(jnp.asarray(encodings(self.length, features)), "distance")
        content = jnp.einsum("nkbhd,nkchd->nkhbc", query + u, key)
        position = jnp.einsum("nkbhd,mhd->nkhbm", query + v, distances)
        scores = (content + by_column(position, width)) / math.sqrt(per_head[1])
        weights = jax.nn.softmax(jnp.where(visible, scores, jnp.finfo(scores.dtype).min))
        mixed = jnp.einsum("nkhbc,nkchd->nkbhd", weights, value)
        return _dense(features, "mix", use_bias=False)(mixed.reshape(size, -1, features))


def _dense(features: int, name: str, use_bias: bool = True) -> nn.Dense:
    """A fully connected layer, initialised as by Glorot & Bengio 2010. Called in compact modules.

    An orthogonal initialisation of so many matrices would take long to compile.
    """
    kernel_init = nn.initializers.xavier_uniform()
    return nn.Dense(features, use_bias=use_bias, kernel_init=kernel_init, name=name)


def _padded(x: jax.Array, length: int, steps: int | None = None, value: float = 0) -> jax.Array:
    """[M, T, ...] with values appended until `windows` can divide the steps.

    Args:
        x: [M, T, ...] array, or [M, L + T, ...] if `steps` is given.
        length: number L.
        steps: number T of steps, if x has more.
        value: value of the additional elements.
    """
    steps = x.shape[1] if steps is None else steps
    more = -steps % length if steps > length else 0
    return jnp.pad(x, ((0, 0), (0, more), *((0, 0),) * (x.ndim - 2)), constant_values=value)


def windows(x: jax.Array, length: int) -> jax.Array:
    """[M, L + T, ...] -> [M, K, L + B, ...]: for each block of B steps, these and the L before.

    B is T if T ≤ L. Otherwise B is L, and T must be a multiple of it.

    Args:
        x: [M, L + T, ...] values at the L steps before a sequence and at its T steps.
        length: number L.
    """
    if x.shape[1] <= 2 * length:
        return x[:, None]
    blocks = x.reshape(x.shape[0], -1, length, *x.shape[2:])
    return jnp.concatenate([blocks[:, :-1], blocks[:, 1:]], axis=2)


def episodes_of(valid: jax.Array, start: jax.Array) -> jax.Array:
    """[M, L + T] the number of the episode of each step; −1 for steps that are not valid.

    Args:
        valid: [M, L] bool, whether a step before the sequence belongs to the current episode.
        start: [M, T] bool, whether a step of the sequence is the first one of an episode.
    """
    before = jnp.where(valid, 0, -1)
    return jnp.concatenate([before, jnp.cumsum(start, axis=1, dtype=before.dtype)], axis=1)


def visible_steps(episode: jax.Array, length: int) -> jax.Array:
    """[M, K, 1, B, L + B] bool, whether a step attends to a step of its window (`windows`).

    It attends to itself and to the L steps before it, as far as they belong to the same episode.

    Args:
        episode: [M, L + T] number of the episode of each step.
        length: number L.
    """
    seen = windows(episode, length)
    query = seen[..., length:, None]
    ahead = np.arange(seen.shape[-1]) - np.arange(query.shape[-2])[:, None]
    near = (ahead >= 0) & (ahead <= length)
    return ((query == seen[..., None, :]) & near)[:, :, None]


def encodings(length: int, features: int) -> np.ndarray:
    """[L + 1, D] sines and cosines of the distances L, ..., 1, 0.

    Source: Vaswani et al. 2017, Attention Is All You Need, section 3.5.
    """
    rates = 10_000.0 ** (-np.arange(0, features, 2) / features)
    angles = np.arange(length, -1, -1)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, :features].astype(np.float32)


def by_column(scores: jax.Array, width: int) -> jax.Array:
    """[..., B, L + 1] -> [..., B, L + B]: the scores of each query, at the columns of their steps.

    Row b of the result is row b of the scores, shifted by b columns. The shift is that of a longer
    row that is read with the length of a shorter one.

    Args:
        scores: [..., B, L + 1] scores of the distances L, ..., 0.
        width: number B of queries.

    Source: Dai et al. 2019, Transformer-XL, appendix B.
    """
    padded = jnp.pad(scores, (*((0, 0),) * (scores.ndim - 1), (0, width)))
    flat = padded.reshape(*scores.shape[:-2], -1)[..., :-width]
    return flat.reshape(*scores.shape[:-1], -1)
