"""Policy, the one face of every network: observation -> (distribution, value)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from ppo_jax.distributions import Distribution
from ppo_jax.envs import spaces
from ppo_jax.networks.features import preprocess
from ppo_jax.networks.heads import Actor, Critic, QCritic
from ppo_jax.networks.layers import CNN, MLP, mix_frames
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


class Policy(NamedTuple):
    """A policy and its critic as pure functions.

    init(key, obs) -> params with top-level keys actor, critic (and torso when shared)
    init_core(num_envs) -> core, the memory between steps; () without one
    act(params, core, obs [N, ...], start [N]) -> (core, dist [N], value [N]), one step
    apply(params, inputs) -> (dist, value), any leading shape: what the losses call
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
    observation_space: spaces.Space,
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
) -> Policy:
    """The feed-forward actor-critic for a pair of spaces.

    Args:
        observation_space: Box (vector or image), Discrete.
        action_space: Discrete, MultiDiscrete, MultiBinary, Box.
        hidden: widths of the fully connected layers.
        activation: name in ACTIVATIONS.
        cnn: (features, kernel, stride) of convolutions before the first hidden layer, or empty.
        shared_torso: one body under both heads instead of one each.
        squash: tanh-squashed Gaussian for Box actions.
        log_std_init: log σ of a Gaussian at the start.
        critic: "v", "q" or "none", as in Policy.
        frame_mix: name in FRAME_MIXES, of images of as many frames.

    Returns:
        Policy without memory: its core is ().

    Raises:
        ValueError: a critic of actions on a torso shared with the actor, who does not know them.
    """
    if critic == "q" and shared_torso:
        raise ValueError("a critic q(s, a) shares no torso with the actor; use shared_torso=False")
    image = bool(cnn)

    def convolutions() -> nn.Module | None:
        return CNN(tuple(cnn), activation) if image else None

    def layers() -> nn.Module:
        return MLP(tuple(hidden), activation)

    def body() -> nn.Module:
        front = convolutions()
        return layers() if front is None else nn.Sequential([front, layers()])

    torso = body()
    actor = Actor(None if shared_torso else body(), action_space, squash, log_std_init)
    judge: nn.Module = Critic(None if shared_torso else body())
    if critic == "q":
        judge = QCritic(convolutions(), layers(), action_space)

    def inputs_of(obs: PyTree) -> jax.Array:
        return mix_frames(preprocess(observation_space, obs, image), frame_mix)

    def features(params: Params, obs: PyTree) -> jax.Array:
        x = inputs_of(obs)
        return run(torso, params["torso"], x) if shared_torso else x

    def evaluate(params: Params, x: jax.Array, *action: jax.Array) -> jax.Array:
        if critic == "none" or (critic == "q" and not action):
            return jnp.zeros(x.shape[: -3 if image and not shared_torso else -1])
        return run(judge, params["critic"], x, *action)

    def init(key: jax.Array, obs: PyTree) -> Params:
        torso_key, actor_key, critic_key = jax.random.split(key, 3)
        x = inputs_of(obs)
        params: dict[str, Any] = {}
        if shared_torso:
            params["torso"] = torso.init(torso_key, x).get("params", {})
            x = run(torso, params["torso"], x)
        dist, variables = actor.init_with_output(actor_key, x)
        params["actor"] = variables["params"]
        if critic != "none":
            action = (dist.mode(),) if critic == "q" else ()
            params["critic"] = judge.init(critic_key, x, *action)["params"]
        return params

    def apply(params: Params, inputs: PyTree) -> tuple[Distribution, jax.Array]:
        obs, *action = (inputs.obs, inputs.action) if critic == "q" else (inputs,)
        x = features(params, obs)
        return run(actor, params["actor"], x), evaluate(params, x, *action)

    def act(params: Params, core: PyTree, obs: PyTree, start: jax.Array) -> Any:
        x = features(params, obs)
        return core, run(actor, params["actor"], x), evaluate(params, x)

    def value(params: Params, inputs: PyTree) -> jax.Array:
        return apply(params, inputs)[1]

    return Policy(init, lambda num_envs: (), act, apply, None if shared_torso else value, critic)


def run(module: nn.Module, params: Params, *inputs: jax.Array) -> Any:
    """Apply a module to its parameters."""
    return module.apply({"params": params}, *inputs)
