"""Adapter folders of PEFT: adapter_config.json and adapter_model.safetensors.

An adapter folder that is read becomes the whole model: (α/r) B A is added to the tensors of the
base model, whose folder adapter_config.json names. Adapters trained here are written in the same
format, which PEFT can load.
"""

import json
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ppo_jax.rlhf import hf_names
from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.decoder_config import DecoderConfig
from ppo_jax.rlhf.hf_values import ModelError
from ppo_jax.rlhf.lora import Lora
from ppo_jax.runs import manifest
from ppo_jax.types import Params

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
A, B = ".lora_A.weight", ".lora_B.weight"
# The heads that PEFT trains entirely for a SEQ_CLS model, which has one of them.
HEADS = {"score", "classifier"}
# Fields whose values do not change the sum of base and adapters, or that are read here.
READ = {
    "alora_invocation_tokens", "auto_mapping", "base_model_name_or_path", "bias", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "modules_to_save",
    "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "alpha_pattern",
    "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
# Fields with the values that are supported, and the reason for a refusal.
ALLOWED: dict[str, tuple[tuple[Any, ...], str]] = {
    "peft_type": (("LORA",), "only LoRA adapters are supported"),
    "task_type": (("CAUSAL_LM", "SEQ_CLS", None), "only these tasks have a model here"),
    "bias": (("none", None), "trained biases are not supported"),
    "init_lora_weights": (
        (True, False, None, "gaussian", "eva", "orthogonal"),
        "other initialisations change the weights of the base model; convert the adapter with "
        "path_initial_model_for_weight_conversion of PEFT's save_pretrained",
    ),
    "alora_invocation_tokens": ((None,), "adapters of some tokens only are not supported"),
}


class Adapter(NamedTuple):
    """An adapter folder.

    Attributes:
        folder: path of the folder.
        base: path of the base model's folder.
        config: content of adapter_config.json.
    """

    folder: Path
    base: Path
    config: dict[str, Any]


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds adapters and no model of its own."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").exists()


