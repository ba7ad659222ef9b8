"""Loading of the four models that a command line names, and checks that they fit together."""

import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any

import jax

from ppo_jax.config import ConfigError
from ppo_jax.rlhf import hf_adapters, scoring, stages, train
from ppo_jax.rlhf.algorithms import ALGORITHMS
from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.hf_io import load_model
from ppo_jax.rlhf.scoring import Reward
from ppo_jax.rlhf.stages import Language
from ppo_jax.rlhf.tokenizer import check_vocabulary, load_tokenizer
from ppo_jax.types import Params

# Two tokenizers are taken to be the same if they encode this text to the same ids.
PROBE = "The quick brown fox jumps over 0123456789 lazy dogs; étude, naïve."


def roles(
    values: dict[str, Any], decoder: Decoder, params: Params, language: Language
) -> train.Models:
    """The four models of the command `ppo`.

    Args:
        values: values of the options by name.
        decoder: architecture of the actor.
        params: parameters that the actor starts from.
        language: tokenizer of the actor.

    Raises:
        ConfigError, ModelError, TokenizerError: a model is missing or does not fit the others.
    """
    rewards, folders = _rewards(values, language, decoder)
    reference = params
    if values["reference"] is not None:
        other, reference = load_model(_model_folder(values["reference"]))
        if "score" in reference:
            raise ConfigError(
                f"{values['reference']} is a reward model, which cannot generate text; give the "
                "folder of a language model as --reference"
            )
        if dataclasses.replace(other.config, dtype="float32") != dataclasses.replace(
            decoder.config, dtype="float32", remat=False, attention="plain"
        ):
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


def _rewards(
    values: dict[str, Any], language: Language, actor: Decoder
) -> tuple[Reward, list[Path]]:
    """The reward that is optimised, and the folders of the reward models in it."""
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
            folder = _model_folder(Path(name))
            _check_vocabulary(folder, language)
            reward, decoder = stages.read_reward(folder)
            _check_fits(folder, decoder, actor)
            found.append(reward)
            folders.append(folder)
        else:
            if jax.device_count() > 1:
                raise ConfigError(
                    f"--reward {name}: a Python function can be called from one device only, and "
                    f"JAX uses {jax.device_count()}; restrict JAX to one device "
                    "(JAX_NUM_CPU_DEVICES=1, CUDA_VISIBLE_DEVICES=0), or use a reward model"
                )
            found.append(scoring.from_function(_function(name), language.tokenizer))
    if len(found) == 1 and not weights:
        return found[0], folders
    return scoring.weighted(found, weights or [1.0] * len(found)), folders


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
    for name in ("vocab_size", "max_positions"):
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
    folder = _model_folder(Path(needed(values, "model")))
    decoder, params = _load(folder, values)
    adapter = hf_adapters.is_adapter(folder)
    home = folder
    if adapter and not (folder / "tokenizer.json").exists():
        home = hf_adapters.read_adapter(folder).base
    tokenizer = load_tokenizer(home)
    check_vocabulary(tokenizer, decoder.config.vocab_size)
    return decoder, params, Language(tokenizer, home, None if adapter else folder)


def _load(folder: Path, values: dict[str, Any]) -> tuple[Decoder, Params]:
    """A model with the data type, recomputation and attention of the options.

    Raises:
        ConfigError: the attention cannot be computed on this device.
    """
    decoder, params = load_model(folder, values["dtype"], remat=values["remat"])
    attention = values.get("attention", "plain")
    if attention == "cudnn" and jax.default_backend() != "gpu":
        raise ConfigError(
            f"--attention cudnn needs an NVIDIA GPU, and JAX runs on {jax.default_backend()}; use "
            "--attention plain"
        )
    return Decoder(dataclasses.replace(decoder.config, attention=attention)), params


def _model_folder(folder: Path) -> Path:
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
    room = decoder.config.max_positions - max_new_tokens
    if room < 1:
        raise ConfigError(
            f"max_new_tokens is {max_new_tokens}; the context of the model is "
            f"{decoder.config.max_positions} tokens, including the prompt"
        )
    return room


def ends(decoder: Decoder, tokenizer: Any) -> tuple[int, ...] | None:
    """The ids that end a response: those of the model's config.json and of the tokenizer."""
    named = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    return tuple(sorted({*decoder.config.eos_ids, *named})) or None
