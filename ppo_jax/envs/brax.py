"""Suite `brax`: rigid bodies, every environment of brax 0.14 without its wrappers.

brax's AutoResetWrapper replays one fixed first state and overwrites the last observation, and the
`time_out` that InvertedPendulum reports is its termination; so the bare physics is used, and the
time limit is counted here.
"""

import dataclasses
import functools
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from ppo_jax.envs import spaces
from ppo_jax.envs.protocol import InvalidEnvironment, StepResult
from ppo_jax.types import PyTree, did_you_mean

BACKENDS = ("spring", "positional", "generalized", "mjx")
# Nothing but the time limit ends these.
ENDLESS = ("fast", "halfcheetah", "humanoidstandup", "pusher", "reacher", "swimmer")


@dataclasses.dataclass(frozen=True, eq=False)
class BraxEnv:
    """A brax environment and a clock; its state is (brax's State, steps taken).

    Attributes:
        env: brax.envs.Env.
        name: id.
        observation_space, action_space: Box; actions are clipped to [−1, 1].
        time_limit: steps after which an episode is truncated.
        shortest_episode: the time limit where nothing else ends an episode.
        params: () (the bodies are constants of the program).
    """

    env: Any
    name: str
    observation_space: spaces.Space
    action_space: spaces.Space
    time_limit: int
    shortest_episode: int
    params: tuple[()] = ()

    def reset(self, key: jax.Array, params: PyTree) -> tuple[PyTree, PyTree]:
        """(obs, state) of a new episode."""
        state = self.env.reset(key)
        return state.obs, (state, jnp.zeros((), jnp.int32))

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, params: PyTree) -> StepResult:
        """One transition; `done` of the physics is termination, the clock truncation."""
        state, time = state
        state = self.env.step(state, jnp.clip(action, -1.0, 1.0))
        terminated, truncated = state.done > 0, time + 1 >= self.time_limit
        reward = jnp.asarray(state.reward, jnp.float32)
        return state.obs, (state, time + 1), reward, terminated, truncated, {}


@functools.cache
def _brax() -> ModuleType:
    from brax import envs

    return envs


def names() -> list[str]:
    """Ids of the suite."""
    return list(_brax()._envs)


def make(
    env_id: str, *, backend: str | None = None, episode_length: int = 1000, **kwargs: Any
) -> BraxEnv:
    """The environment brax registers under this id.

    Args:
        env_id: e.g. "ant".
        backend: one of BACKENDS. None: spring, three to four times as fast as generalized and mjx
            on a CPU; generalized for swimmer, which has no other. Returns of different backends
            do not compare.
        episode_length: steps after which an episode is truncated.
        **kwargs: of brax's constructor, e.g. terminate_when_unhealthy.

    Raises:
        InvalidEnvironment: arguments that brax refuses, and what it says; swimmer, which calls a
            jnp.clip that jax 0.10 no longer has.
    """
    if backend is None:
        backend = "generalized" if env_id == "swimmer" else "spring"
    if backend not in BACKENDS:
        raise InvalidEnvironment(f"unknown backend {backend!r}; {did_you_mean(backend, BACKENDS)}")
    try:
        env = _brax().get_environment(env_id, backend=backend, **kwargs)
        obs = jax.eval_shape(env.reset, jax.random.key(0)).obs
    except (TypeError, ValueError) as error:
        raise InvalidEnvironment(f"brax:{env_id} cannot be made: {error}") from error
    if not hasattr(obs, "shape"):
        raise InvalidEnvironment(f"brax:{env_id} has no vector of observations but {obs}")
    return BraxEnv(
        env,
        env_id,
        spaces.Box(-jnp.inf, jnp.inf, obs.shape),
        spaces.Box(-1.0, 1.0, (env.action_size,)),
        episode_length,
        episode_length if env_id in ENDLESS else 1,
    )
