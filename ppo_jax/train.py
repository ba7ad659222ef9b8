"""The training step, and whole runs as pure functions of a key.

`python -m ppo_jax.train` is this with a run directory around it (`ppo_jax.experiment`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppo_jax import precision, rollout
from ppo_jax.algorithms import ALGORITHMS, hooks
from ppo_jax.config import TrainConfig, check, discount, env_kwargs, resolve
from ppo_jax.envs import Env, InvalidEnvironment, VectorEnv, as_env, check_spaces, spaces, vectorize
from ppo_jax.networks import (
    CONVOLUTIONS,
    FRAME_MIXES,
    Policy,
    make_policy,
    make_recurrent_policy,
)
from ppo_jax.types import Algorithm, Batch, Metrics, PyTree, TrainState

Step = Callable[..., tuple[TrainState, Metrics]]


def make_train_step(
    collect: Callable[..., tuple[PyTree, Any]],
    algorithm: Algorithm,
    rows: Callable[[Batch], Batch] = rollout.flatten_steps,
) -> Step:
    """One iteration of any on-policy method: act, judge, learn.

    Args:
        collect: (key, params, RolloutState) -> (RolloutState, Trajectory [T, N]).
        algorithm: what to learn from it.
        rows: [T, N] batch -> the rows that are shuffled.

    Returns:
        (TrainState, frozen=()) -> (TrainState, Metrics): those of the rollout and the update.
        `frozen` holds arrays that nothing changes (a reference model). Where it is not empty,
        `collect` gets it by its name, `frozen=`; an update that needs it is made with it.
    """

    def train_step(state: TrainState, frozen: PyTree = ()) -> tuple[TrainState, Metrics]:
        key, collect_key, update_key = jax.random.split(state.key, 3)
        more = {"frozen": frozen} if jax.tree.leaves(frozen) else {}
        experience, trajectory = collect(collect_key, state.learner.params, state.rollout, **more)
        batch = rows(algorithm.estimate(trajectory))
        learner, metrics = algorithm.update(update_key, state.learner, batch)
        metrics = {**experience.metrics, **metrics}
        return TrainState(learner, experience, key, state.update + 1), metrics

    return train_step


class Program(NamedTuple):
    """What a configuration stands for.

    Attributes:
        env: the environment, one of it.
        vector_env: N of it, restarting themselves.
        policy: networks behind functions.
        algorithm: init, estimate, update.
        init: key -> TrainState
        step: TrainState -> (TrainState, Metrics)
        restart: TrainState -> TrainState with all environments in new episodes, for a saved state
            whose environments are no longer there.
    """

    env: Env
    vector_env: VectorEnv
    policy: Policy
    algorithm: Algorithm
    init: Callable[[jax.Array], TrainState]
    step: Step
    restart: Callable[[TrainState], TrainState]


def build(config: TrainConfig, env: Any = None) -> Program:
    """Put the parts together; nothing is compiled.

    Args:
        config: may hold tracers where it holds floats.
        env: an Env, a gymnax Environment, a Gymnasium vector environment, a function that makes
            Gymnasium environments, or a name; the configured one if None.

    Raises:
        ConfigError, InvalidEnvironment: what cannot work, and why.
    """
    check(config)
    env = as_env(config.env, **env_kwargs(config)) if env is None else as_env(env)
    config = resolve(config, env)
    check(config, env)
    _check_spaces(config, env)
    vector_env = vectorize(env, config.num_envs, config.num_steps, pool_size=config.reset_pool)
    policy = _policy(config, env)
    algorithm = ALGORITHMS[config.algorithm].make(policy, config.hyper)
    collector = rollout.Collector(vector_env, policy, config.num_steps, discount(config))
    collect = hooks.collector(config.hyper, collector)

    def init(key: jax.Array) -> TrainState:
        key, rollout_key, learner_key = jax.random.split(key, 3)
        experience = rollout.init(
            rollout_key,
            policy,
            vector_env,
            normalize_obs=config.normalize_obs,
            normalize_reward=config.normalize_reward,
        )
        learner = algorithm.init(learner_key, experience.obs)
        return TrainState(learner, experience, key, jnp.zeros((), jnp.int32))

    rows = rollout.flatten_steps if config.memory == "none" else rollout.sequences
    step = make_train_step(collect, algorithm, rows)
    restart = functools.partial(_restart, vector_env, policy)
    # The policy for those who use it alone, as an evaluation does. The rest as wholes: environments
    # and backward passes with rules of their own are traced outside of the policy's functions.
    functions = (policy, algorithm, init, step, restart)
    return Program(env, vector_env, *precision.apply(config.matmul_precision, functions))


def _restart(vector_env: VectorEnv, policy: Policy, state: TrainState) -> TrainState:
    key, reset_key = jax.random.split(state.key)
    experience = rollout.restart(reset_key, state.rollout, env=vector_env, policy=policy)
    return dataclasses.replace(state, rollout=experience, key=key)


def _policy(config: TrainConfig, env: Env) -> Policy:
    """The configured network for the environment's spaces."""
    common: dict[str, Any] = {
        "observation_space": env.observation_space,
        "action_space": env.action_space,
        "hidden": config.hidden,
        "activation": config.activation,
        "cnn": CONVOLUTIONS[config.network],
        "shared_torso": config.shared_torso,
        "squash": config.squash,
        "log_std_init": config.log_std_init,
        "frame_mix": config.frame_mix,
        "critic": hooks.critic(config.hyper),
    }
    if config.memory == "none":
        return make_policy(**common)
    return make_recurrent_policy(memory=config.memory, memory_size=config.memory_size, **common)


