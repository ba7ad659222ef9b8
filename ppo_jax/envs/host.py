"""Environments that live on the host: one ordered callback per step of N of them.

Everything else of a run is a pure function; these are not. Their state is in their own memory, so
that a run's state holds only a token, with which every step is checked to be the next one.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from ppo_jax.envs import host_spaces
from ppo_jax.envs.codec import Codec, Leaf
from ppo_jax.envs.host_spaces import action_space, observation_leaves
from ppo_jax.envs.protocol import InvalidEnvironment, StepResult
from ppo_jax.envs.spaces import Space
from ppo_jax.types import PyTree

# Environments that play side by side in an evaluation; the episodes after them take their turns.
EVALUATION_ENVS = 16
# Seeds are below 2^30: Gymnasium counts on from them, environment by environment.
SEEDS = 2**30


class HostVectorEnv:
    """N environments behind Gymnasium's vector API, as a VectorEnv.

    Started when its reset or step is first traced, not before: what is only looked at costs
    nothing. Episodes that end are restarted by the environments themselves, in either of
    Gymnasium's two ways. SAME_STEP: the step that ends an episode returns the next one's first
    observation, and the true final one in its info. NEXT_STEP: it returns the true final one, and
    the step after it ignores its action and returns the first: a dummy, `valid` False.

    Args:
        name: for messages.
        num_envs: N.
        start: () -> a Gymnasium vector environment of N.
        spaces: of one environment, Gymnasium's observation and action space.
        time_limit: as a VectorEnv's.
        transform_reward: [N] -> [N], what is learned from; info then has raw_reward [N].
        channels: of images, as for `host_spaces.observation_leaves`.
    """

    def __init__(
        self,
        name: str,
        num_envs: int,
        start: Callable[[], Any],
        spaces: tuple[Any, Any],
        *,
        time_limit: float | None = None,
        transform_reward: Callable[[np.ndarray], np.ndarray] | None = None,
        channels: str = "auto",
    ) -> None:
        self.name, self.num_envs, self.time_limit = name, num_envs, time_limit
        tree = observation_leaves(spaces[0], name, channels=channels)
        is_leaf = lambda x: isinstance(x, Leaf)
        self._leaves: list[Leaf] = jax.tree.leaves(tree, is_leaf=is_leaf)
        self._structure = jax.tree.structure(tree, is_leaf=is_leaf)
        self.observation_space = jax.tree.map(lambda leaf: leaf.space, tree, is_leaf=is_leaf)
        self.action_space, self._to_env = action_space(spaces[1], name)
        self._start, self._transform_reward = start, transform_reward
        self._venv: Any = None
        # Of the running episodes: resets so far, steps since the last, who is to be restarted.
        self._resets, self._steps = 0, 0
        self._restarting = np.zeros(num_envs, bool)

    def reset(self, key: jax.Array) -> tuple[PyTree, jax.Array]:
        """(obs [N, ...], token) of new episodes, seeded from the key."""
        self.start()
        seed = _refuse_vmap(self.name, jax.random.randint(key, (), 0, SEEDS))
        shapes = (self._obs_shapes(), _token_shape())
        obs, token = io_callback(self._host_reset, shapes, seed, ordered=True)
        return jax.tree.unflatten(self._structure, obs), token

    def step(self, key: jax.Array, state: jax.Array, action: jax.Array) -> StepResult:
        """After auto-reset, with the true final observation and `valid` in info.

        Raises:
            JaxRuntimeError, when it runs: whatever the environment raised; or a state that is not
            the one the environments are in.
        """
        self.start()
        action = action.reshape(self.num_envs, *self.action_space.shape)
        state, action = _refuse_vmap(self.name, (state, action))
        flags = jax.ShapeDtypeStruct((3, self.num_envs), jnp.bool_)
        rewards = jax.ShapeDtypeStruct((2, self.num_envs), jnp.float32)
        # Where the final observation is the next one anyway, it need not travel twice.
        final_shapes = self._obs_shapes() if self._same_step else ()
        shapes = (self._obs_shapes(), _token_shape(), rewards, flags, final_shapes)
        result = io_callback(self._host_step, shapes, state, action, ordered=True)
        obs, state, (reward, raw_reward), (terminated, truncated, valid), final = result
        obs = jax.tree.unflatten(self._structure, obs)
        final = jax.tree.unflatten(self._structure, final) if self._same_step else obs
        info = {"final_observation": final, "valid": valid, "raw_reward": raw_reward}
        return obs, state, reward, terminated, truncated, info

    def render(self, state: PyTree) -> np.ndarray:
        """[H, W, 3] uint8 of the first environment as it now is."""
        jax.block_until_ready(state)
        frames = self._venv.render() if self._venv is not None else None
        if frames is None or len(frames) == 0 or frames[0] is None:
            raise InvalidEnvironment(
                f"environment {self.name} has no picture; one that is to be drawn is made with "
                'render_mode="rgb_array"'
            )
        return np.asarray(frames[0], np.uint8)

    def start(self) -> None:
        """Make the environments, and with them their worker processes, if it was not done yet.

        Raises:
            InvalidEnvironment: they restart in no way that is known, or are not as many as said.
        """
        if self._venv is not None:
            return
        venv = self._start()
        # Its own attribute first: environments of one class share the dict `metadata`, in which
        # the vector that was made last has the last word.
        mode = getattr(getattr(venv, "unwrapped", venv), "autoreset_mode", None)
        mode = (venv.metadata or {}).get("autoreset_mode") if mode is None else mode
        mode = getattr(mode, "value", mode)
        if mode not in ("SameStep", "NextStep"):
            raise InvalidEnvironment(
                f"vector environment {self.name} has autoreset_mode {mode}; it must restart its "
                "environments itself: SAME_STEP, or NEXT_STEP with a dummy step in between"
            )
        if venv.num_envs != self.num_envs:
            raise InvalidEnvironment(
                f"vector environment {self.name} has {venv.num_envs} environments; "
                f"num_envs is {self.num_envs}"
            )
        self._venv, self._same_step = venv, mode == "SameStep"

    def close(self) -> None:
        """End the environments and their processes; the next reset starts them again."""
        if self._venv is not None:
            self._venv.close()
        self._venv = None

    # On the host, in a callback: numpy alone from here on.

    def _host_reset(self, seed: Any) -> tuple[Any, ...]:
        self.start()
        obs, _ = self._venv.reset(seed=int(np.asarray(seed)))
        self._resets, self._steps = self._resets + 1, 0
        self._restarting = np.zeros(self.num_envs, bool)
        return self._read(obs), self._token()

    def _host_step(self, state: Any, action: Any) -> tuple[Any, ...]:
        self._check_is_next(np.asarray(state))
        result = self._venv.step(self._to_env(np.asarray(action)))
        obs, reward, terminated, truncated, info = result
        self._steps += 1
        # Copies: an environment may write its next step into the same arrays.
        terminated, truncated = np.array(terminated, bool), np.array(truncated, bool)
        raw_reward = np.array(reward, np.float32)
        valid, done = ~self._restarting, terminated | truncated
        reward = self._transform_reward(raw_reward) if self._transform_reward else raw_reward
        obs = self._read(obs)
        if self._same_step:
            final = self._final(obs, info, done)
        else:
            final, self._restarting = (), done
        flags = np.stack([terminated, truncated, valid])
        return obs, self._token(), np.stack([reward, raw_reward]), flags, final

    def _check_is_next(self, state: np.ndarray) -> None:
        given, here = tuple(state.tolist()), tuple(self._token().tolist())
        if given != here:
            raise RuntimeError(
                f"environment {self.name} runs on the host and cannot go back: this step goes on "
                f"from reset {given[0]}, step {given[1]}, but the environment is at reset "
                f"{here[0]}, step {here[1]}. A state that was saved or has been used before goes "
                "on with new episodes: ppo_jax.rollout.restart"
            )

    def _token(self) -> np.ndarray:
        return np.array([self._resets, self._steps], np.uint32)

    def _read(self, obs: Any) -> tuple[np.ndarray, ...]:
        """The leaves of an observation [N, ...], in our layout."""
        return tuple(np.ascontiguousarray(leaf.read(leaf.of(obs))) for leaf in self._leaves)

    def _final(self, obs: tuple[np.ndarray, ...], info: Any, done: np.ndarray) -> tuple[Any, ...]:
        """obs, with the true final observation where an episode ended."""
        if not done.any():
            return obs
        if "final_obs" not in info:
            raise RuntimeError(
                f"{self.name} restarts in the same step but its info has no final_obs"
            )
        theirs, final = info["final_obs"], tuple(x.copy() for x in obs)
        batched = isinstance(theirs, dict | tuple)  # the leaves are [N, ...], not the whole
        for leaf, array in zip(self._leaves, final, strict=True):
            for i in np.flatnonzero(done):
                one = leaf.of(theirs)[i] if batched else leaf.of(theirs[i])
                array[i] = leaf.read(np.asarray(one)[None])[0]
        return final

    def _obs_shapes(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        spaces = [leaf.space for leaf in self._leaves]
        return tuple(jax.ShapeDtypeStruct((self.num_envs, *s.shape), s.dtype) for s in spaces)


@dataclasses.dataclass(frozen=True, eq=False)
class HostEnv:
    """An environment of which there are only vectors: what `make` returns for the host's suites.

    Attributes:
        name: in full.
        spaces: Gymnasium's observation and action space.
        start: num_envs -> () -> a Gymnasium vector environment of so many.
        time_limit: as an Env's.
        transform_reward: as HostVectorEnv's.
        evaluated_as: () -> the HostEnv whose returns are reported; None: this one.
        drawn_as: () -> the HostEnv that is drawn; None: the evaluated one.
        evaluation_envs: how many play side by side in an evaluation; None: as many as there are
            episodes, up to EVALUATION_ENVS.
        channels: of images, as for `host_spaces.observation_leaves`.
        own_codec: of the environment as its users have it, where its vectors have other spaces.
    """

    name: str
    spaces: tuple[Any, Any]
    start: Callable[[int], Callable[[], Any]]
    time_limit: float | None = None
    transform_reward: Callable[[np.ndarray], np.ndarray] | None = None
    evaluated_as: Callable[[], "HostEnv"] | None = None
    drawn_as: Callable[[], "HostEnv"] | None = None
    evaluation_envs: int | None = None
    channels: str = "auto"
    own_codec: Codec | None = None
    _kept: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def codec(self) -> Codec:
        """The environment's language and ours."""
        if self.own_codec is not None:
            return self.own_codec
        return host_spaces.codec(*self.spaces, self.name, channels=self.channels)

    @property
    def observation_space(self) -> PyTree:
        return self.vector(1).observation_space

    @property
    def action_space(self) -> Space:
        return self.vector(1).action_space

    def vector(self, num_envs: int) -> HostVectorEnv:
        """The N environments of this object: asked for again, they are the same ones."""

        def make() -> HostVectorEnv:
            return HostVectorEnv(
                self.name,
                num_envs,
                self.start(num_envs),
                self.spaces,
                time_limit=self.time_limit,
                transform_reward=self.transform_reward,
                channels=self.channels,
            )

        return self._keep(num_envs, make)

    def evaluation(self) -> "HostEnv":
        """The environment as its returns are reported."""
        if self.evaluated_as is None and self.evaluation_envs is not None:
            return self  # the vector environment that was given, the only one there is
        copy = functools.partial(dataclasses.replace, self, _kept={})
        return self._keep("evaluation", self.evaluated_as or copy)

    def side_by_side(self, episodes: int) -> int:
        """How many environments play so many episodes."""
        return self.evaluation_envs or min(episodes, EVALUATION_ENVS)

    def picture(self) -> "HostEnv":
        """The environment as it is drawn."""
        if self.drawn_as is None:
            return self.evaluation()
        return self._keep("picture", self.drawn_as)

    def close(self) -> None:
        """End all environments of this object and their processes."""
        for kept in self._kept.values():
            kept.close()

    def _keep(self, what: Any, make: Callable[[], Any]) -> Any:
        if what not in self._kept:
            self._kept[what] = make()
        return self._kept[what]


