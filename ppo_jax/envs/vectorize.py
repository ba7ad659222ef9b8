"""Many copies of one environment, restarted from a pool of fresh resets."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ppo_jax.envs.protocol import Env, InvalidEnvironment, StepResult, VectorEnv, makes_vectors
from ppo_jax.envs.spaces import Space
from ppo_jax.types import PyTree

# Of an environment's info, what learning heeds; the rest is dropped.
PASSED_ON = ("settled",)


@struct.dataclass
class VectorState:
    """States of N environments and the resets they will be restarted from.

    Attributes:
        env_state: [N, ...].
        pool: (obs, state), each [R, ...], drawn independently from the environment's reset.
        taken: [] resets used since the pool was drawn.
    """

    env_state: PyTree
    pool: tuple[PyTree, PyTree]
    taken: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class VectorizedEnv:
    """`vectorize`'s VectorEnv.

    A reset inside every step costs two to nine times the step itself; here R resets are
    drawn at once per rollout and handed out in order by a running counter, so that each is used
    once: fresh episodes stay independent and have reset's own distribution.
    """

    env: Env
    num_envs: int
    pool_size: int

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
        drawn = self._draw(key, self.num_envs + self.pool_size)
        obs, env_state = jax.tree.map(lambda x: x[: self.num_envs], drawn)
        pool = jax.tree.map(lambda x: x[self.num_envs :], drawn)
        return obs, VectorState(env_state, pool, jnp.zeros((), jnp.int32))

    def refresh(
        self, key: jax.Array, state: VectorState
    ) -> tuple[VectorState, dict[str, jax.Array]]:
        """Draw a new pool. Reports resets that had to be used twice because the last ran out."""
        reused = jnp.maximum(state.taken - self.pool_size, 0)
        pool = self._draw(key, self.pool_size)
        state = VectorState(state.env_state, pool, jnp.zeros((), jnp.int32))
        return state, {"reused_resets": reused}

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
        index = (state.taken + jnp.cumsum(done) - 1) % self.pool_size

        def restart(fresh: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(_align(done, old), fresh[index], old)

        next_obs, env_state = jax.tree.map(restart, state.pool, (obs, env_state))
        taken = state.taken + jnp.sum(done, dtype=jnp.int32)
        info = {"final_observation": obs, "valid": jnp.ones_like(done), **told}
        state = VectorState(env_state, state.pool, taken)
        return next_obs, state, reward, terminated, truncated, info

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
            N (1 + (T − 1) // env.shortest_episode), so that none is used twice; with fewer, or
            without `refresh`, they are used again in turn (the metric reused_resets counts it).

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
    enough = num_envs * (1 + (num_steps - 1) // shortest)
    return VectorizedEnv(env, num_envs, enough if pool_size is None else pool_size)


def _align(flag: jax.Array, like: jax.Array) -> jax.Array:
    """[N] as [N, 1, ...] to select among rows of `like`."""
    return flag.reshape(flag.shape + (1,) * (like.ndim - flag.ndim))


def _strong(tree: Any) -> Any:
    """Without weak types: those of reset and step differ, which would trace every loop twice."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.asarray(x).dtype), tree)
