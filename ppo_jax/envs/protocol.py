"""What an environment is: an Env that steps, a VectorEnv that also resets, a VectorMaker.

An Env is one environment as pure functions, of which `vectorize` makes a VectorEnv, what a rollout
steps. Both return the six values of gymnax 1.0, in its order. Where there is no single environment
that could be copied by `jax.vmap` (simulators of the host, which step many at a time and restart
them themselves; games whose agents are the rows), the environment is a VectorMaker: it has no reset
and no step, and makes its VectorEnv itself. Everything that takes an environment takes an Env or a
VectorMaker, and asks `makes_vectors` which it is.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.config.errors import InvalidEnvironment as InvalidEnvironment
from ppo_jax.config.references import place, raised
from ppo_jax.envs import spaces
from ppo_jax.envs.spaces import ACTION_MASK, ACTION_SPACES, Box, Space
from ppo_jax.types import PyTree

StepResult = tuple[PyTree, PyTree, jax.Array, jax.Array, jax.Array, dict[str, Any]]


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

    Optional: `begin(state) -> state` and `refresh(key, state) -> (state, metrics)`, called before
    and after each rollout, outside its loop; `restart(key, state) -> (obs, state)`, a reset that
    may keep what the state has ready; `time_limit`, as an Env's.
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
        Where that never occurs, `valid` may be an array of NumPy, a constant.
        It may hold raw_reward [N], what returns are reported in where rewards were transformed,
        and settled [N], as an Env's.
        """
        ...


