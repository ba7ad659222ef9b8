"""Conversion between DecoderConfig and config.json of a Hugging Face folder.

The formats of transformers 4 and 5 are both supported.
"""

from typing import Any

from ppo_jax.rlhf.decoder_config import FAMILIES, DecoderConfig
from ppo_jax.rlhf.hf_families import DEFAULTS, refusal
from ppo_jax.rlhf.hf_rope import FULL, SLIDING, read_rope, write_rope
from ppo_jax.rlhf.hf_values import (
    ModelError,
    activation,
    optional,
    real,
    switch,
    token,
    token_id,
    whole,
)

__all__ = ["CAUSAL", "SCORING", "read_config", "write_config"]

_STEMS = {
    "gpt2": "GPT2",
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3Text",
    "phi3": "Phi3",
    "smollm3": "SmolLM3",
    "olmo2": "Olmo2",
}
# The names of two classes in transformers do not follow the pattern.
CAUSAL = {family: f"{stem}ForCausalLM" for family, stem in _STEMS.items()} | {
    "gpt2": "GPT2LMHeadModel",
    "gemma3_text": "Gemma3ForCausalLM",
}
SCORING = {family: f"{stem}ForSequenceClassification" for family, stem in _STEMS.items()}
# Families in which config.json may give some layers a sliding window.
WINDOWED = ("mistral", "phi3", "qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3")
# Models of these families have far fewer layers; a program of more would take hours to trace.
MOST_LAYERS = 1000


def read_config(raw: dict[str, Any], dtype: str = "float32", remat: bool = False) -> DecoderConfig:
    """The config that a config.json describes.

    Args:
        raw: content of config.json.
        dtype: dtype of the computation, "float32" or "bfloat16".
        remat: whether blocks are recomputed in the backward pass.

    Raises:
        ModelError: the model is of another family, or has a part that is not supported.
    """
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ModelError(refusal(family))
    if raw.get("quantization_config"):
        raise ModelError(
            f"the weights are quantised ({_method(raw['quantization_config'])}), which is not "
            "supported; save the model with weights in bfloat16, float16 or float32"
        )
    raw = DEFAULTS.get(family, {}) | raw
    eos = raw.get("eos_token_id")
    listed = eos if isinstance(eos, list) else [] if eos is None else [eos]
    common: dict[str, Any] = {
        "family": family,
        "vocab_size": whole(raw, "vocab_size"),
        "bos_id": token(raw, "bos_token_id"),
        "eos_ids": tuple(token_id(x, "eos_token_id") for x in listed),
        "pad_id": token(raw, "pad_token_id"),
        "init_std": real(raw, "initializer_range", 0.02),
        "dtype": dtype,
        "remat": remat,
    }
    return DecoderConfig(**common, **(_gpt2 if family == "gpt2" else _llama)(raw))


def _method(quantization: Any) -> str:
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    return str(method or "quantization_config")[:40]


def _gpt2(raw: dict[str, Any]) -> dict[str, Any]:
    for name, usual in (
        ("scale_attn_by_inverse_layer_idx", False),
        ("scale_attn_weights", True),
        ("add_cross_attention", False),
    ):
        if raw.get(name, usual) is not usual:
            raise ModelError(f"{name} is {raw[name]}; only {usual} is supported")
    size, heads = whole(raw, "n_embd"), whole(raw, "n_head")
    return {
        "hidden_size": size,
        "num_layers": whole(raw, "n_layer", most=MOST_LAYERS),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": size // heads,
        "intermediate_size": whole(raw, "n_inner", 4 * size),
        "max_positions": whole(raw, "n_positions", 1024),
        "norm_eps": real(raw, "layer_norm_epsilon", 1e-5),
        "tied": switch(raw, "tie_word_embeddings", True),
        "activation": activation(raw.get("activation_function", "gelu_new")),
    }


