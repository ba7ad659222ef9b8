"""Conversion between DecoderConfig and config.json of a Hugging Face folder.

The formats of transformers 4 and 5 are both supported.
"""

from typing import Any

from ppo_jax.config.options import did_you_mean
from ppo_jax.rlhf.decoder_config import FAMILIES, DecoderConfig, RopeScaling

ACTIVATION_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_fast": "gelu_new",
}
CAUSAL = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}
SCORING = {
    "gpt2": "GPT2ForSequenceClassification",
    "llama": "LlamaForSequenceClassification",
    "mistral": "MistralForSequenceClassification",
    "qwen2": "Qwen2ForSequenceClassification",
}


# Models of these families have far fewer layers; a program of more would take hours to trace.
MOST_LAYERS = 1000


class ModelError(ValueError):
    """A folder that cannot be loaded as a model; the message names the fault and the remedy."""


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
    if family not in FAMILIES:
        hint = did_you_mean(str(family), FAMILIES)
        raise ModelError(
            f"model_type is {family!r}, which is not supported; {hint} "
            f"(supported: {', '.join(FAMILIES)})"
        )
    eos = raw.get("eos_token_id")
    listed = eos if isinstance(eos, list) else [] if eos is None else [eos]
    common = {
        "family": family,
        "vocab_size": _whole(raw, "vocab_size"),
        "bos_id": _token(raw, "bos_token_id"),
        "eos_ids": tuple(_id(x, "eos_token_id") for x in listed),
        "pad_id": _token(raw, "pad_token_id"),
        "init_std": _real(raw, "initializer_range", 0.02),
        "dtype": dtype,
        "remat": remat,
    }
    return DecoderConfig(**common, **(_gpt2 if family == "gpt2" else _llama)(raw))


def _gpt2(raw: dict[str, Any]) -> dict[str, Any]:
    for name, usual in (
        ("scale_attn_by_inverse_layer_idx", False),
        ("scale_attn_weights", True),
        ("add_cross_attention", False),
    ):
        if raw.get(name, usual) is not usual:
            raise ModelError(f"{name} is {raw[name]}; only {usual} is supported")
    size, heads = _whole(raw, "n_embd"), _whole(raw, "n_head")
    return {
        "hidden_size": size,
        "num_layers": _whole(raw, "n_layer", most=MOST_LAYERS),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": size // heads,
        "intermediate_size": _whole(raw, "n_inner", 4 * size),
        "max_positions": _whole(raw, "n_positions", 1024),
        "norm_eps": _real(raw, "layer_norm_epsilon", 1e-5),
        "tied": _switch(raw, "tie_word_embeddings", True),
        "activation": _activation(raw.get("activation_function", "gelu_new")),
    }


