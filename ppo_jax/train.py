"""The training step, and whole runs as pure functions of a PRNG key.

`python -m ppo_jax.train` adds a run directory to this (`ppo_jax.experiment`).
"""

if __name__ == "__main__":  # a command line is read before JAX is imported
    from ppo_jax.cli.train import main

    main()

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppo_jax import algorithms, guard, parallel, precision, rollout, watch
from ppo_jax.algorithms import hooks
from ppo_jax.config import ConfigError, TrainConfig, check, discount, env_kwargs, resolve, with_own
from ppo_jax.envs import (
    Env,
    HostEnv,
    InvalidEnvironment,
    VectorEnv,
    as_env,
    check_spaces,
    spaces,
    staggered,
    vectorize,
)
from ppo_jax.envs.protocol import display_name
from ppo_jax.networks import (
    CONVOLUTIONS,
    FRAME_MIXES,
    Policy,
    Stage,
    ValueHead,
    has_memory,
    make_policy,
    make_recurrent_policy,
    own_policy,
)
from ppo_jax.types import Algorithm, Batch, Metrics, PyTree, TrainState

Step = Callable[..., tuple[TrainState, Metrics]]
GuardedStep = Callable[..., tuple[TrainState, Metrics, guard.Found]]


def make_train_step(
    collect: Callable[..., tuple[PyTree, Any]],
    algorithm: Algorithm,
    rows: Callable[[Batch], Batch] = rollout.flatten_steps,
) -> Step:
    """One iteration of an on-policy method: collect, estimate advantages, update.

    Args:
        collect: function (key, params, RolloutState) -> (RolloutState, Trajectory [T, N]).
        algorithm: algorithm that estimates advantages and updates the learner.
        rows: function that converts the [T, N] batch to the samples that are shuffled.

    Returns:
        Function (TrainState, frozen=()) -> (TrainState, Metrics of the rollout and the update).
        `frozen` holds arrays that never change, such as those of a reference model. If it is not
        empty, `collect` receives it as the keyword argument `frozen`. An update that needs such
        arrays must be constructed with them.
    """
    return _unguarded(make_guarded_step(collect, algorithm, rows))


def _unguarded(step: GuardedStep) -> Step:
    def train_step(state: TrainState, frozen: PyTree = ()) -> tuple[TrainState, Metrics]:
        return step(state, frozen)[:2]

    return train_step


def make_guarded_step(
    collect: Callable[..., tuple[PyTree, Any]],
    algorithm: Algorithm,
    rows: Callable[[Batch], Batch] = rollout.flatten_steps,
) -> GuardedStep:
    """`make_train_step` with the result of the numerical guard.

    Args:
        collect, algorithm, rows: the same as for `make_train_step`.

    Returns:
        Function (TrainState, frozen=()) -> (TrainState, Metrics, guard.Found).
    """

    def train_step(
        state: TrainState, frozen: PyTree = ()
    ) -> tuple[TrainState, Metrics, guard.Found]:
        key, collect_key, update_key = jax.random.split(state.key, 3)
        collect_key, update_key = parallel.own_key(collect_key), parallel.own_key(update_key)
        more = {"frozen": frozen} if jax.tree.leaves(frozen) else {}
        experience, trajectory = collect(collect_key, state.learner.params, state.rollout, **more)
        estimated = algorithm.estimate(trajectory)
        watch.see("estimate", advantage=estimated.advantage, target=estimated.target)
        learner, metrics = algorithm.update(update_key, state.learner, rows(estimated))
        metrics = {**experience.metrics, **parallel.average(metrics)}
        watch.see("update", metrics=metrics, parameters=learner.params)
        found = guard.check_update(learner, experience, trajectory)
        experience = dataclasses.replace(experience, metrics=guard.hide(experience.metrics))
        return TrainState(learner, experience, key, state.update + 1), metrics, found

    return train_step