def read_adapter(folder: Path) -> Adapter:
    """Read adapter_config.json.

    Args:
        folder: path of the adapter folder.

    Raises:
        ModelError: the file is not that of a LoRA adapter, it has a feature that is not supported,
            or the base model is not in a folder.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} must hold a JSON object, not {type(config).__name__}")
    _check(config, path)
    name = config.get("base_model_name_or_path")
    found = [Path(str(name)), folder / str(name)] if name else []
    base = next((p for p in found if p.is_dir()), None)
    if base is None:
        raise ModelError(
            f"{path}: base_model_name_or_path is {name!r}, which is not a folder; download the "
            "base model and write the path of its folder there"
        )
    if is_adapter(base):
        raise ModelError(f"{path}: the base model {base} is itself an adapter; merge it first")
    return Adapter(folder, base, config)


def _check(config: dict[str, Any], path: Path) -> None:
    for name, (allowed, why) in ALLOWED.items():
        value = config.get(name)
        if not any(value is x or (isinstance(x, str) and value == x) for x in allowed):
            listed = ", ".join(json.dumps(x) for x in allowed)
            raise ModelError(f"{path}: {name} is {value!r}; it must be one of {listed}: {why}")
    _check_scales(config, path)
    saved = config.get("modules_to_save") or []
    if saved and (config.get("task_type") != "SEQ_CLS" or not {*saved} <= HEADS):
        raise ModelError(
            f"{path}: modules_to_save is {saved!r}; only the score head of a SEQ_CLS model can be "
            "trained besides the adapters"
        )
    others = [name for name, x in config.items() if name not in READ and x]
    if others:
        raise ModelError(
            f"{path}: {others[0]} is {config[others[0]]!r}, a feature that is not supported; only "
            "plain LoRA can be read. Merge the adapter with PEFT's merge_and_unload, and give the "
            "merged model"
        )


def _check_scales(config: dict[str, Any], path: Path) -> None:
    """Refuse factors that are not numbers, and patterns that are not regular expressions."""
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise ModelError(f"{path}: alpha_pattern is {patterns!r}; it must be an object")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ModelError(f"{path}: alpha_pattern has {pattern!r}: {error}") from error
    values = {"lora_alpha": config.get("lora_alpha", 8)}
    values |= {f"alpha_pattern of {name}": x for name, x in patterns.items()}
    for name, value in values.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise ModelError(f"{path}: {name} is {value!r}; it must be a number")


def merged(tensors: dict[str, np.ndarray], adapter: Adapter, family: str) -> dict[str, np.ndarray]:
    """The tensors of the base model with the adapters added, W + s B A.

    Args:
        tensors: tensors of the base model by name.
        adapter: the adapter, as from `read_adapter`.
        family: model_type of the base model.

    Returns:
        The tensors by name, each in its own dtype; a score head in the adapter is added or
        replaced.

    Raises:
        ModelError: a tensor of the adapter belongs to no tensor of the base model, has another
            shape, or is of a kind that is not supported.
    """
    found = _read_weights(adapter)
    result = dict(tensors)
    for name in sorted(found):
        if name == "score.weight":
            result[name] = found[name]
        elif name.endswith(A):
            _add(result, found, adapter, name.removesuffix(A), family=family)
        elif not name.endswith(B):
            raise ModelError(
                f"{adapter.folder / WEIGHTS}: tensor {PREFIX}{name} is not supported; only lora_A "
                "and lora_B of matrices, and a score head"
            )
    return result


def _add(
    tensors: dict[str, np.ndarray],
    found: dict[str, np.ndarray],
    adapter: Adapter,
    module: str,
    *,
    family: str,
) -> None:
    """Add one adapter to its tensor."""
    where = f"{adapter.folder / WEIGHTS}: {PREFIX}{module}"
    if module + B not in found:
        raise ModelError(f"{where} has a lora_A and no lora_B")
    names = [f"{module}.weight", f"{module.partition('.')[2]}.weight"]
    name = next((n for n in names if n in tensors), None)
    if name is None:
        raise ModelError(f"{where} is not a matrix of the base model {adapter.base}")
    if name == "lm_head.weight" and _shares_head(adapter.base):
        raise ModelError(f"{where}: the base model has no head of its own that could be adapted")
    a, b = (found[module + kind].astype(np.float32) for kind in (A, B))
    # The matrices of GPT-2's layers are stored as (in, out).
    change = scale_of(adapter.config, module, a.shape[0]) * (b @ a)
    change = change.T if family == "gpt2" and name != "lm_head.weight" else change
    matrix = tensors[name]
    if matrix.shape != change.shape:
        raise ModelError(
            f"{where} changes a matrix of {list(change.shape)}, but that of the base model has "
            f"{list(matrix.shape)}"
        )
    tensors[name] = (matrix.astype(np.float32) + change).astype(matrix.dtype)


def _shares_head(base: Path) -> bool:
    return bool(json.loads((base / "config.json").read_text()).get("tie_word_embeddings", True))


def scale_of(config: dict[str, Any], module: str, rank: int) -> float:
    """The factor of B A of a module: α / r, or α / √r with rslora.

    Args:
        config: content of adapter_config.json.
        module: name of the module, which an entry of `alpha_pattern` may match.
        rank: r, the number of rows of A.

    Source: Kalajdzievski 2023, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA,
    section 3.
    """
    alpha = config.get("lora_alpha", 8)
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = own
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _read_weights(adapter: Adapter) -> dict[str, np.ndarray]:
    """The tensors of an adapter by their names without the prefix of PEFT."""
    path = adapter.folder / WEIGHTS
    if not path.is_file():
        there = sorted(p.name for p in adapter.folder.glob("*.bin"))
        hint = f"; {there[0]} is a pickle: save the adapter as safetensors" if there else ""
        raise ModelError(f"{adapter.folder} has no {WEIGHTS}{hint}")
    try:
        with safe_open(path, framework="numpy") as file:
            return {k.removeprefix(PREFIX): file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise ModelError(f"{path} has weights of a type that is not supported: {error}") from error
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is damaged or not a safetensors file: {error}") from error


def save_adapter(
    folder: Path, *, decoder: Decoder, trained: Params, adapters: Lora, base: str | os.PathLike
) -> None:
    """Write trained adapters in the format of PEFT.

    Args:
        folder: path of an existing folder.
        decoder: architecture of the base model.
        trained: adapters, and a score head if the model has one, as from `Lora.init`.
        adapters: rank, scale and targets of the adapters.
        base: path of the base model's folder, which is written to adapter_config.json.
    """
    tensors, ranks = to_tensors(decoder.config, trained)
    scoring = "score" in trained
    larger = {name: rank for name, rank in ranks.items() if rank != adapters.rank}
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if scoring else "CAUSAL_LM",
        "base_model_name_or_path": os.fspath(base),
        "r": adapters.rank,
        "lora_alpha": adapters.alpha,
        "rank_pattern": larger,
        # With the same α / r as all others.
        "alpha_pattern": {name: rank * adapters.scale for name, rank in larger.items()},
        "target_modules": sorted(ranks),
        "modules_to_save": ["score"] if scoring else None,
        "fan_in_fan_out": decoder.config.family == "gpt2",
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    manifest.note(folder, {WEIGHTS: manifest.entry_of(folder / WEIGHTS)})
    manifest.write_json(folder, CONFIG, config)
    manifest.settle(folder)


def to_tensors(
    config: DecoderConfig, trained: Params
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The tensors of adapters by their names on disk, and the rank of each kind of module.

    A matrix on disk that consists of several here, such as GPT-2's c_attn of q, k and v, gets one
    adapter whose rank is the sum of theirs: A side by side, and B block by block.

    Args:
        config: architecture of the base model.
        trained: adapters, and a score head if the model has one.

    Returns:
        (tensors by name, ranks by name of the target module).
    """
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    for entry in hf_names.entries(config, head=False, score=False):
        found = [_adapter_at(trained, path) for path in entry.leaves]
        present = [pair for pair in found if pair is not None]
        if not present:
            continue
        total = sum(pair[0].shape[1] for pair in present)
        rows, start = [], 0
        for path, pair in zip(entry.leaves, found, strict=True):
            block = np.zeros((_width(config, path[-2]), total), np.float32)
            if pair is not None:
                rank = pair[0].shape[1]
                block[:, start : start + rank] = pair[1].T
                start += rank
            rows.append(block)
        module = hf_names.prefix_of(config) + entry.name.removesuffix(".weight")
        a = np.concatenate([pair[0] for pair in present], axis=1).T
        tensors[PREFIX + module + A] = np.ascontiguousarray(a)
        tensors[PREFIX + module + B] = np.concatenate(rows)
        # GPT-2 has a c_proj in attention and another in the MLP.
        parts = 2 if config.family == "gpt2" else 1
        ranks[".".join(module.split(".")[-parts:])] = total
    if "score" in trained:
        score = np.asarray(trained["score"]["kernel"], np.float32)
        tensors[f"{PREFIX}score.weight"] = np.ascontiguousarray(score.T)
    return tensors, ranks


def _adapter_at(trained: Params, path: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray] | None:
    """(A, B) of the matrix at a path of the parameters; None if it has no adapter."""
    place: Any = trained
    for name in path[:-1]:
        place = place.get(name, {})
    if path[-1] != "kernel" or "a" not in place:
        return None
    return np.asarray(place["a"], np.float32), np.asarray(place["b"], np.float32)


def _width(config: DecoderConfig, name: str) -> int:
    """The number of outputs of a matrix."""
    return {
        "q": config.num_heads * config.head_dim,
        "k": config.num_kv_heads * config.head_dim,
        "v": config.num_kv_heads * config.head_dim,
        "gate": config.intermediate_size,
        "up": config.intermediate_size,
    }.get(name, config.hidden_size)