def _llama(raw: dict[str, Any]) -> dict[str, Any]:
    if raw.get("use_bidirectional_attention"):
        raise ModelError(
            "use_bidirectional_attention is true; only models that read from left to right are "
            "supported"
        )
    size, heads = whole(raw, "hidden_size"), whole(raw, "num_attention_heads")
    layers = whole(raw, "num_hidden_layers", most=MOST_LAYERS)
    act = "hidden_activation" if raw["model_type"].startswith("gemma") else "hidden_act"
    return {
        "hidden_size": size,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": whole(raw, "num_key_value_heads", heads),
        "head_dim": whole(raw, "head_dim", size // heads),
        "intermediate_size": whole(raw, "intermediate_size"),
        "max_positions": whole(raw, "max_position_embeddings", 2048),
        "norm_eps": real(raw, "rms_norm_eps", 1e-6),
        "tied": switch(raw, "tie_word_embeddings", False),
        **read_rope(raw),
        **_windows(raw, layers),
        **_unrotated(raw, layers),
        **_softcaps(raw),
        "activation": activation(raw.get(act, "silu")),
        "attention_bias": switch(raw, "attention_bias", False),
        "mlp_bias": switch(raw, "mlp_bias", False),
    }


def _softcaps(raw: dict[str, Any]) -> dict[str, Any]:
    """The bounds of attention scores and logits, and the scale of the scores, of Gemma."""
    if not raw["model_type"].startswith("gemma"):
        return {}
    found: dict[str, Any] = {
        "query_pre_attn_scalar": whole(raw, "query_pre_attn_scalar"),
        "logit_softcap": optional(raw, "final_logit_softcapping"),
    }
    # Attention of Gemma 3 has the value in its config.json, and does not use it.
    if raw["model_type"] == "gemma2":
        found["attention_softcap"] = optional(raw, "attn_logit_softcapping")
    return found


def _unrotated(raw: dict[str, Any], layers: int) -> dict[str, Any]:
    """The layers of SmolLM3 without rotary positions."""
    if raw["model_type"] != "smollm3":
        return {}
    rotated = raw.get("no_rope_layers")
    if rotated is None:
        interval = whole(raw, "no_rope_layer_interval")
        return {"unrotated_layers": tuple(range(interval - 1, layers, interval))}
    if (
        not isinstance(rotated, list)
        or len(rotated) < layers
        or not all(isinstance(x, int) and x in (0, 1) for x in rotated)
    ):
        raise ModelError(
            f"no_rope_layers is {rotated!r}; it must be a list with 1 (rotary positions) or 0 "
            f"(none) for each of the {layers} layers"
        )
    return {"unrotated_layers": tuple(i for i in range(layers) if not rotated[i])}


def _windows(raw: dict[str, Any], layers: int) -> dict[str, Any]:
    """The sliding window and the layers that do not have it."""
    family, window = raw["model_type"], raw.get("sliding_window")
    if window is None or family not in WINDOWED:
        _check_no_window(raw, family)
        return {}
    window = whole(raw, "sliding_window")
    if family in ("mistral", "phi3"):
        return {"sliding_window": window}
    if family.startswith("qwen") and not switch(raw, "use_sliding_window", False):
        _check_no_window(raw, family)
        return {}
    full = tuple(i for i, kind in enumerate(_layer_types(raw, layers)) if kind == FULL)
    return {} if len(full) == layers else {"sliding_window": window, "full_layers": full}


def _check_no_window(raw: dict[str, Any], family: str) -> None:
    kinds = raw.get("layer_types")
    alternating = ("qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3")
    if family in alternating and isinstance(kinds, list) and SLIDING in kinds:
        raise ModelError(f"layer_types contains {SLIDING!r}, but the model has no sliding_window")


def _layer_types(raw: dict[str, Any], layers: int) -> list[str]:
    """The kind of attention of each layer; by default the one of the family."""
    kinds = raw.get("layer_types")
    if kinds is None:
        return [FULL if _is_full(raw, i) else SLIDING for i in range(layers)]
    if not isinstance(kinds, list) or len(kinds) < layers:
        raise ModelError(f"layer_types is {kinds!r}; it must be a list of {layers} names")
    for kind in kinds:
        if kind not in (FULL, SLIDING):
            raise ModelError(
                f"layer_types contains {kind!r}, which is not supported; supported: {FULL}, "
                f"{SLIDING}"
            )
    return kinds[:layers]


def _is_full(raw: dict[str, Any], layer: int) -> bool:
    """Whether a layer has no sliding window in a config.json without layer_types."""
    family = raw["model_type"]
    if family == "gemma2":
        return layer % 2 == 1
    if family == "gemma3_text":
        return (layer + 1) % whole(raw, "sliding_window_pattern") == 0
    if family == "smollm3":
        unrotated = _unrotated(raw, layer + 1)["unrotated_layers"]
        return not switch(raw, "use_sliding_window", False) or layer not in unrotated
    first = raw.get("max_window_layers")
    if isinstance(first, bool) or not isinstance(first, int):
        raise ModelError(f"max_window_layers is {first!r}; it must be a whole number")
    return layer < first


def write_config(config: DecoderConfig, scoring: bool, weights: str) -> dict[str, Any]:
    """The content of config.json, readable by transformers 4 and 5.

    Args:
        config: architecture of the model.
        scoring: whether the model has a score head instead of a head. Without a padding token
            transformers scores no batches, so that it becomes the token that begins texts, which
            never ends one.
        weights: dtype of the tensors, "float32", "bfloat16" or "float16".
    """
    eos: Any = list(config.eos_ids)
    pad = config.pad_id
    if pad is None and scoring and config.bos_id not in config.eos_ids:
        pad = config.bos_id
    raw = {
        "architectures": [(SCORING if scoring else CAUSAL)[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "bos_token_id": config.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": pad,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tied,
        "torch_dtype": weights,
        "dtype": weights,
    }
    if scoring:
        raw |= {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return raw | (_write_gpt2 if config.family == "gpt2" else _write_llama)(config)


def _write_gpt2(config: DecoderConfig) -> dict[str, Any]:
    return {
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.intermediate_size,
        "n_positions": config.max_positions,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": config.activation,
        # With dropout the probabilities of two forward passes would differ.
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def _write_llama(config: DecoderConfig) -> dict[str, Any]:
    raw = {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        **write_rope(config),
        **_write_windows(config),
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
    }
    if not config.family.startswith("gemma"):
        return raw | {"hidden_act": config.activation}
    act = "gelu_pytorch_tanh" if config.activation == "gelu_new" else config.activation
    return raw | {
        "hidden_activation": act,
        "hidden_act": act,
        "query_pre_attn_scalar": config.query_pre_attn_scalar or config.head_dim,
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
    }


def _write_windows(config: DecoderConfig) -> dict[str, Any]:
    """The entries that describe which layers have a window and rotary positions."""
    if config.family not in WINDOWED:
        return {}
    raw: dict[str, Any] = {"sliding_window": config.sliding_window}
    if config.family in ("mistral", "phi3"):
        return raw
    layers = range(config.num_layers)
    raw["layer_types"] = [FULL if config.window(i) is None else SLIDING for i in layers]
    if config.family == "smollm3":
        raw["no_rope_layers"] = [int(config.rotation(i) != "none") for i in layers]
    if not config.family.startswith("gemma"):
        raw["use_sliding_window"] = config.sliding_window is not None
    if config.family.startswith("qwen"):
        # transformers 4 before layer_types: the first layers are those without a window.
        raw["max_window_layers"] = raw["layer_types"].count(FULL)
    return raw
