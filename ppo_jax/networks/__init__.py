"""Networks, and the Policy that hides them: observation -> (distribution, value)."""

from ppo_jax.networks.features import preprocess
from ppo_jax.networks.heads import Actor, Critic, QCritic, encode
from ppo_jax.networks.layers import (
    ACTIVATIONS,
    CNN,
    CONVOLUTIONS,
    FRAME_MIXES,
    HIDDEN_GAIN,
    MLP,
    Conv,
    conv_by_patches,
    conv_by_xla,
    head,
    mix_frames,
    orthogonal,
)
from ppo_jax.networks.policy import Policy, StateAction, make_policy, run

__all__ = [
    "ACTIVATIONS",
    "CNN",
    "CONVOLUTIONS",
    "FRAME_MIXES",
    "HIDDEN_GAIN",
    "MLP",
    "Actor",
    "Conv",
    "Critic",
    "Policy",
    "QCritic",
    "StateAction",
    "conv_by_patches",
    "conv_by_xla",
    "encode",
    "head",
    "make_policy",
    "mix_frames",
    "orthogonal",
    "preprocess",
    "run",
]