def make_train(
    config: TrainConfig, env: Any = None
) -> Callable[[jax.Array], tuple[TrainState, Metrics]]:
    """A whole run as one pure function: jit it, vmap it over keys, map it.

    Args:
        config: every float in it may be a tracer.
        env: as for `build`.

    Returns:
        key -> (TrainState, Metrics with leaves [U])

    Raises:
        ConfigError, InvalidEnvironment: what cannot work, and why.
    """
    program = build(config, env)

    def train(key: jax.Array) -> tuple[TrainState, Metrics]:
        def step(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
            return program.step(state)

        return jax.lax.scan(step, program.init(key), None, length=config.num_updates)

    return train


def _check_spaces(config: TrainConfig, env: Env) -> None:
    """Refuse a network or a distribution that does not fit the environment's spaces."""
    check_spaces(env)
    actions = env.action_space
    name = getattr(env, "name", type(env).__name__)
    if config.squash and not (isinstance(actions, spaces.Box) and actions.bounded):
        raise InvalidEnvironment(
            f"squash needs a Box action space with finite bounds; {name} has {actions}"
        )
    if config.network != "mlp":
        _check_image(config.network, name, env.observation_space)
    if config.frame_mix != "none":
        _check_frames(config.frame_mix, name, env.observation_space)


def _check_image(network: str, name: str, observations: PyTree) -> None:
    try:
        path, image = spaces.image(observations)
    except ValueError as error:
        raise InvalidEnvironment(
            f"network {network!r} does not fit {name}: {error}; use network mlp"
        ) from error
    side = min(image.shape[:2])
    for _, kernel, stride in CONVOLUTIONS[network]:
        if side < kernel:
            raise InvalidEnvironment(
                f"images{path} of {name} with shape {image.shape} are too small for network "
                f"{network!r}"
            )
        side = (side - kernel) // stride + 1


def _check_frames(mix: str, name: str, observations: PyTree) -> None:
    frames = len(FRAME_MIXES[mix])
    images = [leaf.shape for _, leaf in spaces.leaves(observations) if spaces.is_image(leaf)]
    if not images or any(shape[-1] != frames for shape in images):
        raise InvalidEnvironment(
            f"frame_mix {mix!r} takes images of {frames} frames [H, W, {frames}]; observations of "
            f"{name} are {spaces.describe(observations)}; use frame_mix none, or {frames} frames "
            f"(--env-args frames={frames}, where the environment has that argument)"
        )


if __name__ == "__main__":
    from ppo_jax.cli.train import main

    main()
