"""The checks of `check_env` for a Gymnasium environment, which runs on the host."""

import contextlib
import copy
import inspect
import itertools
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ppo_jax.config.references import raised
from ppo_jax.envs import check_values, spaces
from ppo_jax.envs.action_masks import CHOICES
from ppo_jax.envs.check import Report, describe
from ppo_jax.envs.check_values import a_type
from ppo_jax.envs.host import HostEnv
from ppo_jax.envs.mask_layouts import NOTHING_LEGAL, arrays_of, layout_of, without_choice
from ppo_jax.envs.protocol import InvalidEnvironment
from ppo_jax.envs.supervision import answers

# Number of steps of the second episode with the same seed and actions.
REPEATED = 50
# Time limit in seconds for steps with random actions, because a simulator may be slow.
SECONDS = 20.0
FIVE = "obs, reward, terminated, truncated, info"


class _Stop(Exception):
    """The environment cannot continue; the report contains the reason."""


def check(make: Callable[[], Any], name: str, *, steps: int, seed: int) -> Report:
    """Check a Gymnasium environment.

    Args:
        make: function that makes the environment.
        name: name for the report.
        steps: number of steps with random actions.
        seed: seed of actions and resets.

    Raises:
        InvalidEnvironment: if the environment cannot be made.
    """
    report = Report(name, "Gymnasium environment")
    try:
        with answers(name, "while it was made"):
            env = make()
    except InvalidEnvironment:
        raise
    except Exception as error:
        raise InvalidEnvironment(f"{name} cannot be made: {raised(error)}") from error
    _look_at_class(report, env)
    if _look_at_spaces(report, env):
        checker = _Checker(report, env, seed)
        for look in (checker.resets, checker.seeds, checker.actions, lambda: checker.play(steps)):
            with contextlib.suppress(_Stop):
                look()
    _look_at_close(report, env)
    return report


def _look_at_class(report: Report, env: Any) -> None:
    """Check the base class, and the signature of reset."""
    import gymnasium

    name = report.name
    if not isinstance(env, gymnasium.Env):
        report.problem(
            f"{name} is a {type(env).__module__}.{type(env).__name__}; an environment must inherit "
            "from gymnasium.Env (its predecessor gym is not supported)"
        )
    raw = getattr(env, "unwrapped", env)
    missing = [m for m in ("reset", "step") if not callable(getattr(raw, m, None))]
    if missing:
        report.problem(f"{name} has no method {missing[0]}; write it")
        return
    parameters = inspect.signature(raw.reset).parameters
    for argument in sorted({"seed", "options"} - _words_of(raw.reset)):
        report.problem(
            f"{name}.reset takes no {argument}; write reset(self, *, seed=None, options=None)"
        )
    if "seed" in parameters and parameters["seed"].default is not None:
        report.note(
            f"the default of seed in reset is {parameters['seed'].default!r}; with a default other "
            "than None, every episode is the same"
        )
    if callable(getattr(raw, "seed", None)):
        report.note("the method seed is never called; seeds are passed as reset(seed=...)")
    if "return_info" in parameters:
        report.note("return_info of reset is never passed; reset always returns obs and info")
    report.checked.append("base class and signatures")


def _has_mask(x: Any) -> bool:
    return isinstance(x, dict) and "action_mask" in x


def _is_discrete(env: Any) -> bool:
    return isinstance(getattr(env.action_space, "n", None), int | np.integer)


def _words_of(reset: Callable[..., Any]) -> set[str]:
    """The arguments of Gymnasium's reset that this reset takes."""
    parameters = inspect.signature(reset).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return {"seed", "options"}
    return {"seed", "options"} & {*parameters}


