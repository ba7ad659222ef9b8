"""The registry of algorithms: a name, and the module that has its Config and make."""

from types import ModuleType

from ppo_jax.algorithms import a2c, actor_critic, ppo, ppo_kl, reinforce, trpo

ALGORITHMS: dict[str, ModuleType] = {
    "reinforce": reinforce,
    "actor_critic": actor_critic,
    "a2c": a2c,
    "trpo": trpo,
    "ppo_kl": ppo_kl,
    "ppo": ppo,
}
