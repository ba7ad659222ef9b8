"""Environments that live on the host: one ordered callback per step of N of them.

Everything else of a run is a pure function; these are not. Their state is in their own memory, so
that a run's state holds only a token, with which every step is checked to be the next one.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from ppo_jax.envs import host_spaces
from ppo_jax.envs.codec import Codec, Leaf
from ppo_jax.envs.copies import Copies
from ppo_jax.envs.host_rows import Rows
from ppo_jax.envs.host_spaces import action_space, observation_leaves
from ppo_jax.envs.host_vector import GymnasiumVector
from ppo_jax.envs.protocol import InvalidEnvironment, StepResult
from ppo_jax.envs.spaces import Space
from ppo_jax.envs.supervision import MAKING, SimulatorFailed, Supervision
from ppo_jax.types import PyTree

# Environments that play side by side in an evaluation; the episodes after them take their turns.
EVALUATION_ENVS = 16
# Seeds are below 2^30: Gymnasium counts on from them, environment by environment.
SEEDS = 2**30


class HostVectorEnv:
    """N environments of the host, as a VectorEnv.

    Started when its reset or step is first traced, not before: what is only looked at costs
    nothing. Episodes that end are restarted on the host: `Copies` and `GymnasiumVector` say how.

    Where a run supervises it, a failure of an environment does not end the compiled program: it is
    kept in `supervision`, and the steps after it did not happen.

    Args:
        name: for messages.
        num_envs: N.
        start: () -> Copies or a Gymnasium vector environment, of N.
        spaces: of one environment, Gymnasium's observation and action space.
        time_limit: the longest that an episode can be; it may be truncated sooner.
        transform_reward: [N] -> [N], what is learned from; info then has raw_reward [N].
        channels: of images, as for `host_spaces.observation_leaves`.
        supervision: of the run.
    """

    # The critic is asked for every true final observation, however often episodes are truncated.
    truncates_sooner = True

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
        supervision: Supervision | None = None,
    ) -> None:
        self.name, self.num_envs, self.time_limit = name, num_envs, time_limit
        tree = observation_leaves(spaces[0], name, channels=channels)
        is_leaf = lambda x: isinstance(x, Leaf)
        self._rows = Rows(spaces[0], jax.tree.leaves(tree, is_leaf=is_leaf), spaces[1])
        self._structure = jax.tree.structure(tree, is_leaf=is_leaf)
        self.observation_space = jax.tree.map(lambda leaf: leaf.space, tree, is_leaf=is_leaf)
        self.action_space, self._to_env = action_space(spaces[1], name)
        self._start, self._transform_reward = start, transform_reward
        self._supervision = supervision or Supervision()
        self._venv: Any = None
        # Of the running episodes: resets so far, steps since the last.
        self._resets, self._steps = 0, 0

    def reset(self, key: jax.Array) -> tuple[PyTree, jax.Array]:
        """(obs [N, ...], token) of new episodes, seeded from the key."""
        self.start()
        seed = _refuse_vmap(self.name, jax.random.randint(key, (), 0, SEEDS))
        shapes = (self._obs_shapes(), _token_shape())
        obs, token = io_callback(self._host_reset, shapes, seed, ordered=True)
        return jax.tree.unflatten(self._structure, obs), token

    def step(self, key: jax.Array, state: jax.Array, action: jax.Array) -> StepResult:
        """After auto-reset, with the true final observation and `valid` in info.

        Where copies that fail are replaced, info has `abandoned` [N], too: the step did not
        happen, and the episode it was to be of is over.

        Raises:
            JaxRuntimeError, when it runs and nobody supervises it: whatever the environment
            raised; or a state that is not the one the environments are in.
        """
        self.start()
        action = action.reshape(self.num_envs, *self.action_space.shape)
        state, action = _refuse_vmap(self.name, (state, action))
        flags = jax.ShapeDtypeStruct((4, self.num_envs), jnp.bool_)
        rewards = jax.ShapeDtypeStruct((2, self.num_envs), jnp.float32)
        # Where the final observation is the next one anyway, it need not travel twice.
        final_shapes = self._obs_shapes() if self._venv.same_step else ()
        shapes = (self._obs_shapes(), _token_shape(), rewards, flags, final_shapes)
        result = io_callback(self._host_step, shapes, state, action, ordered=True)
        obs, state, (reward, raw_reward), flags, final = result
        terminated, truncated, valid, abandoned = flags
        obs = jax.tree.unflatten(self._structure, obs)
        final = jax.tree.unflatten(self._structure, final) if self._venv.same_step else obs
        info = {"final_observation": final, "valid": valid, "raw_reward": raw_reward}
        if self._supervision.restarts:
            info["abandoned"] = abandoned
        return obs, state, reward, terminated, truncated, info

    def render(self, state: PyTree) -> np.ndarray:
        """[H, W, 3] uint8 of the first environment as it now is."""
        jax.block_until_ready(state)
        try:
            frames = self._venv.render() if self._venv is not None else None
        except SimulatorFailed as error:
            raise InvalidEnvironment(str(error)) from error
        if frames is None or len(frames) == 0 or frames[0] is None:
            raise InvalidEnvironment(
                f"environment {self.name} has no picture; one that is to be drawn is made with "
                'render_mode="rgb_array"'
            )
        return np.asarray(frames[0], np.uint8)

    def start(self) -> None:
        """Make the environments, and with them their worker processes, if it was not done yet.

        Raises:
            InvalidEnvironment: one cannot be made, they restart in no way that is known, or are
                not as many as promised.
        """
        if self._venv is not None:
            return
        with self._supervision.calls(self.name, MAKING):
            made = self._start()
        venv = made if isinstance(made, Copies) else GymnasiumVector(made)
        if venv.num_envs != self.num_envs:
            raise InvalidEnvironment(
                f"vector environment {self.name} has {venv.num_envs} environments; "
                f"num_envs is {self.num_envs}"
            )
        try:
            venv.open(self.name, self._rows, self._supervision)
        except SimulatorFailed as error:
            raise InvalidEnvironment(str(error)) from error
        self._venv = venv

    def close(self) -> None:
        """End the environments and their processes; the next reset starts them again."""
        venv, self._venv = self._venv, None
        if venv is not None:
            venv.close()

    # On the host, in a callback: numpy alone from here on.

    def _host_reset(self, seed: Any) -> tuple[Any, ...]:
        def reset() -> tuple[Any, ...]:
            self.start()
            obs = self._venv.reset(int(np.asarray(seed)))
            self._resets, self._steps = self._resets + 1, 0
            return obs, self._token()

        return self._guarded(reset, lambda: (self._zeros(), self._token()))

    def _host_step(self, state: Any, action: Any) -> tuple[Any, ...]:
        def step() -> tuple[Any, ...]:
            self._check_is_next(np.asarray(state))
            done = self._venv.step(self._to_env(np.asarray(action)))
            self._steps += 1
            raw, transform = done.reward, self._transform_reward
            rewards = np.stack([transform(raw) if transform else raw, raw])
            flags = np.stack([done.terminated, done.truncated, done.valid, done.abandoned])
            final = done.obs if done.final is None else done.final
            final = final if self._venv.same_step else ()
            return done.obs, self._token(), rewards, flags, final

        return self._guarded(step, self._nothing)

    def _guarded(self, work: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
        """What the work returns. Where a run supervises it, what fails is kept for the run, and
        this and all later work is left out: raised within the compiled program, it would be lost
        among JAX's own lines."""
        supervision = self._supervision
        if supervision.failure is not None:
            return otherwise()
        try:
            return work()
        except Exception as error:
            if not supervision.active:
                raise
            supervision.failure = str(error)
        return otherwise()

    def _nothing(self) -> tuple[Any, ...]:
        """A step that did not happen, after which nothing more is to be played."""
        flags = np.zeros((4, self.num_envs), bool)
        flags[0] = True  # terminated: an evaluation waits for the end of every episode
        rewards, zeros = np.zeros((2, self.num_envs), np.float32), self._zeros()
        same_step = self._venv is None or self._venv.same_step
        return zeros, self._token(), rewards, flags, zeros if same_step else ()

    def _zeros(self) -> tuple[np.ndarray, ...]:
        return tuple(np.zeros(s.shape, s.dtype) for s in self._obs_shapes())

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

    def _obs_shapes(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        spaces = [leaf.space for leaf in self._rows.leaves]
        return tuple(jax.ShapeDtypeStruct((self.num_envs, *s.shape), s.dtype) for s in spaces)


@dataclasses.dataclass(frozen=True, eq=False)
class HostEnv:
    """An environment of which there are only vectors: what `make` returns for the host's suites.

    Attributes:
        name: in full.
        spaces: Gymnasium's observation and action space.
        start: num_envs -> () -> Copies or a Gymnasium vector environment, of so many.
        time_limit: as a HostVectorEnv's.
        transform_reward: as HostVectorEnv's.
        evaluated_as: () -> the HostEnv whose returns are reported; None: this one.
        drawn_as: () -> the HostEnv that is drawn; None: the evaluated one.
        evaluation_envs: how many play side by side in an evaluation; None: as many as there are
            episodes, up to EVALUATION_ENVS.
        channels: of images, as for `host_spaces.observation_leaves`.
        own_codec: of the environment as its users have it, where its vectors have other spaces.
        supervision: of all its environments, those that are evaluated or drawn among them.
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
    supervision: Supervision = dataclasses.field(default_factory=Supervision, repr=False)
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
                supervision=self.supervision,
            )

        return self._keep(num_envs, make)

    def evaluation(self) -> "HostEnv":
        """The environment as its returns are reported."""
        if self.evaluated_as is None and self.evaluation_envs is not None:
            return self  # the vector environment that was given, the only one there is
        same = lambda: dataclasses.replace(self, _kept={})
        return self._keep("evaluation", self._supervised(self.evaluated_as or same))

    def side_by_side(self, episodes: int) -> int:
        """How many environments play so many episodes."""
        return self.evaluation_envs or min(episodes, EVALUATION_ENVS)

    def picture(self) -> "HostEnv":
        """The environment as it is drawn."""
        if self.drawn_as is None:
            return self.evaluation()
        return self._keep("picture", self._supervised(self.drawn_as))

    def close(self) -> None:
        """End all environments of this object and their processes."""
        for kept in self._kept.values():
            kept.close()

    def _supervised(self, make: Callable[[], "HostEnv"]) -> Callable[[], "HostEnv"]:
        return lambda: dataclasses.replace(make(), supervision=self.supervision)

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
