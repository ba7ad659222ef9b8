"""Reading and writing of Hugging Face model folders, config.json and safetensors, without torch.

transformers can load a folder written here, and `load_model` a folder written by transformers. A
model with a score head is a `*ForSequenceClassification` with one label.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ppo_jax.rlhf import hf_adapters, hf_names, sharding
from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.decoder_config import DecoderConfig
from ppo_jax.rlhf.hf_config import read_config, write_config
from ppo_jax.rlhf.hf_values import ModelError, token_id
from ppo_jax.runs import files, manifest
from ppo_jax.types import Params

# Types of weights that are computed with; quantised weights must be converted by their program.
WEIGHT_DTYPES = ("bfloat16", "float16", "float32", "float64")
HEAD = "lm_head.weight"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
# Buffers that some programs store with the weights: causal masks and rotary frequencies.
BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


def load_model(
    folder: str | os.PathLike,
    dtype: str = "float32",
    param_dtype: str | None = "float32",
    remat: bool = False,
    *,
    mesh: Any = None,
) -> tuple[Decoder, Params]:
    """Read a model of one of the families in `decoder_config.FAMILIES`.

    Args:
        folder: folder with config.json and model.safetensors, or with shards and their index; or
            an adapter folder of PEFT, whose adapters are added to the base model that it names.
        dtype: dtype of the computation, "float32" or "bfloat16".
        param_dtype: dtype of the parameters; None keeps the dtype of the file.
        remat: whether blocks are recomputed in the backward pass.
        mesh: device mesh that the parameters are distributed over, of which each device receives
            its part only; None for one device.

    Returns:
        The decoder and its parameters; a `*ForSequenceClassification` has a score head and no head.
        The tokens that end a text are those of config.json and of generation_config.json. A head in
        the file that differs from the embedding is kept, also if config.json ties them.

    Raises:
        ModelError: the folder is not a model of these families, its tensors do not match its
            config.json, or a file differs from the digest in the folder's manifest.
    """
    folder = Path(folder)
    _verify(folder)
    adapter = hf_adapters.read_adapter(folder) if hf_adapters.is_adapter(folder) else None
    if adapter is not None:
        folder = adapter.base
        _verify(folder)
    raw = _read_json(folder / "config.json", folder)
    try:
        config = _with_all_ends(read_config(raw, dtype, remat), folder)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / 'config.json'}: {error}") from error
    tensors = _read_tensors(folder)
    if adapter is not None:
        tensors = hf_adapters.merged(tensors, adapter, config.family)
    scoring = "SequenceClassification" in str(raw.get("architectures")) or "score.weight" in tensors
    try:
        decoder = Decoder(config if scoring else _untied(config, tensors))
        params = from_tensors(decoder, tensors, scoring)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from None
    cast = lambda x: np.asarray(x, param_dtype and jnp.dtype(param_dtype))
    params = jax.tree.map(cast, params)
    if mesh is None:
        return decoder, jax.tree.map(jnp.asarray, params)
    return decoder, sharding.shard(params, mesh)


def save_model(
    folder: str | os.PathLike,
    decoder: Decoder,
    params: Params,
    tokenizer: str | os.PathLike | bytes | None = None,
    *,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a model in a format that transformers and `load_model` can read.

    Args:
        folder: path of the folder, created if missing; a model in it is replaced.
        decoder: architecture of the model.
        params: parameters of the model, written in their own dtype; parameters with `score` become
            a `*ForSequenceClassification`.
        tokenizer: a folder whose tokenizer files are copied, or the content of tokenizer.json.
        max_shard_bytes: maximum size of a file in bytes; a larger model is written as several.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = to_tensors(decoder, params)
    weights = str(next(iter(tensors.values())).dtype)
    # config.json is deleted first and written last: a folder that has one is complete.
    for name in ("config.json", manifest.NAME):
        (folder / name).unlink(missing_ok=True)
    written = _copy_tokenizer(folder, tokenizer)
    written += _write_tensors(folder, tensors, max_shard_bytes)
    manifest.note(folder, {name: manifest.entry_of(folder / name) for name in written})
    config = write_config(decoder.config, "score" in params, weights)
    manifest.write_json(folder, "config.json", config)
    manifest.settle(folder)


def _verify(folder: Path) -> None:
    """Refuse a folder with a manifest in which a file differs from its digest.

    Raises:
        ModelError: a file is damaged; the message names it and a remedy.
    """
    try:
        manifest.require(folder, *manifest.read(folder))
    except manifest.Damaged as error:
        raise ModelError(str(error)) from error


def _with_all_ends(config: DecoderConfig, folder: Path) -> DecoderConfig:
    """The config with the end tokens of generation_config.json, which generation in transformers
    reads, added to those of config.json."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return config
    found = _read_json(path, folder).get("eos_token_id")
    listed = found if isinstance(found, list) else [] if found is None else [found]
    try:
        more = [token_id(x, "eos_token_id") for x in listed]
    except ModelError as error:
        raise ModelError(f"{path.name}: {error}") from None
    return dataclasses.replace(config, eos_ids=tuple(dict.fromkeys([*config.eos_ids, *more])))


