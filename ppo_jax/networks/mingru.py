"""MinGRU, a recurrent network whose states of all steps are computed at once."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ppo_jax.networks.layers import orthogonal


class MinGRU(nn.Module):
    """A minimal gated recurrent unit, reset at the start of each episode.

    z_t = σ(W_z x_t + b_z),   n_t = W_n x_t + b_n,   h_t = (1 − z_t) ⊙ h_{t−1} + z_t ⊙ n_t

    Gate and candidate do not depend on the state. Therefore the recurrence is linear, and an
    associative scan computes T states in O(log T) successive operations. Every state is a weighted
    mean of the candidates, so that products of 1 − z need no logarithms.

    Attributes:
        features: number H of units.

    Source: Feng et al. 2024, Were RNNs All We Needed?, section 3.1.
    """

    features: int

    def zeros(self, num_envs: int) -> jax.Array:
        """[N, H] the state at the start of an episode."""
        return jnp.zeros((num_envs, self.features))

    @nn.compact
    def __call__(
        self, core: jax.Array, x: jax.Array, start: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(state after the last step [M, H], states [M, T, H]).

        Args:
            core: [M, H] state of each sequence before its first step.
            x: [M, T, F] inputs.
            start: [M, T] bool, whether the step is the first one of an episode, at which the state
                is reset to 0.
        """
        gates = nn.Dense(2 * self.features, kernel_init=orthogonal(1.0), name="input")(x)
        gate, candidate = jnp.split(gates, 2, axis=-1)
        update = jax.nn.sigmoid(gate)
        keep = jnp.where(start[..., None], 0.0, 1.0 - update)
        core = jnp.where(start[:, :1], 0.0, core)
        states = linear_recurrence(keep, update * candidate, core)
        return states[:, -1], states


def linear_recurrence(keep: jax.Array, add: jax.Array, initial: jax.Array) -> jax.Array:
    """[M, T, H] h_t = k_t ⊙ h_{t−1} + a_t for all t, by an associative scan over the steps.

    Two successive steps are one step of the same form: k = k₂ ⊙ k₁ and a = k₂ ⊙ a₁ + a₂.

    Args:
        keep: [M, T, H] factors k of the previous state; 0 where an episode starts.
        add: [M, T, H] terms a that are added.
        initial: [M, H] state h before the first step.

    Source: Blelloch 1990, Prefix Sums and Their Applications, section 1.4.
    """

    def combine(
        first: tuple[jax.Array, jax.Array], second: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        return second[0] * first[0], second[0] * first[1] + second[1]

    add = add.at[:, 0].add(keep[:, 0] * initial)
    return jax.lax.associative_scan(combine, (keep, add), axis=1)[1]
