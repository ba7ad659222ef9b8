"""An environment, a network, an algorithm and a callback outside the package.

    cd examples
    python -m ppo_jax.train --env own_parts:Corridor --policy own_parts:layer_norm \
        --algorithm own_parts --callback own_parts:report --run-dir ../runs/own

Everything that works for the parts of the package works for these: see README.md in this folder.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ppo_jax import losses
from ppo_jax.algorithms import ppo
from ppo_jax.config.options import option
from ppo_jax.distributions import Categorical
from ppo_jax.envs import spaces
from ppo_jax.networks import Policy


class Corridor:
    """Walk to the right end of a corridor: reward 1 for reaching it, and a cost of 0.01 per step.

    Args:
        length: number of cells of the corridor.
    """

    name, params = "Corridor", ()
    action_space = spaces.Discrete(2)

    def __init__(self, length=8):
        self.length, self.time_limit = length, 4 * length
        self.observation_space = spaces.Box(0, 1, (length,))

    def reset(self, key, params):
        """Start at the left end."""
        state = (jnp.int32(0), jnp.int32(0))
        return self._observe(state), state

    def step(self, key, state, action, params):
        """Move one cell to the left (action 0) or to the right (action 1)."""
        place, time = state
        place = jnp.clip(place + 2 * action - 1, 0, self.length - 1)
        state = (place, time + 1)
        terminated = place == self.length - 1
        truncated = (time + 1 >= self.time_limit) & ~terminated
        return self._observe(state), state, terminated - 0.01, terminated, truncated, {}

    def _observe(self, state):
        return jax.nn.one_hot(state[0], self.length)


class Body(nn.Module):
    """Dense layers, each followed by layer normalisation and ReLU, then a linear layer."""

    hidden: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, x):
        """[..., features] -> [..., outputs]."""
        for width in self.hidden:
            x = nn.relu(nn.LayerNorm()(nn.Dense(width)(x)))
        return nn.Dense(self.outputs, kernel_init=nn.initializers.orthogonal(0.01))(x)


def layer_norm(observation_space, action_space, config):
    """A Policy: actor and critic with layer normalisation, for Discrete actions."""
    actor = Body(config.hidden, action_space.n)
    critic = Body(config.hidden, 1)

    def init(key, obs):
        actor_key, critic_key = jax.random.split(key)
        return {"actor": actor.init(actor_key, obs), "critic": critic.init(critic_key, obs)}

    def value(params, obs):
        return critic.apply(params["critic"], obs)[..., 0]

    def apply(params, obs):
        return Categorical(actor.apply(params["actor"], obs)), value(params, obs)

    def act(params, core, obs, start):
        return core, *apply(params, obs)

    return Policy(init, lambda num_envs: (), act, apply, value)


@dataclasses.dataclass(frozen=True)
class Config(ppo.Config):
    """PPO's hyperparameters and one more; each is an option, and a sweep can vary it."""

    advantage_clip: float = option(
        2.0, "largest magnitude of a normalised advantage", low=0, open_low=True
    )


def make(policy, config, optimizer=None):
    """PPO with advantages that are normalised once per rollout and then clipped."""
    base = ppo.make(policy, dataclasses.replace(config, normalize_advantage=False), optimizer)

    def estimate(trajectory):
        batch = base.estimate(trajectory)
        advantage = losses.normalize(batch.advantage, batch.weight)
        clipped = advantage.clip(-config.advantage_clip, config.advantage_clip)
        return dataclasses.replace(batch, advantage=clipped)

    return base._replace(estimate=estimate)


def report(progress, state):
    """A callback: print the mean return between two chunks. Returning True would end the run."""
    returns = [row["episode_return"] for row in progress.rows if row["episodes"]]
    if returns:
        print(f"{progress.step:>8,} environment steps: {sum(returns) / len(returns):.3f}")
    return False
