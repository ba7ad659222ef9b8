"""The actor-critic with memory, for environments that do not show everything at every step."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ppo_jax.distributions import Distribution
from ppo_jax.envs import spaces
from ppo_jax.networks.features import batch_shape, preprocess
from ppo_jax.networks.heads import Actor, Critic
from ppo_jax.networks.memory import CELLS, Memory
from ppo_jax.networks.policy import Policy, SequenceInputs, layers_of, masked, run
from ppo_jax.types import Params, PyTree


class Remembering(nn.Module):
    """Layers, then memory, then a head: (core, features, start) -> (core, what the head says).

    Attributes:
        body: of each step alone.
        memory: over the steps.
        head: Actor, Critic, or None for the features themselves.
    """

    body: nn.Module
    memory: Memory
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
    hidden: Sequence[int] = (64,),
    activation: str = "tanh",
    cnn: Sequence[tuple[int, int, int]] = (),
    shared_torso: bool = False,
    squash: bool = False,
    log_std_init: float = 0.0,
    frame_mix: str = "none",
    critic: str = "v",
    map_actions: bool = False,
    dtype: str = "float32",
) -> Policy:
    """`make_policy` with a recurrent cell between the layers and the heads.

    Actor and critic remember separately, unless they share a torso; the core is a dict of both.
    Every episode starts with an empty memory, inside the loop over steps, so that a rollout which
    cuts across episodes is learned from exactly as it was acted.

    Args:
        memory: name in CELLS.
        memory_size: H.
        others: as for `make_policy`; critic is "v" or "none".

    Returns:
        Policy whose `apply` takes SequenceInputs [M, T] and whose `value` is None: what the critic
        says needs its memory, and `act` has it.

    Raises:
        ValueError: a critic of actions, or convolutions where there is not exactly one image.
    """
    if critic == "q":
        raise ValueError("a critic q(s, a) has no memory; use memory='none'")
    if cnn:
        spaces.image(observation_space)
    see = functools.partial(preprocess, observation_space, image=bool(cnn), frame_mix=frame_mix)

    def remembering(head: nn.Module | None) -> Remembering:
        body = layers_of(tuple(cnn), tuple(hidden), activation, dtype=dtype)
        return Remembering(body, Memory(memory, memory_size), head)

    modules: dict = {"actor": Actor(None, action_space, squash, log_std_init, map_actions)}
    modules |= {} if critic == "none" else {"critic": Critic(None)}
    heads = {"torso": None} if shared_torso else modules
    remembers = {k: remembering(head) for k, head in heads.items()}

    def unroll(params: Params, core: PyTree, obs: PyTree, start: jax.Array) -> Any:
        """(core, dist, value), all [M, T]."""
        x = see(obs)
        results = {k: run(m, params[k], core[k], x, start) for k, m in remembers.items()}
        core = {k: c for k, (c, _) in results.items()}
        said = {k: y for k, (_, y) in results.items()}
        if shared_torso:
            said = {k: run(m, params[k], said["torso"]) for k, m in modules.items()}
        value = said["critic"] if "critic" in said else jnp.zeros(start.shape)
        return core, masked(said["actor"], obs), value

    def init(key: jax.Array, obs: PyTree) -> Params:
        obs = jax.tree.map(lambda x: x[:, None], obs)
        start = jnp.ones(batch_shape(observation_space, obs), bool)
        core = init_core(start.shape[0])
        return _init(key, (core, see(obs), start), remembers, modules if shared_torso else {})

    def init_core(num_envs: int) -> PyTree:
        return {k: CELLS[memory].zeros((num_envs, memory_size)) for k in remembers}

    def act(params: Params, core: PyTree, obs: PyTree, start: jax.Array) -> Any:
        one = jax.tree.map(lambda x: x[:, None], (obs, start))
        core, dist, value = unroll(params, core, *one)
        return core, *jax.tree.map(lambda x: x[:, 0], (dist, value))

    def apply(params: Params, inputs: SequenceInputs) -> tuple[Distribution, jax.Array]:
        core = jax.tree.map(lambda x: x[:, 0], inputs.core)
        return unroll(params, core, inputs.obs, inputs.start)[1:]

    return Policy(init, init_core, act, apply, None, critic)


def _init(
    key: jax.Array,
    inputs: tuple[PyTree, PyTree, jax.Array],
    remembers: dict[str, Remembering],
    heads: dict[str, nn.Module],
) -> Params:
    """Fresh parameters of every module.

    Args:
        key: consumed.
        inputs: (core, features, start) of one step.
        remembers: by name.
        heads: by name, on what "torso" remembers.
    """
    torso_key, actor_key, critic_key = jax.random.split(key, 3)
    keys = {"torso": torso_key, "actor": actor_key, "critic": critic_key}
    core, x, start = inputs
    params = {k: m.init(keys[k], core[k], x, start)["params"] for k, m in remembers.items()}
    if heads:
        y = run(remembers["torso"], params["torso"], core["torso"], x, start)[1]
        params |= {k: m.init(keys[k], y)["params"] for k, m in heads.items()}
    return params
