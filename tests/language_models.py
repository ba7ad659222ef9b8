"""Small models of every family, with the results of transformers for them."""

import functools
from pathlib import Path

import numpy as np

from ppo_jax.rlhf.hf_io import load_model
from reference import golden_file

FAMILIES = ["gpt2", "llama", "llama3_rope_tied", "mistral", "qwen2"]


def golden_path(given: str, ours: str) -> Path:
    """The path of a file by its original name, if it exists, otherwise by ours."""
    path = golden_file(given)
    return path if path.exists() else golden_file(f"llm/{ours}")


def model_folder(family: str) -> Path:
    """The folder of a model as written by transformers."""
    return golden_path(f"11_llm_{family}", family)


def shards_of_llama() -> Path:
    """The index file that transformers wrote when it split the model into shards."""
    return golden_path("11_llm_llama_sharded/model.safetensors.index.json", "llama/shards.json")


@functools.cache
def golden(family: str) -> dict[str, np.ndarray]:
    """The reference arrays of one model."""
    with np.load(golden_path("11_llm.npz", "arrays.npz")) as file:
        prefix = family + "/"
        return {k[len(prefix) :]: file[k] for k in file.files if k.startswith(prefix)}


@functools.cache
def model(family: str, dtype: str = "float32"):
    """(decoder, params) of one model."""
    return load_model(model_folder(family), dtype)
