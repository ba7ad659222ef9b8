"""The memories of a policy: recurrent cells over the steps of an episode, and the choice of one."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ppo_jax.networks.gtrxl import GatedTransformer
from ppo_jax.networks.layers import orthogonal
from ppo_jax.networks.mingru import MinGRU
from ppo_jax.types import PyTree


class Cell(NamedTuple):
    """A recurrent cell without the product of its input.

    Attributes:
        gates: number G of blocks of H numbers that are computed from input and state.
        zeros: function shape [..., H] -> state at the start of an episode.
        step: function (core, gates x [..., GH], U [H, GH], c [H]) -> core.
        output: function core -> output [..., H].
    """

    gates: int
    zeros: Callable[[tuple[int, ...]], PyTree]
    step: Callable[[PyTree, jax.Array, jax.Array, jax.Array], PyTree]
    output: Callable[[PyTree], jax.Array]


def gru_step(core: jax.Array, gates: jax.Array, recurrent: jax.Array, bias: jax.Array) -> jax.Array:
    """One step of a gated recurrent unit.

    r = σ(W_r x + U_r h),   z = σ(W_z x + U_z h),   n = tanh(W_n x + r ⊙ (U_n h + c))
    h ← (1 − z) ⊙ n + z ⊙ h

    Args:
        core: [..., H] state h.
        gates: [..., 3H] W x + b, in the order r, z, n.
        recurrent: [H, 3H] recurrent weights U.
        bias: [H] bias c.

    Returns:
        [..., H] new state h.

    Source: Cho et al. 2014, Learning Phrase Representations; r inside the candidate as in cuDNN.
    """
    r_x, z_x, n_x = jnp.split(gates, 3, axis=-1)
    r_h, z_h, n_h = jnp.split(core @ recurrent, 3, axis=-1)
    reset, update = jax.nn.sigmoid(r_x + r_h), jax.nn.sigmoid(z_x + z_h)
    candidate = jnp.tanh(n_x + reset * (n_h + bias))
    return (1.0 - update) * candidate + update * core


def lstm_step(
    core: tuple[jax.Array, jax.Array], gates: jax.Array, recurrent: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One step of a long short-term memory.

    i, f, o = σ(W x + U h + b),   g = tanh(W_g x + U_g h + b_g)
    c ← f ⊙ c + i ⊙ g,   h ← o ⊙ tanh(c)

    Args:
        core: (c, h), [..., H] each.
        gates: [..., 4H] W x + b, in the order i, f, g, o.
        recurrent: [H, 4H] recurrent weights U.
        bias: [H] bias that is added to the forget gate.

    Returns:
        (c, h), the new state.

    Source: Hochreiter & Schmidhuber 1997; the forget gate is from Gers et al. 2000.
    """
    cell, hidden = core
    i, f, g, o = jnp.split(gates + hidden @ recurrent, 4, axis=-1)
    cell = jax.nn.sigmoid(f + bias) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return cell, jax.nn.sigmoid(o) * jnp.tanh(cell)


CELLS: dict[str, Cell] = {
    "gru": Cell(3, jnp.zeros, gru_step, lambda core: core),
    "lstm": Cell(
        4, lambda shape: (jnp.zeros(shape), jnp.zeros(shape)), lstm_step, lambda core: core[1]
    ),
}
MEMORIES = ("none", *CELLS, "mingru", "gtrxl")


