"""Networks, and the Policy that wraps them: observation -> (action distribution, value)."""

from ppo_jax.networks.continuous import ACTION_DISTRIBUTIONS, NOISE_STEPS, ContinuousHead
from ppo_jax.networks.convolutions import (
    CNN,
    CONVOLUTIONS,
    Conv,
    Stage,
    conv_by_patches,
    conv_by_xla,
    unread_pixels,
)
from ppo_jax.networks.features import FRAME_MIXES, Features, batch_shape, mix_frames, preprocess
from ppo_jax.networks.heads import VALUE_HEADS, Actor, Critic, QCritic, ValueHead, encode
from ppo_jax.networks.initial import first_actions
from ppo_jax.networks.layers import (
    ACTIVATIONS,
    DTYPES,
    HIDDEN_GAIN,
    MLP,
    NORMS,
    ResidualMLP,
    head,
    orthogonal,
)
from ppo_jax.networks.memory import CELLS, MEMORIES, Memory, MemoryLayers
from ppo_jax.networks.own import has_memory, own_policy
from ppo_jax.networks.policy import Policy, SequenceInputs, StateAction, make_policy, masked, run
from ppo_jax.networks.recurrent import make_recurrent_policy

__all__ = [
    "ACTION_DISTRIBUTIONS",
    "ACTIVATIONS",
    "CELLS",
    "CNN",
    "CONVOLUTIONS",
    "DTYPES",
    "FRAME_MIXES",
    "HIDDEN_GAIN",
    "MEMORIES",
    "MLP",
    "NOISE_STEPS",
    "NORMS",
    "VALUE_HEADS",
    "Actor",
    "ContinuousHead",
    "Conv",
    "Critic",
    "Features",
    "Memory",
    "MemoryLayers",
    "Policy",
    "QCritic",
    "ResidualMLP",
    "SequenceInputs",
    "Stage",
    "StateAction",
    "ValueHead",
    "batch_shape",
    "conv_by_patches",
    "conv_by_xla",
    "encode",
    "first_actions",
    "has_memory",
    "head",
    "make_policy",
    "make_recurrent_policy",
    "masked",
    "mix_frames",
    "orthogonal",
    "own_policy",
    "preprocess",
    "run",
    "unread_pixels",
]