def _look_at_spaces(report: Report, env: Any) -> bool:
    """Check both spaces; return whether they exist and have supported types."""
    from gymnasium import Space
    from gymnasium.spaces import Discrete

    usable = True
    found: list[Any] = []
    for attribute in ("observation_space", "action_space"):
        space = getattr(env, attribute, None)
        if not isinstance(space, Space):
            usable = False
            report.problem(
                f"{report.name}.{attribute} is {space!r}; set it to a space of gymnasium.spaces, "
                "for example Box(-1, 1, (3,)) or Discrete(2)"
            )
            continue
        for problem in _wrong_bounds(space, attribute):
            report.problem(f"{report.name}: {problem}")
        pair = (space, Discrete(2)) if attribute == "observation_space" else (Discrete(2), space)
        try:
            found.append(getattr(HostEnv(report.name, pair, _nothing), attribute))
        except InvalidEnvironment as error:
            report.problem(str(error))
    if len(found) == 2:
        spec = getattr(env, "spec", None)
        report.facts = describe(found[0], found[1], getattr(spec, "max_episode_steps", None))
    report.checked.append("spaces")
    _look_at_bounds(report, getattr(env, "action_space", None))
    return usable


def _look_at_bounds(report: Report, actions: Any) -> None:
    """Check the action space against the initial policy, with mean 0 and standard deviation 1."""
    if not hasattr(actions, "low"):
        return
    if not actions.is_bounded():
        report.note(
            "the actions have no bounds; if the environment clips them, set bounds in action_space"
        )
    elif ((actions.low >= 1) | (actions.high <= -1)).any():
        report.note(
            f"the actions are in [{actions.low.min():g}, {actions.high.max():g}], away from 0, "
            "where a policy starts; train with --squash, or scale the actions to [-1, 1]"
        )


def _nothing(num_envs: int) -> Any:
    """Stand in for a function that makes environments, where only the spaces are needed."""


def _wrong_bounds(space: Any, path: str) -> Iterator[str]:
    for key, part in _parts(space):
        yield from _wrong_bounds(part, f"{path}[{key!r}]")
    if hasattr(space, "low"):
        if np.isnan(space.low).any() or np.isnan(space.high).any():
            yield f"{path} has a bound that is NaN; correct it"
        elif (space.low > space.high).any():
            yield f"{path} has a lower bound above its upper bound; exchange them"


def _parts(space: Any) -> list[tuple[Any, Any]]:
    """(key, space) of a Dict or Tuple."""
    inner = getattr(space, "spaces", ())
    return list(inner.items()) if hasattr(inner, "items") else list(enumerate(inner))


