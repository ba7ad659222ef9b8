"""`check_env`: everything that can be found wrong with an environment before it is trained on.

One environment at a time, in JAX (`ppo_jax.envs.check_jax`) or of Gymnasium
(`ppo_jax.envs.check_gymnasium`). Every fault is a sentence with its cure, and all of them are
listed. What an environment merely could do better is a note.
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
    """What was looked at, and what was found.

    Attributes:
        name: of the environment.
        kind: "JAX environment", "Gymnasium environment" or "vector environment".
        facts: its spaces and time limit, in words.
        checked: what was looked at, each in a few words.
        problems: what has to be corrected, each one sentence with the cure.
        notes: what may be intended, or could be better.
    """

    name: str
    kind: str
    facts: str = ""
    checked: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def problem(self, text: str) -> None:
        """One more; said once."""
        if text not in self.problems:
            self.problems.append(text)

    def note(self, text: str) -> None:
        """One more; said once."""
        if text not in self.notes:
            self.notes.append(text)


def check_env(env: Any, *, steps: int = STEPS, seed: int = 0, **kwargs: Any) -> Report:
    """Look for everything that is wrong with an environment.

    It is reset, stepped with every kind of action, vectorised and compiled; `find_problems` does
    the same without raising.

    Args:
        env: a name ("CartPole-v1", "gymnasium:LunarLander-v3", "my_module:MyEnv"); an Env; a
            gymnax or Gymnasium environment; or a class or function that makes one of these.
        steps: number of steps to take with random actions.
        seed: of actions and resets.
        **kwargs: arguments of an environment that is made by name, or by a class or function.

    Returns:
        Report, without problems.

    Raises:
        InvalidEnvironment: it cannot be made, or something is wrong with it; the message lists
            everything that was found, each in a line with its cure.
        UnknownEnvironment, ConfigError: there is no such environment.
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
    """`check_env` that returns what it found.

    Args:
        as for `check_env`.

    Raises:
        InvalidEnvironment, UnknownEnvironment, ConfigError: it cannot be made.
    """
    kind, made, name = _subject(env, kwargs)
    # Each is imported when it is needed: Gymnasium is optional.
    return _checker(kind)(made, name, steps=steps, seed=seed)


def _checker(kind: str) -> Callable[..., Report]:
    module = importlib.import_module(f"ppo_jax.envs.check_{kind}")
    return module.check


def _subject(env: Any, kwargs: dict[str, Any]) -> tuple[str, Any, str]:
    """("jax" | "gymnasium" | "vector", the environment or what makes one of Gymnasium's, name)."""
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
            f"{type(env).__name__} is made already and takes no arguments; leave out "
            f"{', '.join(kwargs)}"
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
    """Whether an environment follows Gymnasium's API, or that of Gym before it: by its classes, or
    by a reset that takes neither key nor params."""
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
        # Its own checker is switched off: it stops at the first fault. Neither is the order of
        # reset and step enforced, which hides the environment's signatures.
        return gymnasium.make(env_id, disable_env_checker=True, **kwargs)
    except Exception as error:
        raise InvalidEnvironment(
            f"gymnasium:{env_id} cannot be made: {references.raised(error)}"
        ) from error


def describe(observations: Any, actions: Any, limit: Any) -> str:
    """Spaces and time limit in words."""
    limit = "unknown" if limit is None else "none" if limit == float("inf") else f"{limit:g} steps"
    return (
        f"observations {spaces.describe(observations)}, actions {spaces.describe(actions)}, time "
        f"limit {limit}"
    )