class VectorMaker(Protocol):
    """An environment that makes its own vectors.

    Attributes:
        name: for messages.
        observation_space, action_space, time_limit: as an Env's, of one row.

    Optional: `num_agents`, the number of successive rows that play one game together, whose returns
    are not independent.
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


def check_protocol(env: Any) -> None:
    """Refuse an object that does not follow the Env protocol, before anything is compiled.

    Traces reset and step once, computing nothing; `ppo_jax.envs.check_env` also runs them. A
    VectorMaker is looked at from outside: its environments are not started.

    Raises:
        InvalidEnvironment: a missing attribute, a foreign space, a function that cannot be traced,
            a wrong number of results, or an observation, mask, state, reward or flag of the wrong
            structure, shape or type; the message names it.
    """
    for problem in static_problems(env):
        raise InvalidEnvironment(problem)


def static_problems(env: Any) -> Iterator[str]:
    """Everything that `check_protocol` finds, each in one sentence."""
    name = getattr(env, "name", type(env).__name__)
    functions = ["name"] if makes_vectors(env) else ["reset", "step", "params"]
    required = [*functions, "observation_space", "action_space", "time_limit"]
    missing = [attribute for attribute in required if not hasattr(env, attribute)]
    if missing:
        yield (
            f"environment {name} lacks {', '.join(missing)}; an environment has "
            f"{', '.join(required)} (ppo_jax.envs.Env)"
        )
    limit = getattr(env, "time_limit", None)
    if limit is not None and not (_is_number(limit) and limit >= 1):
        yield (
            f"{name}.time_limit is {limit!r}; it must be >= 1 or None (infinity: no episode is "
            "ever truncated)"
        )
    if {*missing} - {"name", "time_limit"}:
        return
    yield from space_problems(env)
    if not makes_vectors(env) and isinstance(env.action_space, ACTION_SPACES):
        yield from _step_problems(name, env)


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float | np.number) and not isinstance(x, bool)


def _step_problems(name: str, env: Any) -> Iterator[str]:
    """Trace one episode's beginning."""
    key, action = jax.random.key(0), jnp.zeros(env.action_space.shape, env.action_space.dtype)
    yield from (foreign := list(_foreign_leaves(f"{name}.params", env.params)))
    if foreign:
        return
    what, results = "reset", []

    def traced(function: Callable[..., Any], *args: Any) -> Any:
        """The shapes of what a function returns, where they are arrays; the rest is looked at."""

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
    """(path, leaf) of what is neither an array nor a number."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(p), x) for p, x in found if not hasattr(x, "dtype") and not (
        isinstance(x, bool | int | float | complex)
    )]  # fmt: skip


def _foreign_leaves(what: str, tree: Any) -> Iterator[str]:
    for path, x in _foreign(tree):
        yield (
            f"{what}{path} is a {type(x).__name__}; keep numbers and arrays alone in observations, "
            "state and params, and everything else in self"
        )


def _reset_problems(name: str, env: Any, result: Any) -> Iterator[str]:
    """reset returns (obs, state), both made of arrays."""
    pair = isinstance(result, tuple | list) and len(result) == 2
    if not pair or _fits(env.observation_space, result):
        yield (
            f"{name}.reset returned {_counted(result)}; return two, obs and state, where the state "
            "is all that step needs to go on"
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
        return "an array alone"
    return f"a {type(result).__name__}"


def _fits(space: PyTree, obs: PyTree) -> bool:
    """Whether a tree has the structure and the shapes of observations."""
    if _structure(space) != _structure(obs):
        return False
    pairs = zip(jax.tree.leaves(space), jax.tree.leaves(obs), strict=True)
    return all(leaf.shape == np.shape(x) for leaf, x in pairs if hasattr(leaf, "shape"))


def _count_problems(name: str, result: Any, state: PyTree) -> Iterator[str]:
    """step returns the six values of gymnax 1.0."""
    expected = "the six of gymnax 1.0: obs, state, reward, terminated, truncated, info"
    if not isinstance(result, tuple | list):
        yield f"{name}.step returned {_counted(result)}; expected a tuple of {expected}"
    elif len(result) != 6:
        cure = "return all of them, in this order"
        if len(result) == 4:
            cure = (
                "these are those of Gym before 0.26, without a state and with one done: return "
                "the state second, and done as terminated (the end of the task) and truncated (its "
                "limit)"
            )
        if len(result) == 5:
            cure = "these are in Gymnasium's order, without a state: return the state second"
            if _structure(result[1]) == _structure(state) != _structure(0):
                cure = (
                    "these are those of gymnax 0.x, with one done: return terminated (the end of "
                    "the task) and truncated (its limit) in its place"
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
                "dict, {} where there is nothing to say"
            )


def _structure(tree: PyTree) -> Any:
    return jax.tree.structure(tree)


_NEEDS_A_VALUE = (
    jax.errors.ConcretizationTypeError
    | jax.errors.TracerIntegerConversionError
    | jax.errors.NonConcreteBooleanIndexError
)


def untraceable(name: str, what: str, error: BaseException) -> str:
    """Why JAX cannot trace a function of an environment, in a sentence with what to do."""
    if isinstance(error, jax.errors.TracerBoolConversionError):
        problem = "decides something in Python (if, while, and, or, not, assert) by a traced value"
        cure = (
            "use jnp.where, jax.lax.cond or jax.lax.while_loop, and &, |, ~ in place of the words"
        )
    elif isinstance(error, jax.errors.TracerArrayConversionError):
        problem = "gives a traced value to NumPy, or to other code outside of JAX"
        cure = "use the same functions of jax.numpy"
    elif isinstance(error, jax.errors.UnexpectedTracerError):
        problem = "uses a traced value of an earlier call, which was kept outside of the state"
        cure = "keep what changes in the state that reset and step return, not in self or a global"
    elif isinstance(error, _NEEDS_A_VALUE):
        problem = "needs the value of a traced array while it is traced"
        cure = "make no int(), float(), range() or shape of it; use jnp.where or jax.lax.fori_loop"
    else:
        return (
            f"{name}.{what} raised {raised(error)} when it was called with a key"
            f"{', a state, an action' if what == 'step' else ''} and params; correct it"
        )
    return f"{name}.{what} {problem} ({place(error)}), which jax.jit does not allow; {cure}"


def check_spaces(env: Any) -> None:
    """Refuse spaces that no policy here can serve; looks at descriptions alone.

    Raises:
        InvalidEnvironment: a foreign space, nothing to observe, or an action mask that does not
            fit the actions.
    """
    for problem in space_problems(env):
        raise InvalidEnvironment(problem)


def space_problems(env: Any) -> Iterator[str]:
    """Everything that `check_spaces` finds, each in one sentence."""
    name = getattr(env, "name", type(env).__name__)
    observations, actions = env.observation_space, env.action_space
    kinds = ", ".join(k.__name__ for k in ACTION_SPACES)
    foreign = False
    for what, found in (("action", [actions]), ("observation", jax.tree.leaves(observations))):
        for space in found:
            if not isinstance(space, ACTION_SPACES):
                foreign = True
                yield (
                    f"the {what} space of {name}, {spaces.describe(space)}, cannot be served; "
                    f"there are, in ppo_jax.envs.spaces: {kinds}"
                    + (" (and any pytree of them)" if what == "observation" else "")
                )
    if foreign:
        return
    if not spaces.leaves(observations):
        yield (
            f"there is nothing to observe in {name}: its observation_space has no entry"
            f"{' but ' + ACTION_MASK if spaces.action_mask(observations) is not None else ''}"
        )
    mask = spaces.action_mask(observations)
    if mask is not None:
        yield from _mask_problems(name, mask, actions)


def _mask_problems(name: str, mask: Any, actions: Space) -> Iterator[str]:
    shape = spaces.mask_shape(actions)
    if shape is None:
        yield (
            f"{name} has an {ACTION_MASK} for {spaces.describe(actions)}; there are masks for "
            "Discrete and MultiDiscrete (bits are MultiDiscrete((2, 2, ...)))"
        )
    elif not isinstance(mask, Box) or mask.shape != shape or mask.dtype != np.dtype(bool):
        yield (
            f"{name}: the {ACTION_MASK} in its observation_space is {spaces.describe(mask)}; for "
            f"{spaces.describe(actions)} it is Box(0, 1, {shape}, bool)"
        )


def _observation_problems(name: str, space: PyTree, obs: PyTree) -> Iterator[str]:
    """Observations have their space's structure, shapes and, where it matters, types.

    It does for masks (bool), for choices (integers) and for bytes, which are scaled; among other
    numbers suites are careless and no harm is done.
    """
    if not all(isinstance(leaf, ACTION_SPACES) for leaf in jax.tree.leaves(space)):
        return  # said already
    structures: list[Any] = [jax.tree.structure(x) for x in (space, obs)]
    if structures[0] != structures[1]:
        shapes = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", obs)
        yield (
            f"{name}: observations have another structure than its observation_space; "
            f"they are {shapes}, it is {spaces.describe(space)}; correct one of the two"
        )
        return
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(obs)]
    for path, leaf, x in zip(paths, jax.tree.leaves(space), jax.tree.leaves(obs), strict=True):
        if x.shape != leaf.shape:
            yield (
                f"{name}: observations{path} have shape {x.shape}, its observation_space "
                f"{leaf.shape}; correct one of the two"
            )
        elif not _serves(leaf, x.dtype):
            yield (
                f"{name}: observations{path} are {x.dtype}, its observation_space "
                f"{spaces.describe(leaf)}; correct one of the two"
            )


def _serves(space: Space, dtype: Any) -> bool:
    """Whether numbers of this type can stand for elements of the space."""
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
            yield f"{name}.step returned a {label} that is no array; return one number"
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
                f"{list(y.shape)} from step; give both one shape and one type (jnp.zeros(shape, "
                "dtype), .astype)"
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