class _Checker:
    """The calls of an environment, each of which is checked.

    Attributes:
        report: report to which problems are added.
        env: environment to check.
        seed: seed of resets and actions.
    """

    def __init__(self, report: Report, env: Any, seed: int) -> None:
        self.report, self.env, self.seed = report, env, seed
        self.name = report.name
        spec = getattr(env, "spec", None)
        self.random = bool(getattr(spec, "nondeterministic", False))
        self.limit = getattr(spec, "max_episode_steps", None)
        self.kept: list[tuple[Any, Any]] = []  # observations as they were returned, and copies
        self.reported: set[str] = set()
        self.start = int(getattr(env.action_space, "start", 0) if _is_discrete(env) else 0)
        self.mask: Any = None  # action mask of the last observation
        self.words = _words_of(getattr(env, "unwrapped", env).reset)
        env.action_space.seed(seed)

    # Methods for single calls of the environment.

    def reset(self, seed: int | None = None, **options: Any) -> Any:
        """The observation of a checked reset."""
        words = {n: x for n, x in {"seed": seed, **options}.items() if n in self.words}
        result = self.call("reset", lambda: self.env.reset(**words))
        info: Any = {}
        if isinstance(result, tuple) and len(result) == 2:
            obs, info = result
        elif isinstance(result, tuple):
            self.report.problem(
                f"{self.name}.reset returned {len(result)} values; return two values: obs, info"
            )
            obs = result[0] if result else None
        else:
            self.report.problem(
                f"{self.name}.reset returned one value, {a_type(result)}; return two values: "
                "obs, info ({} if there is no information)"
            )
            obs = result
        self.info("reset", info)
        self.look("reset", obs)
        self.mask = self.legal("reset", obs, info)
        return obs

    def step(self, action: Any) -> tuple[Any, float, bool, bool]:
        """(obs, reward, terminated, truncated) of a checked step."""
        given = copy.deepcopy(action)
        shown = np.array2string(np.asarray(given), precision=4)
        result = self.call(f"step({shown})", lambda: self.env.step(action))
        if not _same(action, given):
            self.report.problem(
                f"{self.name}.step changes its argument action; work on a copy: "
                "action = np.array(action)"
            )
        self.aliases()
        if not isinstance(result, tuple) or len(result) != 5:
            self.report.problem(f"{self.name}.step returned {self.wrong_step(result)}")
            if not isinstance(result, tuple) or len(result) != 4:
                raise _Stop
            result = (*result[:3], False, result[3])
        obs, reward, terminated, truncated, info = result
        self.info("step", info)
        self.look("step", obs)
        flags = self.flags(terminated, truncated)
        self.mask = self.legal("step", obs, info, over=any(flags))
        return obs, self.reward(reward, shown), *flags

    def call(self, what: str, function: Callable[[], Any]) -> Any:
        """Call a function of the environment; report an error once for each message."""
        try:
            with answers(self.name, f"in {what}"):
                return function()
        except Exception as error:
            inside = ", an action of its action_space," if what.startswith("step") else ""
            message = raised(error)
            if not any(f"raised {message}" in problem for problem in self.report.problems):
                self.report.problem(
                    f"{self.name}.{what}{inside} raised {message}; correct the error"
                )
            raise _Stop from error

    def wrong_step(self, result: Any) -> str:
        if not isinstance(result, tuple):
            return f"{a_type(result)}; return five values: {FIVE}"
        cure = f"return five values: {FIVE}"
        if len(result) == 4:
            cure += (
                "; four values are those of Gym before 0.26, whose done is terminated (the end of "
                "the task) or truncated (the time limit)"
            )
        if len(result) == 6:
            cure += "; six values are those of gymnax, for an environment in JAX: omit the state"
        return f"{len(result)} values; {cure}"

    # Checks of single results.

    def info(self, what: str, info: Any) -> None:
        if not isinstance(info, dict):
            self.report.problem(
                f"{self.name}.{what} returned an info that is {a_type(info)}; return a "
                "dict, {} if there is no information"
            )

    def look(self, what: str, obs: Any) -> None:
        """Check that an observation is in its space, and keep a copy of it for `aliases`."""
        for problem in _not_in(self.env.observation_space, obs, ""):
            kind = re.sub(r"[\d.,()\[\]-]+", "", problem)  # equal problems with other numbers
            if kind not in self.reported:
                self.reported.add(kind)
                self.report.problem(f"{self.name}.{what} returned an observation{problem}")
        self.kept = [*self.kept[-2:], (obs, copy.deepcopy(obs))]

    def aliases(self) -> None:
        """Check that earlier observations have not changed."""
        if any(not _same(obs, before) for obs, before in self.kept):
            self.report.problem(
                f"{self.name}.step writes into an observation that was returned earlier; return a "
                "copy: obs.copy()"
            )
            self.kept = []

    def reward(self, reward: Any, shown: str) -> float:
        number = isinstance(reward, int | float | np.integer | np.floating | np.bool_)
        if not number and np.ndim(reward) != 0:
            self.report.problem(
                f"{self.name}.step returned a reward of shape {np.shape(reward)}; return one "
                "number: float(reward)"
            )
            return 0.0
        try:
            value = float(reward)
        except (TypeError, ValueError):
            self.report.problem(
                f"{self.name}.step returned a reward that is {a_type(reward)}; return "
                "one number: float(reward)"
            )
            return 0.0
        if not np.isfinite(value):
            self.report.problem(
                f"{self.name}.step returned a reward of {value}; rewards must be finite: look for "
                "a division by 0, log or sqrt, and clip"
            )
        return value

    def flags(self, *values: Any) -> tuple[bool, bool]:
        for label, value in zip(("terminated", "truncated"), values, strict=True):
            if not isinstance(value, bool | np.bool_):
                kind = "an info" if isinstance(value, dict) else f"{a_type(value)}"
                self.report.problem(
                    f"{self.name}.step returned {kind} as {label}; return a bool: bool(...), in "
                    f"the order {FIVE}"
                )
        with contextlib.suppress(ValueError, TypeError):
            return bool(values[0]), bool(values[1])
        raise _Stop

    # Actions, some of which may be illegal.

    def legal(self, what: str, obs: Any, info: Any, *, over: bool = False) -> Any:
        """The action mask of a Discrete space, however it is reported; None if all are legal."""
        raw = getattr(self.env, "unwrapped", self.env)
        found = next((x["action_mask"] for x in (obs, info) if _has_mask(x)), None)
        if found is None and callable(getattr(raw, "action_masks", None)):
            found = raw.action_masks()
        if found is not None and not over:
            self.choice(what, found)
        mask = None if found is None else np.asarray(found).astype(np.int8)
        size = getattr(self.env.action_space, "n", None)
        return mask if mask is not None and mask.shape == (size,) and mask.any() else None

    def choice(self, what: str, mask: Any) -> None:
        """Check that some action is legal while an episode continues."""
        if not isinstance(self.env.action_space, CHOICES):
            return
        try:
            layout = layout_of(arrays_of(mask), self.env.action_space, self.name)
            wrong = without_choice(layout.one(mask, self.name), layout.sizes)
        except (InvalidEnvironment, ValueError):
            return  # training rejects the layout and lists the supported ones
        if wrong.any():
            self.report.problem(
                f"{self.name}.{what} returned {NOTHING_LEGAL}; terminate the episode there, or "
                "allow an action"
            )

    def sample(self) -> Any:
        """A random legal action."""
        space = self.env.action_space
        return space.sample() if self.mask is None else space.sample(mask=self.mask)

    # Checks that use these calls.

    def resets(self) -> None:
        """Check reset with a seed, without one, with options, and in the middle of an episode."""
        self.reset(self.seed)
        self.reset()
        self.reset(options={})
        self.step(self.sample())
        self.reset()
        self.report.checked.append("results of reset and step")

    def seeds(self) -> None:
        """Check that the same seed and actions give the same episode."""
        if self.random:
            self.report.note("its spec is nondeterministic: seeds were not compared")
            return
        actions = [self.env.action_space.sample() for _ in range(REPEATED)]
        first, again = self.episode(self.seed + 1, actions), self.episode(self.seed + 1, actions)
        for t, (a, b) in enumerate(zip(first, again, strict=False)):
            if not _same(a, b, 1e-5):
                where = "reset" if t == 0 else f"step {t}"
                self.report.problem(
                    f"{self.name}: the same seed and actions give another episode, from {where} "
                    "on; call super().reset(seed=seed) in reset, draw random numbers with "
                    "self.np_random, and initialise everything else in reset"
                )
                return
        self.generator()
        others = [self.reset(self.seed + k) for k in range(2, 6)]
        if all(_same(first[0][0], obs) for obs in others):
            self.report.note("resets with five seeds start equally; ignore this if it is intended")
        self.report.checked.append("the same seed gives the same episode")

    def generator(self) -> None:
        """Check that super().reset(seed=seed) is called, so that np_random depends on the seed."""
        raw = getattr(self.env, "unwrapped", self.env)
        if not hasattr(raw, "_np_random"):
            return
        states = []
        for seed in (self.seed + 1, self.seed + 1, self.seed + 2):
            self.reset(seed)
            states.append(getattr(getattr(raw, "_np_random", None), "bit_generator", None))
            states[-1] = states[-1] and copy.deepcopy(states[-1].state)
        if states[0] is None or not _same(states[0], states[1]) or _same(states[0], states[2]):
            self.report.problem(
                f"{self.name}.reset does not seed self.np_random; call super().reset(seed=seed) "
                "first in reset"
            )

    def episode(self, seed: int, actions: list[Any]) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = [(copy.deepcopy(self.reset(seed)),)]
        for action in actions:
            if self.mask is not None and not self.mask[int(action - self.start)]:
                action = int(np.flatnonzero(self.mask)[0]) + self.start
            obs, reward, terminated, truncated = self.step(copy.deepcopy(action))
            rows.append((copy.deepcopy(obs), reward, terminated, truncated))
            if terminated or truncated:
                break
        return rows

    def actions(self) -> None:
        """Check every action of a small space, or the edges of a large one."""
        self.reset(self.seed)
        edges = list(_edges(self.env.action_space))
        if self.mask is not None:
            self.report.note("actions are masked: only legal ones were tried")
            edges = []
        for action in edges:
            ended = True
            with contextlib.suppress(_Stop):
                _, _, *flags = self.step(action)
                ended = any(flags)
            if ended:
                self.reset()
        self.report.checked.append(f"{len(edges)} actions at the edges of their space")

    def play(self, steps: int) -> None:
        """Take random actions for a number of steps or of seconds."""
        until, length, taken = time.monotonic() + SECONDS, 0, 0
        ends: list[tuple[int, bool, bool]] = []
        self.reset(self.seed)
        enough = steps if self.limit is None else max(steps, min(self.limit + 1, 5 * steps))
        while taken < enough and time.monotonic() < until:
            _, _, terminated, truncated = self.step(self.sample())
            taken, length = taken + 1, length + 1
            if terminated or truncated:
                ends.append((length, terminated, truncated))
                length = 0
                self.reset()
            elif self.limit is not None and length >= self.limit:
                self.report.problem(
                    f"{self.name}: an episode continues after step {self.limit}, the "
                    "max_episode_steps of its spec; make it with gymnasium.make, or wrap it in "
                    "gymnasium.wrappers.TimeLimit"
                )
                break
        self.ends(ends, taken)

    def ends(self, ends: list[tuple[int, bool, bool]], taken: int) -> None:
        """Check how episodes ended."""
        both = [t and u for _, t, u in ends]
        terminated = sum(t for _, t, _ in ends)
        self.report.checked.append(
            f"{taken} steps, {len(ends)} ends of episodes ({terminated} terminated, "
            f"{sum(u and not t for _, t, u in ends)} truncated)"
        )
        at_limit = all(n == self.limit for n, _, _ in ends)
        if ends and all(both) and not at_limit:
            self.report.problem(
                f"{self.name}: terminated and truncated are equal in every step; terminated must "
                "mean the end of the task, after which no reward follows, and truncated only the "
                "time limit"
            )
        if any(n == 1 and u and not t for n, t, u in ends):
            self.report.note(
                "an episode was truncated after its first step; ignore this if it is intended"
            )
        if not ends:
            self.report.note(
                f"no episode ended in {taken} steps; without max_episode_steps, an evaluation cuts "
                "episodes after 10,000 steps"
            )


