"""The numerical guard: it finds numbers of an update that are not finite or too large.

Everything here runs inside the compiled training step, in every update. The guard reads arrays and
changes none of them; `ppo_jax.runs` acts on the result.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ppo_jax import backend, parallel
from ppo_jax.types import Metrics, PyTree

# The square of a larger number overflows float32, and with it norms and second moments.
LIMIT = 1e18
# Arrays with at most this number of elements are checked together on accelerators, where a
# reduction takes longer to start than to execute.
TOGETHER = 2**16


class Part(NamedTuple):
    """An array that the guard checks.

    Attributes:
        name: kind and path of the array, such as "parameters['actor']['dense']['kernel']".
        array: [...] numbers, or [T, N, ...] numbers of a rollout.
        limit: largest absolute value that is accepted.
        weight: [T, N] weights, or None. Numbers of weight 0 are not checked.
    """

    name: str
    array: jax.Array
    limit: float = LIMIT
    weight: jax.Array | None = None


@struct.dataclass
class Found:
    """The result of the guard for one update.

    Attributes:
        bad: [] bool, whether any number failed the check.
        flags: [P] bool, whether a number of each array failed the check.
        names: names of the arrays, static.
    """

    bad: jax.Array
    flags: jax.Array
    names: tuple[str, ...] = struct.field(pytree_node=False)


def parts(
    kind: str, tree: PyTree, *, limit: float = LIMIT, weight: jax.Array | None = None
) -> list[Part]:
    """The floating-point arrays of a pytree.

    Args:
        kind: first part of the names of the arrays, such as "parameters".
        tree: pytree of arrays.
        limit: largest absolute value that is accepted; infinity accepts every finite number.
        weight: [T, N] weights, which apply to arrays of shape [T, N, ...] only.
    """
    found = []
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            continue
        same = weight is not None and x.shape[: weight.ndim] == weight.shape
        name = kind + jax.tree_util.keystr(path)
        found.append(Part(name, x, limit, weight if same else None))
    return found


def check(looked_at: Iterable[Part]) -> Found:
    """Check all arrays, in one pass over each of them."""
    found = list(looked_at)
    if not found:
        return Found(jnp.zeros((), bool), jnp.zeros(0, bool), ())
    flags = parallel.any_part(jnp.stack(_flags(found)))
    return Found(jnp.any(flags), flags, tuple(part.name for part in found))


def check_update(learner: Any, experience: Any, trajectory: Any) -> Found:
    """Check the numbers of one update of an algorithm.

    Args:
        learner: LearnerState after the update.
        experience: state of the rollout, with its running statistics, if there are any.
        trajectory: Trajectory [T, N] of the update.
    """
    weight, finite = trajectory.weight, math.inf
    rollout = [
        *parts("observations", trajectory.obs, limit=finite, weight=weight),
        *parts("actions", trajectory.action, weight=weight),
        *parts("actions.log_prob", trajectory.log_prob, limit=finite, weight=weight),
        *parts("values", trajectory.value, limit=finite, weight=weight),
        # A non-finite final observation of a truncated episode is visible in these values only.
        *parts("values of the next state", trajectory.next_value, limit=finite, weight=weight),
        *parts("rewards", trajectory.reward, weight=weight),
    ]
    statistics = parts("statistics", getattr(experience, "moments", ()), limit=finite)
    return check([*rollout, *statistics, *learned(learner)])


def learned(learner: Any) -> list[Part]:
    """The arrays that an update changes: parameters and the state of the optimiser.

    Scalars of the optimiser's state are left out, because some optimisers start with an infinite
    one.
    """
    state = [p for p in parts("optimiser", learner.opt_state, limit=math.inf) if p.array.ndim]
    return [*parts("parameters", learner.params), *state]


def acted(dist: Any, action: jax.Array) -> jax.Array:
    """[N] bool, whether the action of the network is finite.

    A discrete action is an integer whatever the logits are, so its log-probability is checked.

    Args:
        dist: action distribution with batch shape [N].
        action: [N, ...] actions drawn from it.
    """
    known = ~jnp.isnan(dist.log_prob(action))
    if not jnp.issubdtype(action.dtype, jnp.floating):
        return known
    return known & jnp.isfinite(action).reshape(action.shape[0], -1).all(axis=1)


def finite_action(action: jax.Array, space: Any) -> jax.Array:
    """Replace the elements of an action that are not finite.

    Such an element becomes 0, or the bound nearest to 0. All others are unchanged.

    Args:
        action: [N, ...] actions in the environment's form.
        space: space of one action.
    """
    if not jnp.issubdtype(action.dtype, jnp.floating):
        return action
    zero = np.clip(0.0, getattr(space, "low", 0.0), getattr(space, "high", 0.0))
    zero = np.broadcast_to(zero, space.shape).reshape(action.shape[1:])
    return jnp.where(jnp.isfinite(action), action, zero.astype(action.dtype))


def _flags(found: list[Part]) -> list[jax.Array]:
    """[] bool for each part, whether a number in it failed the check."""
    small = [
        i for i, part in enumerate(found) if part.weight is None and part.array.size <= TOGETHER
    ]
    if not (backend.launch_bound() and small):
        return [jnp.any(_wrong(part)) for part in found]
    width = max(found[i].array.size for i in small)
    rows = [_wrong(found[i]).reshape(-1) for i in small]
    stacked = jnp.stack([jnp.pad(x, (0, width - x.size)) for x in rows])
    # Without the barrier XLA splits this into one reduction for each row.
    together = jnp.any(jax.lax.optimization_barrier(stacked), axis=1)
    flags = dict(zip(small, together, strict=True))
    return [flags[i] if i in flags else jnp.any(_wrong(part)) for i, part in enumerate(found)]


def _wrong(part: Part) -> jax.Array:
    """[...] bool; comparisons with NaN are False."""
    x = part.array
    limit = min(part.limit, float(jnp.finfo(x.dtype).max))
    wrong = ~(jnp.abs(x) <= limit)
    if part.weight is None:
        return wrong
    counts = part.weight > 0
    return wrong & counts.reshape(*counts.shape, *(1,) * (x.ndim - counts.ndim))


# --- metrics without a value ----------------------------------------------------------------------


def hide(metrics: Metrics) -> Metrics:
    """Replace NaN in the metrics that a compiled program returns by a finite number.

    A metric has no value if, for example, no episode finished. Users see such a metric as NaN.
    Inside the program a finite number stands for it, because JAX_DEBUG_NANS reports every NaN as an
    error.
    """
    return {name: _hidden(x) for name, x in metrics.items()}


def _hidden(x: Any) -> Any:
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        return x
    return jnp.where(jnp.isnan(x), absent(x), x)


def show(metrics: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `hide`, for NumPy arrays."""
    return {name: _shown(np.asarray(x)) for name, x in metrics.items()}


def _shown(x: np.ndarray) -> np.ndarray:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return np.where(x == np.asarray(absent(x), x.dtype), np.asarray(np.nan, x.dtype), x)


def absent(x: Any) -> float:
    """The number that stands for NaN: the smallest finite number of the type."""
    return float(jnp.finfo(jnp.result_type(x)).min)
