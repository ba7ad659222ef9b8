"""Vectorisation of an environment: N copies that are reset from a pool of initial states."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ppo_jax import backend
from ppo_jax.envs.protocol import (
    Env,
    InvalidEnvironment,
    StepResult,
    VectorEnv,
    delegated,
    makes_vectors,
)
from ppo_jax.types import PyTree

# Entries of an environment's info that training uses; the others are dropped.
PASSED_ON = ("settled", "shortened")
# Number of parts in which a refilled pool is redrawn, and the minimum size of a part.
PARTS, SMALLEST_PART = 64, 8
# The pool holds an initial state for every step of a rollout, but not more than these bytes.
LARGEST_POOL = 2**28


@struct.dataclass
class VectorState:
    """The states of N environments, and the initial states for their next episodes.

    Attributes:
        env_state: [N, ...] states of the environments.
        pool: (obs, state), each [R, ...], drawn independently by the environment's reset.
        taken: [] number of initial states used since the last `refresh`; [N] numbers, one for each
            environment, during a rollout in which each environment has its own part of the pool.
        first: [] index of the next unused initial state at the last `refresh`; () for a pool that
            is redrawn as a whole, which always begins at 0.
    """

    env_state: PyTree
    pool: tuple[PyTree, PyTree]
    taken: jax.Array
    first: PyTree = ()


@dataclasses.dataclass(frozen=True, eq=False)
class VectorizedEnv:
    """The VectorEnv of `vectorize`.

    A reset inside every step would take longer than the step itself. Instead, R initial states
    are drawn in advance and used in order by a running counter, each of them once. New episodes are
    therefore independent and start from the environment's own distribution of initial states.

    There is one counter for all environments, or, after `begin`, one for each. In the second case,
    the pool consists of k rows of N initial states, and the j-th new episode of an environment
    starts from row j of its column. `refresh` reduces both cases to the same state, so that a
    checkpoint does not depend on the backend.

    Attributes:
        env: environment that is copied.
        num_envs: number N of environments.
        pool_size: number R of initial states.
        part: None if `refresh` redraws the whole pool. Otherwise a divisor of R: `refresh` redraws
            the used initial states in parts of this size and keeps the others for later rollouts.
        shared: whether an environment may need more than R / N initial states in a rollout, so that
            the pool cannot be divided between the environments.
    """

    env: Env
    num_envs: int
    pool_size: int
    part: int | None = None
    shared: bool = True

    observation_space, action_space = delegated("observation_space"), delegated("action_space")
    time_limit = delegated("time_limit")

    def reset(self, key: jax.Array) -> tuple[PyTree, VectorState]:
        """Start an episode in every environment: (obs [N, ...], state)."""
        # One draw for both, because a second one increases the compilation time.
        drawn = self._draw_parts(key, self.num_envs + self.pool_size)
        obs, env_state = jax.tree.map(lambda x: x[: self.num_envs], drawn)
        pool = jax.tree.map(lambda x: x[-self.pool_size :], drawn)
        env_state = self._first(env_state)
        zero = jnp.zeros((), jnp.int32)
        return obs, VectorState(env_state, pool, zero, () if self.part is None else zero)

    def restart(self, key: jax.Array, state: VectorState) -> tuple[PyTree, VectorState]:
        """Reset environments that already have a pool; its unused initial states are kept."""
        if self.part is None:
            return self.reset(key)
        obs, env_state = self._draw(key, self.num_envs)
        return obs, dataclasses.replace(state, env_state=self._first(env_state))

    def _first(self, env_state: PyTree) -> PyTree:
        """The states of the first episodes, which differ between staggered environments."""
        spread = getattr(self.env, "spread", None)
        return env_state if spread is None else spread(env_state)

    def begin(self, state: VectorState) -> VectorState:
        """Switch to one counter for each environment before a rollout, where that is faster."""
        if self.shared or not backend.launch_bound():
            return state
        taken = jnp.broadcast_to(state.taken, self.num_envs)
        return dataclasses.replace(state, taken=taken)

    def refresh(
        self, key: jax.Array, state: VectorState
    ) -> tuple[VectorState, dict[str, jax.Array]]:
        """Refill the pool. The metric counts initial states that were used more than once."""
        counters = max(1, state.taken.size)
        twice = jnp.maximum(state.taken - self.pool_size // counters, 0)
        metrics = {"reused_resets": jnp.sum(twice)}
        zero = jnp.zeros((), jnp.int32)
        if self.part is None:
            pool = self._draw(key, self.pool_size)
            return VectorState(state.env_state, pool, zero), metrics
        part = self.part
        used = jnp.minimum((state.taken + part - 1) // part, self.pool_size // part)

        def redraw(i: jax.Array, pool: PyTree) -> PyTree:
            fresh = self._draw(jax.random.fold_in(key, i), part)
            start = (state.first + i * part) % self.pool_size
            write = jax.lax.dynamic_update_slice_in_dim
            return jax.tree.map(lambda old, new: write(old, new, start, 0), pool, fresh)

        pool = jax.lax.fori_loop(0, used, redraw, state.pool)
        first = (state.first + used * part) % self.pool_size
        return VectorState(state.env_state, pool, zero, first), metrics

    def step(self, key: jax.Array, state: VectorState, action: jax.Array) -> StepResult:
        """Step all environments and reset those whose episode ended from the pool."""
        action = action.reshape(self.num_envs, *self.action_space.shape)
        keys = jax.random.split(key, self.num_envs)

        def step(key: jax.Array, state: PyTree, action: jax.Array) -> Any:
            *result, info = self.env.step(key, state, action, self.env.params)
            return *result, {name: info[name] for name in PASSED_ON if name in info}

        result = jax.vmap(step)(keys, state.env_state, action)
        obs, env_state, reward, terminated, truncated, info_of_env = _strong(result)
        done = terminated | truncated
        index, taken = self._next(state, done)

        def restart(fresh: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(_align(done, old), fresh[index], old)

        next_obs, env_state = jax.tree.map(restart, state.pool, (obs, env_state))
        # The constant shows a function that traces this one that all steps are valid.
        always = np.broadcast_to(True, done.shape)
        valid = always if backend.launch_bound() else jnp.ones_like(done)
        info = {"final_observation": obs, "valid": valid, **info_of_env}
        state = dataclasses.replace(state, env_state=env_state, taken=taken)
        return next_obs, state, reward, terminated, truncated, info

    def _next(self, state: VectorState, done: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[N] index in the pool of the next initial state of each environment, and new `taken`."""
        if state.taken.ndim:
            row = state.taken % (self.pool_size // self.num_envs)
            return row * self.num_envs + jnp.arange(self.num_envs), state.taken + done
        first = 0 if self.part is None else state.first
        index = (first + state.taken + jnp.cumsum(done) - 1) % self.pool_size
        return index, state.taken + jnp.sum(done, dtype=jnp.int32)

    def _draw_parts(self, key: jax.Array, count: int) -> tuple[PyTree, PyTree]:
        """Draw at least `count` initial states, in parts if the pool is redrawn in parts."""
        if self.part is None:
            return self._draw(key, count)
        keys, part = jax.random.split(key, math.ceil(count / self.part)), self.part
        drawn = jax.lax.map(lambda key: self._draw(key, part), keys)
        return jax.tree.map(lambda x: x.reshape(len(keys) * part, *x.shape[2:]), drawn)

    def _draw(self, key: jax.Array, count: int) -> tuple[PyTree, PyTree]:
        keys = jax.random.split(key, count)
        return _strong(jax.vmap(self.env.reset, in_axes=(0, None))(keys, self.env.params))


def vectorize(
    env: Any, num_envs: int, num_steps: int = 1024, *, pool_size: int | None = None
) -> VectorEnv:
    """Make N copies of an environment with automatic reset.

    Args:
        env: environment, an Env or a VectorMaker.
        num_envs: number N of environments.
        num_steps: number T of steps between two calls of `refresh`.
        pool_size: number R of initial states drawn for each rollout. The default is the maximum
            number of episodes that can end in T steps, N (1 + (T − 1) // env.shortest_episode), so
            that no initial state is used twice. If the minimum length of episodes is unknown, the
            pool has one initial state for every step, but at most 256 MiB and at least N initial
            states. It is then drawn once, and each `refresh` redraws the used ones. Initial states
            are reused in order if the pool is exhausted or never refreshed; the metric
            reused_resets counts them.

    Returns:
        VectorEnv of N environments.

    Raises:
        InvalidEnvironment: if pool_size is given for an environment that resets itself.
    """
    if makes_vectors(env):
        if pool_size is not None:
            raise InvalidEnvironment(
                f"reset_pool is {pool_size}, but {env.name} makes its own vector environments and "
                "resets them itself; omit reset_pool"
            )
        return env.vector(num_envs)
    shortest = getattr(env, "shortest_episode", 1)
    if pool_size is not None or shortest > 1:
        enough = num_envs * (1 + (num_steps - 1) // shortest)
        pool_size = enough if pool_size is None else pool_size
        shared = pool_size < enough or pool_size % num_envs > 0
        return VectorizedEnv(env, num_envs, pool_size, shared=shared)
    part, pool_size = _parts(env, num_envs, num_steps)
    return VectorizedEnv(env, num_envs, pool_size, part)


def _parts(env: Env, num_envs: int, num_steps: int) -> tuple[int, int]:
    """(initial states in a part, initial states in all) for a pool that is redrawn in parts."""
    reset = jax.eval_shape(env.reset, jax.random.key(0), env.params)
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(reset))
    wanted = num_envs * num_steps
    wanted = max(num_envs, min(wanted, LARGEST_POOL // max(size, 1)))
    part = min(max(SMALLEST_PART, math.ceil(wanted / PARTS)), wanted)
    return part, part * math.ceil(wanted / part)


def _align(flag: jax.Array, like: jax.Array) -> jax.Array:
    """Reshape [N] to [N, 1, ...], to select among the rows of `like`."""
    return flag.reshape(flag.shape + (1,) * (like.ndim - flag.ndim))


def _strong(tree: Any) -> Any:
    """Remove weak types, which differ between reset and step, so that loops are traced once."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.asarray(x).dtype), tree)
