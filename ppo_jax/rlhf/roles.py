"""Loading of the four models that a command line names, and checks that they fit together."""

import dataclasses
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from ppo_jax.config import ConfigError
from ppo_jax.rlhf import hf_adapters, scoring, stages, train
from ppo_jax.rlhf.algorithms import ALGORITHMS
from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.hf_io import load_model
from ppo_jax.rlhf.reward_functions import PromptTable
from ppo_jax.rlhf.scoring import Reward
from ppo_jax.rlhf.sharding import mesh_of
from ppo_jax.rlhf.stages import Language
from ppo_jax.rlhf.tokenizer import check_vocabulary, load_tokenizer
from ppo_jax.types import Params

# Two tokenizers are taken to be the same if they encode this text to the same ids.
PROBE = "The quick brown fox jumps over 0123456789 lazy dogs; étude, naïve."


def roles(
    values: dict[str, Any],
    decoder: Decoder,
    params: Params,
    language: Language,
    *,
    table: PromptTable | None = None,
) -> train.Models:
    """The four models of the command `ppo`.

    Args:
        values: values of the options by name.
        decoder: architecture of the actor.
        params: parameters that the actor starts from.
        language: tokenizer of the actor.
        table: prompts with the columns of the data, for reward functions, or None.

    Raises:
        ConfigError, ModelError, TokenizerError: a model is missing or does not fit the others.
    """
    devices = mesh(values)
    rewards, folders = rewards_of(values, language, decoder, table)
    frozen, reference = frozen_dtype(values["frozen_dtype"]), params
    if not values["lora_rank"]:  # adapters are added to the reference, which is the trained model
        reference = jax.tree.map(lambda x: x.astype(frozen), params)
    if values["reference"] is not None:
        folder = model_folder(values["reference"])
        other, reference = load_model(folder, param_dtype=frozen, mesh=devices)
        if "score" in reference:
            raise ConfigError(
                f"{values['reference']} is a reward model, which cannot generate text; give the "
                "folder of a language model as --reference"
            )
        if other.config.architecture() != decoder.config.architecture():
            raise ConfigError(
                f"{values['reference']} does not have the architecture of {values['model']}"
            )
    kind = values["critic"]
    if kind == "auto":
        kind = "none" if not ALGORITHMS[values["algorithm"]].critic else "model"
        kind = "reward" if folders and kind == "model" else kind
    critic: Decoder | str = kind
    critic_params: Params = {}
    if kind == "reward":
        if not folders:
            raise ConfigError("--critic reward needs the folder of a reward model in --reward")
        critic, critic_params = _load(folders[0], values)
        critic_params = stages.zero_head(critic_params)
    elif kind == "model":
        critic, critic_params = decoder, decoder.with_score(params)
    elif kind == "shared":
        critic_params = train.fresh_score(decoder)
    return train.Models(decoder, params, critic, critic_params, reference, rewards)


def rewards_of(
    values: dict[str, Any], language: Language, actor: Decoder, table: PromptTable | None = None
) -> tuple[Reward, list[Path]]:
    """The reward that is optimised, and the folders of the reward models in it.

    Args:
        values: values of the options by name, of which `reward` and `reward_weights` are used.
        language: tokenizer of the model that is rewarded.
        actor: architecture of that model.
        table: prompts with the columns of the data, for reward functions, or None.

    Raises:
        ConfigError, ModelError, TokenizerError: a reward is missing or does not fit the model.
    """
    names, weights = values["reward"], values["reward_weights"]
    if not names:
        raise ConfigError(
            "--reward is required: give the folder of a reward model, or module:function"
        )
    if weights and len(weights) != len(names):
        raise ConfigError(
            f"--reward has {len(names)} values and --reward-weights has {len(weights)}; give one "
            "weight for each reward"
        )
    found, folders = [], []
    for name in names:
        if Path(name).is_dir():
            folder = model_folder(Path(name))
            _check_vocabulary(folder, language)
            dtype = frozen_dtype(values.get("frozen_dtype", "float32"))
            reward, decoder = stages.read_reward(folder, dtype, mesh(values))
            _check_fits(folder, decoder, actor)
            found.append(reward)
            folders.append(folder)
        else:
            options: Any = {"name": f"the reward function {name}", "optional": len(names) > 1}
            options["mesh"] = mesh(values)
            function = _function(name)
            found.append(scoring.from_function(function, language.tokenizer, table, **options))
    if len(found) == 1 and not weights:
        return found[0], folders
    return scoring.weighted(found, weights or [1.0] * len(found), _metric_names(names)), folders


def _metric_names(rewards: Sequence[str]) -> list[str]:
    """The names of functions and folders; those that several rewards share are numbered."""
    short = [Path(x).resolve().name if Path(x).is_dir() else x.rpartition(":")[2] for x in rewards]
    words = [re.sub(r"\W", "_", name) for name in short]
    return [
        f"{word}_{words[:i].count(word) + 1}" if words.count(word) > 1 else word
        for i, word in enumerate(words)
    ]


