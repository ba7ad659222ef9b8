"""Networks, and the Policy that hides them: observation -> (distribution, value)."""

from ppo_jax.networks.features import Features, batch_shape, preprocess
from ppo_jax.networks.heads import Actor, Critic, QCritic, encode
from ppo_jax.networks.layers import (
    ACTIVATIONS,
    CNN,
    CONVOLUTIONS,
    HIDDEN_GAIN,
    MLP,
    Conv,
    conv_by_patches,
    conv_by_xla,
    head,
    orthogonal,
)
from ppo_jax.networks.policy import Policy, StateAction, make_policy, masked, run

__all__ = [
    "ACTIVATIONS",
    "CNN",
    "CONVOLUTIONS",
    "HIDDEN_GAIN",
    "MLP",
    "Actor",
    "Conv",
    "Critic",
    "Features",
    "Policy",
    "QCritic",
    "StateAction",
    "batch_shape",
    "conv_by_patches",
    "conv_by_xla",
    "encode",
    "head",
    "make_policy",
    "masked",
    "orthogonal",
    "preprocess",
    "run",
]