def _untied(config: DecoderConfig, tensors: dict[str, np.ndarray]) -> DecoderConfig:
    """The config with a head of its own, if the file has one that is not the embedding.

    transformers 5 also keeps such a head, although config.json ties them.
    """
    if not config.tied or HEAD not in tensors:
        return config
    name = hf_names.embedding_of(config)
    embedding = tensors.get(hf_names.prefix_of(config) + name, tensors.get(name))
    if embedding is None or np.array_equal(embedding, tensors[HEAD]):
        return config
    return dataclasses.replace(config, tied=False)


def from_tensors(decoder: Decoder, tensors: dict[str, np.ndarray], scoring: bool) -> Params:
    """Parameters of a decoder from tensors with their names on disk.

    Args:
        decoder: architecture of the model.
        tensors: tensors by name, with or without the prefix of the trunk.
        scoring: whether the model has a score head instead of a head.

    Raises:
        ModelError: a tensor is missing, unknown, or of another shape.
    """
    config = decoder.config
    shapes = jax.eval_shape(decoder.init, jax.random.key(0))
    shapes = jax.eval_shape(decoder.with_score, shapes) if scoring else shapes
    rest = {name.removeprefix(hf_names.prefix_of(config)): x for name, x in tensors.items()}
    if config.tied or scoring:
        head = rest.pop(HEAD, None)
        if config.tied and head is not None:
            rest.setdefault(hf_names.embedding_of(config), head)
    params: dict = {}
    entries = hf_names.entries(config, not config.tied and not scoring, scoring)
    missing = [entry.name for entry in entries if entry.name not in rest]
    if missing:
        raise ModelError(f"no tensor {_some(missing)}{_nearest(missing[0], rest)}")
    for entry in entries:
        _place(params, entry, rest.pop(entry.name), shapes)
    extra = [name for name in rest if not name.endswith(BUFFERS)]
    if extra:
        raise ModelError(
            f"tensor {_some(extra)} is not part of a {config.family} model with this config.json"
        )
    return params


def _place(params: dict, entry: hf_names.Entry, tensor: np.ndarray, shapes: Params) -> None:
    leaves = [hf_names.get(shapes, path) for path in entry.leaves]
    widths = [leaf.shape[-1] for leaf in leaves]
    want = (*leaves[0].shape[:-1], sum(widths))
    on_disk = want[::-1] if entry.transposed else want
    if tensor.shape != on_disk:
        raise ModelError(
            f"tensor {entry.name} has shape {list(tensor.shape)}; according to config.json it must "
            f"be {list(on_disk)}"
        )
    if tensor.dtype.name not in WEIGHT_DTYPES:
        raise ModelError(
            f"tensor {entry.name} is {tensor.dtype}; weights must be floating point numbers: "
            f"{', '.join(WEIGHT_DTYPES)}"
        )
    tensor = tensor.T if entry.transposed else tensor
    parts = np.split(tensor, np.cumsum(widths)[:-1], axis=-1)
    for path, part in zip(entry.leaves, parts, strict=True):
        hf_names.put(params, path, part)