def refuse_sweep(env: Any) -> None:
    """Host environments cannot be vmapped; said before anything compiles.

    Raises:
        InvalidEnvironment: it is one, with the reason and what to do instead.
    """
    if isinstance(env, HostEnv):
        raise InvalidEnvironment(_why_not_vmapped(env.name))


def _why_not_vmapped(name: str) -> str:
    return (
        f"environment {name} runs on the host, where it has a state of its own that JAX cannot "
        "copy: it cannot be vmapped over agents (a sweep, run_seeds, jax.vmap(make_train(...))). "
        "Train the seeds one after the other, python -m ppo_jax.train --seed S for each, and raise "
        "num_envs for more environments at once"
    )


def _refuse_vmap(name: str, tree: PyTree) -> PyTree:
    """The tree itself; under vmap an error that says why, before JAX's own."""

    @jax.custom_batching.custom_vmap
    def guard(tree: PyTree) -> PyTree:
        return tree

    @guard.def_vmap
    def refuse(*_: Any) -> Any:
        raise InvalidEnvironment(_why_not_vmapped(name))

    return guard(tree)


def _token_shape() -> jax.ShapeDtypeStruct:
    """[resets so far, steps since the last]."""
    return jax.ShapeDtypeStruct((2,), jnp.uint32)
