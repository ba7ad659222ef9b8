"""The protocols of environments: Env, VectorEnv and VectorMaker.

An Env is a single environment as pure functions. `vectorize` makes a VectorEnv of it, which a
rollout steps. Both return the six values of gymnax 1.0, in the same order. Some environments cannot
be copied by `jax.vmap`: simulators on the host, which step and reset many environments at a time,
and games with several agents, each of which is one row of the batch. Such an environment is a
VectorMaker. It has no reset and step, and makes its VectorEnv itself. Every function that takes an
environment takes an Env or a VectorMaker and distinguishes them with `makes_vectors`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.config.errors import InvalidEnvironment as InvalidEnvironment
from ppo_jax.config.references import place, raised
from ppo_jax.envs import spaces
from ppo_jax.envs.spaces import ACTION_MASK, ACTION_SPACES, CRITIC_OBSERVATION, Box, Space
from ppo_jax.types import PyTree

StepResult = tuple[PyTree, PyTree, jax.Array, jax.Array, jax.Array, dict[str, Any]]


class Env(Protocol):
    """A single environment as pure functions, without automatic reset.

    Attributes:
        params: pytree of numbers, which may be traced, so that a sweep can vary them.
        observation_space, action_space: spaces from `ppo_jax.envs.spaces`. For observations that
            are a pytree, observation_space is a pytree of spaces with the same structure.
        time_limit: number of steps after which an episode is truncated, never earlier; None if the
            number is unknown, infinity if episodes are never truncated. With None the final
            observation of every step is stored.

    An observation that is a dictionary (or a NamedTuple or dataclass) may have an entry
    `action_mask`, the legal actions, and an entry `critic_observation`, information about the state
    that the critic receives in training and the actor does not.

    Optional attributes: `name`; `shortest_episode`, a lower bound of the length of episodes, which
    determines the size of the pool of initial states; `render(state)`, an RGB image of shape
    [H, W, 3] and type uint8.
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
        """Start a new episode: (obs, state)."""
        ...

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, params: PyTree) -> StepResult:
        """Take one step: (obs, state, reward [], terminated [], truncated [], info).

        obs is the true successor observation. info may contain settled [], True where all actions
        so far have had their full effect although the episode continues (such as at a point of a
        game). Credit assignment ends there as at the end of an episode. info may contain shortened
        [], True where an episode is cut before its time limit and does not count in the metrics.
        """
        ...


def delegated(name: str, *default: Any) -> Any:
    """A property of a wrapper, whose value is the attribute of its environment `env`.

    Args:
        name: name of the attribute.
        default: value for environments without the attribute; without a default, it is required.
    """
    return property(lambda wrapper: getattr(wrapper.env, name, *default))


def display_name(env: Any) -> str:
    """The name of an environment for messages: that of its class if it has none."""
    return getattr(env, "name", type(env).__name__)


