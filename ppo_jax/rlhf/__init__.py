"""PPO on language models: a response is a trajectory and each of its tokens is an action.

`python -m ppo_jax.rlhf` runs all stages on a small example; docs/rlhf.md describes the commands and
the modules.
"""

from typing import TYPE_CHECKING

from ppo_jax.lazy import attach

if TYPE_CHECKING:
    from ppo_jax.rlhf.algorithms import ALGORITHMS
    from ppo_jax.rlhf.decoder import Decoder, DecoderConfig, small
    from ppo_jax.rlhf.generate import Generation, generate
    from ppo_jax.rlhf.hf_io import load_model, save_model
    from ppo_jax.rlhf.hf_values import ModelError
    from ppo_jax.rlhf.rewards import (
        adaptive_kl,
        kl_estimate,
        preference_loss,
        token_rewards,
        whiten,
    )

__all__ = [
    "ALGORITHMS",
    "Decoder",
    "DecoderConfig",
    "Generation",
    "ModelError",
    "adaptive_kl",
    "generate",
    "kl_estimate",
    "load_model",
    "preference_loss",
    "save_model",
    "small",
    "token_rewards",
    "whiten",
]

# Every public name is imported when it is first used, so that the command line need not import JAX.
__getattr__, __dir__ = attach(
    __name__,
    {
        "algorithms": ("ALGORITHMS",),
        "decoder": ("Decoder", "DecoderConfig", "small"),
        "generate": ("Generation", "generate"),  # a module that can be called
        "hf_io": ("load_model", "save_model"),
        "hf_values": ("ModelError",),
        "rewards": ("adaptive_kl", "kl_estimate", "preference_loss", "token_rewards", "whiten"),
    },
)
