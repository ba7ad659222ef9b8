"""`check_env`: find the problems of an environment before training.

It checks a single environment, in JAX (`ppo_jax.envs.check_jax`) or of Gymnasium
(`ppo_jax.envs.check_gymnasium`). All problems are listed, each in one sentence with its correction.
Possible improvements are notes.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any

import ppo_jax.config.references as references
from ppo_jax.envs import registry, spaces
from ppo_jax.envs.protocol import InvalidEnvironment, makes_vectors
from ppo_jax.envs.supervision import answers

STEPS = 1000


@dataclasses.dataclass
class Report:
    """The result of a check.

    Attributes:
        name: name of the environment.
        kind: "JAX environment", "Gymnasium environment" or "vector environment".
        facts: description of its spaces and time limit.
        checked: short descriptions of the completed checks.
        problems: problems to correct, each one sentence with the correction.
        notes: behaviour that may be intended, and possible improvements.
    """

    name: str
    kind: str
    facts: str = ""
    checked: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def problem(self, text: str) -> None:
        """Add a problem, unless it is already listed."""
        if text not in self.problems:
            self.problems.append(text)

    def note(self, text: str) -> None:
        """Add a note, unless it is already listed."""
        if text not in self.notes:
            self.notes.append(text)


def check_env(env: Any, *, steps: int = STEPS, seed: int = 0, **kwargs: Any) -> Report:
    """Check an environment and raise an error that lists all of its problems.

    The environment is reset, stepped with every kind of action, vectorised and compiled.
    `find_problems` does the same without raising an error for problems.

    Args:
        env: name ("CartPole-v1", "gymnasium:LunarLander-v3", "my_module:MyEnv"), Env, gymnax or
            Gymnasium environment, or class or function that makes one of these.
        steps: number of steps with random actions.
        seed: seed of actions and resets.
        **kwargs: arguments of an environment that is made by name, or by a class or function.

    Returns:
        Report without problems.

    Raises:
        InvalidEnvironment: if the environment cannot be made or has problems. The message lists
            each problem in one line with its correction.
        UnknownEnvironment, ConfigError: if there is no such environment.
    """
    report = find_problems(env, steps=steps, seed=seed, **kwargs)
    if report.problems:
        count = len(report.problems)
        raise InvalidEnvironment(
            f"{report.name}: {count} problem{'s' if count > 1 else ''}\n"
            + "\n".join(f"- {problem}" for problem in report.problems)
        )
    return report


def find_problems(env: Any, *, steps: int = STEPS, seed: int = 0, **kwargs: Any) -> Report:
    """Check an environment and return all of its problems.

    Args:
        env, steps, seed, **kwargs: the same as for `check_env`.

    Raises:
        InvalidEnvironment, UnknownEnvironment, ConfigError: if the environment cannot be made.
    """
    kind, made, name = _subject(env, kwargs)
    # Modules are imported when they are needed, because Gymnasium is optional.
    return _checker(kind)(made, name, steps=steps, seed=seed)


def _checker(kind: str) -> Callable[..., Report]:
    module = importlib.import_module(f"ppo_jax.envs.check_{kind}")
    return module.check


def _subject(env: Any, kwargs: dict[str, Any]) -> tuple[str, Any, str]:
    """("jax" | "gymnasium" | "vector", environment or function that makes it, name)."""
    name = env if isinstance(env, str) else ""
    if isinstance(env, str):
        full = registry.canonical(env)
        suite, _, env_id = full.partition(":")
        if registry.is_own(full) or suite not in registry.SUITES:
            env = references.resolve(full, "environment")
        elif suite == "gymnasium":
            kwargs = {n: v for n, v in kwargs.items() if n != "backend"}
            make = functools.partial(_gymnasium_make, env_id, **kwargs)
            return "gymnasium", make, full
        else:
            made = registry.make(full, **kwargs)
            return ("vector" if makes_vectors(made) else "jax"), made, full
    return _of_object(env, kwargs, name)


def _of_object(env: Any, kwargs: dict[str, Any], name: str) -> tuple[str, Any, str]:
    made, maker = env, None
    is_made = any(hasattr(env, a) for a in registry.ENVIRONMENTS)
    if isinstance(env, type) or (callable(env) and not is_made):
        maker = functools.partial(env, **kwargs)
        name = name or getattr(env, "__name__", repr(env))
        made = _made(maker, name)
    elif kwargs:
        raise InvalidEnvironment(
            f"{type(env).__name__} already exists and takes no arguments; omit {', '.join(kwargs)}"
        )
    name = name or str(getattr(made, "name", type(made).__name__))
    if hasattr(made, "single_observation_space"):
        return "vector", registry.as_env(made), name
    if _is_gymnasium(made):
        return "gymnasium", maker or (lambda: made), name
    adapter = importlib.import_module(registry.SUITES["gymnax"])
    if adapter.recognizes(made):
        made = adapter.adapt(made)
    return ("vector" if makes_vectors(made) else "jax"), made, name


def _made(maker: Callable[[], Any], name: str) -> Any:
    try:
        with answers(name, "while it was made"):
            return maker()
    except Exception as error:
        raise InvalidEnvironment(f"{name} cannot be made: {references.raised(error)}") from error


def _is_gymnasium(env: Any) -> bool:
    """Whether an environment follows the API of Gymnasium or of Gym: by its classes, or by a reset
    that takes neither key nor params."""
    classes = type(env).__mro__
    if any(c.__module__.split(".")[0] in ("gymnasium", "gym") for c in classes):
        return True
    return hasattr(env, "reset") and not hasattr(env, "params") and _takes_nothing(env.reset)


def _takes_nothing(reset: Any) -> bool:
    import inspect

    try:
        inspect.signature(reset).bind()
    except (TypeError, ValueError):
        return False
    return True


def _gymnasium_make(env_id: str, **kwargs: Any) -> Any:
    import gymnasium

    try:
        # Gymnasium's own checker stops at the first problem, so it is disabled. Its wrapper that
        # enforces the order of reset and step is disabled as well: it hides signatures.
        return gymnasium.make(env_id, disable_env_checker=True, **kwargs)
    except Exception as error:
        raise InvalidEnvironment(
            f"gymnasium:{env_id} cannot be made: {references.raised(error)}"
        ) from error


def describe(observations: Any, actions: Any, limit: Any) -> str:
    """A description of spaces and time limit."""
    limit = "unknown" if limit is None else "none" if limit == float("inf") else f"{limit:g} steps"
    return (
        f"observations {spaces.describe(observations)}, actions {spaces.describe(actions)}, time "
        f"limit {limit}"
    )