class Program(NamedTuple):
    """The parts of a run that a configuration describes.

    Attributes:
        env: a single environment.
        vector_env: N copies of the environment with automatic reset.
        policy: functions of the policy network.
        algorithm: functions init, estimate and update of the algorithm.
        init: function key -> TrainState.
        step: function TrainState -> (TrainState, Metrics).
        restart: function TrainState -> TrainState that starts new episodes in all environments, for
            a saved state whose environments no longer exist.
        guarded_step: function TrainState -> (TrainState, Metrics, guard.Found), which the loop of a
            run calls.
    """

    env: Env
    vector_env: VectorEnv
    policy: Policy
    algorithm: Algorithm
    init: Callable[[jax.Array], TrainState]
    step: Step
    restart: Callable[[TrainState], TrainState]
    guarded_step: GuardedStep


def build(
    config: TrainConfig, env: Any = None, policy: Any = None, algorithm: Any = None
) -> Program:
    """Construct the parts of a run without compiling them.

    Args:
        config: configuration, whose floats may be tracers.
        env: an Env, a gymnax Environment, a Gymnasium vector environment, a class or function that
            makes one of these or a Gymnasium environment, a name, or None for the configured one.
        policy: a Policy, a function (observation_space, action_space, config) -> Policy, a name, or
            None for the configured one.
        algorithm: a module or object with Config and make, a name, or None for the configured one.
            The configuration's `hyper` must be an instance of its Config.

    Returns:
        Program with the parts of the run.

    Raises:
        ConfigError: if the configuration is not valid, or its parts do not fit together.
        InvalidEnvironment: if the environment is not valid or does not fit the configuration.
    """
    config = with_own(config, policy=policy, algorithm=algorithm)
    check(config)
    env = as_env(config.env, **env_kwargs(config)) if env is None else as_env(env)
    config = resolve(config, env)
    check(config, env)
    _check_spaces(config, env)
    _refuse_parts(config, env)
    vector_env = vectorize(
        staggered(env) if config.stagger else env,
        config.num_envs // config.parts,
        config.num_steps,
        pool_size=config.reset_pool and -(-config.reset_pool // config.parts),
    )
    policy = _policy(config, env)
    algorithm = _algorithm(config, policy)
    collector = rollout.Collector(vector_env, policy, config.num_steps, discount(config))
    collect = hooks.collector(config.hyper, collector)

    def init(key: jax.Array) -> TrainState:
        key, rollout_key, learner_key = jax.random.split(key, 3)
        experience = rollout.init(
            parallel.own_key(rollout_key),
            policy,
            vector_env,
            normalize_obs=config.normalize_obs,
            normalize_reward=config.normalize_reward,
        )
        experience = dataclasses.replace(experience, metrics=guard.hide(experience.metrics))
        learner = algorithm.init(learner_key, experience.obs)
        return TrainState(learner, experience, key, jnp.zeros((), jnp.int32))

    rows = rollout.sequences if has_memory(policy) else rollout.flatten_steps
    guarded, first = make_guarded_step(collect, algorithm, rows), init
    if config.parts > 1:
        guarded, first = _in_parts(guarded), _init_parts(init, config.parts)
    restart = functools.partial(_restart, vector_env, policy)
    if config.parts > 1:
        restart = jax.vmap(restart, (OF_PARTS,), OF_PARTS, axis_name=parallel.PARTS)
    # Evaluations use the policy alone, so it gets the precision. The other functions get it as
    # wholes, because environments and custom backward passes are traced outside the policy.
    functions = (policy, algorithm, first, _unguarded(guarded), restart, guarded)
    return Program(env, vector_env, *precision.apply(config.matmul_precision, functions))


def _refuse_parts(config: TrainConfig, env: Env) -> None:
    """Reject the parts option for environments that cannot be split."""
    if config.parts > 1 and isinstance(env, HostEnv):
        raise ConfigError(
            f"parts is {config.parts}, but {config.env} runs on the host, where all environments "
            "are stepped together and cannot be split; omit parts and --devices"
        )


# The axis of the shards for each leaf of a state that is separate in each shard; None for leaves
# that all shards share. (These are not of their nominal types: they describe a state.)
_state: Any = TrainState
_experience: Any = rollout.RolloutState
OF_PARTS: Any = _state(
    learner=None,
    rollout=_experience(
        env_state=0, obs=0, core=0, moments=None, metrics=None, episodes=0, noise=0
    ),
    key=None,
    update=None,
)


def _init_parts(init: Callable[[jax.Array], TrainState], parts: int) -> Any:
    """`init` of one shard of the environments, for a state with all shards."""
    return jax.vmap(init, None, OF_PARTS, axis_name=parallel.PARTS, axis_size=parts)


def _in_parts(step: GuardedStep) -> GuardedStep:
    """A step of one shard of the environments, for a state with several shards.

    Leaves that are separate in each shard are [D, N/D, ...] (`OF_PARTS`). All other leaves are
    computed from all shards; if they differed between shards, vmap would raise an error. The state
    may contain some of the shards while other devices have the others.
    """

    def step_parts(state: TrainState, frozen: PyTree = ()) -> Any:
        width = jax.tree.leaves(state.rollout.obs)[0].shape[0]
        if width == 1 and parallel.axes():  # one shard on each device needs no vmap
            one = _each_part(lambda x: x[0], state)
            state, *rest = step(one, frozen)
            return (_each_part(lambda x: x[None], state), *rest)
        axes = (OF_PARTS, None), (OF_PARTS, None, None)
        return jax.vmap(step, *axes, axis_name=parallel.PARTS)(state, frozen)

    return step_parts


def _each_part(change: Callable[[jax.Array], jax.Array], state: TrainState) -> TrainState:
    """Apply a function to the leaves of a state that are separate in each shard."""

    def changed(axis: int | None, tree: PyTree) -> PyTree:
        return tree if axis is None else jax.tree.map(change, tree)

    return jax.tree.map(changed, OF_PARTS, state, is_leaf=lambda x: x is None)


def _restart(vector_env: VectorEnv, policy: Policy, state: TrainState) -> TrainState:
    key, reset_key = jax.random.split(state.key)
    reset_key = parallel.own_key(reset_key)
    experience = rollout.restart(reset_key, state.rollout, env=vector_env, policy=policy)
    return dataclasses.replace(state, rollout=experience, key=key)


def _policy(config: TrainConfig, env: Env) -> Policy:
    """The configured policy network for the environment's spaces."""
    if config.policy is not None:
        found = own_policy(config.policy, env.observation_space, env.action_space, config)
        if has_memory(found):
            _check_sequences(config)
        return found
    common: dict[str, Any] = {
        "observation_space": env.observation_space,
        "action_space": env.action_space,
        "hidden": config.hidden,
        "activation": config.activation,
        "norm": config.norm,
        "residual": config.residual,
        "cnn": CONVOLUTIONS[config.network],
        "shared_torso": config.shared_torso,
        "action_distribution": config.action_distribution,
        "squash": config.squash,
        "log_std_init": config.log_std_init,
        "noise_steps": config.noise_steps,
        "map_actions": config.map_actions,
        "dtype": config.network_dtype,
        "frame_mix": config.frame_mix,
        "critic": hooks.critic(config.hyper),
        "value_head": ValueHead(
            config.value_head,
            config.value_bins,
            config.value_low,
            config.value_high,
            hooks.self_prediction(config.hyper),
        ),
    }
    if config.memory == "none":
        return make_policy(**common)
    sizes = ("memory_size", "memory_layers", "memory_heads", "memory_length")
    common |= {name: getattr(config, name) for name in ("memory", *sizes)}
    return make_recurrent_policy(**common)


def _check_sequences(config: TrainConfig) -> None:
    """Reject minibatches that would split the sequences of a custom recurrent network."""
    envs, what = config.num_envs // config.parts, "num_envs"
    if config.parts > 1:
        what = "num_envs / parts"
    for name, divisor in hooks.divisors(config.hyper).items():
        if envs % divisor:
            raise ConfigError(
                f"a recurrent policy keeps the steps of each environment together, but {what} = "
                f"{envs} cannot be divided into {divisor} {name}"
            )


def _algorithm(config: TrainConfig, policy: Policy) -> Algorithm:
    """The three functions of the configured algorithm."""
    try:
        made: Any = algorithms.get(config.algorithm).make(policy, config.hyper)
    except ValueError as error:  # the critic has another type than the algorithm needs
        raise ConfigError(str(error)) from error
    if not isinstance(made, Algorithm):
        raise ConfigError(
            f"make of algorithm {config.algorithm} returned an object of type "
            f"{type(made).__name__}; it must return ppo_jax.Algorithm(init, estimate, update)"
        )
    return made


def make_train(
    config: TrainConfig, env: Any = None, policy: Any = None, algorithm: Any = None
) -> Callable[[jax.Array], tuple[TrainState, Metrics]]:
    """A whole run as one pure function, which can be jitted and vmapped over keys.

    Args:
        config: configuration, whose floats may be tracers.
        env, policy, algorithm: parts that replace the configured ones, as for `build`.

    Returns:
        Function key -> (TrainState, Metrics with leaves [U]). The metric `env_step` is the number
        of environment steps after each update, in float32 if int32 is too small.

    Raises:
        ConfigError: if the configuration is not valid, or its parts do not fit together.
        InvalidEnvironment: if the environment is not valid or does not fit the configuration.
    """
    program = build(config, env, policy, algorithm)
    rollout_steps = config.num_envs * config.num_steps
    dtype = jnp.int32 if config.total_timesteps < 2**31 else jnp.float32

    def train(key: jax.Array) -> tuple[TrainState, Metrics]:
        def step(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
            return program.step(state)

        init = program.init(key)
        state, metrics = jax.lax.scan(step, init, None, length=config.num_updates)
        made = jnp.arange(1, config.num_updates + 1, dtype=dtype)
        return state, {"env_step": made * rollout_steps, **metrics}

    return train


def _check_spaces(config: TrainConfig, env: Env) -> None:
    """Reject a network or a distribution that does not fit the environment's spaces."""
    check_spaces(env)
    actions = env.action_space
    name = display_name(env)
    if config.squash and not (isinstance(actions, spaces.Box) and actions.bounded):
        raise InvalidEnvironment(
            f"squash requires a Box action space with finite bounds, but {name} has {actions}"
        )
    _check_distribution(config.action_distribution, name, actions)
    if config.shared_torso and spaces.critic_observation(env.observation_space) is not None:
        raise InvalidEnvironment(
            f"{name} has a {spaces.CRITIC_OBSERVATION}, an input of the critic alone, so that "
            "actor and critic cannot share their hidden layers; omit shared_torso"
        )
    if config.network != "mlp":
        _check_image(config.network, name, env.observation_space)
    if config.frame_mix != "none":
        _check_frames(config.frame_mix, name, env.observation_space)


def _check_distribution(kind: str, name: str, actions: spaces.Space) -> None:
    """Reject a distribution of continuous actions that does not fit the action space."""
    if kind == "gaussian":
        return
    if not isinstance(actions, spaces.Box):
        raise InvalidEnvironment(
            f"action_distribution {kind} requires a Box action space, but {name} has {actions}; "
            "omit the option"
        )
    if kind == "beta" and not actions.bounded:
        raise InvalidEnvironment(
            f"action_distribution beta requires finite bounds, but {name} has {actions}; use "
            "gaussian, state_gaussian or gsde"
        )


def _check_image(network: str, name: str, observations: PyTree) -> None:
    try:
        path, image = spaces.image(observations)
    except ValueError as error:
        raise InvalidEnvironment(
            f"network {network!r} does not fit {name}: {error}; use network mlp"
        ) from error
    if image.unordered:
        raise InvalidEnvironment(
            f"images{path} of {name} have shape {image.shape}, whose channel axis is ambiguous; "
            "set it with --env-args channels=first or channels=last (for Gymnasium environments "
            "that are given by id), return images [H, W, C] of another size, or use network mlp"
        )
    side = min(image.shape[:2])
    for layer in CONVOLUTIONS[network]:
        if isinstance(layer, Stage):  # its convolutions are padded
            continue
        _, kernel, stride = layer
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
            f"frame_mix {mix!r} requires images of {frames} frames, [H, W, {frames}], but the "
            f"observations of {name} are {spaces.describe(observations)}; use frame_mix none, or "
            f"{frames} frames (--env-args frames={frames}, if the environment has that argument)"
        )