class VectorEnv(Protocol):
    """N environments that are stepped together and reset automatically at the end of an episode.

    Optional attributes: `begin(state) -> state` and `refresh(key, state) -> (state, metrics)`,
    called before and after each rollout, outside its loop; `restart(key, state) -> (obs, state)`, a
    reset that may reuse parts of the state; `time_limit`, as for an Env.
    """

    @property
    def num_envs(self) -> int: ...
    @property
    def observation_space(self) -> PyTree: ...
    @property
    def action_space(self) -> Space: ...

    def reset(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        """Start N new episodes: (obs [N, ...], state)."""
        ...

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> StepResult:
        """Take one step in each environment, with automatic reset.

        Where an episode ended, obs [N, ...] is the first observation of the next episode.

        info contains final_observation [N, ...], the true successor observation, and valid [N],
        False for a step that was not executed (the dummy step of a host environment that resets
        one step later). If all steps are valid, `valid` may be a constant NumPy array. info may
        contain raw_reward [N], rewards before any transformation, from which returns are reported,
        and settled [N] and shortened [N], as for an Env.
        """
        ...


class VectorMaker(Protocol):
    """An environment that makes its own vector environments.

    Attributes:
        name: name for messages.
        observation_space, action_space, time_limit: attributes of one row, as for an Env.

    Optional attribute: `num_agents`, the number of successive rows that belong to one game, and
    whose returns are therefore not independent.
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
        """N rows with automatic reset; a second call may return the same object."""
        ...

    def evaluation(self) -> "VectorMaker":
        """The environment for evaluation, without transformations of the rewards."""
        ...

    def side_by_side(self, episodes: int) -> int:
        """The number of rows that run in parallel to evaluate this number of episodes."""
        ...

    def picture(self) -> "VectorMaker":
        """The environment for rendering, whose vector environments have `render(state)`.

        Raises:
            InvalidEnvironment: if the environment cannot be rendered.
        """
        ...


def makes_vectors(env: Any) -> TypeGuard[VectorMaker]:
    """Whether an environment is a VectorMaker rather than an Env."""
    return hasattr(env, "vector")


def check_protocol(env: Any) -> None:
    """Reject an object that does not follow the Env protocol, before anything is compiled.

    The functions reset and step are traced once without computing anything;
    `ppo_jax.envs.check_env` also executes them. The environments of a VectorMaker are not started.

    Raises:
        InvalidEnvironment: if an attribute is missing, a space has an unknown type, a function
            cannot be traced or returns a wrong number of values, or an observation, mask, state,
            reward or flag has a wrong structure, shape or type. The message names it.
    """
    for problem in static_problems(env):
        raise InvalidEnvironment(problem)


def static_problems(env: Any) -> Iterator[str]:
    """All problems that `check_protocol` detects, one sentence for each."""
    name = display_name(env)
    functions = ["name"] if makes_vectors(env) else ["reset", "step", "params"]
    required = [*functions, "observation_space", "action_space", "time_limit"]
    missing = [attribute for attribute in required if not hasattr(env, attribute)]
    if missing:
        yield (
            f"environment {name} lacks {', '.join(missing)}; an environment has the attributes "
            f"{', '.join(required)} (ppo_jax.envs.Env)"
        )
    limit = getattr(env, "time_limit", None)
    if limit is not None and not (_is_number(limit) and limit >= 1):
        yield (
            f"{name}.time_limit is {limit!r}; it must be >= 1 or None (infinity if episodes are "
            "never truncated)"
        )
    if {*missing} - {"name", "time_limit"}:
        return
    yield from space_problems(env)
    if not makes_vectors(env) and isinstance(env.action_space, ACTION_SPACES):
        yield from _step_problems(name, env)


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float | np.number) and not isinstance(x, bool)


def _step_problems(name: str, env: Any) -> Iterator[str]:
    """Trace the first steps of an episode."""
    key, action = jax.random.key(0), jnp.zeros(env.action_space.shape, env.action_space.dtype)
    yield from (foreign := list(_foreign_leaves(f"{name}.params", env.params)))
    if foreign:
        return
    what, results = "reset", []

    def traced(function: Callable[..., Any], *args: Any) -> Any:
        """The shapes of a function's results, if they are arrays; other results are stored."""

        def call(*args: Any) -> Any:
            result = function(*args)
            results.append(result)
            several = isinstance(result, tuple | list) and not _foreign(result[:5])
            return tuple(result[:5]) if several else ()

        return jax.eval_shape(call, *args)

    try:
        first = traced(env.reset, key, env.params)
        yield from (wrong := list(_reset_problems(name, env, results[-1])))
        if wrong:
            return
        what = "step"
        result = traced(env.step, key, first[1], action, env.params)
    except Exception as error:
        yield untraceable(name, what, error)
        return
    yield from (wrong := list(_count_problems(name, results[-1], first[1])))
    if len(result) == 5 and not any("another order" in problem for problem in wrong):
        yield from _same_problems(name, "observation", first[0], result[0])
        yield from _same_problems(name, "state", first[1], result[1])
        yield from _scalar_problems(name, *result[2:])
        yield from _observation_problems(name, env.observation_space, first[0])


def _foreign(tree: Any) -> list[tuple[str, Any]]:
    """(path, leaf) of every leaf that is neither an array nor a number."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(p), x) for p, x in found if not hasattr(x, "dtype") and not (
        isinstance(x, bool | int | float | complex)
    )]  # fmt: skip


def _foreign_leaves(what: str, tree: Any) -> Iterator[str]:
    for path, x in _foreign(tree):
        yield (
            f"{what}{path} is a {type(x).__name__}; observations, state and params may only "
            "contain numbers and arrays; keep everything else in self"
        )


def _reset_problems(name: str, env: Any, result: Any) -> Iterator[str]:
    """Problems of the result of reset, which is (obs, state), both made of arrays."""
    pair = isinstance(result, tuple | list) and len(result) == 2
    if not pair or _fits(env.observation_space, result):
        yield (
            f"{name}.reset returned {_counted(result)}; return two values, obs and state, where "
            "state contains everything that step needs"
        )
    elif _fits(env.observation_space, result[1]) and not _fits(env.observation_space, result[0]):
        yield f"{name}.reset returned state and obs; return them in the order obs, state"
    else:
        for part, tree in zip(("observation", "state"), result, strict=True):
            yield from _foreign_leaves(f"{name}: {part}", tree)


def _counted(result: Any) -> str:
    if isinstance(result, tuple | list):
        return f"{len(result)} values"
    if hasattr(result, "dtype"):
        return "a single array"
    return f"a {type(result).__name__}"


def _fits(space: PyTree, obs: PyTree) -> bool:
    """Whether a pytree has the structure and the shapes of observations."""
    if _structure(space) != _structure(obs):
        return False
    pairs = zip(jax.tree.leaves(space), jax.tree.leaves(obs), strict=True)
    return all(leaf.shape == np.shape(x) for leaf, x in pairs if hasattr(leaf, "shape"))


def _count_problems(name: str, result: Any, state: PyTree) -> Iterator[str]:
    """Problems of the result of step, which has the six values of gymnax 1.0."""
    expected = "the six of gymnax 1.0: obs, state, reward, terminated, truncated, info"
    if not isinstance(result, tuple | list):
        yield f"{name}.step returned {_counted(result)}; expected a tuple of {expected}"
    elif len(result) != 6:
        cure = "return all six values, in this order"
        if len(result) == 4:
            cure = (
                "these are the values of Gym before 0.26, which have no state and one done flag: "
                "return the state as second value, and terminated (the end of the task) and "
                "truncated (the time limit) in place of done"
            )
        if len(result) == 5:
            cure = "these are Gymnasium's values, without a state: return the state as second value"
            if _structure(result[1]) == _structure(state) != _structure(0):
                cure = (
                    "these are the values of gymnax 0.x, with one done flag: return terminated "
                    "(the end of the task) and truncated (the time limit) in its place"
                )
        yield f"{name}.step returned {len(result)} values; expected {expected}; {cure}"
    elif not isinstance(result[5], Mapping) and any(isinstance(x, dict) for x in result[2:5]):
        yield f"{name}.step returned six values in another order; expected {expected}"
    else:
        parts = zip(("observation", "state", "reward"), result, strict=False)
        for part, tree in parts:
            yield from _foreign_leaves(f"{name}: {part} of step", tree)
        if not isinstance(result[5], Mapping):
            yield (
                f"{name}.step returned an info that is a {type(result[5]).__name__}; return a "
                "dict, {} if there is no information"
            )


def _structure(tree: PyTree) -> Any:
    return jax.tree.structure(tree)


_NEEDS_A_VALUE = (
    jax.errors.ConcretizationTypeError
    | jax.errors.TracerIntegerConversionError
    | jax.errors.NonConcreteBooleanIndexError
)


def untraceable(name: str, what: str, error: BaseException) -> str:
    """The reason why JAX cannot trace a function of an environment, and how to correct it."""
    if isinstance(error, jax.errors.TracerBoolConversionError):
        problem = "uses a traced value in Python control flow (if, while, and, or, not, assert)"
        cure = "use jnp.where, jax.lax.cond or jax.lax.while_loop, and the operators &, | and ~"
    elif isinstance(error, jax.errors.TracerArrayConversionError):
        problem = "passes a traced value to NumPy, or to other code outside JAX"
        cure = "use the functions of jax.numpy"
    elif isinstance(error, jax.errors.UnexpectedTracerError):
        problem = "uses a traced value of an earlier call, which was stored outside the state"
        cure = "keep everything that changes in the state that reset and step return, not in self"
    elif isinstance(error, _NEEDS_A_VALUE):
        problem = "needs the value of a traced array"
        cure = (
            "do not use it in int(), float(), range() or a shape; use jnp.where or a jax.lax loop"
        )
    else:
        return (
            f"{name}.{what} raised {raised(error)} when it was called with a key"
            f"{', a state, an action' if what == 'step' else ''} and params; correct the error"
        )
    return f"{name}.{what} {problem} ({place(error)}), which jax.jit does not allow; {cure}"


def check_spaces(env: Any) -> None:
    """Reject spaces that no policy supports, without starting the environment.

    Raises:
        InvalidEnvironment: if a space has an unknown type, there is nothing to observe, or the
            action mask does not fit the actions.
    """
    for problem in space_problems(env):
        raise InvalidEnvironment(problem)


def space_problems(env: Any) -> Iterator[str]:
    """All problems that `check_spaces` detects, one sentence for each."""
    name = display_name(env)
    observations, actions = env.observation_space, env.action_space
    kinds = ", ".join(k.__name__ for k in ACTION_SPACES)
    foreign = False
    for what, found in (("action", [actions]), ("observation", jax.tree.leaves(observations))):
        for space in found:
            if not isinstance(space, ACTION_SPACES):
                foreign = True
                yield (
                    f"the {what} space of {name}, {spaces.describe(space)}, is not supported; "
                    f"supported are the spaces of ppo_jax.envs.spaces: {kinds}"
                    + (" (and any pytree of them)" if what == "observation" else "")
                )
    if foreign:
        return
    if not spaces.leaves(observations):
        yield (
            f"{name} has nothing to observe: its observation_space has no entry"
            f"{_except(observations)}"
        )
    mask = spaces.action_mask(observations)
    if mask is not None:
        yield from _mask_problems(name, mask, actions)


def _except(observations: PyTree) -> str:
    """The entries that no actor receives, for a message: " except action_mask"."""
    names = (ACTION_MASK, CRITIC_OBSERVATION)
    found = (spaces.action_mask(observations), spaces.critic_observation(observations))
    there = [name for name, entry in zip(names, found, strict=True) if entry is not None]
    return f" except {' and '.join(there)}" if there else ""


def _mask_problems(name: str, mask: Any, actions: Space) -> Iterator[str]:
    shape = spaces.mask_shape(actions)
    if shape is None:
        yield (
            f"{name} has an {ACTION_MASK} for {spaces.describe(actions)}; masks are supported for "
            "Discrete and MultiDiscrete (for bits use MultiDiscrete((2, 2, ...)))"
        )
    elif not isinstance(mask, Box) or mask.shape != shape or mask.dtype != np.dtype(bool):
        yield (
            f"{name}: the {ACTION_MASK} in its observation_space is {spaces.describe(mask)}; for "
            f"{spaces.describe(actions)} it must be Box(0, 1, {shape}, bool)"
        )


def _observation_problems(name: str, space: PyTree, obs: PyTree) -> Iterator[str]:
    """Problems of the structure, shapes and types of observations.

    Types matter for masks (bool), discrete values (integers) and bytes, which are scaled. Among
    other numeric types, many suites deviate from their spaces, which does no harm.
    """
    if not all(isinstance(leaf, ACTION_SPACES) for leaf in jax.tree.leaves(space)):
        return  # this is already reported
    structures: list[Any] = [jax.tree.structure(x) for x in (space, obs)]
    if structures[0] != structures[1]:
        shapes = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", obs)
        yield (
            f"{name}: observations have another structure than its observation_space: observations "
            f"are {shapes}, observation_space is {spaces.describe(space)}; correct one of the two"
        )
        return
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(obs)]
    for path, leaf, x in zip(paths, jax.tree.leaves(space), jax.tree.leaves(obs), strict=True):
        if x.shape != leaf.shape:
            yield (
                f"{name}: observations{path} have shape {x.shape}, but its observation_space has "
                f"shape {leaf.shape}; correct one of the two"
            )
        elif not _serves(leaf, x.dtype):
            yield (
                f"{name}: observations{path} are {x.dtype}, but its observation_space is "
                f"{spaces.describe(leaf)}; correct one of the two"
            )


def _serves(space: Space, dtype: Any) -> bool:
    """Whether numbers of this type can represent elements of the space."""
    if isinstance(space, Box):
        promised = np.dtype(space.dtype)
        return dtype == promised or not ({dtype, promised} & {np.dtype(np.uint8), np.dtype(bool)})
    bits = isinstance(space, spaces.MultiBinary) and dtype == np.dtype(bool)
    return bits or bool(jnp.issubdtype(dtype, jnp.integer))


def _scalar_problems(name: str, reward: Any, terminated: Any, truncated: Any) -> Iterator[str]:
    values = {"reward": reward, "terminated": terminated, "truncated": truncated}
    for label, value in values.items():
        kind = jnp.floating if label == "reward" else jnp.bool_
        if not hasattr(value, "dtype"):
            yield f"{name}.step returned a {label} that is not an array; return one number"
        elif value.shape != () or not jnp.issubdtype(value.dtype, kind):
            cure = "jnp.float32(...)" if label == "reward" else "a comparison, or .astype(bool)"
            cure += "" if value.shape == () else ", of one number: x[0], or x.squeeze()"
            yield (
                f"{name}.step returned a {label} of {value.dtype}{list(value.shape)}; "
                f"expected {'float32' if label == 'reward' else 'bool'}[]: {cure}"
            )


def _same_problems(name: str, what: str, before: PyTree, after: PyTree) -> Iterator[str]:
    structures: list[Any] = [jax.tree.structure(x) for x in (before, after)]
    if structures[0] != structures[1]:
        yield (
            f"{name}: the {what} of step has another structure than that of reset; return the same "
            "keys, classes and lengths from both"
        )
        return
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True
    ):
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            leaf = what + jax.tree_util.keystr(path)
            yield (
                f"{name}: {leaf} is {x.dtype}{list(x.shape)} from reset but {y.dtype}"
                f"{list(y.shape)} from step; return the same shape and type from both "
                "(jnp.zeros(shape, dtype), .astype)"
            )


def render(env: Any, state: PyTree) -> np.ndarray:
    """Render an image of one state.

    Raises:
        InvalidEnvironment: if the environment cannot be rendered.
    """
    if not hasattr(env, "render"):
        raise InvalidEnvironment(
            f"environment {getattr(env, 'name', type(env).__name__)} has no render"
        )
    return np.asarray(env.render(state), np.uint8)