class Memory(nn.Module):
    """A recurrent cell over the steps of a sequence, reset at the start of each episode.

    The contribution of x to the gates is one product for all steps; only U h is inside the loop.

    Attributes:
        cell: name in CELLS.
        features: number H of units.
    """

    cell: str
    features: int

    def zeros(self, num_envs: int) -> PyTree:
        """The state at the start of an episode, with leaves [N, H]."""
        return CELLS[self.cell].zeros((num_envs, self.features))

    @nn.compact
    def __call__(self, core: PyTree, x: jax.Array, start: jax.Array) -> tuple[PyTree, jax.Array]:
        """(core after the last step, outputs [M, T, H]).

        Args:
            core: [M, H] state of each sequence before its first step.
            x: [M, T, F] inputs.
            start: [M, T] bool, whether the step is the first one of an episode, at which the state
                is reset.
        """
        cell, size = CELLS[self.cell], self.features
        shape = (size, cell.gates * size)
        gates = nn.Dense(shape[1], kernel_init=orthogonal(1.0), name="input")(x)
        recurrent = self.param("recurrent", orthogonal_blocks(cell.gates), shape)
        bias = self.param("bias", nn.initializers.zeros, (size,))

        def step(core: PyTree, now: tuple[jax.Array, jax.Array]) -> tuple[PyTree, jax.Array]:
            gates, start = now
            core = cell.step(reset_at_starts(core, start), gates, recurrent, bias)
            return core, cell.output(core)

        if x.shape[1] == 1:  # a single step while acting needs no loop
            core, y = step(core, (gates[:, 0], start[:, 0]))
            return core, y[:, None]
        over_time = (jnp.swapaxes(gates, 0, 1), start.T)
        core, y = jax.lax.scan(step, core, over_time)
        return core, jnp.swapaxes(y, 0, 1)


def reset_at_starts(core: PyTree, start: jax.Array) -> PyTree:
    """Reset the state to 0 where an episode starts, before its first step.

    Args:
        core: state with leaves [M, H].
        start: [M] bool, whether an episode starts.
    """
    return jax.tree.map(lambda x: jnp.where(start[:, None], 0.0, x), core)


def orthogonal_blocks(gates: int) -> nn.initializers.Initializer:
    """Initialise [H, GH] as G orthogonal matrices, one for each gate.

    Source: Saxe et al. 2014; the initialisation of recurrent kernels in flax and Keras.
    """

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        one = orthogonal(1.0)
        keys = jax.random.split(key, gates)
        return jnp.concatenate([one(k, (shape[0], shape[0]), dtype) for k in keys], axis=-1)

    return init


class Stack(nn.Module):
    """Memories of which each one takes the outputs of the previous one.

    Attributes:
        layers: modules such as Memory and MinGRU.
    """

    layers: Sequence[Any]

    def zeros(self, num_envs: int) -> PyTree:
        """The state at the start of an episode, a tuple of the states of the layers."""
        return tuple(layer.zeros(num_envs) for layer in self.layers)

    def __call__(self, core: PyTree, x: jax.Array, start: jax.Array) -> tuple[PyTree, jax.Array]:
        """(core after the last step, outputs [M, T, H]), with arguments as for Memory."""
        after = []
        for layer, state in zip(self.layers, core, strict=True):
            state, x = layer(state, x, start)
            after.append(state)
        return tuple(after), x


class MemoryLayers(NamedTuple):
    """The memory of a network.

    Attributes:
        kind: name in MEMORIES except none.
        size: number H of units of a layer.
        layers: number of layers, each on the outputs of the previous one.
        heads: number of attention heads of gtrxl, a divisor of the size.
        length: number of previous steps that a layer of gtrxl attends to.
    """

    kind: str
    size: int = 64
    layers: int = 1
    heads: int = 4
    length: int = 32

    def module(self) -> Any:
        """A module with `zeros(num_envs) -> core`, and a call (core, x, start) -> (core, y).

        Its core has leaves [N, ...] and contains everything that later steps depend on. Outputs for
        T steps are those of T calls with one step each.
        """
        if self.kind == "gtrxl":
            return GatedTransformer(self.size, self.layers, self.heads, self.length)
        layers = [self._layer() for _ in range(self.layers)]
        return layers[0] if self.layers == 1 else Stack(tuple(layers))

    def _layer(self) -> nn.Module:
        return MinGRU(self.size) if self.kind == "mingru" else Memory(self.kind, self.size)
