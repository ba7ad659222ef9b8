"""Many copies of one environment, restarted from a pool of fresh resets."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ppo_jax import backend
from ppo_jax.envs.protocol import Env, InvalidEnvironment, StepResult, VectorEnv, makes_vectors
from ppo_jax.envs.spaces import Space
from ppo_jax.types import PyTree

# Of an environment's info, what learning heeds; the rest is dropped.
PASSED_ON = ("settled",)
# A pool that is refilled is redrawn in so many parts, of this many resets at least.
PARTS, SMALLEST_PART = 64, 8
# It holds a reset for every step of a rollout unless those are more bytes than this.
LARGEST_POOL = 2**28


@struct.dataclass
class VectorState:
    """States of N environments and the resets they will be restarted from.

    Attributes:
        env_state: [N, ...].
        pool: (obs, state), each [R, ...], drawn independently from the environment's reset.
        taken: [] number of resets used since the last `refresh`; [N] during a rollout in which each
            environment has a share of the pool of its own, by environment.
        first: [] where in the pool the next unused reset was at that time; () for a pool that is
            drawn as a whole, which always begins at 0.
    """

    env_state: PyTree
    pool: tuple[PyTree, PyTree]
    taken: jax.Array
    first: PyTree = ()


@dataclasses.dataclass(frozen=True, eq=False)
class VectorizedEnv:
    """`vectorize`'s VectorEnv.

    A reset inside every step costs two to nine times the step itself. Here R resets are kept ready
    and handed out in order by a running counter, so that each is used once: fresh episodes stay
    independent and have reset's own distribution.

    The counter is one for all environments, or, from `begin` on, one for each: then the pool is k
    rows of N resets, and an environment's j-th new episode begins with row j of its column.
    `refresh` makes both into the same state, which a checkpoint holds, whatever the backend.

    Attributes:
        env: the environment.
        num_envs: N.
        pool_size: R.
        part: None: `refresh` draws the whole pool anew. A number that divides R: it redraws what
            was used, in parts of so many resets, and the others stay for later rollouts.
        shared: whether an environment may need more than R / N resets in a rollout, so that they
            cannot be shared out.
    """

    env: Env
    num_envs: int
    pool_size: int
    part: int | None = None
    shared: bool = True

    @property
    def observation_space(self) -> PyTree:
        return self.env.observation_space

    @property
    def action_space(self) -> Space:
        return self.env.action_space

    @property
    def time_limit(self) -> float | None:
        return self.env.time_limit

    def reset(self, key: jax.Array) -> tuple[PyTree, VectorState]:
        """(obs [N, ...], state) with every environment at the start of an episode."""
        # One draw for both: a second one is 0.3 s more to compile.
        drawn = self._draw_parts(key, self.num_envs + self.pool_size)
        obs, env_state = jax.tree.map(lambda x: x[: self.num_envs], drawn)
        pool = jax.tree.map(lambda x: x[-self.pool_size :], drawn)
        zero = jnp.zeros((), jnp.int32)
        return obs, VectorState(env_state, pool, zero, () if self.part is None else zero)

    def restart(self, key: jax.Array, state: VectorState) -> tuple[PyTree, VectorState]:
        """`reset`, of environments whose pool is still there: what was not used of it stays."""
        if self.part is None:
            return self.reset(key)
        obs, env_state = self._draw(key, self.num_envs)
        return obs, dataclasses.replace(state, env_state=env_state)

    def begin(self, state: VectorState) -> VectorState:
        """Before a rollout: a counter for each environment, where that is faster."""
        if self.shared or not backend.launch_bound():
            return state
        taken = jnp.broadcast_to(state.taken, self.num_envs)
        return dataclasses.replace(state, taken=taken)

    def refresh(
        self, key: jax.Array, state: VectorState
    ) -> tuple[VectorState, dict[str, jax.Array]]:
        """Fill the pool again. Reports resets that had to be used twice because it ran out."""
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
        """Step all, then replace those whose episode ended by the next resets of the pool."""
        action = action.reshape(self.num_envs, *self.action_space.shape)
        keys = jax.random.split(key, self.num_envs)

        def step(key: jax.Array, state: PyTree, action: jax.Array) -> Any:
            *result, info = self.env.step(key, state, action, self.env.params)
            return *result, {name: info[name] for name in PASSED_ON if name in info}

        result = jax.vmap(step)(keys, state.env_state, action)
        obs, env_state, reward, terminated, truncated, told = _strong(result)
        done = terminated | truncated
        index, taken = self._next(state, done)

        def restart(fresh: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(_align(done, old), fresh[index], old)

        next_obs, env_state = jax.tree.map(restart, state.pool, (obs, env_state))
        # As a constant it tells whoever traces this that every step counts.
        always = np.broadcast_to(True, done.shape)
        valid = always if backend.launch_bound() else jnp.ones_like(done)
        info = {"final_observation": obs, "valid": valid, **told}
        state = dataclasses.replace(state, env_state=env_state, taken=taken)
        return next_obs, state, reward, terminated, truncated, info

    def _next(self, state: VectorState, done: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[N] which reset of the pool is next for each environment, and `taken` after that."""
        if state.taken.ndim:
            row = state.taken % (self.pool_size // self.num_envs)
            return row * self.num_envs + jnp.arange(self.num_envs), state.taken + done
        first = 0 if self.part is None else state.first
        index = (first + state.taken + jnp.cumsum(done) - 1) % self.pool_size
        return index, state.taken + jnp.sum(done, dtype=jnp.int32)

    def _draw_parts(self, key: jax.Array, count: int) -> tuple[PyTree, PyTree]:
        """At least `count` resets; where a pool is redrawn in parts, with the memory of one."""
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
    """N copies of an environment that restart themselves.

    Args:
        env: an Env or a VectorMaker.
        num_envs: N.
        num_steps: T, steps between two calls of `refresh`.
        pool_size: R, resets drawn per rollout. By default as many as episodes can end in T steps,
            N (1 + (T − 1) // env.shortest_episode), so that none is used twice. Where nothing is
            known of an episode's length that is one for every step: the pool is then drawn once,
            and each `refresh` redraws what was used of it; it is at most 256 MiB large (but has N
            resets at least). A pool that runs out, or is never refreshed, is used again in turn
            (the metric reused_resets counts it).

    Returns:
        VectorEnv.

    Raises:
        InvalidEnvironment: a pool is asked for where the environment resets its own vectors.
    """
    if makes_vectors(env):
        if pool_size is not None:
            raise InvalidEnvironment(
                f"reset_pool is {pool_size}, but {env.name} makes vectors of its own and resets "
                "them itself; leave reset_pool out"
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
    """(resets in a part, resets in all) of a pool that is refilled."""
    reset = jax.eval_shape(env.reset, jax.random.key(0), env.params)
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(reset))
    wanted = num_envs * num_steps
    wanted = max(num_envs, min(wanted, LARGEST_POOL // max(size, 1)))
    part = min(max(SMALLEST_PART, math.ceil(wanted / PARTS)), wanted)
    return part, part * math.ceil(wanted / part)


def _align(flag: jax.Array, like: jax.Array) -> jax.Array:
    """[N] as [N, 1, ...] to select among rows of `like`."""
    return flag.reshape(flag.shape + (1,) * (like.ndim - flag.ndim))


def _strong(tree: Any) -> Any:
    """Without weak types: those of reset and step differ, which would trace every loop twice."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.asarray(x).dtype), tree)
