"""What an environment is: an Env that steps, a VectorEnv that also resets, a VectorMaker.

An Env is one environment as pure functions, of which `vectorize` makes a VectorEnv, what a rollout
steps. Both return the six values of gymnax 1.0, in its order. Where there is no single environment
that could be copied by `jax.vmap` (simulators of the host, which step many at a time and restart
them themselves; games whose agents are the rows), the environment is a VectorMaker: it has no reset
and no step, and makes its VectorEnv itself. Everything that takes an environment takes an Env or a
VectorMaker, and asks `makes_vectors` which it is.
"""

from typing import Any, Protocol, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.envs import spaces
from ppo_jax.envs.spaces import ACTION_MASK, ACTION_SPACES, Box, Space
from ppo_jax.types import PyTree

StepResult = tuple[PyTree, PyTree, jax.Array, jax.Array, jax.Array, dict[str, Any]]


class InvalidEnvironment(TypeError):
    """An object that cannot be used as an environment, and what it lacks."""


class Env(Protocol):
    """One environment as pure functions; it steps and never resets itself.

    Attributes:
        params: pytree of numbers that may be traced, so that a sweep can vary them.
        observation_space, action_space: from `ppo_jax.envs.spaces`; that of observations which
            are a pytree is a pytree of spaces, of the same structure.
        time_limit: an episode that has not ended by then is truncated after so many steps, and
            none sooner; None if there is no telling, infinity if none ever is. With None the final
            observation of every step is kept.

    Optional attributes: `name`; `shortest_episode`, a true lower bound on the length of an episode,
    which sizes the pool of resets; `render(state)`, an RGB picture [H, W, 3] uint8.
    """

    @property
    def params(self) -> PyTree: ...
    @property
    def observation_space(self) -> PyTree: ...
    @property
    def action_space(self) -> Space: ...
    @property
    def time_limit(self) -> float | None: ...

    def reset(self, key: jax.Array, params: PyTree) -> tuple[PyTree, PyTree]:
        """(obs, state) of a new episode."""
        ...

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, params: PyTree) -> StepResult:
        """(obs, state, reward [], terminated [], truncated [], info); obs is the true successor.

        info may hold settled [], True where all that was done so far has had its consequences and
        only the episode goes on (a point of a game): credit ends there as at the end of one.
        """
        ...


