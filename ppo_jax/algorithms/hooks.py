"""Hooks: optional attributes of an algorithm's Config that change what a run does.

An algorithm is a module or object with a dataclass `Config` and a function `make`. Its Config may
also have the attributes below. Only this module accesses them and defines their defaults. A Config
without any of them is valid.

    critic: str
        Function that the critic estimates: "v" (state values, the default), "q" (action values, a
        Q-function) or "none".
    self_prediction: bool
        Whether the critic also predicts its own features at the next step (`Predictive`); False by
        default.
    collector(collect) -> collect
        Alternative collection of experience. `collect` is a `rollout.Collector`: a function
        (key, params, RolloutState) -> (RolloutState, Trajectory [T, N]), with the method
        `whole_episodes` and its arguments as attributes. The default is `collect` itself.
    whole_episodes: bool
        Whether a rollout consists of whole episodes that all start at its begin, so that first
        episodes cannot be staggered; False by default.
    resolve(env) -> Config
        The Config, in which options that are None are filled in from the environment.
    divisors() -> {name: number}
        Numbers that must divide the number of samples of a rollout, by the name of the option.
    check(run, env) -> None
        Raises ValueError if the configuration of the run (a TrainConfig) or the environment does
        not fit the algorithm. `env` is None while the environment is unknown.
    promises: {metric: meaning}
        Metrics that are 0 while the algorithm's assumptions hold, and what another value means.
        The meaning is shown once, as a warning.

Floats of a Config may be tracers, so a hook that compares floats must skip tracers.
"""

from collections.abc import Callable
from typing import Any

Collect = Callable[..., Any]


def critic(config: Any) -> str:
    """The function that the critic estimates: "v", "q" or "none"."""
    return str(getattr(config, "critic", "v"))


def self_prediction(config: Any) -> bool:
    """Whether the critic also predicts its own features at the next step."""
    return bool(getattr(config, "self_prediction", False))


def collector(config: Any, collect: Collect) -> Collect:
    """The function (key, params, RolloutState) -> (RolloutState, Trajectory) of a run.

    Args:
        config: Config of an algorithm.
        collect: default function, used unless the Config defines another one.
    """
    hook = getattr(config, "collector", None)
    return collect if hook is None else hook(collect)


def whole_episodes(config: Any) -> bool:
    """Whether a rollout of the algorithm consists of whole episodes, all started at its begin."""
    return bool(getattr(config, "whole_episodes", False))


def resolve(config: Any, env: Any) -> Any:
    """The Config with missing options filled in from the environment.

    Args:
        config: Config of an algorithm.
        env: environment, an Env.
    """
    hook = getattr(config, "resolve", None)
    return config if hook is None else hook(env)


def divisors(config: Any) -> dict[str, int]:
    """Numbers that must divide the number of samples of a rollout, by name."""
    hook = getattr(config, "divisors", None)
    return {} if hook is None else hook()


def check(config: Any, run: Any, env: Any) -> None:
    """Reject a run that does not fit the algorithm.

    Args:
        config: Config of an algorithm.
        run: TrainConfig that contains the Config.
        env: environment, an Env, or None while it is unknown.

    Raises:
        ValueError: if the run or the environment does not fit.
    """
    hook = getattr(config, "check", None)
    if hook is not None:
        hook(run, env)


def promises(config: Any) -> dict[str, str]:
    """Metrics that must stay 0, with the meaning of another value for each."""
    return dict(getattr(config, "promises", {}))