def _look_at_close(report: Report, env: Any) -> None:
    for _ in range(2):  # close may be called more than once
        try:
            getattr(env, "close", lambda: None)()
        except Exception as error:
            report.problem(
                f"{report.name}.close raised {raised(error)}; close must be possible at any time, "
                "and twice"
            )
            return


def _edges(space: Any) -> Iterator[Any]:
    """Actions at the edges of a Gymnasium space, in the form that step takes."""
    from gymnasium import spaces as theirs

    if isinstance(space, theirs.Discrete):
        numbers = check_values.corners(spaces.Discrete(int(space.n)))
        yield from (np.asarray(space.start + i, space.dtype)[()] for i in numbers)
    elif isinstance(space, theirs.MultiDiscrete):
        sizes = tuple(int(n) for n in space.nvec.ravel())
        start = np.asarray(getattr(space, "start", 0))
        for numbers in check_values.corners(spaces.MultiDiscrete(sizes)):
            yield (numbers.reshape(space.nvec.shape) + start).astype(space.dtype)
    elif isinstance(space, theirs.MultiBinary):
        for bits in check_values.corners(spaces.MultiBinary(int(np.prod(space.shape)))):
            yield bits.reshape(space.shape).astype(space.dtype)
    elif isinstance(space, theirs.Box):
        box = spaces.Box(space.low, space.high, space.shape, space.dtype)
        yield from check_values.corners(box)
    else:
        yield from (space.sample() for _ in range(8))


