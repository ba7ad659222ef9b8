"""Custom networks: they are made, and checked before anything is compiled."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp

import ppo_jax.config.references as references
from ppo_jax.config.options import ConfigError
from ppo_jax.envs import spaces
from ppo_jax.networks.policy import Policy, SequenceInputs, StateAction
from ppo_jax.types import PyTree

# Sizes of the example with which a policy is traced: N observations, sequences of T steps.
N, T = 3, 2
# Methods of a distribution that a rollout and the losses call.
DISTRIBUTION = ("noise", "sample_from", "sample", "log_prob", "entropy", "mode", "to_env")


def own_policy(name: str, observation_space: PyTree, action_space: Any, config: Any) -> Policy:
    """The policy that a name refers to, after a check.

    Args:
        name: reference to a Policy, or to a function
            (observation_space, action_space, config) -> Policy; or a name that an installed package
            registers (entry-point group `ppo_jax.policies`).
        observation_space, action_space: spaces of the environment.
        config: TrainConfig of the run.

    Raises:
        ConfigError: if the function or its result is not valid.
    """
    found = references.resolve(name, "policy")
    if isinstance(found, Policy):
        return _checked(name, found, observation_space, action_space, config=config)
    what = "a ppo_jax.networks.Policy, or a function (observation_space, action_space, config) -> "
    what += "Policy"
    if not callable(found):
        raise ConfigError(f"policy {name} is a {type(found).__name__}; it must be {what}")
    arguments = (observation_space, action_space, config)
    try:
        inspect.signature(found).bind(*arguments)
    except TypeError as error:
        raise ConfigError(f"policy {name} cannot be called: {error}; it must be {what}") from error
    except ValueError:
        pass  # a builtin function has no signature
    try:
        policy = found(*arguments)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"policy {name} raised {references.raised(error)}") from error
    if not isinstance(policy, Policy):
        raise ConfigError(
            f"policy {name} returned an object of type {type(policy).__name__}; it must be {what}"
        )
    return _checked(name, policy, observation_space, action_space, config=config)


def has_memory(policy: Policy) -> bool:
    """Whether a policy is recurrent: its core contains arrays."""
    return bool(jax.tree.leaves(jax.eval_shape(lambda: policy.init_core(1))))


def _checked(
    name: str, policy: Policy, observation_space: PyTree, action_space: Any, *, config: Any
) -> Policy:
    """The policy, after its functions were traced with N observations without computing."""
    doing = ["init(key, obs)"]

    def example(space: Any, *lead: int) -> jax.Array:
        return jnp.zeros((*lead, *space.shape), space.dtype)

    def try_all(key: jax.Array) -> None:
        obs = jax.tree.map(lambda s: example(s, N), observation_space)
        params = policy.init(key, obs)
        doing[0] = "init_core(num_envs)"
        core = policy.init_core(N)
        doing[0] = "act(params, core, obs, start)"
        after, dist, value = _acted(policy, params, core, obs)
        _same(core, after)
        _check_value(value, (N,))
        doing[0] = "the distribution of act"
        action = _check_distribution(dist, key, (N,), action_space)
        doing[0] = f"act without the entry {spaces.CRITIC_OBSERVATION}, as in a deployed agent,"
        _acted(policy, params, core, spaces.without_critic_observation(obs))
        doing[0] = "apply(params, inputs)"
        inputs: Any = obs
        rows: tuple[int, ...] = (N,)
        if jax.tree.leaves(core):
            inputs, rows = _sequences(core, observation_space, example), (N, T)
        elif policy.critic == "q":
            inputs = StateAction(obs, action)
        outputs = policy.apply(params, inputs)
        _expect(isinstance(outputs, tuple) and len(outputs) == 2, "(dist, value)", outputs)
        _check_value(outputs[1], rows)
        doing[0] = "the distribution of apply"
        _check_distribution(outputs[0], key, rows, action_space)
        if policy.value is not None:
            doing[0] = "value(params, inputs)"
            _check_value(policy.value(params, inputs), rows)

    try:
        jax.eval_shape(try_all, jax.random.key(0))
    except _Unfit as error:
        raise ConfigError(
            f"policy {name}, given {N} observations: {doing[0]} {error} (ppo_jax.networks.Policy)"
        ) from error
    except Exception as error:
        raise ConfigError(
            f"policy {name}, given {N} observations: {doing[0]} raised {references.raised(error)}"
        ) from error
    return policy


class _Unfit(Exception):
    """A description of the result, and of the expected one."""


def _acted(policy: Policy, params: PyTree, core: PyTree, obs: PyTree) -> tuple[Any, Any, Any]:
    """The three results of `act` for N observations."""
    result = policy.act(params, core, obs, jnp.ones(N, bool))
    _expect(isinstance(result, tuple) and len(result) == 3, "(core, dist, value)", result)
    return result


def _expect(holds: bool, wanted: str, found: Any) -> None:
    if not holds:
        shown = f"a {type(found).__name__}"
        shown += f" of {len(found)}" if isinstance(found, tuple) else ""
        raise _Unfit(f"returned {shown}; it must return {wanted}")


def _same(before: PyTree, after: PyTree) -> None:
    shapes = [
        jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), t) for t in (before, after)
    ]
    if shapes[0] != shapes[1]:
        raise _Unfit(f"returned a core of {shapes[1]}, but init_core returns {shapes[0]}")


def _check_value(value: Any, shape: tuple[int, ...]) -> None:
    found = getattr(value, "shape", type(value).__name__)
    if found != shape or not jnp.issubdtype(value.dtype, jnp.floating):
        raise _Unfit(
            f"returned a value of shape {found}{f' {value.dtype}' if found == shape else ''}; it "
            f"must be float32 of shape {shape}, one number for each observation"
        )


def _check_distribution(dist: Any, key: jax.Array, shape: tuple[int, ...], actions: Any) -> Any:
    """A sample of a distribution, after its methods were traced."""
    missing = [method for method in DISTRIBUTION if not hasattr(dist, method)]
    if missing:
        raise _Unfit(
            f"is a {type(dist).__name__} without {', '.join(missing)}; use a distribution of "
            "ppo_jax.distributions"
        )
    leaves = jax.tree.leaves(dist)
    if not leaves or any(not hasattr(x, "shape") for x in leaves):
        raise _Unfit(f"is a {type(dist).__name__}, which is not a pytree of arrays")
    action = dist.sample(key)
    for method, found in (("log_prob", dist.log_prob(action)), ("entropy", dist.entropy())):
        if found.shape != shape:
            raise _Unfit(f"has a {method} of shape {found.shape}; it must be {shape}")
    for found in (dist.to_env(action), dist.to_env(dist.mode())):
        size = jnp.zeros((*shape, *actions.shape)).size
        if found.shape[: len(shape)] != shape or found.size != size:
            raise _Unfit(
                f"has actions of shape {found.shape}; for {spaces.describe(actions)} it must be "
                f"{(*shape, *actions.shape)}"
            )
    return action


def _sequences(core: PyTree, observation_space: PyTree, example: Any) -> SequenceInputs:
    obs = jax.tree.map(lambda s: example(s, N, T), observation_space)
    return SequenceInputs(obs, jnp.ones((N, T), bool), jax.tree.map(lambda x: x[:, None], core))
