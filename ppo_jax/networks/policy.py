"""Policy, the interface of every network: observation -> (action distribution, value)."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from ppo_jax.distributions import Distribution
from ppo_jax.envs import spaces
from ppo_jax.networks.convolutions import CNN, ConvLayer
from ppo_jax.networks.features import Features, batch_shape, preprocess
from ppo_jax.networks.heads import SCALAR, Actor, Critic, QCritic, ValueHead
from ppo_jax.networks.layers import Layers
from ppo_jax.types import Params, PyTree
from ppo_jax.value_distributions import value_of


@struct.dataclass
class StateAction:
    """The inputs of a policy with a Q-function as critic.

    Attributes:
        obs: [..., *observation shape] observations.
        action: [..., *action shape] actions.
    """

    obs: PyTree
    action: PyTree


@struct.dataclass
class SequenceInputs:
    """The inputs of a recurrent policy: M sequences of T successive steps.

    In a Trajectory the first two axes of all leaves are exchanged, [T, M] and [1, M].

    Attributes:
        obs: [M, T, ...] observations.
        start: [M, T] bool, whether the step is the first one of an episode.
        core: [M, 1, ...] recurrent state before the first step.
    """

    obs: PyTree
    start: jax.Array
    core: PyTree


class Policy(NamedTuple):
    """A policy and its critic as pure functions.

    init(key, obs) -> params with top-level keys actor, critic (and torso if it is shared)
    init_core(num_envs) -> core, the recurrent state between steps; () for a feed-forward policy
    act(params, core, obs [N, ...], start [N]) -> (core, dist [N], value [N]) for one step
    apply(params, inputs) -> (dist, value) for any leading shape, as the losses call it; the value
        may be a distribution of values (`value_distributions`). The inputs
        of a recurrent policy are SequenceInputs, and its samples are whole sequences
        (`rollout.sequences`).
    value(params, inputs) -> value for any leading shape; None if it needs a recurrent state or the
        intermediate results of `act`. If it is given, a rollout evaluates all states at once.
    critic: "v" for V(s); "q" for q(s, a), whose inputs are a StateAction, and for which `act`
        returns the value 0, because the action is unknown; "none" for the value 0 without
        parameters.
    """

    init: Callable[[jax.Array, PyTree], Params]
    init_core: Callable[[int], PyTree]
    act: Callable[[Params, PyTree, PyTree, jax.Array], tuple[PyTree, Distribution, jax.Array]]
    apply: Callable[[Params, PyTree], tuple[Distribution, jax.Array]]
    value: Callable[[Params, PyTree], jax.Array] | None = None
    critic: str = "v"


def make_policy(
    observation_space: PyTree,
    action_space: spaces.Space,
    *,
    hidden: Sequence[int] = (64, 64),
    activation: str = "tanh",
    norm: str = "none",
    residual: bool = False,
    cnn: Sequence[ConvLayer] = (),
    shared_torso: bool = False,
    squash: bool = False,
    log_std_init: float = 0.0,
    critic: str = "v",
    value_head: ValueHead = SCALAR,
    frame_mix: str = "none",
    map_actions: bool = False,
    dtype: str = "float32",
) -> Policy:
    """The feed-forward actor-critic for an observation space and an action space.

    Args:
        observation_space: Discrete, MultiDiscrete, MultiBinary, Box, or a pytree of them. An entry
            `action_mask` at the top level restricts the actions and is not an input of the network.
        action_space: Discrete, MultiDiscrete, MultiBinary or Box.
        hidden: widths of the fully connected layers.
        activation: name in ACTIVATIONS.
        norm: name in NORMS, the normalisation before the activations.
        residual: whether the hidden layers are residual blocks (`ResidualMLP`), all of one width.
        cnn: (features, kernel, stride) of convolutions before the first hidden layer, or empty.
            Their input is the only leaf of shape [H, W, C]; other leaves are appended to their
            output.
        shared_torso: whether actor and critic share their hidden layers.
        squash: whether the policy for Box actions is a tanh-squashed Gaussian.
        log_std_init: initial logarithm of the standard deviation of a Gaussian, log σ.
        critic: "v", "q" or "none", as in Policy.
        value_head: output of the critic; a distribution of values is the value that `apply`
            returns, while `act` and `value` return its mean.
        frame_mix: name in FRAME_MIXES, for images with that number of frames.
        map_actions: whether a Gaussian that would start outside the bounds is moved
            (`spaces.action_frame`).
        dtype: name in DTYPES, the type in which the hidden layers compute.

    Returns:
        Feed-forward Policy, whose core is ().

    Raises:
        ValueError: if the critic is "q" and the torso is shared, or there are convolutions but not
            exactly one image.
    """
    if critic == "q" and shared_torso:
        raise ValueError("a Q-function cannot share a torso with the actor; use shared_torso=False")
    if image := bool(cnn):
        spaces.image(observation_space)
    layers = Layers(tuple(hidden), activation, dtype, norm, residual)
    body = functools.partial(layers_of, tuple(cnn), layers)
    torso = body()
    own = (lambda: None) if shared_torso else body
    actor = Actor(own(), action_space, squash, log_std_init, map_actions)
    critic_module: nn.Module = Critic(own(), value_head)
    if critic == "q":
        q_critic = _q_critic(cnn, layers, action_space)
        critic_module = q_critic.clone(squash=squash, value_head=value_head)
    see = functools.partial(preprocess, observation_space, image=image, frame_mix=frame_mix)

    def features(params: Params, obs: PyTree) -> jax.Array | Features:
        x = see(obs)
        return run(torso, params["torso"], x) if shared_torso else x

    def distribution(params: Params, obs: PyTree, x: Any) -> Distribution:
        return masked(run(actor, params["actor"], x), obs)

    def evaluate(params: Params, obs: PyTree, x: Any, *action: jax.Array) -> jax.Array:
        if critic == "none" or (critic == "q" and not action):
            return jnp.zeros(batch_shape(observation_space, obs))
        return run(critic_module, params["critic"], x, *action)

    def init(key: jax.Array, obs: PyTree) -> Params:
        modules = {"torso": torso} if shared_torso else {}
        modules |= {"actor": actor} | ({} if critic == "none" else {"critic": critic_module})
        return _init(key, see(obs), modules, of_actions=critic == "q")

    def apply(params: Params, inputs: PyTree) -> tuple[Distribution, jax.Array]:
        obs, *action = (inputs.obs, inputs.action) if critic == "q" else (inputs,)
        x = features(params, obs)
        return distribution(params, obs, x), evaluate(params, obs, x, *action)

    def act(params: Params, core: PyTree, obs: PyTree, start: jax.Array) -> Any:
        x = features(params, obs)
        return core, distribution(params, obs, x), value_of(evaluate(params, obs, x))

    def value(params: Params, inputs: PyTree) -> jax.Array:
        return value_of(apply(params, inputs)[1])

    return Policy(init, lambda num_envs: (), act, apply, None if shared_torso else value, critic)


def _q_critic(cnn: Sequence[ConvLayer], layers: Layers, action_space: spaces.Space) -> QCritic:
    """A Q-function as critic, with convolutions if there are any."""
    front = CNN(tuple(cnn), layers.activation, layers.dtype) if cnn else None
    return QCritic(front, layers.module(), spaces.drawn(action_space))


def _init(key: jax.Array, x: Any, modules: dict[str, nn.Module], of_actions: bool) -> Params:
    """Initialise the parameters of every module.

    Args:
        key: PRNG key.
        x: features of observations.
        modules: actor and, if they exist, torso and critic.
        of_actions: whether the critic also takes an action.
    """
    torso_key, actor_key, critic_key = jax.random.split(key, 3)
    params: dict[str, Any] = {}
    if "torso" in modules:
        params["torso"] = modules["torso"].init(torso_key, x).get("params", {})
        x = run(modules["torso"], params["torso"], x)
    dist, variables = modules["actor"].init_with_output(actor_key, x)
    params["actor"] = variables["params"]
    if "critic" in modules:
        action = (dist.mode(),) if of_actions else ()
        params["critic"] = modules["critic"].init(critic_key, x, *action)["params"]
    return params


def layers_of(cnn: tuple[ConvLayer, ...], layers: Layers) -> nn.Module:
    """Fully connected layers, after convolutions if there are any."""
    if not cnn:
        return layers.module()
    return nn.Sequential([CNN(cnn, layers.activation, layers.dtype), layers.module()])


def masked(dist: Any, obs: PyTree) -> Any:
    """The distribution restricted to the legal actions.

    Args:
        dist: distribution over all actions.
        obs: observation, whose entry `action_mask`, if there is one, holds the legal actions.
    """
    legal = spaces.action_mask(obs)
    return dist if legal is None else dist.masked(legal)


def run(module: nn.Module, params: Params, *inputs: PyTree) -> Any:
    """Apply a module to its parameters."""
    return module.apply({"params": params}, *inputs)
