"""One update of many agents in one program.

The agents of a run differ in their seeds and in the options that vary. All leaves of their state
have a leading axis of size A, the number of agents.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ppo_jax import guard
from ppo_jax.types import Metrics, PyTree

# Name of the metric that counts the agents whose numbers are not finite.
DIVERGED = "diverged"
# Metrics that are added up over the agents; all others are averaged.
TOTALS = ("tokens",)


def together(step: Callable[..., Any], *, may_be_nan: tuple[str, ...] = ()) -> Callable[..., Any]:
    """One update of all agents.

    An agent whose update leaves a number that is not finite keeps its state before the update, and
    the others continue. Such an agent is counted in the metric `diverged` and left out of all other
    metrics. The run as a whole fails once no agent is left.

    Args:
        step: one update of one agent, (state, frozen, floats) -> (state, Metrics, guard.Found).
        may_be_nan: prefixes of the names of metrics that may be NaN.

    Returns:
        The same function for states, frozen arrays and floats with leaves [A, ...], which returns
        the means of the metrics over the agents, and the sum of the tokens.
    """

    def advance(state: PyTree, frozen: PyTree, floats: PyTree) -> Any:
        new, metrics, found = jax.vmap(step)(state, frozen, floats)
        bad = found.bad
        for name, x in metrics.items():
            if not name.startswith(may_be_nan):
                bad |= ~jnp.isfinite(x)
        kept = jax.tree.map(lambda old, x: jnp.where(_along(bad, x), old, x), state, new)
        everywhere = guard.Found(jnp.all(bad), jnp.any(found.flags, axis=0), found.names)
        return kept, _means(metrics, ~bad), everywhere

    return advance


def _means(metrics: Metrics, fine: jax.Array) -> Metrics:
    """The mean of each metric over the agents for which it is finite; NaN if there are none.
    Metrics in TOTALS are sums."""

    def mean(x: jax.Array) -> jax.Array:
        counted = fine & jnp.isfinite(x)
        total = jnp.sum(jnp.where(counted, x, 0.0))
        return jnp.where(jnp.any(counted), total / jnp.maximum(jnp.sum(counted), 1), jnp.nan)

    means = {name: mean(x.astype(jnp.float32)) for name, x in metrics.items()}
    means |= {name: jnp.sum(jnp.where(fine, metrics[name], 0)) for name in TOTALS if name in means}
    return means | {DIVERGED: jnp.sum(~fine)}


def _along(bad: jax.Array, x: jax.Array) -> jax.Array:
    """[A, 1, ...] bool, `bad` with as many axes as x."""
    return bad.reshape(*bad.shape, *(1,) * (x.ndim - 1))


def take(tree: PyTree, agent: int) -> PyTree:
    """The part of one agent in a pytree with leaves [A, ...]."""
    return jax.tree.map(lambda x: x[agent], tree)
