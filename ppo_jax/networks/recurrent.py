"""Recurrent actor-critic networks, for partially observable environments."""

from collections.abc import Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ppo_jax.distributions import Distribution
from ppo_jax.envs import spaces
from ppo_jax.networks.continuous import ContinuousHead
from ppo_jax.networks.convolutions import ConvLayer
from ppo_jax.networks.features import Inputs, batch_shape, inputs_of
from ppo_jax.networks.heads import SCALAR, Actor, Critic, ValueHead
from ppo_jax.networks.layers import Layers
from ppo_jax.networks.memory import MemoryLayers
from ppo_jax.networks.policy import Policy, SequenceInputs, layers_of, masked, run
from ppo_jax.types import Params, PyTree
from ppo_jax.value_distributions import value_of


class RecurrentNetwork(nn.Module):
    """Layers, a memory and a head: (core, features, start) -> (core, output of the head).

    Attributes:
        body: layers applied to each step separately.
        memory: module of `MemoryLayers`, applied over the steps.
        head: Actor or Critic, or None to return the features.
    """

    body: nn.Module
    memory: nn.Module
    head: nn.Module | None

    @nn.compact
    def __call__(self, core: PyTree, x: jax.Array, start: jax.Array) -> tuple[PyTree, Any]:
        core, y = self.memory(core, self.body(x), start)
        return core, y if self.head is None else self.head(y)


def make_recurrent_policy(
    observation_space: PyTree,
    action_space: spaces.Space,
    *,
    memory: str,
    memory_size: int = 64,
    memory_layers: int = 1,
    memory_heads: int = 4,
    memory_length: int = 32,
    hidden: Sequence[int] = (64,),
    activation: str = "tanh",
    norm: str = "none",
    residual: bool = False,
    cnn: Sequence[ConvLayer] = (),
    shared_torso: bool = False,
    action_distribution: str = "gaussian",
    squash: bool = False,
    log_std_init: float = 0.0,
    noise_steps: int | None = None,
    frame_mix: str = "none",
    critic: str = "v",
    value_head: ValueHead = SCALAR,
    map_actions: bool = False,
    dtype: str = "float32",
) -> Policy:
    """`make_policy` with a memory between the layers and the heads.

    Actor and critic have separate recurrent states, unless they share a torso; the core is a dict
    of them. The recurrent state is reset at the start of every episode, also inside a rollout.
    Therefore the losses recompute the recurrent states of the rollout, even if it contains several
    episodes.

    Args:
        observation_space, action_space: the same as for `make_policy`.
        hidden, activation, norm, residual, cnn, shared_torso: the same as for `make_policy`.
        action_distribution, squash, log_std_init, noise_steps: the same as for `make_policy`.
        frame_mix, map_actions, dtype: the same as for `make_policy`.
        memory: name in MEMORIES except none.
        memory_size, memory_layers, memory_heads, memory_length: the attributes size, layers, heads
            and length of MemoryLayers.
        critic: "v" or "none".
        value_head: the same as for `make_policy`.

    Returns:
        Policy whose `apply` takes SequenceInputs [M, T]. Its `value` is None, because the critic
        needs its recurrent state, which `act` has.

    Raises:
        ValueError: if the critic is "q", there are convolutions but not exactly one image, or the
            torso is shared although the critic has an observation of its own.
    """
    if critic == "q":
        raise ValueError("a Q-function cannot be recurrent; use memory='none'")
    seen = inputs_of(observation_space, bool(cnn), frame_mix, shared_torso)
    body = layers_of(tuple(cnn), Layers(tuple(hidden), activation, dtype, norm, residual))
    layers = MemoryLayers(memory, memory_size, memory_layers, memory_heads, memory_length).module()
    continuous = ContinuousHead(action_distribution, squash, log_std_init, map_actions, noise_steps)
    modules: dict = {"actor": Actor(None, action_space, continuous)}
    modules |= {} if critic == "none" else {"critic": Critic(None, value_head)}
    heads = {"torso": None} if shared_torso else modules
    networks = {k: RecurrentNetwork(body, layers, head) for k, head in heads.items()}

    def unroll(params: Params, core: PyTree, obs: PyTree, start: jax.Array) -> Any:
        """(core, dist, value) with batch shape [M, T]."""
        x = _features(seen, networks, obs)
        results = {k: run(networks[k], params[k], core[k], x[k], start) for k in x}
        core = core | {k: c for k, (c, _) in results.items()}
        outputs = {k: y for k, (_, y) in results.items()}
        if shared_torso:
            outputs = {k: run(m, params[k], outputs["torso"]) for k, m in modules.items()}
        value = outputs["critic"] if "critic" in outputs else jnp.zeros(start.shape)
        return core, masked(outputs["actor"], obs), value

    def init(key: jax.Array, obs: PyTree) -> Params:
        obs = jax.tree.map(lambda x: x[:, None], obs)
        start = jnp.ones(batch_shape(observation_space, obs), bool)
        inputs = (init_core(start.shape[0]), _features(seen, networks, obs), start)
        return _init(key, inputs, networks, modules if shared_torso else {})

    def init_core(num_envs: int) -> PyTree:
        return {k: layers.zeros(num_envs) for k in networks}

    def act(params: Params, core: PyTree, obs: PyTree, start: jax.Array) -> Any:
        one = jax.tree.map(lambda x: x[:, None], (obs, start))
        core, dist, value = unroll(params, core, *one)
        return core, *jax.tree.map(lambda x: x[:, 0], (dist, value_of(value)))

    def apply(params: Params, inputs: SequenceInputs) -> tuple[Distribution, jax.Array]:
        core = jax.tree.map(lambda x: x[:, 0], inputs.core)
        return unroll(params, core, inputs.obs, inputs.start)[1:]

    init_noise = continuous.init_noise(action_space, memory_size)
    return Policy(init, init_core, act, apply, None, critic, init_noise)


def _features(seen: Inputs, networks: Iterable[str], obs: PyTree) -> dict[str, Any]:
    """The features that each network receives; if its entry is missing, the critic is left out.

    Args:
        seen: inputs of actor and critic.
        networks: names of the networks.
        obs: [M, T, ...] observations.
    """
    found = dict.fromkeys(networks, seen.of_actor(obs))
    if seen.lacks_critic(obs):
        found.pop("critic", None)
    if "critic" in found:
        found["critic"] = seen.of_critic(obs, found["critic"])
    return found


def _init(
    key: jax.Array,
    inputs: tuple[PyTree, PyTree, jax.Array],
    networks: dict[str, RecurrentNetwork],
    heads: dict[str, nn.Module],
) -> Params:
    """Initialise the parameters of every module.

    Args:
        key: PRNG key.
        inputs: (core, features, start) of one step, with features by the name of a module.
        networks: recurrent modules by name.
        heads: modules by name that take the output of "torso".
    """
    torso_key, actor_key, critic_key = jax.random.split(key, 3)
    keys = {"torso": torso_key, "actor": actor_key, "critic": critic_key}
    core, x, start = inputs
    params = {k: m.init(keys[k], core[k], x[k], start)["params"] for k, m in networks.items()}
    if heads:
        y = run(networks["torso"], params["torso"], core["torso"], x["torso"], start)[1]
        params |= {k: m.init(keys[k], y)["params"] for k, m in heads.items()}
    return params