def to_tensors(decoder: Decoder, params: Params) -> dict[str, np.ndarray]:
    """Tensors by their names on disk, from parameters or any pytree of the same structure."""
    prefix = hf_names.prefix_of(decoder.config)
    tensors = {}
    for entry in hf_names.entries(decoder.config, "head" in params, "score" in params):
        parts = [np.asarray(hf_names.get(params, path)) for path in entry.leaves]
        tensor = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
        own = entry.name in (HEAD, "score.weight")
        name = entry.name if own else prefix + entry.name
        tensors[name] = np.ascontiguousarray(tensor.T if entry.transposed else tensor)
    return tensors


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    if (folder / INDEX).exists():
        names = _shards(folder)
    elif (folder / SINGLE).exists():
        names = [SINGLE]
    else:
        there = sorted(p.name for p in folder.glob("*.bin"))
        hint = f"; {there[0]} is a pickle: save the model as safetensors" if there else ""
        raise ModelError(f"{folder} has neither {SINGLE} nor {INDEX}{hint}")
    tensors: dict[str, np.ndarray] = {}
    for name in names:
        path = folder / name
        if not path.is_file():
            raise ModelError(f"{folder / INDEX} names {name}, which does not exist")
        try:
            with safe_open(path, framework="numpy") as file:
                tensors |= {key: _tensor(file, key, path) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is damaged or not a safetensors file: {error}") from error
    return tensors


def _tensor(file: Any, name: str, path: Path) -> np.ndarray:
    try:
        return file.get_tensor(name)
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        # numpy has no type for the weights, such as those of 8 or 4 bits.
        raise ModelError(
            f"{path}: tensor {name} has the type {file.get_slice(name).get_dtype()}, which is not "
            f"supported; save the model with weights in one of: {', '.join(WEIGHT_DTYPES)}"
        ) from error


def _shards(folder: Path) -> list[str]:
    """The names of the files with weights, which lie in the folder itself.

    Raises:
        ModelError: the index names no file, or something that is not the name of a file.
    """
    found = _read_json(folder / INDEX, folder).get("weight_map")
    if not isinstance(found, dict) or not found:
        shown = repr(found)[:40]
        raise ModelError(
            f"{folder / INDEX}: weight_map is {shown}; it must be an object with the name of a "
            "file for each tensor"
        )
    for name in found.values():
        plain = isinstance(name, str) and name not in ("", ".", "..") and "\\" not in name
        if not plain or Path(name).name != name:
            raise ModelError(
                f"{folder / INDEX} names the file {name!r}; it must be the name of a file in the "
                "same folder"
            )
    return sorted(set(found.values()))


def _write_tensors(folder: Path, tensors: dict[str, np.ndarray], most: int) -> list[str]:
    """Write the tensors; returns the names of the files, including the index."""
    shards: list[dict[str, np.ndarray]] = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and sum(x.nbytes for x in shards[-1].values()) + tensor.nbytes > most:
            shards.append({})
        shards[-1][name] = tensor
    for old in (*folder.glob("model-*-of-*.safetensors"), folder / INDEX, folder / SINGLE):
        old.unlink(missing_ok=True)
    if len(shards) == 1:
        save_file(shards[0], folder / SINGLE, metadata={"format": "pt"})
        return [SINGLE]
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(x.nbytes for x in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    files.write_json(folder / INDEX, index)
    return [*dict.fromkeys(weight_map.values()), INDEX]


def _copy_tokenizer(folder: Path, tokenizer: str | os.PathLike | bytes | None) -> list[str]:
    """Copy the tokenizer's files; returns their names."""
    if isinstance(tokenizer, bytes):
        files.write_bytes(folder / "tokenizer.json", tokenizer)
        return ["tokenizer.json"]
    names = [] if tokenizer is None else TOKENIZER_FILES
    found = [name for name in names if (Path(tokenizer or "") / name).is_file()]
    for name in found:
        source = Path(tokenizer or "") / name
        if source.resolve() != (folder / name).resolve():
            files.write_bytes(folder / name, source.read_bytes())
    return found


def _read_json(path: Path, folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder; a model is a folder with a config.json")
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in folder.iterdir())[:5]) or "nothing"
        raise ModelError(f"{folder} is not a model: no {path.name} in it (it contains: {there})")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} must hold a JSON object, not {type(content).__name__}")
    return content


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _nearest(name: str, names: dict[str, Any]) -> str:
    import difflib

    near = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
    return f"; the nearest is {near[0]}" if near else ""
