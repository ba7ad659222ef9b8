"""The checks of `check_env` for an environment in JAX."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.envs import spaces
from ppo_jax.envs.check import Report, describe
from ppo_jax.envs.check_values import corners, outside, sampler
from ppo_jax.envs.protocol import static_problems, untraceable
from ppo_jax.types import PyTree

# Number of copies that run in parallel; half of them repeat a single action.
COPIES = 8
# A reset that takes longer than this number of steps is reported as expensive.
DEAR = 10


class Steps(NamedTuple):
    """T steps of COPIES environments, each of which is reset at the end of an episode.

    Attributes:
        obs, reward, terminated, truncated: [T, COPIES, ...] results of each step.
        length: [T, COPIES] number of steps of the episode so far.
        counters: [T, COPIES, C] scalar integers of the state.
    """

    obs: PyTree
    reward: Any
    terminated: Any
    truncated: Any
    length: Any
    counters: Any


def check(env: Any, name: str, *, steps: int, seed: int) -> Report:
    """Check a JAX environment.

    Args:
        env: object that should be an Env.
        name: name for the report.
        steps: number of steps with random actions.
        seed: seed of actions and resets.
    """
    report = Report(name, "JAX environment")
    before = _attributes(env)
    for problem in static_problems(env):
        report.problem(problem)
    _look_at_attributes(report, env, before)
    report.checked.append("attributes, spaces, shapes and types of reset and step, under jax.jit")
    key = jax.random.key(seed)
    made = _Tolerant(env)
    if report.problems and not _runs(made):
        return report
    report.facts = describe(env.observation_space, env.action_space, made.time_limit)
    _look_at_types(report, made)
    _look_at_bounds(report, env.action_space)
    if _look_at_purity(report, made, key):
        _look_at_actions(report, made, key)
    found = _play(report, made, key, steps)
    if found is not None:
        _look_at_episodes(report, made, found)
        _look_at_costs(report, made, key)
    return report


class _Tolerant:
    """An environment with its small mistakes, which the report lists, corrected, so that the same
    check can find further problems."""

    def __init__(self, env: Any) -> None:
        self.env: Any = env
        limit: Any = getattr(env, "time_limit", None)
        number = isinstance(limit, int | float | np.number) and not isinstance(limit, bool)
        self.time_limit = limit if number and limit >= 1 else None
        self.shortest_episode = getattr(env, "shortest_episode", 1)
        self.params = getattr(env, "params", ())
        self.observation_space = getattr(env, "observation_space", None)
        self.action_space = getattr(env, "action_space", None)

    def reset(self, key: jax.Array, params: PyTree) -> Any:
        return self.env.reset(key, params)

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, params: PyTree) -> Any:
        result = self.env.step(key, state, action, params)
        if len(result) != 6:
            raise TypeError("step must return six values")
        obs, state, reward, terminated, truncated, _ = result
        flags = (jnp.asarray(x).astype(bool).reshape(()) for x in (terminated, truncated))
        return obs, state, jnp.asarray(reward, jnp.float32).reshape(()), *flags, {}


def _runs(env: _Tolerant) -> bool:
    """Whether the environment can be stepped in a loop despite its problems."""
    try:
        jax.eval_shape(_player(env, 2), jax.random.key(0))
    except Exception:
        return False
    return True


def _look_at_attributes(report: Report, env: Any, before: dict[str, Any]) -> None:
    """Check that no attribute of the object changes while it is traced."""
    after = _attributes(env)
    changed = [n for n in after if n not in before or not _unchanged(before[n], after[n])]
    if changed:
        report.problem(
            f"{report.name}: reset or step writes to self.{changed[0]}, which happens only once, "
            "while they are traced, and not in every step; keep everything that changes in the "
            "state that they return"
        )


def _unchanged(old: Any, new: Any) -> bool:
    """Whether an attribute is unchanged. An object that is created once and kept is no change; a
    new number, array or length is one."""
    if _has_tracer(new[0]):
        return False
    if new[0] is old[0]:
        return bool(new[1] == old[1])
    return not isinstance(new[0], bool | int | float | str | np.ndarray | jax.Array | list | dict)


def _attributes(env: Any) -> dict[str, Any]:
    """Name -> (value, length) of each instance attribute of an object."""
    # A property that is computed once and kept is not a side effect.
    cached = {n for c in type(env).__mro__ for n, v in vars(c).items() if _is_cached(v)}
    own = getattr(env, "__dict__", {}).items()
    return {n: (x, _length(x)) for n, x in own if n not in cached}


def _length(x: Any) -> int:
    return len(x) if isinstance(x, list | dict | set) else 0


def _is_cached(attribute: Any) -> bool:
    return type(attribute).__name__ == "cached_property"


def _has_tracer(x: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(x))


def _look_at_types(report: Report, env: Any) -> None:
    """Note Python numbers and weak types, which training accepts but some other loops do not."""
    kinds: dict[str, set[str]] = {"reset": set(), "step": set()}

    def trace(key: jax.Array) -> None:
        obs, state = env.reset(key, env.params)
        _weak(kinds["reset"], obs, state)
        action = jnp.zeros(env.action_space.shape, env.action_space.dtype)
        _weak(kinds["step"], *env.step(key, state, action, env.params)[:2])

    jax.eval_shape(trace, jax.random.key(0))
    differ = sorted(kinds["reset"] ^ kinds["step"])
    if differ:
        report.note(
            f"{', '.join(differ[:3])} is a Python number or has a weak type in only one of reset "
            "and step; training is not affected, but a loop of your own may be traced twice or "
            "fail: write jnp.int32(0) in place of 0, jnp.float32(0) in place of 0.0"
        )


def _weak(found: set[str], obs: PyTree, state: PyTree) -> None:
    for what, tree in (("observation", obs), ("state", state)):
        for path, x in jax.tree_util.tree_leaves_with_path(tree):
            if isinstance(x, int | float) or getattr(x, "weak_type", False):
                found.add(what + jax.tree_util.keystr(path))


def _look_at_bounds(report: Report, space: spaces.Space) -> None:
    """Check the action space against the initial policy, with mean 0 and standard deviation 1."""
    if not isinstance(space, spaces.Box):
        return
    if not space.bounded:
        report.note(
            "the actions have no bounds; if the environment clips them, set bounds in action_space"
        )
    elif ((space.low >= 1) | (space.high <= -1)).any():
        report.note(
            f"the actions are in [{space.low.min():g}, {space.high.max():g}], away from 0, where "
            "a policy starts; train with --squash, or scale the actions to [-1, 1]"
        )


def _look_at_purity(report: Report, env: Any, key: jax.Array) -> bool:
    """Check that the same key gives the same result, compiled or not; return whether it does."""
    report.checked.append("the same key gives the same result, compiled and not")
    draw = sampler(env.observation_space, env.action_space)

    def one(key: jax.Array) -> Any:
        reset_key, action_key, step_key = jax.random.split(key, 3)
        obs, state = env.reset(reset_key, env.params)
        action = draw(action_key, obs)
        return obs, env.step(step_key, state, action, env.params)[:5]

    try:
        plain, again = one(key), one(key)
    except Exception as error:
        report.problem(untraceable(report.name, "reset or step outside jit", error))
        return False
    if (leaf := _differ(plain, again, 0.0)) is not None:
        report.problem(
            f"{report.name}: called twice with the same key, {leaf} differs; draw all random "
            "numbers with jax.random and the given key; the random modules of NumPy and Python, "
            "and clocks, are read only once, when the program is compiled"
        )
        return False
    if (leaf := _differ(plain, jax.jit(one)(key), 1e-3)) is not None:
        report.problem(
            f"{report.name}: {leaf} differs between the compiled function and the same function "
            "without jax.jit; look for Python side effects, a global or self that changes, and "
            "indices out of range"
        )
        return False
    _look_at_keys(report, env, key)
    return True


def _look_at_keys(report: Report, env: Any, key: jax.Array) -> None:
    resets = jax.jit(jax.vmap(lambda k: env.reset(k, env.params)[1]))(jax.random.split(key, 16))
    leaves = [np.asarray(x) for x in jax.tree.leaves(resets) if not _is_key(x)]
    if all((x == x[:1]).all() for x in leaves):
        report.note("every reset gives the same state for any key; ignore this if it is intended")


NAMES = ("reset's observation", "observation", "state", "reward", "terminated", "truncated")


def _differ(a: Any, b: Any, tolerance: float) -> str | None:
    """The first leaf of (obs, results of step) that differs between two calls."""
    for name, x, y in zip(NAMES, (a[0], *a[1]), (b[0], *b[1]), strict=True):
        pairs = zip(jax.tree_util.tree_leaves_with_path(x), jax.tree.leaves(y), strict=True)
        for (path, left), right in pairs:
            if not _close(left, right, tolerance):
                return name + jax.tree_util.keystr(path)
    return None


def _close(x: Any, y: Any, tolerance: float) -> bool:
    if _is_key(x):
        x, y = jax.random.key_data(x), jax.random.key_data(y)
    x, y = np.asarray(x), np.asarray(y)
    if x.dtype.kind not in "fc" or tolerance == 0.0:
        return bool(((x == y) | ((x != x) & (y != y))).all())
    return np.allclose(x, y, rtol=tolerance, atol=tolerance, equal_nan=True)


def _is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _look_at_actions(report: Report, env: Any, key: jax.Array) -> None:
    """Check every action of the space, in many environments at once and in one alone."""
    actions = corners(env.action_space)
    masked = spaces.action_mask(env.observation_space) is not None
    report.checked.append(f"jax.vmap, {len(actions)} actions at the edges of their space")

    def one(key: jax.Array, action: jax.Array) -> Any:
        reset_key, step_key = jax.random.split(key)
        obs, state = env.reset(reset_key, env.params)
        return obs, env.step(step_key, state, action, env.params)[:5]

    keys = jax.random.split(jax.random.fold_in(key, 1), len(actions))
    try:
        many = jax.jit(jax.vmap(one))(keys, jnp.asarray(actions))
        jax.block_until_ready(many)
    except Exception as error:
        report.problem(untraceable(report.name, "reset or step under jax.vmap", error))
        return
    alone = jax.jit(one)
    for i in {0, len(actions) - 1}:
        leaf = _differ(alone(keys[i], jnp.asarray(actions[i])), _row(many, i), 1e-3)
        if leaf is not None:
            report.problem(
                f"{report.name}: {leaf} differs between one environment alone and the same one of "
                "many under jax.vmap; do not let results depend on the number of dimensions, and "
                "draw random numbers from the given key only"
            )
    if masked:  # the edges may be illegal
        return
    for i, action in enumerate(actions):
        obs, result = _row(many, i)
        shown = np.array2string(np.asarray(action), precision=4)
        _look_at_values(report, env, obs, "reset's observation")
        _look_at_values(report, env, result[0], f"after action {shown}, the observation")
        if not np.isfinite(result[2]):
            _reward(report, result[2], f"after action {shown}")


def _row(tree: PyTree, i: int) -> PyTree:
    return jax.tree.map(lambda x: x[i], tree)


def _look_at_values(report: Report, env: Any, obs: PyTree, what: str) -> None:
    """Check that values are finite and inside the space; report each leaf once."""
    reported = [p for p in report.problems if "observation" in p]
    for path, problem in outside(env.observation_space, obs):
        if not any(f"observation{path} " in p for p in reported):
            report.problem(f"{report.name}: {what}{path} {problem}")


def _play(report: Report, env: Any, key: jax.Array, steps: int) -> Steps | None:
    """Take steps with random and constant actions in COPIES environments."""
    limit = env.time_limit
    enough = steps if limit is None or limit > steps else max(steps // 2, int(limit) + 1)
    report.checked.append(f"{enough} steps of {COPIES} copies: values, ends of episodes")
    play = jax.jit(_player(env, enough))
    try:
        found = jax.tree.map(np.asarray, play(jax.random.fold_in(key, 2)))
    except Exception as error:
        report.problem(untraceable(report.name, "reset or step in a loop (jax.lax.scan)", error))
        return None
    _look_at_values(report, env, found.obs, "the observation")
    bad = np.argwhere(~np.isfinite(found.reward))
    if len(bad):
        t, n = bad[0]
        _reward(report, found.reward[t, n], f"in step {found.length[t, n]} of an episode")
    _look_at_masks(report, env, found)
    return found


def _reward(report: Report, reward: Any, when: str) -> None:
    """Report a reward that is not finite, once."""
    if not any(": the reward is " in problem for problem in report.problems):
        report.problem(
            f"{report.name}: the reward is {reward} {when}; rewards must be finite: look for a "
            "division by 0, log or sqrt, and clip"
        )


def _look_at_masks(report: Report, env: Any, found: Steps) -> None:
    """Check that some action is legal while an episode continues."""
    mask = spaces.action_mask(found.obs)
    if mask is None:
        return
    sizes = getattr(env.action_space, "sizes", ())
    if len(sizes) > 1 and not env.action_space.joint:
        mask = mask & (np.arange(mask.shape[-1]) < np.asarray(sizes)[:, None])
        legal = mask.any(-1).all(-1)
    else:
        legal = mask.reshape(*found.reward.shape, -1).any(-1)
    if not (legal | found.terminated | found.truncated).all():
        report.problem(
            f"{report.name}: no action is legal in the action_mask while the episode continues; "
            "terminate the episode there, or allow an action"
        )


def _player(env: Any, steps: int) -> Callable[[jax.Array], Steps]:
    draw = sampler(env.observation_space, env.action_space)
    strong = lambda tree: jax.tree.map(
        lambda x: x if _is_key(x) else jax.lax.convert_element_type(x, jnp.asarray(x).dtype), tree
    )

    def reset(key: jax.Array) -> Any:
        return strong(jax.vmap(env.reset, (0, None))(jax.random.split(key, COPIES), env.params))

    def select(flag: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(flag.reshape(flag.shape + (1,) * (a.ndim - flag.ndim)), a, b)

    def play(key: jax.Array) -> Steps:
        reset_key, same_key, key = jax.random.split(key, 3)
        obs, state = reset(reset_key)
        first = jax.vmap(draw)(jax.random.split(same_key, COPIES), obs)
        masked = spaces.action_mask(env.observation_space) is not None
        repeats = (jnp.arange(COPIES) % 2 == 1) & (not masked)

        def step(carry: Any, key: jax.Array) -> Any:
            obs, state, length = carry
            action_key, step_key, reset_key = jax.random.split(key, 3)
            action = jax.vmap(draw)(jax.random.split(action_key, COPIES), obs)
            action = select(repeats, first, action)
            keys = jax.random.split(step_key, COPIES)
            take = lambda k, s, a: env.step(k, s, a, env.params)[:5]
            result = strong(jax.vmap(take)(keys, state, action))
            seen, after, reward, terminated, truncated = result
            done = terminated | truncated
            counters = _counters(after)
            following = jax.tree.map(
                lambda new, old: select(done, new, old), reset(reset_key), (seen, after)
            )
            row = Steps(seen, reward, terminated, truncated, length + 1, counters)
            return (*following, jnp.where(done, 0, length + 1)), row

        start = (obs, state, jnp.zeros(COPIES, jnp.int32))
        return jax.lax.scan(step, start, jax.random.split(key, steps))[1]

    return play


def _counters(state: PyTree) -> jax.Array:
    """[COPIES, C] scalar integers of a state [COPIES, ...]."""
    found = [
        x.astype(jnp.int32)
        for x in jax.tree.leaves(state)
        if not _is_key(x) and x.ndim == 1 and jnp.issubdtype(x.dtype, jnp.integer)
    ]
    return jnp.stack(found, -1) if found else jnp.zeros((COPIES, 0), jnp.int32)


def _look_at_episodes(report: Report, env: Any, found: Steps) -> None:
    """Check how and when episodes end."""
    name, limit = report.name, env.time_limit
    terminated, truncated, length = found.terminated, found.truncated, found.length
    done = terminated | truncated
    ends = f"{terminated.sum()} terminated, {(truncated & ~terminated).sum()} truncated"
    report.checked.append(f"{done.sum()} ends of episodes ({ends})")
    if done.any() and (terminated == truncated).all() and (length[done] != limit).any():
        report.problem(
            f"{name}: terminated and truncated are equal in every step; terminated must mean the "
            "end of the task, after which no reward follows, and truncated only the time limit"
        )
        return
    early = length[truncated & ~terminated]
    if limit is not None and early.size and early.min() < limit:
        report.problem(
            f"{name}: an episode was truncated after {early.min()} steps, but time_limit is "
            f"{limit}; set time_limit to the number of steps after which episodes are truncated, "
            "or to None if it varies"
        )
    late = length[~done]
    if limit is not None and late.size and late.max() >= limit:
        report.problem(
            f"{name}: an episode continues after step {limit}, its time_limit, without being "
            f"truncated; return truncated = time >= {limit}, with the time in the state, or set "
            "time_limit to None"
        )
    shortest = getattr(env, "shortest_episode", 1)
    if done.any() and length[done].min() < shortest:
        report.problem(
            f"{name}: an episode ended after {length[done].min()} steps, but shortest_episode is "
            f"{shortest}; lower it, or remove the attribute"
        )
    _look_at_own_resets(report, found, done)
    if not done.any():
        report.note(
            f"no episode ended in {len(done)} steps; without time_limit, an evaluation cuts "
            "episodes after 10,000 steps"
        )


def _look_at_own_resets(report: Report, found: Steps, done: np.ndarray) -> None:
    """Report a step that resets the environment, by a step counter of the state."""
    for counter in np.moveaxis(found.counters, -1, 0):
        counts = (counter - found.length)[~done]
        at_end = (counter - found.length)[done]
        if (
            counts.size
            and at_end.size
            and (counts == counts[0]).all()
            and (at_end < counts[0]).all()
        ):
            report.problem(
                f"{report.name}: step resets the environment by itself: at the end of an episode "
                "the step counter of the returned state is smaller; return the true last "
                "observation and state, vectorize resets environments"
            )
            return


def _look_at_costs(report: Report, env: Any, key: jax.Array) -> None:
    """Measure the time of a reset relative to that of a step."""
    count = 64
    keys = jax.random.split(key, count)
    actions = jnp.zeros((count, *env.action_space.shape), env.action_space.dtype)
    reset = jax.jit(jax.vmap(lambda k: env.reset(k, env.params)))
    state = reset(keys)[1]
    step = jax.jit(jax.vmap(lambda k, s, a: env.step(k, s, a, env.params)[:5]))
    ratio = _seconds(reset, keys) / _seconds(step, keys, state, actions)
    report.checked.append(f"time of a reset: {max(ratio, 0.1):.1f} steps")
    shortest = getattr(env, "shortest_episode", 1)
    if ratio > DEAR and 1 < shortest < ratio:
        report.note(
            f"a reset takes as long as {math.ceil(ratio)} steps, and the pool of initial states is "
            f"drawn for episodes of shortest_episode = {shortest} steps; remove shortest_episode, "
            "so that only used initial states are redrawn, or set their number with --reset-pool"
        )


def _seconds(function: Callable[..., Any], *args: Any) -> float:
    jax.block_until_ready(function(*args))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - start)
    return max(min(times), 1e-6)
