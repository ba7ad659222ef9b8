"""The numerical guard: which number of an update is not finite, or too large to compute with.

Everything here runs inside the compiled training step, in every update. It reads arrays and changes
none of them; `ppo_jax.runs` acts on what is found.
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

# The square of a larger number is infinite in float32, and with it norms and second moments.
LIMIT = 1e18
# Arrays of up to so many numbers are looked at together where a reduction costs more to start than
# to do.
TOGETHER = 2**16


class Part(NamedTuple):
    """An array that is looked at.

    Attributes:
        name: its kind and its path: "parameters['actor']['dense']['kernel']".
        array: [...], or [T, N, ...] of a rollout.
        limit: the largest absolute value that is good.
        weight: [T, N] or None; where it is 0, numbers stand for nothing and may be anything.
    """

    name: str
    array: jax.Array
    limit: float = LIMIT
    weight: jax.Array | None = None


@struct.dataclass
class Found:
    """What the guard says of one update.

    Attributes:
        bad: [] bool: a number is not good.
        flags: [P] bool: which arrays have such a number.
        names: their names, static.
    """

    bad: jax.Array
    flags: jax.Array
    names: tuple[str, ...] = struct.field(pytree_node=False)


def parts(
    kind: str, tree: PyTree, *, limit: float = LIMIT, weight: jax.Array | None = None
) -> list[Part]:
    """The arrays of real numbers in a tree.

    Args:
        kind: the beginning of their names: "parameters".
        tree: of arrays.
        limit: the largest absolute value that is good; infinity: every finite one is.
        weight: [T, N]; only arrays [T, N, ...] are read with it.
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
    """Look at all of them, in one pass over each array."""
    found = list(looked_at)
    if not found:
        return Found(jnp.zeros((), bool), jnp.zeros(0, bool), ())
    flags = parallel.any_part(jnp.stack(_flags(found)))
    return Found(jnp.any(flags), flags, tuple(part.name for part in found))


def check_update(learner: Any, experience: Any, trajectory: Any) -> Found:
    """The numbers of one update of an algorithm.

    Args:
        learner: LearnerState after the update.
        experience: state of the rollout, with its running statistics, if it keeps any.
        trajectory: Trajectory [T, N] that was learned from.
    """
    weight, finite = trajectory.weight, math.inf
    rollout = [
        *parts("observations", trajectory.obs, limit=finite, weight=weight),
        *parts("actions", trajectory.action, weight=weight),
        *parts("actions.log_prob", trajectory.log_prob, limit=finite, weight=weight),
        *parts("values", trajectory.value, limit=finite, weight=weight),
        # Only there shows what an environment returned as the end of an episode that was cut off.
        *parts("values of the next state", trajectory.next_value, limit=finite, weight=weight),
        *parts("rewards", trajectory.reward, weight=weight),
    ]
    statistics = parts("statistics", getattr(experience, "moments", ()), limit=finite)
    return check([*rollout, *statistics, *learned(learner)])


def learned(learner: Any) -> list[Part]:
    """The arrays that an update changes: parameters and the state of the optimiser.

    Of the latter single numbers are left out: some optimisers begin with an infinite one.
    """
    state = [p for p in parts("optimiser", learner.opt_state, limit=math.inf) if p.array.ndim]
    return [*parts("parameters", learner.params), *state]


def acted(dist: Any, action: jax.Array) -> jax.Array:
    """[N] bool: whether a network gave an action at all, and not NaN or infinity.

    A choice among several is a whole number whatever the logits; its log-probability says it.

    Args:
        dist: [N] distribution.
        action: [N, ...] drawn from it.
    """
    known = ~jnp.isnan(dist.log_prob(action))
    if not jnp.issubdtype(action.dtype, jnp.floating):
        return known
    return known & jnp.isfinite(action).reshape(action.shape[0], -1).all(axis=1)


def finite_action(action: jax.Array, space: Any) -> jax.Array:
    """An action that an environment can be given, whatever the network says.

    What is not finite becomes 0, or the bound that is nearest to 0; all else stays as it is.

    Args:
        action: [N, ...] as the environment takes it.
        space: of one action.
    """
    if not jnp.issubdtype(action.dtype, jnp.floating):
        return action
    zero = np.clip(0.0, getattr(space, "low", 0.0), getattr(space, "high", 0.0))
    zero = np.broadcast_to(zero, space.shape).reshape(action.shape[1:])
    return jnp.where(jnp.isfinite(action), action, zero.astype(action.dtype))


def _flags(found: list[Part]) -> list[jax.Array]:
    """[] bool of each part: whether a number in it is wrong."""
    small = [
        i for i, part in enumerate(found) if part.weight is None and part.array.size <= TOGETHER
    ]
    if not (backend.launch_bound() and small):
        return [jnp.any(_wrong(part)) for part in found]
    width = max(found[i].array.size for i in small)
    rows = [_wrong(found[i]).reshape(-1) for i in small]
    stacked = jnp.stack([jnp.pad(x, (0, width - x.size)) for x in rows])
    # Without the barrier XLA makes a reduction of each row again.
    together = jnp.any(jax.lax.optimization_barrier(stacked), axis=1)
    flags = dict(zip(small, together, strict=True))
    return [flags[i] if i in flags else jnp.any(_wrong(part)) for i, part in enumerate(found)]


def _wrong(part: Part) -> jax.Array:
    """[...] bool; NaN compares as false."""
    x = part.array
    limit = min(part.limit, float(jnp.finfo(x.dtype).max))
    wrong = ~(jnp.abs(x) <= limit)
    if part.weight is None:
        return wrong
    counts = part.weight > 0
    return wrong & counts.reshape(*counts.shape, *(1,) * (x.ndim - counts.ndim))


# --- metrics without a value ----------------------------------------------------------------------


def hide(metrics: Metrics) -> Metrics:
    """Metrics as they leave a compiled program: a finite number stands for NaN.

    A metric has no value where no episode finished, or nothing is there to explain. NaN says so
    outside; inside, JAX_DEBUG_NANS takes every NaN for an error.
    """
    return {name: _hidden(x) for name, x in metrics.items()}


def _hidden(x: Any) -> Any:
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        return x
    return jnp.where(jnp.isnan(x), absent(x), x)


def show(metrics: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `hide`, of NumPy's arrays."""
    return {name: _shown(np.asarray(x)) for name, x in metrics.items()}


def _shown(x: np.ndarray) -> np.ndarray:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return np.where(x == np.asarray(absent(x), x.dtype), np.asarray(np.nan, x.dtype), x)


def absent(x: Any) -> float:
    """The number that stands for NaN: the least of its type."""
    return float(jnp.finfo(jnp.result_type(x)).min)
