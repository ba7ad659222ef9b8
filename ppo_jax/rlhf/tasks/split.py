"""The division of all problems of a task into training problems and held-out problems.

A hash of the problem decides to which part it belongs, so that the parts are disjoint whichever
keys the problems are drawn with, and whatever a run draws after it was resumed.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

PARTS = 4  # one of this many problems is held out


def is_held_out(identity: jax.Array) -> jax.Array:
    """Whether a problem is held out from training: one of four is.

    h = mix(Σ_i w_i x_i mod 2³²) with odd pseudo-random weights w_i; held out if h mod 4 = 0

    Args:
        identity: [K] integers x that identify the problem. Problems that have the same answer for a
            trivial reason, such as a + b and b + a, have the same identity.

    Returns:
        [] bool, True for a held-out problem.

    Source: Appleby 2011, MurmurHash3, the finaliser fmix32.
    """
    x = identity.astype(jnp.uint32)
    weight = _mix(jnp.arange(1, x.shape[0] + 1, dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)) | 1
    return _mix(jnp.sum(x * weight, dtype=jnp.uint32)) % PARTS == 0


def _mix(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def problems(
    key: jax.Array,
    n: int,
    held_out: bool | jax.Array,
    *,
    draw: Callable[[jax.Array], jax.Array],
    identity: Callable[[jax.Array], jax.Array],
    accept: Callable[[jax.Array], jax.Array] = lambda prompt: jnp.bool_(True),
) -> jax.Array:
    """Draw n problems of one part by rejection.

    Args:
        key: PRNG key.
        n: number of problems. Static.
        held_out: [] whether the problems are held out from training.
        draw: function (key) -> prompt [P], which draws one problem of either part.
        identity: function (prompt [P]) -> [K] integers, for `is_held_out`.
        accept: function (prompt [P]) -> [] bool, False for a problem that belongs to neither part.

    Returns:
        [n, P] prompts, independent draws from the problems of the part.
    """

    def more(state: Any) -> Any:
        key, prompts, found = state
        key, draw_key = jax.random.split(key)
        fresh = jax.vmap(draw)(jax.random.split(draw_key, n))
        part = jax.vmap(lambda prompt: is_held_out(identity(prompt)))(fresh)
        take = ~found & (part == held_out) & jax.vmap(accept)(fresh)
        return key, jnp.where(take[:, None], fresh, prompts), found | take

    shape = jax.eval_shape(draw, key)
    start = key, jnp.zeros((n, *shape.shape), shape.dtype), jnp.zeros((n,), bool)
    return jax.lax.while_loop(lambda state: ~jnp.all(state[2]), more, start)[1]
