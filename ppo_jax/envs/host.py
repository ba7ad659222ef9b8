"""Environments that run on the host, stepped with one ordered callback for N environments.

Unlike all other parts of a run, these environments are not pure functions. Their state is in their
own memory. The state of a run holds a token, by which every step is checked to follow the last one.
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

# Number of environments that run in parallel in an evaluation; further episodes follow in turn.
EVALUATION_ENVS = 16
# Seeds are below 2^30, because Gymnasium adds the index of the environment.
SEEDS = 2**30


class HostVectorEnv:
    """N environments on the host, as a VectorEnv.

    The environments are started when reset or step is first traced, so that reading attributes
    starts nothing. Episodes are reset on the host, by `Copies` or `GymnasiumVector`.

    If a run supervises the environments, a failure does not end the compiled program. It is stored
    in `supervision`, and all later steps are invalid.

    Args:
        name: name for messages.
        num_envs: number N of environments.
        start: function that makes Copies or a Gymnasium vector environment of N environments.
        spaces: Gymnasium's observation space and action space of one environment.
        time_limit: maximum length of an episode, which may be truncated earlier.
        transform_reward: function [N] -> [N] that transforms rewards for training; info then
            contains raw_reward [N].
        channels: order of the channels of images, as for `host_spaces.observation_leaves`.
        supervision: supervision of the run.
    """

    # All true final observations are evaluated, however often episodes are truncated.
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
        # Number of resets, and number of steps since the last reset.
        self._resets, self._steps = 0, 0

    def reset(self, key: jax.Array) -> tuple[PyTree, jax.Array]:
        """Start N new episodes, seeded from the key: (obs [N, ...], token)."""
        self.start()
        seed = _refuse_vmap(self.name, jax.random.randint(key, (), 0, SEEDS))
        shapes = (self._obs_shapes(), _token_shape())
        obs, token = io_callback(self._host_reset, shapes, seed, ordered=True)
        return jax.tree.unflatten(self._structure, obs), token

    def step(self, key: jax.Array, state: jax.Array, action: jax.Array) -> StepResult:
        """Take a step with automatic reset; info contains final_observation and `valid`.

        If failed copies are replaced, info also contains `abandoned` [N], True where the step was
        not executed and its episode is over.

        Raises:
            JaxRuntimeError: if an environment without supervision raised an error, or the state is
                not the current state of the environments. It is raised when the step is executed.
        """
        self.start()
        action = action.reshape(self.num_envs, *self.action_space.shape)
        state, action = _refuse_vmap(self.name, (state, action))
        flags = jax.ShapeDtypeStruct((4, self.num_envs), jnp.bool_)
        rewards = jax.ShapeDtypeStruct((2, self.num_envs), jnp.float32)
        # If the final observation equals the next observation, it is not transferred twice.
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
        """An image [H, W, 3] uint8 of the first environment in its current state."""
        jax.block_until_ready(state)
        try:
            frames = self._venv.render() if self._venv is not None else None
        except SimulatorFailed as error:
            raise InvalidEnvironment(str(error)) from error
        if frames is None or len(frames) == 0 or frames[0] is None:
            raise InvalidEnvironment(
                f"environment {self.name} returned no image; to be rendered, an environment must "
                'be made with render_mode="rgb_array"'
            )
        return np.asarray(frames[0], np.uint8)

    def start(self) -> None:
        """Make the environments and their worker processes, unless they exist.

        Raises:
            InvalidEnvironment: if an environment cannot be made, the mode of automatic reset is
                unknown, or the number of environments is not num_envs.
        """
        if self._venv is not None:
            return
        with self._supervision.calls(self.name, MAKING):
            made = self._start()
        venv = made if isinstance(made, Copies) else GymnasiumVector(made)
        if venv.num_envs != self.num_envs:
            raise InvalidEnvironment(
                f"vector environment {self.name} has {venv.num_envs} environments, but "
                f"num_envs is {self.num_envs}"
            )
        try:
            venv.open(self.name, self._rows, self._supervision)
        except SimulatorFailed as error:
            raise InvalidEnvironment(str(error)) from error
        self._venv = venv

    def close(self) -> None:
        """Close the environments and end their processes; the next reset starts them again."""
        venv, self._venv = self._venv, None
        if venv is not None:
            venv.close()

    # The following methods run on the host, in a callback, and use NumPy only.

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
        """Call a function. In a supervised run, store an error and skip this and all later calls:
        an error raised inside the compiled program would be hidden among messages of JAX."""
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
        """The results of a step that was not executed, after a failure."""
        flags = np.zeros((4, self.num_envs), bool)
        flags[0] = True  # terminated, because an evaluation waits for the end of every episode
        rewards, zeros = np.zeros((2, self.num_envs), np.float32), self._zeros()
        same_step = self._venv is None or self._venv.same_step
        return zeros, self._token(), rewards, flags, zeros if same_step else ()

    def _zeros(self) -> tuple[np.ndarray, ...]:
        return tuple(np.zeros(s.shape, s.dtype) for s in self._obs_shapes())

    def _check_is_next(self, state: np.ndarray) -> None:
        given, here = tuple(state.tolist()), tuple(self._token().tolist())
        if given != here:
            raise RuntimeError(
                f"environment {self.name} runs on the host and cannot return to an earlier state: "
                f"this step continues from reset {given[0]}, step {given[1]}, but the environment "
                f"is at reset {here[0]}, step {here[1]}. Use ppo_jax.rollout.restart to start new "
                "episodes from a state that was saved or already used"
            )

    def _token(self) -> np.ndarray:
        return np.array([self._resets, self._steps], np.uint32)

    def _obs_shapes(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        spaces = [leaf.space for leaf in self._rows.leaves]
        return tuple(jax.ShapeDtypeStruct((self.num_envs, *s.shape), s.dtype) for s in spaces)


@dataclasses.dataclass(frozen=True, eq=False)
class HostEnv:
    """An environment that only exists as a vector environment, such as those of host suites.

    Attributes:
        name: full name.
        spaces: Gymnasium's observation space and action space.
        start: function num_envs -> function that makes Copies or a Gymnasium vector environment.
        time_limit: maximum length of an episode, as for HostVectorEnv.
        transform_reward: transformation of rewards, as for HostVectorEnv.
        evaluated_as: function that makes the HostEnv for evaluation; None for this HostEnv.
        drawn_as: function that makes the HostEnv for rendering; None for that of evaluation.
        evaluation_envs: number of environments that run in parallel in an evaluation; None for the
            number of episodes, at most EVALUATION_ENVS.
        channels: order of the channels of images, as for `host_spaces.observation_leaves`.
        own_codec: codec of the original environment, if its vector environments have other spaces.
        supervision: supervision of all environments, including those for evaluation and rendering.
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
        """Conversion between the environment's form and the policy's form."""
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
        """The N environments of this object; a second call returns the same object."""

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
        """The environment for evaluation."""
        if self.evaluated_as is None and self.evaluation_envs is not None:
            return self  # a given vector environment is the only one
        same = lambda: dataclasses.replace(self, _kept={})
        return self._keep("evaluation", self._supervised(self.evaluated_as or same))

    def side_by_side(self, episodes: int) -> int:
        """The number of environments that run in parallel to evaluate this number of episodes."""
        return self.evaluation_envs or min(episodes, EVALUATION_ENVS)

    def picture(self) -> "HostEnv":
        """The environment for rendering."""
        if self.drawn_as is None:
            return self.evaluation()
        return self._keep("picture", self._supervised(self.drawn_as))

    def close(self) -> None:
        """Close all environments of this object and end their processes."""
        for kept in self._kept.values():
            kept.close()

    def _supervised(self, make: Callable[[], "HostEnv"]) -> Callable[[], "HostEnv"]:
        return lambda: dataclasses.replace(make(), supervision=self.supervision)

    def _keep(self, what: Any, make: Callable[[], Any]) -> Any:
        if what not in self._kept:
            self._kept[what] = make()
        return self._kept[what]


