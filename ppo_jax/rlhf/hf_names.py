"""Mapping between tensors of a Hugging Face folder and leaves of the parameters."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ppo_jax.rlhf.decoder_config import DecoderConfig


class Entry(NamedTuple):
    """One tensor on disk.

    Attributes:
        name: name of the tensor, without the prefix of the trunk.
        leaves: paths of leaves of the parameters; several leaves are concatenated along the
            tensor's last axis.
        transposed: whether the tensor has torch's layout (out, in) instead of (in, out).
    """

    name: str
    leaves: tuple[tuple[str, ...], ...]
    transposed: bool = False


def prefix_of(config: DecoderConfig) -> str:
    """The prefix of the names of the trunk's tensors."""
    return "transformer." if config.family == "gpt2" else "model."


def embedding_of(config: DecoderConfig) -> str:
    """The name of the embedding, without the prefix of the trunk."""
    return "wte.weight" if config.family == "gpt2" else "embed_tokens.weight"


def entries(config: DecoderConfig, head: bool, score: bool) -> list[Entry]:
    """All tensors of a model.

    Args:
        config: architecture of the model.
        head: whether the model has a head that is not the transposed embedding.
        score: whether the model has a score head.
    """
    make = _gpt2_entries if config.family == "gpt2" else _llama_entries
    found = make(config)
    if head:
        found.append(Entry("lm_head.weight", (("head", "kernel"),), True))
    if score:
        found.append(Entry("score.weight", (("score", "kernel"),), True))
    return found


def _gpt2_entries(config: DecoderConfig) -> list[Entry]:
    # GPT-2 stores its matrices as (in, out), and q, k and v as one matrix.
    found = [
        Entry(embedding_of(config), (("embedding",),)),
        Entry("wpe.weight", (("positions",),)),
        *_norm("ln_f", ("norm",), True),
    ]
    for i in range(config.num_layers):
        here, layer = f"h.{i}.", f"layer_{i}"
        found += _norm(f"{here}ln_1", (layer, "attention_norm"), True)
        found += _norm(f"{here}ln_2", (layer, "mlp_norm"), True)
        for name, module, parts in (
            ("attn.c_attn", "attention", ("q", "k", "v")),
            ("attn.c_proj", "attention", ("o",)),
            ("mlp.c_fc", "mlp", ("up",)),
            ("mlp.c_proj", "mlp", ("down",)),
        ):
            for kind, leaf in (("weight", "kernel"), ("bias", "bias")):
                leaves = tuple((layer, module, part, leaf) for part in parts)
                found.append(Entry(f"{here}{name}.{kind}", leaves))
    return found


def _llama_entries(config: DecoderConfig) -> list[Entry]:
    found = [Entry(embedding_of(config), (("embedding",),)), *_norm("norm", ("norm",), False)]
    for i in range(config.num_layers):
        here, layer = f"layers.{i}.", f"layer_{i}"
        for theirs, ours in NORMS[config.structure.norms].items():
            found += _norm(f"{here}{theirs}_layernorm", (layer, ours), False)
        if config.structure.qk_norm != "none":
            for name in ("q_norm", "k_norm"):
                found += _norm(f"{here}self_attn.{name}", (layer, "attention", name), False)
        for module, theirs, groups, bias in (
            ("attention", "self_attn", ("qkv", "o"), (config.qkv_bias, config.out_bias)),
            ("mlp", "mlp", (("gate", "up"), ("down",)), (config.mlp_bias,) * 2),
        ):
            for group, biased in zip(groups, bias, strict=True):
                found += _matrices(
                    f"{here}{theirs}.",
                    (layer, module),
                    group,
                    fused=config.family == "phi3",
                    bias=biased,
                )
    return found


# The names of the norms of a block on disk and in the parameters, by their place. What is the norm
# before the MLP in one family is the norm after attention in another.
NORMS = {
    "before": {"input": "attention_norm", "post_attention": "mlp_norm"},
    "after": {"post_attention": "attention_post_norm", "post_feedforward": "mlp_post_norm"},
    "both": {
        "input": "attention_norm",
        "post_attention": "attention_post_norm",
        "pre_feedforward": "mlp_norm",
        "post_feedforward": "mlp_post_norm",
    },
}


def _matrices(
    here: str, at: tuple[str, str], names: Sequence[str], *, fused: bool, bias: bool
) -> list[Entry]:
    """The tensors of matrices with the same input, which Phi-3 stores as one."""
    groups = [tuple(names)] if fused and len(names) > 1 else [(name,) for name in names]
    found = []
    for group in groups:
        # The names on disk: qkv_proj and gate_up_proj.
        path = f"{here}{('' if 'q' in group else '_').join(group)}_proj"
        leaves = [(*at, name) for name in group]
        found.append(Entry(f"{path}.weight", tuple((*x, "kernel") for x in leaves), True))
        if bias:
            found.append(Entry(f"{path}.bias", tuple((*x, "bias") for x in leaves)))
    return found


def _norm(name: str, path: tuple[str, ...], bias: bool) -> list[Entry]:
    found = [Entry(f"{name}.weight", ((*path, "scale"),))]
    return found + ([Entry(f"{name}.bias", ((*path, "bias"),))] if bias else [])


def get(params: dict, path: tuple[str, ...]) -> np.ndarray:
    """The leaf at a path."""
    for name in path:
        params = params[name]
    return params  # type: ignore[return-value]


def put(params: dict, path: tuple[str, ...], leaf: np.ndarray) -> None:
    """Set the leaf at a path, in place."""
    for name in path[:-1]:
        params = params.setdefault(name, {})
    params[path[-1]] = leaf
