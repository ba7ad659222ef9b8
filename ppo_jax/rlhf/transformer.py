"""The trunk of a decoder: embeddings, blocks of attention and MLP, the final norm."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from ppo_jax.rlhf.attention import Attention, KeyValue, last_columns
from ppo_jax.rlhf.decoder_config import DecoderConfig
from ppo_jax.rlhf.linear import Dense
from ppo_jax.rlhf.norms import norm
from ppo_jax.rlhf.rope import Rotation, rotations


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The activation function with the given name in config.json."""
    return {
        "silu": jax.nn.silu,
        "relu": jax.nn.relu,
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
        "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    }[name]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gated(name: str, gate: jax.Array, up: jax.Array | None) -> jax.Array:
    """act(gate) ⊙ up, or act(gate) without `up`.

    The gradients are those of automatic differentiation, which stores the intermediate results of
    the activation. Here the backward pass computes them again, in one pass over memory for each
    gradient, which is faster on CPUs and takes less memory. There is no forward-mode derivative.

    Args:
        name: name of the activation, see `activation`.
        gate: [..., F] inputs of the activation.
        up: [..., F] factors, or None.

    Returns:
        [..., F] products.
    """
    inner = activation(name)(gate)
    return inner if up is None else inner * up


def _gated_forward(name: str, gate: jax.Array, up: jax.Array | None) -> tuple:
    return gated(name, gate, up), (gate, up)


def _gated_backward(name: str, kept: tuple, g: jax.Array) -> tuple:
    # Without the barrier XLA finds the same expressions in the forward pass and stores them.
    gate, up, g = jax.lax.optimization_barrier((*kept, g))
    if up is None:
        return jax.vjp(activation(name), gate)[1](g)[0], None
    return jax.vjp(activation(name), gate)[1](g * up)[0], g * activation(name)(gate)


gated.defvjp(_gated_forward, _gated_backward)


class MLP(nn.Module):
    """down(act(gate(x)) ⊙ up(x)), or for gpt2, which has no gate, down(act(up(x))).

    Source: Shazeer 2020, GLU Variants Improve Transformer.
    """

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map hidden states [B, T, D] to outputs [B, T, D]."""
        c = self.config
        plain = c.structure.learned_positions

        def dense(features: int, std: float, name: str) -> Dense:
            return Dense(
                features,
                use_bias=plain or c.mlp_bias,
                dtype=jnp.dtype(c.dtype),
                kernel_init=nn.initializers.normal(std),
                name=name,
            )

        up = dense(c.intermediate_size, c.init_std, "up")(x)
        gate = None if plain else dense(c.intermediate_size, c.init_std, "gate")(x)
        inner = gated(c.activation, *((up, None) if gate is None else (gate, up)))
        return dense(c.hidden_size, c.init_std * (2 * c.num_layers) ** -0.5, "down")(inner)


class Block(nn.Module):
    """A transformer block: y = x + attention(norm(x)), then y + mlp(norm(y)).

    In some families the norms follow attention and MLP, or stand on both sides of them.

    Attributes:
        config: architecture of the model.
        last: number of last columns that have outputs; None for all T. The keys and values are
            those of all columns.

    Source: Xiong et al. 2020, On Layer Normalization in the Transformer Architecture (before);
    Gemma Team 2024, Gemma 2, section 2 (both); OLMo Team 2024, 2 OLMo 2 Furious, section 3 (after).
    """

    config: DecoderConfig
    last: int | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        rotation: Rotation | None,
        allowed: jax.Array,
        *,
        past: KeyValue | None,
        column: jax.Array | int,
    ) -> tuple[jax.Array, KeyValue]:
        """Map hidden states [B, T, D] to [B, T, D]; also returns the layer's keys and values."""
        c = self.config
        # Without the barrier XLA recomputes the sum of the gradients of all later layers wherever
        # the gradient of one layer is used.
        x = jax.lax.optimization_barrier(x)
        before, after = (c.structure.norms in (place, "both") for place in ("before", "after"))

        def normed(name: str, wanted: bool, x: jax.Array) -> jax.Array:
            return norm(c, name)(x) if wanted else x

        out, kv = Attention(c, self.last, name="attention")(
            normed("attention_norm", before, x), rotation, allowed, past=past, column=column
        )
        x = last_columns(x, self.last) + normed("attention_post_norm", after, out)
        out = MLP(c, name="mlp")(normed("mlp_norm", before, x))
        return x + normed("mlp_post_norm", after, out), kv


class Trunk(nn.Module):
    """The decoder from the embedding to the final norm; the loop over layers is unrolled.

    A scan over stacked layers would compile faster, but copies the weights of every layer out of
    the stack in each step, which makes generation slower on a CPU.

    Attributes:
        config: architecture of the model.
        depth: number of layers; None for the number in the config.
        last: number of last columns whose hidden states are needed; None for all T. The last layer
            computes only these, apart from its keys and values.
    """

    config: DecoderConfig
    depth: int | None = None
    last: int | None = None

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        keys: tuple[jax.Array, jax.Array, jax.Array],
        *,
        past: tuple[KeyValue, ...] | None = None,
        column: jax.Array | int = 0,
    ) -> tuple[jax.Array, tuple[KeyValue, ...]]:
        """Compute the hidden states of tokens [B, T] in the columns `column`, `column` + 1, … .

        Args:
            tokens: [B, T] token ids.
            positions: [B, T] positions of the tokens.
            keys: mask [B, S] bool, positions [B, S] and columns [S] of the keys.
            past: caches of the layers, each [B, K, S, head_dim]; None without a cache.
            column: index of the first token's column among the keys.

        Returns:
            Hidden states [B, T, D] after the final norm, or those of the last columns, and the
            keys and values of each layer.
        """
        c = self.config
        x = self._embed(tokens, positions)
        turns = self._rotations(positions)
        columns = column + jnp.arange(tokens.shape[1])
        seen = {w: visible(keys, columns, positions, w) for w in {c.window(i) for i in self.layers}}
        block = nn.remat(Block) if c.remat else Block
        kvs = []
        for i in self.layers:
            last = self.last if i == self.layers[-1] else None
            layer = functools.partial(
                block(c, last, name=f"layer_{i}"),
                past=None if past is None else past[i],
                column=column,
            )
            x, kv = layer(x, turns[c.rotation(i)], seen[c.window(i)])
            kvs.append(kv)
        return norm(c, "norm")(x), tuple(kvs)

    @property
    def layers(self) -> range:
        """The indices of the layers."""
        return range(self.config.num_layers if self.depth is None else self.depth)

    def _rotations(self, positions: jax.Array) -> dict[str, Rotation | None]:
        """The rotations of the layers, by the names of `DecoderConfig.rotation`."""
        used = {self.config.rotation(i) for i in self.layers}
        return {
            kind: None if kind == "none" else rotations(self.config, positions, kind == "local")
            for kind in used
        }

    def _embed(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        c = self.config
        init = nn.initializers.normal(c.init_std)
        x = self.param("embedding", init, (c.vocab_size, c.hidden_size))[tokens]
        if c.structure.learned_positions:
            table = self.param("positions", init, (c.max_positions, c.hidden_size))
            x = x + table[positions]
        x = x.astype(jnp.dtype(c.dtype))
        # The factor is rounded to the dtype of the computation, as in the reference implementation.
        return x * jnp.asarray(c.hidden_size**0.5, x.dtype) if c.structure.scaled_embedding else x


def visible(
    keys: tuple[jax.Array, jax.Array, jax.Array],
    columns: jax.Array,
    positions: jax.Array,
    window: int | None,
) -> jax.Array:
    """The keys that each query attends to: unmasked, not later than the query, within the window.

    The window is a number of positions, so that padding between two tokens does not count.

    Args:
        keys: mask [B, S] bool, positions [B, S] and columns [S] of the keys.
        columns: [T] columns of the queries.
        positions: [B, T] positions of the queries.
        window: maximum number of keys of a query, including its own; None for no limit.

    Returns:
        [B, T, S] bool, True where the query attends to the key.

    Source: Jiang et al. 2023, Mistral 7B, section 2 (the window).
    """
    mask, key_positions, key_columns = keys
    seen = mask[:, None, :] & (key_columns[None, :] <= columns[:, None])
    if window is not None:
        seen &= positions[:, :, None] - key_positions[:, None, :] < window
    return seen
