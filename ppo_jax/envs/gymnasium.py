"""Suite `gymnasium`: registered Gymnasium environments, and objects that follow its API."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import ppo_jax.config.references as references
from ppo_jax.config.options import did_you_mean
from ppo_jax.envs import host_spaces
from ppo_jax.envs.copies import Copies
from ppo_jax.envs.first_look import look, named_warnings
from ppo_jax.envs.host import HostEnv
from ppo_jax.envs.protocol import InvalidEnvironment
from ppo_jax.envs.supervision import answers

BACKENDS = ("sync", "async", "vector_entry_point")
# Advice for an environment that exceeds the time limit.
SLOW = "; check what it waits for, or raise the limit with --env-timeout"


def names() -> list[str]:
    """Registered ids. A package registers its ids when it is imported."""
    import gymnasium

    return sorted(gymnasium.registry)


def has(env_id: str) -> bool:
    """Whether Gymnasium can make an environment. For "module:id", the module is imported, because
    it registers the id.

    Raises:
        ConfigError: if the module cannot be imported.
    """
    import gymnasium

    module, colon, registered = env_id.rpartition(":")
    if colon:
        references.load(module, "environment")
    try:
        return gymnasium.spec(registered) is not None
    except (gymnasium.error.Error, ImportError):
        return False


def make(env_id: str, backend: str = "sync", channels: str = "auto", **kwargs: Any) -> HostEnv:
    """Make a registered environment.

    Args:
        env_id: id, e.g. "LunarLander-v3".
        backend: execution of N environments. sync: one after the other, in this process. async: in
            one process each, which is faster if a step is slow; the processes are new programs and
            not forks, which JAX does not support. vector_entry_point: the vectorised implementation
            that some ids have, with NEXT_STEP resets; it reads action masks and the critic's
            observation only as plain entries of the observation.
        channels: order of the channels of images, "first" or "last"; auto derives it from the
            shape.
        **kwargs: arguments of the environment; max_episode_steps is the time limit.

    Raises:
        InvalidEnvironment: if the backend is unknown, or Gymnasium cannot make the environment, for
            example because a package is not installed.
    """
    import gymnasium

    if backend not in BACKENDS:
        raise InvalidEnvironment(f"unknown backend {backend!r}; {did_you_mean(backend, BACKENDS)}")
    name = f"gymnasium:{env_id}"
    one = functools.partial(gymnasium.make, env_id, **kwargs)
    first = first_of(one, name)
    limit = first.spec.max_episode_steps
    wrap, spoken = _languages(first, name, channels, separate=backend != "vector_entry_point")
    first.close()

    def start(num_envs: int, backend: str = backend, **options: Any) -> Callable[[], Any]:
        if backend == "vector_entry_point":
            mode = "vector_entry_point"
            return functools.partial(
                gymnasium.make_vec, env_id, num_envs, vectorization_mode=mode, **kwargs
            )
        # The results of the environment were already checked with the first one.
        unmasked = functools.partial(one, disable_env_checker=True, **options)
        return functools.partial(_copies, [wrap(unmasked)] * num_envs, backend)

    def variant(**options: Any) -> HostEnv:
        same = functools.partial(start, backend="sync", **options)
        return HostEnv(name, start=same, time_limit=limit, **spoken)

    def drawn() -> HostEnv:
        _refuse_undrawn(first, one, name)
        return variant(render_mode="rgb_array")

    return HostEnv(
        name,
        start=start,
        time_limit=limit,
        **spoken,
        # Separate copies, so that an evaluation does not disturb training.
        evaluated_as=variant,
        drawn_as=drawn,
    )


def _refuse_undrawn(first: Any, one: Callable[..., Any], name: str) -> None:
    """Reject rendering of an environment that has no images.

    Args:
        first: environment, whose metadata may omit a mode that it supports.
        one: function that makes another environment, with arguments.
        name: name of the environment, for the message.

    Raises:
        InvalidEnvironment: if it has no images.
    """
    modes = (getattr(first, "metadata", None) or {}).get("render_modes") or ()
    if "rgb_array" in modes:
        return
    try:
        with warnings.catch_warnings(), answers(name, "while it was made", SLOW):
            warnings.simplefilter("ignore")
            one(render_mode="rgb_array", disable_env_checker=True).close()
    except Exception as error:
        raise InvalidEnvironment(
            f'environment {name} cannot be rendered: it has no render_mode "rgb_array"; its '
            f"metadata lists {', '.join(map(repr, modes)) or 'none'}"
        ) from error


def recognizes(env: Any) -> bool:
    """Whether an object is a Gymnasium environment or makes one, without importing Gymnasium."""
    if hasattr(env, "single_observation_space"):
        return True
    classes = (env if isinstance(env, type) else type(env)).__mro__
    known = any(c.__module__.split(".")[0] == "gymnasium" for c in classes)
    return known or (callable(env) and not hasattr(env, "reset"))


def adapt(env: Any, first: Any = None) -> HostEnv:
    """A HostEnv of a function that makes environments, or of a Gymnasium vector environment.

    Args:
        env: function that makes a gymnasium.Env and is called N times, or a vector environment of
            num_envs environments.
        first: environment that the function has already made, or None.

    Raises:
        InvalidEnvironment: if env is a single environment, or the function makes something else.
    """
    if hasattr(env, "single_observation_space"):
        return _adapt_vector(env)
    if not callable(env):
        raise InvalidEnvironment(
            f"{env} is a single Gymnasium environment, but training steps num_envs of them; pass a "
            "function that makes one, env=lambda: ..., or a vector environment"
        )
    if first is None:
        first = first_of(env, getattr(env, "__name__", repr(env)))
    if hasattr(first, "single_observation_space"):
        return _adapt_vector(first)
    if not all(hasattr(first, a) for a in ("observation_space", "action_space", "unwrapped")):
        raise InvalidEnvironment(
            f"{env} makes a {type(first).__name__}, which is not a Gymnasium environment "
            "(observation_space and action_space)"
        )
    spec = getattr(first, "spec", None)
    name = spec.id if spec is not None else type(first.unwrapped).__name__
    wrap, spoken = _languages(first, name)
    first.close()
    one = wrap(env)

    def start(num_envs: int) -> Callable[[], Any]:
        return functools.partial(_copies, [one] * num_envs, "sync")

    def copy() -> HostEnv:
        return HostEnv(name, start=start, **spoken)

    return HostEnv(name, start=start, evaluated_as=copy, **spoken)


def _languages(
    first: Any, name: str, channels: str = "auto", *, separate: bool = True
) -> tuple[Callable[[Any], Any], dict[str, Any]]:
    """(change of a function that makes the environment, arguments of HostEnv about the spaces).

    The change adds what is separate from the observation, masks and the critic's observation.

    Args:
        first: Gymnasium environment, which is reset and stepped a few times.
        name: name of the environment, for messages.
        channels: order of the channels of images.
        separate: whether to search for masks and critic's observations in the info.
    """
    from ppo_jax.envs import action_masks, critic_info

    if channels not in host_spaces.CHANNELS:
        raise InvalidEnvironment(
            f"unknown channels {channels!r}; {did_you_mean(channels, host_spaces.CHANNELS)}"
        )
    with answers(name, "while its first reset was checked", SLOW), named_warnings(name):
        found = action_masks.find(first, name) if separate else None
        extra = critic_info.find(first, name) if separate else None
    theirs = (first.observation_space, first.action_space)
    beside = extra is not None
    codec = host_spaces.codec(*theirs, name, channels=channels, mask=found, beside=beside)
    observed = critic_info.spaces_with(theirs[0], extra)
    spaces = action_masks.masked_spaces(observed, theirs[1], found)

    def wrap(make_one: Callable[[], Any]) -> Callable[[], Any]:
        return action_masks.wrapped(critic_info.wrapped(make_one, extra, name), found, name)

    with answers(name, "while its first steps were checked", SLOW):
        look(wrap(lambda: first)(), name)
    return wrap, {"spaces": spaces, "channels": channels, "own_codec": codec}


def _adapt_vector(venv: Any) -> HostEnv:
    """A HostEnv that uses the same vector environment for training and for evaluation."""
    name = venv.spec.id if getattr(venv, "spec", None) else type(venv.unwrapped).__name__
    spaces = (venv.single_observation_space, venv.single_action_space)
    return HostEnv(name, spaces, lambda num_envs: lambda: venv, evaluation_envs=venv.num_envs)


def first_of(make_one: Callable[[], Any], name: str) -> Any:
    """Call a function that makes environments, for the first one, whose spaces all others share.

    Raises:
        InvalidEnvironment: if the function raised an error.
    """
    try:
        with answers(name, "while it was made", SLOW):
            return make_one()
    except Exception as error:
        raise InvalidEnvironment(
            f"{name} cannot be made: {type(error).__name__}: {error}"
        ) from error


def _copies(makers: list[Callable[[], Any]], backend: str) -> Copies:
    return Copies(makers, processes=backend == "async")
