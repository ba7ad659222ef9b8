"""Suite `gymnasium`: what is registered with Gymnasium, and objects that follow its API."""

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
# What to do about an environment that is slower than the limit.
SLOW = "; look for what it waits for, or give it longer with --env-timeout"


def names() -> list[str]:
    """Ids that are registered; those of a package are once it is imported."""
    import gymnasium

    return sorted(gymnasium.registry)


def has(env_id: str) -> bool:
    """Whether Gymnasium can make it. Of "module:id", the module, which registers the id, is
    imported.

    Raises:
        ConfigError: it cannot be imported.
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
    """A registered environment.

    Args:
        env_id: e.g. "LunarLander-v3".
        backend: how N of them run. sync: one after the other, in this process. async: in a process
            each, which pays where a step is slow; the processes are started afresh and inherit
            nothing of JAX, whose threads do not survive a fork. vector_entry_point: the vectorised
            form that some ids have, with NEXT_STEP restarts; a mask that is no plain entry of the
            observation is not read there.
        channels: where images have their channels, "first" or "last"; auto: as their shape says.
        **kwargs: arguments of the environment; max_episode_steps is the time limit.

    Raises:
        InvalidEnvironment: an unknown backend; or Gymnasium's own complaint, a package that the
            environment needs and that is not installed among them.
    """
    import gymnasium

    from ppo_jax.envs import action_masks

    if backend not in BACKENDS:
        raise InvalidEnvironment(f"unknown backend {backend!r}; {did_you_mean(backend, BACKENDS)}")
    name = f"gymnasium:{env_id}"
    one = functools.partial(gymnasium.make, env_id, **kwargs)
    first = first_of(one, name)
    limit = first.spec.max_episode_steps
    masks, spoken = _languages(first, name, channels, masks=backend != "vector_entry_point")
    first.close()

    def start(num_envs: int, backend: str = backend, **options: Any) -> Callable[[], Any]:
        if backend == "vector_entry_point":
            mode = "vector_entry_point"
            return functools.partial(
                gymnasium.make_vec, env_id, num_envs, vectorization_mode=mode, **kwargs
            )
        # The checks of the environment's returns were made on the first one.
        unmasked = functools.partial(one, disable_env_checker=True, **options)
        copy = action_masks.wrapped(unmasked, masks, name)
        return functools.partial(_copies, [copy] * num_envs, backend)

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
        # Its own copies, so that an evaluation disturbs no training.
        evaluated_as=variant,
        drawn_as=drawn,
    )


def _refuse_undrawn(first: Any, one: Callable[..., Any], name: str) -> None:
    """Say that an environment has no pictures.

    Args:
        first: one of the kind; whose metadata may forget a mode that it has.
        one: makes another, with arguments.
        name: of it, for the message.

    Raises:
        InvalidEnvironment: it has none.
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
            f'environment {name} cannot be drawn: it has no render_mode "rgb_array"; its metadata '
            f"lists {', '.join(map(repr, modes)) or 'none'}"
        ) from error


def recognizes(env: Any) -> bool:
    """Whether an object is of Gymnasium's kind, or makes one: known without importing it."""
    if hasattr(env, "single_observation_space"):
        return True
    classes = (env if isinstance(env, type) else type(env)).__mro__
    known = any(c.__module__.split(".")[0] == "gymnasium" for c in classes)
    return known or (callable(env) and not hasattr(env, "reset"))


def adapt(env: Any, first: Any = None) -> HostEnv:
    """A function that makes environments, or a Gymnasium vector environment, as it is.

    Args:
        env: () -> gymnasium.Env, called N times; or a vector environment of num_envs.
        first: what the function has made already; None: nothing.

    Raises:
        InvalidEnvironment: a single environment, of which there is only one; or a function that
            makes something else.
    """
    if hasattr(env, "single_observation_space"):
        return _adapt_vector(env)
    if not callable(env):
        raise InvalidEnvironment(
            f"{env} is one Gymnasium environment, and training steps num_envs of them; give the "
            "function that makes one, env=lambda: ..., or a vector environment"
        )
    if first is None:
        first = first_of(env, getattr(env, "__name__", repr(env)))
    if hasattr(first, "single_observation_space"):
        return _adapt_vector(first)
    if not all(hasattr(first, a) for a in ("observation_space", "action_space", "unwrapped")):
        raise InvalidEnvironment(
            f"{env} makes a {type(first).__name__}, not a Gymnasium environment (observation_space "
            "and action_space)"
        )
    spec = getattr(first, "spec", None)
    name = spec.id if spec is not None else type(first.unwrapped).__name__
    from ppo_jax.envs import action_masks

    masks, spoken = _languages(first, name)
    first.close()
    one = action_masks.wrapped(env, masks, name)

    def start(num_envs: int) -> Callable[[], Any]:
        return functools.partial(_copies, [one] * num_envs, "sync")

    def copy() -> HostEnv:
        return HostEnv(name, start=start, **spoken)

    return HostEnv(name, start=start, evaluated_as=copy, **spoken)


def _languages(
    first: Any, name: str, channels: str = "auto", *, masks: bool = True
) -> tuple[Any, dict[str, Any]]:
    """(masks that copies bring into their observations, what a HostEnv knows of its spaces).

    Args:
        first: a Gymnasium environment, of which a few steps are looked at.
        name: of it, for messages.
        channels: of images.
        masks: whether to look for masks beside the observation.
    """
    from ppo_jax.envs import action_masks

    if channels not in host_spaces.CHANNELS:
        raise InvalidEnvironment(
            f"unknown channels {channels!r}; {did_you_mean(channels, host_spaces.CHANNELS)}"
        )
    with answers(name, "while its first reset was looked at", SLOW), named_warnings(name):
        found = action_masks.find(first, name) if masks else None
    theirs = (first.observation_space, first.action_space)
    codec = host_spaces.codec(*theirs, name, channels=channels, mask=found)
    spaces = action_masks.masked_spaces(*theirs, found)
    with answers(name, "while its first steps were looked at", SLOW):
        look(action_masks.wrapped(lambda: first, found, name)(), name)
    return found, {"spaces": spaces, "channels": channels, "own_codec": codec}


def _adapt_vector(venv: Any) -> HostEnv:
    """The vector environment itself, for training and for evaluation alike."""
    name = venv.spec.id if getattr(venv, "spec", None) else type(venv.unwrapped).__name__
    spaces = (venv.single_observation_space, venv.single_action_space)
    return HostEnv(name, spaces, lambda num_envs: lambda: venv, evaluation_envs=venv.num_envs)


def first_of(make_one: Callable[[], Any], name: str) -> Any:
    """What a function makes; of a kind of environments the first, whose spaces are those of all.

    Raises:
        InvalidEnvironment: the function failed, and how.
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