def refuse_sweep(env: Any) -> None:
    """Reject host environments, which cannot be vmapped, before anything is compiled.

    Raises:
        InvalidEnvironment: if the environment runs on the host.
    """
    if isinstance(env, HostEnv):
        raise InvalidEnvironment(_why_not_vmapped(env.name))


def _why_not_vmapped(name: str) -> str:
    return (
        f"environment {name} runs on the host and has a state that JAX cannot copy: it cannot be "
        "vmapped over agents (a sweep, run_seeds, jax.vmap(make_train(...))). Train the seeds one "
        "after the other, with python -m ppo_jax.train --seed S for each, and raise num_envs to "
        "run more environments in parallel"
    )


def _refuse_vmap(name: str, tree: PyTree) -> PyTree:
    """Return the tree unchanged; under vmap, raise an error that explains the reason."""

    @jax.custom_batching.custom_vmap
    def guard(tree: PyTree) -> PyTree:
        return tree

    @guard.def_vmap
    def refuse(*_: Any) -> Any:
        raise InvalidEnvironment(_why_not_vmapped(name))

    return guard(tree)


def _token_shape() -> jax.ShapeDtypeStruct:
    """Shape of the token [number of resets, number of steps since the last reset]."""
    return jax.ShapeDtypeStruct((2,), jnp.uint32)