def _llama(raw: dict[str, Any]) -> dict[str, Any]:
    size, heads = _whole(raw, "hidden_size"), _whole(raw, "num_attention_heads")
    window, window_from = _window(raw)
    theta, scaling = _rope(raw)
    return {
        "hidden_size": size,
        "num_layers": _whole(raw, "num_hidden_layers", most=MOST_LAYERS),
        "num_heads": heads,
        "num_kv_heads": _whole(raw, "num_key_value_heads", heads),
        "head_dim": _whole(raw, "head_dim", size // heads),
        "intermediate_size": _whole(raw, "intermediate_size"),
        "max_positions": _whole(raw, "max_position_embeddings", 2048),
        "norm_eps": _real(raw, "rms_norm_eps", 1e-6),
        "tied": _switch(raw, "tie_word_embeddings", False),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "sliding_window": window,
        "window_from": window_from,
        "activation": _activation(raw.get("hidden_act", "silu")),
        "attention_bias": _switch(raw, "attention_bias", False),
        "mlp_bias": _switch(raw, "mlp_bias", False),
    }


def _rope(raw: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """Base and scaling of the rotary frequencies.

    transformers 5 writes rope_parameters; transformers 4 writes rope_theta and rope_scaling.
    """
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ModelError(f"rope_scaling is {rope!r}; it must be an object")
    theta = _real(raw, "rope_theta", 10_000.0)
    theta = _real(rope, "rope_theta", theta)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind not in ("llama3", "linear"):
        hint = "supported: default, linear, llama3"
        raise ModelError(f"rope_type is {kind!r}, which is not supported; {hint}")
    if kind == "linear":
        return theta, RopeScaling("linear", _real(rope, "factor"))
    return theta, RopeScaling(
        kind,
        _real(rope, "factor"),
        _real(rope, "low_freq_factor"),
        _real(rope, "high_freq_factor"),
        _whole(rope, "original_max_position_embeddings"),
    )


def _window(raw: dict[str, Any]) -> tuple[int | None, int]:
    """The sliding window and the index of the first layer that has it."""
    window, family = raw.get("sliding_window"), raw["model_type"]
    if window is None or family == "llama":
        return None, 0
    window = _whole(raw, "sliding_window")
    if family == "mistral":
        return window, 0
    if not _switch(raw, "use_sliding_window", False):
        return None, 0
    kinds = raw.get("layer_types")
    first = raw.get("max_window_layers", 28)
    if isinstance(first, bool) or not isinstance(first, int):
        raise ModelError(f"max_window_layers is {first!r}; it must be a whole number")
    if kinds:
        if not isinstance(kinds, list):
            raise ModelError(f"layer_types is {kinds!r}; it must be a list")
        first = [*kinds, "sliding_attention"].index("sliding_attention")
        if "full_attention" in kinds[first:]:
            raise ModelError(
                "layer_types alternates; supported are models whose last layers all have the window"
            )
    return window, first


def _activation(name: Any) -> str:
    if not isinstance(name, str) or name not in ACTIVATION_NAMES:
        raise ModelError(
            f"activation {name!r} is not supported; {did_you_mean(str(name), ACTIVATION_NAMES)}"
        )
    return ACTIVATION_NAMES[name]


def _value(raw: dict[str, Any], name: str, default: Any) -> Any:
    """The value of a name; the default if it is missing or null.

    Raises:
        ModelError: the value is missing and there is no default.
    """
    if raw.get(name) is not None:
        return raw[name]
    if default is None:
        raise ModelError(f"config.json has no {name}" + (": it is null" if name in raw else ""))
    return default


def _whole(raw: dict[str, Any], name: str, default: int | None = None, most: int = 2**31) -> int:
    """A whole number from 1 to `most`."""
    value = _value(raw, name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ModelError(f"{name} is {value!r}; it must be a whole number from 1 to {most:,}")
    return value


def _real(raw: dict[str, Any], name: str, default: float | None = None) -> float:
    """A finite number >= 0."""
    value = _value(raw, name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e30:
        raise ModelError(f"{name} is {value!r}; it must be a finite number >= 0")
    return float(value)


def _switch(raw: dict[str, Any], name: str, default: bool) -> bool:
    value = _value(raw, name, default)
    if not isinstance(value, bool):
        raise ModelError(f"{name} is {value!r}; it must be true or false")
    return value


def _token(raw: dict[str, Any], name: str) -> int | None:
    return None if raw.get(name) is None else _id(raw[name], name)


def _id(value: Any, name: str) -> int:
    # Some programs write -1 for a token that the model does not have.
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value < 2**31:
        raise ModelError(f"{name} is {value!r}; it must be a token id or a list of token ids")
    return value


def write_config(config: DecoderConfig, scoring: bool, weights: str) -> dict[str, Any]:
    """The content of config.json, readable by transformers 4 and 5.

    Args:
        config: architecture of the model.
        scoring: whether the model has a score head instead of a head.
        weights: dtype of the tensors, "float32" or "bfloat16".
    """
    eos: Any = list(config.eos_ids)
    raw = {
        "architectures": [(SCORING if scoring else CAUSAL)[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "bos_token_id": config.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": config.pad_id,
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
        "hidden_act": config.activation,
        "rope_theta": config.rope_theta,
        "rope_parameters": _write_rope(config) | {"rope_theta": config.rope_theta},
        "rope_scaling": _write_rope(config) if config.rope_scaling else None,
    }
    if config.family == "llama":
        raw |= {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}
    else:
        raw |= {"sliding_window": config.sliding_window}
    if config.family == "qwen2":
        windowed = config.sliding_window is not None
        raw |= {"use_sliding_window": windowed, "max_window_layers": config.window_from}
    return raw


def _write_rope(config: DecoderConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    if scaling is None:
        return {"rope_type": "default"}
    if scaling.kind == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": scaling.kind,
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_positions,
    }