def _check_vocabulary(folder: Path, language: Language) -> None:
    """Refuse a reward model whose tokenizer is not that of the actor.

    Raises:
        ConfigError: the tokenizers differ.
    """
    if not (folder / "tokenizer.json").exists():
        return
    theirs, ours = load_tokenizer(folder), language.tokenizer
    # Character tokenizers are compared by their alphabets, others by the ids of a sample text.
    kept = [getattr(x, "tokens", None) or x.encode(PROBE) for x in (theirs, ours)]
    if theirs.vocab_size != ours.vocab_size or kept[0] != kept[1]:
        raise ConfigError(
            f"the tokenizer of the reward model {folder} ({theirs.vocab_size} tokens) is not that "
            f"of the model ({ours.vocab_size} tokens)"
        )


def _check_fits(folder: Path, reward: Decoder, actor: Decoder) -> None:
    """Refuse a reward model whose vocabulary or context is smaller than that of the actor."""
    for name in ("vocab_size", "context"):
        theirs, ours = getattr(reward.config, name), getattr(actor.config, name)
        if theirs < ours:
            raise ConfigError(
                f"{name} of the reward model {folder} is {theirs}, less than the model's {ours}"
            )


def _function(name: str) -> scoring.RewardFunction:
    """The reward function that module:function names.

    Raises:
        ConfigError: the module cannot be imported, or has no function of that name.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(f"--reward {name} is neither a folder nor of the form module:function")
    sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the user's module may raise anything
        raise ConfigError(f"--reward {name}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not callable(function):
        raise ConfigError(f"--reward {name} must name a function, not {function!r}")
    return function


def writer(values: dict[str, Any]) -> tuple[Decoder, Params, Language]:
    """The language model of `--model`, with its tokenizer; a reward model is refused."""
    decoder, params, language = model(values)
    if "score" in params:
        raise ConfigError(
            f"{values['model']} is a reward model, which cannot generate text; give the folder of "
            "a language model as --model"
        )
    return decoder, params, language


def model(values: dict[str, Any]) -> tuple[Decoder, Params, Language]:
    """The model of `--model`, with its tokenizer.

    Raises:
        ConfigError, ModelError, TokenizerError: model or tokenizer is missing, or they do not fit.
    """
    folder = model_folder(Path(needed(values, "model")))
    decoder, params = _load(folder, values)
    adapter = hf_adapters.is_adapter(folder)
    home = folder
    if adapter and not (folder / "tokenizer.json").exists():
        home = hf_adapters.read_adapter(folder).base
    tokenizer = load_tokenizer(home)
    check_vocabulary(tokenizer, decoder.config.vocab_size)
    return decoder, params, Language(tokenizer, home, None if adapter else folder)


def _load(folder: Path, values: dict[str, Any]) -> tuple[Decoder, Params]:
    """A model that is trained, with the data types, attention and device mesh of the options.

    Raises:
        ConfigError: the attention cannot be computed on this device.
    """
    kept = values.get("param_dtype", "float32")
    param_dtype = None if kept == "file" else kept
    decoder, params = load_model(
        folder, values["dtype"], param_dtype, remat=values["remat"], mesh=mesh(values)
    )
    attention = values.get("attention", "plain")
    if attention == "cudnn" and jax.default_backend() != "gpu":
        raise ConfigError(
            f"--attention cudnn needs an NVIDIA GPU, and JAX runs on {jax.default_backend()}; use "
            "--attention plain"
        )
    return Decoder(dataclasses.replace(decoder.config, attention=attention)), params


def frozen_dtype(name: str) -> str:
    """The data type of frozen parameters; "auto" is bfloat16 on accelerators, float32 on CPUs."""
    if name != "auto":
        return name
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def mesh(values: dict[str, Any]) -> Any:
    """The device mesh of a stage; None for one device, and for commands that use one device.

    Args:
        values: values of the options by name.
    """
    if "model_parallel" not in values:
        return None
    parts = max(1, values["micro_batches"])
    if "batch_size" in values:
        return mesh_of(values["model_parallel"], max(1, values["batch_size"] // parts))
    responses = values["num_prompts"] * values["group_size"]
    rows = [max(1, responses // (values["minibatches"] * parts))]
    rows += [] if values["rollout_batch"] is None else [values["rollout_batch"]]
    return mesh_of(values["model_parallel"], responses, *rows)


def model_folder(folder: Path) -> Path:
    """The folder of a model: `model` inside the folder of a run, or the folder itself."""
    inner = folder / "model"
    if inner.is_dir() and not (folder / "model.safetensors").exists():
        return inner
    if (folder / "checkpoints").is_dir() or (folder / "sft").is_dir():
        raise ConfigError(
            f"{folder} is an unfinished run without a model; finish it with --resume {folder}"
        )
    return folder


def needed(values: dict[str, Any], name: str) -> Any:
    """The value of a required flag.

    Raises:
        ConfigError: the flag was not given.
    """
    if values[name] is None:
        raise ConfigError(f"--{name.replace('_', '-')} is required; see --help")
    return values[name]


def prompt_room(decoder: Decoder, max_new_tokens: int) -> int:
    """The maximum number of tokens of a prompt.

    Raises:
        ConfigError: the response alone fills the model's context.
    """
    room = decoder.config.context - max_new_tokens
    if room < 1:
        raise ConfigError(
            f"max_new_tokens is {max_new_tokens}; the context of the model is "
            f"{decoder.config.context} tokens, including the prompt"
        )
    return room


def ends(decoder: Decoder, tokenizer: Any) -> tuple[int, ...] | None:
    """The ids that end a response: those of the model's config.json and of the tokenizer."""
    named = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    return tuple(sorted({*decoder.config.eos_ids, *named})) or None
