"""Policy, the one face of every network: observation -> (distribution, value)."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from ppo_jax.distributions import Distribution
from ppo_jax.envs import spaces
from ppo_jax.networks.features import Features, batch_shape, preprocess
from ppo_jax.networks.heads import Actor, Critic, QCritic
from ppo_jax.networks.layers import CNN, MLP
from ppo_jax.types import Params, PyTree


@struct.dataclass
class StateAction:
    """The inputs of a policy whose critic judges actions.

    Attributes:
        obs: [..., *observation shape].
        action: [..., *action shape].
    """

    obs: PyTree
    action: PyTree


@struct.dataclass
class SequenceInputs:
    """The inputs of a policy with memory: M stretches of T successive steps.

    In a Trajectory the first two axes of all leaves are the other way round, [T, M] and [1, M].

    Attributes:
        obs: [M, T, ...].
        start: [M, T] bool, the step is the first of an episode.
        core: [M, 1, ...] the memory before the first of the steps.
    """

    obs: PyTree
    start: jax.Array
    core: PyTree


class Policy(NamedTuple):
    """A policy and its critic as pure functions.

    init(key, obs) -> params with top-level keys actor, critic (and torso when shared)
    init_core(num_envs) -> core, the memory between steps; () without one
    act(params, core, obs [N, ...], start [N]) -> (core, dist [N], value [N]), one step
    apply(params, inputs) -> (dist, value), any leading shape: what the losses call. The inputs of
        a policy with memory are SequenceInputs, and the rows it learns from whole sequences
        (`rollout.sequences`).
    value(params, inputs) -> value, any leading shape; None unless it needs neither memory nor
        what `act` computes anyway. Where it is there, a rollout values its states all at once.
    critic: "v": V(s). "q": q(s, a), whose inputs are a StateAction, and of which `act`, not
        knowing the action, knows 0. "none": 0, without parameters.
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
    cnn: Sequence[tuple[int, int, int]] = (),
    shared_torso: bool = False,
    squash: bool = False,
    log_std_init: float = 0.0,
    critic: str = "v",
    frame_mix: str = "none",
    map_actions: bool = False,
    dtype: str = "float32",
) -> Policy:
    """The feed-forward actor-critic for a pair of spaces.

    Args:
        observation_space: Discrete, MultiDiscrete, MultiBinary, Box, or a pytree of them. An entry
            `action_mask` at its top level restricts the actions and is not seen by the networks.
        action_space: Discrete, MultiDiscrete, MultiBinary, Box.
        hidden: widths of the fully connected layers.
        activation: name in ACTIVATIONS.
        cnn: (features, kernel, stride) of convolutions before the first hidden layer, or empty.
            They see the one leaf with a shape [H, W, C]; the others join behind them.
        shared_torso: one body under both heads instead of one each.
        squash: tanh-squashed Gaussian for Box actions.
        log_std_init: log σ of a Gaussian at the start.
        critic: "v", "q" or "none", as in Policy.
        frame_mix: name in FRAME_MIXES, of images of as many frames.
        map_actions: move a Gaussian that would start outside the bounds (`spaces.action_frame`).
        dtype: name in DTYPES, which the layers below the heads compute in.

    Returns:
        Policy without memory: its core is ().

    Raises:
        ValueError: a critic of actions on a torso shared with the actor, who does not know them; or
            convolutions where there is not exactly one image.
    """
    if critic == "q" and shared_torso:
        raise ValueError("a critic q(s, a) shares no torso with the actor; use shared_torso=False")
    if image := bool(cnn):
        spaces.image(observation_space)

    body = functools.partial(layers_of, tuple(cnn), tuple(hidden), activation, dtype=dtype)
    torso = body()
    own = (lambda: None) if shared_torso else body
    actor = Actor(own(), action_space, squash, log_std_init, map_actions)
    judge: nn.Module = Critic(own())
    if critic == "q":
        judge = _q_critic(cnn, hidden, action_space, activation=activation, dtype=dtype)

    see = functools.partial(preprocess, observation_space, image=image, frame_mix=frame_mix)

    def features(params: Params, obs: PyTree) -> jax.Array | Features:
        x = see(obs)
        return run(torso, params["torso"], x) if shared_torso else x

    def distribution(params: Params, obs: PyTree, x: Any) -> Distribution:
        return masked(run(actor, params["actor"], x), obs)

    def evaluate(params: Params, obs: PyTree, x: Any, *action: jax.Array) -> jax.Array:
        if critic == "none" or (critic == "q" and not action):
            return jnp.zeros(batch_shape(observation_space, obs))
        return run(judge, params["critic"], x, *action)

    def init(key: jax.Array, obs: PyTree) -> Params:
        modules = {"torso": torso} if shared_torso else {}
        modules |= {"actor": actor} | ({} if critic == "none" else {"critic": judge})
        return _init(key, see(obs), modules, of_actions=critic == "q")

    def apply(params: Params, inputs: PyTree) -> tuple[Distribution, jax.Array]:
        obs, *action = (inputs.obs, inputs.action) if critic == "q" else (inputs,)
        x = features(params, obs)
        return distribution(params, obs, x), evaluate(params, obs, x, *action)

    def act(params: Params, core: PyTree, obs: PyTree, start: jax.Array) -> Any:
        x = features(params, obs)
        return core, distribution(params, obs, x), evaluate(params, obs, x)

    def value(params: Params, inputs: PyTree) -> jax.Array:
        return apply(params, inputs)[1]

    return Policy(init, lambda num_envs: (), act, apply, None if shared_torso else value, critic)


def _q_critic(
    cnn: Sequence[tuple[int, int, int]],
    hidden: Sequence[int],
    action_space: spaces.Space,
    *,
    activation: str,
    dtype: str,
) -> QCritic:
    """A critic of actions, with convolutions if there are any."""
    front = CNN(tuple(cnn), activation, dtype) if cnn else None
    return QCritic(front, MLP(tuple(hidden), activation, dtype), spaces.drawn(action_space))


def _init(key: jax.Array, x: Any, modules: dict[str, nn.Module], of_actions: bool) -> Params:
    """Fresh parameters of every module.

    Args:
        key: consumed.
        x: features of observations.
        modules: actor, and torso and critic where there are such.
        of_actions: whether the critic takes an action, too.
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


def layers_of(
    cnn: tuple[tuple[int, int, int], ...],
    hidden: tuple[int, ...],
    activation: str,
    *,
    dtype: str = "float32",
) -> nn.Module:
    """Convolutions, if there are any, and fully connected layers."""
    layers = MLP(hidden, activation, dtype)
    return nn.Sequential([CNN(cnn, activation, dtype), layers]) if cnn else layers


def masked(dist: Any, obs: PyTree) -> Any:
    """The distribution, given that the action is among those which the observation calls legal.

    Args:
        dist: of the actions, whatever is legal.
        obs: whose entry `action_mask`, if there is one, says what is.
    """
    legal = spaces.action_mask(obs)
    return dist if legal is None else dist.masked(legal)


def run(module: nn.Module, params: Params, *inputs: PyTree) -> Any:
    """Apply a module to its parameters."""
    return module.apply({"params": params}, *inputs)
