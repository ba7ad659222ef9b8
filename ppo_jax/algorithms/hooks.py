"""What a run asks an algorithm's Config beyond its fields: the hooks, all of them optional.

An algorithm is any module or object with a dataclass `Config` and a function `make`. Its Config may
also have the attributes below; this module is the only place that looks for them and knows their
defaults. A Config without any of them works.

    critic: str
        What the critic estimates: "v" (state values, the default), "q" (action values) or "none".
    collector(collect) -> collect
        Another way to collect experience. `collect` is a `rollout.Collector`: a function
        (key, params, RolloutState) -> (RolloutState, Trajectory [T, N]), with `whole_episodes` and
        the arguments it was made with. The default is `collect` itself.
    resolve(env) -> Config
        The Config with options that are None filled in from the environment.
    divisors() -> {name: number}
        Numbers that must divide the rows of a rollout, by the name of the option that sets them.
    check(run, env) -> None
        Raises ValueError where the run's configuration (a TrainConfig) or the environment does not
        suit the algorithm; `env` is None while the environment is not known yet.
    promises: {metric: meaning}
        Metrics that are 0 while what the algorithm assumes is true, and what it means if one is
        not; the meaning is shown once, as a warning.

Values may be tracers where a Config has floats, so a hook that compares floats skips those.
"""

from collections.abc import Callable
from typing import Any

Collect = Callable[..., Any]


def critic(config: Any) -> str:
    """What the critic estimates: "v", "q" or "none"."""
    return str(getattr(config, "critic", "v"))


def collector(config: Any, collect: Collect) -> Collect:
    """The function (key, params, RolloutState) -> (RolloutState, Trajectory) of a run.

    Args:
        config: an algorithm's Config.
        collect: the function to use unless the Config has another.
    """
    hook = getattr(config, "collector", None)
    return collect if hook is None else hook(collect)


def resolve(config: Any, env: Any) -> Any:
    """The Config with what it leaves to the environment filled in.

    Args:
        config: an algorithm's Config.
        env: an Env.
    """
    hook = getattr(config, "resolve", None)
    return config if hook is None else hook(env)


def divisors(config: Any) -> dict[str, int]:
    """Numbers that must divide the rows of a rollout, by name."""
    hook = getattr(config, "divisors", None)
    return {} if hook is None else hook()


def check(config: Any, run: Any, env: Any) -> None:
    """Refuse what does not suit the algorithm.

    Args:
        config: an algorithm's Config.
        run: the TrainConfig it belongs to.
        env: an Env, or None while it is not known.

    Raises:
        ValueError: what was given, and what to do instead.
    """
    hook = getattr(config, "check", None)
    if hook is not None:
        hook(run, env)


def promises(config: Any) -> dict[str, str]:
    """Metrics that must stay 0, each with the meaning of another value."""
    return dict(getattr(config, "promises", {}))
