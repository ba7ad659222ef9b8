"""Families of models in Hugging Face folders: defaults of the supported ones, and refusals.

A config.json may lack values that equal the defaults of its family in transformers.
"""

from typing import Any

from ppo_jax.config.options import did_you_mean
from ppo_jax.rlhf.decoder_config import FAMILIES

_GEMMA: dict[str, Any] = {
    "head_dim": 256,
    "tie_word_embeddings": True,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "hidden_activation": "gelu_pytorch_tanh",
}
_QWEN: dict[str, Any] = {"sliding_window": 4096, "max_window_layers": 28}
# Values that a config.json of the family need not contain, as in transformers 5.24.
DEFAULTS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 4096},
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"head_dim": 128},
    "gemma2": _GEMMA | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3_text": _GEMMA | {"sliding_window_pattern": 6},
    "phi3": {"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
    "smollm3": {
        "tie_word_embeddings": True,
        "rope_theta": 2_000_000.0,
        "no_rope_layer_interval": 4,
    },
    "olmo2": {"rms_norm_eps": 1e-5},
}
_EXPERTS, _IMAGES = "has layers of several experts", "also reads images"
# Families of transformers that are not supported: the reason, and the nearest supported family.
OTHERS = {
    "gemma": ("has no norms after attention and MLP, soft caps and windows", "gemma2"),
    "gemma3": (_IMAGES, "gemma3_text"),
    "gemma3n": (_IMAGES, "gemma3_text"),
    "gemma3n_text": ("has embeddings of its own in every layer", "gemma3_text"),
    "llama4": (_EXPERTS, "llama"),
    "llama4_text": (_EXPERTS, "llama"),
    "mllama": (_IMAGES, "llama"),
    "llava": (_IMAGES, "llama"),
    "cohere": ("computes attention and MLP side by side", "llama"),
    "granite": ("multiplies embeddings, residuals and logits by factors", "llama"),
    "stablelm": ("has LayerNorm", "llama"),
    "gpt_oss": (_EXPERTS, "llama"),
    "deepseek_v2": (_EXPERTS, "llama"),
    "deepseek_v3": (_EXPERTS, "llama"),
    "ministral": ("may have a sliding window in some of its layers only", "mistral"),
    "mistral3": (_IMAGES, "mistral"),
    "mixtral": (_EXPERTS, "mistral"),
    "qwen2_moe": (_EXPERTS, "qwen2"),
    "qwen2_vl": (_IMAGES, "qwen2"),
    "qwen2_5_vl": (_IMAGES, "qwen2"),
    "qwen3_moe": (_EXPERTS, "qwen3"),
    "qwen3_next": (_EXPERTS, "qwen3"),
    "qwen3_vl": (_IMAGES, "qwen3"),
    "phi": ("computes attention and MLP side by side", "phi3"),
    "phimoe": (_EXPERTS, "phi3"),
    "phi4_multimodal": (_IMAGES, "phi3"),
    "olmo": ("has LayerNorm without weights", "olmo2"),
    "olmo3": ("has a sliding window in some of its layers", "olmo2"),
    "olmoe": (_EXPERTS, "olmo2"),
    "gpt_neo": ("has attention to blocks of tokens in some of its layers", "gpt2"),
    "gpt_neox": ("has rotary positions and computes attention and MLP side by side", "gpt2"),
    "gpt_bigcode": ("shares one key and value head among all query heads", "gpt2"),
    "opt": ("has positions with an offset", "gpt2"),
}


def refusal(family: Any) -> str:
    """Why a folder of a family cannot be read: one line with the nearest supported family."""
    supported = f"supported: {', '.join(FAMILIES)}"
    said = f"model_type is {family!r}, which is not supported"
    if not isinstance(family, str):
        return f"{said} ({supported})"
    if family in OTHERS:
        reason, nearest = OTHERS[family]
        return f"{said}: it {reason}; the nearest supported family is {nearest} ({supported})"
    near = did_you_mean(family, FAMILIES)
    return f"{said}; {near} ({supported})"
