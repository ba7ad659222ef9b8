"""Small models of every family, with what transformers answered for them."""

import functools
from pathlib import Path

import numpy as np

from ppo_jax.rlhf.hf_io import load_model

FOLDER = Path(__file__).parent / "golden" / "llm"
FAMILIES = ["gpt2", "llama", "llama3_rope_tied", "mistral", "qwen2"]


@functools.cache
def golden(family: str) -> dict[str, np.ndarray]:
    """The arrays of one model."""
    with np.load(FOLDER / "arrays.npz") as file:
        prefix = family + "/"
        return {k[len(prefix) :]: file[k] for k in file.files if k.startswith(prefix)}


@functools.cache
def model(family: str, dtype: str = "float32"):
    """(decoder, params) of one model."""
    return load_model(FOLDER / family, dtype)
