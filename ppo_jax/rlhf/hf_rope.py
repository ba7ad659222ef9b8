"""Conversion of rotary positions between DecoderConfig and config.json.

transformers 5 stores base and scaling in rope_parameters, transformers 4 in rope_theta and
rope_scaling. Gemma 3 has one set for its layers with a sliding window and one for the others.
"""

from typing import Any

from ppo_jax.rlhf.decoder_config import DecoderConfig, RopeScaling
from ppo_jax.rlhf.hf_values import ModelError, numbers, optional, part, positive, switch, whole

KINDS = ("default", "linear", "llama3", "longrope", "yarn")
FULL, SLIDING = "full_attention", "sliding_attention"


def read_rope(raw: dict[str, Any]) -> dict[str, Any]:
    """The fields of DecoderConfig that describe the rotary positions.

    Args:
        raw: content of config.json, with the defaults of its family.

    Raises:
        ModelError: a value is missing or not supported.
    """
    rope = part(raw, "rope_scaling") or part(raw, "rope_parameters")
    if raw["model_type"] == "gemma3_text":
        return _read_both(raw, rope)
    theta = positive(rope, "rope_theta", positive(raw, "rope_theta", 10_000.0))
    fraction = positive(rope, "partial_rotary_factor", _fraction(raw))
    if fraction != 1 and raw["model_type"] != "phi3":
        raise ModelError(
            f"partial_rotary_factor is {fraction}; for {raw['model_type']} only 1 is supported"
        )
    scaling = _read_scaling(raw, rope, theta)
    return {"rope_theta": theta, "rope_scaling": scaling, "partial_rotary_factor": fraction}


def _read_both(raw: dict[str, Any], rope: dict[str, Any]) -> dict[str, Any]:
    """The rotary positions of Gemma 3; a scaling applies only to layers without a window."""
    nested = FULL in rope or SLIDING in rope
    full, local = (part(rope, FULL), part(rope, SLIDING)) if nested else (rope, {})
    kind = _kind(local)
    if kind != "default":
        raise ModelError(
            f"rope_type of {SLIDING} is {kind!r}, which is not supported; supported: default"
        )
    theta = positive(full, "rope_theta", positive(raw, "rope_theta", 1_000_000.0))
    return {
        "rope_theta": theta,
        "rope_scaling": _read_scaling(raw, full, theta),
        "local_rope_theta": positive(
            local, "rope_theta", positive(raw, "rope_local_base_freq", 10_000.0)
        ),
    }


def _kind(rope: dict[str, Any]) -> Any:
    return rope.get("rope_type", rope.get("type", "default"))


def _fraction(raw: dict[str, Any]) -> float:
    return positive(raw, "partial_rotary_factor", 1.0)


def _read_scaling(raw: dict[str, Any], rope: dict[str, Any], theta: float) -> RopeScaling | None:
    kind = _kind(rope)
    if raw["model_type"] == "phi3" and kind in ("su", "yarn"):
        kind = "longrope"  # earlier names of the same method in Phi-3
    if kind == "default":
        return None
    if kind not in KINDS:
        raise ModelError(
            f"rope_type is {kind!r}, which is not supported; supported: {', '.join(KINDS)}"
        )
    if kind == "linear":
        return RopeScaling("linear", positive(rope, "factor"))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            positive(rope, "factor"),
            positive(rope, "low_freq_factor"),
            positive(rope, "high_freq_factor"),
            whole(raw | rope, "original_max_position_embeddings"),
        )
    if kind == "yarn" and theta <= 1:
        raise ModelError(f"rope_theta is {theta}; with yarn it must be greater than 1")
    return (_read_yarn if kind == "yarn" else _read_longrope)(raw, rope)


def _original(raw: dict[str, Any], rope: dict[str, Any], longest: int) -> int:
    """The original context; beside the other values of config.json it has priority."""
    return whole(rope | raw, "original_max_position_embeddings", longest)


def _read_yarn(raw: dict[str, Any], rope: dict[str, Any]) -> RopeScaling:
    longest = whole(raw, "max_position_embeddings", 2048)
    original = _original(raw, rope, longest)
    factor = optional(rope, "factor") or longest / original
    scales = optional(rope, "mscale"), optional(rope, "mscale_all_dim")
    amplitude = optional(rope, "attention_factor")
    if amplitude is None and all(scales):
        one, other = (RopeScaling("yarn", factor).amplitude - 1 for _ in scales)
        amplitude = (1 + one * (scales[0] or 0)) / (1 + other * (scales[1] or 0))
    return RopeScaling(
        "yarn",
        factor,
        original_max_positions=original,
        beta_fast=optional(rope, "beta_fast") or 32.0,
        beta_slow=optional(rope, "beta_slow") or 1.0,
        truncate=switch(rope, "truncate", True),
        attention_factor=amplitude,
    )


def _read_longrope(raw: dict[str, Any], rope: dict[str, Any]) -> RopeScaling:
    longest = whole(raw, "max_position_embeddings", 2048)
    original = _original(raw, rope, longest)
    return RopeScaling(
        "longrope",
        optional(rope, "factor") or longest / original,
        original_max_positions=original,
        attention_factor=optional(rope, "attention_factor"),
        short_factors=numbers(rope, "short_factor"),
        long_factors=numbers(rope, "long_factor"),
    )


def write_rope(config: DecoderConfig) -> dict[str, Any]:
    """The entries of config.json, readable by transformers 4 and 5."""
    scaling = _write_scaling(config.rope_scaling)
    full = scaling | {"rope_theta": config.rope_theta}
    if config.partial_rotary_factor != 1 or config.family == "phi3":
        full |= {"partial_rotary_factor": config.partial_rotary_factor}
    raw: dict[str, Any] = {
        "rope_theta": config.rope_theta,
        "rope_parameters": full,
        "rope_scaling": scaling if config.rope_scaling else None,
    }
    if config.family == "gemma3_text":
        local = {"rope_type": "default", "rope_theta": config.local_rope_theta}
        raw["rope_parameters"] = {FULL: full, SLIDING: local}
        raw["rope_local_base_freq"] = config.local_rope_theta
    if config.family == "phi3":
        raw["partial_rotary_factor"] = config.partial_rotary_factor
        original = config.rope_scaling.original_max_positions if config.rope_scaling else None
        raw["original_max_position_embeddings"] = original or config.max_positions
    return raw


def _write_scaling(scaling: RopeScaling | None) -> dict[str, Any]:
    if scaling is None:
        return {"rope_type": "default"}
    raw: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        raw["original_max_position_embeddings"] = scaling.original_max_positions
    if scaling.attention_factor is not None:
        raw["attention_factor"] = scaling.attention_factor
    if scaling.kind == "llama3":
        raw["low_freq_factor"] = scaling.low_freq_factor
        raw["high_freq_factor"] = scaling.high_freq_factor
    if scaling.kind == "longrope":
        raw["short_factor"] = list(scaling.short_factors)
        raw["long_factor"] = list(scaling.long_factors)
    if scaling.kind == "yarn":
        usual = RopeScaling("yarn", 1.0)
        for name in ("beta_fast", "beta_slow", "truncate"):
            if getattr(scaling, name) != getattr(usual, name):
                raw[name] = getattr(scaling, name)
    return raw
