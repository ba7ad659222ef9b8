"""Small models of every family, with the results of transformers for them."""

import functools
from pathlib import Path

import numpy as np

from ppo_jax.rlhf.hf_io import load_model
from reference import golden_file

FAMILIES = ["gpt2", "llama", "llama3_rope_tied", "mistral", "qwen2"]
# Models with the arrays of 12_llm.npz: transformers 5.24, eager attention.
NEWER = ["gemma2", "gemma3_text", "llama_yarn", "olmo2", "phi3", "qwen3", "smollm3"]
# Two more, of which the repository has no copy; PPO_JAX_GOLDEN may name a folder with them.
ELSEWHERE = ["qwen2_yarn", "qwen3_tied"]


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
