"""Small models of every family, with the results of transformers for them."""

import dataclasses
import functools
from pathlib import Path

import numpy as np

from ppo_jax.rlhf.decoder import RopeScaling, small
from ppo_jax.rlhf.hf_io import load_model
from reference import golden_file

FAMILIES = ["gpt2", "llama", "llama3_rope_tied", "mistral", "qwen2"]
# Models with the arrays of 12_llm.npz: transformers 5.24, eager attention.
NEWER = ["gemma2", "gemma3_text", "llama_yarn", "olmo2", "phi3", "qwen3", "smollm3"]
# Two more, of which the repository has no copy; PPO_JAX_GOLDEN may name a folder with them.
ELSEWHERE = ["qwen2_yarn", "qwen3_tied"]


BASE = small(29, hidden_size=16, num_layers=3, num_heads=2, num_kv_heads=1, pad_id=3, tied=False)
GEMMA = {"activation": "gelu_new", "query_pre_attn_scalar": 9, "logit_softcap": 20.0}
LONG = RopeScaling(
    "longrope",
    2.0,
    original_max_positions=64,
    short_factors=(1.0, 1.5, 2.0),
    long_factors=(2.0, 3.0, 4.0),
)
# Each family with all of its parts at values that are not the defaults.
CONFIGS = {
    "yarn": dataclasses.replace(
        BASE,
        rope_scaling=RopeScaling(
            "yarn", 3.0, original_max_positions=32, beta_fast=8.0, truncate=False
        ),
    ),
    "yarn_amplitude": dataclasses.replace(
        BASE,
        family="qwen2",
        rope_scaling=RopeScaling(
            "yarn", 3.0, original_max_positions=32, beta_slow=2.0, attention_factor=1.3
        ),
    ),
    "qwen3": dataclasses.replace(
        BASE, family="qwen3", head_dim=12, sliding_window=4, full_layers=(0, 2)
    ),
    "gemma2": dataclasses.replace(
        BASE,
        family="gemma2",
        sliding_window=4,
        full_layers=(1,),
        attention_softcap=5.0,
        tied=True,
        **GEMMA,
    ),
    "gemma3_text": dataclasses.replace(
        BASE,
        family="gemma3_text",
        sliding_window=4,
        full_layers=(2,),
        rope_theta=1e6,
        local_rope_theta=1e4,
        rope_scaling=RopeScaling("linear", 8.0),
        **GEMMA,
    ),
    "phi3": dataclasses.replace(
        BASE, family="phi3", sliding_window=4, partial_rotary_factor=0.75, rope_scaling=LONG,
        max_positions=128,
    ),
    "smollm3": dataclasses.replace(
        BASE, family="smollm3", unrotated_layers=(1,), sliding_window=4, full_layers=(0, 2)
    ),
    "olmo2": dataclasses.replace(BASE, family="olmo2", attention_bias=True),
}  # fmt: skip


def golden_path(given: str, ours: str) -> Path:
    """The path of a file by its original name, if it exists, otherwise by ours."""
    path = golden_file(given)
    return path if path.exists() else golden_file(f"llm/{ours}")


def model_folder(family: str) -> Path:
    """The folder of a model as written by transformers."""
    newer = family in NEWER + ELSEWHERE
    return golden_path(f"{12 if newer else 11}_llm_{family}", family)


def shards_of_llama() -> Path:
    """The index file that transformers wrote when it split the model into shards."""
    return golden_path("11_llm_llama_sharded/model.safetensors.index.json", "llama/shards.json")


@functools.cache
def golden(family: str) -> dict[str, np.ndarray]:
    """The reference arrays of one model."""
    newer = family in NEWER + ELSEWHERE
    path = ("12_llm.npz", "newer.npz") if newer else ("11_llm.npz", "arrays.npz")
    with np.load(golden_path(*path)) as file:
        prefix = family + "/"
        return {k[len(prefix) :]: file[k] for k in file.files if k.startswith(prefix)}


@functools.cache
def model(family: str, dtype: str = "float32"):
    """(decoder, params) of one model."""
    return load_model(model_folder(family), dtype)