def _not_in(space: Any, x: Any, path: str) -> Iterator[str]:
    """Reasons why an observation is not in its space, each the second part of a sentence."""
    from gymnasium import spaces as theirs

    parts = _parts(space)
    if isinstance(space, theirs.Dict):
        if not isinstance(x, dict) or set(x) != set(space.spaces):
            found = sorted(map(str, x)) if isinstance(x, dict) else f"{a_type(x)}"
            yield f"{path} that is {found}; its space is a Dict of {sorted(map(str, space.spaces))}"
            return
    elif isinstance(space, theirs.Tuple):
        if not isinstance(x, tuple) or len(x) != len(parts):
            yield f"{path} that is {a_type(x)}; its space is a Tuple of {len(parts)}"
            return
    else:
        yield from (f"{path} {problem}" for problem in _not_in_leaf(space, x))
        return
    yield from itertools.chain(*(_not_in(part, x[key], f"{path}[{key!r}]") for key, part in parts))


def _not_in_leaf(space: Any, x: Any) -> Iterator[str]:
    from gymnasium import spaces as theirs

    if isinstance(space, theirs.Discrete):
        yield from _not_in_discrete(space, x)
        return
    if not isinstance(x, np.ndarray | np.generic):
        yield (f"that is {a_type(x)}; its space is {space}: return np.array(..., np.{space.dtype})")
        x = np.asarray(x)
    elif not np.can_cast(x.dtype, space.dtype):
        yield (
            f"of type {x.dtype}; its space is of {space.dtype}: return obs.astype(np.{space.dtype})"
        )
    if x.shape != space.shape:
        yield f"of shape {x.shape}; its space is {space}: correct one of the two"
        return
    if x.dtype.kind in "fc" and np.isnan(x).any():
        yield "that holds NaN; look for a division by 0, log or sqrt"
    start = getattr(space, "start", 0)
    low = getattr(space, "low", start)
    high = getattr(space, "high", getattr(space, "nvec", 2) + start - 1)
    wrong = (x < low) | (x > high)
    if x.dtype.kind in "biuf" and wrong.any():
        yield (
            f"that holds {x[wrong].flat[0]}, outside its space {space}; correct the bounds, or "
            "the observation"
        )


def _not_in_discrete(space: Any, x: Any) -> Iterator[str]:
    if not isinstance(x, int | np.integer) or x is True or x is False:
        kind = f"an array of shape {np.shape(x)}" if isinstance(x, np.ndarray) else a_type(x)
        yield f"that is {kind}; its space is {space}: return an integer, np.int64(...)"
        return
    low, high = int(space.start), int(space.start + space.n) - 1
    if not low <= int(x) <= high:
        yield (f"{int(x)}, outside its space {space}; return {low} to {high}, or correct the space")


def _same(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    """Whether two results of an environment are equal; NaN is equal to NaN."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k], tolerance) for k in a)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        pairs = zip(a, b, strict=False)
        return len(a) == len(b) and all(_same(x, y, tolerance) for x, y in pairs)
    x, y = np.asarray(a), np.asarray(b)
    if x.shape != y.shape:
        return False
    if x.dtype.kind in "fc" and y.dtype.kind in "fc":
        return np.allclose(x, y, tolerance, tolerance, equal_nan=True)
    return bool(np.array_equal(x, y))