class VectorEnv(Protocol):
    """N environments stepped together, each restarted as soon as its episode ends.

    Optional: `refresh(key, state) -> (state, metrics)`, called after each rollout, outside its
    loop; `restart(key, state) -> (obs, state)`, a reset that may keep what the state has ready;
    `time_limit`, as an Env's.
    """

    @property
    def num_envs(self) -> int: ...
    @property
    def observation_space(self) -> PyTree: ...
    @property
    def action_space(self) -> Space: ...

    def reset(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        """(obs [N, ...], state)."""
        ...

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> StepResult:
        """After auto-reset: obs [N, ...] is a new episode's first where the old one ended.

        info holds final_observation [N, ...], the true successor, and valid [N], False on steps
        that did not happen (the dummy step of a host environment that resets one step later).
        It may hold raw_reward [N], what returns are reported in where rewards were transformed,
        and settled [N], as an Env's.
        """
        ...


class VectorMaker(Protocol):
    """An environment that makes its own vectors.

    Attributes:
        name: for messages.
        observation_space, action_space, time_limit: as an Env's, of one row.
    """

    @property
    def name(self) -> str: ...
    @property
    def observation_space(self) -> PyTree: ...
    @property
    def action_space(self) -> Space: ...
    @property
    def time_limit(self) -> float | None: ...

    def vector(self, num_envs: int) -> VectorEnv:
        """N rows, which restart themselves; asked for again, they may be the same ones."""
        ...

    def evaluation(self) -> "VectorMaker":
        """The environment as its returns are reported: without rewards transformed for learning."""
        ...

    def side_by_side(self, episodes: int) -> int:
        """The number of rows that play at once when so many episodes are evaluated."""
        ...

    def picture(self) -> "VectorMaker":
        """The environment as it is drawn; its vectors have `render(state)`.

        Raises:
            InvalidEnvironment: it cannot be.
        """
        ...


def makes_vectors(env: Any) -> TypeGuard[VectorMaker]:
    """Whether an environment is a VectorMaker, and not an Env."""
    return hasattr(env, "vector")


def check_env(env: Any) -> None:
    """Refuse an object that does not follow the Env protocol, before anything is compiled.

    Traces reset and step once, computing nothing. A VectorMaker is looked at from outside: its
    environments are not started.

    Raises:
        InvalidEnvironment: a missing attribute, a foreign space, a wrong number of results, or an
            observation, mask, state, reward or flag of the wrong structure, shape or type; the
            message names it.
    """
    name = getattr(env, "name", type(env).__name__)
    functions = ["name"] if makes_vectors(env) else ["reset", "step", "params"]
    required = [*functions, "observation_space", "action_space", "time_limit"]
    missing = [attribute for attribute in required if not hasattr(env, attribute)]
    if missing:
        raise InvalidEnvironment(
            f"environment {name} lacks {', '.join(missing)}; an environment has "
            f"{', '.join(required)} (ppo_jax.envs.Env)"
        )
    if env.time_limit is not None and not env.time_limit >= 1:
        raise InvalidEnvironment(f"{name}.time_limit is {env.time_limit}; it must be >= 1 or None")
    check_spaces(env)
    if not makes_vectors(env):
        _check_step(name, env)


def _check_step(name: str, env: Any) -> None:
    """Trace one episode's beginning."""
    key, action = jax.random.key(0), jnp.zeros(env.action_space.shape, env.action_space.dtype)
    count = []

    def step(state: PyTree) -> Any:
        result = env.step(key, state, action, env.params)
        count.append(len(result))
        return result[:5]

    obs, state = jax.eval_shape(env.reset, key, env.params)
    result = jax.eval_shape(step, state)
    if count[0] != 6:
        raise InvalidEnvironment(
            f"{name}.step returned {count[0]} values; expected the six of gymnax 1.0: "
            "obs, state, reward, terminated, truncated, info"
        )
    _check_same(name, "observation", obs, result[0])
    _check_same(name, "state", state, result[1])
    _check_scalars(name, *result[2:])
    _check_observation(name, env.observation_space, obs)


def check_spaces(env: Any) -> None:
    """Refuse spaces that no policy here can serve; looks at descriptions alone.

    Raises:
        InvalidEnvironment: a foreign space, nothing to observe, or an action mask that does not
            fit the actions.
    """
    name = getattr(env, "name", type(env).__name__)
    observations, actions = env.observation_space, env.action_space
    kinds = ", ".join(k.__name__ for k in ACTION_SPACES)
    for what, found in (("action", [actions]), ("observation", jax.tree.leaves(observations))):
        for space in found:
            if not isinstance(space, ACTION_SPACES):
                raise InvalidEnvironment(
                    f"the {what} space of {name}, {spaces.describe(space)}, cannot be served; "
                    f"there are, in ppo_jax.envs.spaces: {kinds}"
                    + (" (and any pytree of them)" if what == "observation" else "")
                )
    if not spaces.leaves(observations):
        raise InvalidEnvironment(
            f"there is nothing to observe in {name}: its observation_space has no entry"
            f"{' but ' + ACTION_MASK if spaces.action_mask(observations) is not None else ''}"
        )
    mask = spaces.action_mask(observations)
    if mask is not None:
        _check_mask(name, mask, actions)


def _check_mask(name: str, mask: Any, actions: Space) -> None:
    shape = spaces.mask_shape(actions)
    if shape is None:
        raise InvalidEnvironment(
            f"{name} has an {ACTION_MASK} for {spaces.describe(actions)}; there are masks for "
            "Discrete and MultiDiscrete (bits are MultiDiscrete((2, 2, ...)))"
        )
    if not isinstance(mask, Box) or mask.shape != shape or mask.dtype != np.dtype(bool):
        raise InvalidEnvironment(
            f"{name}: the {ACTION_MASK} in its observation_space is {spaces.describe(mask)}; for "
            f"{spaces.describe(actions)} it is Box(0, 1, {shape}, bool)"
        )


def _check_observation(name: str, space: PyTree, obs: PyTree) -> None:
    """Observations have their space's structure, shapes and, where it matters, types.

    It does for masks (bool), for choices (integers) and for bytes, which are scaled; among other
    numbers suites are careless and no harm is done.
    """
    structures: list[Any] = [jax.tree.structure(x) for x in (space, obs)]
    if structures[0] != structures[1]:
        shapes = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", obs)
        raise InvalidEnvironment(
            f"{name}: observations have another structure than its observation_space; "
            f"they are {shapes}, it is {spaces.describe(space)}"
        )
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(obs)]
    for path, leaf, x in zip(paths, jax.tree.leaves(space), jax.tree.leaves(obs), strict=True):
        if x.shape != leaf.shape:
            raise InvalidEnvironment(
                f"{name}: observations{path} have shape {x.shape}, its observation_space "
                f"{leaf.shape}"
            )
        if not _serves(leaf, x.dtype):
            raise InvalidEnvironment(
                f"{name}: observations{path} are {x.dtype}, its observation_space "
                f"{spaces.describe(leaf)}"
            )


def _serves(space: Space, dtype: Any) -> bool:
    """Whether numbers of this type can stand for elements of the space."""
    if isinstance(space, Box):
        promised = np.dtype(space.dtype)
        return dtype == promised or not ({dtype, promised} & {np.dtype(np.uint8), np.dtype(bool)})
    bits = isinstance(space, spaces.MultiBinary) and dtype == np.dtype(bool)
    return bits or bool(jnp.issubdtype(dtype, jnp.integer))


def _check_scalars(name: str, reward: Any, terminated: Any, truncated: Any) -> None:
    values = {"reward": reward, "terminated": terminated, "truncated": truncated}
    for label, value in values.items():
        kind = jnp.floating if label == "reward" else jnp.bool_
        if value.shape != () or not jnp.issubdtype(value.dtype, kind):
            raise InvalidEnvironment(
                f"{name}.step returned a {label} of {value.dtype}{list(value.shape)}; "
                f"expected {'float32' if label == 'reward' else 'bool'}[]"
            )


def _check_same(name: str, what: str, before: PyTree, after: PyTree) -> None:
    structures: list[Any] = [jax.tree.structure(x) for x in (before, after)]
    if structures[0] != structures[1]:
        raise InvalidEnvironment(
            f"{name}: the {what} of step has another structure than that of reset"
        )
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True
    ):
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            leaf = what + jax.tree_util.keystr(path)
            raise InvalidEnvironment(
                f"{name}: {leaf} is {x.dtype}{list(x.shape)} from reset "
                f"but {y.dtype}{list(y.shape)} from step"
            )


def render(env: Any, state: PyTree) -> np.ndarray:
    """A picture of one state.

    Raises:
        InvalidEnvironment: the environment cannot draw itself.
    """
    if not hasattr(env, "render"):
        raise InvalidEnvironment(
            f"environment {getattr(env, 'name', type(env).__name__)} has no render"
        )
    return np.asarray(env.render(state), np.uint8)
